"""A delivery's records, read, transformed, standardised and divided; frames in, frames out, nothing written.

Records go through in batches; whoever asks for `checked_batches` needs memory for a few of them, whatever the file.
"""

import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import TypeVar

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.model import Counts, Filled, Profile
from healthingest.records.damage import RECORD_NO, REJECTED_SCHEMA
from healthingest.records.families import find_orphans
from healthingest.records.parts import Aside, Parts
from healthingest.records.read import Batch, RecordReader
from healthingest.records.reasons import Reason, count_pairs, count_reasons
from healthingest.records.standardize import standardize
from healthingest.records.transform import transform
from healthingest.records.uniqueness import find_duplicates
from healthingest.records.validate import Split, Validator

T = TypeVar("T")
Clock = Callable[[str, float], None]
#: Makes something of a batch's accepted records while they are at hand, row by row: columns more, rows the same.
Finish = Callable[[pl.DataFrame], pl.DataFrame]
#: Of each member id (String, standard form) whether that member was erased.
Erased = Callable[[pl.Series], pl.Series]
#: Checks a file's batches on other machines, each as `check_batch` does, given what is known of the whole file.
Elsewhere = Callable[[Iterator[Batch], Mapping[str, pl.Series]], Iterator["CheckedBatch"]]
#: Batches that are checked side by side.
_WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class CheckedBatch:
    """What became of some consecutive records."""

    #: RECORD_NO (Int64) and every contract column in its standard form (String), in file order.
    accepted: pl.DataFrame
    #: REJECTED_SCHEMA, in no particular order.
    rejected: pl.DataFrame
    malformed: int
    warned: int
    warnings: dict[Reason, int]
    #: Contract column -> well-formed records with a value.
    filled: dict[str, int]


@dataclass(frozen=True)
class Checked:
    """What became of a delivery's records: `accepted` and `rejected` as in a batch."""

    accepted: Parts
    rejected: pl.DataFrame
    #: Line counts, records, accepted, rejected, malformed, warned.
    counts: Counts
    profile: Profile
    extra_columns: tuple[str, ...]


def check_records(
    open_reader: Callable[[], RecordReader], client: Client, delivery_date: date, clock: Clock,
    finish: Finish = lambda accepted: accepted, aside: Aside | None = None, erased: Erased | None = None,
    elsewhere: Elsewhere | None = None,
) -> Checked:  # fmt: skip
    """Run a whole file through reading, transforming, standardising and validating, and what `finish` does.

    `open_reader` starts at the file's beginning each time it is called; `clock` is told the seconds of each stage;
    accepted records wait in `aside`, or in memory; batches are checked `elsewhere`, or here.
    Raises what the reader and the validator raise; then nothing counts.
    """
    duplicates: dict[str, pl.Series] = {}
    if any(rule.unique for rule in client.rules):
        duplicates = _timed(clock, "read", lambda: find_duplicates(open_reader(), client))
    if any(rule.subscriber for rule in client.rules):
        once = checked_batches(open_reader(), client, delivery_date, lambda _stage, _seconds: None, dict(duplicates))
        duplicates |= _timed(clock, "validate", lambda: find_orphans((b.accepted for b in once), client, erased))
    reader = open_reader()
    columns = {RECORD_NO: pl.Int64} | dict.fromkeys(client.contract.column, pl.String)
    empty, batches = finish(pl.DataFrame(schema=columns)), []

    def accepted() -> Iterator[pl.DataFrame]:
        here = partial(checked_batches, reader, client, delivery_date, clock, duplicates, finish)
        for batch in elsewhere(_read_ahead(reader, clock), duplicates) if elsewhere else here():
            batches.append(replace(batch, accepted=empty))
            yield batch.accepted

    good = Parts.of(empty, accepted(), aside)
    bad = pl.concat([pl.DataFrame(schema=REJECTED_SCHEMA), *(b.rejected for b in batches)], rechunk=True)
    read = reader.line_counts()
    counts = replace(
        read, accepted=read.accepted + good.height, rejected=bad.height,
        malformed=sum(b.malformed for b in batches), warned=sum(b.warned for b in batches),
    )  # fmt: skip
    return Checked(good, bad, counts, _profile(batches, bad, reader), tuple(reader.extra_columns))


