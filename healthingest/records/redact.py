"""Finds the records of certain members in a file, and gives its bytes without them: for erasure.

Found are records whose member id, in its standard form, is one of theirs; and of records without a sound id, those
that hold such an id as a field: a malformed record may have it in any place, and between any delimiters. What is taken
out leaves a record that says nothing, so that numbers and lines of all others stay what they were.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from healthingest.contracts.clients import Client
from healthingest.errors import ConfigError, PermanentError
from healthingest.landing.preflight import Facts
from healthingest.records.damage import RECORD_NO
from healthingest.records.frame import LINE_END, Framer, Grammar
from healthingest.records.read import Batch, RecordReader, text_of
from healthingest.records.splice import spliced
from healthingest.records.standardize import standardize
from healthingest.records.streams import ByteSource
from healthingest.records.transform import transform

_GONE = b"erased"
#: Longest member id.
_LONGEST = 64
#: Of files that were written for somebody else.
_DELIMITERS = (b",", b";", b"|", b"\t")
#: Who is looked for: of each member id (String, standard form) whether it is one of theirs (Boolean, never null).
Names = Callable[[pl.Series], pl.Series]


@dataclass
class Found:
    """Where a file speaks of them."""

    #: Physical lines (1-based) on which such records start.
    lines: set[int] = field(default_factory=set)
    #: Their record numbers; none where the file cannot be read as records.
    numbers: set[int] = field(default_factory=set)
    #: Records that were looked at.
    looked_at: int = 0
    #: False for a file that is no text, or damaged so that not all of it could be looked through.
    searched: bool = True


def find_records(open_bytes: Callable[[], ByteSource], facts: Facts, client: Client, names: Names) -> Found:
    """Look through a whole file. One that cannot be read as the client's records is looked through as it stands."""
    found = Found()
    try:
        for batch in RecordReader(open_bytes(), facts, client):
            _look(batch, client, names, found)
    except (PermanentError, ConfigError):
        return _as_it_stands(open_bytes(), facts, client, names)
    return found


def without_records(source: ByteSource, facts: Facts, client: Client, lines: Collection[int]) -> Iterator[bytes]:
    """A file's text with a placeholder for each record that starts on one of the `lines`; as UTF-8 if it was UTF-16.

    Of a record over 8 MiB, which is always rejected, the first MiB stays.
    """
    quote = client.config.source.quote
    return spliced(source, facts, client, lambda start, height: _placeholder(height, quote) if start in lines else None)


def hold_ids(records: Collection[bytes], client: Client, names: Names) -> list[bool]:
    """Of each record without a sound id whether one of its fields is one of theirs, as it stands or made standard.

    Fields are also told by other delimiters than the client's: with a wrong one, no record has a sound id.
    """
    grammar = Grammar(client.config.source.delimiter, client.config.source.quote)
    around = b' \t"' + (client.config.source.quote or "").encode()
    rows: list[int] = []
    texts: list[str] = []
    for row, record in enumerate(records):
        fields = {*grammar.fields(record), *(f for line in LINE_END.split(record) for f in _cut(line, client))}
        bare = {f.strip(around) for f in fields}
        sound = {_text(f, client) for f in bare if 0 < len(f) <= 2 * _LONGEST}
        texts += sound
        rows += [row] * len(sound)
    if not texts:
        return [False] * len(records)
    given = pl.Series("member_id", texts, dtype=pl.String)
    standard = standardize(given.to_frame(), client).select(client.contract.standard_of("member_id")).to_series()
    hit = set(pl.Series(rows).filter(names(given) | names(standard)))
    return [row in hit for row in range(len(records))]


def _cut(line: bytes, client: Client) -> Iterator[bytes]:
    """A line's fields by the client's delimiter, and by each that another client might have."""
    for delimiter in {client.config.source.delimiter.encode(), *_DELIMITERS}:
        yield from line.split(delimiter)


def _text(field: bytes, client: Client) -> str:
    for encoding in ("utf-8", *client.config.source.encodings):
        with contextlib.suppress(UnicodeDecodeError):
            return field.decode(encoding)
    return field.decode("utf-8", "replace")


def _look(batch: Batch, client: Client, names: Names, found: Found) -> None:
    rows = standardize(transform(batch.rows, client), client, {} if client.config.transform else batch.traits)
    ids = rows.select(RECORD_NO, member_id=client.contract.standard_of("member_id"))
    sound = ids.filter(pl.col("member_id").is_not_null())
    numbers = set(sound.filter(names(sound["member_id"]))[RECORD_NO]) if sound.height else set()
    doubtful = [*batch.rejected[RECORD_NO], *ids.filter(pl.col("member_id").is_null())[RECORD_NO]]
    if doubtful:
        received = batch.received(pl.Series(sorted(doubtful)))
        held = hold_ids(received["raw"].to_list(), client, names)
        numbers |= set(received.filter(pl.Series(held, dtype=pl.Boolean))[RECORD_NO])
    if numbers:
        found.lines |= set(batch.received(pl.Series(sorted(numbers)))["line_no"])
    found.numbers |= numbers
    found.looked_at += int(np.count_nonzero(batch.numbers))


def _as_it_stands(source: ByteSource, facts: Facts, client: Client, names: Names) -> Found:
    dialect = client.config.source
    found = Found(searched=not (facts.foreign or facts.gzip_damage or facts.damaged_utf16))
    try:
        for frame in Framer(text_of(source, facts, trailer=True), dialect.delimiter, dialect.quote):
            records = [frame.record(place) for place in range(len(frame.starts))]
            held = np.array(hold_ids(records, client, names), bool)
            found.lines |= set(frame.line_nos[held].tolist())
            found.looked_at += len(records)
    except (OSError, EOFError, UnicodeError):  # damaged: up to there
        found.searched = False
    return found


def _placeholder(height: int, quote: str | None) -> bytes:
    if height == 1 or quote is None:
        return _GONE
    return quote.encode() + _GONE + b"\n" * (height - 1) + quote.encode()
