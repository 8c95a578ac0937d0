"""Puts the vault's small parts together, and deletes those that were replaced.

In two steps with a day between them, since a reader loads silver first and the vault after it; and no part goes
without proof that every row of silver finds its values in the parts that stay.
"""

import json
import secrets
import time
from datetime import timedelta
from pathlib import Path

import polars as pl

from healthingest.errors import IncompleteError
from healthingest.lake.silver import Snapshot
from healthingest.lake.vault import CONSOLIDATED, number_of
from healthingest.platform import Platform

#: Parts of one client that are worth putting together.
_PARTS = 16


def consolidate(platform: Platform, client_id: str) -> int:
    """Write the values that silver needs into one part, and note which parts that replaces."""
    vault = platform.lake.vault
    snapshot = Snapshot(platform.lake.silver.snapshot(), client_id)
    noted = {name for note in _notes(platform, client_id) for name in json.loads(note.read_text())}
    # A part of a later number may belong to a commit that is about to come.
    old = [p for p in vault.parts(client_id) if number_of(p) <= snapshot.number and p.name not in noted]
    if len(old) < _PARTS:
        return 0
    if closed := vault.closed(client_id):
        raise IncompleteError(f"The keyring does not open the column group {closed[0]}; maintain needs all of them.")
    wanted = _referenced(snapshot)
    rows = vault.rows(client_id, wanted)
    if rows.height != wanted.height:
        raise IncompleteError(f"The vault lacks values of {wanted.height - rows.height} members of {client_id}.")
    vault.put_rows(client_id, CONSOLIDATED, snapshot.number, rows)
    note = vault.root / f"client_id={client_id}" / f".replaced-{secrets.token_hex(4)}.json"
    note.write_text(json.dumps([p.name for p in old]))
    return len(old)


def drop_replaced(platform: Platform, client_id: str, grace: timedelta) -> int:
    """Delete parts that were replaced longer than `grace` ago, once every row of silver is found without them."""
    vault, dropped = platform.lake.vault, 0
    for note in _notes(platform, client_id):
        if time.time() - note.stat().st_mtime < grace.total_seconds():
            continue
        folder = vault.root / f"client_id={client_id}"
        gone = [folder / name for name in json.loads(note.read_text()) if (folder / name).exists()]
        snapshot = Snapshot(platform.lake.silver.snapshot(), client_id)
        wanted = _referenced(snapshot)
        found = vault.rows(client_id, wanted, without=gone)
        if found.height != wanted.height:
            raise IncompleteError(
                f"{wanted.height - found.height} members of {client_id} have their values only in parts of the "
                "vault that were to be deleted; nothing was."
            )
        for part in gone:
            part.unlink()
        note.unlink()
        dropped += len(gone)
    return dropped


def _referenced(snapshot: Snapshot) -> pl.DataFrame:
    """The rows of silver: member_token and _file_id."""
    mine = pl.scan_delta(snapshot.table).filter(pl.col("client_id") == snapshot.client_id)
    return mine.select("member_token", "_file_id").collect()


def _notes(platform: Platform, client_id: str) -> list[Path]:
    return sorted((platform.lake.vault.root / f"client_id={client_id}").glob(".replaced-*.json"))
