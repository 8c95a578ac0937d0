"""Silver: the current state of every member, narrow and without ciphertext, with Change Data Feed.

Every commit carries `client/<client_id>` with the next number, so that two writers of one client cannot both commit,
and `file/<file_id>`, the state of the delivery. A commit must use the snapshot its rows were compared with.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
from deltalake import DeltaTable, Field, write_deltalake

from healthingest.contracts.clients import Layout
from healthingest.contracts.contract import Contract
from healthingest.errors import PermanentError
from healthingest.lake.bronze import Bronze
from healthingest.lake.buckets import Buckets
from healthingest.lake.delta import ZSTD, Table, commit, delta_schema, open_table, retry
from healthingest.lake.reverts import is_odd
from healthingest.lake.rewrite import Changes, Rewrite, files_in
from healthingest.model import Delivery
from healthingest.privacy.tokens import compact

HELD, APPLIED, DISCARDED = 1, 2, 3
_DEFAULT = Layout()
_NOTHING: Mapping[str, int] = MappingProxyType({})
BASE = pl.Schema(
    {
        "client_id": pl.String(),
        "member_token": pl.String(),
        "creation_date": pl.Date(),
        "_sequence": pl.String(),
        "_content_hash": pl.String(),
        "_file_id": pl.String(),
        "_record_no": pl.Int64(),
        "_contract": pl.String(),
        "_ingested_at": pl.Datetime("us", "UTC"),
        "_bucket": pl.Int32(),
    }
)
COMMENTS = {
    "client_id": "the client that sent the member (free)",
    "member_token": "keyed pseudonym of the member id, per client (identifier)",
    "creation_date": "date of the record that last changed the member (quasi-identifier)",
    "_sequence": "place of that record in the total order of records (identifier)",
    "_content_hash": "keyed hash of what the record says (identifier)",
    "_file_id": "delivery that last changed the member; with member_token it finds the vault's row (identifier)",
    "_record_no": "number of that record in its file (identifier)",
    "_contract": "contract that the record met (free)",
    "_ingested_at": "when the change was committed, UTC (quasi-identifier)",
    "_bucket": "hash bucket of the client; 0 unless it has more than one (free)",
}


def readable_columns(contract: Contract) -> dict[str, pl.DataType]:
    """Silver's columns that a contract adds to BASE: kept and derived ones."""
    kept: dict[str, pl.DataType] = {name: pl.String() for name in contract.kept}
    return kept | {name: pl.Int32() if how == "year" else pl.String() for name, (_, how) in contract.derived.items()}


def comments(contract: Contract) -> dict[str, str]:
    """What each of silver's columns holds, with its class."""
    return COMMENTS | {name: f"{text} ({kind})" for name, (text, kind) in contract.comments.items()}


def bucket(buckets: int) -> pl.Expr:
    """Which of so many buckets a member is in (Int32): its token is a keyed hash, so that its first bytes say it."""
    return (pl.col("member_token").str.slice(0, 8).str.to_integer(base=16) % buckets).cast(pl.Int32)


