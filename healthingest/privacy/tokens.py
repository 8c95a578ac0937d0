"""Keyed pseudonyms: member tokens, content hashes and file ids, by HMAC-SHA256 (FIPS 198-1), per client.

Unkeyed hashes protect nothing here: a birth date was recovered from the SHA-256 of a one-record file in 0.07 s.
polars-hash takes the key as text and accepts an empty one, so a known-answer test runs before its first use.
"""

import hashlib
import hmac
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import polars as pl
import polars_hash as plh

from healthingest.errors import KeyringError
from healthingest.privacy.keyring import SHARED, Keyring

#: Rows from which on hashing is worth more than one thread.
_LARGE = 50_000
#: Hex digits of all tokens, hashes and file ids: 16 bytes.
DIGITS = 32
# Neither can stand in a value: control characters are rejected.
_SEPARATOR, _MISSING = "\x1f", "\x00"


def member_token(keyring: Keyring, client_id: str, member_id: pl.Series) -> pl.Series:
    """Tokens of normalised member ids (String -> String of 32 hex digits); equal ids of two clients differ."""
    prefix = f"mt1{_SEPARATOR}{client_id}{_SEPARATOR}"
    frame = pl.select(pl.lit(prefix) + member_id)
    return _hmac(frame, keyring.derive("member_token", client_id)).alias("member_token")


def content_hash(keyring: Keyring, client_id: str, frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Hash of what a record says of its member: String of 32 hex digits per row of `frame`.

    `frame` holds `member_token` (String) and `columns`. The token goes in, or equal records would link two people.
    Missing values at the end leave no trace, so a column appended to a contract changes no hash until it is filled.
    """
    values = [pl.col(name).cast(pl.String).fill_null(_MISSING) for name in columns]
    said = pl.concat_str(pl.lit(f"ch1{_SEPARATOR}{client_id}"), "member_token", *values, separator=_SEPARATOR)
    text = frame.select(said.str.strip_chars_end(_SEPARATOR + _MISSING))
    return _hmac(text, keyring.derive("content_hash", client_id)).alias("_content_hash")


def compact(column: str) -> pl.Expr:
    """Tokens or hashes (32 hex digits) as Int128: the same 16 bytes in a third of the memory, and joined faster."""
    return pl.col(column).str.decode("hex").bin.reinterpret(dtype=pl.Int128, endianness="big")


def ledger_entry(keyring: Keyring, client_id: str, member_id: pl.Series) -> pl.Series:
    """Names of normalised member ids in the ledger of erasures (String of 32 hex digits); unrelated to their tokens."""
    frame = pl.select(pl.lit(f"er1{_SEPARATOR}{client_id}{_SEPARATOR}") + member_id)
    return _hmac(frame, keyring.derive("erasure", client_id)).alias("entry")


def file_id(keyring: Keyring, file_name: str, sha256: bytes) -> str:
    """Identity of a delivery, 32 hex digits; the same bytes under two names are two deliveries."""
    return hmac.digest(keyring.derive("file"), os.fsencode(file_name) + b"\0" + sha256, hashlib.sha256).hex()[:DIGITS]


def reread_id(keyring: Keyring, origin: str, config_hash: str, latest: str) -> str:
    """Identity of a delivery that is read once more under a config, after the latest of its name; 32 hex digits."""
    said = "\0".join(("reread", origin, config_hash, latest)).encode()
    return hmac.digest(keyring.derive("file"), said, hashlib.sha256).hex()[:DIGITS]


def repair_id(keyring: Keyring, latest: str, sha256: bytes) -> str:
    """Identity of a delivery that holds mended records in the place of rejected ones of another; 32 hex digits."""
    said = b"\0".join((b"repair", latest.encode(), sha256))
    return hmac.digest(keyring.derive("file"), said, hashlib.sha256).hex()[:DIGITS]


def content_hmac(keyring: Keyring, sha256: bytes) -> str:
    """Keyed digest of a file's content alone, 32 hex digits."""
    return hmac.digest(keyring.derive("file", SHARED, "content"), sha256, hashlib.sha256).hex()[:DIGITS]


def _hmac(text: pl.DataFrame, key: bytes) -> pl.Series:
    # Eager only: a serialised LazyFrame would carry the key.
    _known_answer_test()
    hashed = plh.col(text.columns[0]).chash.hmac_sha256(key=key.hex()).str.slice(0, DIGITS)
    if text.height < _LARGE:
        return text.select(hashed).to_series()
    # The expression runs on one core, however long the column.
    workers = os.cpu_count() or 1
    size = -(-text.height // workers)
    parts = [text.slice(at, size) for at in range(0, text.height, size)]
    with ThreadPoolExecutor(workers) as pool:
        done: pl.DataFrame = pl.concat(pool.map(lambda part: part.select(hashed), parts), rechunk=True)
    return done.to_series()


@cache
def _known_answer_test() -> None:
    """Hold the library against the standard one, with keys shorter and longer than a block.

    Raises:
        KeyringError: they differ; every token made from here on would be wrong.
    """
    for key in ("00ff" * 16, "ab" * 80):
        for value in ("", "M00000001", "José\x1f"):
            expected = hmac.digest(key.encode(), value.encode(), hashlib.sha256).hex()
            got = pl.DataFrame({"v": [value]}).select(plh.col("v").chash.hmac_sha256(key=key)).item()
            if got != expected:
                raise KeyringError("polars-hash does not compute HMAC-SHA256 here; install the locked versions.")
