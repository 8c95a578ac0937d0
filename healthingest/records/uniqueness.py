"""Finds the records of a file that share what a `unique` rule says is one record's alone: a pass of its own.

Whether a record is alone in its file shows only at the file's end, when its batch is long gone; so the file is read
once before for the columns concerned, keeping 24 bytes a record. All copies break the rule: nothing tells which of
them is right. Compared are standard forms; an empty value is no copy of another.
"""

from collections.abc import Iterable

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.rules import Rule
from healthingest.records.damage import RECORD_NO
from healthingest.records.read import Batch
from healthingest.records.standardize import standardize
from healthingest.records.transform import transform


def find_duplicates(batches: Iterable[Batch], client: Client) -> dict[str, pl.Series]:
    """Id of each of the client's `unique` rules -> numbers (Int64, ascending) of the records that break it."""
    rules = [rule for rule in client.rules if rule.unique]
    seen: dict[str, list[pl.DataFrame]] = {rule.id: [] for rule in rules}
    for batch in batches:
        rows = standardize(transform(batch.rows, client), client)
        for rule in rules:
            seen[rule.id].append(rows.select(RECORD_NO, **_digests(rule, client)).drop_nulls())
    return {rule.id: _shared(seen[rule.id]) for rule in rules}


def _digests(rule: Rule, client: Client) -> dict[str, pl.Expr]:
    """Two independent 64-bit hashes of what must be unique; null where the rule's own column is empty."""
    standard = client.contract.standard_of
    columns = [rule.column, *(rule.unique.with_ if rule.unique else [])]
    together = pl.struct(standard(name).alias(f"v{place}") for place, name in enumerate(columns))
    given = pl.when(standard(rule.column).is_not_null())
    return {"first": given.then(together.hash(seed=1)), "second": given.then(together.hash(seed=2))}


def _shared(parts: list[pl.DataFrame]) -> pl.Series:
    if not parts:
        return pl.Series(dtype=pl.Int64)
    every = pl.concat(parts)
    return every.filter(pl.struct("first", "second").is_duplicated())[RECORD_NO].sort()
