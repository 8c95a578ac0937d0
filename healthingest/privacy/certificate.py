"""Certificates of erasure: what was erased, counted, and signed so that anybody can check it (Ed25519, RFC 8032).

They name no member: no id, no token, no hash of either. The signing key comes from the keyring; its public half stands
in each certificate and in `healthingest keys status`.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from healthingest.errors import UsageError
from healthingest.privacy.keyring import Keyring

_SIGNATURE = "signature"


def signed(keyring: Keyring, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body with `public_key` and `signature` (Base64)."""
    key = _private(keyring)
    said = dict(body) | {"public_key": public_key(keyring)}
    return said | {_SIGNATURE: base64.b64encode(key.sign(_as_signed(said))).decode()}


def public_key(keyring: Keyring) -> str:
    """The public half of the signing key, Base64."""
    return base64.b64encode(_private(keyring).public_key().public_bytes_raw()).decode()


def faults(path: Path, trusted_key: str) -> list[str]:
    """What is wrong with a certificate, a sentence each; `trusted_key` is the signer's public key.

    Raises:
        UsageError: it is no certificate.
    """
    try:
        body = json.loads(path.read_text())
        signature, key = base64.b64decode(body.pop(_SIGNATURE)), base64.b64decode(body["public_key"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is no certificate as healthingest erase writes it.") from None
    if body["public_key"] != trusted_key:
        return ["It was signed by another key."]
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, _as_signed(body))
    except (InvalidSignature, ValueError):
        return ["It was changed after it was signed."]
    return []


def _private(keyring: Keyring) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(keyring.derive("certificate"))


def _as_signed(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