@dataclass(frozen=True)
class Snapshot:
    """Silver at one version, as one client's writer sees it; rows, number and states come from this handle alone."""

    table: DeltaTable
    client_id: str

    @property
    def number(self) -> int:
        """The client's commit number; 0 before the first."""
        return int(self.table.transaction_version(f"client/{self.client_id}") or 0)

    @property
    def generation(self) -> int | None:
        """The generation of keys that the client's tokens are made with; None if they were never rotated."""
        found = self.table.transaction_version(f"tokens/{self.client_id}")
        return int(found) if found is not None else None

    @property
    def buckets(self) -> int | None:
        """Over how many buckets the client's rows are spread, if they ever were spread anew; else its note says it."""
        found = self.table.transaction_version(f"buckets/{self.client_id}")
        return int(found) if found is not None else None

    @property
    def has_left(self) -> bool:
        """Whether the client's rows were moved from here to another table, and have not come back."""
        left, came = (self.table.transaction_version(f"{kind}/{self.client_id}") for kind in ("left", "rebucket"))
        return left is not None and left >= (came or 0)

    def state(self, file_id: str) -> int | None:
        """HELD, APPLIED, DISCARDED, or None if the delivery is undecided."""
        state = self.table.transaction_version(f"file/{file_id}")
        return int(state) if state is not None else None

    def hashes(self, of: pl.DataFrame | None = None) -> pl.DataFrame:
        """Token and hash (`compact`, Int128) of the client's members: of those in `of` (token) at least, or of all."""
        mine = pl.scan_delta(self.table).filter(pl.col("client_id") == self.client_id)
        found = mine.select(token=compact("member_token"), hash=compact("_content_hash"))
        if of is not None and self.rows > 2 * of.height:  # else whoever asks joins as fast himself
            found = found.join(of.lazy().select("token"), on="token", how="semi")
        return found.collect()

    @property
    def rows(self) -> int:
        """How many members the client has."""
        return sum(file.rows or 0 for file in files_in(self.table, {"client_id": self.client_id}))

    def applied_of(self, slot: Mapping[int, str]) -> dict[int, str]:
        """Those deliveries of a slot (number -> file_id) that are applied."""
        return {number: file_id for number, file_id in slot.items() if self.state(file_id) == APPLIED}

    def reverts(self, file_id: str) -> int:
        """How often a delivery was taken back and given again; an odd number: it is taken back."""
        return int(self.table.transaction_version(f"revert/{file_id}") or 0)

    def counting_of(self, slot: Mapping[int, str], toggled: Mapping[str, int] = _NOTHING) -> dict[int, str]:
        """Those deliveries of a slot that are applied and not taken back; the greatest number of them is active.

        `toggled`: file_id -> number of the revert that is about to be committed.
        """
        applied = self.applied_of(slot)
        return {n: f for n, f in applied.items() if not is_odd(toggled.get(f, self.reverts(f)))}

    def active(
        self, deliveries: pl.DataFrame, bronze: Bronze, *, applying: Iterable[Delivery] = (),
        toggled: Mapping[str, int] = _NOTHING,
    ) -> pl.Series:  # fmt: skip
        """Which deliveries (file_id, file_name) are active: applied, not taken back, the latest such of their slot.

        Bronze says what a slot holds: a later delivery may have no sighting at all. Those of `applying` count as
        applied, and `toggled` as in `counting_of`: what is about to be committed.
        """
        latest: dict[str, str] = {}
        new = {d.file_name: d for d in applying}
        for name in deliveries["file_name"].unique():
            counting = self.counting_of(bronze.slot(self.client_id, name), toggled)
            if name in new:
                counting[new[name].delivery_no] = new[name].file_id
            if counting:
                latest[name] = counting[max(counting)]
        pairs = zip(deliveries["file_name"], deliveries["file_id"], strict=True)
        return pl.Series([latest.get(name) == file_id for name, file_id in pairs], dtype=pl.Boolean)


