"""Finds the records that a parser took for whole but that are not: swallowed ones, and undecodable ones.

What belongs here: splitting such rows off, with their reasons and what they looked like. What does not: records the
parser itself refuses (`read`) and values that break a rule (`validate`).
"""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from healthingest.records.reasons import REASONS, Reason

#: Column with the record's 1-based number in its file (Int64).
RECORD_NO = "_record_no"
LINE_END = r"\r\n|\n|\r"

REJECTED_SCHEMA = pl.Schema(
    {
        RECORD_NO: pl.Int64(),
        "raw": pl.Binary(),
        "reasons": REASONS,
        "expected_fields": pl.Int32(),
        "found_fields": pl.Int32(),
    }
)


def reject_swallowed(rows: pl.DataFrame, delimiter: str, *, carrier: bool) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Reject rows in which one field holds what looks like whole records: a stray quote has swallowed them.

    `carrier`: the text only carries bytes as Latin-1.
    """
    columns = [c for c in rows.columns if c != RECORD_NO]
    width = len(columns)
    suspects = rows.filter(pl.any_horizontal(pl.col(c).str.contains(r"[\r\n]") for c in columns))
    if width < 3 or suspects.is_empty():  # noqa: PLR2004 - with two columns a comma in a text looks like a record
        return rows, []
    enough = (width - 1) / 2

    def swallowing(row: dict[str, Any]) -> bool:
        parts = (part for c in columns if row[c] for part in re.split(LINE_END, row[c])[1:])
        return any(part.count(delimiter) >= enough for part in parts)

    hit = [row for row in suspects.to_dicts() if swallowing(row)]
    rejects = [
        {
            RECORD_NO: row[RECORD_NO],
            "raw": as_csv([row[c] for c in columns], delimiter).encode("latin-1" if carrier else "utf-8"),
            "reasons": [Reason(None, "swallowed_records", "swallowed_records")],
            "expected_fields": None,
            "found_fields": None,
        }
        for row in hit
    ]
    return rows.filter(~pl.col(RECORD_NO).is_in([row[RECORD_NO] for row in hit])), rejects


def decode_carried(
    rows: pl.DataFrame, columns: dict[str, int], encodings: Sequence[str], delimiter: str
) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
    """Turn Latin-1 carried bytes back into text, each row in the first of `encodings` in which all of it decodes.

    A row for which there is none is rejected, with the columns that the first encoding cannot decode.
    """
    names = {f"c{position}": column for column, position in columns.items()}
    cells = [c for c in rows.columns if c != RECORD_NO]
    foreign = pl.any_horizontal(pl.col(c).str.contains(r"[^\x00-\x7f]").fill_null(value=False) for c in cells)
    touched = rows.filter(foreign)
    repaired, rejects = [], []
    for row in touched.to_dicts():
        raw = {c: row[c].encode("latin-1") for c in cells if row[c] is not None}
        decoded = next((text for e in encodings if (text := _decoded(raw, e)).keys() == raw.keys()), None)
        if decoded is not None:
            repaired.append(row | decoded)
            continue
        bad = [c for c in raw if c not in _decoded(raw, encodings[0])]
        rejects.append(
            {
                RECORD_NO: row[RECORD_NO],
                "raw": as_csv([row[c] for c in cells], delimiter).encode("latin-1"),
                "reasons": [Reason(names.get(c), "encoding", "encoding") for c in bad],
                "expected_fields": None,
                "found_fields": None,
            }
        )
    clean = rows.filter(~foreign)
    if repaired:
        clean = pl.concat([clean, pl.DataFrame(repaired, schema=rows.schema)]).sort(RECORD_NO)
    return clean, rejects


def _decoded(raw: dict[str, bytes], encoding: str) -> dict[str, str]:
    """The cells that decode."""
    text = {}
    for cell, value in raw.items():
        with contextlib.suppress(UnicodeDecodeError):
            text[cell] = value.decode(encoding)
    return text


def as_csv(fields: list[str | None], delimiter: str) -> str:
    """One record as a CSV line without its end; None is an empty field, "" a quoted one."""

    def quoted(value: str | None) -> str:
        if value is None:
            return ""
        needs = value == "" or any(c in value for c in (delimiter, '"', "\n", "\r"))
        return '"' + value.replace('"', '""') + '"' if needs else value

    return delimiter.join(quoted(value) for value in fields)
