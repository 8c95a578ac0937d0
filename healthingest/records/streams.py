"""Byte streams chained in front of the CSV parser: without BOM, without trailer, in UTF-8."""

import codecs
import io
from collections.abc import Iterator
from typing import Protocol


class ByteSource(Protocol):
    """Anything that gives up to `size` next bytes, and none at its end."""

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        ...


def read_up_to(stream: ByteSource, count: int) -> bytes:
    """The next `count` bytes, fewer only at the end: a single `read` may give less."""
    parts, total = [], 0
    while total < count and (part := stream.read(count - total)):
        parts.append(part)
        total += len(part)
    return b"".join(parts)


def strip_bom(raw: ByteSource) -> ByteSource:
    """The stream without a UTF-8 byte order mark."""
    head = read_up_to(raw, 3)
    return Chained(head.removeprefix(b"\xef\xbb\xbf"), raw)


class _Stream(io.RawIOBase):
    """A readable stream defined by its `read`; pyarrow reads in large blocks, so no buffering is needed."""

    def readable(self) -> bool:
        return True


class Chained(_Stream):
    """`head`, then the rest of a stream."""

    def __init__(self, head: bytes, rest: ByteSource) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if not self._head:
            return self._rest.read(size)
        part, self._head = (self._head, b"") if size < 0 else (self._head[:size], self._head[size:])
        return part + self._rest.read() if size < 0 else part


class Pieces(_Stream):
    """A stream of the bytes that an iterator gives, one after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        while size < 0 or len(self._left) < size:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._left += piece
        part = self._left if size < 0 else self._left[:size]
        self._left = self._left[len(part) :]
        return part


class HeldBack(_Stream):
    """A stream without its last `hold_back` bytes: those of the trailer record."""

    def __init__(self, source: ByteSource, hold_back: int) -> None:
        self._source, self._hold, self._buffer = source, hold_back, b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        if not self._hold:
            return self._source.read(size)
        wanted = 1 << 20 if size < 0 else max(size, 1)
        while len(self._buffer) < wanted + self._hold and (part := self._source.read(1 << 20)):
            self._buffer += part
        ready = len(self._buffer) - self._hold
        part, self._buffer = self._buffer[: min(wanted, ready)], self._buffer[min(wanted, ready) :]
        return part + self.read() if size < 0 and part else part


class Recoded(_Stream):
    """A stream of another encoding as UTF-8."""

    def __init__(self, source: ByteSource, encoding: str) -> None:
        self._source, self._decoder = source, codecs.getincrementaldecoder(encoding)()
        self._buffer = b""

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        while size < 0 or len(self._buffer) < size:
            raw = self._source.read(1 << 20)
            self._buffer += self._decoder.decode(raw, final=not raw).encode()
            if not raw:
                break
        part, self._buffer = (self._buffer, b"") if size < 0 else (self._buffer[:size], self._buffer[size:])
        return part
