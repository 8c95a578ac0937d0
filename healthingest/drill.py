"""The backup drill: does a copy of the keyring open what the installation holds? Reads one of each kind per client."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from healthingest.errors import HealthingestError
from healthingest.lake.lake import Lake
from healthingest.lake.quarantine import open_record
from healthingest.places import Places
from healthingest.privacy.keyring import CLIENT_PURPOSES, SHARED_PURPOSES
from healthingest.privacy.keyring_file import load_keyring


@dataclass(frozen=True)
class Tried:
    """One thing that the copy was tried on."""

    client_id: str
    what: str
    opens: bool


def drill(places: Places, backup: Path) -> list[Tried]:
    """Open the oldest and the newest bronze file, vault part and sealed record of every client with the copy's keys.

    Raises:
        KeyringError: the copy cannot be opened itself, or belongs to other data.
    """
    keyring = load_keyring(replace(places, keyring=backup.resolve()))
    lake = Lake.of(places, keyring)
    lacking = [Tried("the installation", f"key for {p}", opens=False) for p in SHARED_PURPOSES if not keyring.holds(p)]
    return lacking + [tried for client_id in lake.bronze.clients() for tried in _of_client(lake, client_id)]


def _of_client(lake: Lake, client_id: str) -> Iterator[Tried]:
    for purpose in CLIENT_PURPOSES:  # some open nothing, but make tokens, or find who was erased
        if not lake.keyring.holds(purpose, client_id):
            yield Tried(client_id, f"key for {purpose}", opens=False)
    deliveries = sorted((r.delivery for r in lake.bronze.of_client(client_id)), key=lambda d: d.registered_at)
    for delivery in {d.file_id: d for d in (deliveries[:1] + deliveries[-1:])}.values():
        opens = lake.keyring.holds("file") and lake.bronze.is_whole(client_id, delivery.file_id)
        yield Tried(client_id, f"bronze, delivery of {delivery.registered_at:%Y-%m-%d}", opens)
    parts = sorted(lake.vault.parts(client_id), key=lambda p: p.stat().st_mtime)
    for part in dict.fromkeys(parts[:1] + parts[-1:]):
        yield Tried(client_id, f"vault part {part.name}", _vault_opens(lake, client_id, part))
    mine = (pl.col("client_id") == client_id) & pl.col("sealed_record").is_not_null()
    sealed = lake.quarantine.frame(["file_id", "record_no", "sealed_record"], mine)
    for row in sealed.sort("file_id", "record_no").gather([0, sealed.height - 1] if sealed.height else []).to_dicts():
        try:
            open_record(lake.keyring, client_id, row["file_id"], row["record_no"], row["sealed_record"])
            opens = True
        except HealthingestError:
            opens = False
        yield Tried(client_id, f"rejected record {row['record_no']} of {row['file_id'][:8]}", opens)


def _vault_opens(lake: Lake, client_id: str, part: Path) -> bool:
    try:
        return lake.vault.opens(client_id, part)
    except (HealthingestError, pl.exceptions.PolarsError, OSError):
        return False
