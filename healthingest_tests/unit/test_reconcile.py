"""Tables that lag behind the registry are put right; what differs otherwise is told exactly and left alone."""

import json

import polars as pl
import pytest
import yaml
from deltalake import DeltaTable, Field, Schema, write_deltalake
from deltalake.exceptions import DeltaError
from typer.testing import CliRunner

from healthingest.alerting.book import Alert
from healthingest.alerting.watch import Watch
from healthingest.cli import app
from healthingest.lake.narrow import drop_columns
from healthingest.lake.registrations import known_clients
from healthingest.platform import Platform
from healthingest.reconcile import differences, reconcile
from healthingest_tests.conftest import CONTRACTS, configure, csv_of, deliver, line, places_in


@pytest.fixture
def used(home: Platform) -> Platform:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="1")))
    return home


def told(home: Platform) -> list[str]:
    return [d.sentence for d in differences(home.places, known_clients(home.places))]


def holding(home: Platform) -> list[Alert]:
    """The alerts on tables that hold after a look."""
    looked = Watch.over(home.places).look()
    assert looked.problems == ()
    found = [a for a in looked.book.alerts.values() if a.open and a.condition.startswith("schema_out_of_sync")]
    return sorted(found, key=lambda alert: alert.condition)


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
    assert after.schema().fields[-1].metadata["comment"] == "year and month of dob (quasi-identifier)"
    assert told(configure(home, "client_id: acme\n")) == [], (
        "who thought better of it before any file leaves no stranger"
    )


def test_lost_and_other_comments_names_and_descriptions_come_back(used: Platform) -> None:
    uri = used.lake.silver.uri
    before = DeltaTable(uri)
    DeltaTable(uri).alter.set_column_metadata("state", {"comment": ""})
    DeltaTable(uri).alter.set_column_metadata("zip3", {"comment": "whatever"})
    DeltaTable(uri).alter.set_table_name("gold")
    DeltaTable(uri).alter.set_table_description("")
    assert told(used) == [
        "silver: state has no comment.", "silver: zip3 has another comment.",
        "silver has lost its name or description.",
    ]  # fmt: skip
    mended, left = reconcile(used.places, used.clients)
    assert (len(mended), left, told(used)) == (3, [], [])
    after = DeltaTable(uri)
    assert after.schema() == before.schema()
    assert [str(one.metadata().id) for one in (after, before)] == [str(before.metadata().id)] * 2
    assert (after.metadata().name, after.metadata().description) == ("silver", before.metadata().description)
    assert deliver(used, "acme_20250107.csv", csv_of(line("M1", state="NH"))).counts.updated == 1


def test_a_comment_that_tells_of_a_migration_stays_and_so_does_one_in_another_clients_words(used: Platform) -> None:
    uri = used.lake.silver.uri
    (said,) = [f.metadata["comment"] for f in DeltaTable(uri).schema().fields if f.name == "state"]
    DeltaTable(uri).alter.set_column_metadata("state", {"comment": f"{said}; of acme until 2026-12-31, then region"})
    assert told(used) == []
    plain = yaml.safe_load((CONTRACTS / "member" / "1.yaml").read_text()) | {"version": 2}
    next(c for c in plain["columns"] if c["name"] == "gender")["description"] = "As the member says."
    (used.places.configs / "contracts" / "member" / "2.yaml").write_text(yaml.safe_dump(plain))
    configure(used, "client_id: globex\ncontract: member/2\n", "globex")
    assert told(used) == [], "both wordings are good"
    configure(used, "client_id: acme\ncontract: member/2\n")
    assert told(used) == ["silver: gender has another comment."]


def test_a_change_feed_that_was_switched_off_is_on_again_and_what_is_lost_is_told(used: Platform) -> None:
    table = DeltaTable(used.lake.silver.uri)
    table.alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    off = table.version()
    deliver(used, "acme_20250107.csv", csv_of(line("M1", state="NH")))
    (alert,) = holding(used)
    assert alert.condition == "schema_out_of_sync:silver.delta.enableChangeDataFeed"
    (one,), left = reconcile(used.places, used.clients)
    assert (left, told(used), holding(used)) == ([], [], [])
    assert one.sentence == (
        "silver: delta.enableChangeDataFeed is false and should be true; nobody can read the change feed across the "
        "versions in which it was off: whoever follows it must read the table as a whole once."
    )
    on = DeltaTable(used.lake.silver.uri).version()
    with pytest.raises(DeltaError, match=f"not enabled for version: {off}"):  # as it says
        DeltaTable(used.lake.silver.uri).load_cdf(starting_version=0).read_all()
    deliver(used, "acme_20250108.csv", csv_of(line("M1", state="MA")))
    feed = DeltaTable(used.lake.silver.uri).load_cdf(starting_version=on).read_all()
    assert "update_postimage" in feed["_change_type"].to_pylist()


def test_statistics_of_other_columns_are_switched_off_again(used: Platform) -> None:
    table = used.lake.quarantine
    DeltaTable(table.uri).alter.set_table_properties({"delta.dataSkippingStatsColumns": "file_name"})
    said = (
        "quarantine: delta.dataSkippingStatsColumns is file_name and should be file_id,record_no; the log may show "
        "bounds of other columns, of what was written meanwhile."
    )
    assert told(used) == [said]
    done = CliRunner().invoke(app, ["schema", "reconcile"])
    assert (done.exit_code, done.output) == (0, f"repaired: {said}\nThe tables are as the registry says.\n")
    assert told(used) == []


