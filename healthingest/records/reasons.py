"""Why a record was rejected: `{column, rule, kind}`, never a value; and how often, alone and together."""

from collections.abc import Mapping
from typing import NamedTuple

import polars as pl

from healthingest.model import RuleCount, RulePair

#: dtype of one reason in a frame.
REASON = pl.Struct({"column": pl.String, "rule": pl.String, "kind": pl.String})
#: dtype of a record's reasons.
REASONS = pl.List(REASON)
#: Pairs that are counted: more than a person looks at.
_PAIRS = 50


class Reason(NamedTuple):
    """One failed rule of one record."""

    #: Contract column; None where the record as a whole is at fault.
    column: str | None
    rule: str
    kind: str


def count_reasons(reasons: pl.Series, warnings: Mapping[Reason, int] | None = None) -> tuple[RuleCount, ...]:
    """Records per reason (list of Reason per rejected record) and per warning, most frequent first."""
    counted = pl.DataFrame({"reason": reasons}).explode("reason").drop_nulls().unnest("reason")
    per_rule = counted.group_by("column", "rule", "kind").agg(pl.len().alias("records")).to_dicts()
    rules = [RuleCount(**row) for row in per_rule]
    rules += [RuleCount(*reason, records, "warn") for reason, records in (warnings or {}).items() if records]
    return tuple(sorted(rules, key=lambda r: (-r.records, r.rule, r.column or "")))


def count_pairs(reasons: pl.Series) -> tuple[RulePair, ...]:
    """Records that two rules reject together, most frequent pair first."""
    several = pl.DataFrame({"reason": reasons}).filter(pl.col("reason").list.len() > 1).with_row_index()
    if several.is_empty():
        return ()
    sets = several.select(rules=pl.col("reason").list.eval(pl.element().struct.field("rule").unique().sort()))
    # Few distinct sets of rules occur, whatever the number of records.
    counts: dict[tuple[str, str], int] = {}
    for rules, records in sets.group_by("rules").len().iter_rows():
        for place, first in enumerate(rules):
            for second in rules[place + 1 :]:
                counts[first, second] = counts.get((first, second), 0) + records
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_PAIRS]
    return tuple(RulePair(first, second, records) for (first, second), records in top)
