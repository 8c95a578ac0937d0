"""One pass over a file's bytes before any parsing: what kind of file it is, its lines, its encoding.

Only facts are gathered here, all of them counts or names, none a value; `judge` turns them into a refusal.
CSV readers accept most damaged files silently, so what cannot be read safely must be known beforehand.
"""

import codecs
import re
import zlib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from healthingest.contracts.source import Source
from healthingest.errors import DeliveryError

_MAGIC = {
    b"PK\x03\x04": "a ZIP archive or an Excel workbook",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet file",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word document",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"-----BEGIN PGP": "a PGP message",
}
_BOMS = {b"\xef\xbb\xbf": "utf-8", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_END = rb"\r\n|\n|\r"
_LONGEST_BOM = 3
_TAIL = 64 * 1024
#: More NUL bytes than this share and the file is binary, not text with a few damaged records.
_BINARY_SHARE = 0.1


class Facts(BaseModel):
    """What the pass found; kept in the delivery's manifest."""

    model_config = ConfigDict(frozen=True)

    gzip: bool = False
    gzip_damage: bool = False
    #: Whether it is UTF-16 that does not decode: cut within a character, or half of a pair alone.
    damaged_utf16: bool = False
    #: What a file that is no text is, in words, by its first bytes.
    foreign: str | None = None
    #: Bytes of text, after decompression.
    text_bytes: int = 0
    nul_bytes: int = 0
    nul_in_first_line: bool = False
    bom: str | None = None
    #: The first configured encoding in which the whole file decodes; None if there is none.
    encoding: str | None = None
    #: Lines of the text, blank and unterminated last ones included.
    physical_lines: int = 0
    #: Whether there is anything but line ends.
    has_text: bool = True
    #: Bytes (of UTF-16: as UTF-8) from the start of the trailer record to the end of the file; 0 without one.
    trailer_bytes: int = 0
    #: Blank lines among them.
    blank_below_trailer: int = 0
    #: The count that the trailer states; None without a trailer or where it states none.
    trailer_count: int | None = None
    #: Whether a trailer that counts holds something else than a number there.
    trailer_unreadable: bool = False
    #: Numbers of records that were taken out of the sealed bytes since: their members were erased.
    erased_records: tuple[int, ...] = ()

    @property
    def wide(self) -> str | None:
        """The codec of a file that is UTF-16."""
        return self.encoding if self.encoding and self.encoding.startswith("utf-16") else None


class Preflight:
    """Feed the raw bytes of a file in order, then ask for the facts. Memory does not grow with the file."""

    def __init__(self, encodings: Sequence[str], trailer: str | None, count_field: int | None, delimiter: str) -> None:
        """Take what the client's config says of its files' encoding and trailer."""
        self._encodings, self._trailer = list(encodings), trailer
        self._count_field, self._delimiter = count_field, delimiter
        self._raw_head = b""
        self._text_head = b""
        self._waiting = b""  # the first bytes of text, until they tell whether there is a byte order mark
        self._wide = False  # UTF-16: counted as the UTF-8 that the reader will see
        self._text_started = False
        self._unzip: zlib._Decompress | None = None
        self._gzip_damage = False
        self._foreign: str | None = None
        self._started = False
        self._lines = _Lines()
        self._nul = 0
        self._bom: str | None = None
        self._decoders: dict[str, codecs.IncrementalDecoder] = {}

    @classmethod
    def of(cls, source: Source) -> "Preflight":
        """The pass over a file of a client whose config says this of its files."""
        trailer = source.trailer
        return cls(
            source.encodings,
            trailer.starts_with if trailer else None,
            trailer.count_field if trailer else None,
            source.delimiter,
        )

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the file as it lies in the landing zone."""
        if not self._started:
            self._raw_head += chunk
            if len(self._raw_head) < 16:  # noqa: PLR2004 - longest magic bytes, with room
                return
            chunk = self._start()
        self._pass(chunk)

    def _start(self) -> bytes:
        self._started = True
        head = self._raw_head
        if head.startswith(b"\x1f\x8b"):
            self._unzip = zlib.decompressobj(wbits=31)
        self._foreign = next((what for magic, what in _MAGIC.items() if head.startswith(magic)), None)
        return head

    def _pass(self, chunk: bytes) -> None:
        if self._foreign or self._gzip_damage:
            return
        if self._unzip is None:
            self._text(chunk)
            return
        try:
            while chunk:
                if self._unzip.eof:
                    self._unzip = zlib.decompressobj(wbits=31)  # a further member of a concatenated gzip
                self._text(self._unzip.decompress(chunk, 1 << 24))
                chunk = self._unzip.unconsumed_tail or self._unzip.unused_data
        except zlib.error:
            self._gzip_damage = True

    def _text(self, text: bytes) -> None:
        if not self._text_started:
            self._waiting += text
            if len(self._waiting) < _LONGEST_BOM:  # a gzip may give its first bytes one by one
                return
            text = self._start_text()
        self._decode(text)

    def _start_text(self) -> bytes:
        self._text_started = True
        head, self._waiting = self._waiting, b""
        self._bom = next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)
        names = [self._bom] if self._bom else self._encodings
        self._decoders = {n: codecs.getincrementaldecoder(n)() for n in names}
        self._wide = len(names) == 1 and names[0].startswith("utf-16")
        return head.removeprefix(codecs.BOM_UTF8)

    def _decode(self, text: bytes) -> None:
        for name, decoder in list(self._decoders.items()):
            try:
                decoded = decoder.decode(text)
            except UnicodeError:  # a UTF-16 without its mark is no UnicodeDecodeError
                del self._decoders[name]
            else:
                text = decoded.encode() if self._wide else text
        self._text_head += text[: _TAIL - len(self._text_head)]
        self._nul += text.count(0)
        self._lines.feed(text)

    def facts(self) -> Facts:
        """Close the pass."""
        if not self._started:
            self._pass(self._start())
        if not self._text_started:
            self._decode(self._start_text())
        for name, decoder in list(self._decoders.items()):
            try:
                decoder.decode(b"", final=True)
            except UnicodeError:  # a UTF-16 without its mark is no UnicodeDecodeError
                del self._decoders[name]
        encoding = next(iter(self._decoders), None)
        damage = self._gzip_damage or (self._unzip is not None and not self._unzip.eof)
        if self._foreign or damage or (self._wide and not encoding):  # what was counted until then says nothing
            return Facts(gzip=self._unzip is not None, gzip_damage=damage, foreign=self._foreign, bom=self._bom,
                         damaged_utf16=not damage and self._wide)  # fmt: skip
        lines = self._lines
        lines.close()
        first_line = re.split(_END, self._text_head, maxsplit=1)[0]
        return Facts(
            gzip=self._unzip is not None,
            text_bytes=lines.bytes,
            nul_bytes=self._nul,
            nul_in_first_line=0 in first_line,
            bom=self._bom,
            encoding=encoding,
            physical_lines=lines.ends + (0 if lines.ended else 1) if lines.bytes else 0,
            has_text=lines.has_text,
            **self._find_trailer(lines.tail),
        )

    def _find_trailer(self, tail: bytes) -> dict[str, Any]:
        """What the facts say of the trailer: its size in the bytes that the reader sees, blank lines below included."""
        if self._trailer is None:
            return {}
        body = tail.rstrip(b"\r\n")
        start = max(body.rfind(b"\n"), body.rfind(b"\r")) + 1
        line = body[start:].decode("utf-8", "replace")
        if not line.lstrip(' "').startswith(self._trailer):
            return {}
        below = count_line_ends(tail[start:]) - tail.endswith((b"\n", b"\r"))
        found = {"trailer_bytes": len(tail) - start, "blank_below_trailer": below}
        if self._count_field is None:
            return found
        fields = [field.strip().strip('"') for field in line.split(self._delimiter)]
        stated = fields[self._count_field - 1] if len(fields) >= self._count_field else ""
        if not re.fullmatch(r"[0-9]{1,12}", stated):
            return found | {"trailer_unreadable": True}
        return found | {"trailer_count": int(stated)}


class _Lines:
    r"""Counts line ends (\n, \r\n, \r) over chunks, and keeps the last bytes."""

    def __init__(self) -> None:
        self.bytes = self.ends = 0
        self.has_text = False
        self.ended = False
        self.tail = b""
        self._held = b""

    def feed(self, text: bytes) -> None:
        text = self._held + text
        self._held = b""
        if text.endswith(b"\r"):  # its \n may come with the next chunk
            text, self._held = text[:-1], b"\r"
        self._count(text)

    def close(self) -> None:
        text, self._held = self._held, b""
        self._count(text)

    def _count(self, text: bytes) -> None:
        if not text:
            return
        self.bytes += len(text)
        self.ends += count_line_ends(text)
        self.has_text = self.has_text or bool(text.strip(b"\r\n"))
        self.ended = text.endswith((b"\n", b"\r"))
        self.tail = (self.tail + text)[-_TAIL:] if len(text) < _TAIL else text[-_TAIL:]


def count_line_ends(text: bytes) -> int:
    r"""Line ends as CSV readers see them: \n, \r\n and a lone \r, each one."""
    carriage = text.count(b"\r")
    return text.count(b"\n") + (carriage - text.count(b"\r\n") if carriage else 0)


def judge(facts: Facts) -> None:
    """Refuse what cannot be read as delimited text.

    Raises:
        DeliveryError: with one sentence that says what the file is and what to send instead.
    """
    if facts.foreign:
        raise DeliveryError("not_text", f"The file is {facts.foreign}, not CSV text; send it as CSV.")
    if facts.gzip_damage:
        raise DeliveryError("damaged_gzip", "The gzip file is truncated or damaged; send it again.")
    if facts.damaged_utf16:
        raise DeliveryError(
            "damaged_utf16",
            "The file should be UTF-16, but is damaged, cut or lacks its byte order mark; send it again as UTF-8.",
        )
    if facts.text_bytes == 0 or not facts.has_text:
        raise DeliveryError("empty_file", "The file is empty: it has not even a header; send it again.")
    if facts.nul_in_first_line or facts.nul_bytes > facts.text_bytes * _BINARY_SHARE:
        raise DeliveryError(
            "not_text", "The file is binary, or UTF-16 without a byte order mark; send it as UTF-8 text."
        )
    if facts.trailer_unreadable:
        raise DeliveryError("trailer", "The trailer record does not state a number of records; send the file again.")
