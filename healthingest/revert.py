"""A delivery taken back, or given again: noted first, then silver follows, then audit and quarantine say so.

Members that it set fall back to what the other deliveries say of them; whom it alone brought leaves silver. Any
delivery can be taken back, not just the last, and in any order: the same silver as if it had never come. Whoever dies
in between is finished by the same command, the client's next ingest, or the next maintenance.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import polars as pl

from healthingest.closed import settle_records
from healthingest.contracts.clients import Client
from healthingest.decide import put_rows
from healthingest.errors import KeyringError, UsageError
from healthingest.fallback import fallen, rows_of
from healthingest.lake.delta import retry
from healthingest.lake.reverts import is_odd, word
from healthingest.lake.rewrite import CHANGED, GONE, NEW
from healthingest.lake.silver import APPLIED, Snapshot
from healthingest.leavers import leavers, watch
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy.roles import decision_reason
from healthingest.privacy.tokens import compact


@dataclass(frozen=True)
class Reverted:
    """What taking a delivery back, or giving it again, does to silver; `records`: rejected ones that it concerns."""

    delivery: Delivery
    #: Members that leave silver, fall back to what another delivery says, or come (again).
    removed: int
    changed: int
    added: int
    records: int
    #: Further readings of the same bytes (released, repaired), which go with it.
    readings: int
    #: Whether there was anything to do.
    fresh: bool = True
    silver_version: int | None = None


def plan_revert(platform: Platform, delivery: Delivery, *, undo: bool = False) -> Reverted:
    """Foretell it; writes nothing.

    Raises:
        UsageError: the delivery never reached silver, or is in that state already.
    """
    snapshot, client = _snapshot(platform, delivery), _client(platform, delivery.client_id, [delivery.file_id])
    if _noted(platform, snapshot, delivery, undo=undo):
        toggled = _outstanding(snapshot, platform.lake.reverts.numbers(delivery.client_id))
    else:
        toggled = _toggled(platform, snapshot, delivery, undo=undo)
    return _counted(platform, delivery, Followed(toggled, _changes(platform, snapshot, client, toggled), None))


def revert(
    platform: Platform, delivery: Delivery, *, by: str, reason: str, undo: bool = False, wait: float = 600.0
) -> Reverted:
    """Take a delivery back, or (`undo`) give it again; returns what that did.

    Raises:
        UsageError: it never reached silver, is in that state already, or the reason is not one line of text.
        BusyError: others did not finish with the client within `wait` seconds.
    """
    client_id, reason = delivery.client_id, decision_reason(reason)
    with platform.lake.exclusion.alone(client_id, wait=wait):
        now = platform.current(client_id)
        snapshot, lake = _snapshot(now, delivery), now.lake
        if _noted(now, snapshot, delivery, undo=undo):  # whoever said it died before silver followed
            return _counted(now, delivery, follow(now, client_id))
        toggled = _toggled(now, snapshot, delivery, undo=undo)
        kind = "revert_undone" if undo else "reverted"
        lake.events.append(client_id, kind, "", {"who": by, "file_id": delivery.file_id, "reason": reason})
        after = max(lake.bronze.slot(client_id, delivery.file_name), default=0)
        for file_id, number in reversed(toggled.items()):  # the delivery itself last: it says that all are noted
            lake.reverts.put(client_id, file_id, word(number, by, reason, after))
        return _counted(now, delivery, follow(now, client_id))


def is_behind(platform: Platform, client_id: str) -> bool:
    """Whether silver does not follow yet what was said of a client's deliveries."""
    noted = platform.lake.reverts.numbers(client_id)
    if not noted or not (silver := platform.lake.silver_of(client_id)).exists():
        return False
    return bool(_outstanding(Snapshot(silver.snapshot(), client_id), noted))


@dataclass(frozen=True)
class Followed:
    """What silver was told: words (file_id -> number), what they changed (as `fallen`), and its version."""

    toggled: Mapping[str, int]
    changes: pl.DataFrame
    version: int | None


def follow(platform: Platform, client_id: str) -> Followed:
    """Bring silver, audit and quarantine in line with what was said of a client's deliveries; may be repeated.

    For who shares the client with others or is alone with it.

    Raises:
        CommitFailedError, KeyringError, PermanentError: as an ingest.
    """
    noted = platform.lake.reverts.numbers(client_id)
    done = retry(partial(_commit, platform, client_id, noted))
    for file_id in noted:
        if found := platform.lake.bronze.find(client_id, file_id):
            tell_reverts(platform, found.delivery)
    return done


def tell_reverts(platform: Platform, delivery: Delivery) -> None:
    """Let audit and quarantine say what was said of a delivery, unless they do."""
    client_id, file_id = delivery.client_id, delivery.file_id
    words, verdict = platform.lake.reverts.of(client_id, file_id), platform.lake.decisions.of(client_id, file_id)
    settle_records(platform, delivery)  # first: the row of the audit says that all is done
    platform.lake.audit.put_reverts(file_id, words, verdict)


