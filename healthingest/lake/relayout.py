"""A client's rows in another number of buckets: new files beside the old, remembered in a plan, published at once.

The plan (`checkpoint/rebuckets/<client>.json`) names the files that it is made from and those that are written, so that
whoever comes after a death goes on behind the last group of buckets that was finished. The commit says that no data
changed: readers, versions of before and the change feed see the same rows before and after. That the number of buckets
has changed stands in the commit itself, so that no writer can follow a note that was not yet brought up to date.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl

from healthingest.errors import AccountingError
from healthingest.lake.log_entry import Entry, put_entry
from healthingest.lake.rewrite import FILE_ROWS, DataFile, aligned, files_in, removed, stats_of
from healthingest.lake.silver import Silver, Snapshot, bucket
from healthingest.storage.files import put, scan_parquet, write_parquet
from healthingest.storage.objects import ObjectPath

#: Rows of the buckets that are written together, about; they are in memory, and each group reads all files anew.
GROUP_ROWS = 2_000_000
OnGroup = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is to be done, and how far it has come."""

    table: str
    #: Buckets before and afterwards.
    before: int
    buckets: int
    #: Which re-bucketing of the client it is, from 1.
    number: int
    #: Stands in the names of its files.
    mark: str
    #: Buckets that are written together.
    group: int
    #: Data files that it is made from, as the log names them.
    sources: list[str]
    rows: int
    #: `add` actions of the files that are written, a list for each finished group.
    done: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def groups(self) -> list[range]:
        """Groups of buckets."""
        return [range(low, min(low + self.group, self.buckets)) for low in range(0, self.buckets, self.group)]


