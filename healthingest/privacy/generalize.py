"""Generalisation: what a quasi-identifier becomes before everyone may read it."""

from datetime import date
from functools import cache
from importlib.resources import files

import polars as pl

#: Names the population table behind `zip3`, for documents and exports.
ZIP3_VERSION = "census-2020"
_SHORT = 7
#: Ages from which on everyone is of one band (45 CFR 164.514(b)(2)(i)(C)).
OLDEST = 90


@cache
def zip3_allow_list() -> frozenset[str]:
    """Prefixes with more than 20,000 people; the file names its source and rule."""
    text = files("healthingest.privacy").joinpath("zip3_census_2020.txt").read_text(encoding="ascii")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return frozenset(" ".join(lines).split())


def generalize(value: pl.Expr, how: str) -> pl.Expr:
    """Derive from a standardised value (String): `year` -> Int32; all others -> String.

    `month` is YYYY-MM, `zip3` "000" if too few live there, `last4` and `first` have an asterisk for what is hidden.
    """
    if how == "year":
        return value.str.slice(0, 4).cast(pl.Int32)
    if how == "month":
        return value.str.slice(0, 7)
    if how == "last4":  # of a short value nothing: it would be shown whole
        shown = pl.when(value.str.len_chars() > _SHORT).then(value.str.slice(-4)).otherwise(pl.lit(""))
        return pl.when(value.is_not_null()).then(pl.lit("*") + shown)
    if how == "first":
        return value.str.slice(0, 1) + pl.lit("*")
    prefix = value.str.slice(0, 3)
    return pl.when(prefix.is_in(sorted(zip3_allow_list()))).then(prefix).when(prefix.is_not_null()).then(pl.lit("000"))


def age_band(year: pl.Expr, as_of: date) -> pl.Expr:
    """Ten years' band of the age that someone born in `year` (Int32) reaches in the year of `as_of`: "40-49", "90+"."""
    age = pl.lit(as_of.year) - year
    low = age // 10 * 10
    band = low.cast(pl.String) + pl.lit("-") + (low + 9).cast(pl.String)
    return pl.when(age >= OLDEST).then(pl.lit(f"{OLDEST}+")).when(age >= 0).then(band)
