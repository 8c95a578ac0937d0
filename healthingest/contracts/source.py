"""How a client writes its files: dialect, encodings, header, trailer, and what becomes of single columns.

What belongs here: the YAML models below `source:`, `columns:` and `transform:`. What does not: rules (`rules`) and
what is done with any of it (`landing`, `records`).
"""

import codecs
import re
import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictStr, field_validator, model_validator

from healthingest.contracts.rules import Strict

#: Codecs in which every ASCII byte is that character, wherever it stands.
_BYTEWISE = re.compile(r"utf-8(-sig)?|ascii|iso8859-[0-9]+|cp125[0-8]|cp437|cp85[0-8]|mac-roman|koi8-r")


def _one_character(value: str) -> str:
    if len(value) != 1 or not value.isascii() or value.isalnum() or value in "\r\n\0":
        has = f"; this one has {len(value)}" if len(value) > 1 else ""
        raise ValueError(f'this must be one ASCII character, e.g. "," or "|" or "\\t"{has}')
    return value


Character = Annotated[StrictStr, AfterValidator(_one_character)]


class CreationDate(Strict):
    """Where a record's date comes from: the file's name, or a column of it (backfills)."""

    from_: Literal["file_name", "column"] = Field(default="file_name", alias="from")
    column: StrictStr = "creation_date"


class Trailer(Strict):
    """A control record at the end of a file: how it starts, and which field (1-based) counts the records."""

    starts_with: StrictStr = Field(min_length=1)
    count_field: int | None = Field(default=None, ge=1, strict=True)


class Source(Strict):
    """How the client writes its files."""

    delimiter: Character = ","
    #: None: the client quotes nothing, and a quote is a character like any other.
    quote: Character | None = '"'
    encoding: StrictStr | list[StrictStr] = "utf-8"
    null_values: list[StrictStr] = Field(default_factory=lambda: ["", "NULL", "N/A"])
    #: Leading lines, before the header, that are no part of the table; they are counted as header lines.
    skip_lines: int = Field(default=0, ge=0, le=1000, strict=True)
    #: False: the first line is a record already, and `names` says what the columns are.
    header: StrictBool = True
    names: list[StrictStr] | None = Field(default=None, min_length=1)
    creation_date: CreationDate = Field(default_factory=CreationDate)
    trailer: Trailer | None = None

    @field_validator("quote", mode="before")
    @classmethod
    def _word_for_none(cls, value: object) -> object:
        return None if value == "none" else value

    @field_validator("encoding")
    @classmethod
    def _readable_encodings(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        if not names:
            raise ValueError("name at least one encoding, e.g. utf-8")
        for name in names:
            _refuse_unreadable(name, alone=len(names) == 1)
        return value

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> "Source":
        if self.delimiter == self.quote:
            raise ValueError("delimiter and quote must be two different characters")
        if self.header and self.names:
            raise ValueError("names is for files without a header; add header: false, or leave names out")
        if self.names and len(set(self.names)) < len(self.names):
            raise ValueError("names holds a name twice; each column needs its own")
        if not self.header and not self.names:
            raise ValueError("a file without a header needs names: the list of its columns, in order")
        return self

    @property
    def encodings(self) -> list[str]:
        """Normalised codec names, in the order they are tried."""
        names = [self.encoding] if isinstance(self.encoding, str) else self.encoding
        return [codecs.lookup(name).name.removesuffix("-sig") for name in names]


def _refuse_unreadable(name: str, *, alone: bool) -> None:
    try:
        "x".encode(name)  # codecs.lookup alone knows hex and zip too
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise ValueError(f"there is no encoding {name}; common ones are utf-8, cp1252, latin-1") from None
    if codec.startswith("utf-16"):
        if not alone:
            raise ValueError("UTF-16 cannot stand beside others; name it alone (a file with its mark is always read)")
    elif not _BYTEWISE.fullmatch(codec):
        # Records are found by their bytes: delimiters and line ends must not hide in other characters.
        raise ValueError(f"{name} cannot be read here; only UTF-8, UTF-16 and one-byte encodings of ASCII can")


def _short_map(value: object) -> object:
    return [value] if isinstance(value, str) else value


class ColumnSource(Strict):
    """One column of the client's files: which contract column it is, and how its values are written.

    Applied to trimmed text, in this order: `strip`, `case`, `map`, `zip_repair`, `default`.
    """

    to: StrictStr
    date_formats: Annotated[list[StrictStr], BeforeValidator(_short_map)] | None = Field(default=None, min_length=1)
    #: Characters taken off both ends.
    strip: StrictStr | None = Field(default=None, min_length=1)
    case: Literal["upper", "lower", "title"] | None = None
    #: The client's word -> ours, compared as a whole; other values stay.
    map: dict[StrictStr, StrictStr] | None = Field(default=None, min_length=1)
    #: Put back the leading zeros that spreadsheets take off: 4 digits become 5, 8 become 9.
    zip_repair: StrictBool = False
    #: Stands where the file has no value.
    default: StrictStr | None = Field(default=None, min_length=1)

    @field_validator("date_formats")
    @classmethod
    def _four_digit_years(cls, value: list[str] | None) -> list[str] | None:
        for fmt in value or ():
            parts = re.findall(r"%(.)", fmt)
            if sorted(parts) not in (["Y", "d", "m"], ["Y", "b", "d"]):
                raise ValueError("a date format has %Y, %m (or %b) and %d, once each, e.g. %m/%d/%Y")
        return value


class Transform(Strict):
    """One step that makes contract columns of the file's columns, before anything is cleaned or checked.

    `concat`: the filled ones of these columns, joined. `split`: one column, cut at each separator; the last target
    takes the rest. `hook`: a Python function of the registry, `hooks/<name>/<version>.py`, over contract columns.
    """

    concat: list[StrictStr] | None = Field(default=None, min_length=2)
    split: StrictStr | None = None
    hook: StrictStr | None = Field(default=None, pattern=r"^[a-z][a-z0-9_]*/[1-9][0-9]{0,5}$")
    separator: StrictStr = Field(default=" ", min_length=1)
    to: Annotated[list[StrictStr], BeforeValidator(_short_map)] = Field(min_length=1)

    @model_validator(mode="after")
    def _exactly_one_step(self) -> "Transform":
        if sum(step is not None for step in (self.concat, self.split, self.hook)) != 1:
            raise ValueError("a transform has exactly one of: concat, split, hook")
        if self.concat and len(self.to) != 1:
            raise ValueError("concat makes one column; name it in to")
        if len(set(self.to)) < len(self.to):
            raise ValueError("to names a column twice")
        if self.split is not None and len(self.to) < 2:  # noqa: PLR2004 - into one would be no split
            raise ValueError("split makes two or more columns; name them in to, in order")
        return self

    @property
    def sources(self) -> list[str]:
        """Header names that the file must have for this step."""
        return self.concat or ([self.split] if self.split is not None else [])


def normal_header(name: str) -> str:
    """One spelling for header names that differ in case, surrounding space, or space, hyphen and underscore."""
    text = unicodedata.normalize("NFC", name).strip(" \t\ufeff\u00a0\u200b").casefold()
    return re.sub(r"[\s\-_]+", "_", text)


def plain_name(header: str) -> str:
    """A header name as ids and contracts may write it: ASCII letters, digits and '_'; empty if it has none."""
    return re.sub(r"[^a-z0-9]+", "_", header.strip().casefold()).strip("_")
