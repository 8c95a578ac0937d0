"""`membership_by_month`: members, additions, changes and leavers per client, month, state and age band.

It tells silver's own history: a change counts in the month (UTC) in which silver was changed. It is kept up from the
Change Data Feed, each version exactly once, since the version that was taken in stands in the same commit as the counts
(`silver/<table>`). It holds counts alone, and its reader needs no key.
"""

import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import polars as pl
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from healthingest.lake.delta import ZSTD, Table, commit, retry
from healthingest.lake.destinations import Destinations
from healthingest.lake.lake import Lake
from healthingest.lake.silver import Silver
from healthingest.privacy.generalize import age_band

log = logging.getLogger(__name__)
CELL = ["client_id", "month", "state", "age_band"]
FLOWS = ["additions", "changes", "leavers"]
SCHEMA = pl.Schema(
    {
        "client_id": pl.String(),
        "month": pl.Date(),
        "state": pl.String(),
        "age_band": pl.String(),
        "members": pl.Int64(),
        **dict.fromkeys(FLOWS, pl.Int64()),
        "complete": pl.Boolean(),
    }
)
#: What silver says of a member that a cell is made of; a client's contract may leave either out.
_KINDS = {"insert": "additions", "update_postimage": "changes", "delete": "leavers"}
_CHANGE = pl.Schema(
    {
        "client_id": pl.String(), "kind": pl.String(), "month": pl.Date(), "state": pl.String(),
        "birth_year": pl.Int32(),
    }
)  # fmt: skip
_STOCK = {"insert": 1, "update_postimage": 1, "update_preimage": -1, "delete": -1}


class Membership(Table):
    """The gold table."""

    @classmethod
    def at(cls, output: Path) -> "Membership":
        """The table below an output folder."""
        return cls(
            output / "gold" / "membership_by_month",
            SCHEMA,
            partition_by=("client_id",),
            description="Members and their comings and goings by month, from silver's change feed. Counts only.",
            comments={
                "month": "first day of the month (UTC) in which silver was changed",
                "state": "as silver shows it; null where it does not",
                "age_band": "of the age reached in the year of the month; null where the year of birth is not known",
                "members": "at the end of the month; of the current one: now",
                "additions": "members that came",
                "changes": "changes of members that stayed, counted where they are afterwards",
                "leavers": "members that went, counted where they were",
                "complete": "false: the change feed did not reach back over all of the month",
            },
        )


@dataclass(frozen=True)
class Updated:
    """What was taken in of one table of silver."""

    table: str
    #: Versions of silver: taken in before, and now.
    before: int | None
    now: int
    #: Whether the feed no longer reached back to the version before, so that only the members could be counted.
    cut_off: bool


def update(lake: Lake, output: Path) -> list[Updated]:
    """Take in what silver's tables have changed since; nothing is written where that is nothing.

    Raises:
        ContentionError: other updates won every time.
    """
    gold = Membership.at(output)
    silvers = [silver for silver in lake.silvers() if silver.exists()]
    done = [retry(partial(_take_in, gold, silver, lake.destinations)) for silver in silvers]
    return [one for one in done if one is not None]


def keep_up(lake: Lake, output: Path) -> None:
    """The same where there is a gold table: for whoever is about to delete what the feed needs.

    It hinders nobody: what gold then lacks, its next update sees, and says.
    """
    try:
        if Membership.at(output).exists():
            update(lake, output)
    except Exception as error:  # noqa: BLE001 - an erasure must not fail for a table of counts
        log.warning("Gold was not brought up to date (%s); run healthingest marts update.", type(error).__name__)


def counted(output: Path, client_id: str | None = None) -> pl.DataFrame:
    """The table's rows in the order of client, month, state and band."""
    mine = pl.col("client_id") == client_id if client_id else None
    return Membership.at(output).frame(None, mine).sort(CELL)


def _take_in(gold: Membership, silver: Silver, destinations: Destinations) -> Updated | None:
    table, target = silver.snapshot(), gold.snapshot()
    app_id, now = f"silver/{silver.path.name}", int(table.version())
    found = target.transaction_version(app_id)
    before = None if found is None else int(found)
    if before is not None and before >= now:
        return None
    feed = _feed(table, -1 if before is None else before)
    known, state = gold.frame(), _state_of(table)
    anybody = {*state["client_id"], *known["client_id"]} if feed is None else set()
    # Others' members are in other tables; whoever is in none has left, and was here if that is where it would be.
    cut_off = [client_id for client_id in anybody if destinations.of(client_id).folder == silver.path.name]
    rows = _rows(known, feed, state, cut_off)
    clients = rows["client_id"].unique().to_list()
    told = commit({app_id: now})
    if not clients:
        write_deltalake(target, rows, mode="append", writer_properties=ZSTD, commit_properties=told)
    else:
        first = min(rows["month"].to_list())
        quoted = ", ".join(f"'{c}'" for c in clients)
        write_deltalake(
            target, rows, mode="overwrite", writer_properties=ZSTD, commit_properties=told,
            predicate=f"client_id IN ({quoted}) AND month >= '{first}'",
        )  # fmt: skip
    return Updated(silver.path.name, before, now, feed is None)


