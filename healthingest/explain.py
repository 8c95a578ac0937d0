"""What happened to one member: each delivery that spoke of it, what each changed, and which record set the row of now.

Columns by name for everybody who may ask; their values only for a role whose keys open them. Reads the member's
deliveries in bronze again, but only those that said something new, so that it is as true as a rebuild.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from healthingest.absence import Member
from healthingest.errors import UsageError
from healthingest.lake.quarantine import open_record
from healthingest.lake.silver import Snapshot
from healthingest.members import read_again
from healthingest.platform import Platform
from healthingest.reading import Reader
from healthingest.records.redact import hold_ids
from healthingest.silence import reading_client

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Mention:
    """What one delivery said of the member."""

    file_name: str
    file_id: str
    delivery_no: int
    creation_date: str
    record_no: int
    #: succeeded, held, ...; None: it came to no end.
    status: str | None
    ingested_at: datetime | None
    #: Whether it counts: applied, and not replaced by a later delivery of its name.
    active: bool
    #: Whether its record is the one that the member's row was made of.
    sets_row: bool
    #: Columns that it said otherwise than the mention before in the order of records; None: it could not be read.
    changed: tuple[str, ...] | None
    #: Those of them that the role opens -> value.
    values: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Refusal:
    """A rejected record of the member."""

    file_name: str
    record_no: int
    #: Column and rule of each reason.
    rules: tuple[tuple[str | None, str], ...]
    state: str


@dataclass(frozen=True)
class Explained:
    """A member's history, in the order of records."""

    client_id: str
    token: str
    in_silver: bool
    mentions: tuple[Mention, ...]
    refusals: tuple[Refusal, ...]


def explain(platform: Platform, client_id: str, member_id: str, reader: Reader, on_step: OnStep) -> Explained:
    """Tell a member's history, by its id in the standard form; an event says who asked, in which role and why.

    Raises:
        UsageError: there is no such client, the role has no right to it, or nobody ever sent such a member.
        KeyringError: the keyring lacks the client's keys.
    """
    if client_id not in platform.clients.clients:
        raise UsageError(f"There is no client {client_id}; there is {', '.join(platform.clients.clients)}.")
    reader.snapshots([client_id])  # refuses a client that the role has no right to
    platform = platform.current(client_id)
    member = Member.of(platform, client_id, member_id)
    mentions = tuple(_mentions(platform, member, reader, on_step))
    refusals = tuple(_refusals(platform, member, on_step))
    if not mentions and not refusals:
        raise UsageError(f"No delivery of {client_id} ever spoke of this member; is the id in its standard form?")
    opened = sorted({column for mention in mentions for column in mention.values})
    reader.record(client_id, "explained", opened, 1)
    return Explained(client_id, member.token, any(m.sets_row for m in mentions), mentions, refusals)


def _mentions(platform: Platform, member: Member, reader: Reader, on_step: OnStep) -> Iterator[Mention]:
    lake, client_id = platform.lake, member.client_id
    silver = lake.silver_of(client_id)
    if not silver.exists():
        return
    snapshot = Snapshot(silver.snapshot(), client_id)
    mine = pl.col("member_token") == member.token
    seen = lake.sightings.of_client(client_id, snapshot.generation, None, mine).sort("sequence")
    row = pl.scan_delta(snapshot.table).filter(pl.col("client_id") == client_id, mine).collect()
    deliveries = seen.select("file_id", "file_name").unique()
    counts = dict(zip(deliveries["file_id"], snapshot.active(deliveries, lake.bronze), strict=True))
    now = _deciding(seen, counts, row["_file_id"][0]) if row.height else None
    audit = lake.audit.rows(seen["file_id"].to_list())
    opens = reader.opened(client_id, {c for contract in reader.contracts for c in contract.column})
    before: dict[str, Any] = {}
    last_hash = None
    for sighting in seen.to_dicts():
        record_no, file_id = int(sighting["sequence"].split(" ")[-2]), sighting["file_id"]
        said: dict[str, Any] | None = before
        if sighting["content_hash"] != last_hash:
            on_step(sighting["file_name"])
            said = _said(platform, client_id, file_id, member.token)
        changed = None if said is None else tuple(c for c in said if said[c] != before.get(c))
        told = audit.get(file_id) or {}
        shown = {c: said[c] for c in changed or () if said and c in opens}
        yield Mention(
            sighting["file_name"], file_id, sighting["delivery_no"], sighting["sequence"][:10], record_no,
            told.get("status"), told.get("ingestion_time"), counts[file_id], now == file_id, changed,
            shown,
        )  # fmt: skip
        before, last_hash = said or {}, sighting["content_hash"]


def _deciding(seen: pl.DataFrame, counts: Mapping[str, bool], named: str) -> str | None:
    """The delivery that made the row what it is: the one that the row names, or the latest that counts.

    A row keeps the name of a delivery that was replaced since, if a later one says the same.
    """
    active = [file_id for file_id in seen["file_id"] if counts[file_id]]
    return named if named in active else active[-1] if active else None


def _said(platform: Platform, client_id: str, file_id: str, token: str) -> dict[str, Any] | None:
    """Contract column -> what a delivery says of the member; None where it cannot be read any more."""
    registered = platform.lake.bronze.find(client_id, file_id)
    if registered is None:
        return None
    client = platform.pinned_client(registered.delivery)
    parts = read_again(platform, registered.delivery).parts
    columns = [c.name for c in client.contract.columns if not c.policy.drop]
    mine = parts.gather(["member_token", *columns], lambda some: some.filter(pl.col("member_token") == token))
    return mine.row(0, named=True) | {"member_token": None} if mine.height else None


def _refusals(platform: Platform, member: Member, on_step: OnStep) -> Iterator[Refusal]:
    """Rejected records that hold the id, each opened by the installation's own key."""
    rows = platform.lake.quarantine.frame(None, pl.col("client_id") == member.client_id)
    for part in rows.sort("creation_date", "file_name", "record_no").partition_by("file_id", maintain_order=True):
        file_id = part["file_id"][0]
        registered = platform.lake.bronze.find(member.client_id, file_id)
        if registered is None:
            continue
        on_step(part["file_name"][0])
        records = part.filter(pl.col("sealed_record").is_not_null()).to_dicts()
        raw = [
            open_record(platform.keyring, member.client_id, file_id, one["record_no"], one["sealed_record"])
            for one in records
        ]
        held = hold_ids(raw, reading_client(platform, registered.delivery), member.names) if raw else []
        for one, is_mine in zip(records, held, strict=True):
            if is_mine:
                rules = tuple((reason["column"], reason["rule"]) for reason in one["reasons"])
                yield Refusal(one["file_name"], one["record_no"], rules, one["state"])
