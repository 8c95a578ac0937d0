"""How a file differs from what its client's config and contract expect, and from the client's files before it.

Pure: what a glimpse of the file, its counts and the files before say. No value of a record leaves here; a code of a
list is named where silver shows that column to everybody anyhow and several records have it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any, Literal

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.rules import Rule
from healthingest.contracts.source import normal_header
from healthingest.model import Profile
from healthingest.records.glimpse import Glimpse, SeenColumn, alike, date_formats_of, share_of
from healthingest.records.standardize import ISO, adjust, clean, standard_form

Kind = Literal["added", "missing", "renamed", "retyped", "reordered", "codes", "emptied"]

#: A column's values have become others once so many records break its type, and this share of all.
RETYPED, RETYPED_SHARE = 3, 0.1
#: A column that was filled in this share of records, and is in none of so many, went empty.
_WAS_FILLED, NOW_EMPTY = 0.2, 20
#: Records that must have a code before it is named.
_CODE_RECORDS = 5
#: New words that a code may have; more are mistakes.
_CODES = 10
_MOST = 0.9
#: How alike names and shapes of values must be for one column to be the other, renamed.
_ALIKE, _NAMES_ALIKE = 0.6, 0.3
_ZIP_WITHOUT_ZERO = r"[0-9]{4}|[0-9]{8}|[0-9]{4}-[0-9]{4}"


@dataclass(frozen=True)
class Drift:
    """One difference."""

    kind: Kind
    #: What it is about, as ids and commands call it: a contract column, a column of the file, or a rule.
    subject: str
    #: The column's name in the file, if there is one that may be told.
    header: str | None
    #: Contract column, if it is about one.
    column: str | None
    records: int
    #: Records with a value in it; of a rule: that break it.
    filled: int
    distinct: int
    shape: str
    #: What told: a rule, a type, or how alike two columns are.
    rule: str
    #: What would take it in: keys and values by kind, never a value that silver does not show.
    fix: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Before:
    """What the client's files before this one had."""

    #: Contract column -> greatest share of records with a value, of those columns that any of the files had.
    filled: Mapping[str, float]
    #: Contract columns in the order of the file before; empty: not known.
    order: Sequence[str] = ()
    #: Values of columns that this file lacks, in a file that has them.
    values: Mapping[str, pl.Series] = field(default_factory=dict)
    #: Rules that a proposal is open on already: one record counts.
    open_rules: frozenset[str] = frozenset()


def missing_columns(seen: Glimpse, client: Client, before: Before) -> list[str]:
    """Contract columns that the file lacks, and needs or used to have."""
    has = {column.column for column in seen.columns}
    has |= {to for step in client.config.transform for to in step.to}
    return [c.name for c in client.contract.columns if c.name not in has and (c.required or c.name in before.filled)]


def compare(seen: Glimpse, client: Client, profile: Profile, before: Before) -> list[Drift]:
    """Every difference that the config does not cover."""
    if not seen.is_header:
        return []
    found = [*_of_columns(seen, client, before)]
    renamed = {drift.column for drift in found if drift.kind == "renamed"}
    for column in seen.columns:
        if column.column and column.column not in renamed:
            found += [*_of_values(column, client, profile, before), *_emptied(column, before)]
    return [*found, *_reordered(seen, before)]


# --- columns ------------------------------------------------------------------------------------------------------


def _of_columns(seen: Glimpse, client: Client, before: Before) -> Iterator[Drift]:
    extra = [column for column in seen.columns if column.column is None]
    missing = missing_columns(seen, client, before)
    scores = {
        (name, column.place): _likeness(name, column, client, before) for name in missing for column in extra
    }  # fmt: skip
    pairs: dict[str, SeenColumn] = {}
    for (name, place), score in sorted(scores.items(), key=lambda item: -item[1]):
        column = next(c for c in extra if c.place == place)
        if score >= _ALIKE and name not in pairs and column not in pairs.values() and column.shown:
            pairs[name] = column
    for column in extra:
        if column not in pairs.values() and column.filled:
            fix = {"type": column.type_ or ("name" if "name" in column.key.split("_") else "text")}
            yield _drift("added", column.key, column, f"{fix['type']} fits", fix=fix)
    for name in missing:
        if name in pairs:
            how = f"{scores[name, pairs[name].place]:.0%} alike by name and shape"
            yield _drift("renamed", name, pairs[name], how, column=name, fix={"header": pairs[name].shown})
        else:
            was = before.filled.get(name)
            rule = "the contract requires it" if was is None else f"was filled in {was:.0%} of records"
            yield Drift("missing", name, None, name, seen.records, 0, 0, "no column", rule)


