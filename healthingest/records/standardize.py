"""Gives every value its one standard form, or none: cleaned text, ISO dates, E.164 phones, codes.

What belongs here: text to text per column type, and which texts have no standard form (null). What does not: whether
a value is allowed; the contract's rules decide that on the outcome.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import IntFlag
from functools import cache

import numpy as np
import numpy.typing as npt
import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.contract import Column, ColumnType
from healthingest.contracts.rules import CONTROL, STANDARD
from healthingest.contracts.source import ColumnSource

#: White space of any script, less the control characters that Unicode counts as such: those reject a record.
_SPACE = r"[\s--[\x0b\x0c\x85]]+"
_NEEDS_COLLAPSE = r"[\s--[\x20\x0b\x0c\x85]]|\x20\x20"
#: Zero-width characters that no one can see (not the joiners some scripts need).
_INVISIBLE = "[\u200b\u2060\ufeff]"
#: C0 and C1 controls except tab and line ends (which are white space), DEL and the replacement character.
CONTROL_CHARACTERS = "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\ufffd]"

_NANP = (
    r"^(?:\+?1[ .\-]*)?\(?([2-9][0-9]{2})\)?[ .\-]*([2-9][0-9]{2})[ .\-]*([0-9]{4})"
    r"(?: ?(?i:x|ext\.?|extension|#) ?[0-9]{1,6})?$"
)
#: Dot-atom local part (RFC 5322, 3.2.3) and a dotted domain of LDH labels (RFC 1123, 2.1); lengths by RFC 5321.
_ATEXT = r"[a-z0-9!#$%&'*+/=?^_`{|}~\-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?"
_EMAIL = rf"^{_ATEXT}(?:\.{_ATEXT})*@(?:{_LABEL}\.)+[a-z](?:[a-z0-9\-]{{0,61}}[a-z0-9])$"
_MBI_LETTER, _MBI_ANY = "[AC-HJKMNP-RT-Y]", "[0-9AC-HJKMNP-RT-Y]"
_MBI = f"^[1-9]{_MBI_LETTER}{_MBI_ANY}[0-9]{_MBI_LETTER}{_MBI_ANY}[0-9]{_MBI_LETTER}{_MBI_LETTER}[0-9]{{2}}$"
_EMAIL_MAX, _EMAIL_LOCAL_MAX = 254, 64

#: Formats of a date where the client's YAML names none.
ISO = ("%Y-%m-%d",)
_ZIP_WITHOUT_ZERO = r"^(?:[0-9]{4}|[0-9]{4}-?[0-9]{4})$"

_BLANK, _DELETE = 0x20, 0x7F
#: Every date there is, but for February 29.
_COMMON_DATE = (
    "^[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))$"
)
#: Common ways to write a North American number -> where area, exchange and line start.
_PHONE_SHAPES = {
    r"^\([2-9][0-9]{2}\) [2-9][0-9]{2}-[0-9]{4}$": (1, 6, 10),
    r"^[2-9][0-9]{2}[ .\-][2-9][0-9]{2}[ .\-][0-9]{4}$": (0, 4, 8),
    r"^[2-9][0-9]{2}[2-9][0-9]{2}[0-9]{4}$": (0, 3, 6),
    r"^\+1[2-9][0-9]{2}[2-9][0-9]{2}[0-9]{4}$": (2, 5, 8),
}

_GENDERS = {
    "M": "M", "F": "F", "X": "X", "U": "U", "O": "O", "MALE": "M", "FEMALE": "F", "UNKNOWN": "U", "OTHER": "O",
}  # fmt: skip
#: USPS Publication 28, appendix B: states, DC, territories, freely associated states, military mail.
_STATES = {
    "ALABAMA": "AL", "ALASKA": "AK", "AMERICAN SAMOA": "AS", "ARIZONA": "AZ", "ARKANSAS": "AR", "CALIFORNIA": "CA",
    "COLORADO": "CO", "CONNECTICUT": "CT", "DELAWARE": "DE", "DISTRICT OF COLUMBIA": "DC",
    "FEDERATED STATES OF MICRONESIA": "FM", "FLORIDA": "FL", "GEORGIA": "GA", "GUAM": "GU", "HAWAII": "HI",
    "IDAHO": "ID", "ILLINOIS": "IL", "INDIANA": "IN", "IOWA": "IA", "KANSAS": "KS", "KENTUCKY": "KY",
    "LOUISIANA": "LA", "MAINE": "ME", "MARSHALL ISLANDS": "MH", "MARYLAND": "MD", "MASSACHUSETTS": "MA",
    "MICHIGAN": "MI", "MINNESOTA": "MN", "MISSISSIPPI": "MS", "MISSOURI": "MO", "MONTANA": "MT", "NEBRASKA": "NE",
    "NEVADA": "NV", "NEW HAMPSHIRE": "NH", "NEW JERSEY": "NJ", "NEW MEXICO": "NM", "NEW YORK": "NY",
    "NORTH CAROLINA": "NC", "NORTH DAKOTA": "ND", "NORTHERN MARIANA ISLANDS": "MP", "OHIO": "OH", "OKLAHOMA": "OK",
    "OREGON": "OR", "PALAU": "PW", "PENNSYLVANIA": "PA", "PUERTO RICO": "PR", "RHODE ISLAND": "RI",
    "SOUTH CAROLINA": "SC", "SOUTH DAKOTA": "SD", "TENNESSEE": "TN", "TEXAS": "TX", "UTAH": "UT", "VERMONT": "VT",
    "VIRGINIA": "VA", "VIRGIN ISLANDS": "VI", "WASHINGTON": "WA", "WEST VIRGINIA": "WV", "WISCONSIN": "WI",
    "WYOMING": "WY", "ARMED FORCES AMERICAS": "AA", "ARMED FORCES EUROPE": "AE", "ARMED FORCES PACIFIC": "AP",
}  # fmt: skip


class Traits(IntFlag):
    """What the bytes of a column's values may hold; what they do not, no pass over the values has to look for."""

    BLANK = 1
    SPACE = 2
    CONTROL = 4
    INVISIBLE = 8
    COMPOSABLE = 16


