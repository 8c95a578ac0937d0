"""Generalisation: what a quasi-identifier becomes before everyone may read it."""

from functools import cache
from importlib.resources import files

import polars as pl

#: Names the population table behind `zip3`, for documents and exports.
ZIP3_VERSION = "census-2020"


@cache
def zip3_allow_list() -> frozenset[str]:
    """Prefixes with more than 20,000 people; the file names its source and rule."""
    text = files("healthingest.privacy").joinpath("zip3_census_2020.txt").read_text(encoding="ascii")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return frozenset(" ".join(lines).split())


def generalize(value: pl.Expr, how: str) -> pl.Expr:
    """Derive from a standardised value (String): `year` -> Int32, `zip3` -> String ("000" if too few live there)."""
    if how == "year":
        return value.str.slice(0, 4).cast(pl.Int32)
    prefix = value.str.slice(0, 3)
    return pl.when(prefix.is_in(sorted(zip3_allow_list()))).then(prefix).when(prefix.is_not_null()).then(pl.lit("000"))
