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
#: From so many columns on, lines with about as many fields as the header are no accident within a text.
_WIDE = 8
#: How far from the header's width a swallowed record may be that was malformed itself.
_NEAR = 2


def holds_records(fields: Sequence[bytes], width: int, delimiter: bytes, required: Sequence[int]) -> bool:
    """Whether a field with line ends in it holds whole records: a stray quote has swallowed them.

    Nothing tells such a field from a text that looks like it. So its lines must make records, were the quotes plain
    characters: the first with the fields before it, the last with those after it, both as wide as the header. In a
    wide file a line between, or behind a whole first one, tells enough if it is about that wide; in a narrow one the
    `required` places (0-based) of both records must be filled as well.
    """
    if width < 3:  # noqa: PLR2004 - with two columns any comma in a text would look like a record
        return False
    return any(
        _swallowed(fields, place, width, delimiter, required)
        for place, field in enumerate(fields[: 2 * width])
        if b"\n" in field or b"\r" in field
    )


def _swallowed(fields: Sequence[bytes], place: int, width: int, delimiter: bytes, required: Sequence[int]) -> bool:
    lines = LINE_END.split(fields[place])
    after = len(fields) - place - 1
    first, last = place + 1 + lines[0].count(delimiter), lines[-1].count(delimiter) + 1 + after
    if width >= _WIDE:
        between = [line.count(delimiter) + 1 for line in lines[1:-1]]
        if any(abs(count - width) <= (_NEAR if first == width else 0) for count in between):
            return True
        # In the last column every first line is whole: then the last line alone has to tell.
        return first == width and (last == width or (abs(last - width) <= _NEAR and lines[-1].count(delimiter) > 0))
    if (first, last) != (width, width):
        return False
    records = [[*fields[:place], *lines[0].split(delimiter)], [*lines[-1].split(delimiter), *fields[place + 1 :]]]
    return all(record[at].strip() for record in records for at in required)


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