def _commit(platform: Platform, client_id: str, noted: Mapping[str, int]) -> Followed:
    client = _client(platform, client_id, noted)
    silver = platform.lake.silver_for(client_id)
    snapshot = silver.for_client(client_id, client.contract)
    if snapshot.generation not in {None, platform.keyring.generation("member_token", client_id)}:
        raise KeyringError(f"The keys of {client_id} were rotated meanwhile; run this again.")
    toggled = _outstanding(snapshot, noted)
    # Others' sightings after silver's snapshot, as for an ingest.
    changes = _changes(platform, snapshot, client, toggled)
    version = None
    if toggled or changes.height:
        with silver.change(snapshot) as change:
            put_rows(platform, snapshot.number + 1, rows_of(platform, client, changes), change)
            version = silver.commit(snapshot, {}, change, toggled)
    return Followed(toggled, changes, version)


def _client(platform: Platform, client_id: str, noted: Iterable[str]) -> Client:
    """The client as it is now; where its YAML is gone, as one of the deliveries is pinned to it.

    Raises:
        UsageError: neither can be used.
    """
    if client_id in platform.clients.clients:
        return platform.clients.clients[client_id]
    for file_id in noted:
        if found := platform.lake.bronze.find(client_id, file_id):
            return platform.pinned_client(found.delivery)
    raise UsageError(f"There is no config of {client_id} that can be used; put its YAML back.")


def _snapshot(platform: Platform, delivery: Delivery) -> Snapshot:
    silver = platform.lake.silver_of(delivery.client_id)
    snapshot = Snapshot(silver.snapshot(), delivery.client_id) if silver.exists() else None
    if snapshot is None or snapshot.state(delivery.file_id) != APPLIED:
        row = platform.lake.audit.row(delivery.file_id)
        status = row["status"] if row else "not decided yet"
        raise UsageError(f"{delivery.file_name} is {status}; only what silver took can be reverted. Nothing was done.")
    return snapshot


def _noted(platform: Platform, snapshot: Snapshot, delivery: Delivery, *, undo: bool) -> bool:
    """Whether the very wish was noted, and silver does not follow it yet."""
    number = platform.lake.reverts.number(delivery.client_id, delivery.file_id)
    return number > snapshot.reverts(delivery.file_id) and is_odd(number) != undo


def _toggled(platform: Platform, snapshot: Snapshot, delivery: Delivery, *, undo: bool) -> dict[str, int]:
    """The next numbers of the delivery and of the later readings of its bytes that go with it.

    Raises:
        UsageError: it is in the wanted state already.
    """
    numbers = platform.lake.reverts.numbers(delivery.client_id)
    number = numbers.get(delivery.file_id, 0)
    if is_odd(number) != undo:
        said = "is reverted already" if not undo else "was not reverted"
        raise UsageError(f"{delivery.file_name} (file id {delivery.file_id[:8]}) {said}. Nothing was done.")
    found = [one.delivery for one in platform.lake.bronze.readings(delivery)]
    readings = [
        file_id for file_id in (d.file_id for d in found if d.delivery_no >= delivery.delivery_no)
        if snapshot.state(file_id) == APPLIED and is_odd(numbers.get(file_id, 0)) == undo
    ]  # fmt: skip
    return {file_id: numbers.get(file_id, 0) + 1 for file_id in readings}


def _outstanding(snapshot: Snapshot, noted: Mapping[str, int]) -> dict[str, int]:
    """Words that silver does not follow yet; of undecided deliveries their own commit will."""
    return {f: n for f, n in noted.items() if snapshot.state(f) == APPLIED and snapshot.reverts(f) < n}


def _changes(platform: Platform, snapshot: Snapshot, client: Client, toggled: Mapping[str, int]) -> pl.DataFrame:
    """As `fallen`: what changes where other deliveries count than before."""
    bronze = platform.lake.bronze
    rows = platform.lake.sightings.of_client(snapshot.client_id, snapshot.generation)
    rows = rows.with_columns(token=compact("member_token"), hash=compact("content_hash"))
    after = partial(snapshot.active, bronze=bronze, toggled=toggled)
    deliveries = rows.select("file_id", "file_name").unique()
    flipped = deliveries.filter(snapshot.active(deliveries, bronze) != after(deliveries))
    members = rows.join(flipped, on="file_id", how="semi").select("token").unique()
    if not watch(platform, client):
        return fallen(snapshot, rows, members, after)
    # Whom full files name may be another matter for anybody.
    gone = leavers(platform, snapshot, rows, after)
    return fallen(snapshot, rows, rows.select("token").unique(), after, gone.tokens)


def _counted(platform: Platform, delivery: Delivery, done: Followed) -> Reverted:
    toggled, changes = done.toggled, done.changes
    happens = changes["_change"].value_counts()
    by_kind = dict(happens.iter_rows())
    mine = pl.col("client_id") == delivery.client_id, pl.col("file_id").is_in(list(toggled))
    states = platform.lake.quarantine.frame(["state"], mine[0] & mine[1])["state"]
    return Reverted(
        delivery, by_kind.get(GONE, 0), by_kind.get(CHANGED, 0), by_kind.get(NEW, 0),
        int(states.is_in(["open", "reverted"]).sum()), max(0, len(toggled) - 1), bool(toggled), done.version,
    )  # fmt: skip
