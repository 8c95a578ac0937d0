"""Which members were erased, and which must not be: keyed hashes of member ids, without the ids.

`checkpoint/erasures/<client>/<entry>.json` and `checkpoint/holds/<client>/<entry>.json`. Their key is never rotated:
the ids are gone, so that no entry could be made again. Whoever lacks the key cannot tell whom an entry names.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.privacy import tokens
from healthingest.privacy.keyring import Keyring
from healthingest.storage.files import put

_LOOKED = ".looked"


@dataclass(frozen=True)
class Ledger:
    """The entries of all clients, of one kind."""

    root: Path
    keyring: Keyring = field(repr=False)

    def entries(self, client_id: str) -> frozenset[str]:
        """All entries of a client."""
        folder = self.root / client_id
        if not folder.is_dir():
            return frozenset()
        return frozenset(place.stem for place in folder.glob("*.json"))

    def entry(self, client_id: str, member_id: str) -> str:
        """The entry that names a member (id in its standard form)."""
        return str(tokens.ledger_entry(self.keyring, client_id, pl.Series([member_id]))[0])

    def names(self, client_id: str, entries: Collection[str], member_ids: pl.Series) -> pl.Series:
        """Of each member id (String, standard form) whether one of the entries names it (Boolean)."""
        known = pl.Series(sorted(entries), dtype=pl.String)
        return tokens.ledger_entry(self.keyring, client_id, member_ids).is_in(known.implode()).fill_null(value=False)

    def note(self, client_id: str, entry: str) -> dict[str, Any] | None:
        """What is noted with an entry; None if there is none."""
        try:
            said: dict[str, Any] = json.loads(self._place(client_id, entry).read_text())
        except FileNotFoundError:
            return None
        return said

    def put(self, client_id: str, entry: str, note: Mapping[str, Any]) -> None:
        """Write an entry, or its note anew; it is on disk for good when this returns."""
        put(self._place(client_id, entry), json.dumps(note).encode())

    def looked_at(self, client_id: str) -> datetime | None:
        """Up to when deliveries have been looked through for members who were erased before; None: never."""
        mark = self.root / client_id / _LOOKED
        return datetime.fromisoformat(mark.read_text()) if mark.exists() else None

    def look_at(self, client_id: str, when: datetime) -> None:
        """Note that they have been."""
        put(self.root / client_id / _LOOKED, when.isoformat().encode())

    def take_back(self, client_id: str, entry: str) -> None:
        """Remove an entry, if there is one."""
        self._place(client_id, entry).unlink(missing_ok=True)

    def _place(self, client_id: str, entry: str) -> Path:
        return self.root / client_id / f"{entry}.json"
