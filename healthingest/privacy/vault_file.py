"""Encrypted Parquet: the only module that touches polars' (unstable) Parquet Modular Encryption.

Every column stands under the key of a group and names it, `<group>/<column>`, or the write is refused: a column in
no group would be stored in clear. Keys are derived from client and file name, which the AAD repeats: a file put in
another's place does not open.
"""

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import polars as pl

from healthingest.errors import KeyringError
from healthingest.privacy.keyring import Keyring, vault_purpose
from healthingest.storage.files import scan_parquet, write_parquet

#: Columns that only serve to find a row; under the footer's key.
FOOTER_COLUMNS = ("member_token", "_file_id")
_MAGIC = b"PARE"
_GENERATION = re.compile(r"-g([0-9]+)[0-9a-f]{8}\.parquet$")
_SMALLEST = 12  # bytes: both magics and the footer's length


def write_encrypted(frame: pl.DataFrame, path: Path, keyring: Keyring, client_id: str, *, name: str) -> None:
    """Write `frame` (FOOTER_COLUMNS and columns named `<group>/<column>`, all String), encrypted for the file `name`.

    Raises:
        KeyringError: a column belongs to no group, or a group's key is missing.
    """
    groups = {column: _group(column) for column in frame.columns}
    if astray := [column for column, group in groups.items() if group is None]:
        raise KeyringError(f"Column {astray[0]} belongs to no column group; it would be stored in clear.")
    footer = _key(keyring, "footer", client_id, name)
    keys = {c: footer if g == "footer" else _key(keyring, str(g), client_id, name) for c, g in groups.items()}
    write_under(frame, path, footer, keys, aad=_aad(client_id, name))


def write_under(
    frame: pl.DataFrame, path: Path, footer: bytes, keys: Mapping[str, bytes], *, aad: bytes,
    compression: Literal["zstd", "lz4"] = "zstd",
) -> None:  # fmt: skip
    """Write a frame with every column under the key that `keys` has for it.

    Raises:
        KeyringError: what was written is not encrypted.
    """
    properties = pl.ParquetEncryptionProperties(footer_key=footer, column_keys=dict(keys), aad_prefix=aad)
    level = 1 if compression == "zstd" else None  # as small as polars' default here, in half the time
    write_parquet(
        frame, path, compression=compression, compression_level=level, statistics=False, encryption=properties
    )
    require_encrypted(path)


def scan_under(path: Path, footer: bytes, keys: Mapping[str, bytes], *, aad: bytes) -> pl.LazyFrame:
    """Open what `write_under` wrote; of columns without a key only the name can be had."""
    properties = pl.ParquetDecryptionProperties(footer_key=footer, column_keys=dict(keys), aad_prefix=aad)
    return scan_parquet(path, decryption=properties)


def scan_encrypted(path: Path, keyring: Keyring, client_id: str, *, name: str) -> pl.LazyFrame:
    """Open an encrypted file lazily, with those columns only whose group's key the keyring holds.

    Raises:
        KeyringError: the file is not encrypted, or the footer key is missing.
    """
    require_encrypted(path)
    keys = dict.fromkeys(FOOTER_COLUMNS, _key(keyring, "footer", client_id, name))
    for column in _columns(path, keyring, client_id, name):
        group = _group(column)
        if group and group != "footer" and keyring.holds(vault_purpose(group), client_id):
            keys[column] = _key(keyring, group, client_id, name)
    return _scan(path, keys, client_id, name).select(list(keys))


def groups_of(path: Path, keyring: Keyring, client_id: str, *, name: str) -> set[str]:
    """The column groups of an encrypted file, whether the keyring holds their keys or not.

    Raises:
        KeyringError: as `scan_encrypted`.
    """
    require_encrypted(path)
    return {str(_group(column)) for column in _columns(path, keyring, client_id, name)} - {"footer"}


def _columns(path: Path, keyring: Keyring, client_id: str, name: str) -> list[str]:
    """All columns: the footer's key is enough to see which there are."""
    keys = dict.fromkeys(FOOTER_COLUMNS, _key(keyring, "footer", client_id, name))
    return _scan(path, keys, client_id, name).collect_schema().names()


def _scan(path: Path, keys: dict[str, bytes], client_id: str, name: str) -> pl.LazyFrame:
    return scan_under(path, keys[FOOTER_COLUMNS[0]], keys, aad=_aad(client_id, name))


def _group(column: str) -> str | None:
    """The group that a column of a file stands under; None if it must not be in one."""
    group, slash, rest = column.partition("/")
    return "footer" if column in FOOTER_COLUMNS else group if slash and group and rest else None


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


def nonce(keyring: Keyring, client_id: str) -> str:
    """The part of a new file's name that makes it one of its kind; from the second on it says the keys' generation."""
    generation = keyring.generation(vault_purpose("footer"), client_id)
    return (f"g{generation}" if generation > 1 else "") + secrets.token_hex(4)


def generation_of(name: str) -> int:
    """The generation of the keys that a file is under."""
    found = _GENERATION.search(name)
    return int(found[1]) if found else 1


def _key(keyring: Keyring, group: str, client_id: str, name: str) -> bytes:
    return keyring.derive_at(generation_of(name), vault_purpose(group), client_id, name)


def _aad(client_id: str, name: str) -> bytes:
    return f"healthingest/1\x1f{client_id}\x1f{name}".encode()
