"""A breaking change in steps: silver is readable and mergeable throughout, and its change feed goes on."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import yaml
from deltalake import DeltaTable
from typer.testing import CliRunner

from healthingest import read_silver
from healthingest.cli import app
from healthingest.contracts.edit import REMOVED, edited
from healthingest.errors import UsageError
from healthingest.lake.migrations import Migrations
from healthingest.lake.narrow import drop_columns
from healthingest.maintain import maintain
from healthingest.migrate import backfill, cancel, finish, start, switch
from healthingest.platform import Platform
from healthingest.reread import stale
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, env_of, install, line
from healthingest_tests.dying import DIE_AFTER
from healthingest_tests.histories import change_feed_is_real
from healthingest_tests.unit.test_schema_stories import rebuilt, silver

FILES = {
    "acme_20250106.csv": csv_of(line("M1"), line("M2", dob="1979-03-05")),
    "acme_20250107.csv": csv_of(line("M2", dob="1979-04-05"), line("M3", dob="2001-01-31")),
}
LATER = {"acme_20250108.csv": csv_of(line("M3", dob="2001-02-28"), line("M4"))}
WIDE, NARROW = "member/2", "member/3"


def write_versions(home: Platform) -> None:
    """Two versions: birth_month beside birth_year, and birth_month alone."""
    folder = home.places.configs / "contracts" / "member"
    text = (folder / "1.yaml").read_text()
    made = ("columns", 3, "policy", "generalize")
    wide = edited(text, {("version",): 2, (*made, "birth_month"): "month"})
    (folder / "2.yaml").write_text(wide)
    (folder / "3.yaml").write_text(edited(wide, {("version",): 3, (*made, "birth_year"): REMOVED}))


def reopened(home: Platform) -> Platform:
    return Platform.open(home.places)


@pytest.fixture
def ready(home: Platform) -> Platform:
    write_versions(home)
    for name, text in FILES.items():
        deliver(home, name, text)
    return reopened(home)


def test_a_column_is_replaced_in_steps_and_readers_find_one_or_both_throughout(ready: Platform, tmp_path: Path) -> None:
    uri = ready.lake.silver.uri
    first = DeltaTable(uri)
    columns, said = first.schema().fields, first.metadata()
    transactions = first.transaction_version("client/acme")
    start(ready, "acme", WIDE, NARROW, by="jane", reason="months, not years")
    assert pl.read_delta(uri)["birth_month"].to_list() == [None] * 3
    assert [r["birth_year"] for r in silver(ready)] == [1980, 1979, 2001]
    backfill(reopened(ready), "acme", by="jane")
    assert silver(ready) == rebuilt(ready, tmp_path / "wide", FILES)
    assert [(r["birth_year"], r["birth_month"]) for r in silver(ready)] == [
        (1980, "1980-12"), (1979, "1979-04"), (2001, "2001-01")
    ]  # fmt: skip
    switch(reopened(ready), "acme", datetime.now(UTC).date(), by="jane")
    comment = next(f for f in DeltaTable(uri).schema().fields if f.name == "birth_year").metadata["comment"]
    assert comment == f"year of dob (quasi-identifier); of acme until {datetime.now(UTC):%Y-%m-%d}, then birth_month"
    deliver(reopened(ready), *next(iter(LATER.items())))
    wide_version = DeltaTable(uri).version()
    old = pl.read_delta(uri, version=wide_version)

    assert finish(reopened(ready), "acme", by="jane").step == "finished"
    table = DeltaTable(uri)
    assert "birth_year" not in [f.name for f in table.schema().fields]
    assert (str(table.metadata().id), table.metadata().description, table.metadata().configuration) == (
        str(said.id), said.description, said.configuration
    )  # fmt: skip
    kept = [f for f in columns if f.name != "birth_year"]
    assert table.schema().fields[: len(kept)] == kept
    assert (table.transaction_version("client/acme") or 0) > (transactions or 0)
    assert silver(ready) == rebuilt(ready, tmp_path / "narrow", FILES | LATER)
    assert pl.read_delta(uri, version=wide_version).equals(old)
    for files in pl.DataFrame(table.get_add_actions(flatten=True))["path"]:
        assert "birth_year" not in pl.read_parquet_schema(Path(uri) / files)
    change_feed_is_real(reopened(ready))
    feed = pl.DataFrame(table.load_cdf(starting_version=0).read_all())
    assert feed.height > 0

    outcome = deliver(reopened(ready), "acme_20250109.csv", csv_of(line("M1", city="Salem")))
    assert (outcome.status, outcome.counts.updated) == ("succeeded", 1)
    assert "birth_year" not in [f.name for f in DeltaTable(uri).schema().fields]
    assert maintain(reopened(ready))
    shown = read_silver(role="operations", places=ready.places).select("member_id", "city", "birth_month").collect()
    assert shown.filter(pl.col("member_id") == "M1").row(0) == ("M1", "Salem", "1980-12")


def test_a_column_that_another_client_has_stays_for_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": "client_id: globex\n"})
    write_versions(home)
    for name, text in FILES.items():
        deliver(home, name, text)
    deliver(home, "globex_20250106.csv", csv_of(line("G1")))
    home = reopened(home)
    start(home, "acme", WIDE, NARROW, by="jane", reason="months")
    backfill(reopened(home), "acme", by="jane")
    switch(reopened(home), "acme", datetime.now(UTC).date(), by="jane")
    done = finish(reopened(home), "acme", by="jane")
    assert done.note == "months. birth_year stays for globex."
    rows = pl.read_delta(home.lake.silver.uri).sort("client_id")
    assert rows["birth_year"].to_list() == [None, None, None, 1980]


def test_steps_come_in_their_order_and_not_before_the_day_that_readers_were_told(ready: Platform) -> None:
    with pytest.raises(UsageError, match="No change of acme is under way"):
        backfill(ready, "acme", by="jane")
    with pytest.raises(UsageError, match="member/3 breaks with member/1"):
        start(ready, "acme", NARROW, WIDE, by="jane", reason="months")
    with pytest.raises(UsageError, match="there is nothing to take out"):
        start(ready, "acme", WIDE, WIDE, by="jane", reason="months")
    start(ready, "acme", WIDE, NARROW, by="jane", reason="months")
    with pytest.raises(UsageError, match="next is: healthingest schema migrate backfill --client acme"):
        finish(reopened(ready), "acme", by="jane")
    with pytest.raises(UsageError, match="on its way from member/1 to member/3"):
        start(reopened(ready), "acme", WIDE, WIDE, by="jane", reason="months")
    backfill(reopened(ready), "acme", by="jane")
    with pytest.raises(UsageError, match="has passed"):
        switch(reopened(ready), "acme", datetime.now(UTC).date() - timedelta(days=2), by="jane")
    switch(reopened(ready), "acme", datetime.now(UTC).date() + timedelta(days=30), by="jane")
    with pytest.raises(UsageError, match="stay until"):
        finish(reopened(ready), "acme", by="jane")


def test_a_change_that_is_cancelled_leaves_silver_as_it_was(ready: Platform) -> None:
    before = silver(ready)
    start(ready, "acme", WIDE, NARROW, by="jane", reason="months")
    backfill(reopened(ready), "acme", by="jane")
    cancel(reopened(ready), "acme", by="jane")
    assert silver(ready) == before
    assert "birth_month" not in pl.read_delta(ready.lake.silver.uri).columns
    assert stale(reopened(ready), "acme") == []


def test_a_column_that_a_client_has_values_in_whose_yaml_is_gone_stays(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": "client_id: globex\n"})
    write_versions(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    deliver(home, "globex_20250106.csv", csv_of(line("G1")))
    (home.places.configs / "globex.yaml").unlink()
    start(reopened(home), "acme", WIDE, NARROW, by="jane", reason="months")
    backfill(reopened(home), "acme", by="jane")
    switch(reopened(home), "acme", datetime.now(UTC).date(), by="jane")
    assert finish(reopened(home), "acme", by="jane").note == "months. birth_year stays for globex."
    assert pl.read_delta(home.lake.silver.uri).sort("client_id")["birth_year"].to_list() == [None, 1980]


def test_a_file_that_is_held_when_it_is_read_again_stops_the_change_where_it_is(ready: Platform) -> None:
    start(ready, "acme", WIDE, NARROW, by="jane", reason="months")
    file = ready.places.configs / "acme.yaml"
    file.write_text(file.read_text() + "quality: {min_records: 3, on_breach: hold}\n")
    with pytest.raises(UsageError, match=r"acme_2025010[67].csv was not taken when it was read again"):
        backfill(reopened(ready), "acme", by="jane")
    assert [r["birth_year"] for r in silver(ready)] == [1980, 1979, 2001]


def test_what_a_yaml_says_of_a_column_that_leaves_goes_with_it(home: Platform) -> None:
    home = configure(home, "client_id: acme\ncolumns: {mail: email, Town: city}\n")
    folder = home.places.configs / "contracts" / "member"
    text = (folder / "1.yaml").read_text()
    more = {"name": "mail_address", "type": "email", "policy": {"vault": "contact"}}
    wide = edited(text, {("version",): 2, ("columns", 12): more})
    (folder / "2.yaml").write_text(wide)
    (folder / "3.yaml").write_text(edited(wide, {("version",): 3, ("columns", 10): REMOVED}))
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), header=HEADER.replace("email", "mail")))
    start(reopened(home), "acme", WIDE, NARROW, by="jane", reason="one address")
    backfill(reopened(home), "acme", by="jane")
    switch(reopened(home), "acme", datetime.now(UTC).date(), by="jane")
    assert finish(reopened(home), "acme", by="jane").step == "finished"
    assert (home.places.configs / "acme.yaml").read_text() == (
        "client_id: acme\ncolumns: {Town: city}\ncontract: member/3\n"
    )


def test_a_narrow_version_only_takes_out(ready: Platform) -> None:
    narrow = ready.places.configs / "contracts" / "member" / "3.yaml"
    rule = {"id": "city.none", "column": "city", "not_in": ["Boston"]}
    plain = yaml.safe_load(narrow.read_text())
    narrow.write_text(edited(narrow.read_text(), {("rules", len(plain["rules"])): rule}))
    with pytest.raises(UsageError, match=r"does more than take out what member/2 has \(rule city.none"):
        start(ready, "acme", WIDE, NARROW, by="jane", reason="months")


def test_columns_that_every_row_has_cannot_be_dropped(ready: Platform) -> None:
    with pytest.raises(Exception, match="cannot leave"):
        drop_columns(ready.lake.silver, ["_sequence"])


#: Runs the command, and dies right after the named step.
_DYING = (
    DIE_AFTER
    + """
