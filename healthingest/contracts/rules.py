r"""The rule kinds a contract or client config may use, and what each asks of a record.

What belongs here: the YAML model of a rule and its polars expression. What does not: cleaning and parsing of values
(`records.standardize`), the split of records (`records.validate`), and the two kinds that need more than the record
before them: `is` (a standard form) and `unique` (the other records).
Regexes are matched whole, by Rust's engine: write `[0-9]`, since `\d` also matches other scripts' digits.
"""

import math
import re
from collections.abc import Callable
from datetime import date
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import polars as pl
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictStr, field_validator, model_validator

#: Suffix of the column that holds a value in its standard form, or null where it has none.
STANDARD = "__std"
#: Suffix of the column (Boolean) that says whether a value holds a control character.
CONTROL = "__control"
#: Column with the delivery's date (Date), present in every frame that is validated.
DELIVERY_DATE = "__delivery_date"

RuleId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")]
Severity = Literal["error", "warn"]
#: What a text can be held to be, on a column of any type; each is a column type as well.
Domain = Literal["date", "gender", "us_state", "us_zip", "phone", "email", "ssn", "mbi", "npi"]
DOMAINS: tuple[Domain, ...] = get_args(Domain)
Operator = Literal["<", "<=", ">", ">=", "==", "!="]
#: The standard form of a contract column's value, by the column's name.
StandardOf = Callable[[str], pl.Expr]

_BOUND = re.compile(r"creation_date(?: ?([+-]) ?([0-9]{1,5}d|[0-9]{1,4}m|[0-9]{1,3}y))?")
_UNITS = {"d": "d", "m": "mo", "y": "y"}
_NUMBER = r"^-?[0-9]{1,15}(?:\.[0-9]{1,9})?$"


class Strict(BaseModel):
    """Base of all YAML models: no unknown key, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


def _anchored(pattern: str) -> str:
    return f"^(?:{pattern})$"


def _compiling(value: str | None) -> str | None:
    if value is not None:
        try:
            for text in (value, _anchored(value)):  # alone too: "a)|(b" would close the anchor's bracket
                pl.Series([""]).str.contains(text)
        except pl.exceptions.ComputeError:
            raise ValueError(
                "this regular expression does not compile; look-around and back-references do not exist here"
            ) from None
    return value


class Between(Strict):
    """Bounds of a date, both inclusive: ISO dates, or the delivery's own: `creation_date`, `creation_date - 120y`."""

    min: StrictStr | None = None
    max: StrictStr | None = None

    @field_validator("min", "max")
    @classmethod
    def _known_bound(cls, value: str | None) -> str | None:
        if value is not None and not _BOUND.fullmatch(value):
            try:
                plain = date.fromisoformat(value).isoformat() == value  # other ISO forms do not sort as text
            except ValueError:
                plain = False
            if not plain:
                raise ValueError(
                    'a bound is a date like "1900-01-01", "creation_date", or "creation_date - 120y" (d, m, y)'
                )
        return value

    @model_validator(mode="after")
    def _bounds_something(self) -> "Between":
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        plain = [bound for bound in (self.min, self.max) if bound and not _BOUND.fullmatch(bound)]
        if len(plain) == 2 and plain[0] > plain[1]:  # noqa: PLR2004 - both are dates
            raise ValueError("min is after max, so nothing would pass")
        return self


def _plain_number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("write a number")
    return value


Number = Annotated[float, BeforeValidator(_plain_number)]


class Span(Strict):
    """Bounds of a number or a length, both inclusive."""

    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _bounds_something(self) -> "Span":
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is greater than max, so nothing would pass")
        return self

    def holds(self, value: pl.Expr) -> pl.Expr:
        """Whether a number lies within."""
        ok = pl.lit(value=True)
        if self.min is not None:
            ok = ok & (value >= self.min)
        return ok & (value <= self.max) if self.max is not None else ok


class Compare(Strict):
    """How the value stands to another column's: as dates, as text for == and !=, else as numbers."""

    is_: Operator = Field(alias="is")
    to: StrictStr


class Unique(Strict):
    """No other record of the file has the same value, together with those of further columns."""

    with_: list[StrictStr] = Field(default_factory=list, alias="with")


class Subscriber(Strict):
    """The column names the dependent's subscriber, who must be among the accepted records of the same file."""

    #: Column whose `self_values` say that a record is the subscriber itself; else it is one that names itself.
    relationship: StrictStr | None = None
    self_values: list[StrictStr] = Field(default_factory=lambda: ["18", "self", "Self", "SELF"], min_length=1)