@dataclass(frozen=True)
class Relayout:
    """One client's re-bucketing; whoever works with it is alone with the client, and no maintenance runs."""

    silver: Silver
    client_id: str
    #: Where plans are.
    root: Path

    def noted(self) -> Plan | None:
        """The plan that somebody began."""
        try:
            return Plan(**json.loads(self._place.read_text()))
        except FileNotFoundError:
            return None

    def is_committed(self, plan: Plan, snapshot: Snapshot) -> bool:
        """Whether silver has it already: its files are no longer this module's to delete."""
        return self._number(snapshot) >= plan.number

    def fits(self, plan: Plan, snapshot: Snapshot, buckets: int) -> bool:
        """Whether a plan may be gone on with: it is for so many buckets, and made from what silver is made of now."""
        sources = [file.path for file in self.files(snapshot)]
        return (plan.buckets, plan.sources) == (buckets, sources) and not self.is_committed(plan, snapshot)

    def planned(self, snapshot: Snapshot, buckets: int) -> Plan:
        """A plan from the beginning; not noted."""
        files = self.files(snapshot)
        rows = sum(file.rows or 0 for file in files)
        return Plan(
            self.silver.path.name, self.silver.buckets_of(snapshot), buckets, self._number(snapshot) + 1, str(uuid4()),
            max(1, buckets * GROUP_ROWS // max(rows, GROUP_ROWS)), [file.path for file in files], rows,
        )  # fmt: skip

    def begun(self, snapshot: Snapshot, buckets: int) -> Plan:
        """The noted plan if it fits, else a new one, noted; what the other had written goes."""
        plan = self.noted()
        if plan and self.fits(plan, snapshot, buckets):
            return replace(plan, done=list(self._whole(plan)))
        if plan:
            self.drop(plan, snapshot)
        plan = self.planned(snapshot, buckets)
        self._note(plan)
        return plan

    def commit(self, snapshot: Snapshot, plan: Plan, on_group: OnGroup = lambda *_: None) -> int:
        """Write what is not written yet, and publish all of it; the new version.

        Raises:
            CommitFailedError: somebody else's commit concerns the client or the table's schema; plan anew.
            AccountingError: the new files have other rows than the old; nothing was published.
            UncertainError: an object store did not answer; whoever runs it again finds out.
        """
        files, groups = self.files(snapshot), plan.groups
        for number in range(len(plan.done), len(groups)):
            on_group(number, len(groups))
            plan = replace(plan, done=[*plan.done, self._written(snapshot, plan, files, groups[number])])
            self._note(plan)
        adds = [add for group in plan.done for add in group]
        if (have := sum(json.loads(add["stats"])["numRecords"] for add in adds)) != plan.rows:
            raise AccountingError(f"{plan.rows} rows of {self.client_id} became {have}; nothing was published.")
        on_group(len(groups), len(groups))
        actions = [{"remove": removed(file) | {"dataChange": False}} for file in files]
        told = {"deliveries": {}, "buckets": {"client_id": self.client_id, "buckets": plan.buckets}}
        transactions = {
            f"client/{self.client_id}": snapshot.number + 1, f"buckets/{self.client_id}": plan.buckets,
            f"rebucket/{self.client_id}": plan.number,
        }  # fmt: skip
        entry = Entry(
            "REBUCKET", {"client_id": self.client_id}, [*actions, *({"add": add} for add in adds)], transactions,
            {"healthingest": json.dumps(told, sort_keys=True)},
        )  # fmt: skip
        return put_entry(self.silver.path, snapshot.table, entry)

    def drop(self, plan: Plan, snapshot: Snapshot) -> None:
        """Forget a plan; what it has written and silver does not have goes."""
        if not self.is_committed(plan, snapshot):
            folder = self.silver.path.with_name(plan.table) / f"client_id={self.client_id}"
            for path in list(folder.rglob(f"*-{plan.mark}-*.parquet")):
                path.unlink(missing_ok=True)
        self._place.unlink(missing_ok=True)

    def files(self, snapshot: Snapshot) -> list[DataFile]:
        """The client's data files."""
        return files_in(snapshot.table, {"client_id": self.client_id})

    def _number(self, snapshot: Snapshot) -> int:
        return int(snapshot.table.transaction_version(f"rebucket/{self.client_id}") or 0)

    def _whole(self, plan: Plan) -> Iterator[list[dict[str, Any]]]:
        """The groups at the beginning whose files are all there: an erasure deletes what no version needs."""
        for group in plan.done:
            if not all(_is_whole(self.silver.path / add["path"], add) for add in group):
                return
            yield group

    def _written(self, snapshot: Snapshot, plan: Plan, files: list[DataFile], group: range) -> list[dict[str, Any]]:
        """Write a group's buckets, reading one old file at a time; the new files' `add` actions.

        Names follow from the plan, so that whoever does it again writes over what a death left behind.
        """
        schema = pl.scan_delta(snapshot.table).collect_schema()
        types = {n: t for n, t in schema.items() if n not in {"client_id", "_bucket"}}
        held, count = {b: pl.DataFrame() for b in group}, dict.fromkeys(group, 0)
        adds: list[dict[str, Any]] = []

        def write(number: int) -> None:
            rows, held[number] = held[number], pl.DataFrame()
            if rows.height:
                adds.append(self._file(rows, plan, number, count[number]))
                count[number] += 1

        for file in files:
            if not _may_hold(int(file.partition["_bucket"]), plan.before, group, plan.buckets):
                continue
            rows = aligned(scan_parquet(self.silver.path / file.path, hive_partitioning=False), types)
            mine = bucket(plan.buckets).alias("_bucket")
            rows = rows.with_columns(mine).filter(pl.col("_bucket").is_between(group.start, group.stop - 1))
            parts = rows.collect().partition_by("_bucket", as_dict=True, include_key=False)
            for (number,), part in parts.items():
                held[number] = pl.concat([held[number], part]) if held[number].height else part
                if held[number].height >= FILE_ROWS:
                    write(number)
        for number in group:
            write(number)
        return adds

    def _file(self, rows: pl.DataFrame, plan: Plan, number: int, count: int) -> dict[str, Any]:
        partition = {"client_id": self.client_id, "_bucket": str(number)}
        place = "/".join(f"{column}={value}" for column, value in partition.items())
        relative = f"{place}/part-{count:05}-{plan.mark}-c000.zstd.parquet"
        path = self.silver.path / relative
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o770)  # as `rewrite` makes them
        write_parquet(rows, path, compression="zstd", compression_level=1, statistics=False)
        _to_disk(path)  # the plan will say that it is there, and a disk must not know less
        return {
            "path": relative, "partitionValues": partition, "size": path.stat().st_size, "dataChange": False,
            "stats": json.dumps(stats_of(rows, "_sequence")), "modificationTime": int(time.time() * 1000),
        }  # fmt: skip

    def _note(self, plan: Plan) -> None:
        put(self._place, json.dumps(asdict(plan)).encode())

    @property
    def _place(self) -> Path:
        return self.root / f"{self.client_id}.json"


def _may_hold(old: int, before: int, group: range, buckets: int) -> bool:
    """Whether one of `before` buckets can hold rows of a group of `buckets`: a hash leaves the same by both."""
    common = gcd(before, buckets)
    return any(number % common == old % common for number in group)


def _is_whole(path: Path, add: dict[str, Any]) -> bool:
    try:
        return path.stat().st_size == int(add["size"])
    except FileNotFoundError:
        return False


def _to_disk(path: Path) -> None:
    if not isinstance(path, ObjectPath):
        with path.open("rb") as file:
            os.fsync(file.fileno())
