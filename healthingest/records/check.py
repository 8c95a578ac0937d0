"""A delivery's records, read, standardised and divided; frames in, frames out, nothing written."""

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from typing import TypeVar

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.rules import STANDARD
from healthingest.model import Counts
from healthingest.records.damage import RECORD_NO, REJECTED_SCHEMA, as_csv
from healthingest.records.read import Batch, RecordReader
from healthingest.records.standardize import standardize
from healthingest.records.validate import Split, Validator

T = TypeVar("T")
Clock = Callable[[str, float], None]


@dataclass(frozen=True)
class Checked:
    """What became of a delivery's records."""

    #: RECORD_NO (Int64) and every contract column in its standard form (String), in file order.
    accepted: pl.DataFrame
    #: REJECTED_SCHEMA, in no particular order.
    rejected: pl.DataFrame
    #: Line counts, records, accepted, rejected, malformed.
    counts: Counts
    extra_columns: tuple[str, ...]


def check_records(reader: RecordReader, client: Client, delivery_date: date, clock: Clock) -> Checked:
    """Run a whole file through reading, standardising and validating.

    `clock` is told the seconds of each stage. Raises what the reader and the validator raise; then nothing counts.
    """
    validator = Validator.of(client)
    accepted: list[pl.DataFrame] = []
    rejected: list[pl.DataFrame] = []
    malformed = 0
    for batch in _read_ahead(reader, clock):
        malformed += batch.rejected.height
        good, bad = _divide(batch, client, validator, delivery_date, clock)
        accepted.append(good)
        rejected += [batch.rejected, bad]
    columns = {RECORD_NO: pl.Int64} | dict.fromkeys(client.contract.column, pl.String)
    good = pl.concat([pl.DataFrame(schema=columns), *accepted], rechunk=True)
    bad = pl.concat([pl.DataFrame(schema=REJECTED_SCHEMA), *rejected], rechunk=True)
    counts = replace(reader.line_counts(), accepted=good.height, rejected=bad.height, malformed=malformed)
    return Checked(good, bad, counts, tuple(reader.extra_columns))


def _read_ahead(reader: RecordReader, clock: Clock) -> Iterator[Batch]:
    """The reader's batches, each parsed while the one before it is checked; `read` is the time spent waiting."""
    batches = iter(reader)
    with ThreadPoolExecutor(1, "healthingest-read") as thread:
        pending = thread.submit(next, batches, None)
        while (batch := _timed(clock, "read", pending.result)) is not None:
            pending = thread.submit(next, batches, None)
            yield batch


def _divide(
    batch: Batch, client: Client, validator: Validator, delivery_date: date, clock: Clock
) -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = _timed(clock, "standardize", lambda: standardize(batch.rows, client))
    split = _timed(clock, "validate", lambda: validator.split(rows, delivery_date))
    contract = client.contract
    standard = [pl.col(c.name + STANDARD).alias(c.name) if c.parsed else pl.col(c.name) for c in contract.columns]
    return split.accepted.select(RECORD_NO, *standard), _as_received(batch.cells, split, client.config.source.delimiter)


def _as_received(fields: pl.DataFrame, split: Split, delimiter: str) -> pl.DataFrame:
    """The rejected records with all fields that the file gave them, in its order, and their reasons."""
    if split.rejected.is_empty():
        return pl.DataFrame(schema=REJECTED_SCHEMA)
    received = fields.join(split.rejected.select(RECORD_NO), on=RECORD_NO, how="semi", maintain_order="left")
    cells: Iterable[tuple[str | None, ...]] = received.drop(RECORD_NO).iter_rows()
    return pl.DataFrame(
        {
            RECORD_NO: split.rejected[RECORD_NO],
            "raw": [as_csv(list(row), delimiter).encode() for row in cells],
            "reasons": split.rejected["reasons"],
            "expected_fields": None,
            "found_fields": None,
        },
        schema=REJECTED_SCHEMA,
    )


def _timed(clock: Clock, stage: str, work: Callable[[], T]) -> T:
    start = time.perf_counter()
    try:
        return work()
    finally:
        clock(stage, time.perf_counter() - start)
