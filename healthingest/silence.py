"""What a delivery says of erased members is left out before anything is written, and taken out of its sealed copy."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.errors import ConfigError
from healthingest.lake.bronze import Registered
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.records.check import Checked
from healthingest.records.damage import RECORD_NO
from healthingest.records.redact import Found, Names, find_records, hold_ids, without_records


def silence(platform: Platform, delivery: Delivery, client: Client, checked: Checked) -> tuple[Checked, bool]:
    """What was checked, without the accepted records of erased members and the bytes of rejected ones; whether any.

    Counts stay: an erased member's last accepted record counts as `suppressed`, others of it as duplicates.
    """
    names = names_of_erased(platform, delivery.client_id)
    if names is None:
        return checked, False
    members = without_erased(platform, delivery.client_id, checked)
    spoken = members.accepted.height < checked.accepted.height
    rejected = checked.rejected["raw"].to_list()
    # A transform makes ids that stand in no field; only reading the file with it tells whose they are.
    if not spoken and not (rejected and client.config.transform) and not any(hold_ids(rejected, client, names)):
        return checked, False
    found = find_in_bronze(platform, _registered(platform, delivery), names)
    kept = pl.when(~pl.col(RECORD_NO).is_in(sorted(found.numbers))).then(pl.col("raw"))
    return replace(members, rejected=checked.rejected.with_columns(raw=kept)), bool(found.lines)


def without_erased(platform: Platform, client_id: str, checked: Checked) -> Checked:
    """What was checked, without the accepted records of erased members; `silence` says how they count."""
    names = names_of_erased(platform, client_id)
    ids = checked.accepted.column("member_id") if names else None
    gone = names(ids) if names and ids is not None else None
    if ids is None or gone is None or not gone.any():
        return checked
    members = ids.filter(gone).n_unique()
    counts = replace(checked.counts, suppressed=checked.counts.suppressed + members)
    return replace(checked, accepted=checked.accepted.filter(~gone), counts=counts)


def names_of_erased(platform: Platform, client_id: str) -> Names | None:
    """Who was erased of a client; None if nobody was."""
    entries = platform.lake.erasures.entries(client_id)
    return partial(platform.lake.erasures.names, client_id, entries) if entries else None


def find_in_bronze(platform: Platform, registered: Registered, names: Names) -> Found:
    """Where a delivery's sealed copy speaks of those members."""
    delivery, bronze = registered.delivery, platform.lake.bronze
    return find_records(lambda: bronze.open(delivery), registered.facts, reading_client(platform, delivery), names)


def take_out_of_bronze(platform: Platform, delivery: Delivery, names: Names | None = None) -> Found:
    """Seal a delivery's bytes anew without the records of those members (all who were erased); what was found."""
    names = names or names_of_erased(platform, delivery.client_id)
    registered = _registered(platform, delivery)
    found = find_in_bronze(platform, registered, names) if names else Found()
    if found.lines:
        client = reading_client(platform, delivery)
        with platform.lake.bronze.open(delivery) as source:
            left = without_records(source, registered.facts, client, found.lines)
            platform.lake.bronze.replace(registered, client, left, found.numbers)
    return found


def late_records(platform: Platform) -> int:
    """Take out what deliveries still say of erased members that came after the last look; how many records.

    They were silenced when they were decided; this is for those whose process died between that and their copy.
    """
    records, ledger = 0, platform.lake.erasures
    for client_id in platform.lake.bronze.clients():
        entries = ledger.entries(client_id)
        if not entries or client_id not in platform.clients.clients:
            continue
        now = datetime.now(UTC)
        since = ledger.looked_at(client_id)
        late = [
            r.delivery
            for r in platform.lake.bronze.of_client(client_id)
            if not since or r.delivery.registered_at >= since
        ]
        decided = platform.lake.audit.decided([d.file_id for d in late])
        records += sum(len(take_out_of_bronze(platform, d).lines) for d in late if d.file_id in decided)
        ledger.look_at(client_id, min([now, *(d.registered_at for d in late if d.file_id not in decided)]))
    return records


def reading_client(platform: Platform, delivery: Delivery) -> Client:
    """The client as the delivery is pinned to it, or as it is now if its contract is gone."""
    try:
        return platform.pinned_client(delivery)
    except ConfigError:
        now = platform.clients.clients.get(delivery.client_id)
        if now is None:
            raise
        return now


def _registered(platform: Platform, delivery: Delivery) -> Registered:
    found = platform.lake.bronze.find(delivery.client_id, delivery.file_id)
    if found is None:
        raise FileNotFoundError(2, "The delivery is not in bronze", delivery.file_id)
    return found
