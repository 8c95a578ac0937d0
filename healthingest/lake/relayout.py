"""A client's rows in other buckets, or in another table: new files, remembered in a plan, and published at once.

The plan (`checkpoint/relayouts/<client>.json`) names the files that it is made from and those that are written, so that
whoever comes after a death goes on behind the last group of buckets that was finished. Commits say that no data
changed: the change feed shows nothing. That the number of buckets has changed stands in the commit itself, so that no
writer can follow a note that was not yet brought up to date.

Another table takes two commits: with the first the rows are in both, and the note (`Destinations`) says which counts.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import gcd
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
from deltalake import DeltaTable

from healthingest.contracts.clients import Layout
from healthingest.errors import AccountingError, UsageError
from healthingest.lake.delta import retry
from healthingest.lake.destinations import Destinations
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

    #: Where the rows are, and where they shall be.
    was: Layout
    shall: Layout
    #: Which relayout of the client it is, from 1.
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
        many = self.shall.buckets
        return [range(low, min(low + self.group, many)) for low in range(0, many, self.group)]

    @property
    def moves(self) -> bool:
        """Whether the rows go to another table."""
        return self.was.folder != self.shall.folder


@dataclass(frozen=True)
class Carried:
    """What a client has in a table's log besides its rows, for the log of another."""

    transactions: Mapping[str, int] = field(default_factory=dict)
    #: file_id -> what was recorded with the commit that decided it.
    decisions: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Relayout:
    """One client's relayout; whoever works with it is alone with the client, and no maintenance runs."""

    destinations: Destinations
    client_id: str

    @property
    def output(self) -> Path:
        """The output folder."""
        return self.destinations.output

    def noted(self) -> Plan | None:
        """The plan that somebody began."""
        try:
            said = json.loads(self._place.read_text())
        except FileNotFoundError:
            return None
        layouts = {name: Layout.model_validate(said[name]) for name in ("was", "shall")}
        return Plan(**said | layouts)

    def snapshot(self, layout: Layout) -> Snapshot:
        """What a table that exists says of the client."""
        return Snapshot(Silver.at(self.output, layout).handle(), self.client_id)

    def is_published(self, plan: Plan) -> bool:
        """Whether the table where the rows shall be has them: its files are no longer this module's to delete."""
        return self._number(plan.shall) >= plan.number

    def is_committed(self, plan: Plan) -> bool:
        """Whether that counts: whoever died before the note said so may have let others change what it was made of."""
        if not self.is_published(plan):
            return False
        at = self.destinations.settled(self.client_id)
        if not plan.moves or (at and at.folder == plan.shall.folder):
            return True
        return self.snapshot(plan.shall).number == self.snapshot(plan.was).number + 1

    def fits(self, plan: Plan, snapshot: Snapshot, was: Layout, shall: Layout) -> bool:
        """Whether a plan may be gone on with: it is for these layouts, and made from what silver is made of now."""
        sources = [file.path for file in self.files(snapshot)]
        return (plan.was, plan.shall, plan.sources) == (was, shall, sources) and not self.is_published(plan)

    def planned(self, snapshot: Snapshot, was: Layout, shall: Layout) -> Plan:
        """A plan from the beginning; not noted. `was.buckets` is what the snapshot says."""
        files = self.files(snapshot)
        rows = sum(file.rows or 0 for file in files)
        group = max(1, shall.buckets * GROUP_ROWS // max(rows, GROUP_ROWS))
        number = max(self._number(was), self._number(shall)) + 1
        return Plan(was, shall, number, str(uuid4()), group, [file.path for file in files], rows)

    def begun(self, snapshot: Snapshot, was: Layout, shall: Layout) -> Plan:
        """The noted plan if it fits, else a new one, noted; what the other had written goes.

        Raises:
            UsageError: the other table has a column of another type than the client's rows.
        """
        plan = self.noted()
        if plan and self.fits(plan, snapshot, was, shall):
            return replace(plan, done=list(self._whole(plan)))
        if plan:
            self.drop(plan)
        plan = self.planned(snapshot, was, shall)
        if plan.moves:
            self._widen(snapshot, shall)
        self._note(plan)
        return plan

    def commit(
        self, snapshot: Snapshot, plan: Plan, carried: Carried | None = None, on_group: OnGroup = lambda *_: None
    ) -> int:
        """Write what is not written yet, and publish all of it; the version of the table where it is then.

        `carried`: for another table.

        Raises:
            CommitFailedError: somebody else's commit concerns the client or the table's schema; plan anew.
            AccountingError: the new files have other rows than the old; nothing was published.
            UncertainError: an object store did not answer; whoever runs it again finds out.
        """
        target = Silver.at(self.output, plan.shall)
        table = target.snapshot() if plan.moves else snapshot.table
        files, groups = self.files(snapshot), plan.groups
        for number in range(len(plan.done), len(groups)):
            on_group(number, len(groups))
            plan = replace(plan, done=[*plan.done, self._written(table, plan, files, groups[number])])
            self._note(plan)
        adds = [add for group in plan.done for add in group]
        if (have := sum(json.loads(add["stats"])["numRecords"] for add in adds)) != plan.rows:
            raise AccountingError(f"{plan.rows} rows of {self.client_id} became {have}; nothing was published.")
        on_group(len(groups), len(groups))
        # In another table: what whoever died had put there, and the rows have changed since.
        gone = files_in(table, {"client_id": self.client_id})
        carried = carried or Carried()
        told = {"deliveries": carried.decisions, "layout": {"client_id": self.client_id, **plan.shall.model_dump()}}
        entry = self._entry(
            "MOVE IN" if plan.moves else "REBUCKET", [*_removes(gone), *({"add": add} for add in adds)], told,
            {**carried.transactions, f"client/{self.client_id}": snapshot.number + 1,
             f"buckets/{self.client_id}": plan.shall.buckets, f"rebucket/{self.client_id}": plan.number},
        )  # fmt: skip
        return put_entry(target.path, table, entry)

    def leave(self, plan: Plan) -> None:
        """Take the rows out of the table where they were, once the note says that they are elsewhere."""
        retry(lambda: self._take_out(plan.was, plan))

    def drop(self, plan: Plan) -> None:
        """Forget a plan; what it has written, or put into another table, and does not count, goes."""
        if self.is_published(plan):
            if not self.is_committed(plan):
                retry(lambda: self._take_out(plan.shall, plan))
        else:
            folder = Silver.at(self.output, plan.shall).path / f"client_id={self.client_id}"
            for path in list(folder.rglob(f"*-{plan.mark}-*.parquet")):
                path.unlink(missing_ok=True)
        self._place.unlink(missing_ok=True)

    def files(self, snapshot: Snapshot) -> list[DataFile]:
        """The client's data files."""
        return files_in(snapshot.table, {"client_id": self.client_id})

    def _number(self, layout: Layout) -> int:
        """Which relayout of the client a table has seen last."""
        silver = Silver.at(self.output, layout)
        if not silver.exists():
            return 0
        return int(silver.handle(without_files=True).transaction_version(f"rebucket/{self.client_id}") or 0)

    def _take_out(self, layout: Layout, plan: Plan) -> None:
        snapshot = self.snapshot(layout)
        if snapshot.has_left:
            return
        told = {"deliveries": {}, "left": {"client_id": self.client_id}}
        transactions = {f"client/{self.client_id}": snapshot.number + 1, f"left/{self.client_id}": plan.number}
        entry = self._entry("MOVE OUT", list(_removes(self.files(snapshot))), told, transactions)
        put_entry(Silver.at(self.output, layout).path, snapshot.table, entry)

    def _entry(
        self, operation: str, actions: list[dict[str, Any]], told: Mapping[str, Any], transactions: Mapping[str, int]
    ) -> Entry:
        metadata = {"healthingest": json.dumps(told, sort_keys=True)}
        return Entry(operation, {"client_id": self.client_id}, actions, transactions, metadata)

    def _widen(self, snapshot: Snapshot, shall: Layout) -> None:
        """Give the other table the columns that the client's rows have values in."""
        table = Silver.at(self.output, shall).snapshot()
        have = {one.name: one for one in table.schema().fields}
        mine = pl.scan_delta(snapshot.table).filter(pl.col("client_id") == self.client_id)
        filled = mine.select(pl.all().is_not_null().any()).collect().row(0, named=True)
        fields = [one for one in snapshot.table.schema().fields if filled[one.name]]
        for one in fields:
            if one.name in have and str(have[one.name].type) != str(one.type):
                raise UsageError(
                    f"{shall.folder} has a column {one.name} of another type than {self.client_id}'s rows."
                )
        if new := [one for one in fields if one.name not in have]:
            table.alter.add_columns(new)

    def _whole(self, plan: Plan) -> Iterator[list[dict[str, Any]]]:
        """The groups at the beginning whose files are all there: an erasure deletes what no version needs."""
        root = Silver.at(self.output, plan.shall).path
        for group in plan.done:
            if not all(_is_whole(root / add["path"], add) for add in group):
                return
            yield group

    def _written(self, table: DeltaTable, plan: Plan, files: list[DataFile], group: range) -> list[dict[str, Any]]:
        """Write a group's buckets for a table, reading one old file at a time; the new files' `add` actions.

        Names follow from the plan, so that whoever does it again writes over what a death left behind.
        """
        types = {n: t for n, t in pl.scan_delta(table).collect_schema().items() if n not in {"client_id", "_bucket"}}
        held, count = {b: pl.DataFrame() for b in group}, dict.fromkeys(group, 0)
        root, adds = Silver.at(self.output, plan.was).path, list[dict[str, Any]]()

        def write(number: int) -> None:
            rows, held[number] = held[number], pl.DataFrame()
            if rows.height:
                adds.append(self._file(rows, plan, number, count[number]))
                count[number] += 1

        for file in files:
            if not _may_hold(int(file.partition["_bucket"]), plan.was.buckets, group, plan.shall.buckets):
                continue
            rows = aligned(scan_parquet(root / file.path, hive_partitioning=False), types)
            rows = rows.with_columns(_bucket=bucket(plan.shall.buckets))
            rows = rows.filter(pl.col("_bucket").is_between(group.start, group.stop - 1))
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
        path = Silver.at(self.output, plan.shall).path / relative
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o770)  # as `rewrite` makes them
        write_parquet(rows, path, compression="zstd", compression_level=1, statistics=False)
        _to_disk(path)  # the plan will say that it is there, and a disk must not know less
        return {
            "path": relative, "partitionValues": partition, "size": path.stat().st_size, "dataChange": False,
            "stats": json.dumps(stats_of(rows, "_sequence")), "modificationTime": int(time.time() * 1000),
        }  # fmt: skip

    def _note(self, plan: Plan) -> None:
        layouts = {"was": plan.was.model_dump(mode="json"), "shall": plan.shall.model_dump(mode="json")}
        put(self._place, json.dumps(vars(plan) | layouts).encode())

    @property
    def _place(self) -> Path:
        return self.output / "checkpoint" / "relayouts" / f"{self.client_id}.json"


def _removes(files: list[DataFile]) -> Iterator[dict[str, Any]]:
    for file in files:
        yield {"remove": removed(file) | {"dataChange": False}}


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
