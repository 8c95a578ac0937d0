"""Known-answer tests of the primitives, run before keys are first used: a library that errs must not write anything."""

import hashlib
import hmac
from functools import cache

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from healthingest.errors import KeyringError

# RFC 5869, appendix A.1.
_HKDF = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
# McGrew and Viega, The Galois/Counter Mode of Operation, test case 14: ciphertext and tag.
_AES_GCM = "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
# RFC 4231, test case 2.
_HMAC = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"


@cache
def check_primitives() -> None:
    """Hold HKDF, AES-256-GCM and HMAC-SHA256 against published answers.

    Raises:
        KeyringError: one differs.
    """
    salt, info = bytes(range(13)), bytes(range(0xF0, 0xFA))
    answers = {
        "HKDF-SHA256": (HKDF(SHA256(), 42, salt, info).derive(b"\x0b" * 22).hex(), _HKDF),
        "AES-256-GCM": (AESGCM(bytes(32)).encrypt(bytes(12), bytes(16), None).hex(), _AES_GCM),
        "HMAC-SHA256": (hmac.digest(b"Jefe", b"what do ya want for nothing?", hashlib.sha256).hex(), _HMAC),
    }
    for name, (got, known) in answers.items():
        if got != known:
            raise KeyringError(f"The installed library does not compute {name} right; install the locked versions.")