#: Nothing is known.
ANY = Traits(31)
#: Byte -> the traits of the characters whose UTF-8 form has it.
_TRAITS_OF = np.zeros(256, np.uint8)
_TRAITS_OF[_BLANK] = Traits.BLANK
_TRAITS_OF[[*range(0x09), 0x0B, 0x0C, *range(0x0E, _BLANK), _DELETE]] = Traits.CONTROL
_TRAITS_OF[[0x09, 0x0A, 0x0D]] = Traits.SPACE
_TRAITS_OF[0xC2] = Traits.SPACE | Traits.CONTROL  # U+0080 to U+00BF: C1 controls, no-break space
_TRAITS_OF[0xCC:] = Traits.COMPOSABLE  # U+0300 and up; all below is NFC already
_TRAITS_OF[[0xE1, 0xE2, 0xE3]] |= np.uint8(Traits.SPACE)
_TRAITS_OF[[0xE2, 0xEF]] |= np.uint8(Traits.INVISIBLE)
_TRAITS_OF[0xEF] |= np.uint8(Traits.CONTROL)  # U+FFFD


def traits_of(data: npt.NDArray[np.uint8]) -> Traits:
    """The traits of UTF-8 text."""
    if not len(data):
        return Traits(0)
    low = int(data.min())
    if low >= _BLANK and int(data.max()) < _DELETE:
        return Traits.BLANK if low == _BLANK else Traits(0)
    return Traits(int(np.bitwise_or.reduce(_TRAITS_OF[data])))


def standardize(rows: pl.DataFrame, client: Client, traits: Mapping[str, Traits] | None = None) -> pl.DataFrame:
    """Clean every contract column of `rows` (String); add `<column>__control` (Boolean), and `<column>__std` (String)
    for each parsed type.

    A cleaned value is null where the client's file means "nothing"; a standard form is null where there is none.
    Columns that the file lacks come in as null. Rows keep their order and number. `traits`: what is known of columns.
    """  # noqa: D205 - one sentence
    absent = [pl.lit(None, pl.String).alias(c) for c in client.contract.column if c not in rows.columns]
    nothing = ["", *client.config.source.null_values]
    frame = rows.with_columns(absent)
    known = traits or {}

    def of_column(column: Column) -> list[pl.Series]:
        source = client.column_source(column.name)
        trait = known.get(column.name, ANY)
        cleaned = clean(frame[column.name], nothing, trait)
        if source != ColumnSource(to=source.to, date_formats=source.date_formats):
            cleaned = clean(adjust(cleaned, source), nothing)  # what is put in or uncovered is text like any other
        if not trait & Traits.CONTROL and not (source.map or source.default):
            control = pl.repeat(value=False, n=len(cleaned), eager=True)
        else:
            control = cleaned.str.contains(CONTROL_CHARACTERS)
        made = [cleaned, control.alias(column.name + CONTROL)]
        if column.parsed:
            made.append(standard_form(cleaned, column.type, source.date_formats or ISO).alias(column.name + STANDARD))
        return made

    # Most of this is single-threaded work inside polars, which lets other threads run meanwhile.
    with ThreadPoolExecutor(pl.thread_pool_size(), "healthingest-standardize") as threads:
        made = threads.map(of_column, client.contract.columns)
        return frame.with_columns(series for group in made for series in group)


