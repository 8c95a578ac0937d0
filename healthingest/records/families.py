"""Finds the dependents of a file whose subscriber is not among its accepted records: a pass of its own.

Whether a subscriber is there, and passes all its rules, shows only at the file's end. So the file is checked once
before, and of each record that passes, 32 bytes are kept. Only the same file is looked at: what other deliveries say
depends on which of them came already, and silver must not.
"""

from collections.abc import Callable, Iterable

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.rules import Rule
from healthingest.records.damage import RECORD_NO


def find_orphans(
    accepted: Iterable[pl.DataFrame], client: Client, erased: Callable[[pl.Series], pl.Series] | None = None
) -> dict[str, pl.Series]:
    """Id of each of the client's `subscriber` rules -> numbers (Int64, ascending) of the dependents that break it.

    `accepted`: records (contract columns in their standard form) that break no other rule, in the order of the file.
    `erased` says of member ids whether they were erased: their records are gone, and no dependent is refused for it.
    """
    rules = [rule for rule in client.rules if rule.subscriber]
    seen: dict[str, list[pl.DataFrame]] = {rule.id: [] for rule in rules}
    for rows in accepted:
        for rule in rules:
            seen[rule.id].append(rows.select(RECORD_NO, **_family(rule)))
    return {rule.id: _orphans(seen[rule.id], erased) for rule in rules}


def _family(rule: Rule) -> dict[str, pl.Expr]:
    """Two independent hashes of the member's own id and of the subscriber's; whether this is the subscriber."""
    own, subscriber, said = pl.col("member_id"), pl.col(rule.column), rule.subscriber
    itself = subscriber.is_null() | (subscriber == own)
    if said and said.relationship:
        itself = pl.col(said.relationship).is_in(said.self_values).fill_null(value=False) | itself
    return {
        "own": pl.struct(own.hash(seed=1).alias("a"), own.hash(seed=2).alias("b")),
        "subscriber": pl.struct(subscriber.hash(seed=1).alias("a"), subscriber.hash(seed=2).alias("b")),
        "itself": itself,
        "id": pl.when(~itself).then(subscriber),
    }


def _orphans(parts: list[pl.DataFrame], erased: Callable[[pl.Series], pl.Series] | None) -> pl.Series:
    """Of each member the last record counts: a later one may make a dependent of a subscriber."""
    if not parts:
        return pl.Series(dtype=pl.Int64)
    every = pl.concat(parts)
    there = every.unique("own", keep="last").filter("itself").select(subscriber="own")
    orphans = every.filter(~pl.col("itself")).join(there, on="subscriber", how="anti")
    if erased and orphans.height:
        orphans = orphans.filter(~erased(orphans["id"]))
    return orphans[RECORD_NO].sort()
