"""What is said of a delivery that was decided: sentences for its audit row, its run and its report; never a value."""

from collections.abc import Iterable

import polars as pl

from healthingest.lake.rewrite import CHANGED, GONE, NEW
from healthingest.model import Counts, Verdict
from healthingest.quality import Judgement


def of_applied(
    judged: Judgement, counts: Counts, extra_columns: int, left: pl.Series, full_files: str | None = None
) -> str | None:
    """Remarks on a delivery that silver took; `left`: what happened to members that it does not name itself.

    `full_files`: why it makes nobody leave that it does not name, empty if it does; None: it is no matter here.
    """
    said = [*_breaches(judged)]
    if said:
        said.append("The accepted records are in silver.")
    if full_files:
        said.append(full_files)
    if left.len() and full_files is not None:
        told = {kind: int((left == kind).sum()) for kind in (GONE, CHANGED, NEW)}
        said.append(
            f"Of other members {told[GONE]} left, {told[NEW]} came back and {told[CHANGED]} fell back to what other "
            "deliveries say, by what full files name."
        )
    elif left.len():
        gone = int((left == GONE).sum())
        said.append(
            f"Members whose row came from the earlier delivery of this name: {gone} were removed, "
            f"{left.len() - gone} fell back to what other deliveries say."
        )
    return _text([*said, *_remarks(counts, extra_columns)])


def of_held(judged: Judgement, counts: Counts, extra_columns: int, *, takes_back: bool) -> str | None:
    """Why a delivery was held."""
    said = [*_breaches(judged)]
    if judged.holds:
        said.append("The delivery is held and silver is unchanged; send a corrected file, or release it.")
    if takes_back:
        said.append(
            "The file would take back more members than it brings, against the earlier delivery of this name; it is "
            "held and silver is unchanged. Send the whole file, or release it."
        )
    return _text([*said, *_remarks(counts, extra_columns)])


def with_verdict(said: str | None, verdict: Verdict | None) -> str | None:
    """What is said of a delivery, with who decided what about it."""
    return " ".join(filter(None, (said, verdict.sentence))) if verdict else said


def _breaches(judged: Judgement) -> list[str]:
    return [*([judged.ratio] if judged.ratio else []), *judged.file]


def _remarks(counts: Counts, extra_columns: int) -> Iterable[str]:
    if not counts.records:
        yield "The file has a header but no records."
    if counts.warned:
        yield f"Accepted records with warnings: {counts.warned}."
    if extra_columns:
        yield f"The header has {extra_columns} column(s) that the contract does not know; they stay in bronze."


def _text(said: Iterable[str]) -> str | None:
    return " ".join(said) or None
