"""What all Delta tables here share: creation, snapshots, and writes that happen once however often they are tried.

Delta's application transactions are not de-duplicated by the library; a writer must look before it writes and commit
with the very snapshot it looked at. A write by path, or a refreshed handle, commits silently over others' work.
"""

import contextlib
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import polars as pl
import pyarrow as pa
from deltalake import (
    CommitProperties,
    DeltaTable,
    Field,
    Schema,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError

from healthingest.errors import AccountingError, ContentionError, HealthingestError
from healthingest.lake.log_entry import CHECKPOINT_EVERY
from healthingest.storage.files import options_of
from healthingest.storage.objects import place_of

#: Snapshots tried before a writer gives up; with the waits below about 40 s.
ATTEMPTS = 25
#: Rows that are turned into Arrow's layout at a time.
_SLICE = 65_536
T = TypeVar("T")
_LOG_RETENTION = "delta.logRetentionDuration"
#: Of every table: its property, and what it is.
_ALWAYS = {"delta.checkpointInterval": str(CHECKPOINT_EVERY)}
ZSTD = WriterProperties(compression="ZSTD")


@dataclass(frozen=True)
class Table:
    """One Delta table: where it lies and what it must look like."""

    path: Path
    schema: pl.Schema
    partition_by: tuple[str, ...] = ()
    description: str = ""
    #: Column -> what it holds, for the table's own schema.
    comments: Mapping[str, str] = field(default_factory=dict)
    configuration: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """Where readers find the table."""
        return str(self.path)

    def exists(self) -> bool:
        """Whether the table has been created."""
        return DeltaTable.is_deltatable(self.uri, storage_options=options_of(self.path))

    def handle(self, version: int | None = None, *, without_files: bool = False) -> DeltaTable:
        """The latest state as it is, or an earlier one."""
        return open_table(self.path, version, without_files=without_files)

    def snapshot(self) -> DeltaTable:
        """The latest state as a fresh handle, creating an empty table where none is.

        Columns that an earlier version of this code did not know are added to the table.

        Raises:
            HealthingestError: the folder holds something that is no Delta table.
        """
        if not self.exists():
            self._create()
        table = self.handle()
        missing = set(self.schema) - {f.name for f in table.schema().fields}
        if not missing:
            return table
        new = pl.Schema({name: dtype for name, dtype in self.schema.items() if name in missing})
        with contextlib.suppress(CommitFailedError):  # another process added them
            table.alter.add_columns(list(delta_schema(new, self.comments).fields))
        return self.handle()

    def version(self) -> int | None:
        """The latest version; None before the first write."""
        return int(self.handle().version()) if self.exists() else None

    def frame(self, columns: list[str] | None = None, where: pl.Expr | None = None) -> pl.DataFrame:
        """Rows of the latest state; an empty frame before the first write."""
        if not self.exists():
            empty = pl.DataFrame(schema=self.schema)
            return empty.select(columns) if columns else empty
        scan = pl.scan_delta(self.snapshot())
        scan = scan if where is None else scan.filter(where)
        return (scan.select(columns) if columns else scan).collect()

    def append_once(self, parts: Mapping[str, pl.DataFrame]) -> set[str]:
        """Append each part (id -> rows) unless a commit of its id exists, all in one commit; the ids it wrote.

        A part without rows is nothing to write.
        """
        filled = {app_id: rows for app_id, rows in parts.items() if rows.height}
        if not filled:
            return set()

        def attempt() -> set[str]:
            table = self.snapshot()
            new = {app_id: rows for app_id, rows in filled.items() if table.transaction_version(app_id) is None}
            if new:
                write_deltalake(
                    table, _streamed(pl.concat(new.values(), rechunk=False)), mode="append", writer_properties=ZSTD,
                    commit_properties=commit(dict.fromkeys(new, 1)),
                )  # fmt: skip
            return set(new)

        return retry(attempt)

    def compact(self) -> int:
        """Put small files together; returns how many fewer there are. Beaten by a writer, it leaves them for next time.

        Raises:
            AccountingError: the number of rows has changed, which must not be.
        """
        table = self.snapshot()
        before = table.version()
        try:
            metrics = table.optimize.compact(writer_properties=ZSTD)
        except CommitFailedError:
            return 0
        fewer = int(metrics["numFilesRemoved"]) - int(metrics["numFilesAdded"])
        # The handle may have moved past others' commits: look for the one that is ours.
        ours = [entry["version"] for entry in self.handle().history(50) if entry["operation"] == "OPTIMIZE"]
        if fewer and ours and ours[0] > before:
            rows = [self.handle(version).count() for version in (ours[0] - 1, ours[0])]
            if rows[0] != rows[1]:
                raise AccountingError(f"Compacting {self.path.name} went from {rows[0]} to {rows[1]} rows; restore it.")
        return fewer

    def vacuum(self, keep: timedelta) -> int:
        """Delete files that no version of the last `keep` needs, change data included; returns how many."""
        hours = int(keep.total_seconds() // 3600)
        gone = self.snapshot().vacuum(retention_hours=hours, dry_run=False, enforce_retention_duration=False, full=True)
        return len(gone)

    def files_of(self, client_id: str) -> set[Path]:
        """All data and change data files of a client that lie on disk, whether a version needs them or not."""
        roots = (self.path / f"client_id={client_id}", self.path / "_change_data" / f"client_id={client_id}")
        return {path for root in roots for path in root.rglob("*.parquet")}

    def purge(self, client_id: str, but: Collection[Path] = ()) -> int:
        """Delete what only earlier versions of a client's rows need, change data too, `but` some; how many files.

        Nobody else may be writing the client's rows. Other clients' files stay, so that their versions do.
        """
        if not self.exists():
            return 0
        needed = {place_of(uri) for uri in self.handle().file_uris()}
        gone = self.files_of(client_id) - needed - set(but)
        for path in gone:
            path.unlink()
        return len(gone)

    def update_client(self, client_id: str, keys: Sequence[str], rows: pl.DataFrame, *, delete: bool = False) -> None:
        """Replace a client's rows by those of the same `keys`, or delete them; no value of them lands in the log."""
        if rows.is_empty():
            return

        def attempt() -> None:
            same = " AND ".join(f"s.{key} = t.{key}" for key in keys)
            merge = self.snapshot().merge(
                rows, f"t.client_id = '{client_id}' AND {same}", source_alias="s", target_alias="t",
                streamed_exec=True, writer_properties=ZSTD,
            )  # fmt: skip
            (merge.when_matched_delete() if delete else merge.when_matched_update_all()).execute()

        retry(attempt)

    def drop_client(self, client_id: str) -> int:
        """Delete all rows of a client and every file with any version of them; how many rows there were."""
        if not self.exists():
            return 0

        def attempt() -> int:
            return int(self.snapshot().delete(f"client_id = '{client_id}'").get("num_deleted_rows") or 0)

        rows = retry(attempt)
        self.purge(client_id)
        return rows

    def shorten_log(self, keep: timedelta) -> int:
        """Write a checkpoint and drop log entries older than `keep`; returns how many files the log has fewer."""
        table = self.snapshot()
        wanted = _ALWAYS | {_LOG_RETENTION: f"interval {max(keep.days, 1)} days"}
        if not wanted.items() <= table.metadata().configuration.items():
            table.alter.set_table_properties(wanted)
        log = self.path / "_delta_log"
        table = self.snapshot()
        table.create_checkpoint()
        before = sum(1 for _ in log.iterdir())
        table.cleanup_metadata()
        return before - sum(1 for _ in log.iterdir())

    def _create(self) -> None:
        if self.path.exists() and any(self.path.iterdir()) and not (self.path / "_delta_log").exists():
            raise HealthingestError(f"{self.path} holds files that are no Delta table; move them away.")
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        DeltaTable.create(
            self.uri,
            delta_schema(self.schema, self.comments),
            mode="ignore",
            partition_by=list(self.partition_by),
            name=self.path.name,
            description=self.description,
            configuration=_ALWAYS | dict(self.configuration),
            raise_if_key_not_exists=False,
            storage_options=options_of(self.path),
        )


def open_table(path: Path, version: int | None = None, *, without_files: bool = False) -> DeltaTable:
    """The Delta table that lies at a place."""
    return DeltaTable(str(path), version=version, storage_options=options_of(path), without_files=without_files)


def delta_schema(schema: pl.Schema, comments: Mapping[str, str]) -> Schema:
    """The Delta schema of a polars schema, with column comments."""
    plain = Schema.from_arrow(pl.DataFrame(schema=schema).to_arrow().schema)
    return Schema(
        [
            Field(
                f.name,
                f.type,
                nullable=True,
                metadata={"comment": comments[f.name]} if f.name in comments else None,
            )
            for f in plain.fields
        ]
    )


def _streamed(rows: pl.DataFrame) -> pa.RecordBatchReader:
    """The rows in Arrow's older layout, a slice at a time: made as a whole they would be in memory twice."""
    level = pl.CompatLevel.oldest()
    schema = rows.clear().to_arrow(compat_level=level).schema
    slices = (part.to_arrow(compat_level=level) for part in rows.iter_slices(_SLICE))
    return pa.RecordBatchReader.from_batches(schema, (batch for part in slices for batch in part.to_batches()))


def commit(transactions: Mapping[str, int], metadata: dict[str, str] | None = None) -> CommitProperties:
    """Commit properties that carry application transactions and custom metadata (never a value of a record)."""
    now = int(time.time() * 1000)
    return CommitProperties(
        custom_metadata=metadata,
        app_transactions=[Transaction(app_id, version, now) for app_id, version in transactions.items()],
    )


def retry(attempt: Callable[[], T]) -> T:
    """Run `attempt`, which must take a fresh snapshot itself, until no other writer beats it.

    Raises:
        ContentionError: others won every time.
    """
    for wait in _waits():
        try:
            return attempt()
        except CommitFailedError:
            time.sleep(wait)
    raise ContentionError("Other writers kept the table busy; run this again.")


def _waits() -> Iterator[float]:
    for number in range(ATTEMPTS):
        yield random.uniform(0, min(2.0, 0.05 * 2**number))  # noqa: S311 - jitter, not a secret
