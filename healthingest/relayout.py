"""Spreading a client's rows of silver over other buckets, or moving them to another table; whoever dies is run again.

The client's files wait meanwhile. What is wanted stands in its YAML, what is in its note (`Destinations`): the note
follows the commit. Of buckets the commit alone decides, so that a death between the two hurts nobody; of a table the
note does, and until the rows have left the table where they were, whoever reads the tables by himself sees them twice.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import polars as pl

from healthingest.contracts.clients import Layout
from healthingest.errors import UsageError
from healthingest.lake.delta import retry
from healthingest.lake.relayout import Carried, OnGroup, Plan, Relayout
from healthingest.lake.silver import Silver, Snapshot
from healthingest.platform import Platform
from healthingest.privacy.roles import actor

OnWait = Callable[[], None]
Goal = Callable[[Platform, Layout], Layout]
REBUCKETED, MOVED = "silver rebucketed", "silver moved"


@dataclass(frozen=True)
class Relaid:
    """What a relayout would do, or has done."""

    client_id: str
    was: Layout
    #: The same as `was`: there is nothing to do.
    shall: Layout
    rows: int
    #: Data files of the client now, and their bytes: about what is written.
    files: int
    file_bytes: int
    #: Groups of buckets that are written one after the other, and how many of them an earlier run has left.
    groups: int
    groups_done: int
    #: Version of the table where the rows are; None: nothing was committed.
    version: int | None = None


def buckets(client_id: str, number: int | None = None) -> Goal:
    """The client's rows in so many buckets; None: as many as its YAML wants."""

    def goal(platform: Platform, was: Layout) -> Layout:
        wished = platform.lake.destinations.wished.get(client_id)
        if number is None and wished is None:
            raise UsageError(f"There is no YAML of {client_id} that says how many buckets; add --buckets.")
        many = number or (wished.buckets if wished else 1)
        return Layout.model_validate(was.model_dump() | {"buckets": many})

    return goal


def table(client_id: str, name: str | None = None) -> Goal:
    """The client's rows in the table `silver_<name>`; None: where its YAML and HEALTHINGEST_SILVER_SHARDS want it."""

    def goal(platform: Platform, was: Layout) -> Layout:
        shall = Layout(table=name) if name else platform.lake.destinations.dealt(client_id)
        if shall.dated or (name and not shall.own):
            raise UsageError(
                "Rows can be moved to a table with a name of its own, or to that of all; not to one by date."
            )
        at = Silver.at(platform.places.output, shall)
        if at.exists() and Silver.partitions_of(at.path) != list(at.partition_by):
            raise UsageError(f"{shall.folder} is partitioned by date; rows cannot be moved there.")
        return was.model_copy(update={"table": shall.table})

    return goal


def plan_relayout(platform: Platform, client_id: str, goal: Goal) -> Relaid:
    """What `relayout` would do; changes nothing.

    Raises:
        UsageError: the client has no rows yet, or a table of dates; or nobody says what shall be.
    """
    was = _settled(platform, client_id)
    work = Relayout(platform.lake.destinations, client_id)
    return _looked_at(work, work.snapshot(was), was, goal(platform, was))


def relayout(
    platform: Platform, client_id: str, goal: Goal, *, wait: float = 600.0, on_wait: OnWait | None = None,
    on_group: OnGroup = lambda *_: None,
) -> Relaid:  # fmt: skip
    """Bring a client's rows to where and how they shall be, or finish doing so.

    `on_group` is told how many groups of buckets are written, and of how many.

    Raises:
        UsageError: as `plan_relayout`; or the other table has a column of another type.
        BusyError: others did not finish with the client within `wait` seconds, or a maintenance runs.
        ContentionError: others kept changing the table's columns.
    """
    exclusion = platform.lake.exclusion
    with exclusion.maintenance(), exclusion.alone(client_id, wait=wait, on_wait=on_wait):
        now = platform.current(client_id)
        work = Relayout(now.lake.destinations, client_id)
        _finish(now, work)  # what somebody had committed who died then
        was = _settled(now, client_id)
        shall = goal(now, was)
        done = retry(lambda: _attempt(now, work, was, shall, on_group))
        _finish(now, work)
    return done


