"""What changes in one part of a table, by copy on write: only files that hold a changed row are written anew.

The part is a partition, or everything below some of its values: rows then spread over partitions by what they hold.

delta-rs' merge does the same by a join over the whole partition, in twice the CPU time and with 0.8 KB of memory for
each row of it (docs/decisions/0011). Here a file is read, changed and written at a time, whatever the table holds.
"""

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self
from uuid import uuid4

import polars as pl
from deltalake import DeltaTable

from healthingest.errors import AccountingError
from healthingest.lake.log_entry import Entry, UncertainError, put_entry
from healthingest.storage.files import scan_parquet, write_parquet

#: What happens to a row.
NEW, CHANGED, GONE = "new", "changed", "gone"
#: Rows of a data file, about; what is in memory at a time.
FILE_ROWS = 1_000_000
_CHANGE_TYPE = "_change_type"


@dataclass(frozen=True)
class DataFile:
    """A data file of the table."""

    #: Relative to the table, as its log names it.
    path: str
    size: int
    #: None where its writer did not say.
    rows: int | None
    #: Partition column -> value, as text.
    partition: Mapping[str, str]


def files_in(table: DeltaTable, partition: Mapping[str, str]) -> list[DataFile]:
    """The data files of one partition, or of all below some of its values, as a handle sees them."""
    adds = pl.DataFrame(table.get_add_actions(flatten=True))
    if adds.is_empty():
        return []
    mine = [pl.col(f"partition.{column}").cast(pl.String) == value for column, value in partition.items()]
    columns = [c for c in adds.columns if c.startswith("partition.")]
    found = adds.filter(mine).sort("path").select("path", "size_bytes", "num_records", pl.col(columns).cast(pl.String))
    names = [c.removeprefix("partition.") for c in columns]
    return [
        DataFile(path, size, rows, dict(zip(names, values, strict=True)))
        for path, size, rows, *values in found.iter_rows()
    ]


def types_of(table: DeltaTable, partition: Collection[str]) -> dict[str, pl.DataType]:
    """The columns that the table's files hold, without those of the partition."""
    return {n: t for n, t in pl.scan_delta(table).collect_schema().items() if n not in partition}


@dataclass(frozen=True)
class Known:
    """What was looked up for several parts of a table at once."""

    #: As `types_of` gives them.
    types: dict[str, pl.DataType]
    #: As `files_in` gives them for the part's partition.
    files: Callable[[], Sequence[DataFile]]


class Changes(Protocol):
    """What gathers changes and commits them at once: a `Rewrite`, or several, here or on other machines."""

    def add(self, rows: pl.DataFrame) -> None:
        """Take further changes in."""

    def commit(self, transactions: Mapping[str, int], metadata: Mapping[str, str]) -> int:
        """Publish them; the new version."""
        ...


