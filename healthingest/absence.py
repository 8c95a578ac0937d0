"""The proof of absence: everything that an installation keeps of a client is opened and looked through for a member.

It takes nothing away and knows nothing of how the erasure went about it.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.lake.delta import Table
from healthingest.lake.quarantine import open_record
from healthingest.landing.discovery import list_landing
from healthingest.landing.names import named_client
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy import tokens
from healthingest.records.redact import Found, Names, find_records, hold_ids
from healthingest.silence import find_in_bronze, reading_client
from healthingest.storage.files import scan_parquet


@dataclass
class Looked:
    """What was looked through in one place, and where a member was found."""

    #: Files, and rows or records.
    files: int = 0
    rows: int = 0
    #: Rows or records of the member.
    found: int = 0
    #: Files that cannot be looked through: no text, damaged, or not readable.
    not_searched: int = 0

    def as_dict(self) -> dict[str, int]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Member:
    """Who is looked for: the id lives in memory only."""

    client_id: str
    token: str
    names: Names

    @classmethod
    def of(cls, platform: Platform, client_id: str, member_id: str) -> "Member":
        """By the member's id in its standard form."""
        wanted = pl.Series([member_id])

        def names(ids: pl.Series) -> pl.Series:
            return ids.is_in(wanted.implode()).fill_null(value=False)

        token = tokens.member_token(platform.keyring, client_id, wanted)[0]
        return cls(client_id, str(token), names)


def look_for(
    platform: Platform, member: Member, *, but: Collection[Path] = (), on_step: Callable[[str], None] | None = None
) -> dict[str, Looked]:
    """Look everywhere; `but`: change data files that stay for a while, which are not counted."""
    lake = platform.lake
    places: dict[str, Callable[[], Looked]] = {
        "landing": lambda: _landing(platform, member),
        "bronze": lambda: _bronze(platform, member),
        "quarantine": lambda: _quarantine(platform, member),
        "vault": lambda: _vault(platform, member),
        "silver": lambda: _tables(lake.silvers(), member, but),
        "sightings": lambda: _tables([lake.sightings], member, but),
    }
    found: dict[str, Looked] = {}
    for place, look in places.items():
        if on_step:
            on_step(f"looking through {place}")
        found[place] = look()
    return found


def landed_of(platform: Platform, client_id: str) -> list[tuple[Path, str]]:
    """The client's files in the landing zone and its archive, with the names that they were sent under.

    Also those that no ingest would take: of a client that is not active, or of an impossible date.
    """
    landed = list_landing(platform.places.landing)
    found = [(file.path, file.name) for file in landed if named_client(file.name) == client_id]
    archive = platform.places.landing.parent / "archive" / client_id
    kept = sorted(archive.iterdir()) if archive.is_dir() else []
    return found + [(path, path.name.partition("-")[2]) for path in kept]


def delivery_at(platform: Platform, client_id: str, path: Path, name: str) -> Delivery | None:
    """The delivery whose bytes lie in the landing zone or its archive; None if they are not in bronze."""
    registered = platform.lake.bronze.find(client_id, platform.file_id(path, name))
    return registered.delivery if registered else None


def find_in_file(platform: Platform, path: Path, client: Client, names: Names) -> Found:
    """Where a file that lies anywhere speaks of those members."""
    return find_records(lambda: path.open("rb"), platform.lake.bronze.facts_of(path, client), client, names)


def _landing(platform: Platform, member: Member) -> Looked:
    looked, client = Looked(), platform.clients.clients[member.client_id]
    for path, _ in landed_of(platform, member.client_id):
        looked.files += 1
        try:
            found = find_in_file(platform, path, client, member.names)
        except OSError:
            looked.not_searched += 1
            continue
        looked.rows += found.looked_at
        looked.found += len(found.lines)
        looked.not_searched += not found.searched
    return looked


def _bronze(platform: Platform, member: Member) -> Looked:
    looked = Looked()
    for registered in platform.lake.bronze.of_client(member.client_id):
        found = find_in_bronze(platform, registered, member.names)
        looked.files += 1
        looked.rows += found.looked_at
        looked.found += len(found.lines)
        looked.not_searched += not found.searched
    return looked


def _quarantine(platform: Platform, member: Member) -> Looked:
    """All versions of rejected records that lie on disk, each opened; whose id cannot be told, by its fields.

    A record that was taken out of bronze must not stand here either, whatever its fields hold.
    """
    client_id, looked = member.client_id, Looked()
    clients: dict[str, Any] = {}
    for path in platform.lake.quarantine.files_of(client_id):
        rows = scan_parquet(path, hive_partitioning=False).select("file_id", "record_no", "sealed_record").collect()
        looked.files += 1
        for (file_id,), part in rows.drop_nulls().group_by("file_id"):
            looked.rows += part.height
            registered = platform.lake.bronze.find(client_id, str(file_id))
            if registered is None:
                looked.not_searched += 1
                continue
            client = clients.setdefault(registered.delivery.config_hash, reading_client(platform, registered.delivery))
            sealed = zip(part["record_no"], part["sealed_record"], strict=True)
            raw = [open_record(platform.keyring, client_id, str(file_id), n, record) for n, record in sealed]
            held = pl.Series(hold_ids(raw, client, member.names), dtype=pl.Boolean)
            looked.found += int((held | part["record_no"].is_in(registered.facts.erased_records)).sum())
    return looked


def _vault(platform: Platform, member: Member) -> Looked:
    vault, looked = platform.lake.vault, Looked()
    for part in vault.parts(member.client_id):
        found = vault.tokens(member.client_id, part)
        looked.files += 1
        looked.rows += len(found)
        looked.found += int(found.eq(member.token).sum())
    return looked


def _tables(tables: Sequence[Table], member: Member, but: Collection[Path]) -> Looked:
    looked = Looked()
    for path in {path for table in tables for path in table.files_of(member.client_id)} - set(but):
        found = scan_parquet(path, hive_partitioning=False).select("member_token").collect()["member_token"]
        looked.files += 1
        looked.rows += len(found)
        looked.found += int(found.eq(member.token).sum())
    return looked