class When(Strict):
    """A condition on a column; the rule asks nothing of records that do not meet it."""

    column: StrictStr
    in_: list[StrictStr] | None = Field(default=None, alias="in", min_length=1)
    not_in: list[StrictStr] | None = Field(default=None, min_length=1)
    pattern: StrictStr | None = None
    filled: bool | None = None

    @model_validator(mode="after")
    def _exactly_one_test(self) -> "When":
        if sum(t is not None for t in (self.in_, self.not_in, self.pattern, self.filled)) != 1:
            raise ValueError("a condition has a column and exactly one of: in, not_in, pattern, filled")
        return self

    _compiles = field_validator("pattern")(_compiling)

    @property
    def listed(self) -> tuple[str, list[str] | None]:
        """The column, and the values that it is compared with."""
        return self.column, self.in_ or self.not_in

    def met(self, standard_of: StandardOf) -> pl.Expr:
        """True where the condition holds, False where it does not; never null."""
        value = standard_of(self.column)
        if self.filled is not None:
            return value.is_not_null() if self.filled else value.is_null()
        if self.pattern is not None:
            return value.str.contains(_anchored(self.pattern)).fill_null(value=False)
        if self.in_ is not None:
            return value.is_in(self.in_).fill_null(value=False)
        return ~value.is_in(self.not_in or []).fill_null(value=False)


def _true_or(model: type[Strict], form: str) -> BeforeValidator:
    """A key that is written `true`, or as what `form` shows."""

    def validate(value: object) -> object:
        if value is not True and not isinstance(value, (dict, model, type(None))):
            raise ValueError(f"write true, or {form}")
        return {} if value is True else value

    return BeforeValidator(validate)


class Rule(Strict):
    """One named check of one column; exactly one of the kind keys is given."""

    id: RuleId
    column: StrictStr
    not_blank: Literal[True] | None = None
    pattern: StrictStr | None = None
    length: Span | None = None
    max_length: int | None = Field(default=None, ge=1, strict=True)
    in_: list[StrictStr] | None = Field(default=None, alias="in", min_length=1)
    not_in: list[StrictStr] | None = Field(default=None, min_length=1)
    number: Span | None = None
    between: Between | None = None
    compare: Compare | None = None
    is_: Domain | None = Field(default=None, alias="is")
    unique: Annotated[Unique | None, _true_or(Unique, "{with: [other columns]}")] = None
    subscriber: Annotated[Subscriber | None, _true_or(Subscriber, "{relationship: column, self_values: [...]}")] = None
    when: When | None = None
    severity: Severity = "error"
    description: StrictStr | None = None

    @model_validator(mode="after")
    def _exactly_one_kind(self) -> "Rule":
        if sum(getattr(self, name) is not None for name in _KINDS) != 1:
            keys = ", ".join(name.rstrip("_") for name in _KINDS)
            raise ValueError(f"a rule has exactly one of: {keys}")
        if (self.unique or self.subscriber) and self.when:
            raise ValueError("unique and subscriber cannot be conditional; leave when out")
        if self.length and any(b is not None and (b < 0 or b % 1) for b in (self.length.min, self.length.max)):
            raise ValueError("a length is a whole number from 0")
        others = [*([self.compare.to] if self.compare else []), *(self.unique.with_ if self.unique else [])]
        if self.column in others:
            raise ValueError("a column cannot be compared or combined with itself")
        return self

    _compiles = field_validator("pattern")(_compiling)

    @cached_property
    def kind(self) -> str:
        """The kind that reasons carry."""
        if self.is_ is not None:
            return self.is_
        return next(kind for name, kind in _KINDS.items() if getattr(self, name) is not None)

    @property
    def columns(self) -> list[str]:
        """All contract columns that the rule looks at."""
        others = [*([self.compare.to] if self.compare else []), *([self.when.column] if self.when else [])]
        others += [self.subscriber.relationship] if self.subscriber and self.subscriber.relationship else []
        return [self.column, *others, *(self.unique.with_ if self.unique else [])]

    @property
    def of_the_file(self) -> bool:
        """Whether it takes the whole file to tell which records break it."""
        return self.unique is not None or self.subscriber is not None

    def passes(self, standard_of: StandardOf, *, both_dates: bool = False) -> pl.Expr:
        """True where a record passes; null (no value) is for Pandera to let through. Not for `is`, nor of the file.

        `both_dates`: the two columns of a comparison are dates.
        """
        return self.conditional(self._asked(standard_of, both_dates=both_dates), standard_of)

    def conditional(self, passes: pl.Expr, standard_of: StandardOf) -> pl.Expr:
        """`passes`, asked only of the records that meet `when`."""
        return passes if self.when is None else ~self.when.met(standard_of) | passes

    def _asked(self, standard_of: StandardOf, *, both_dates: bool) -> pl.Expr:
        value = standard_of(self.column)
        answers: dict[str, Callable[[Any], pl.Expr]] = {
            "not_blank": lambda _: value.is_not_null(),
            "pattern": lambda pattern: value.str.contains(_anchored(pattern)),
            "max_length": lambda most: value.str.len_chars() <= most,
            "length": lambda span: span.holds(value.str.len_chars()),
            "in_": value.is_in,
            "not_in": lambda refused: ~value.is_in(refused),
            "number": lambda span: pl.when(value.is_not_null()).then(span.holds(_number(value)).fill_null(value=False)),
            "between": lambda bounds: _within(value, bounds),
            "compare": lambda to: _compared(value, standard_of(to.to), to.is_, both_dates=both_dates),
        }
        return next(ask(getattr(self, name)) for name, ask in answers.items() if getattr(self, name) is not None)

    @cached_property
    def text(self) -> str:
        """What the rule asks, in words for the people who send the files; its description if it has one."""
        return self.description or _words(self)