def checked_batches(
    reader: RecordReader,
    client: Client,
    delivery_date: date,
    clock: Clock,
    duplicates: Mapping[str, pl.Series] | None = None,
    finish: Finish = lambda accepted: accepted,
) -> Iterator[CheckedBatch]:
    """Yield a file's records, checked, in order; what they came to counts only once the last one was given.

    `duplicates`: what `find_duplicates` and `find_orphans` say of the same file, for clients with such rules. The
    seconds that `clock` is told are those of the batches, of which some are worked on at the same time.
    """

    def work(batch: Batch) -> tuple[CheckedBatch, dict[str, float]]:
        return check_batch(batch, client, delivery_date, duplicates, finish)

    def finished(work: Future[tuple[CheckedBatch, dict[str, float]]]) -> CheckedBatch:
        done, spent = work.result()
        for stage, seconds in spent.items():
            clock(stage, seconds)
        return done

    at_work: deque[Future[tuple[CheckedBatch, dict[str, float]]]] = deque()
    with ThreadPoolExecutor(_WORKERS, "healthingest-check") as threads:
        for batch in _read_ahead(reader, clock):
            at_work.append(threads.submit(work, batch))
            if len(at_work) > _WORKERS:
                yield finished(at_work.popleft())
        while at_work:
            yield finished(at_work.popleft())


def check_batch(
    batch: Batch, client: Client, delivery_date: date, duplicates: Mapping[str, pl.Series] | None, finish: Finish
) -> tuple[CheckedBatch, dict[str, float]]:
    """Standardise and validate one batch; with the seconds of each stage. Any thread or machine may do it."""
    spent: defaultdict[str, float] = defaultdict(float)

    def add(stage: str, seconds: float) -> None:
        spent[stage] += seconds

    # Its own validator: a Pandera schema is not made for two threads.
    done = _checked(batch, client, Validator.of(client, duplicates), delivery_date, add)
    return replace(done, accepted=_timed(add, "tokenise", lambda: finish(done.accepted))), spent


def _read_ahead(reader: RecordReader, clock: Clock) -> Iterator[Batch]:
    """The reader's batches, each parsed while the one before it is checked; `read` is the time spent waiting."""
    batches = iter(reader)
    with ThreadPoolExecutor(1, "healthingest-read") as thread:
        pending = thread.submit(next, batches, None)
        while (batch := _timed(clock, "read", pending.result)) is not None:
            pending = thread.submit(next, batches, None)
            yield batch


def _checked(batch: Batch, client: Client, validator: Validator, delivery_date: date, clock: Clock) -> CheckedBatch:
    traits = {} if client.config.transform else batch.traits
    rows = _timed(clock, "standardize", lambda: standardize(transform(batch.rows, client), client, traits))
    if rows.is_empty():
        split = Split(rows, rows.with_columns(pl.lit(None).alias("reasons")), {}, 0)
    else:
        split = _timed(clock, "validate", lambda: validator.split(rows, delivery_date))
    contract = client.contract
    standard = [contract.standard_of(column.name).alias(column.name) for column in contract.columns]
    return CheckedBatch(
        accepted=split.accepted.select(RECORD_NO, *standard),
        rejected=pl.concat([batch.rejected, _as_received(batch, split)]),
        malformed=batch.rejected.height,
        warned=split.warned,
        warnings=split.warnings,
        filled={column: rows.height - rows[column].null_count() for column in contract.column},
    )


def _as_received(batch: Batch, split: Split) -> pl.DataFrame:
    """The records that break a rule, with their bytes and lines as the file gave them."""
    if split.rejected.is_empty():
        return pl.DataFrame(schema=REJECTED_SCHEMA)
    missing = [pl.lit(None, REJECTED_SCHEMA[name]).alias(name) for name in ("expected_fields", "found_fields")]
    received = batch.received(split.rejected[RECORD_NO])
    return received.with_columns(split.rejected["reasons"], *missing).select(REJECTED_SCHEMA.names())


def _profile(batches: list[CheckedBatch], rejected: pl.DataFrame, reader: RecordReader) -> Profile:
    filled: Counter[str] = Counter()
    warnings: Counter[Reason] = Counter()
    for batch in batches:
        filled.update(batch.filled)
        warnings.update(batch.warnings)
    written = reader.header.written if reader.header else {}
    # In the order of the file, so that a file whose columns stand otherwise can be told.
    places = reader.header.columns if reader.header else {}
    columns = sorted(reader.client.contract.column, key=lambda column: places.get(column, 10**6))
    return Profile(
        rules=count_reasons(rejected["reasons"], warnings),
        pairs=count_pairs(rejected["reasons"]),
        filled=tuple(Filled(column, written.get(column), filled[column]) for column in columns),
    )


def _timed(clock: Clock, stage: str, work: Callable[[], T]) -> T:
    start = time.perf_counter()
    try:
        return work()
    finally:
        clock(stage, time.perf_counter() - start)