def clean(values: pl.Series, nothing: Sequence[str] = ("",), traits: Traits = ANY) -> pl.Series:
    """Drop what is invisible, trim, collapse white space, compose (NFC); what then reads as `nothing` becomes null.

    Passes over the text are made only where some value needs them: most columns are plain ASCII.
    """
    if values.dtype == pl.Null or values.null_count() == len(values):
        return values.cast(pl.String)
    text = values
    if traits & Traits.INVISIBLE and text.str.contains(_INVISIBLE).any():
        text = text.str.replace_all(_INVISIBLE, "")
    if traits & (Traits.BLANK | Traits.SPACE):
        spaced = text.str.contains(_NEEDS_COLLAPSE) if traits & Traits.SPACE else text.str.contains("  ", literal=True)
        if spaced.any():
            text = text.str.replace_all(_SPACE, " ")
        text = text.str.strip_chars(" ")
    if traits & Traits.COMPOSABLE and text.str.contains("[^\x00-\u02ff]").any():
        text = text.str.normalize("NFC")
    # Compared as written: people are called Null.
    empty = text.is_in(list(nothing))
    return text.set(empty, None).alias(values.name) if empty.any() else text.alias(values.name)


def adjust(cleaned: pl.Series, source: ColumnSource) -> pl.Series:
    """What the client's YAML says of how it writes this column, applied to cleaned text."""
    name = cleaned.name
    value = pl.col(name)
    if source.strip:
        stripped = value.str.strip_chars(source.strip).str.strip_chars(" ")
        value = pl.when(stripped != "").then(stripped)
    if source.case:
        cases = {"upper": value.str.to_uppercase, "lower": value.str.to_lowercase, "title": value.str.to_titlecase}
        value = cases[source.case]()
    if source.map:
        mapped = value.replace(source.map)
        value = pl.when(mapped != "").then(mapped)
    if source.zip_repair:
        value = pl.when(value.str.contains(_ZIP_WITHOUT_ZERO)).then(pl.lit("0") + value).otherwise(value)
    if source.default:
        value = value.fill_null(source.default)
    return cleaned.to_frame().select(value.alias(name)).to_series()


def standard_form(cleaned: pl.Series, kind: ColumnType, date_formats: Sequence[str] = ISO) -> pl.Series:
    """The standard form (String) of cleaned text of one column type; null where it has none.

    Most values are in a common form already: those are told by one cheap test each, the rest goes the whole way.
    """
    make = _maker(kind, tuple(date_formats))
    if make is None or cleaned.dtype == pl.Null:
        return cleaned.cast(pl.String)
    if (
        len(cleaned) > 1 and cleaned.eq_missing(pl.Series([cleaned[0]], dtype=pl.String)).all()
    ):  # a date that is the same in every record
        return make(cleaned.head(1)).new_from_index(0, len(cleaned)).alias(cleaned.name)
    common = _common_form(cleaned, kind, date_formats)
    if common is None:
        return make(cleaned)
    rest = (common.is_null() & cleaned.is_not_null()).arg_true()
    return common.scatter(rest, make(cleaned.gather(rest))) if len(rest) else common


def _maker(kind: ColumnType, date_formats: tuple[str, ...]) -> Callable[[pl.Series], pl.Series] | None:
    """The whole way of a kind of value; None for kinds that are text as they are."""
    if kind == "date":
        return lambda cleaned: _dates(cleaned, date_formats)
    if kind == "phone":
        return _phones
    expression = _EXPRESSIONS.get(kind)
    if expression is None:
        return None
    return lambda cleaned: cleaned.to_frame().select(expression(pl.col(cleaned.name))).to_series()