def _settled(platform: Platform, client_id: str) -> Layout:
    """Where and how the client's rows are, as its note says."""
    layout = platform.lake.destinations.settled(client_id)
    if layout is None or not Silver.at(platform.places.output, layout).exists():
        raise UsageError(
            f"{client_id} has no rows in silver yet; write under silver in its YAML what shall be, and its first "
            "delivery makes it so."
        )
    if layout.dated:
        raise UsageError(f"The rows of {client_id} are in {layout.folder}, which is partitioned by date; they stay so.")
    return layout


def _looked_at(work: Relayout, snapshot: Snapshot, was: Layout, shall: Layout) -> Relaid:
    was = was.model_copy(update={"buckets": snapshot.buckets or was.buckets})
    shall = shall if shall.folder == was.folder else shall.model_copy(update={"buckets": was.buckets})
    files, noted = work.files(snapshot), work.noted()
    goes_on = noted is not None and work.fits(noted, snapshot, was, shall)
    plan = noted if noted and goes_on else work.planned(snapshot, was, shall)
    size = sum(file.size for file in files)
    return Relaid(work.client_id, was, shall, snapshot.rows, len(files), size, len(plan.groups), len(plan.done))


def _attempt(platform: Platform, work: Relayout, was: Layout, shall: Layout, on_group: OnGroup) -> Relaid:
    snapshot = Snapshot(Silver.at(work.output, was).snapshot(), work.client_id)
    found = _looked_at(work, snapshot, was, shall)
    if found.was == found.shall:
        if plan := work.noted():  # of somebody who wanted something else
            work.drop(plan)
        return found
    plan = work.begun(snapshot, found.was, found.shall)
    carried = _carried(platform, snapshot) if plan.moves else None
    return replace(found, version=work.commit(snapshot, plan, carried, on_group))


def _carried(platform: Platform, snapshot: Snapshot) -> Carried:
    """What the log says of the client's deliveries, reverts and keys."""
    lake, client_id = platform.lake, snapshot.client_id
    ids = {registered.delivery.file_id for registered in lake.bronze.of_client(client_id)}
    ids |= set(lake.audit.frame(["file_id"], pl.col("client_id") == client_id)["file_id"])
    names = [f"tokens/{client_id}", *(f"{kind}/{file_id}" for file_id in sorted(ids) for kind in ("file", "revert"))]
    found = {name: snapshot.table.transaction_version(name) for name in names}
    decisions: dict[str, object] = {}
    for entry in snapshot.table.history():  # the latest first
        said = json.loads(entry.get("healthingest") or "{}").get("deliveries", {})
        decisions = {file_id: told for file_id, told in said.items() if file_id in ids} | decisions
    return Carried({name: int(number) for name, number in found.items() if number is not None}, decisions)


def _finish(platform: Platform, work: Relayout) -> None:
    """Note what silver has, tell it once, and forget the plan: last, since whoever dies before comes here again."""
    plan, lake = work.noted(), platform.lake
    if plan is None or not work.is_committed(plan):
        return
    lake.destinations.resettle(work.client_id, plan.shall)
    if plan.moves:
        work.leave(plan)
    _tell(platform, work.client_id, plan)
    work.drop(plan)


def _tell(platform: Platform, client_id: str, plan: Plan) -> None:
    kind, events = MOVED if plan.moves else REBUCKETED, platform.lake.events
    if plan.number in _told(events.read(client_id)):
        return
    told = {"from": plan.was.folder, "to": plan.shall.folder} if plan.moves else {
        "table": plan.was.folder, "from": plan.was.buckets, "to": plan.shall.buckets,
    }  # fmt: skip
    events.append(client_id, kind, "", {"who": actor(), "number": plan.number, **told})


def _told(events: Iterable[dict[str, object]]) -> list[object]:
    return [event["number"] for event in events if event["kind"] in {REBUCKETED, MOVED}]