class Rewrite:
    """Changes to the rows of one part of a table, keyed by one column, gathered and then committed at once.

    `add` takes frames with the table's columns and `_change`; a row of the part has a key of its own.
    """

    def __init__(
        self, root: Path, table: DeltaTable, partition: Mapping[str, str], *, key: str, bounds: str,
        spread: Mapping[str, pl.Expr] | None = None, known: Known | None = None,
    ) -> None:  # fmt: skip
        """`table` is the handle that the changes were compared with; `bounds` the column whose range the log shows.

        `spread`: each partition column that `partition` does not name -> what a row has there.
        """
        self._root, self._table, self._partition = root, table, partition
        self._key, self._bounds, self._spread = key, bounds, spread or {}
        self._known = known or Known(types_of(table, partition), lambda: files_in(table, partition))
        self._types = self._known.types
        self._columns = list(self._types)
        self._new: list[pl.DataFrame] = []
        self._changed: list[pl.DataFrame] = []
        self._actions: list[dict[str, Any]] = []
        #: Files of new rows alone, with their partitions, and all files, as far as they were written.
        self._new_files: list[tuple[Path, Mapping[str, str]]] = []
        self._written: list[Path] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Take further changes in; new rows are written as soon as they fill a file, but not published.

        Columns that `rows` lack are null.
        """
        rows = self._aligned(rows.lazy().with_columns(**self._spread), self._columns, "_change").collect()
        new = rows.filter(pl.col("_change") == NEW).drop("_change")
        if new.height:
            self._new.append(new)
        if new.height < rows.height:
            self._changed.append(rows.filter(pl.col("_change") != NEW))
        if self.waiting >= FILE_ROWS:
            self.write_new()

    @property
    def waiting(self) -> int:
        """New rows that are not written yet."""
        return sum(part.height for part in self._new)

    @property
    def changes(self) -> bool:
        """Whether anything but new rows was added."""
        return bool(self._changed)

    def write_new(self) -> None:
        """Write the new rows that wait, and publish nothing."""
        if self._new:
            rows, self._new = pl.concat(self._new), []
            self._new_files += self._write(rows)

    def commit(self, transactions: Mapping[str, int], metadata: Mapping[str, str], *, blind: bool = False) -> int:
        """Publish everything that was added, with transactions and metadata; the new version.

        `blind`: only new rows, which may stand beside whatever others add meanwhile.

        Raises:
            CommitFailedError: another writer's commit concerns the partition or a transaction; nothing was published.
            AccountingError: a row to change is not there, or twice in one file; nothing was published.
        """
        self.prepare()
        kind = "MERGE" if self._changed else "WRITE"
        entry = Entry(kind, self._partition, self._actions, transactions, metadata, blind=blind)
        # Whoever is interrupted from here on may have published the files; if nobody did, vacuum takes them.
        written, self._written = self._written, []
        try:
            return put_entry(self._root, self._table, entry)
        except UncertainError:
            raise
        except Exception:
            self._written = written
            self.abandon()
            raise

    def prepare(self, *, told: bool = False) -> list[dict[str, Any]]:
        """Write everything that was added, and publish nothing; the actions that do.

        `told`: the commit has change data of other partitions, so that new rows must stand in it too.

        Raises:
            AccountingError: as `commit`.
        """
        try:
            if self._changed:
                self._change(pl.concat(self._changed))
            self.write_new()
            if self._changed or told:
                self._tell_new()
        except BaseException:
            self.abandon()
            raise
        return self._actions

    def __enter__(self) -> Self:
        """The same."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing of what was not committed."""
        self.abandon()

    def abandon(self) -> None:
        """Delete what was written and never published."""
        for path in self._written:
            path.unlink(missing_ok=True)
        self._written.clear()

    def _change(self, changed: pl.DataFrame) -> None:
        left = changed.select(self._key).unique()
        if left.height != changed.height:
            raise AccountingError("A row would be changed twice by one commit; nothing of it was published.")
        # Rows that go to other partitions are written last, together.
        moved: list[pl.DataFrame] = []
        for file in self._known.files():
            if not left.height:
                break
            touched = self._read(file, [self._key]).join(left, on=self._key, how="semi")
            if touched.is_empty():
                continue
            here = changed
            if touched.height < changed.height:
                here = changed.join(touched, on=self._key, how="semi")
            self._rewrite(file, here, touched.height, moved)
            left = left.join(touched, on=self._key, how="anti")
        if left.height:
            raise AccountingError(f"{left.height} rows to change are not in the table; nothing was published.")
        if moved:
            self._write(pl.concat(moved))

    def _tell_new(self) -> None:
        # Readers of a commit with change data look at that alone: new rows must stand in it too.
        for path, partition in self._new_files:
            told = (
                scan_parquet(path, hive_partitioning=False).collect().with_columns(pl.lit("insert").alias(_CHANGE_TYPE))
            )
            self._actions.append({"cdc": self._written_to("_change_data/", told, partition) | {"dataChange": False}})

    def _rewrite(self, file: DataFile, changed: pl.DataFrame, expected: int, moved: list[pl.DataFrame]) -> None:
        rows = self._read(file, self._columns)
        said = rows.select(self._key).join(
            changed.select(self._key, "_change"), on=self._key, how="left", maintain_order="left"
        )["_change"]
        if not said.count() == changed.height == expected:
            raise AccountingError("Two rows of the table have one key; nothing was published.")
        kept, was, gone = rows.filter(said.is_null()), _where(rows, said == CHANGED), rows.filter(said == GONE)
        after = _where(changed, changed["_change"] == CHANGED).select(self._columns)
        new = self._taken_along(rows.height, file)
        del rows, changed  # a day on which everybody changes is several times in memory otherwise
        stays = _where(after, self._in(after, file))
        if stays.height < after.height:
            moved.append(after.filter(~self._in(after, file)))
        self._write(pl.concat([kept, stays, new]))
        del kept, stays
        self._actions.append({"remove": removed(file)})
        self._write_changes({"update_preimage": was, "update_postimage": after, "delete": gone, "insert": new})

    def _in(self, rows: pl.DataFrame, file: DataFile) -> pl.Series:
        """Which rows belong to a file's partition."""
        there = pl.repeat(value=True, n=rows.height, dtype=pl.Boolean, eager=True)
        for column in self._spread:
            there &= rows[column].cast(pl.String) == file.partition[column]
        return there

    def _taken_along(self, rows: int, file: DataFile) -> pl.DataFrame:
        """New rows that go into a file of so many rows that is written anyway: a few need no file of their own."""
        none = pl.DataFrame(schema={name: self._types[name] for name in self._columns})
        if rows + self.waiting > FILE_ROWS:
            return none
        taken, self._new = self._new, []
        if self._spread:
            here = [self._in(part, file) for part in taken]
            self._new = [some for p, h in zip(taken, here, strict=True) if (some := p.filter(~h)).height]
            taken = [part.filter(h) for part, h in zip(taken, here, strict=True)]
        return pl.concat([none, *taken])

    def _read(self, file: DataFile, columns: list[str]) -> pl.DataFrame:
        """Columns of a data file; those that came to the table later are null."""
        rows = scan_parquet(self._root / file.path, hive_partitioning=False)
        return self._aligned(rows.with_columns(**{c: self._value(file, c) for c in self._spread}), columns).collect()

    def _value(self, file: DataFile, column: str) -> pl.Expr:
        """What a file's rows have in a partition column that stands in its path alone."""
        text = pl.lit(file.partition[column])
        return text.str.to_date() if self._types[column] == pl.Date else text.cast(self._types[column])

    def _aligned(self, rows: pl.LazyFrame, columns: list[str], *more: str) -> pl.LazyFrame:
        return aligned(rows, {name: self._types[name] for name in columns}, *more)

    def _write(self, rows: pl.DataFrame) -> list[tuple[Path, Mapping[str, str]]]:
        """A file for each partition that the rows are of, unless there are none; the files, with their partitions."""
        files: list[tuple[Path, Mapping[str, str]]] = []
        for partition, part in self._parts(rows):
            stats = json.dumps(stats_of(part, self._bounds))
            written = self._written_to("", part, partition)
            self._actions.append({"add": written | {"stats": stats, "modificationTime": _now()}})
            files.append((self._written[-1], partition))
        return files

    def _parts(self, rows: pl.DataFrame) -> Iterator[tuple[Mapping[str, str], pl.DataFrame]]:
        """The rows of each partition, as its files hold them: without the partition's own columns."""
        if rows.is_empty():
            return
        if not self._spread:
            yield self._partition, rows
            return
        columns = list(self._spread)
        if sum(rows.select(columns).null_count().row(0)):
            raise AccountingError("A row lacks what tells its partition; nothing was published.")
        for values, part in rows.partition_by(columns, as_dict=True, include_key=False).items():
            yield {**self._partition, **dict(zip(columns, map(str, values), strict=True))}, part

    def _write_changes(self, changes: Mapping[str, pl.DataFrame]) -> None:
        """Change data: kind of change -> rows."""
        rows = pl.concat([rows.with_columns(pl.lit(kind).alias(_CHANGE_TYPE)) for kind, rows in changes.items()])
        for partition, part in self._parts(rows):
            self._actions.append({"cdc": self._written_to("_change_data/", part, partition) | {"dataChange": False}})

    def _written_to(self, folder: str, rows: pl.DataFrame, partition: Mapping[str, str]) -> dict[str, Any]:
        place = "/".join(f"{column}={value}" for column, value in partition.items())
        relative = f"{folder}{place}/part-00000-{uuid4()}-c000.zstd.parquet"
        path = self._root / relative
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o770)  # the umask takes the group out, an ACL lets it in
        self._written.append(path)
        # Level 1: as small as level 3 here, in a third of the time.
        write_parquet(rows, path, compression="zstd", compression_level=1, statistics=False)
        return {"path": relative, "partitionValues": partition, "size": path.stat().st_size, "dataChange": True}


