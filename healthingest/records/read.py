"""Reads every record of a file, malformed ones too, each with its number and lines; guesses nothing, drops nothing.

What belongs here: bytes to rows of text under contract column names, and the line accounting. What does not: where a
record ends (`frame`), what a value means (`standardize`) or whether it is allowed (`validate`).
pyarrow's CSV parser splits the fields of records whose quotes are known to pair, because it hands over those with too
few or too many instead of padding them. It is given valid UTF-8 only: one malformed row with another byte would stop
the whole file and be printed to stderr.
"""

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from healthingest.contracts.clients import Client
from healthingest.errors import AccountingError, DeliveryError
from healthingest.landing.preflight import Facts, judge
from healthingest.model import Counts
from healthingest.records.damage import RECORD_NO, REJECTED_SCHEMA, decoded, holds_records, undecodable
from healthingest.records.frame import Frame, Framer, Grammar
from healthingest.records.header import Header, read_header
from healthingest.records.reasons import Reason
from healthingest.records.standardize import Traits, traits_of
from healthingest.records.streams import ByteSource, HeldBack, Recoded, strip_bom
from healthingest.records.transform import SOURCE

Indices = npt.NDArray[np.int64]
#: A byte order mark within a file: files with one were glued together.
_MARK = "\ufeff"
_HIGH = 0x80


@dataclass(frozen=True)
class Batch:
    """Some consecutive records of a file."""

    #: RECORD_NO (Int64), the contract's columns that the file has, and `source:<header>` columns for transforms
    #: (String, null where the field was empty).
    rows: pl.DataFrame
    #: REJECTED_SCHEMA: what the reader rejects.
    rejected: pl.DataFrame
    #: Column of `rows` -> what is known of its bytes.
    traits: dict[str, Traits]
    frame: Frame
    #: Number of each of the frame's records; 0 for a repeated header.
    numbers: Indices

    def received(self, record_nos: pl.Series) -> pl.DataFrame:
        """Records as they were received: RECORD_NO, line_no, lines (Int64), raw (Binary, without its line end)."""
        places = np.searchsorted(np.maximum.accumulate(self.numbers), record_nos.to_numpy())
        return pl.DataFrame(
            {
                RECORD_NO: record_nos,
                "line_no": self.frame.line_nos[places],
                "lines": self.frame.lines[places],
                "raw": [self.frame.record(place) for place in places],
            },
            schema={RECORD_NO: pl.Int64, "line_no": pl.Int64, "lines": pl.Int64, "raw": pl.Binary},
        )


@dataclass
class _Rejects:
    """What the reader rejects of one frame, by the record's place in it."""

    places: list[int] = field(default_factory=list)
    #: Few distinct reasons occur, however many records: each is built once, and named by its number.
    kinds: dict[tuple[Reason, ...], int] = field(default_factory=dict)
    kind: list[int] = field(default_factory=list)
    expected: list[int | None] = field(default_factory=list)
    found: list[int | None] = field(default_factory=list)

    def add(self, place: int, *reasons: Reason, expected: int | None = None, found: int | None = None) -> None:
        self.places.append(place)
        self.kind.append(self.kinds.setdefault(reasons, len(self.kinds)))
        self.expected.append(expected)
        self.found.append(found)

    def frame(self, numbers: Indices) -> pl.DataFrame:
        """RECORD_NO, reasons, expected_fields, found_fields, by number."""
        schema = {RECORD_NO: pl.Int64, "kind": pl.Int32, "expected_fields": pl.Int32, "found_fields": pl.Int32}
        of = {RECORD_NO: numbers[self.places], "kind": self.kind, "expected_fields": self.expected}
        kinds = {"kind": list(range(len(self.kinds))), "reasons": [list(reasons) for reasons in self.kinds]}
        named = pl.DataFrame(kinds, schema={"kind": pl.Int32, "reasons": REJECTED_SCHEMA["reasons"]})
        rejects = pl.DataFrame(of | {"found_fields": self.found}, schema=schema)
        return rejects.join(named, on="kind", how="left").drop("kind").sort(RECORD_NO)