def _common_form(cleaned: pl.Series, kind: ColumnType, date_formats: Sequence[str]) -> pl.Series | None:
    """The standard form of those values that a cheap test places, null for the others; None without such a test."""
    value = pl.col(cleaned.name)
    made: pl.Expr
    if kind == "gender":
        made = pl.when(value.is_in(sorted(set(_GENDERS.values())))).then(value)
    elif kind == "us_state":
        made = pl.when(value.is_in(sorted(_STATES.values()))).then(value)
    elif kind == "us_zip":
        made = pl.when(value.str.contains("^[0-9]{5}$")).then(value)
    elif kind == "date" and tuple(date_formats) == ISO:
        made = pl.when(value.str.contains(_COMMON_DATE)).then(value)
    elif kind == "email":
        # Lower case by the regex; an address of at most 64 bytes is short enough in all its parts.
        plain = value.str.contains(_EMAIL)
        if (cleaned.str.len_bytes() > _EMAIL_LOCAL_MAX).any():
            plain = plain & (value.str.len_bytes() <= _EMAIL_LOCAL_MAX)
        made = pl.when(plain).then(value)
    elif kind == "phone":
        made = _common_phones(cleaned)
    else:
        return None
    return cleaned.to_frame().select(made.alias(cleaned.name)).to_series()


def _common_phones(cleaned: pl.Series) -> pl.Expr:
    """E.164 of the numbers written as the column's first ones are: cut at fixed places, without a regex's groups."""
    value = pl.col(cleaned.name)
    sample = cleaned.drop_nulls().head(100)
    regex, places = max(_PHONE_SHAPES.items(), key=lambda shape: sample.str.contains(shape[0]).sum())
    parts = [value.str.slice(at, size) for at, size in zip(places, (3, 3, 4), strict=True)]
    return pl.when(value.str.contains(_with_areas(regex))).then(pl.concat_str(pl.lit("+1"), *parts))


@cache
def _with_areas(shape: str) -> str:
    """The shape with the area codes in use in the place of its first three digits: cheaper than looking them up."""
    return shape.replace("[2-9][0-9]{2}", f"(?:{'|'.join(sorted(_area_codes()))})", 1)


def _gender(value: pl.Expr) -> pl.Expr:
    return value.str.to_uppercase().replace_strict(_GENDERS, default=None)


def _state(value: pl.Expr) -> pl.Expr:
    codes = _STATES | {code: code for code in _STATES.values()}
    return value.str.to_uppercase().replace_strict(codes, default=None)


def _zip(value: pl.Expr) -> pl.Expr:
    nine = value.str.replace(r"^([0-9]{5})-?([0-9]{4})$", "${1}-${2}")
    return pl.when(value.str.contains(r"^[0-9]{5}(?:-?[0-9]{4})?$")).then(nine)


def _email(value: pl.Expr) -> pl.Expr:
    lower = value.str.to_lowercase()
    short = (lower.str.len_bytes() <= _EMAIL_MAX) & (lower.str.find("@", literal=True) <= _EMAIL_LOCAL_MAX)
    return pl.when(lower.str.contains(_EMAIL) & short).then(lower)


def _ssn(value: pl.Expr) -> pl.Expr:
    """Nine digits, plain or 3-2-4, of a number that SSA may have given out (RM 10201.035)."""
    parts = value.str.extract_groups(r"^([0-9]{3})-?([0-9]{2})-?([0-9]{4})$")
    area, group, serial = (parts.struct.field(str(number)) for number in (1, 2, 3))
    given = ~area.is_in(["000", "666"]) & ~area.str.starts_with("9") & (group != "00") & (serial != "0000")
    hyphens = value.str.contains("^[0-9]{9}$") | value.str.contains("^[0-9]{3}-[0-9]{2}-[0-9]{4}$")
    return pl.when(given & hyphens).then(pl.concat_str(area, group, serial, separator="-"))


