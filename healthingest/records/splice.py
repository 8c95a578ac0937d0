"""A file's text with some of its records replaced; numbers and lines of all others stay what they were."""

from collections.abc import Callable, Iterator, Sequence

from healthingest.contracts.clients import Client
from healthingest.contracts.source import Source
from healthingest.landing.preflight import Facts
from healthingest.records.frame import Framer
from healthingest.records.read import text_of
from healthingest.records.streams import ByteSource

_BOM = b"\xef\xbb\xbf"
#: Takes the physical line (1-based) on which a record starts and how many it takes; gives as many lines, or None to
#: leave the record as it is.
Instead = Callable[[int, int], bytes | None]


def spliced(
    source: ByteSource, facts: Facts, client: Client, instead: Instead, after: Sequence[bytes] = ()
) -> Iterator[bytes]:
    """The text with records replaced, and further lines `after` the last one; as UTF-8 if it was UTF-16.

    Of a record over 8 MiB, which is always rejected, the first MiB stays.
    """
    dialect, line = client.config.source, 1
    if facts.bom:
        yield _BOM
    for frame in Framer(text_of(source, facts, trailer=True), dialect.delimiter, dialect.quote):
        parts: list[bytes] = []
        for place, (start, height) in enumerate(zip(frame.line_nos.tolist(), frame.lines.tolist(), strict=True)):
            other = instead(start, height)
            parts += [b"\n" * (start - line), frame.record(place) if other is None else other, b"\n"]
            line = start + height
        yield b"".join(parts)
    if after:
        yield b"\n".join([*after, b""])


def written(fields: Sequence[str], dialect: Source, encoding: str) -> bytes | None:
    """A record's line in the client's form, without its end; None where that form has no way to write it."""
    quote, delimiter = dialect.quote, dialect.delimiter
    parts = []
    for text in (" ".join(field.splitlines()) for field in fields):
        if quote and (delimiter in text or quote in text or text != text.strip()):
            parts.append(f"{quote}{text.replace(quote, quote * 2)}{quote}")
        elif not quote and delimiter in text:
            return None
        else:
            parts.append(text)
    try:
        return delimiter.join(parts).encode(encoding)
    except UnicodeEncodeError:
        return None