@dataclass
class RecordReader:
    """Iterates over a delivery's batches; afterwards the line counts are complete and have been checked."""

    source: ByteSource
    facts: Facts
    client: Client
    #: Known once the first batch is asked for.
    header: Header | None = None
    _records: int = 0
    _record_lines: int = 0
    _repeated_lines: int = 0
    _blank_lines: int = 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield all records in order.

        Raises:
            DeliveryError: the file cannot be read as a whole (no header, missing column, trailer count, ...).
            AccountingError: the lines of what was read do not add up to the lines of the file.
        """
        judge(self.facts)
        header, body = read_header(text_of(self.source, self.facts), self.client, self._encodings)
        self.header = header
        dialect = self.client.config.source
        framer = Framer(body, dialect.delimiter, dialect.quote, first_line=header.lines + header.blank_lines + 1)
        for frame in framer:
            if len(frame.starts):
                yield self._batch(frame, header)
        self._blank_lines = framer.blank_lines + header.blank_lines + self.facts.blank_below_trailer
        self._check_trailer()
        self._check_lines()

    @property
    def extra_columns(self) -> list[str]:
        """Header names that nothing takes, as the file writes them."""
        return self.header.extra if self.header else []

    def line_counts(self) -> Counts:
        """The line part of the accounting, and records that were erased; complete once iteration has ended."""
        return Counts(
            physical_lines=self.facts.physical_lines,
            header_lines=(self.header.lines if self.header else 0) + self._repeated_lines,
            record_lines=self._record_lines,
            blank_lines=self._blank_lines,
            trailer_lines=1 if self.facts.trailer_bytes else 0,
            records=self._records,
            # Nothing is left that could tell whether one was accepted; it was, or is not to be seen again.
            accepted=len(self.facts.erased_records),
            suppressed=len(self.facts.erased_records),
        )

    @cached_property
    def _erased(self) -> list[int]:
        return list(self.facts.erased_records)

    # --- bytes to text ---------------------------------------------------------------------------------------

    @cached_property
    def _encodings(self) -> list[str]:
        """What each record is tried in, in order; a byte order mark comes before what the client says."""
        if self.facts.wide:
            return ["utf-8"]
        said = self.client.config.source.encodings
        if not self.facts.bom:
            return said
        return ["utf-8", *(name for name in said if not name.startswith(("utf-8", "utf-16")))]

    @cached_property
    def _grammar(self) -> Grammar:
        return Grammar(self.client.config.source.delimiter, self.client.config.source.quote)

    # --- one frame -------------------------------------------------------------------------------------------

    def _batch(self, frame: Frame, header: Header) -> Batch:
        rejects = _Rejects()
        for place, fault in frame.faults.items():
            rejects.add(place, self._fault(frame, place, fault, header), expected=len(header.names))
        self._reject_swallowed(frame, header, rejects)
        replaced = self._recode(frame, header, rejects)
        parsed = np.delete(np.arange(len(frame.starts)), rejects.places)
        text = _without(frame, rejects.places, replaced)
        table, malformed = _parse(text, header, self.client, whole_lines=bool((frame.lines[parsed] == 1).all()))
        for ordinal, found in malformed:
            rejects.add(int(parsed[ordinal - 1]), _miscounted(found, len(header.names)),
                        expected=len(header.names), found=found)  # fmt: skip
        places = np.delete(parsed, [ordinal - 1 for ordinal, _ in malformed])
        cells = pl.DataFrame(pl.from_arrow(table))
        if cells.height != len(places):
            raise AccountingError("The parser gave back another number of records than it was given.")
        return self._numbered(frame, header, cells, _traits(table), places, rejects)

    def _numbered(
        self,
        frame: Frame,
        header: Header,
        cells: pl.DataFrame,
        found: Sequence[Traits],
        places: Indices,
        rejects: _Rejects,
    ) -> Batch:
        """Number the records, repeated headers left out, and count their lines."""
        repeated = _repeats_header(cells, header)
        counted = np.ones(len(frame.starts), bool)
        counted[places[repeated.to_numpy()]] = False
        numbers = np.where(counted, self._records + np.cumsum(counted), 0)
        self._records += int(np.count_nonzero(counted))
        self._record_lines += int(frame.lines[counted].sum())
        self._repeated_lines += int(frame.lines[~counted].sum())
        picked = {column: pl.col(f"c{place}") for column, place in header.columns.items()}
        picked |= {SOURCE + name: pl.col(f"c{place}") for name, place in header.sources.items()}
        rows = cells.select(pl.Series(RECORD_NO, numbers[places], dtype=pl.Int64), **picked).filter(~repeated)
        rows = rows.filter(~pl.col(RECORD_NO).is_in(self._erased)) if self.facts.erased_records else rows
        traits = {column: found[place] for column, place in header.columns.items()}
        batch = Batch(rows, pl.DataFrame(schema=REJECTED_SCHEMA), traits, frame, numbers)
        if not rejects.places:
            return batch
        what = rejects.frame(numbers).filter(~pl.col(RECORD_NO).is_in(self._erased))
        rejected = batch.received(what[RECORD_NO]).hstack(what.drop(RECORD_NO)).select(REJECTED_SCHEMA.names())
        return replace(batch, rejected=rejected)

    def _fault(self, frame: Frame, place: int, fault: str, header: Header) -> Reason:
        """The reason for a record whose quotes or size rule it out; a quote that took in records is told apart."""
        if fault == "text_after_quote" and frame.lines[place] > 1:
            first = frame.record(place).splitlines()[0]
            if first.count(self._grammar.delimiter) >= max(len(header.names) - 1, 1):  # a whole record by itself
                return Reason(None, "swallowed_records", "swallowed_records")
        return Reason(None, fault, "malformed")

    def _reject_swallowed(self, frame: Frame, header: Header, rejects: _Rejects) -> None:
        required = [header.columns[c] for c in self.client.contract.required if c in header.columns]
        for place in np.flatnonzero(frame.lines > 1).tolist():
            if place in frame.faults:
                continue
            record = frame.record(place)
            fields = self._grammar.fields(record)
            swallowed = holds_records(fields, len(header.names), self._grammar.delimiter, required)
            if swallowed or self._grammar.has_loose_quote(record):
                rejects.add(place, Reason(None, "swallowed_records", "swallowed_records"))

    def _recode(self, frame: Frame, header: Header, rejects: _Rejects) -> dict[int, bytes]:
        """Place of each record in another encoding -> the same as UTF-8; those in none of the client's are rejected."""
        if self.facts.encoding == self._encodings[0] == "utf-8" or frame.data.isascii():
            return {}
        if self._encodings[0] == "utf-8" and decoded(frame.data[: frame.ends[-1]], ["utf-8"]) is not None:
            return {}
        high = np.flatnonzero(np.frombuffer(frame.data, np.uint8) >= _HIGH)
        touched = np.unique(np.searchsorted(frame.starts, high, side="right") - 1)
        replaced: dict[int, bytes] = {}
        known = set(rejects.places)
        for place in touched.tolist():
            if place in known:
                continue
            raw = frame.record(place)
            text = decoded(raw, self._encodings)
            if text is None:
                self._reject_undecodable(place, raw, header, rejects)
            else:
                replaced[place] = text.encode()
        return replaced

    def _reject_undecodable(self, place: int, raw: bytes, header: Header, rejects: _Rejects) -> None:
        fields = self._grammar.fields(raw)
        width = len(header.names)
        if len(fields) != width:
            rejects.add(place, _miscounted(len(fields), width), expected=width, found=len(fields))
            return
        named = {at: column for column, at in header.columns.items()}
        bad = undecodable(fields, self._encodings[0])
        rejects.add(place, *(Reason(named.get(at), "encoding", "encoding") for at in bad))

    # --- what must hold at the end ---------------------------------------------------------------------------

    def _check_trailer(self) -> None:
        if self.client.config.source.trailer and not self.facts.trailer_bytes:
            raise DeliveryError(
                "trailer", "The last line is not the trailer record that this client's files end with; the file may be "
                "cut off: send it again."
            )  # fmt: skip
        stated = self.facts.trailer_count
        if stated is not None and stated != self._records:
            raise DeliveryError(
                "trailer",
                f"The trailer states {stated} records, the file has {self._records}; send the file again.",
            )

    def _check_lines(self) -> None:
        """Hold the lines of what was read against those that the pre-flight counted on its own."""
        counts = self.line_counts()
        parts = counts.header_lines + counts.record_lines + counts.blank_lines + counts.trailer_lines
        if parts != counts.physical_lines:
            raise AccountingError(
                f"The file has {counts.physical_lines} lines, {parts} were accounted for; nothing of it was published."
            )


