"""The sightings table: delivery F contained member M with content hash H, at its place in the sequence.

Silver is recomputed from these facts, so they are written before silver and never changed by it. The sequence is
text that sorts as records rank: record's date, file's date, suffix, slot, delivery, record, repair.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import polars as pl

from healthingest.lake.delta import Table, retry
from healthingest.lake.rewrite import NEW, Rewrite
from healthingest.model import Delivery
from healthingest.records.parts import Parts
from healthingest.storage.files import scan_parquet

SCHEMA = pl.Schema(
    {
        "client_id": pl.String(),
        "file_id": pl.String(),
        "file_name": pl.String(),
        "delivery_no": pl.Int32(),
        "member_token": pl.String(),
        "content_hash": pl.String(),
        "sequence": pl.String(),
        #: Of the keys that token and hash were made with; only those in force count.
        "generation": pl.Int32(),
    }
)
#: What `put` needs of a member.
SIGHTED = ("member_token", "_content_hash", "sequence")
#: Leading characters of a sequence that order deliveries by date and suffix: two ISO dates and a digit.
_RANK = 23


def sequence(delivery: Delivery, record_date: pl.Expr, record_no: pl.Expr) -> pl.Expr:
    """The sequence of each record (String). A blank ends each part: it sorts before all characters of a file name."""
    middle = (
        f" {delivery.creation_date.isoformat()} {delivery.suffix or 0} {delivery.file_name} {delivery.delivery_no:06d} "
    )
    number = record_no.cast(pl.String).str.zfill(10)
    return pl.concat_str(record_date.dt.to_string("%Y-%m-%d"), pl.lit(middle), number, pl.lit(" 00"))


def only_active(sightings: pl.DataFrame, active: Callable[[pl.DataFrame], pl.Series]) -> pl.DataFrame:
    """Those sightings that count; `active` takes deliveries (file_id, file_name) and says of each whether it does."""
    deliveries = sightings.select("file_id", "file_name").unique()
    return sightings.join(deliveries.filter(active(deliveries)), on="file_id", how="semi")


class Sightings(Table):
    """Sightings of all clients."""

    @classmethod
    def at(cls, root: Path) -> "Sightings":
        """The table below an output folder."""
        return cls(
            root / "checkpoint" / "sightings",
            SCHEMA,
            partition_by=("client_id",),
            description="Which delivery mentioned which member, with what content. Internal.",
            configuration={"delta.dataSkippingStatsColumns": "sequence"},
        )

    def put(self, batch: Sequence[tuple[Delivery, Parts]], generation: int) -> None:
        """Store the sightings of some deliveries of one client under one generation of keys, once, in one commit.

        Their rows have member_token, _content_hash, sequence (String).
        """
        rows = {_app_id(d.file_id, generation): seen.map(partial(_rows, d, generation)) for d, seen in batch}
        rows = {app_id: seen for app_id, seen in rows.items() if seen.height}

        def attempt() -> None:
            table = self.snapshot()
            new = [app_id for app_id in rows if table.transaction_version(app_id) is None]
            partition = {"client_id": batch[0][0].client_id}
            with Rewrite(self.path, table, partition, key="member_token", bounds="sequence") as change:
                for frame in chain.from_iterable(rows[app_id] for app_id in new):
                    change.add(frame)
                if new:
                    change.commit(dict.fromkeys(new, 1), {}, blind=True)

        if rows:
            retry(attempt)

    def of_client(
        self, client_id: str, generation: int | None, columns: list[str] | None = None, where: pl.Expr | None = None
    ) -> pl.DataFrame:
        """A client's rows under the generation of keys that is in force (None: there is but one)."""
        mine = _mine(client_id, generation)
        return self.frame(columns, mine if where is None else mine & where)

    def latest_of_others(
        self, client_id: str, generation: int | None, file_ids: Collection[str], lowest: str | None,
        active: Callable[[pl.DataFrame], pl.Series],
    ) -> pl.DataFrame:  # fmt: skip
        """The latest active sighting of each member in other deliveries than these: member_token, latest.

        Whoever was seen earlier only than `lowest`, a sequence, may be left out. `active` takes deliveries (file_id,
        file_name) and says of each whether it is active.
        Files that hold only earlier sightings are not opened: on a day in order that is all of them.
        """
        files = self._files_reaching(client_id, lowest[:_RANK]) if lowest else []
        if not files:
            return pl.DataFrame(schema={"member_token": pl.String, "latest": pl.String})
        others = (
            scan_parquet(*files)
            .filter(~pl.col("file_id").is_in(list(file_ids)), _of(generation))
            .select("file_id", "file_name", "member_token", "sequence")
            .collect()
        )
        return only_active(others, active).group_by("member_token").agg(pl.col("sequence").max().alias("latest"))

    def last_seen(
        self, client_id: str, generation: int | None, active: Callable[[pl.DataFrame], pl.Series]
    ) -> pl.DataFrame:
        """The greatest record date of each member over its active sightings: member_token, last_seen (Date)."""
        day = pl.col("latest").str.slice(0, 10).str.to_date("%Y-%m-%d")
        return self.latest(client_id, generation, active).select("member_token", last_seen=day)

    def latest(
        self, client_id: str, generation: int | None, active: Callable[[pl.DataFrame], pl.Series]
    ) -> pl.DataFrame:
        """The greatest active sequence of each member: member_token, latest (String)."""
        columns = ["file_id", "file_name", "member_token", "sequence"]
        rows = only_active(self.of_client(client_id, generation, columns), active)
        return rows.group_by("member_token").agg(pl.col("sequence").max().alias("latest"))

    def _files_reaching(self, client_id: str, rank: str) -> list[Path]:
        """Data files of one client with a sighting ranked at `rank` or later."""
        if not self.exists():
            return []
        table = self.handle()
        adds = pl.DataFrame(table.get_add_actions(flatten=True)).filter(pl.col("partition.client_id") == client_id)
        if adds.is_empty():
            return []
        latest = pl.col("max.sequence").str.slice(0, _RANK)
        paths = adds.filter(latest.is_null() | (latest >= rank))["path"]
        return [self.path / path for path in paths]


def _app_id(file_id: str, generation: int) -> str:
    return f"sightings/{file_id}" if generation == 1 else f"sightings/{file_id}/{generation}"


def _of(generation: int | None) -> pl.Expr:
    return pl.lit(value=True) if generation is None else pl.col("generation") == generation


def _mine(client_id: str, generation: int | None) -> pl.Expr:
    return (pl.col("client_id") == client_id) & _of(generation)


def _rows(delivery: Delivery, generation: int, seen: pl.DataFrame) -> pl.DataFrame:
    return seen.select(
        client_id=pl.lit(delivery.client_id),
        file_id=pl.lit(delivery.file_id),
        file_name=pl.lit(delivery.file_name),
        delivery_no=pl.lit(delivery.delivery_no, pl.Int32),
        member_token=pl.col("member_token"),
        content_hash="_content_hash",
        sequence="sequence",
        generation=pl.lit(generation, pl.Int32),
        _change=pl.lit(NEW),
    )
