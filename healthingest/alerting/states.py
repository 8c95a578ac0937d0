"""What holds now or does not: late clients, the landing zone, configs, disks, the keys' age, what is left undecided."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from healthingest.ageing import ageing
from healthingest.alerting.conditions import Observation
from healthingest.alerting.scene import Found, Scene
from healthingest.alerting.store import Seen
from healthingest.contracts.clients import Client
from healthingest.contracts.duration import in_hours
from healthingest.landing.discovery import list_landing
from healthingest.landing.names import printable
from healthingest.places import Places
from healthingest.proposals import Proposal, proposals_of
from healthingest.reconcile import differences
from healthingest.storage.objects import ObjectPath

#: A delivery that nobody has decided for so long is nobody's any more.
_UNDECIDED_FOR = timedelta(minutes=30)
_SHOWN = 5
#: Attempts that must fail before a place is said to be failing.
_ATTEMPTS = 3


def of_delays(scene: Scene) -> Found:
    """Which active clients are late, by the audit table's clock and the client's calendar."""
    taken = scene.deliveries.filter(pl.col("status") == "succeeded")
    found, marks = [], {}
    by_client = {str(key[0]): part for key, part in taken.group_by("client_id", maintain_order=True)}
    for client_id in scene.clients.active:
        mark = f"client/{client_id}"
        known = scene.loaded.watermark(mark)
        if known.timestamp() <= 0:
            known = marks[mark] = scene.now
        found.append(_delay(scene, scene.clients.clients[client_id], by_client.get(client_id), known))
    return found, Seen({}, marks)


def _delay(scene: Scene, client: Client, taken: pl.DataFrame | None, known: datetime) -> Observation:
    freshness, now = client.config.freshness, scene.now
    if taken is None:
        late, missing = freshness.late(known, now), []
        since, last = known, "it has never delivered a file that was taken"
    else:
        since, name = taken["ingestion_time"][-1], taken["file_name"][-1]
        late = freshness.late(since, now)
        dates = set(taken["creation_date"].to_list())
        missing = freshness.missing_dates(dates, min(dates), now)
        last = f"its last file, {name}, was taken {in_hours(now - since)} ago"
    said = [f"{client.client_id} is late by {in_hours(late)}: {last}."] if late else []
    said += [f"No file for {', '.join(map(str, missing))}."] if missing else []
    text = " ".join(said) or f"{client.client_id} is in time: {last}."
    details = (("expected every", in_hours(freshness.expect_every)), ("grace", in_hours(freshness.grace)))
    return scene.state("data_delay", text, firing=bool(said), client_id=client.client_id, details=details)


def of_landing(scene: Scene) -> Found:
    """That nothing in the landing zone leads nowhere any more; that something does, the audit's rows say."""
    over = scene.over("unroutable", (), "No such file is left in the landing zone.")
    if not over:
        return [], Seen()
    names = set(scene.deliveries.filter(pl.col("status") == "unroutable")["file_name"])
    there = any(printable(landed.name) in names for landed in list_landing(scene.places.landing))
    return [] if there else over, Seen()


def of_configs(scene: Scene) -> Found:
    """Client configs, and alerts.yaml, that cannot be used; and alerts of clients that are no more."""
    problems = [*scene.clients.problems, *scene.doubts]
    broken = [scene.state(f"config_broken:{p.file.name}", str(p), firing=True) for p in problems]
    found = [*broken, *scene.over("config_broken", broken, "The config can be used again.")]
    known = set(scene.clients.clients)
    left = {a.client_id for a in scene.book.alerts.values() if a.open and a.client_id}
    # Whose a broken config is, its name does not say; and a folder without any is a disk that is not there.
    gone = left - known if known and not scene.clients.problems else set()
    for client_id in gone | ((left & known) - set(scene.clients.active)):
        found += [
            scene.state(a.condition, f"{client_id} is no longer an active client.", firing=False, client_id=client_id)
            for a in scene.book.alerts.values() if a.open and a.client_id == client_id
        ]  # fmt: skip
    return found, Seen()


def of_proposals(scene: Scene) -> Found:
    """Clients whose files differ from their contracts in a way that waits for a person's word."""
    waiting: dict[str, list[Proposal]] = {}
    for proposal in proposals_of(scene.places, scene.clients):
        waiting.setdefault(proposal.client_id, []).extend([proposal] if proposal.is_open else [])
    found = []
    for client_id, proposals in waiting.items():
        said = " ".join(f"{p.sentence} Approving {p.proposal_id} {p.impact}." for p in proposals[:_SHOWN])
        more = f" And {len(proposals) - _SHOWN} more." if len(proposals) > _SHOWN else ""
        text = f"{said}{more} See healthingest schema list." if proposals else "No change waits for approval."
        details = (("proposals", ", ".join(p.proposal_id for p in proposals[:_SHOWN])),) if proposals else ()
        seen = scene.state("contract_drift", text, firing=bool(proposals), client_id=client_id, details=details)
        found.append(seen)
    return [*found, *scene.over("contract_drift", found, "No change waits for approval.")], Seen()


