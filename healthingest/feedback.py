"""The letter to a sender: what of its files was refused, where, and what to mend; counts, columns, lines, no value."""

from collections.abc import Sequence

import polars as pl

from healthingest.platform import Platform
from healthingest.rejections import problems

_CLOSE = (
    "Please mend these records at their source and send them with your next file, or send the whole file again under "
    "the same name."
)
#: Lines that are named for one problem; of more only the number is told.
_NAMED = 20


def letter(platform: Platform, rows: pl.DataFrame) -> str:
    """The text (Markdown) on rejected records: a part for each delivery, a line for each column and problem."""
    parts = ["# Records that could not be taken", ""]
    for part in rows.partition_by("file_id", maintain_order=True):
        parts += _of_delivery(platform, part)
    return "\n".join([*parts, _CLOSE, ""])


def _of_delivery(platform: Platform, rows: pl.DataFrame) -> list[str]:
    row = platform.lake.audit.row(rows["file_id"][0]) or {}
    name, told = rows["file_name"][0], problems(platform, rows)
    total, refused = row.get("records") or rows.height, rows.height
    said = [f"## {name}", "", f"{refused:,} of its {total:,} records could not be taken.", ""]
    if row.get("status") == "held":
        said[-2] += " The file waits as a whole: nothing of it is in use yet."
    elif accepted := row.get("accepted"):
        said[-2] += f" {accepted:,} {'was' if accepted == 1 else 'were'} taken."
    grouped = told.group_by("column", "problem", maintain_order=True).agg("line", "lines", records=pl.len())
    for column, problem, lines, heights, records in grouped.sort(
        "records", descending=True, maintain_order=True
    ).rows():
        where = f"Column {column!r} {problem}" if column else problem[:1].upper() + problem[1:]
        said.append(f"- {where}: {records:,} record{'s' if records > 1 else ''}, {_places(lines, heights)}.")
    return [*said, ""]


def _places(lines: Sequence[int], heights: Sequence[int]) -> str:
    spans = [f"{at}-{at + height - 1}" if height > 1 else f"{at}" for at, height in zip(lines, heights, strict=True)]
    more = f" and {len(spans) - _NAMED:,} more" if len(spans) > _NAMED else ""
    return f"line{'s' if len(spans) > 1 else ''} {', '.join(spans[:_NAMED])}{more}"