def _feed(table: DeltaTable, after: int) -> pl.DataFrame | None:
    """Changes since a version: client_id, kind (of change), month, state, birth_year; None: it does not reach back."""
    renumbered = _renumbered(table, after)
    try:
        reader = table.load_cdf(starting_version=after + 1)
        changes = pl.DataFrame(reader)
    except (DeltaError, pl.exceptions.PolarsError, OSError, ValueError):
        return None
    if after < 0 and not _from_the_start(table):
        return None
    at = pl.col("_commit_timestamp")
    changes = _with_cell(changes).filter(~pl.col("_commit_version").is_in(renumbered))
    return changes.select(
        "client_id", kind="_change_type", month=at.dt.date().dt.month_start(), state="state", birth_year="birth_year"
    )


def _from_the_start(table: DeltaTable) -> bool:
    """Whether the log still holds the table's first commit."""
    versions = [entry.get("version") for entry in table.history()]
    return 0 in versions


def _renumbered(table: DeltaTable, after: int) -> list[int]:
    """Versions after `after` in which rows got other tokens, and nobody changed."""
    entries = table.history(int(table.version()) - after)
    told = ((entry["version"], json.loads(entry.get("healthingest") or "{}")) for entry in entries)
    return [version for version, said in told if "tokens" in said]


def _state_of(table: DeltaTable) -> pl.DataFrame:
    """Members now: client_id, state, birth_year, members."""
    scan = pl.scan_delta(table)
    have = scan.collect_schema().names()
    picked = scan.select("client_id", *[c for c in ("state", "birth_year") if c in have]).collect()
    return _with_cell(picked).group_by("client_id", "state", "birth_year").agg(members=pl.len().cast(pl.Int64))


def _with_cell(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with state (String) and birth_year (Int32), null where silver has no such column."""
    missing = {"state": pl.lit(None, pl.String), "birth_year": pl.lit(None, pl.Int32)}
    return rows.with_columns(**{name: none for name, none in missing.items() if name not in rows.columns})


def _rows(known: pl.DataFrame, feed: pl.DataFrame | None, now: pl.DataFrame, cut_off: Collection[str]) -> pl.DataFrame:
    """Gold's rows that are new or other than before: of clients with changes, from the first month of those on.

    `cut_off`: clients that may have changed although the feed, which is None, does not tell.
    """
    changes = pl.DataFrame(schema=_CHANGE) if feed is None else feed
    first = dict(changes.group_by("client_id").agg(pl.col("month").min()).iter_rows())
    if feed is None:
        this_month = datetime.now(UTC).date().replace(day=1)
        first = dict.fromkeys(cut_off, this_month)
    parts = [
        _of_client(client_id, known.filter(pl.col("client_id") == client_id), changes, now, month, cut=feed is None)
        for client_id, month in sorted(first.items())
    ]
    return pl.concat([pl.DataFrame(schema=SCHEMA), *parts])


def _of_client(
    client_id: str, known: pl.DataFrame, changes: pl.DataFrame, now: pl.DataFrame, first: date, *, cut: bool
) -> pl.DataFrame:
    mine = changes.filter(pl.col("client_id") == client_id)
    latest = known["month"].max()
    start, last = first, max([first, *mine["month"]])
    if isinstance(latest, date):  # months in which nothing happened have their members too
        start, last = min(first, _next(latest)), max(last, latest)
    stock = now.filter(pl.col("client_id") == client_id).select("state", "birth_year", "members")
    parts = []
    for month in reversed(list(_months(start, last))):
        later = mine.filter(pl.col("month") > month)
        moved = later.group_by("state", "birth_year").agg(
            members=-pl.col("kind").replace_strict(_STOCK, return_dtype=pl.Int64).sum()
        )
        then = pl.concat([stock, moved]).group_by("state", "birth_year").agg(pl.col("members").sum())
        flows = (
            mine.filter(pl.col("month") == month, pl.col("kind") != "update_preimage")
            .group_by("state", "birth_year")
            .agg(
                (pl.col("kind").replace_strict(_KINDS, return_dtype=pl.String) == flow).sum().cast(pl.Int64).alias(flow)
                for flow in FLOWS
            )
        )
        old = known.filter(pl.col("month") == month)
        cells = pl.concat([_cells(then, month), _cells(flows, month), old.select("state", "age_band", *FLOWS)],
                          how="diagonal")  # fmt: skip
        whole = not cut and (old.is_empty() or bool(old["complete"].all()))
        summed = cells.group_by("state", "age_band").agg(pl.col("members", *FLOWS).sum())
        parts.append(summed.with_columns(client_id=pl.lit(client_id), month=pl.lit(month), complete=pl.lit(whole)))
    found = pl.concat(parts).select(SCHEMA.names()).cast(SCHEMA)
    return found.filter(pl.any_horizontal(pl.col("members", *FLOWS) != 0) | ~pl.col("complete"))


def _cells(rows: pl.DataFrame, month: date) -> pl.DataFrame:
    """Rows by year of birth as rows by age band in a month."""
    return rows.with_columns(age_band=age_band(pl.col("birth_year"), month)).drop("birth_year")


def _months(first: date, last: date) -> Iterator[date]:
    while first <= last:
        yield first
        first = _next(first)


def _next(month: date) -> date:
    return month.replace(year=month.year + month.month // 12, month=month.month % 12 + 1)


def by_month(rows: pl.DataFrame) -> pl.DataFrame:
    """The table's rows without state and age band: client_id, month, members, the flows, complete."""
    sums = rows.group_by("client_id", "month").agg(pl.col("members", *FLOWS).sum(), pl.col("complete").all())
    return sums.sort("client_id", "month")
