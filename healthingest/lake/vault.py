"""The vault: what silver must not show, as encrypted Parquet parts beside the Delta tables.

Parts are created, never replaced: `vault/client_id=<c>/<file_id>-<number>-<nonce>.parquet`. Two attempts at one
delivery leave two parts with the same values; silver's `_file_id` and token say which rows count.
"""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from healthingest.privacy.keyring import Keyring
from healthingest.privacy.vault_file import FOOTER_COLUMNS, scan_encrypted, write_encrypted


class Vault:
    """The folder of encrypted parts."""

    def __init__(self, root: Path, keyring: Keyring) -> None:
        """Bind the folder `root` and the keyring."""
        self.root, self._keyring = root, keyring

    def put(self, client_id: str, file_id: str, number: int, rows: pl.DataFrame, groups: Mapping[str, str]) -> Path:
        """Write one part: `rows` with member_token, _file_id and the columns of `groups` (String)."""
        folder = self.root / f"client_id={client_id}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = folder / f"{file_id}-{number}-{secrets.token_hex(4)}.parquet"
        temporary = folder / f".{part.name}.tmp"
        try:
            write_encrypted(rows, temporary, self._keyring, client_id, groups, name=part.name)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.rename(part)
        finally:
            temporary.unlink(missing_ok=True)
        return part

    def values(self, client_id: str, wanted: pl.DataFrame, groups: Mapping[str, str]) -> pl.DataFrame:
        """Vaulted values of the `wanted` rows (member_token, _file_id), those columns only that the keyring opens."""
        folder = self.root / f"client_id={client_id}"
        file_ids = set(wanted["_file_id"].unique())
        parts = sorted(p for p in folder.glob("*.parquet") if p.name.split("-")[0] in file_ids)
        scans = [scan_encrypted(p, self._keyring, client_id, groups, name=p.name) for p in parts]
        if not scans:
            return pl.DataFrame(schema=dict.fromkeys([*FOOTER_COLUMNS, *groups], pl.String))
        found = pl.concat(scans, how="diagonal").join(
            wanted.lazy().select(FOOTER_COLUMNS), on=FOOTER_COLUMNS, how="semi"
        )
        return found.unique(list(FOOTER_COLUMNS), keep="any").collect()
