r"""The rule kinds a contract or client config may use, and how each becomes one Pandera check.

What belongs here: the YAML model of a rule and its polars expression. What does not: cleaning and parsing of
values (`records.standardize`) and the split of records (`records.validate`).
Regexes are matched whole, by Rust's engine: write `[0-9]`, since `\d` also matches other scripts' digits.
"""

from datetime import date
from functools import cached_property
from typing import Annotated, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, StrictStr, field_validator, model_validator

#: Suffix of the column that holds a value in its standard form, or null where it has none.
STANDARD = "__std"
#: Column with the delivery's date (Date), present in every frame that is validated.
DELIVERY_DATE = "__delivery_date"

RuleId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]


class Strict(BaseModel):
    """Base of all YAML models: no unknown key, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Between(Strict):
    """Bounds of a date, both inclusive: ISO dates or `creation_date`, the delivery's own date."""

    min: StrictStr | None = None
    max: StrictStr | None = None

    @field_validator("min", "max")
    @classmethod
    def _known_bound(cls, value: str | None) -> str | None:
        if value is not None and value != "creation_date":
            try:
                plain = date.fromisoformat(value).isoformat() == value  # other ISO forms do not sort as text
            except ValueError:
                plain = False
            if not plain:
                raise ValueError('a bound is "creation_date" or a date like "1900-01-01"')
        return value

    @model_validator(mode="after")
    def _bounds_something(self) -> "Between":
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        return self


class Rule(Strict):
    """One named check of one column; exactly one of the kind keys is given."""

    id: RuleId
    column: StrictStr
    pattern: StrictStr | None = None
    max_length: int | None = Field(default=None, ge=1)
    in_: list[StrictStr] | None = Field(default=None, alias="in", min_length=1)
    between: Between | None = None
    description: StrictStr | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> "Rule":
        given = [k for k in ("pattern", "max_length", "in_", "between") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError("a rule has exactly one of: pattern, max_length, in, between")
        return self

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                for text in (value, _anchored(value)):  # alone too: "a)|(b" would close the anchor's bracket
                    pl.Series([""]).str.contains(text)
            except pl.exceptions.ComputeError:
                raise ValueError(
                    "this regular expression does not compile; look-around and back-references do not exist here"
                ) from None
        return value

    @cached_property
    def kind(self) -> Literal["pattern", "length", "in", "range"]:
        """The kind that reasons carry."""
        if self.pattern is not None:
            return "pattern"
        if self.max_length is not None:
            return "length"
        return "in" if self.in_ is not None else "range"

    def passes(self, standard: pl.Expr) -> pl.Expr:
        """True where the standardised value passes; null (no value) is for Pandera to let through."""
        if self.pattern is not None:
            return standard.str.contains(_anchored(self.pattern))
        if self.max_length is not None:
            return standard.str.len_chars() <= self.max_length
        if self.in_ is not None:
            return standard.is_in(self.in_)
        return _within(standard, self.between or Between())


def _anchored(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _within(standard: pl.Expr, bounds: Between) -> pl.Expr:
    # Standard dates are ISO text, which sorts as dates do.
    ok = pl.lit(value=True)
    for bound, side in ((bounds.min, "min"), (bounds.max, "max")):
        if bound is None:
            continue
        limit = pl.col(DELIVERY_DATE).dt.to_string("%Y-%m-%d") if bound == "creation_date" else pl.lit(bound)
        ok = ok & (standard >= limit if side == "min" else standard <= limit)
    return ok