def text_of(raw: ByteSource, facts: Facts, *, trailer: bool = False) -> ByteSource:
    """A file's bytes without byte order mark, and without its `trailer` unless that is wanted; UTF-16 as UTF-8."""
    held = 0 if trailer else facts.trailer_bytes
    if facts.gzip:
        raw = gzip.GzipFile(fileobj=cast("IO[bytes]", raw), mode="rb")
    return HeldBack(Recoded(raw, facts.wide) if facts.wide else strip_bom(raw), hold_back=held)


def _miscounted(found: int, width: int) -> Reason:
    return Reason(None, "too_few_fields" if found < width else "too_many_fields", "malformed")


def _without(frame: Frame, places: Sequence[int], replaced: dict[int, bytes]) -> bytes:
    """A frame's bytes without the records at `places`, and with others in the place of some."""
    if not places and not replaced:
        return frame.data[: frame.ends[-1]]
    parts, at = [], 0
    for place in sorted([*places, *replaced]):
        parts += [frame.data[at : frame.starts[place]], replaced.get(place, b"")]
        after_next = place + 1 < len(frame.starts)
        at = (
            int(frame.ends[place])
            if place in replaced
            else int(frame.starts[place + 1])
            if after_next
            else len(frame.data)
        )
    return b"".join([*parts, frame.data[at : max(at, int(frame.ends[-1]))]])


