"""Reads every record of a file, malformed ones too, each with its number; guesses nothing, drops nothing.

What belongs here: bytes to rows of text under contract column names, and the line accounting. What does not:
what a value means (`standardize`) or whether it is allowed (`validate`).
pyarrow's CSV parser does the parsing because it hands malformed rows over instead of padding them; it must be
given valid UTF-8, or one malformed row with a bad byte stops the whole file and prints the row to stderr.
"""

import csv
import gzip
import io
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import IO, Any, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv

from healthingest.contracts.clients import Client
from healthingest.errors import AccountingError, DeliveryError
from healthingest.landing.preflight import Facts, count_blank_lines, count_line_ends, judge
from healthingest.model import Counts
from healthingest.records.damage import LINE_END, RECORD_NO, REJECTED_SCHEMA, as_csv, decode_carried, reject_swallowed
from healthingest.records.reasons import Reason
from healthingest.records.streams import ByteSource, Chained, Followed, HeldBack, Recoded, read_up_to, strip_bom

_HEADER_LIMIT = 1 << 20
_BLOCK = 8 << 20
#: A byte order mark within a file, as text and as carried bytes: files with one were glued together.
_MARKS = ("\ufeff", "ï»¿")
#: Stands on a line of its own behind the last record. If it does not come back as one, a quote was left open: the
#: parser itself takes the end of the file for the closing quote.
_END_MARK = "\x1eend of file\x1e"
#: Rows per yielded batch: each batch costs Pandera about 30 ms, whatever its size.
BATCH_ROWS = 200_000


@dataclass(frozen=True)
class Batch:
    """Some consecutive records of a file."""

    #: RECORD_NO (Int64) and the contract's columns that the file has (String, null where the field was empty).
    rows: pl.DataFrame
    #: Rejected by the reader: RECORD_NO (Int64), raw (Binary, as received), reasons (list of Reason), expected_fields,
    #: found_fields (Int32, null unless malformed).
    rejected: pl.DataFrame
    #: RECORD_NO and every field of the same records by its place, c0, c1, ... (String), as the file has them.
    cells: pl.DataFrame


