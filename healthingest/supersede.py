"""A re-sent file replaces the earlier delivery of its name as a whole: which deliveries count, and whom that leaves.

Silver's row of a member is the active sighting with the greatest sequence. A delivery is active if it was applied and
no later one of its slot was. So a new delivery of a slot also concerns the members that only the earlier one named:
they fall back to what other deliveries say of them, or leave silver.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.errors import PermanentError
from healthingest.lake.bronze import Bronze
from healthingest.lake.rewrite import CHANGED, GONE
from healthingest.lake.sightings import only_active
from healthingest.lake.silver import Snapshot, readable_columns
from healthingest.members import read_again
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy.tokens import compact
from healthingest.records.damage import RECORD_NO


@dataclass(frozen=True)
class Slot:
    """A delivery among those of its name, as one snapshot of silver sees them once it is applied."""

    snapshot: Snapshot
    bronze: Bronze
    delivery: Delivery

    @cached_property
    def _applied(self) -> dict[int, str]:
        return self.snapshot.applied_of(self.bronze.slot(self.delivery.client_id, self.delivery.file_name))

    @property
    def superseded(self) -> bool:
        """Whether a later delivery of the slot is applied: then nothing of this one counts."""
        return max(self._applied, default=0) > self.delivery.delivery_no

    @property
    def earlier(self) -> str | None:
        """file_id of the delivery of the slot that is active until this one is applied."""
        return self._applied[max(self._applied)] if self._applied and not self.superseded else None

    def active(self, deliveries: pl.DataFrame) -> pl.Series:
        """Which deliveries (file_id, file_name) are active once this one is applied."""
        return self.snapshot.active(deliveries, self.bronze, applying=[self.delivery])


def takes_back_too_much(platform: Platform, slot: Slot, members: pl.DataFrame) -> bool:
    """Whether a delivery (`members`: token) drops more members of the one it replaces than it brings.

    Mostly it is a truncated file. Decided by the deliveries of the slot alone, which are decided in their order: what
    other deliveries say of those members depends on which of them came already, and silver must not.
    """
    before = platform.lake.sightings.of_client(
        slot.delivery.client_id, slot.snapshot.generation, ["member_token"], pl.col("file_id") == slot.earlier
    )
    return before.select(token=compact("member_token")).join(members, on="token", how="anti").height > members.height


def left_behind(platform: Platform, slot: Slot, columns: pl.Schema, current: pl.DataFrame) -> pl.DataFrame:
    """Members of the superseded delivery that the new one does not decide, if their row changes.

    They are those that it does not name, and those for whom its record is `stale`: of records that are ordered by a
    date of their own, the superseded delivery's may have been later than all others. `current` (token) is that part
    of the new delivery that is not stale. Given in `columns`, those of `Members`, with `_change`: `gone` where no
    other delivery names a member, `changed` with the row that the best of the others gives.
    """
    client_id, token = slot.delivery.client_id, compact("member_token")
    rows = platform.lake.sightings.of_client(client_id, slot.snapshot.generation).with_columns(token=token)
    alone = (
        rows.filter(pl.col("file_id") == slot.earlier).join(current, on="token", how="anti").select("token").unique()
    )
    best = _best(rows.join(alone, on="token", how="semi"), slot).with_columns(hash=compact("content_hash"))
    known = slot.snapshot.hashes(alone).rename({"hash": "__hash"}).join(alone, on="token", how="semi")
    lost = known.join(best, on="token", how="anti").select("token")
    gone = rows.join(lost, on="token", how="semi").unique("token").select("member_token", _change=pl.lit(GONE))
    fallen = best.join(known, on="token").filter(pl.col("hash") != pl.col("__hash"))
    given = [_rows_of(platform, client_id, part) for part in fallen.partition_by("file_id")]
    empty = pl.DataFrame(schema=columns | {"_change": pl.String()})
    return pl.concat([empty, gone, *given], how="diagonal_relaxed")


def _best(sightings: pl.DataFrame, slot: Slot) -> pl.DataFrame:
    """Each member's active sighting with the greatest sequence."""
    others = sightings.filter(pl.col("file_id") != slot.delivery.file_id)
    return only_active(others, slot.active).sort("sequence").unique("member_token", keep="last")


def _rows_of(platform: Platform, client_id: str, wanted: pl.DataFrame) -> pl.DataFrame:
    """What one delivery says of the wanted members; their values are read from bronze."""
    file_id = str(wanted["file_id"][0])
    registered = platform.lake.bronze.find(client_id, file_id)
    if registered is None:
        raise PermanentError(f"Delivery {file_id} is not in bronze, but members fall back to it; restore bronze.")
    named = read_again(platform, registered.delivery).parts
    found = (some.join(wanted, on="member_token", how="semi") for some in named)
    rows = pl.concat([pl.DataFrame(schema=named.schema), *found])
    if rows.height != wanted.height:
        raise PermanentError(f"Delivery {file_id} in bronze no longer gives what was sighted of it; restore bronze.")
    return rows.with_columns(_change=pl.lit(CHANGED))


def silver_rows(changed: pl.DataFrame, client: Client) -> pl.DataFrame:
    """Silver's rows, with `_change`, of members as `Members` has them."""
    return changed.select(
        "_change",
        "member_token",
        *readable_columns(client.contract),
        "creation_date",
        "_content_hash",
        "_file_id",
        "_contract",
        client_id=pl.lit(client.client_id),
        _sequence=pl.col("sequence"),
        _record_no=pl.col(RECORD_NO),
        _ingested_at=pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC")),
        _bucket=pl.lit(0, pl.Int32),  # where a client has more, `Silver.change` says which
    )