def _parse(text: bytes, header: Header, client: Client, *, whole_lines: bool) -> tuple[pa.Table, list[tuple[int, int]]]:
    """Fields c0, c1, ... (String, null where empty) of well-formed records; ordinal from 1 and width of the others."""
    names = [f"c{i}" for i in range(len(header.names))]
    schema = pa.schema([(name, pa.string()) for name in names])
    malformed: list[tuple[int, int]] = []

    def note(row: Any) -> str:  # noqa: ANN401 - pyarrow's InvalidRow
        malformed.append((row.number, row.actual_columns))
        return "skip"

    if not text.strip(b"\r\n"):
        return schema.empty_table(), []
    if text.startswith(_MARK.encode()):  # the parser would drop it, and take a quote behind it for an opening one
        text = b"\n" + text
    try:
        table = pacsv.read_csv(
            pa.BufferReader(text),
            read_options=pacsv.ReadOptions(column_names=names, use_threads=False, block_size=len(text) + 1),
            parse_options=pacsv.ParseOptions(
                delimiter=client.config.source.delimiter,
                quote_char=client.config.source.quote or False,
                newlines_in_values=not whole_lines,
                ignore_empty_lines=True,
                invalid_row_handler=note,
            ),
            convert_options=pacsv.ConvertOptions(
                column_types=schema,
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):  # not one well-formed record
            return schema.empty_table(), malformed
        raise AccountingError(
            "The parser refused records whose quotes pair; nothing of the file was published."
        ) from None
    return table, malformed


def _traits(table: pa.Table) -> list[Traits]:
    """What each column's bytes may hold: most columns need no cleaning, and this tells which."""
    found = []
    for column in table.columns:
        all_of = Traits(0)
        for chunk in column.chunks:
            if chunk.buffers()[2]:
                all_of |= traits_of(np.frombuffer(chunk.buffers()[2], np.uint8))
        found.append(all_of)
    return found


def _repeats_header(cells: pl.DataFrame, header: Header) -> pl.Series:
    """Which rows are the header again: in the middle of a file it is no record."""
    first = cells["c0"].fill_null("").is_in([header.names[0], _MARK + header.names[0]])
    if not header.height or not first.any():
        return pl.repeat(value=False, n=cells.height, eager=True)
    others = [pl.col(f"c{place}").fill_null("") == name for place, name in enumerate(header.names) if place]
    return cells.select(pl.all_horizontal(first, *others).fill_null(value=False)).to_series()
