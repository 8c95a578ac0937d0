"""A client's transforms: contract columns made of the file's columns, before anything is cleaned.

What belongs here: concatenating, splitting, and calling the client's hooks. What does not: what one column's values
become (`standardize`).
"""

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.hooks import ROW, Hook
from healthingest.contracts.source import Transform, normal_header
from healthingest.errors import PermanentError
from healthingest.records.standardize import clean

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
    nothing = ["", *client.config.source.null_values]
    rows = rows.with_columns(clean(rows[c], nothing) for c in rows.columns if c.startswith(SOURCE))
    for step in client.config.transform:
        if step.hook is not None:
            rows = _hooked(rows, client.hooks[step.hook], step.to)
        elif step.concat:
            rows = rows.with_columns(_concatenated(step).alias(step.to[0]))
        else:
            rows = rows.with_columns(_split(step))
    return rows.drop([c for c in rows.columns if c.startswith(SOURCE)])


def _concatenated(step: Transform) -> pl.Expr:
    parts = [pl.col(source_column(name)) for name in step.concat or ()]
    joined = pl.concat_str(parts, separator=step.separator, ignore_nulls=True)
    return pl.when(joined != "").then(joined)


def _split(step: Transform) -> list[pl.Expr]:
    parts = pl.col(source_column(step.split or "")).str.splitn(step.separator, len(step.to))
    return [parts.struct.field(f"field_{place}").alias(to) for place, to in enumerate(step.to)]


def _hooked(rows: pl.DataFrame, hook: Hook, columns: list[str]) -> pl.DataFrame:
    absent = [pl.lit(None, pl.String).alias(column) for column in columns if column not in rows.columns]
    rows = rows.with_columns(absent)
    made, wrong = hook.run(rows.select(ROW, *columns))
    if wrong:
        raise HookError(f"The hook {hook.name} failed on this delivery: {wrong}. Mend it as a new version.") from None
    return rows.with_columns(made.get_columns())
