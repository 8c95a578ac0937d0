"""What an ingest of landed files would do, without writing anything: `healthingest ingest --plan`.

The files are read, checked and compared as an ingest would, against what silver holds now and, one after the other,
what the files before them would have brought.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from healthingest.bulk import OnFile, in_sequence
from healthingest.contracts.clients import Client
from healthingest.decide import after, compared
from healthingest.errors import ConfigError, HealthingestError, PermanentError, UnroutableError
from healthingest.lake.silver import Snapshot
from healthingest.landing.names import printable
from healthingest.members import Members, check_bytes
from healthingest.model import Counts, Delivery
from healthingest.platform import Platform
from healthingest.privacy import tokens
from healthingest.privacy.tokens import compact
from healthingest.quality import judge_quality
from healthingest.silence import without_erased
from healthingest.volume import Change, against, before, over


@dataclass(frozen=True)
class Planned:
    """What would become of one landed file."""

    file: str
    client_id: str | None
    #: succeeded, held, failed, unroutable, waiting; done: it has been ingested before.
    status: str
    counts: Counts
    message: str | None = None
    #: Its members against those of the delivery before.
    change: Change | None = None


#: Client -> name and members (token, hash) of its last planned file.
Lasts = dict[str, tuple[str, pl.DataFrame]]


def plan_paths(platform: Platform, paths: Sequence[Path], on_file: OnFile | None = None) -> Iterator[Planned]:
    """Foretell each file, in the order in which an ingest would take them."""
    states: dict[str, pl.DataFrame] = {}
    lasts: Lasts = {}
    for path in in_sequence(platform, paths):
        name = printable(path.name)
        if on_file:
            on_file(name)
        try:
            yield _foretell(platform, path, states, lasts)
        except UnroutableError as error:
            waits = platform.waits_for(path.name)
            yield Planned(name, None, "waiting" if waits else "unroutable", Counts(), str(waits or error))
        except (PermanentError, ConfigError) as error:
            yield Planned(name, platform.route(path.name).client_id, "failed", Counts(), str(error))
        except HealthingestError as error:
            yield Planned(name, None, "error", Counts(), str(error))


def _foretell(platform: Platform, path: Path, states: dict[str, pl.DataFrame], lasts: Lasts) -> Planned:
    routed = platform.route(path.name)
    client = platform.clients.clients[routed.client_id]
    platform = platform.current(client.client_id)
    sha256 = platform.lake.bronze.digest(path)
    file_id = tokens.file_id(platform.keyring, routed.name, sha256)
    slot = platform.lake.bronze.slot(client.client_id, routed.name)
    snapshot = _snapshot(platform, client)
    if snapshot and snapshot.state(file_id):
        return Planned(routed.name, client.client_id, "done", Counts(), None)
    delivery = Delivery(
        file_id=file_id, client_id=client.client_id, file_name=routed.name, creation_date=routed.creation_date,
        suffix=routed.suffix, delivery_no=max(slot, default=0) + 1, content_hmac="", file_bytes=path.stat().st_size,
        contract=client.contract.name, config_hash=client.config_hash, registered_at=datetime.now(UTC),
    )  # fmt: skip
    checked = check_bytes(
        lambda: path.open("rb"), platform.lake.bronze.facts_of(path, client), delivery, client,
        lambda _stage, _seconds: None, platform.keyring,
    )  # fmt: skip
    checked = without_erased(platform, client.client_id, checked)
    judged = judge_quality(client.config.quality, checked.counts, delivery, platform.lake.audit)
    said = [*([judged.ratio] if judged.ratio else []), *judged.file]
    if slot:
        said.append(f"It would be delivery {delivery.delivery_no} of its name and replace the earlier one.")
    if judged.holds:
        return Planned(routed.name, client.client_id, "held", checked.counts, " ".join(said))
    if client.client_id not in states:
        states[client.client_id] = _state(platform, client, snapshot)
    members = Members.of(checked, lambda: members)
    change = _against(platform, delivery, members.keys, lasts)
    limits = client.config.quality.volume
    said += over(limits, change) if limits and change else []
    if limits and limits.on_breach == "hold" and change and over(limits, change):
        return Planned(routed.name, client.client_id, "held", checked.counts, " ".join(said), change)
    current, counts = compared(members, checked.counts, states[client.client_id], ordered=True)
    states[client.client_id] = after(states[client.client_id], current)
    lasts[client.client_id] = (routed.name, members.keys.select("token", "hash"))
    return Planned(routed.name, client.client_id, "succeeded", counts, " ".join(said) or None, change)


def _against(platform: Platform, delivery: Delivery, own: pl.DataFrame, lasts: Lasts) -> Change | None:
    """What it adds, changes and drops against the one before it, be that planned or in silver."""
    earlier = lasts.get(delivery.client_id) or before(platform, delivery)
    return against(own, *earlier) if earlier else None


def _snapshot(platform: Platform, client: Client) -> Snapshot | None:
    silver = platform.lake.silver_of(client.client_id)
    return Snapshot(silver.snapshot(), client.client_id) if silver.exists() else None


def _state(platform: Platform, client: Client, snapshot: Snapshot | None) -> pl.DataFrame:
    """What is known of all members of a client: token, __hash, __latest."""
    columns = {"token": pl.Int128, "__hash": pl.Int128, "__latest": pl.String}
    if snapshot is None:
        return pl.DataFrame(schema=columns)
    latest = platform.lake.sightings.latest(
        client.client_id, snapshot.generation, lambda some: snapshot.active(some, platform.lake.bronze)
    )
    seen = latest.select("latest", token=compact("member_token"))
    known = snapshot.hashes().join(seen, on="token", how="full", coalesce=True)
    return known.select("token", __hash="hash", __latest="latest")


def plain(planned: Planned) -> dict[str, object]:
    """One file's plan as plain values."""
    told: dict[str, object] = {
        "file": planned.file,
        "client_id": planned.client_id,
        "status": planned.status,
        "message": planned.message,
    }
    change = planned.change
    shares = {"added": change.added, "changed": change.changed, "dropped": change.dropped} if change else {}
    against_last = {"file": change.against, "members": change.members, **shares} if change else None
    return told | planned.counts.as_dict() | {"against": against_last}


def by_client(planned: Sequence[Planned]) -> list[dict[str, object]]:
    """The plan summed per client: files by status, and counts."""
    rows: list[dict[str, object]] = []
    for client_id in sorted({p.client_id or "" for p in planned}):
        mine = [p for p in planned if (p.client_id or "") == client_id]
        statuses = {s: sum(p.status == s for p in mine) for s in sorted({p.status for p in mine})}
        total = Counts(**{n: sum(p.counts.as_dict()[n] for p in mine) for n in Counts.names()})
        rows.append({"client_id": client_id or None, "files": len(mine), "statuses": statuses, **total.as_dict()})
    return rows
