"""The vault: what silver must not show, as encrypted Parquet parts beside the Delta tables.

Parts are created, never replaced: `vault/client_id=<c>/<file_id>-<number>-<nonce>.parquet`. Two attempts at one
delivery leave two parts with the same values; silver's `_file_id` and token say which rows count.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import polars as pl

from healthingest.errors import IncompleteError
from healthingest.privacy.keyring import Keyring, vault_purpose
from healthingest.privacy.vault_file import (
    FOOTER_COLUMNS,
    generation_of,
    groups_of,
    nonce,
    scan_encrypted,
    write_encrypted,
)
from healthingest.storage.files import appearing

#: Stands in a part's name for the delivery, where it holds rows of many.
CONSOLIDATED = "consolidated"
#: Times that parts are listed anew because one was gone when it was opened.
_LOOKS = 5


def number_of(part: Path) -> int:
    """The client's commit number that a part was written for."""
    return int(part.name.split("-")[1])


class Vault:
    """The folder of encrypted parts."""

    def __init__(self, root: Path, keyring: Keyring) -> None:
        """Bind the folder `root` and the keyring."""
        self.root, self._keyring = root, keyring

    def put(self, client_id: str, file_id: str, number: int, rows: pl.DataFrame, groups: Mapping[str, str]) -> Path:
        """Write one part: `rows` with member_token, _file_id and the columns of `groups` (String)."""
        named = {column: f"{group}/{column}" for column, group in groups.items()}
        return self.put_rows(client_id, file_id, number, rows.rename(named))

    def put_rows(self, client_id: str, file_id: str, number: int, rows: pl.DataFrame) -> Path:
        """Write one part of rows as `rows` gives them."""
        folder = self.root / f"client_id={client_id}"
        folder.mkdir(parents=True, exist_ok=True, mode=0o770)  # the umask takes the group out, an ACL lets it in
        part = folder / f"{file_id}-{number}-{nonce(self._keyring, client_id)}.parquet"
        with appearing(part) as place:
            write_encrypted(rows, place, self._keyring, client_id, name=part.name)
        return part

    def holding(self, client_id: str, token: str) -> list[Path]:
        """Parts with a row of a member."""
        return [part for part in self.parts(client_id) if self.tokens(client_id, part).eq(token).any()]

    def take_out(self, client_id: str, token: str) -> int:
        """Write every part that holds a member anew, without; returns how many rows went.

        Raises:
            IncompleteError: the keyring does not open all columns, which would be lost.
        """
        if closed := self.closed(client_id):
            raise IncompleteError(f"The keyring does not open the column group {closed[0]}; this needs all of them.")
        gone = 0
        for part in self.holding(client_id, token):
            rows = scan_encrypted(part, self._keyring, client_id, name=part.name).collect()
            others = rows.filter(pl.col("member_token") != token)
            if others.height:
                self.put_rows(client_id, part.name.split("-")[0], number_of(part), others)
            part.unlink()
            gone += rows.height - others.height
        return gone

    def tokens(self, client_id: str, part: Path) -> pl.Series:
        """The member tokens of a part's rows."""
        scan = scan_encrypted(part, self._keyring, client_id, name=part.name)
        return scan.select("member_token").collect().to_series()

    def older(self, client_id: str) -> list[Path]:
        """Parts under other keys than the client's latest."""
        latest = self._keyring.generation(vault_purpose("footer"), client_id)
        return [part for part in self.parts(client_id) if generation_of(part.name) != latest]

    def parts(self, client_id: str) -> list[Path]:
        """All parts of one client."""
        return sorted((self.root / f"client_id={client_id}").glob("*.parquet"))

    def opens(self, client_id: str, part: Path) -> bool:
        """Whether every column of a part can be read."""
        frame = scan_encrypted(part, self._keyring, client_id, name=part.name).collect()
        found = {column.partition("/")[0] for column in frame.columns if column not in FOOTER_COLUMNS}
        return found == self._groups(client_id, part)

    def closed(self, client_id: str) -> list[str]:
        """Column groups of the client's parts that the keyring does not open."""
        groups = {group for part in self.parts(client_id) for group in self._groups(client_id, part)}
        return sorted(group for group in groups if not self._keyring.holds(vault_purpose(group), client_id))

    def _groups(self, client_id: str, part: Path) -> set[str]:
        return groups_of(part, self._keyring, client_id, name=part.name)

    def rows(
        self, client_id: str, wanted: pl.DataFrame, *, without: Collection[Path] = (),
        columns: Collection[str] | None = None,
    ) -> pl.DataFrame:  # fmt: skip
        """What the vault holds of the `wanted` rows (member_token, _file_id), in columns `<group>/<column>`.

        Those columns only that the keyring opens, of `columns` (their names without group) if they are given.
        `without`: parts that are left out, as if they were gone.
        """
        of = set(wanted["_file_id"].unique()) | {CONSOLIDATED}
        for attempt in range(_LOOKS):
            parts = [p for p in self.parts(client_id) if p.name.split("-")[0] in of and p not in without]
            try:
                return self.rows_in(client_id, parts, wanted, columns)
            except FileNotFoundError:  # an erasure or rotation has just written that part anew, under another name
                if attempt == _LOOKS - 1:
                    raise
        raise AssertionError

    def rows_in(
        self, client_id: str, parts: Collection[Path], wanted: pl.DataFrame, columns: Collection[str] | None = None
    ) -> pl.DataFrame:
        """The same of some parts alone."""
        scans = [scan_encrypted(p, self._keyring, client_id, name=p.name) for p in parts]
        if not scans:
            return pl.DataFrame(schema=dict.fromkeys(FOOTER_COLUMNS, pl.String))
        everything = pl.concat(scans, how="diagonal")
        if columns is not None:
            names = everything.collect_schema().names()
            everything = everything.select(n for n in names if n in FOOTER_COLUMNS or n.partition("/")[2] in columns)
        found = everything.join(wanted.lazy().select(FOOTER_COLUMNS), on=FOOTER_COLUMNS, how="semi")
        return found.unique(list(FOOTER_COLUMNS), keep="any").collect()

    def values(self, client_id: str, wanted: pl.DataFrame, columns: Collection[str] | None = None) -> pl.DataFrame:
        """The same under the contract's names: FOOTER_COLUMNS and each column that the keyring opens (String)."""
        rows = self.rows(client_id, wanted, columns=columns)
        named: dict[str, list[str]] = {}
        for column in rows.columns:
            if column not in FOOTER_COLUMNS:  # a column whose group has changed stands in both
                named.setdefault(column.partition("/")[2], []).append(column)
        return rows.select(*FOOTER_COLUMNS, **{name: pl.coalesce(columns) for name, columns in named.items()})
