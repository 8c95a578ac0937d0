"""Puts the vault's small parts together, and deletes those that were replaced.

In two steps with a day between them, since a reader loads silver first and the vault after it; and no part goes
without proof that every row of silver finds its values in the parts that stay.
"""

import json
import secrets
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl

from healthingest.contracts.contract import load_contract
from healthingest.errors import IncompleteError
from healthingest.lake.silver import Snapshot
from healthingest.lake.vault import CONSOLIDATED, number_of
from healthingest.platform import Platform
from healthingest.privacy.keyring import vault_purpose

#: Parts of one client that are worth putting together.
_PARTS = 16


def consolidate(platform: Platform, client_id: str) -> int:
    """Write the values that silver needs into one part per contract, and note which parts that replaces."""
    vault = platform.lake.vault
    snapshot = Snapshot(platform.lake.silver.snapshot(), client_id)
    noted = {name for note in _notes(platform, client_id) for name in json.loads(note.read_text())}
    # A part of a later number may belong to a commit that is about to come.
    old = [p for p in vault.parts(client_id) if number_of(p) <= snapshot.number and p.name not in noted]
    if len(old) < _PARTS:
        return 0
    for contract_name, wanted in _referenced(snapshot):
        contract = load_contract(platform.places.configs, contract_name)
        closed = [g for g in sorted(contract.groups) if not platform.keyring.holds(vault_purpose(g), client_id)]
        if closed:
            raise IncompleteError(
                f"The keyring does not open the column group {closed[0]}; maintain needs all of them."
            )
        values = vault.values(client_id, wanted, contract.vaulted)
        if values.height != wanted.height:
            raise IncompleteError(f"The vault lacks values of {wanted.height - values.height} members of {client_id}.")
        vault.put(client_id, CONSOLIDATED, snapshot.number, values, contract.vaulted)
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
        for contract_name, wanted in _referenced(snapshot):
            groups = load_contract(platform.places.configs, contract_name).vaulted
            found = vault.values(client_id, wanted, groups, without=gone)
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


def _referenced(snapshot: Snapshot) -> Iterator[tuple[str, pl.DataFrame]]:
    """Per contract, the rows of silver: member_token and _file_id."""
    mine = pl.scan_delta(snapshot.table).filter(pl.col("client_id") == snapshot.client_id)
    rows = mine.select("member_token", "_file_id", "_contract").collect()
    for part in rows.partition_by("_contract"):
        yield part["_contract"][0], part.select("member_token", "_file_id")


def _notes(platform: Platform, client_id: str) -> list[Path]:
    return sorted((platform.lake.vault.root / f"client_id={client_id}").glob(".replaced-*.json"))