def _where(rows: pl.DataFrame, mask: pl.Series) -> pl.DataFrame:
    """The rows where `mask` is true; the very same frame if that is everywhere."""
    return rows if mask.all(ignore_nulls=False) else rows.filter(mask)


def aligned(rows: pl.LazyFrame, types: Mapping[str, pl.DataType], *more: str) -> pl.LazyFrame:
    """Rows in these columns and types, and `more`; columns that came to the table after a file's rows are null."""
    have = rows.collect_schema()
    typed = [pl.col(n).cast(t) if n in have else pl.lit(None, t).alias(n) for n, t in types.items()]
    return rows.select(*typed, *more)


def stats_of(rows: pl.DataFrame, bounds: str) -> dict[str, Any]:
    """What the log says of a file with these rows: how many, and the range of one column."""
    column = rows[bounds]
    return {
        "numRecords": rows.height, "minValues": {bounds: column.min()}, "maxValues": {bounds: column.max()},
        "nullCount": {bounds: column.null_count()},
    }  # fmt: skip


def removed(file: DataFile) -> dict[str, Any]:
    """The `remove` action of a data file, by which rows change."""
    return {
        "path": file.path, "deletionTimestamp": _now(), "dataChange": True, "extendedFileMetadata": True,
        "partitionValues": file.partition, "size": file.size,
    }  # fmt: skip


def _now() -> int:
    return int(time.time() * 1000)