@dataclass
class RecordReader:
    """Iterates over a delivery's batches; afterwards the line counts are complete and have been checked."""

    source: ByteSource
    facts: Facts
    client: Client
    #: Header names that no contract column takes, as the file writes them.
    extra_columns: list[str] = field(default_factory=list)
    _header_lines: int = 0
    _record_lines: int = 0
    _blank_in_records: int = 0
    _records: int = 0
    _rejects: list[dict[str, Any]] = field(default_factory=list)
    _invalid_numbers: list[int] = field(default_factory=list)
    _header_height: int = 1
    _next_ordinal: int = 1

    def __iter__(self) -> Iterator[Batch]:
        """Yield all records in order.

        Raises:
            DeliveryError: the file cannot be read as a whole (no header, missing column, trailer count, ...).
            AccountingError: the lines of what was read do not add up to the lines of the file.
        """
        judge(self.facts)
        stream, carrier = self._open_text()
        names, body = self._read_header(stream)
        columns = self._map_columns(names)
        for table in self._parse(body, len(names)):
            yield self._batch(table, names, columns, carrier=carrier)
        if self._rejects:
            yield self._batch(None, names, columns, carrier=carrier)
        self._check_trailer()
        self._check_lines()

    def line_counts(self) -> Counts:
        """The line part of the accounting; complete once iteration has ended."""
        blank = self.facts.blank_lines - self._blank_in_records
        return Counts(
            physical_lines=self.facts.physical_lines,
            header_lines=self._header_lines,
            record_lines=self._record_lines,
            blank_lines=blank,
            trailer_lines=1 if self.facts.trailer_bytes else 0,
            records=self._records,
        )

    # --- bytes to text ---------------------------------------------------------------------------------------

    def _open_text(self) -> tuple[ByteSource, bool]:
        """A stream of valid UTF-8 without BOM; True if it only carries bytes of an unknown encoding as Latin-1."""
        raw: ByteSource = self.source
        if self.facts.gzip:
            raw = gzip.GzipFile(fileobj=cast("IO[bytes]", raw), mode="rb")
        encoding, carrier = self.facts.encoding or "latin-1", self.facts.encoding is None
        if encoding.startswith("utf-8"):
            return HeldBack(strip_bom(raw), hold_back=self.facts.trailer_bytes), False
        recoded = Recoded(raw, encoding, skip_bom=carrier and self.facts.bom == "utf-8")
        return HeldBack(recoded, hold_back=self.facts.trailer_bytes), carrier

    def _read_header(self, stream: ByteSource) -> tuple[list[str], ByteSource]:
        head = read_up_to(stream, _HEADER_LIMIT)
        text = head.decode("utf-8", "ignore")
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=self.client.config.source.delimiter)
        try:
            names = next((row for row in reader if row), [])
        except csv.Error:
            raise DeliveryError(
                "header", "The header line cannot be read; send the file with a plain header."
            ) from None
        ends = list(islice(re.finditer(LINE_END, text), reader.line_num))
        last = ends[-1].end() if ends and len(ends) == reader.line_num else len(text)
        consumed = text[:last].encode()
        leading_blank = count_blank_lines(b"\n" + consumed)
        self._header_lines = self._header_height = reader.line_num - leading_blank
        delimiter = self.client.config.source.delimiter
        if any(delimiter in name and re.search(LINE_END, name) for name in names):
            raise DeliveryError(
                "header", "A quote in the header line is not closed on that line; send the file with a plain header."
            )
        return names, Chained(head[len(consumed) :], stream)

    # --- header to columns -----------------------------------------------------------------------------------

    def _map_columns(self, names: list[str]) -> dict[str, int]:
        """Contract column -> its position in the file.

        Raises:
            DeliveryError: no, duplicate or missing columns; never with a name found in the file, since a file
                without a header has a member's values in that place.
        """
        contract = self.client.contract
        wanted = {normal_header(column): column for column in contract.column}
        wanted |= {normal_header(header): source.to for header, source in self.client.config.columns.items()}
        found: dict[str, int] = {}
        extra: list[str] = []
        for position, name in enumerate(names):
            column = wanted.get(normal_header(name))
            if column is None:
                extra.append(name)
            elif column in found:
                raise DeliveryError("duplicate_column", f"The header names {column} twice; send each column once.")
            else:
                found[column] = position
        missing = [column for column in self._required() if column not in found]
        if missing:
            raise DeliveryError("missing_column", self._missing_sentence(missing, len(names), bool(found)))
        self.extra_columns = extra
        if extra and self.client.config.schema_evolution == "freeze":
            raise DeliveryError(
                "extra_column", f"The header has {len(extra)} column(s) that {contract.name} does not know; "
                "this client's schema is frozen."
            )  # fmt: skip
        return {column: found[column] for column in contract.column if column in found}

    def _required(self) -> list[str]:
        date_from = self.client.config.source.creation_date
        extra = [date_from.column] if date_from.from_ == "column" else []
        return [*self.client.contract.required, *extra]

    def _missing_sentence(self, missing: list[str], width: int, any_found: bool) -> str:  # noqa: FBT001
        wanted = ", ".join(missing)
        if width == 1:
            delimiter = self.client.config.source.delimiter
            return f"With {delimiter!r} as delimiter the header has one column only; check it. Missing: {wanted}."
        if not any_found:
            return f"The first line names no known column; the file seems to have no header. Missing: {wanted}."
        return f"The header lacks the required column(s) {wanted}; send them, or map their names in the client's YAML."

    # --- records ---------------------------------------------------------------------------------------------

    def _parse(self, body: ByteSource, width: int) -> Iterator[pa.Table]:
        first = body.read(1)
        if not first:
            return
        names = [f"c{i}" for i in range(width)]
        try:
            reader = pacsv.open_csv(
                pa.PythonFile(Followed(Chained(first, body), f"\n{_END_MARK}".encode()), mode="r"),
                read_options=pacsv.ReadOptions(column_names=names, use_threads=False, block_size=_BLOCK),
                parse_options=pacsv.ParseOptions(
                    delimiter=self.client.config.source.delimiter,
                    newlines_in_values=True,
                    ignore_empty_lines=True,
                    invalid_row_handler=self._on_malformed,
                ),
                convert_options=pacsv.ConvertOptions(
                    column_types=dict.fromkeys(names, pa.string()),
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    null_values=[""],
                    check_utf8=False,
                ),
            )
            yield from _coalesce(reader, BATCH_ROWS)
        except pa.ArrowInvalid as error:
            if "Empty CSV" in str(error):  # only blank lines after the header
                return
            raise DeliveryError(
                "record_too_large", "A record does not end within 8 MB, mostly a quote that is never closed; "
                "send the file again with its quotes paired."
            ) from None  # fmt: skip

    def _on_malformed(self, row: pacsv.InvalidRow) -> str:
        if row.text == _END_MARK:
            return "skip"
        kind = "too_few_fields" if row.actual_columns < row.expected_columns else "too_many_fields"
        text = row.text.removesuffix(f"\n{_END_MARK}")
        if text != row.text:
            kind = "unterminated_quote"
        self._invalid_numbers.append(row.number)
        self._rejects.append(
            {
                RECORD_NO: row.number,
                "raw": text,
                "reasons": [Reason(None, kind, "malformed")],
                "expected_fields": row.expected_columns,
                "found_fields": row.actual_columns,
            }
        )
        return "skip"

    def _batch(self, table: pa.Table | None, names: list[str], columns: dict[str, int], *, carrier: bool) -> Batch:
        delimiter = self.client.config.source.delimiter
        rows = self._end_found(self._numbered(table), delimiter) if table is not None else None
        rejects, self._rejects = self._rejects, []
        for reject in rejects:
            self._count_lines(reject["raw"].encode())
            reject["raw"] = reject["raw"].encode("latin-1" if carrier else "utf-8")
        if rows is not None:
            rows = self._drop_repeated_headers(rows, names)
            rows = self._account_for_line_ends(rows)
            rows, swallowed = reject_swallowed(rows, delimiter, carrier=carrier)
            if carrier:
                encodings = [self.facts.bom] if self.facts.bom else self.client.config.source.encodings
                rows, undecodable = decode_carried(rows, columns, encodings, delimiter)
                rejects += undecodable
            rejects += swallowed
        self._records += len(rejects) + (rows.height if rows is not None else 0)
        picked = {column: f"c{position}" for column, position in columns.items()}
        frame = (
            rows.select(RECORD_NO, **{column: pl.col(at) for column, at in picked.items()})
            if rows is not None
            else pl.DataFrame(schema={RECORD_NO: pl.Int64} | dict.fromkeys(picked, pl.String))
        )
        return Batch(frame, pl.DataFrame(rejects, schema=REJECTED_SCHEMA), frame if rows is None else rows)

    def _numbered(self, table: pa.Table) -> pl.DataFrame:
        """Give each row its number: the parser numbers only the malformed ones, the others fill the gaps."""
        rows = pl.DataFrame(pl.from_arrow(table))
        start, count = self._next_ordinal, rows.height
        taken = sorted(n for n in self._invalid_numbers if n >= start)
        numbers = pl.int_range(start, start + count + len(taken), eager=True, dtype=pl.Int64)
        if taken:
            numbers = numbers.filter(~numbers.is_in(taken)).head(count)
        self._next_ordinal = int(numbers[-1]) + 1 if count else start
        self._invalid_numbers = [n for n in taken if n >= self._next_ordinal]
        return rows.with_columns(numbers.alias(RECORD_NO))

    def _end_found(self, rows: pl.DataFrame, delimiter: str) -> pl.DataFrame:
        """Take out a last row that has the end mark, and so an open quote, in its last field."""
        cells = [c for c in rows.columns if c != RECORD_NO]
        last = rows[-1, cells[-1]] if rows.height else None
        if last is None or not last.endswith(_END_MARK):
            return rows
        if last != _END_MARK:  # on a line of its own it is a record only where records have one field
            *others, _ = rows.select(cells).row(-1)
            rest = last.removesuffix(f"\n{_END_MARK}").replace('"', '""')
            reject = {
                RECORD_NO: rows[-1, RECORD_NO],
                "raw": delimiter.join([as_csv(others, delimiter), f'"{rest}'] if others else [f'"{rest}']),
                "reasons": [Reason(None, "unterminated_quote", "malformed")],
                "expected_fields": len(cells),
                "found_fields": len(cells),
            }
            self._rejects.append(reject)
        return rows.head(-1)

    def _drop_repeated_headers(self, rows: pl.DataFrame, names: list[str]) -> pl.DataFrame:
        """A header in the middle of a file (files glued together) is no record; it is skipped and counted."""
        first = rows["c0"].is_in([names[0], *(mark + names[0] for mark in _MARKS)])
        if not first.any():
            return rows
        others = [pl.col(f"c{i}").fill_null("") == name for i, name in enumerate(names) if i]
        same = pl.all_horizontal(first, *others)
        kept = rows.filter(~same)
        repeated = rows.height - kept.height
        self._header_lines += repeated * self._header_height
        return kept

    def _account_for_line_ends(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Count the lines of the rows; embedded line ends are rare, so only rows that have one are looked at."""
        self._record_lines += rows.height
        for name in (c for c in rows.columns if c != RECORD_NO):
            column = rows[name]
            broken = column.filter(column.str.contains(r"[\r\n]"))
            for value in broken.to_list():
                self._record_lines += count_line_ends(value.encode())
                self._blank_in_records += count_blank_lines(value.encode())
        return rows

    def _count_lines(self, raw: bytes) -> None:
        # Only a record whose quote is never closed holds its own line end.
        self._record_lines += count_line_ends(raw) + (0 if raw.endswith((b"\n", b"\r")) else 1)
        self._blank_in_records += count_blank_lines(raw)

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
        counts = self.line_counts()
        parts = counts.header_lines + counts.record_lines + counts.blank_lines + counts.trailer_lines
        if parts != counts.physical_lines or counts.blank_lines < 0:
            raise AccountingError(
                f"The file has {counts.physical_lines} lines, {parts} were accounted for; nothing of it was published."
            )


def normal_header(name: str) -> str:
    """One spelling for header names that differ in case, surrounding space, or space, hyphen and underscore."""
    text = unicodedata.normalize("NFC", name).strip(" \t\ufeff\u00a0\u200b").casefold()
    return re.sub(r"[\s\-_]+", "_", text)


def _coalesce(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(b.num_rows for b in waiting) >= rows:
            yield pa.Table.from_batches(waiting)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting)
