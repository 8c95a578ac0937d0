"""A person's word on a delivery: release or discard what is held, accept what was taken over its limits.

The decision is noted first, alone with the client, so that it has its place among the deliveries of its name; then
silver follows by the usual way of a delivery. Whoever dies in between is finished by the same command, or by whatever
brings the delivery to its end state next.
"""

from collections.abc import Mapping
from typing import Literal

import polars as pl

from healthingest.errors import UsageError
from healthingest.ingest import ingest
from healthingest.lake.audit import over_limit
from healthingest.lake.bronze import Registered
from healthingest.lake.decisions import verdict_of
from healthingest.lake.silver import APPLIED, HELD, Snapshot
from healthingest.leavers import watch
from healthingest.model import Delivery, Outcome, Verdict, Word
from healthingest.platform import Platform
from healthingest.privacy.roles import decision_reason
from healthingest.rejections import Wanted
from healthingest.revert import follow

Wish = Literal["release", "discard"]
_DONE: Mapping[Wish, tuple[Word, ...]] = {"release": ("released", "accepted"), "discard": ("discarded",)}


def close_delivery(
    platform: Platform, delivery: Delivery, wish: Wish, *, by: str, reason: str, wait: float = 600.0
) -> Outcome:
    """Release or discard a delivery; returns its outcome, which says who decided and why.

    In prod a release takes two persons: after the first one's word the delivery is held still.

    Raises:
        UsageError: it is not held (nor, for a release, over its limits), somebody decided otherwise before, or the
            reason is not one line of text.
        BusyError: others did not finish with the client within `wait` seconds.
    """
    reason = decision_reason(reason)
    with platform.lake.exclusion.alone(delivery.client_id, wait=wait):
        now = platform.current(delivery.client_id)
        verdict = now.lake.decisions.of(delivery.client_id, delivery.file_id)
        if verdict is None:
            wanted = verdict_of(_word(now, delivery, wish), by, reason)
            if not _waits_for_second(now, delivery, wanted):
                now.lake.events.append(delivery.client_id, wanted.decision, "", {
                    "who": by, "file_id": delivery.file_id, "reason": wanted.decision_reason,
                })  # fmt: skip
                verdict = now.lake.decisions.put(delivery.client_id, delivery.file_id, wanted)
    if verdict and verdict.decision not in _DONE[wish]:
        raise UsageError(f"{delivery.file_name} cannot be {_DONE[wish][0]}. {verdict.sentence}")
    if verdict and verdict.decision == "accepted" and watch(platform, platform.pinned_client(delivery)):
        with platform.lake.exclusion.shared(delivery.client_id):
            follow(platform.current(delivery.client_id), delivery.client_id)  # who is missing from it leaves now
    return ingest(platform, delivery, run_id=f"{wish} by {by}")


def _waits_for_second(platform: Platform, delivery: Delivery, wanted: Verdict) -> bool:
    """Whether a release was only asked for: in prod it takes another person than who asked for it first.

    Raises:
        UsageError: the same person asks again.
    """
    if platform.places.env != "prod" or wanted.decision != "released":
        return False
    decisions, said = platform.lake.decisions, {"who": wanted.decided_by, "file_id": delivery.file_id}
    if (asked := decisions.asked(delivery.client_id, delivery.file_id)) is None:
        told = said | {"reason": wanted.decision_reason}
        platform.lake.events.append(delivery.client_id, "release_asked", "", told)
        decisions.ask(delivery.client_id, delivery.file_id, wanted)
        return True
    if asked.decided_by == wanted.decided_by:
        raise UsageError(f"{asked.decided_by} has asked to release {delivery.file_name} already; a second person must.")
    return False


def _word(platform: Platform, delivery: Delivery, wish: Wish) -> Word:
    """What the wish comes to for a delivery in its present state."""
    lake, name = platform.lake, delivery.file_name
    silver = lake.silver_of(delivery.client_id)
    snapshot = Snapshot(silver.snapshot(), delivery.client_id) if silver.exists() else None
    state = snapshot.state(delivery.file_id) if snapshot else None
    row = lake.audit.row(delivery.file_id)
    if snapshot is None or state is None:
        status = row["status"] if row else "not decided yet"
        raise UsageError(f"{name} is {status}; only a held delivery can be {_DONE[wish][0]}. Nothing was done.")
    if row and row["status"] == "reverted":
        raise UsageError(f"{name} was reverted; undo that with healthingest revert --undo. Nothing was done.")
    if state == HELD:
        later = max(snapshot.applied_of(lake.bronze.slot(delivery.client_id, name)), default=0)
        if wish == "release" and later > delivery.delivery_no:
            raise UsageError(f"Delivery {later} of {name} is in silver and replaces this one; discard it instead.")
        return "discarded" if wish == "discard" else "released"
    if wish == "discard" or state != APPLIED:
        raise UsageError(f"{name} is in silver; it cannot be discarded. Nothing was done.")
    if row is None or not (over_limit(row) or row["file_breaches"]):
        raise UsageError(f"{name} was taken within its limits; there is nothing to release. Nothing was done.")
    return "accepted"


def find_delivery(platform: Platform, wanted: str) -> Delivery:
    """The delivery of a file id (six digits or more, if only one begins so) or the latest of a file name.

    Raises:
        UsageError: there is none, or several.
    """
    columns = ["client_id", "file_id", "file_name", "delivery_no"]
    rows = platform.lake.audit.frame(columns, Wanted([wanted]).filter())
    rows = rows.filter(pl.col("delivery_no").is_not_null()).sort("delivery_no")
    if rows["file_name"].n_unique() > 1 or rows["client_id"].n_unique() > 1:
        raise UsageError(f"{wanted!r} names {rows.height} deliveries; give more digits of the file id.")
    found: Registered | None = None
    if rows.height:
        found = platform.lake.bronze.find(rows["client_id"][-1], rows["file_id"][-1])
    if found is None:
        raise UsageError(f"There is no delivery {wanted!r}; healthingest status and quarantine list show them.")
    return found.delivery
