"""Takes Dagster's history from the files of one machine to the Postgres that several share; Dagster has no way for it.

Runs, backfills, sensors' cursors and ticks are rows that both storages have alike. Events are stored anew, one after
another as they happened, since Dagster numbers them otherwise there. The runs come last, in one transaction: where
there are none, an earlier try was cut off, and its events are taken away first.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from healthingest.dagster_storage import postgres_url, require_usable
from healthingest.errors import UsageError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from dagster._core.events.log import EventLogEntry
    from dagster._core.storage.event_log.base import EventLogStorage
    from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage
    from sqlalchemy.engine import Connection

#: Events without a run, such as what a sensor observes, are kept under this run's name.
_RUNLESS = ""
_PAGE = 1_000
_UNFINISHED = ("STARTED", "STARTING", "CANCELING", "MANAGED")


@dataclass(frozen=True)
class History:
    """What was, or is to be, copied."""

    runs: int
    events: int


def copy_history(source: Path, home: Path, on_event: Callable[[str, int], None] = lambda *_: None) -> History:
    """Copy what Dagster's files below `source` tell to the Postgres that `home`/dagster.yaml names.

    Dagster's processes must be stopped.

    Raises:
        UsageError: `source` has no such files, or `home` names no Postgres; a run is at work; the Postgres has runs.
        StorageError: the Postgres cannot be used.
    """
    url = postgres_url(home)
    if url is None:
        raise UsageError(f"{home}/dagster.yaml names no Postgres; copy deploy/distributed/dagster.yaml there first.")
    require_usable(url)
    _require_files(source)
    import dagster as dg
    from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage

    with dg.DagsterInstance.from_config(str(home)) as instance:
        if instance.get_runs_count():
            raise UsageError("The Postgres has runs already; a history is copied before the first.")
        events = SqliteEventLogStorage(str(source / "history" / "runs"))
        return _copy(source, url, events, instance.event_log_storage, on_event)


def count_history(source: Path) -> History:
    """How much there is to be copied.

    Raises:
        UsageError: there are no such files.
    """
    _require_files(source)
    with _connected(source / "history" / "runs.db") as connection:
        runs = int(connection.exec_driver_sql("SELECT count(*) FROM runs").scalar_one())
    events = 0
    for shard in (source / "history" / "runs").glob("*.db"):
        if shard.stem != "index":
            with _connected(shard) as connection:
                events += int(connection.exec_driver_sql("SELECT count(*) FROM event_logs").scalar_one())
    return History(runs, events)


def _require_files(source: Path) -> None:
    if not (source / "history" / "runs.db").is_file():
        raise UsageError(f"There is no history of Dagster in {source} (history/runs.db); name it by --from.")


def _copy(
    source: Path,
    url: str,
    events: "SqliteEventLogStorage",
    store: "EventLogStorage",
    on_event: Callable[[str, int], None],
) -> History:
    from dagster._core.storage.event_log.schema import DynamicPartitionsTable
    from dagster._core.storage.runs.schema import (
        BackfillTagsTable,
        BulkActionsTable,
        KeyValueStoreTable,
        RunsTable,
        RunTagsTable,
        SnapshotsTable,
    )
    from dagster._core.storage.schedules.schema import InstigatorsTable, JobTable, JobTickTable

    index, schedules = source / "history" / "runs" / "index.db", source / "schedules" / "schedules.db"
    with _connected(source / "history" / "runs.db") as old:
        states = {str(state) for (state,) in old.exec_driver_sql("SELECT DISTINCT status FROM runs")}
        if at_work := states & set(_UNFINISHED):
            raise UsageError(f"Runs are {', '.join(sorted(at_work))}; let them end, stop Dagster, and run this again.")
        made = "SELECT run_id, unixepoch(create_timestamp) FROM runs ORDER BY create_timestamp"
        runs = [(str(name), float(at)) for name, at in old.exec_driver_sql(made)]
        store.wipe()
        told = 0
        for event in _in_order(events, [(_RUNLESS, 0.0), *runs]):
            store.store_event(event)
            told += 1
            on_event("events", 1)
        _rows(index, url, [DynamicPartitionsTable])
        if schedules.is_file():
            _rows(schedules, url, [JobTable, InstigatorsTable, JobTickTable])
        tables = [SnapshotsTable, KeyValueStoreTable, BulkActionsTable, BackfillTagsTable, RunsTable, RunTagsTable]
        _rows(source / "history" / "runs.db", url, tables)
    return History(len(runs), told)


def _in_order(storage: "SqliteEventLogStorage", runs: Iterable[tuple[str, float]]) -> Iterator["EventLogEntry"]:
    """The events of runs (name, made at) as they happened; holds those of runs that were at work at a time."""
    at_work: list[tuple[float, int, EventLogEntry, Iterator[EventLogEntry]]] = []
    waiting = list(reversed(list(runs)))
    number = 0
    while at_work or waiting:
        if waiting and (not at_work or waiting[-1][1] <= at_work[0][0]):
            more = _events(storage, waiting.pop()[0])
        else:
            _, _, event, more = heapq.heappop(at_work)
            yield event
        if (first := next(more, None)) is not None:
            number += 1
            heapq.heappush(at_work, (first.timestamp, number, first, more))


def _events(storage: "SqliteEventLogStorage", run_id: str) -> Iterator["EventLogEntry"]:
    cursor = None
    while True:
        page = storage.get_records_for_run(run_id, cursor=cursor, limit=_PAGE)
        yield from (record.event_log_entry for record in page.records)
        if not page.has_more:
            return
        cursor = page.cursor


def _rows(file: Path, url: str, tables: Sequence["sa.Table"]) -> None:
    """Put the rows of a file's tables in the place of what an earlier try left, all at once, under new numbers."""
    import sqlalchemy as sa

    with _connected(file) as old, sa.create_engine(url, poolclass=sa.NullPool).begin() as new:
        for table in reversed(tables):
            new.execute(sa.delete(table))
        for table in tables:
            there = sa.inspect(old).get_columns(table.name) if sa.inspect(old).has_table(table.name) else []
            names = {column["name"] for column in there} - {"id"}
            columns = [column for column in table.columns if column.name in names]
            if not columns:
                continue
            order = [table.c.id] if "id" in table.c else []
            for page in old.execute(sa.select(*columns).order_by(*order)).mappings().partitions(_PAGE):
                new.execute(sa.insert(table), [dict(row) for row in page])


def _connected(file: Path) -> "Connection":
    import sqlalchemy as sa

    return sa.create_engine(f"sqlite:///file:{file}?mode=ro&uri=true", poolclass=sa.NullPool).connect()
