"""Gold by month: what silver's feed says of months, and what is said where the feed does not reach back."""

import json
from datetime import UTC, date, datetime

import polars as pl
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.marts.membership import by_month, counted, update
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, deliver, line


def dated(home: Platform, version: int, day: date) -> None:
    """Make one of silver's commits as old as it would be had it come then."""
    entry = home.lake.silver.path / "_delta_log" / f"{version:020}.json"
    at = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
    lines = [json.loads(text) for text in entry.read_text().splitlines()]
    for action in lines:
        if "commitInfo" in action:
            action["commitInfo"]["timestamp"] = at
            action["commitInfo"].pop("inCommitTimestamp", None)
    entry.write_text("".join(json.dumps(action) + "\n" for action in lines))


def months(home: Platform) -> list[tuple[object, ...]]:
    update(home.lake, home.places.output)
    rows = by_month(counted(home.places.output))
    return rows.select("month", "members", "additions", "changes", "leavers").rows()


def test_a_change_counts_in_its_month_and_quiet_months_have_their_members(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2")))
    first = home.lake.silver.version()
    deliver(home, "acme_20250102.csv", csv_of(line("M1", city="Lynn"), line("M3")))
    second = home.lake.silver.version()
    assert first is not None
    assert second is not None
    for version in range(first + 1):
        dated(home, version, date(2025, 11, 20))
    dated(home, second, date(2026, 2, 3))
    expected = [
        (date(2025, 11, 1), 2, 2, 0, 0), (date(2025, 12, 1), 2, 0, 0, 0), (date(2026, 1, 1), 2, 0, 0, 0),
        (date(2026, 2, 1), 3, 1, 1, 0),
    ]  # fmt: skip
    assert months(home) == expected
    assert months(home) == expected


def test_one_update_and_many_come_to_the_same(home: Platform) -> None:
    update(home.lake, home.places.output)
    for day in range(1, 5):
        deliver(home, f"acme_2025010{day}.csv", csv_of(*[line(f"M{n}", state=["MA", "NY"][n % 2]) for n in range(day)]))
        update(home.lake, home.places.output)
    stepwise = counted(home.places.output)
    (home.places.output / "gold" / "membership_by_month").rename(home.places.output / "gold_before")
    update(home.lake, home.places.output)
    assert counted(home.places.output).equals(stepwise)


def test_where_the_feed_was_cut_off_members_are_counted_anew_and_the_month_says_so(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1")))
    update(home.lake, home.places.output)
    deliver(home, "acme_20250102.csv", csv_of(line("M1", city="Lynn"), line("M2")))
    for file in (home.lake.silver.path / "_change_data").rglob("*.parquet"):
        file.unlink()
    (done,) = update(home.lake, home.places.output)
    assert done.cut_off
    rows = counted(home.places.output)
    assert (rows["members"].sum(), rows["additions"].sum(), rows["complete"].all()) == (2, 1, False)
    assert update(home.lake, home.places.output) == []


def test_the_table_holds_counts_alone(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1")))
    update(home.lake, home.places.output)
    assert set(counted(home.places.output).columns) == {
        "client_id", "month", "state", "age_band", "members", "additions", "changes", "leavers", "complete",
    }  # fmt: skip
    assert counted(home.places.output).select(pl.col("state", "age_band")).rows() == [("MA", "40-49")]


def test_the_command_updates_and_shows(home: Platform) -> None:
    run = CliRunner()
    assert "Nothing is counted yet" in run.invoke(app, ["marts", "show"]).output
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2")))
    assert "silver: up to version" in run.invoke(app, ["marts", "update"]).output
    assert "Silver has not changed" in run.invoke(app, ["marts", "update"]).output
    shown = json.loads(run.invoke(app, ["marts", "show", "--json"]).output)["membership_by_month"]
    assert [(row["client_id"], row["members"]) for row in shown] == [("acme", 2)]