def _mbi(value: pl.Expr) -> pl.Expr:
    """Medicare Beneficiary Identifier (CMS, Understanding the MBI): 11 characters by place, no S, L, O, I, B, Z."""
    plain = value.str.to_uppercase()
    plain = pl.when(plain.str.contains("^.{4}-.{3}-.{4}$")).then(plain.str.replace_all("-", "")).otherwise(plain)
    return pl.when(plain.str.contains(_MBI)).then(plain)


def _npi(value: pl.Expr) -> pl.Expr:
    """National Provider Identifier (45 CFR 162.406): 10 digits, the last by Luhn over 80840 and the other nine."""
    digits = [value.str.slice(place, 1).cast(pl.Int32, strict=False) for place in range(10)]
    doubled = [2 * digit - 9 * (2 * digit > 9).cast(pl.Int32) for digit in digits[0:9:2]]  # noqa: PLR2004 - two digits
    total = pl.sum_horizontal(*doubled, *digits[1::2]) + 24  # what 80840 adds
    return pl.when(value.str.contains("^[12][0-9]{9}$") & (total % 10 == 0)).then(value)


_EXPRESSIONS: dict[str, Callable[[pl.Expr], pl.Expr]] = {
    "gender": _gender, "us_state": _state, "us_zip": _zip, "email": _email, "ssn": _ssn, "mbi": _mbi, "npi": _npi,
}  # fmt: skip


def _dates(cleaned: pl.Series, formats: Sequence[str]) -> pl.Series:
    """ISO dates; a shape test before each parse, since parsers take '+2020-1-1' for %Y-%m-%d and 99 for %Y."""
    name = cleaned.name
    parsed = [
        pl.when(pl.col(name).str.contains(_shape(fmt))).then(pl.col(name)).str.to_date(fmt, strict=False)
        for fmt in formats
    ]
    return cleaned.to_frame().select(pl.coalesce(parsed).dt.to_string("%Y-%m-%d").alias(name)).to_series()


def _shape(fmt: str) -> str:
    parts = {"Y": "[0-9]{4}", "m": "[0-9]{1,2}", "d": "[0-9]{1,2}", "b": "[A-Za-z]{3}"}
    if re.search(r"%[Ymd]%[Ymd]", fmt):  # no separators: every digit counts
        parts |= {"m": "[0-9]{2}", "d": "[0-9]{2}"}
    if fmt == "%Y-%m-%d":
        parts |= {"m": "[0-9]{2}", "d": "[0-9]{2}"}
    pieces = re.split(r"%(.)", fmt)
    return "^" + "".join(parts[p] if i % 2 else re.escape(p) for i, p in enumerate(pieces)) + "$"


def _phones(cleaned: pl.Series) -> pl.Series:
    """E.164: North American numbers by one regex, a hundred times faster than the library, the rest by the library."""
    name = cleaned.name
    value = pl.col(name)
    e164 = value.str.replace(_NANP, "+1${1}${2}${3}")
    known_area = e164.str.slice(2, 3).is_in(sorted(_area_codes()))
    frame = cleaned.to_frame().select(
        value,
        pl.when(value.str.contains(_NANP)).then(pl.when(known_area).then(e164).otherwise(pl.lit(""))).alias("nanp"),
    )
    odd = frame.filter(value.is_not_null() & pl.col("nanp").is_null())[name].unique()
    placed = {text: number for text in odd.to_list() if (number := _by_library(text))}
    result = frame.with_columns(
        pl.when(pl.col("nanp").is_null()).then(value.replace_strict(placed, default=None, return_dtype=pl.String))
        .when(pl.col("nanp") != "").then(pl.col("nanp"))
        .alias(name)
    )  # fmt: skip
    return result[name]


def _by_library(text: str) -> str | None:
    """Place a number that names its country with a plus; without one, nothing tells which country is meant."""
    import phonenumbers

    if not text.lstrip("( ").startswith("+") or re.search("[A-WYZa-wyz]", text):
        return None
    try:
        number = phonenumbers.parse(text, None)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


@cache
def _area_codes() -> frozenset[str]:
    """Area codes in use, from phonenumbers' metadata: the regex alone would accept 555-555-5555."""
    import phonenumbers

    def used(area: str) -> bool:
        number = phonenumbers.PhoneNumber(country_code=1, national_number=int(f"{area}2345678"))
        return phonenumbers.is_valid_number(number)

    return frozenset(area for area in map(str, range(200, 1000)) if used(area))
