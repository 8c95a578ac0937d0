"""Encrypted Parquet: the only module that touches polars' (unstable) Parquet Modular Encryption.

Every column stands under the key of a group, or the write is refused: a column in no group would be stored in
clear. Keys are derived from client and file name, which the AAD repeats: a file put in another's place does not open.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from healthingest.errors import KeyringError
from healthingest.privacy.keyring import Keyring, vault_purpose

#: Columns that only serve to find a row; under the footer's key.
FOOTER_COLUMNS = ("member_token", "_file_id")
_MAGIC = b"PARE"
_SMALLEST = 12  # bytes: both magics and the footer's length


def write_encrypted(
    frame: pl.DataFrame, path: Path, keyring: Keyring, client_id: str, groups: Mapping[str, str], *, name: str
) -> None:
    """Write `frame` (FOOTER_COLUMNS and the columns of `groups`, all String) to `path`, encrypted for file `name`.

    Raises:
        KeyringError: a column belongs to no group, or a group's key is missing.
    """
    astray = [c for c in frame.columns if c not in FOOTER_COLUMNS and c not in groups]
    if astray:
        raise KeyringError(f"Column {astray[0]} belongs to no column group; it would be stored in clear.")
    footer = _key(keyring, "footer", client_id, name)
    keys = {c: footer if c in FOOTER_COLUMNS else _key(keyring, groups[c], client_id, name) for c in frame.columns}
    properties = pl.ParquetEncryptionProperties(footer_key=footer, column_keys=keys, aad_prefix=_aad(client_id, name))
    frame.write_parquet(path, compression="zstd", statistics=False, encryption=properties)
    require_encrypted(path)


def scan_encrypted(
    path: Path, keyring: Keyring, client_id: str, groups: Mapping[str, str], *, name: str
) -> pl.LazyFrame:
    """Open an encrypted file lazily, with those columns only whose group's key the keyring holds.

    Raises:
        KeyringError: the file is not encrypted, or the footer key is missing.
    """
    require_encrypted(path)
    footer = _key(keyring, "footer", client_id, name)
    open_to = [column for column, group in groups.items() if keyring.holds(vault_purpose(group), client_id)]
    keys = dict.fromkeys(FOOTER_COLUMNS, footer) | {c: _key(keyring, groups[c], client_id, name) for c in open_to}
    properties = pl.ParquetDecryptionProperties(footer_key=footer, column_keys=keys, aad_prefix=_aad(client_id, name))
    return pl.scan_parquet(path, decryption=properties, glob=False).select(*FOOTER_COLUMNS, *open_to)


def require_encrypted(path: Path) -> None:
    """Check both magics: readers accept a plain Parquet file put in place of an encrypted one.

    Raises:
        KeyringError: it is not an encrypted Parquet file.
    """
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(max(_SMALLEST, file.seek(0, 2)) - 4)
        if head != _MAGIC or file.read(4) != _MAGIC:
            raise KeyringError(
                f"The vault file {path.name} is not encrypted as it must be; restore it from its backup."
            )


def _key(keyring: Keyring, group: str, client_id: str, name: str) -> bytes:
    return keyring.derive(vault_purpose(group), client_id, name)


def _aad(client_id: str, name: str) -> bytes:
    return f"healthingest/1\x1f{client_id}\x1f{name}".encode()
