"""Tables that lag behind the registry are put right; what differs otherwise is told exactly and left alone."""

import json

import polars as pl
import pytest
from deltalake import DeltaTable, Field, write_deltalake
from typer.testing import CliRunner

from healthingest.alerting.watch import Watch
from healthingest.cli import app
from healthingest.lake.registrations import known_clients
from healthingest.platform import Platform
from healthingest.reconcile import differences, reconcile
from healthingest_tests.conftest import configure, csv_of, deliver, line, places_in


@pytest.fixture
def used(home: Platform) -> Platform:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="1")))
    return home


def told(home: Platform) -> list[str]:
    return [d.sentence for d in differences(home.places, known_clients(home.places))]


def overwrite(home: Platform, name: str, *changes: pl.Expr) -> None:
    """Do what a careless hand does: write a table whole, with other columns."""
    table = {"silver": home.lake.silver, "audit": home.lake.audit}[name]
    rows = pl.read_delta(table.uri).with_columns(*changes)
    write_deltalake(table.uri, rows, mode="overwrite", schema_mode="overwrite",
                    partition_by=list(table.partition_by) or None)  # fmt: skip


def test_tables_that_this_software_wrote_do_not_differ_and_none_is_needed(home: Platform) -> None:
    assert told(home) == []
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="1")))
    assert told(home) == []


def test_a_column_of_a_contract_that_no_file_has_used_yet_is_added_with_its_comment(used: Platform) -> None:
    before = DeltaTable(used.lake.silver.uri)
    home = configure(used, "client_id: acme\npolicies: {dob: {vault: identity, generalize: {born: month}}}\n")
    assert told(home) == ["silver: born is missing."]
    mended, left = reconcile(home.places, home.clients)
    assert ([d.sentence for d in mended], left) == (["silver: born is missing."], [])
    after = DeltaTable(used.lake.silver.uri)
    assert (str(after.metadata().id), after.metadata().description) == (
        str(before.metadata().id), before.metadata().description
    )  # fmt: skip
    assert after.schema().fields[:-1] == before.schema().fields
    assert after.schema().fields[-1].metadata == {"comment": "year and month of dob (quasi-identifier)"}


def test_lost_comments_and_properties_come_back(used: Platform) -> None:
    uri = used.lake.silver.uri
    DeltaTable(uri).alter.set_column_metadata("state", {"comment": ""})
    DeltaTable(uri).alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    assert told(used) == ["silver: state has no comment.", "silver: delta.enableChangeDataFeed is not true."]
    reconcile(used.places, used.clients)
    assert told(used) == []
    assert DeltaTable(uri).metadata().configuration["delta.enableChangeDataFeed"] == "true"


def test_another_type_and_columns_that_nobody_registered_are_told_and_left_alone(used: Platform) -> None:
    overwrite(used, "silver", pl.col("birth_year").cast(pl.String), pl.lit(1).alias("score"))
    version = used.lake.silver.version()
    wrong = [
        "silver: birth_year is string and should be integer.", "silver: score is in no contract of the registry.",
    ]  # fmt: skip
    assert [s for s in told(used) if "comment" not in s and "delta." not in s] == wrong
    done = CliRunner().invoke(app, ["schema", "reconcile", "--plan", "--json"])
    assert done.exit_code == 1
    assert used.lake.silver.version() == version
    done = CliRunner().invoke(app, ["schema", "reconcile", "--json"])
    assert (done.exit_code, len(json.loads(done.output)["left"])) == (1, 2)
    assert told(used) == wrong


def test_a_column_that_may_not_be_null_is_told_before_every_merge_fails(used: Platform) -> None:
    DeltaTable(used.lake.audit.uri).alter.add_columns([Field("reviewed", "string", nullable=False)])
    assert told(used) == ["audit: reviewed is none of this table's columns."]


def test_the_watch_tells_and_the_end_of_it_too(used: Platform) -> None:
    Watch.over(used.places).look()
    overwrite(used, "audit", pl.lit(1).alias("score"))
    found = Watch.over(used.places).look().book.alerts.values()
    (alert,) = [a for a in found if a.open and a.condition == "schema_out_of_sync"]
    assert "audit: score is none of this table's columns." in alert.summary


def test_in_prod_every_change_of_a_schema_waits_for_people(home: Platform) -> None:
    for mode in ("add_columns", "freeze"):
        configure(home, f"client_id: acme\nschema_evolution: {mode}\n")
        assert known_clients(home.places).active == ["acme"]
        prod = places_in(home.places.home.parent, HEALTHINGEST_ENV="prod")
        (problem,) = known_clients(prod).problems
        assert str(problem) == (
            "acme.yaml:2, key 'schema_evolution': in prod only review is allowed; write review, or leave it out."
        )
