"""Spreading a client's rows of silver over another number of buckets, in one commit, whoever dies and is run again.

The client's files wait meanwhile. What is wanted stands in its YAML, what is in its note (`Destinations`): the note
follows the commit, and the commit alone decides, so that a death between the two hurts nobody.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from healthingest.contracts.clients import Layout
from healthingest.errors import UsageError
from healthingest.lake.delta import retry
from healthingest.lake.lake import Lake
from healthingest.lake.relayout import OnGroup, Relayout
from healthingest.lake.silver import Silver, Snapshot
from healthingest.platform import Platform
from healthingest.privacy.roles import actor

OnWait = Callable[[], None]
EVENT = "silver rebucketed"


@dataclass(frozen=True)
class Rebucketing:
    """What a re-bucketing would do, or has done."""

    client_id: str
    table: str
    #: Buckets before and afterwards; the same: there is nothing to do.
    before: int
    buckets: int
    rows: int
    #: Data files of the client now, and their bytes: about what is written.
    files: int
    file_bytes: int
    #: Groups of buckets that are written one after the other, and how many of them an earlier run has left.
    groups: int
    groups_done: int
    #: Silver's version with it; None: nothing was committed.
    version: int | None = None


def plan_rebucket(platform: Platform, client_id: str, buckets: int | None = None) -> Rebucketing:
    """What `rebucket` would do; changes nothing.

    Raises:
        UsageError: the client has no rows yet, or a table of dates; or neither it nor its YAML says how many buckets.
    """
    layout, buckets = _asked(platform, client_id, buckets)
    silver = Silver.at(platform.places.output, layout)
    snapshot = Snapshot(silver.handle(), client_id)
    return _looked_at(silver, snapshot, _relayout(platform.lake, silver, client_id), buckets)


def rebucket(
    platform: Platform, client_id: str, buckets: int | None = None, *, wait: float = 600.0,
    on_wait: OnWait | None = None, on_group: OnGroup = lambda *_: None,
) -> Rebucketing:  # fmt: skip
    """Spread a client's rows over so many buckets (None: as many as its YAML wants), or finish doing so.

    `on_group` is told how many groups of buckets are written, and of how many.

    Raises:
        UsageError: as `plan_rebucket`.
        BusyError: others did not finish with the client within `wait` seconds, or a maintenance runs.
        ContentionError: others kept changing the table's columns.
    """
    exclusion = platform.lake.exclusion
    with exclusion.maintenance(), exclusion.alone(client_id, wait=wait, on_wait=on_wait):
        now = platform.current(client_id)
        layout, buckets = _asked(now, client_id, buckets)
        silver = Silver.at(now.places.output, layout)
        relayout = _relayout(now.lake, silver, client_id)
        _finish(now.lake, layout, relayout)  # what somebody had committed who died then
        done = retry(lambda: _attempt(silver, relayout, client_id, buckets, on_group))
        _finish(now.lake, layout, relayout)
    return done


def _asked(platform: Platform, client_id: str, buckets: int | None) -> tuple[Layout, int]:
    """Where the client's rows are, and how many buckets they shall be in."""
    layout, destinations = platform.lake.destinations.settled(client_id), platform.lake.destinations
    if layout is None or not Silver.at(platform.places.output, layout).exists():
        raise UsageError(
            f"{client_id} has no rows in silver yet; write silver: {{buckets: N}} into its YAML, and its first "
            "delivery makes them so."
        )
    if layout.dated:
        raise UsageError(
            f"{client_id} is in {layout.folder}, which is partitioned by creation_date and has no buckets."
        )
    if buckets is None:
        if client_id not in destinations.wished:
            raise UsageError(f"There is no YAML of {client_id} that says how many buckets; add --buckets.")
        buckets = destinations.wished[client_id].buckets
    return layout, buckets


def _relayout(lake: Lake, silver: Silver, client_id: str) -> Relayout:
    return Relayout(silver, client_id, lake.destinations.output / "checkpoint" / "rebuckets")


def _looked_at(silver: Silver, snapshot: Snapshot, relayout: Relayout, buckets: int) -> Rebucketing:
    files, before = relayout.files(snapshot), silver.buckets_of(snapshot)
    noted = relayout.noted()
    goes_on = noted is not None and relayout.fits(noted, snapshot, buckets)
    plan = noted if noted and goes_on else relayout.planned(snapshot, buckets)
    return Rebucketing(
        snapshot.client_id, silver.path.name, before, buckets, snapshot.rows, len(files),
        sum(file.size for file in files), len(plan.groups), len(plan.done),
    )  # fmt: skip


def _attempt(silver: Silver, relayout: Relayout, client_id: str, buckets: int, on_group: OnGroup) -> Rebucketing:
    snapshot = Snapshot(silver.snapshot(), client_id)
    found = _looked_at(silver, snapshot, relayout, buckets)
    if found.before == buckets:
        if plan := relayout.noted():  # of somebody who wanted another number
            relayout.drop(plan, snapshot)
        return found
    plan = relayout.begun(snapshot, buckets)
    return replace(found, version=relayout.commit(snapshot, plan, on_group))


def _finish(lake: Lake, layout: Layout, relayout: Relayout) -> None:
    """Note what silver has, tell it once, and forget the plan: last, since whoever dies before comes here again."""
    plan, client_id = relayout.noted(), relayout.client_id
    if plan is None:
        return
    snapshot = Snapshot(relayout.silver.handle(), client_id)
    if relayout.is_committed(plan, snapshot):
        lake.destinations.resettle(client_id, layout.model_copy(update={"buckets": plan.buckets}))
        told = {"table": plan.table, "from": plan.before, "to": plan.buckets, "number": plan.number}
        known = [event["number"] for event in lake.events.read(client_id) if event["kind"] == EVENT]
        if plan.number not in known:
            lake.events.append(client_id, EVENT, "", {"who": actor(), **told})
        relayout.drop(plan, snapshot)