#: Key of a rule in YAML -> the kind that reasons carry.
_KINDS = {
    "not_blank": "missing", "pattern": "pattern", "length": "length", "max_length": "length", "in_": "in",
    "not_in": "not_in", "number": "number", "between": "range", "compare": "compare", "is_": "is", "unique": "unique",
    "subscriber": "subscriber",
}  # fmt: skip


def _number(value: pl.Expr) -> pl.Expr:
    return pl.when(value.str.contains(_NUMBER)).then(value).cast(pl.Float64)


def _compared(value: pl.Expr, other: pl.Expr, operator: Operator, *, both_dates: bool) -> pl.Expr:
    """Null where one of the two is missing; False where an order is asked of what is no number."""
    compare: dict[str, Callable[[Any, Any], pl.Expr]] = {
        "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
        "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
    }  # fmt: skip
    if both_dates or operator in {"==", "!="}:  # standard dates are ISO text, which sorts as dates do
        return compare[operator](value, other)
    ordered = compare[operator](_number(value), _number(other)).fill_null(value=False)
    return pl.when(value.is_not_null() & other.is_not_null()).then(ordered)


def _within(value: pl.Expr, bounds: Between) -> pl.Expr:
    ok = pl.lit(value=True)
    for bound, side in ((bounds.min, "min"), (bounds.max, "max")):
        if bound is None:
            continue
        limit = _bound(bound)
        ok = ok & (value >= limit if side == "min" else value <= limit)
    return ok


def _bound(bound: str) -> pl.Expr:
    relative = _BOUND.fullmatch(bound)
    if relative is None:
        return pl.lit(bound)
    day = pl.col(DELIVERY_DATE)
    if relative[1]:
        day = day.dt.offset_by(f"{relative[1].strip('+')}{relative[2][:-1]}{_UNITS[relative[2][-1]]}")
    return day.dt.to_string("%Y-%m-%d")


def _words(rule: Rule) -> str:
    """A sentence's end, after "the column ..."."""
    said = _asked_in_words(rule)
    if rule.when is None:
        return said
    when, column = rule.when, rule.when.column
    if when.filled is not None:
        return f"{said}, where {column} is {'filled' if when.filled else 'empty'}"
    if when.pattern is not None:
        return f"{said}, where {column} matches {when.pattern}"
    word = "is one of" if when.in_ else "is none of"
    return f"{said}, where {column} {word} {', '.join(when.in_ or when.not_in or [])}"


def _asked_in_words(rule: Rule) -> str:
    words: dict[str, Callable[[Any], str]] = {
        "not_blank": lambda _: "must not be empty",
        "pattern": lambda pattern: f"must match the pattern {pattern}",
        "max_length": lambda most: f"must have at most {most} characters",
        "length": lambda span: f"must have {_span(span.min, span.max)} characters",
        "in_": lambda values: f"must be one of {', '.join(values)}",
        "not_in": lambda values: f"must not be one of {', '.join(values)}",
        "number": lambda span: f"must be a number of {_span(span.min, span.max)}",
        "between": lambda dates: f"must be a date {_span(dates.min, dates.max)} (creation_date is the file's date)",
        "compare": lambda to: f"must be {to.is_} {to.to}",
        "is_": lambda domain: f"must be a valid {DOMAIN_WORDS[domain]}",
        "subscriber": lambda _: "must name a subscriber whose own record is in the same file and is accepted",
        "unique": lambda with_: " with ".join(["must occur once in the file", *with_.with_]),
    }
    return next(say(getattr(rule, name)) for name, say in words.items() if getattr(rule, name) is not None)


def _span(low: float | str | None, high: float | str | None) -> str:
    def plain(bound: float | str) -> str:
        return bound if isinstance(bound, str) else f"{bound:g}"

    parts = [f"at least {plain(low)}" if low is not None else "", f"at most {plain(high)}" if high is not None else ""]
    return " and ".join(part for part in parts if part)


#: Domain -> what people call it.
DOMAIN_WORDS: dict[str, str] = {
    "date": "date in the agreed format", "gender": "gender code: M, F, X, U or O, or the word",
    "us_state": "US state or territory, by its USPS code or full name", "us_zip": "ZIP code of 5 digits, or ZIP+4",
    "phone": "telephone number: ten North American digits, or international with +", "email": "e-mail address",
    "ssn": "Social Security number", "mbi": "Medicare Beneficiary Identifier", "npi": "National Provider Identifier",
}  # fmt: skip
