"""Key-encryption keys: what a keyring file is locked with at rest, and where that key lives.

A keyring's own data key is wrapped by one of these; the keyring names it by a URI that holds no secret. To add a
service, write a class with `wrap` and `unwrap` and give it a scheme in `kek_of`.
"""

import base64
import binascii
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from healthingest.errors import KeyringError

_KEY_BYTES = 32
_NONCE = 12
_CONTEXT = b"healthingest/kek/1"
#: Seconds until a key service that does not answer is given up.
_TIMEOUT = 10


class KeyEncryptionKey(Protocol):
    """Wraps and unwraps 32-byte data keys. Both raise KeyringError, whose text names the key and never holds one."""

    def wrap(self, key: bytes) -> bytes:
        """Encrypt a data key."""

    def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt what `wrap` gave."""


def kek_of(uri: str) -> KeyEncryptionKey:
    """The key that a URI names: `env:NAME`, `file:PATH`, `aws-kms:KEY`, `vault-transit:[MOUNT/]KEY`.

    `env` and `file` hold 64 hex digits. AWS is addressed by boto3's usual settings, HashiCorp Vault and OpenBao by
    VAULT_ADDR and VAULT_TOKEN. Azure Key Vault and Google Cloud KMS have no implementation here.

    Raises:
        KeyringError: no such scheme, or its client library is not installed.
    """
    scheme, _, rest = uri.partition(":")
    if scheme not in _SCHEMES or not rest:
        raise KeyringError(  # what was given is not said: it may be the key itself
            f"--kek names no place for a key-encryption key; use one of: {', '.join(_FORMS)}."
        )
    return _SCHEMES[scheme](rest)


class LocalKey:
    """A key that this machine holds, in the environment or in a file; AES-256-GCM."""

    def __init__(self, read: Callable[[], str], where: str) -> None:
        """`read` gives 64 hex digits; `where` says in an error where they are looked for."""
        self._where = where
        try:
            self._key = bytes.fromhex(read().strip())
        except (OSError, ValueError, KeyError):
            self._key = b""
        if len(self._key) != _KEY_BYTES:
            raise KeyringError(f"The key-encryption key in {where} is missing or not 64 hex digits.")

    def wrap(self, key: bytes) -> bytes:
        """Nonce, ciphertext and tag."""
        nonce = os.urandom(_NONCE)
        return nonce + AESGCM(self._key).encrypt(nonce, key, _CONTEXT)

    def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt; refuses what another key wrapped."""
        try:
            return AESGCM(self._key).decrypt(wrapped[:_NONCE], wrapped[_NONCE:], _CONTEXT)
        except (InvalidTag, ValueError):
            raise KeyringError(f"The key in {self._where} is not the one that locked this keyring.") from None


class AwsKms:
    """A key of AWS KMS; needs the extra `aws`."""

    def __init__(self, key_id: str) -> None:
        """`key_id`: id, ARN or alias."""
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise KeyringError("aws-kms needs boto3; install healthingest[aws].") from None
        self._key_id = key_id
        self._errors = _errors_of("botocore.exceptions", "BotoCoreError", "ClientError")
        with _told("AWS KMS", key_id, self._errors):
            config = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT, retries={"max_attempts": 3})
            self._client: Any = boto3.client("kms", config=config)

    def wrap(self, key: bytes) -> bytes:
        """Encrypt within KMS."""
        with _told("AWS KMS", self._key_id, self._errors):
            answer = self._client.encrypt(KeyId=self._key_id, Plaintext=key, EncryptionContext=_AWS_CONTEXT)
            return bytes(answer["CiphertextBlob"])

    def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt within KMS."""
        with _told("AWS KMS", self._key_id, self._errors):
            answer = self._client.decrypt(KeyId=self._key_id, CiphertextBlob=wrapped, EncryptionContext=_AWS_CONTEXT)
            return bytes(answer["Plaintext"])


class VaultTransit:
    """A key of the transit engine of HashiCorp Vault or OpenBao; needs the extra `vault`."""

    def __init__(self, name: str) -> None:
        """`name`: the key, with its mount in front where that is not `transit`."""
        try:
            import hvac
        except ImportError:
            raise KeyringError("vault-transit needs hvac; install healthingest[vault].") from None
        self._name, self._key = name, name.rpartition("/")[2]
        self._mount = name.rpartition("/")[0] or "transit"
        self._errors = _errors_of("hvac.exceptions", "VaultError") + _errors_of(
            "requests.exceptions", "RequestException"
        )
        self._client: Any = hvac.Client(timeout=_TIMEOUT)  # reads VAULT_ADDR and VAULT_TOKEN

    def wrap(self, key: bytes) -> bytes:
        """Encrypt within the transit engine, under the key's latest version."""
        with _told("the transit engine", self._name, self._errors):
            answer = self._client.secrets.transit.encrypt_data(
                name=self._key, plaintext=base64.b64encode(key).decode(), mount_point=self._mount
            )
            return str(answer["data"]["ciphertext"]).encode()

    def unwrap(self, wrapped: bytes) -> bytes:
        """Decrypt within the transit engine."""
        with _told("the transit engine", self._name, self._errors):
            answer = self._client.secrets.transit.decrypt_data(
                name=self._key, ciphertext=wrapped.decode(), mount_point=self._mount
            )
            return base64.b64decode(answer["data"]["plaintext"])


_AWS_CONTEXT = {"healthingest": "keyring"}
_FORMS = ("env:NAME", "file:PATH", "aws-kms:KEY", "vault-transit:[MOUNT/]KEY")
_SCHEMES: dict[str, Callable[[str], KeyEncryptionKey]] = {
    "env": lambda name: LocalKey(lambda: os.environ[name], f"the environment variable {name}"),
    "file": lambda path: LocalKey(lambda: _private(Path(path).expanduser()), path),
    "aws-kms": AwsKms,
    "vault-transit": VaultTransit,
}


def _private(path: Path) -> str:
    if path.stat().st_mode & 0o077:
        raise KeyringError(f"The key-encryption key {path} is open to others; run: chmod 600 {path}")
    return path.read_text()


def _errors_of(module: str, *names: str) -> tuple[type[Exception], ...]:
    return tuple(getattr(import_module(module), name) for name in names)


@contextmanager
def _told(service: str, key: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a key service's refusal into one sentence; its own text may hold tokens and addresses."""
    expected: tuple[type[Exception], ...] = (*errors, KeyError, binascii.Error)
    try:
        yield
    except expected as error:
        raise KeyringError(
            f"{service} does not wrap or unwrap with the key {key} ({type(error).__name__}); check that it answers, "
            "that the key exists and is enabled, and what this principal may do."
        ) from None
