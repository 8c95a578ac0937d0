"""AES-256-GCM (NIST SP 800-38D) for single values and for files of any size.

A sealed value is nonce (12 bytes) | ciphertext | tag. A sealed file is a magic, a random file nonce, then chunks;
each chunk's number and whether it is the last are authenticated, so that a cut or reordered file does not open.
"""

import contextlib
import io
import os
import struct
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from healthingest.errors import KeyringError

_NONCE = 12
_TAG = 16
_MAGIC = b"HISEAL1\n"
#: Plain bytes per chunk: one-shot AES-GCM ends at 2 GiB, and a reader must not hold a file in memory.
CHUNK = 4 * 1024 * 1024


def seal_values(key: bytes, values: Iterable[bytes], context: Iterable[bytes]) -> list[bytes]:
    """Encrypt each value, bound to its context (associated data): it opens only in the place it was made for."""
    cipher = AESGCM(key)
    sealed = []
    for value, bound_to in zip(values, context, strict=True):
        nonce = os.urandom(_NONCE)
        sealed.append(nonce + cipher.encrypt(nonce, value, bound_to))
    return sealed


def open_value(keys: Sequence[bytes], sealed: bytes, context: bytes) -> bytes:
    """Decrypt one value with whichever of the keys it was made under.

    Raises:
        KeyringError: wrong keys, wrong context or changed bytes.
    """
    for key in keys:
        with contextlib.suppress(InvalidTag, ValueError):  # the second where it is cut within its nonce
            return AESGCM(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], context)
    raise KeyringError("A sealed record does not open: wrong keyring, or the record was changed.")


class SealedWriter(io.RawIOBase):
    """Writes a sealed file; what was written is only valid once closed without an exception."""

    def __init__(self, target: BinaryIO, key: bytes) -> None:
        """Start a sealed file on `target`, which stays the caller's to close."""
        self._target, self._cipher = target, AESGCM(key)
        self._nonce = os.urandom(_NONCE - 5)
        self._buffer = bytearray()
        self._number = 0
        self.finished = False
        target.write(_MAGIC + self._nonce)

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Take plain bytes."""
        self._buffer += data
        while len(self._buffer) > CHUNK:
            self._emit(bytes(self._buffer[:CHUNK]), last=False)
            del self._buffer[:CHUNK]
        return len(data)

    def finish(self) -> None:
        """Write the last chunk."""
        self.finished = True
        self._emit(bytes(self._buffer), last=True)
        self._buffer.clear()

    def _emit(self, plain: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_chunk_nonce(self._nonce, self._number, last=last), plain, _MAGIC)
        self._target.write(struct.pack("<I", len(sealed)) + sealed)
        self._number += 1


class SealedReader(io.RawIOBase):
    """Reads a sealed file as a stream of plain bytes.

    Raises:
        KeyringError: while reading: wrong key, or the file is cut, reordered or changed.
    """

    def __init__(self, source: BinaryIO, keys: Sequence[bytes]) -> None:
        """Open the sealed file that starts at `source`, made under one of the keys."""
        self._source, self._ciphers = source, [AESGCM(key) for key in keys]
        if source.read(len(_MAGIC)) != _MAGIC:
            raise KeyringError("A bronze file is not in the sealed format; restore it from its backup.")
        self._nonce = source.read(_NONCE - 5)
        self._number = 0
        self._rest = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def close(self) -> None:
        """Close the sealed file too."""
        if not self.closed:
            self._source.close()
        super().close()

    def readinto(self, target: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill `target` with the next plain bytes."""
        while not self._rest and not self._ended:
            self._rest = memoryview(self._next())
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _next(self) -> bytes:
        header = self._source.read(4)
        size = struct.unpack("<I", header)[0] if len(header) == 4 else 0  # noqa: PLR2004
        sealed = self._source.read(size)
        if len(sealed) != size:
            sealed = b""  # opens nowhere
        # The last chunk is told by its nonce; more data after a chunk says whether this one may be it.
        last = not self._source.read(1)
        if not last:
            self._source.seek(-1, io.SEEK_CUR)
        plain = self._opened(_chunk_nonce(self._nonce, self._number, last=last), sealed)
        self._number += 1
        self._ended = last
        return plain

    def _opened(self, nonce: bytes, sealed: bytes) -> bytes:
        for cipher in self._ciphers:
            with contextlib.suppress(InvalidTag, ValueError):
                plain = cipher.decrypt(nonce, sealed, _MAGIC)
                self._ciphers = [cipher]  # one key made the whole file
                return plain
        raise KeyringError("A bronze file does not open: wrong keyring, or the file was changed.")


def _chunk_nonce(file_nonce: bytes, number: int, *, last: bool) -> bytes:
    return file_nonce + struct.pack(">I", number) + (b"\x01" if last else b"\x00")
