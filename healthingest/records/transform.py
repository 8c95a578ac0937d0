"""A client's transforms: contract columns made of the file's columns, before anything is cleaned.

What belongs here: concatenating, splitting, and calling the client's hooks. What does not: what one column's values
become (`standardize`).
"""

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.hooks import Hook
from healthingest.contracts.source import Transform
from healthingest.errors import PermanentError
from healthingest.records.header import normal_header

#: Prefix of columns of the file that only transforms read.
SOURCE = "source:"


class HookError(PermanentError):
    """A client's hook failed on this delivery; its author must mend it as a new version."""

    kind = "hook"


def source_column(header: str) -> str:
    """The column of a frame that holds a column of the file by its header."""
    return SOURCE + normal_header(header)


def transform(rows: pl.DataFrame, client: Client) -> pl.DataFrame:
    """Run the client's steps in order; `rows` has the file's columns as the reader gives them (String).

    Raises:
        HookError: a hook threw or returned something else than it must; never with what it said.
    """
    for step in client.config.transform:
        if step.hook is not None:
            rows = _hooked(rows, client.hooks[step.hook], step.to)
        elif step.concat:
            rows = rows.with_columns(_concatenated(step).alias(step.to[0]))
        else:
            rows = rows.with_columns(_split(step))
    return rows.drop([c for c in rows.columns if c.startswith(SOURCE)])


def _concatenated(step: Transform) -> pl.Expr:
    parts = [pl.col(source_column(name)).str.strip_chars() for name in step.concat or ()]
    filled = [pl.when(part != "").then(part) for part in parts]
    joined = pl.concat_str(filled, separator=step.separator, ignore_nulls=True)
    return pl.when(joined != "").then(joined)


def _split(step: Transform) -> list[pl.Expr]:
    parts = pl.col(source_column(step.split or "")).str.splitn(step.separator, len(step.to))
    return [parts.struct.field(f"field_{place}").alias(to) for place, to in enumerate(step.to)]


def _hooked(rows: pl.DataFrame, hook: Hook, columns: list[str]) -> pl.DataFrame:
    absent = [pl.lit(None, pl.String).alias(column) for column in columns if column not in rows.columns]
    rows = rows.with_columns(absent)
    given = rows.select(columns)
    try:
        made = hook.transform(given)
        wrong = hook.objection(given, made)
    except Exception as error:  # noqa: BLE001 - its text may hold values
        wrong = f"it throws {type(error).__name__}"
    if wrong:
        raise HookError(f"The hook {hook.name} failed on this delivery: {wrong}. Mend it as a new version.") from None
    return rows.with_columns(made.get_columns())