def _likeness(name: str, column: SeenColumn, client: Client, before: Before) -> float:
    """How likely a column of the file is a contract column under another name, 0.0 to 1.0."""
    known = [name, *(h for h, source in client.config.columns.items() if source.to == name)]
    names = max(SequenceMatcher(None, normal_header(one), normal_header(column.header)).ratio() for one in known)
    kind, values = client.contract.column[name].type, column.values
    if client.contract.column[name].parsed:
        shapes = share_of(values, kind)
        # A date or a phone number tells more than a name does; but a state's code may be any two letters.
        return (shapes + names) / 2 if names >= _NAMES_ALIKE or kind in {"us_state", "gender"} else 0.8 * shapes
    if name in before.values:
        return (alike(values, before.values[name]) + names) / 2 if names >= _NAMES_ALIKE else 0.0
    return names


def _reordered(seen: Glimpse, before: Before) -> Iterator[Drift]:
    now = [c.column for c in seen.columns if c.column in set(before.order)]
    then = [name for name in before.order if name in now]
    if now != then:
        yield Drift("reordered", "header", None, None, seen.records, 0, 0, "", f"{len(now)} known columns")


def _emptied(column: SeenColumn, before: Before) -> Iterator[Drift]:
    was = before.filled.get(column.column or "", 0.0)
    if not column.filled and column.records >= NOW_EMPTY and was >= _WAS_FILLED and column.column:
        yield _drift("emptied", column.column, column, f"was filled in {was:.0%} of records", column=column.column)


# --- values -------------------------------------------------------------------------------------------------------


def _of_values(column: SeenColumn, client: Client, profile: Profile, before: Before) -> Iterator[Drift]:
    name = column.column or ""
    broken = {count.rule: count.records for count in profile.rules if count.column == name}
    kind = client.contract.column[name].type
    rule_id = f"{name}.{kind}"
    failing = broken.get(rule_id, 0)
    enough = failing >= RETYPED and failing >= RETYPED_SHARE * column.records
    if client.contract.column[name].parsed and failing and (enough or rule_id in before.open_rules):
        yield from _retyped(column, client, rule_id, failing, enough=enough)
    for rule in client.rules:
        if rule.column == name and rule.in_ and rule.when is None and broken.get(rule.id):
            yield from _codes(column, client, rule, broken[rule.id], before)


def _retyped(column: SeenColumn, client: Client, rule_id: str, failing: int, *, enough: bool) -> Iterator[Drift]:
    """What became of values that have no standard form; a bad file is no change, so that there must be a pattern."""
    name = column.column or ""
    kind, source = client.contract.column[name].type, client.column_source(name)
    values = clean(adjust(column.values, source), ["", *client.config.source.null_values])
    other = values.filter(standard_form(values, kind, source.date_formats or ISO).is_null() & values.is_not_null())
    fix: dict[str, Any] = {}
    if kind == "date":
        fits = date_formats_of(other)
        fix = {"date_format": fits[0]} if len(fits) == 1 else {"fits": fits} if fits else {}
    elif kind == "us_zip" and len(other) and other.str.contains(f"^(?:{_ZIP_WITHOUT_ZERO})$").mean() >= _MOST:  # type: ignore[operator]
        fix = {"zip_repair": True}
    codes = kind in {"gender", "us_state"}
    often = other.value_counts(sort=True).head(1)["count"].sum()
    pattern = (often >= _CODE_RECORDS or not enough) and other.n_unique() <= _CODES if codes else bool(fix)
    others = failing >= NOW_EMPTY and 2 * failing >= column.filled
    if pattern or others:
        yield _drift("codes" if codes else "retyped", name, column, rule_id, column=name, fix=fix, other=other,
                     filled=failing)  # fmt: skip


def _codes(column: SeenColumn, client: Client, rule: Rule, failing: int, before: Before) -> Iterator[Drift]:
    name = column.column or ""
    known, source = client.contract.column[name], client.column_source(name)
    values = clean(adjust(column.values, source), ["", *client.config.source.null_values])
    standard = standard_form(values, known.type, source.date_formats or ISO).drop_nulls()
    other = standard.filter(~standard.is_in(list(rule.in_ or ())))
    counts = other.value_counts(sort=True)
    often = counts.filter(pl.col("count") >= _CODE_RECORDS)
    if often.is_empty() and rule.id not in before.open_rules:
        return
    shown = often[other.name].sort().to_list() if known.policy.keep else []
    yield _drift("codes", rule.id, column, rule.id, column=name, fix={"codes": shown}, other=other, filled=failing)


def _drift(
    kind: Kind, subject: str, seen: SeenColumn, rule: str, *, column: str | None = None,
    fix: dict[str, Any] | None = None, other: pl.Series | None = None, filled: int | None = None,
) -> Drift:  # fmt: skip
    """A difference that a column of the file shows; `other`: those of its values that it is about."""
    about = seen if other is None else SeenColumn(seen.header, seen.column, seen.place, seen.records, 0, other)
    return Drift(
        kind, subject, seen.shown or None, column, seen.records, seen.filled if filled is None else filled,
        about.distinct, about.shape, rule, fix or {},
    )  # fmt: skip