def test_what_any_contract_or_delivery_brought_may_stay_in_that_type(home: Platform) -> None:
    made = "policies: {dob: {vault: identity, generalize: {born: month}}, zip: {vault: contact}}"
    home = configure(home, f"client_id: acme\n{made}\n")
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    before = DeltaTable(home.lake.silver.uri).schema()
    assert {"born"} <= {f.name for f in before.fields}
    for config in ("client_id: acme\n", "client_id: [broken"):  # nobody's policy makes `born` any more
        (home.places.configs / "acme.yaml").write_text(config)
        assert [s for s in told(home) if "is missing" not in s] == []
        assert holding(home) == []
    overwrite(home, "silver", pl.lit(1).alias("born"), pl.lit("x").alias("zip3"))
    assert "silver: born is integer, as no contract makes it." in told(home)
    assert not any("zip3" in s for s in told(home))


def test_another_type_and_columns_that_nobody_registered_are_told_and_left_alone(used: Platform) -> None:
    overwrite(used, "silver", pl.col("birth_year").cast(pl.String), pl.lit(1).alias("score"))
    version = used.lake.silver.version()
    wrong = [
        "silver: birth_year is string and should be integer.", "silver: score is in no contract of the registry.",
    ]  # fmt: skip
    assert told(used)[:2] == wrong, "first what a person must look at"
    done = CliRunner().invoke(app, ["schema", "reconcile", "--plan", "--json"])
    assert done.exit_code == 1
    assert used.lake.silver.version() == version
    done = CliRunner().invoke(app, ["schema", "reconcile", "--json"])
    assert (done.exit_code, len(json.loads(done.output)["left"])) == (1, 2)
    assert told(used) == wrong


def test_a_clients_own_table_is_held_against_that_clients_contract_alone(used: Platform) -> None:
    own = "client_id: globex\nsilver: {table: special}\n"
    home = configure(used, own, "globex")
    deliver(home, "globex_20250106.csv", csv_of(line("M1")))
    assert told(home) == []
    home = configure(home, own + "policies: {dob: {vault: identity, generalize: {born: month}}}\n", "globex")
    assert told(home) == ["silver_special: born is missing."]
    reconcile(home.places, home.clients)
    assert told(home) == []
    (home.places.configs / "globex.yaml").write_text("client_id: [broken")
    assert told(home) == []


def test_a_column_that_may_not_be_null_is_told_before_every_merge_fails(used: Platform) -> None:
    DeltaTable(used.lake.audit.uri).alter.add_columns([Field("reviewed", "string", nullable=False)])
    assert told(used) == [
        "audit: reviewed is none of this table's columns and may not be null, so that every write fails."
    ]
    fields = [Field(f.name, f.type, nullable=f.name != "sequence")
              for f in DeltaTable(used.lake.sightings.uri).schema().fields]  # fmt: skip
    DeltaTable.create(used.lake.sightings.uri, Schema(fields), mode="overwrite", partition_by=["client_id"])
    assert "sightings: sequence may not be null, which no writer here keeps to." in told(used)


def test_other_partitions_are_told_and_left_alone(used: Platform) -> None:
    table = used.lake.sightings
    fields = DeltaTable(table.uri).schema()
    DeltaTable.create(table.uri, fields, mode="overwrite", partition_by=["client_id", "file_id"])
    said = "sightings is partitioned by client_id, file_id and should be by client_id."
    assert said in told(used)
    mended, left = reconcile(used.places, used.clients)
    assert ([d.sentence for d in left], len(mended)) == ([said], 2)


def test_the_watch_tells_each_difference_and_the_end_of_it_and_nobody_of_what_only_lags(used: Platform) -> None:
    home = configure(used, "client_id: acme\npolicies: {dob: {vault: identity, generalize: {born: month}}}\n")
    assert told(home) == ["silver: born is missing."]
    assert holding(home) == []
    DeltaTable(home.lake.audit.uri).alter.add_columns([Field("score", "integer")])
    (alert,) = holding(home)
    assert (alert.condition, alert.severity) == ("schema_out_of_sync:audit.score", "error")
    assert alert.summary == "audit: score is none of this table's columns. See healthingest schema reconcile."
    DeltaTable(home.lake.silver.uri).alter.add_columns([Field("bad\nname", "integer")])
    assert [a.condition for a in holding(home)] == ["schema_out_of_sync:audit.score",
                                                    "schema_out_of_sync:silver.bad\\nname"]  # fmt: skip
    drop_columns(home.lake.silver, ["bad\nname"])
    assert [a.condition for a in holding(home)] == ["schema_out_of_sync:audit.score"]


def test_the_plan_of_an_installation_without_tables_makes_none(home: Platform) -> None:
    done = CliRunner().invoke(app, ["schema", "reconcile", "--plan"])
    assert (done.exit_code, done.output) == (0, "The tables are as the registry says.\n")
    assert list(home.places.output.glob("**/_delta_log")) == []


def test_in_prod_every_change_of_a_schema_waits_for_people(home: Platform) -> None:
    for mode in ("add_columns", "freeze"):
        configure(home, f"client_id: acme\nschema_evolution: {mode}\n")
        assert known_clients(home.places).active == ["acme"]
        prod = places_in(home.places.home.parent, HEALTHINGEST_ENV="prod")
        (problem,) = known_clients(prod).problems
        assert str(problem) == (
            "acme.yaml:2, key 'schema_evolution': in prod only review is allowed; write review, or leave it out."
        )