import healthingest.migrate as migrate
import healthingest.approve as approve
from healthingest.lake.migrations import Migrations
from healthingest.lake.registrations import Registrations
from healthingest.lake.silver import Silver

for holder, names in ((migrate, ["write", "drop_columns", "_comment", "_still_used"]), (Registrations, ["put"]),
                      (Silver, ["for_client"]), (Migrations, ["put"]), (approve, ["stale", "ingest_many"])):
    for name in names:
        die_after(holder, name, name if holder is not Migrations else "note")
die_after_a_group(approve)
from healthingest.cli import main
main()
"""
)
#: Command -> where it is killed, one after the other; then it is run to its end.
KILLS = {"start": ["write", "for_client"], "backfill": ["group"], "switch": ["_comment"],
         "finish": ["write", "drop_columns"]}  # fmt: skip
if os.environ.get("HEALTHINGEST_NIGHTLY"):
    KILLS = {"start": ["note", "put", "write", "for_client"], "backfill": ["stale", "group", "note"],
             "switch": ["_comment", "note"],
             "finish": ["write", "stale", "group", "_still_used", "drop_columns", "note"]}  # fmt: skip


def test_each_step_killed_anywhere_is_finished_by_the_same_command(ready: Platform, tmp_path: Path) -> None:
    env = env_of(ready.places)  # fmt: skip
    more = {"start": ["--wide", WIDE, "--narrow", NARROW, "--reason", "months"],
            "switch": ["--on", f"{datetime.now(UTC):%Y-%m-%d}"]}  # fmt: skip

    def run(command: str, at: str) -> "subprocess.CompletedProcess[str]":
        words = ["healthingest", "schema", "migrate", command, "--client", "acme", *more.get(command, [])]
        return subprocess.run([sys.executable, "-c", _DYING, at, *words], env=env, capture_output=True, text=True)

    for command, deaths in KILLS.items():
        for at in deaths:
            died = run(command, at)
            assert died.returncode == -signal.SIGKILL, (command, at, died.stdout, died.stderr)
            assert len(silver(ready)) == 3
        done = CliRunner().invoke(app, ["schema", "migrate", "status", "--json"], env=env)
        assert done.exit_code == 0
        done_ = run(command, "")
        assert done_.returncode == 0, (command, done_.stderr)
    (state,) = Migrations.at(ready.places.output).all()
    assert state.step == "finished"
    assert silver(ready) == rebuilt(ready, tmp_path, FILES)
    assert "birth_year" not in pl.read_delta(ready.lake.silver.uri).columns
    change_feed_is_real(reopened(ready))
