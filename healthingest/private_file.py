"""Files that people take away: where they may lie, and how they are written: whole, private, harmless to open."""

import os
import secrets
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import polars as pl

from healthingest.errors import UsageError
from healthingest.places import Places

_FORMULA = "^[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]"


def check_target(places: Places, target: Path, suffixes: Collection[str] = (".csv", ".parquet")) -> None:
    """Refuse to write an export where it cannot be, or must not lie.

    Raises:
        UsageError: its suffix is not one of the formats, its folder does not exist, or it is one of the installation's:
            what lies in the landing zone is a delivery, and the others are read by people who may not see values.
    """
    if target.suffix not in suffixes:
        raise UsageError(f"--out must end in {' or '.join(sorted(suffixes))}.")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UsageError(f"--out {target} is a folder, or lies in one that does not exist.")
    for folder in (places.output, places.landing, places.landing.parent / "archive", places.configs):
        if target.resolve().is_relative_to(folder):
            raise UsageError(f"--out must not lie in {folder}: that is not for people's files.")


def write_private(frame: pl.DataFrame, target: Path) -> None:
    """Write an export as CSV or Parquet, by its suffix: readable by its owner only, and never half-written."""
    with _privately(target) as file:
        if target.suffix == ".csv":
            _safe_for_spreadsheets(frame).write_csv(file)
        else:
            frame.write_parquet(file)


def write_text(text: str, target: Path) -> None:
    """Write a text in the same way."""
    with _privately(target) as file:
        file.write(text.encode())


@contextmanager
def _privately(target: Path) -> Iterator[IO[bytes]]:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _safe_for_spreadsheets(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with every text that a spreadsheet would take for a formula led by an apostrophe.

    A sign before nothing but digits is a number or a telephone's, and stays. Some spreadsheets take full-width signs
    (U+FF1D, FF0B, FF0D, FF20) for plain ones (OWASP, CSV injection).
    """
    text = pl.col(pl.String)
    return frame.with_columns(pl.when(_formula(text)).then(pl.lit("'") + text).otherwise(text).name.keep())


def as_written(frame: pl.DataFrame) -> pl.DataFrame:
    """A CSV file that `write_private` wrote, read back: without the apostrophes that it put there."""
    text = pl.col(pl.String)
    bare = text.str.strip_prefix("'")
    return frame.with_columns(
        pl.when(text.str.starts_with("'") & _formula(bare)).then(bare).otherwise(text).name.keep()
    )


def _formula(text: pl.Expr) -> pl.Expr:
    return text.str.contains(_FORMULA) & ~text.str.contains(r"^[+-][0-9]*$")