@dataclass(frozen=True)
class Silver(Table):
    """A serving table: that of all clients, or of those that have one of their own."""

    #: Over how many buckets a client's rows are spread, unless the log says otherwise (`Snapshot.buckets`).
    buckets: int = 1

    @classmethod
    def at(cls, root: Path, layout: Layout = _DEFAULT) -> "Silver":
        """The table below an output folder that a client's rows go to."""
        return cls(
            root / layout.folder,
            BASE,
            partition_by=("client_id", "creation_date" if layout.dated else "_bucket"),
            description="The current state of every member; values that name a person are in the vault.",
            comments=COMMENTS,
            configuration={
                "delta.enableChangeDataFeed": "true",
                "delta.dataSkippingStatsColumns": "_sequence",
            },
            buckets=layout.buckets,
        )

    @staticmethod
    def partitions_of(path: Path) -> list[str]:
        """The partition columns of a table that lies on disk."""
        return list(open_table(path).metadata().partition_columns)

    def for_client(self, client_id: str, contract: Contract) -> Snapshot:
        """A fresh snapshot for one client, with the contract's readable columns in the table.

        Raises:
            PermanentError: the table has other partitions, or a column of another type.
        """
        return Snapshot(retry(lambda: self._with_columns(contract)), client_id)

    def change(self, snapshot: Snapshot) -> Rewrite | Buckets:
        """Gather changes to a client's rows: frames with silver's columns and `_change` (NEW, CHANGED or GONE)."""
        partition, spread = self._scope(snapshot)
        if "_bucket" in spread:
            return Buckets(self.path, snapshot.table, partition, spread["_bucket"])
        return Rewrite(self.path, snapshot.table, partition, key="member_token", bounds="_sequence", spread=spread)

    def buckets_of(self, snapshot: Snapshot) -> int:
        """Over how many buckets a client's rows are spread at that version."""
        return snapshot.buckets or self.buckets

    def _scope(self, snapshot: Snapshot) -> tuple[dict[str, str], dict[str, pl.Expr]]:
        """The client's partition, and what its rows spread by below it."""
        client = {"client_id": snapshot.client_id}
        if self.partition_by[-1] == "creation_date":
            return client, {"creation_date": pl.col("creation_date")}
        buckets = self.buckets_of(snapshot)
        return (client, {"_bucket": bucket(buckets)}) if buckets > 1 else (client | {"_bucket": "0"}, {})

    def commit(
        self, snapshot: Snapshot, decided: Mapping[str, Mapping[str, Any]], changed: Changes | pl.DataFrame,
        toggled: Mapping[str, int] = _NOTHING,
    ) -> int:  # fmt: skip
        """Commit what some deliveries change, and the state of each, against `snapshot`; returns the new version.

        `decided`: file_id -> what the log shall say of the delivery, its `state` among it; `toggled`: file_id ->
        number of its latest revert.
        `changed` was begun by `change`, or is a frame as that takes them; with no rows the states are still recorded.

        Raises:
            CommitFailedError: another writer of the client was faster; compare again with a fresh snapshot.
        """
        if isinstance(changed, pl.DataFrame):
            rows, changed = changed, self.change(snapshot)
            changed.add(rows)
        states = {f"file/{file_id}": said["state"] for file_id, said in decided.items()}
        states |= {f"revert/{file_id}": number for file_id, number in toggled.items()}
        told = {"deliveries": decided} | ({"reverts": dict(toggled)} if toggled else {})
        metadata = {"healthingest": json.dumps(told, sort_keys=True)}
        return changed.commit({f"client/{snapshot.client_id}": snapshot.number + 1, **states}, metadata)

    def put_generation(self, snapshot: Snapshot, generation: int, rows: pl.DataFrame | None = None) -> int:
        """Commit which generation of keys a client's tokens are of, with all its rows under it; the new version.

        Without rows it is that of the rows that are there. Whoever reads the change feed is told by the commit's
        `healthingest` metadata (`tokens`): rows go and come with other tokens, and nobody has changed.

        Raises:
            CommitFailedError: another writer of the client was faster.
        """
        client_id = snapshot.client_id
        told = {"deliveries": {}, "tokens": {"client_id": client_id, "generation": generation}}
        properties = commit(
            {f"client/{client_id}": snapshot.number + 1, f"tokens/{client_id}": generation},
            {"healthingest": json.dumps(told, sort_keys=True)},
        )
        empty = pl.scan_delta(snapshot.table).head(0).collect()
        scope, spread = self._scope(snapshot)
        mode, partition = ("append" if rows is None else "overwrite"), f"client_id = '{client_id}'"
        partition += " AND _bucket = 0" if "_bucket" in scope else ""
        written = empty if rows is None else rows.with_columns(**spread)
        write_deltalake(  # type: ignore[call-overload]  # its stubs lack predicate for append; the library has it
            snapshot.table, written, mode=mode, predicate=partition, writer_properties=ZSTD,
            commit_properties=properties,
        )  # fmt: skip
        return int(snapshot.table.version())

    def decision(self, file_id: str) -> dict[str, Any] | None:
        """What the commit that decided a delivery recorded, with its `version`; None if no commit did."""
        if not self.exists():
            return None
        for entry in self.handle().history():
            recorded: dict[str, Any] = json.loads(entry.get("healthingest") or "{}").get("deliveries", {})
            if file_id in recorded:
                return dict(recorded[file_id]) | {"version": entry["version"]}
        return None

    def _with_columns(self, contract: Contract) -> DeltaTable:
        table = self.snapshot()
        readable, have = readable_columns(contract), pl.Schema(pl.scan_delta(table).collect_schema())
        if tuple(table.metadata().partition_columns) != self.partition_by:
            raise PermanentError(
                f"{self.path.name} is not partitioned by {', '.join(self.partition_by)}; name another."
            )
        if other := [n for n, t in readable.items() if have.get(n, t) != t]:
            raise PermanentError(f"{self.path.name} has a column {other[0]} of another type; call it otherwise.")
        wanted = {n: t for n, t in readable.items() if n not in have}
        if not wanted:
            return table
        fields: list[Field] = list(delta_schema(pl.Schema(wanted), comments(contract)).fields)
        table.alter.add_columns(fields)
        return self.snapshot()
