"""Why a record was rejected: `{column, rule, kind}`, never a value."""

from typing import NamedTuple

import polars as pl

#: dtype of one reason in a frame.
REASON = pl.Struct({"column": pl.String, "rule": pl.String, "kind": pl.String})
#: dtype of a record's reasons.
REASONS = pl.List(REASON)


class Reason(NamedTuple):
    """One failed rule of one record."""

    #: Contract column; None where the record as a whole is at fault.
    column: str | None
    rule: str
    kind: str


def count_reasons(reasons: pl.Series) -> pl.DataFrame:
    """Records per reason, most frequent first: column, rule, kind (String), records (UInt32)."""
    counted = pl.DataFrame({"reason": reasons}).explode("reason").drop_nulls().unnest("reason")
    return (
        counted.group_by("column", "rule", "kind")
        .agg(pl.len().alias("records"))
        .sort("records", "column", "rule", descending=[True, False, False])
    )
