"""A re-sent file replaces the earlier delivery of its name as a whole: which deliveries count, and whom that leaves.

A delivery is active if it was applied, nobody took it back, and no later such one of its slot is there. So a new
delivery of a slot also concerns the members that only the earlier one named: they fall back to what other deliveries
say of them, or leave silver.
"""

from dataclasses import dataclass
from functools import cached_property

import polars as pl

from healthingest.fallback import fallen
from healthingest.lake.reverts import is_odd
from healthingest.lake.silver import Snapshot
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy.tokens import compact


@dataclass(frozen=True)
class Slot:
    """A delivery among those of its name, as one snapshot of silver sees them once it is applied."""

    platform: Platform
    snapshot: Snapshot
    delivery: Delivery

    @cached_property
    def _slot(self) -> dict[int, str]:
        return self.platform.lake.bronze.slot(self.delivery.client_id, self.delivery.file_name)

    @cached_property
    def _counting(self) -> dict[int, str]:
        return self.snapshot.counting_of(self._slot)

    @cached_property
    def reverts(self) -> int:
        """The number of the last word on the delivery: it may have been taken back before silver was built again."""
        return self.platform.lake.reverts.number(self.delivery.client_id, self.delivery.file_id)

    @property
    def superseded(self) -> bool:
        """Whether a later delivery of the slot counts, or this one was taken back: then nothing of it counts."""
        return is_odd(self.reverts) or max(self._counting, default=0) > self.delivery.delivery_no

    @property
    def earlier(self) -> str | None:
        """file_id of the delivery of the slot that is active until this one is applied."""
        return self._counting[max(self._counting)] if self._counting and not self.superseded else None

    @property
    def held_against(self) -> str | None:
        """file_id of the delivery that it was sent to replace: what counted of its name when it was registered.

        What was said of that one afterwards changes nothing: whether a delivery is held must not depend on when.
        """
        applied, lake, own = self.snapshot.applied_of(self._slot), self.platform.lake, self.delivery
        if max(applied, default=0) > own.delivery_no:
            return None
        gone = lake.reverts.taken_back_before(own.client_id, applied.values(), own.delivery_no)
        left = {number: file_id for number, file_id in applied.items() if file_id not in gone}
        return left[max(left)] if left else None

    def active(self, deliveries: pl.DataFrame) -> pl.Series:
        """Which deliveries (file_id, file_name) are active once this one is applied."""
        applying = [] if is_odd(self.reverts) else [self.delivery]
        return self.snapshot.active(deliveries, self.platform.lake.bronze, applying=applying)


def takes_back_too_much(platform: Platform, slot: Slot, members: pl.DataFrame) -> bool:
    """Whether a delivery (`members`: token) drops more members of the one it replaces than it brings.

    Mostly it is a truncated file. Decided by the deliveries of the slot alone, which are decided in their order: what
    other deliveries say of those members depends on which of them came already, and silver must not.
    """
    before = platform.lake.sightings.of_client(
        slot.delivery.client_id, slot.snapshot.generation, ["member_token"], pl.col("file_id") == slot.held_against
    )
    return before.select(token=compact("member_token")).join(members, on="token", how="anti").height > members.height


def left_behind(
    platform: Platform, slot: Slot, current: pl.DataFrame, absent: pl.DataFrame | None = None
) -> pl.DataFrame:
    """Members of the superseded delivery that the new one does not decide, if their row changes: as `fallen`.

    They are those that it does not name, and those for whom its record is `stale`: of records that are ordered by a
    date of their own, the superseded delivery's may have been later than all others. `current` (token) is that part
    of the new delivery that is not stale. `absent` (token): members whom full files no longer name, if the client's
    members can leave so; then all others are looked at too, since any delivery may bring some of them back.
    """
    rows = platform.lake.sightings.of_client(slot.delivery.client_id, slot.snapshot.generation)
    rows = rows.with_columns(token=compact("member_token"), hash=compact("content_hash"))
    alone = (
        rows.filter(pl.col("file_id") == slot.earlier).join(current, on="token", how="anti").select("token").unique()
    )
    if absent is not None:
        alone = rows.select("token").unique().join(current, on="token", how="anti")
    others = rows.filter(pl.col("file_id") != slot.delivery.file_id)
    return fallen(slot.snapshot, others, alone, slot.active, absent)