def of_waiting(scene: Scene) -> Found:
    """Clients whose rejected records wait longer than their config allows."""
    limits = {
        client_id: limit for client_id in scene.clients.active
        if (limit := scene.clients.clients[client_id].config.quality.max_open_age) is not None
    }  # fmt: skip
    waiting, found = ageing(scene.places.output, scene.now) if limits else {}, []
    for client_id, limit in limits.items():
        mine = waiting.get(client_id)
        text = "No rejected record waits for anybody."
        if mine:
            text = f"{mine.records:,} rejected record(s) wait, the oldest for {in_hours(mine.oldest)}."
        late = mine is not None and mine.oldest > limit
        more = f" At most {in_hours(limit)} is agreed; see healthingest quarantine ageing." if late else ""
        found.append(scene.state("records_waiting", text + more, firing=late, client_id=client_id))
    return [*found, *scene.over("records_waiting", found, "No limit is agreed any more.")], Seen()


def of_schema(scene: Scene) -> Found:
    """What in a table is not as the registry says; what only lags behind, the next delivery puts right."""
    found = [
        scene.state(
            f"schema_out_of_sync:{'.'.join(filter(None, [one.table, one.subject]))}",
            f"{one.sentence} See healthingest schema reconcile.", firing=True,
        )
        for one in differences(scene.places, scene.clients) if not one.is_lag
    ]  # fmt: skip
    return [*found, *scene.over("schema_out_of_sync", found, "The table is as the registry says.")], Seen()


def of_machine(scene: Scene) -> Found:
    """Disks that are nearly full, and keys that are due."""
    found = []
    folders = {"output": scene.places.output, "landing zone": scene.places.landing}
    if home := os.environ.get("DAGSTER_HOME"):
        folders["DAGSTER_HOME"] = Path(home)
    seen: set[int] = set()
    for name, folder in folders.items():
        if isinstance(folder, ObjectPath):
            continue
        if folder.is_dir() and (device := folder.stat().st_dev) not in seen:
            seen.add(device)
            usage = shutil.disk_usage(folder)
            free = usage.free / usage.total
            text = f"{free:.1%} of the disk of {name} is free, {usage.free / 1e9:.1f} GB."
            low = free < scene.settings.limits.disk_free
            found.append(scene.state(f"disk_nearly_full:{name.replace(' ', '_')}", text, firing=low))
    moved = scene.over("disk_nearly_full", found, "It is on the disk of another folder now, which is looked at.")
    return [*found, *moved, *_of_keys(scene)], Seen()


def _of_keys(scene: Scene) -> Iterator[Observation]:
    limits = scene.settings.limits
    ages = {c: scene.now - made for c in scene.clients.active if (made := _keys_made(scene.places, c)) is not None}
    if not ages:
        return
    due = sorted(c for c, age in ages.items() if age > limits.keys_older_than - limits.keys_warn_before)
    oldest = max(ages.values()).days
    said = f"Keys of {len(due)} client(s) are up to {oldest} days old; rotate them: healthingest keys rotate."
    fine = f"The oldest keys are {oldest} days old."
    details = (("clients", ", ".join(due[:20])), ("rotate after", f"{limits.keys_older_than.days} days"))
    yield scene.state("keys_expiring", said if due else fine, firing=bool(due), details=details if due else ())


def _keys_made(places: Places, client_id: str) -> datetime | None:
    """When a client's keys were made or last rotated, as far as anybody without them can tell."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        events = places.output / "checkpoint" / "events" / f"{client_id}.jsonl"
        rotated = [e["at"] for e in map(json.loads, events.read_text().splitlines()) if e["kind"] == "keys rotated"]
        if rotated:
            return datetime.fromisoformat(rotated[-1]).astimezone(UTC)
    with contextlib.suppress(OSError, ValueError, KeyError):
        return datetime.fromisoformat(json.loads(places.keyring.read_text())["created_at"]).astimezone(UTC)
    return None


def of_undecided(scene: Scene) -> Found:
    """Deliveries that were registered a while ago and came to no end."""
    root, found = scene.places.output / "bronze", []
    decided = set(scene.deliveries["file_id"])
    before = (scene.now - _UNDECIDED_FOR).timestamp()
    for client_id in scene.clients.active:
        folder = root / client_id
        left = [p for p in folder.glob("*.json") if p.stem not in decided] if folder.is_dir() else []
        old = [path.stem for path in left if path.stat().st_mtime < before]
        said = f"{len(old)} registered deliveries came to no end; run healthingest ingest --all."
        text = said if old else "All registered deliveries are decided."
        details = (("file ids", ", ".join(old[:_SHOWN])),) if old else ()
        found.append(scene.state("undecided", text, firing=bool(old), client_id=client_id, details=details))
    return found, Seen()


def of_places(scene: Scene) -> Found:
    """Places that messages do not get through to."""
    notices = [
        notice
        for alert in scene.book.alerts.values() if not alert.condition.startswith("place_failing:")
        for notice in alert.notices if notice.place in scene.known_places
    ]  # fmt: skip
    taken = {n.place: n.sent_at for n in sorted(notices, key=lambda n: n.sent_at or n.made_at) if n.sent_at}
    failing: dict[str, str] = {}
    for notice in notices:
        since = taken.get(notice.place)
        waits = notice.state == "waiting" and notice.attempts >= _ATTEMPTS
        lost = notice.state == "given_up" and (since is None or notice.due_at > since)
        recent = scene.now - notice.due_at < scene.settings.timing.remind_every
        partly = notice.sent_at is not None and notice.sent_at == since and notice.problem is not None
        if waits or ((lost or partly) and recent):
            failing[f"place_failing:{notice.place}"] = notice.problem or ""
    found = [
        scene.state(name, f"Messages do not get through to it. {said}".strip(), firing=True)
        for name, said in failing.items()
    ]
    return [*found, *scene.over("place_failing", found, "Messages get through to it again.")], Seen()
