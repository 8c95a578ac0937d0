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
from healthingest.privacy.vault_file import FOOTER_COLUMNS

#: Parts of one client that are worth putting together.
_PARTS = 16
#: Rows of a part that was put together, about: what is in memory at a time.
_ROWS = 500_000


def consolidate(platform: Platform, client_id: str) -> int:
    """Write the values that silver needs into few parts, and note which parts those replace; how many."""
    vault = platform.lake.vault
    snapshot = Snapshot(platform.lake.silver_of(client_id).snapshot(), client_id)
    noted = {name for note in _notes(platform, client_id) for name in json.loads(note.read_text())}
    # A part of a later number may belong to a commit that is about to come.
    old = [p for p in vault.parts(client_id) if number_of(p) <= snapshot.number and p.name not in noted]
    if sum(not p.name.startswith(CONSOLIDATED) for p in old) < _PARTS:
        return 0
    if closed := vault.closed(client_id):
        raise IncompleteError(f"The keyring does not open the column group {closed[0]}; maintain needs all of them.")
    left, waiting = _referenced(snapshot), []
    for part in old:
        rows = vault.rows_in(client_id, [part], left)
        left = left.join(rows, on=FOOTER_COLUMNS, how="anti")
        waiting.append(rows)
        if sum(rows.height for rows in waiting) >= _ROWS:
            _put(platform, client_id, snapshot.number, waiting)
    if left.height:
        raise IncompleteError(f"The vault lacks values of {left.height} members of {client_id}.")
    _put(platform, client_id, snapshot.number, waiting)
    note = vault.root / f"client_id={client_id}" / f".replaced-{secrets.token_hex(4)}.json"
    note.write_text(json.dumps([p.name for p in old]))
    return len(old)


def _put(platform: Platform, client_id: str, number: int, waiting: list[pl.DataFrame]) -> None:
    rows = pl.concat(waiting, how="diagonal") if waiting else None
    waiting.clear()
    if rows is not None and rows.height:
        platform.lake.vault.put_rows(client_id, CONSOLIDATED, number, rows)


def drop_replaced(platform: Platform, client_id: str, grace: timedelta) -> int:
    """Delete parts that were replaced longer than `grace` ago, once every row of silver is found without them."""
    vault, dropped = platform.lake.vault, 0
    for note in _notes(platform, client_id):
        if time.time() - note.stat().st_mtime < grace.total_seconds():
            continue
        folder = vault.root / f"client_id={client_id}"
        gone = [folder / name for name in json.loads(note.read_text()) if (folder / name).exists()]
        snapshot = Snapshot(platform.lake.silver_of(client_id).snapshot(), client_id)
        wanted = _referenced(snapshot)
        found = vault.rows(client_id, wanted, without=gone, columns=())
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
