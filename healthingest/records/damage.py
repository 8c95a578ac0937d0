"""Tells what looks like one record but is several, and which fields' bytes are no text.

What belongs here: judging single records that are out of the ordinary, in plain Python. What does not: finding them
(`frame`, `read`) and values that break a rule (`validate`).
"""

from collections.abc import Sequence

import polars as pl

from healthingest.records.frame import LINE_END
from healthingest.records.reasons import REASONS

#: Column with the record's 1-based number in its file (Int64).
RECORD_NO = "_record_no"

REJECTED_SCHEMA = pl.Schema(
    {
        RECORD_NO: pl.Int64(),
        "line_no": pl.Int64(),
        "lines": pl.Int64(),
        "raw": pl.Binary(),
        "reasons": REASONS,
        "expected_fields": pl.Int32(),
        "found_fields": pl.Int32(),
    }
)
#: From so many columns on, one line with as many fields as the header is no accident within a text.
_WIDE = 8


def holds_records(fields: Sequence[bytes], width: int, delimiter: bytes, required: Sequence[int]) -> bool:
    """Whether a field with line ends in it holds whole records: a stray quote has swallowed them.

    Nothing tells such a field from a text that looks like it. So the lines must make records of exactly the header's
    width, were the quotes plain characters: the first with the fields before it, the last with those after it; and
    in a narrow file the `required` places (0-based) of both must be filled.
    """
    if width < 3:  # noqa: PLR2004 - with two columns any comma in a text would look like a record
        return False
    return any(
        _swallowed(fields, place, width, delimiter, required)
        for place, field in enumerate(fields)
        if b"\n" in field or b"\r" in field
    )


def _swallowed(fields: Sequence[bytes], place: int, width: int, delimiter: bytes, required: Sequence[int]) -> bool:
    first, *middle, last = (part.split(delimiter) for part in LINE_END.split(fields[place]))
    if width >= _WIDE and any(len(part) == width for part in middle):
        return True
    records = [[*fields[:place], *first], [*last, *fields[place + 1 :]]]
    if any(len(record) != width for record in records):
        return False
    return width >= _WIDE or all(record[at].strip() for record in records for at in required)


def undecodable(fields: Sequence[bytes], encoding: str) -> list[int]:
    """Places of the fields that are no text in this encoding."""
    return [place for place, field in enumerate(fields) if decoded(field, [encoding]) is None]


def decoded(raw: bytes, encodings: Sequence[str]) -> str | None:
    """The text in the first encoding in which all of it decodes; None if there is none."""
    for encoding in encodings:
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None
