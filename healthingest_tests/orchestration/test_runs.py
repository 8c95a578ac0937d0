"""Runs: what a partition's materialization does to tables, checks and the run itself, on a real Dagster instance."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from healthingest.ingest import register
from healthingest.orchestration.build import build_defs
from healthingest.orchestration.checks import delivery_expected
from healthingest.orchestration.report import report
from healthingest.platform import Platform
from healthingest_tests.conftest import configure, csv_of, deliver, drop, install, line

DAGSTER = str(Path(sys.executable).parent / "dagster")
KEY = "acme|2025-01-06"


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def run(
    home: Platform, instance: dg.DagsterInstance, key: str = KEY, file_name: str | None = None
) -> dg.ExecuteInProcessResult:
    job = build_defs(home.places).resolve_job_def("ingest_delivery")
    config = {"config": {"file_name": file_name}} if file_name else {}
    ops = {"bronze_files": config, "process_deliveries": config} if file_name else {}
    return job.execute_in_process(instance=instance, partition_key=key, run_config={"ops": ops}, raise_on_error=False)


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {evaluation.check_name: evaluation for evaluation in result.get_asset_check_evaluations()}


def materialized(result: dg.ExecuteInProcessResult) -> list[str]:
    events = result.get_asset_materialization_events()
    return sorted(e.asset_key.to_user_string() for e in events if e.asset_key)


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    data = result.failure_data_for_node("process_deliveries")
    assert data is not None
    assert data.user_failure_data is not None
    return str(data.user_failure_data.description)


def test_a_partitions_files_go_all_the_way_and_every_asset_says_so(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    drop(home, "acme_20250106_1.csv", csv_of(*(line(f"M{i}") for i in range(30))))
    drop(home, "acme_20250106_2.csv", csv_of(line("M1", city="Salem"), line("M99", zip="12")))
    drop(home, "acme_20250107.csv", csv_of(line("M7")))

    result = run(configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.5}\n"), instance)

    assert result.success
    assert materialized(result) == [
        "audit",
        "bronze_files",
        "client_feed/acme",
        "client_feed/acme",
        "quarantine",
        "silver",
    ]
    assert {name: check.passed for name, check in checks_of(result).items()} == {
        "invalid_ratio": True,
        "file_rules": True,
        "row_accounting": True,
        "resent_files": True,
    }
    silver = next(e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey("silver"))
    shown = silver.step_materialization_data.materialization.metadata
    assert (shown["inserted"].value, shown["updated"].value) == (30, 1)
    quality = [record.data for record in shown["quality"].records]
    assert [(r["file"], r["records"], r["rejected"]) for r in quality] == [
        ("acme_20250106_1.csv", 30, 0),
        ("acme_20250106_2.csv", 2, 1),
    ]
    assert Path(str(shown["quality report"].value)).read_text().count("acme_20250106_2.csv") > 1
    rules = [record.data for record in shown["top failing rules"].records]
    assert (rules[0]["rule"], rules[0]["records"]) == ("zip.us_zip", 1)
    assert home.lake.audit.frame(["file_name"])["file_name"].sort().to_list() == [
        "acme_20250106_1.csv",
        "acme_20250106_2.csv",
    ]


def test_a_second_run_of_the_partition_changes_no_table(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    run(home, instance)
    before = [t.version() for t in (home.lake.silver, home.lake.audit, home.lake.sightings)]
    again = run(home, instance)
    assert again.success
    assert before == [t.version() for t in (home.lake.silver, home.lake.audit, home.lake.sightings)]
    assert "client_feed/acme" not in materialized(again), "nothing new was delivered"


def test_over_the_limit_with_alert_the_check_warns_and_the_run_succeeds(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    drop(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", dob="x")))
    result = run(home, instance)
    check = checks_of(result)["invalid_ratio"]
    assert result.success
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.partition == KEY
    assert "1 of 2 records were rejected (50.0%, over the limit of 5.0%)" in (check.description or "")
    assert home.lake.silver.frame().height == 1


def test_over_the_limit_with_hold_check_and_run_fail_and_silver_is_untouched(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    home = configure(home, "client_id: acme\nquality: {on_breach: hold}\n")
    drop(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", dob="x")))
    result = run(home, instance)
    check = checks_of(result)["invalid_ratio"]
    assert not result.success
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert materialized(result) == ["audit", "bronze_files", "quarantine"]
    assert home.lake.silver.frame().is_empty()
    assert home.lake.quarantine.frame().height == 1
    assert home.lake.audit.frame(["status"])["status"].to_list() == ["held"]
    assert failure_text(result).startswith("acme_20250106.csv held: 1 of 2 records were rejected")
    retried = [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_UP_FOR_RETRY]
    assert retried == []


def test_a_file_refused_as_a_whole_fails_the_run_with_its_sentence_and_an_audit_row(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    drop(home, "acme_20250106.csv", "Ada,Lovelace,1980-12-10\nBob,Young,1990-01-01\n")
    result = run(home, instance)
    assert not result.success
    assert "header" in failure_text(result)
    assert "Lovelace" not in failure_text(result)
    row = home.lake.audit.frame().to_dicts()[0]
    assert (row["status"], row["error_kind"]) == ("failed", "missing_column")
    assert "audit" in materialized(result)


@pytest.mark.parametrize("first", ["", csv_of(line("M1"), line("M2", dob="x"))], ids=["failed", "held"])
@pytest.mark.parametrize("file_name", ["acme_20250106.csv", None], ids=["by sensor", "by hand"])
def test_a_corrected_file_of_the_same_name_ends_the_trouble(
    home: Platform, instance: dg.DagsterInstance, first: str, file_name: str | None
) -> None:
    home = configure(home, "client_id: acme\nquality: {on_breach: hold}\n")
    drop(home, "acme_20250106.csv", first)
    assert not run(home, instance, file_name=file_name).success

    drop(home, "acme_20250106.csv", csv_of(line("M1"), line("M2")))
    result = run(home, instance, file_name=file_name)

    assert result.success
    assert {name: check.passed for name, check in checks_of(result).items()} == {
        "invalid_ratio": True,
        "file_rules": True,
        "row_accounting": True,
        "resent_files": True,
    }
    assert home.lake.silver.frame().height == 2
    assert home.lake.audit.frame(["status"]).height == 2, "the refused one keeps its row"


def test_a_landed_file_that_changes_is_warned_of(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    assert checks_of(run(home, instance))["resent_files"].passed
    drop(home, "acme_20250106.csv", csv_of(line("M1", city="Salem")))
    result = run(home, instance)
    check = checks_of(result)["resent_files"]
    assert (result.success, check.passed, check.severity.name) == (True, False, "WARN")
    assert "delivery 2 of this name replaces delivery 1" in str(check.description)


def test_a_backfill_of_many_partitions_is_one_run_and_each_partition_has_its_own_events(
    home: Platform, tmp_path: Path
) -> None:
    home = configure(home, "client_id: globex\n", "globex")
    for day in (6, 7, 9):
        drop(home, f"acme_2025010{day}.csv", csv_of(*(line(f"M{n}") for n in range(day)), line("M", zip="12")))
    drop(home, "globex_20250108.csv", csv_of(line("M1")))
    (tmp_path / "dagster").mkdir()
    env = os.environ | {"DAGSTER_HOME": str(tmp_path / "dagster"), "DAGSTER_DISABLE_TELEMETRY": "1"}
    command = [
        DAGSTER, "asset", "materialize", "-m", "healthingest.definitions", "--select",
        "bronze_files,quarantine,silver,audit", "--partition-range", "acme|2025-01-06...globex|2025-01-09",
    ]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]

    delivered = ["acme|2025-01-06", "acme|2025-01-07", "acme|2025-01-09", "globex|2025-01-08"]
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        assert len(instance.get_run_records()) == 1
        for asset in ("quarantine", "silver", "audit"):
            assert sorted(instance.get_materialized_partitions(dg.AssetKey(asset))) == delivered
        made = instance.fetch_materializations(dg.AssetKey("silver"), limit=9).records
        inserted = {r.partition_key: r.asset_materialization.metadata["inserted"].value for r in made}
        assert inserted == dict(zip(delivered, (6, 1, 2, 1), strict=True))
        passed = {"invalid_ratio": ("silver", delivered[-1:]), "row_accounting": ("audit", delivered)}
        for name, (asset, partitions) in passed.items():
            key = dg.AssetCheckKey(dg.AssetKey(asset), name)
            history = instance.event_log_storage.get_asset_check_execution_history(key, limit=20)
            assert sorted(r.partition for r in history if r.status.value == "SUCCEEDED") == partitions, name
    assert home.lake.audit.frame(["run_id"])["run_id"].n_unique() == 1


def test_a_correction_that_is_refused_too_fails_its_run(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    assert run(home, instance).success
    drop(home, "acme_20250106.csv", "")
    assert not run(home, instance).success
    assert "empty" in failure_text(run(home, instance))
    assert home.lake.silver.frame().height == 1, "the delivery before it stands"


def test_what_was_delivered_is_known_though_the_next_delivery_meets_a_fault(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    for number in (1, 2):
        register(home, drop(home, f"acme_20250106_{number}.csv", csv_of(line(f"M{number}"))))
    broken = next(r.delivery for r in home.lake.bronze.of_client("acme") if r.delivery.suffix == "2")
    stored = [p for p in home.lake.bronze.root.rglob("*") if broken.file_id in str(p) and p.suffix != ".json"]
    for path in (p for p in stored if p.is_file()):
        path.unlink()
        path.mkdir()

    result = run(home, instance)

    assert not result.success
    assert materialized(result).count("client_feed/acme") == 1


def test_one_bad_file_of_a_partition_does_not_keep_the_others_out(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "acme_20250106_1.csv", "")
    drop(home, "acme_20250106_2.csv", csv_of(line("M1")))
    result = run(home, instance)
    assert not result.success
    assert home.lake.silver.frame().height == 1
    assert "silver" in materialized(result)


def test_a_run_for_one_file_takes_that_file_only(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "acme_20250106_1.csv", csv_of(line("M1")))
    drop(home, "acme_20250106_2.csv", csv_of(line("M2")))
    assert run(home, instance, file_name="acme_20250106_2.csv").success
    assert home.lake.audit.frame(["file_name"])["file_name"].to_list() == ["acme_20250106_2.csv"]


def test_an_empty_partition_says_what_is_missing(home: Platform, instance: dg.DagsterInstance) -> None:
    result = run(home, instance)
    data = result.failure_data_for_node("bronze_files")
    assert data is not None
    assert data.user_failure_data is not None
    assert "no a file" not in str(data.user_failure_data.description)
    assert "acme" in str(data.user_failure_data.description)


@pytest.mark.parametrize("with_home", [True, False])
def test_the_dagster_cli_ingests_a_partition(home: Platform, tmp_path: Path, with_home: bool) -> None:
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    env = {k: v for k, v in os.environ.items() if k != "DAGSTER_HOME"}
    if with_home:
        env["DAGSTER_HOME"] = str(tmp_path / "dagster")
        (tmp_path / "dagster").mkdir()
    done = subprocess.run(
        [DAGSTER, "asset", "materialize", "-m", "healthingest.definitions",
         "--select", "bronze_files,quarantine,silver,audit", "--partition", KEY],
        env=env, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "PreviewWarning" not in done.stderr
    assert home.lake.silver.frame().height == 1


def test_the_watch_fails_for_a_late_client_and_for_one_that_never_delivered(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    home = install(tmp_path, {name: f"client_id: {name}\n" for name in ("prompt", "late", "never")})
    for client in ("prompt", "late"):
        deliver(home, f"{client}_20250106.csv", csv_of(line("M1")))
    when = pl.when(pl.col("client_id") == "late").then(pl.col("ingestion_time").dt.offset_by("-29h"))
    rows = home.lake.audit.frame().with_columns(when.otherwise("ingestion_time").alias("ingestion_time"))
    home.lake.audit.snapshot().delete()
    rows.write_delta(home.lake.audit.uri, mode="append")

    result = build_defs(home.places).resolve_job_def("delivery_watch").execute_in_process(instance=instance)

    found = {e.asset_key.path[-1]: e.passed for e in result.get_asset_check_evaluations()}
    assert found == {"prompt": True, "late": False, "never": False}
    assert "never delivered" in str(delivery_expected(home, home.clients.clients["never"]).description)


def test_a_corrected_file_under_the_same_name_makes_the_partition_green(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    home = configure(home, "client_id: acme\nquality: {on_breach: hold}\n")
    drop(home, "acme_20250106.csv", csv_of(line("M1", dob="x")))
    assert not run(home, instance).success
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    for file_name in (None, "acme_20250106.csv"):
        result = run(home, instance, file_name=file_name)
        assert result.success
        assert checks_of(result)["invalid_ratio"].passed
    assert home.lake.audit.frame(["delivery_no", "status"]).sort("delivery_no").rows() == [
        (1, "held"),
        (2, "succeeded"),
    ]


def test_a_panic_of_a_rust_library_leaves_no_value_in_dagsters_storage(
    home: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def panic(*_: object) -> None:
        raise pl.exceptions.PanicException("byte index 1 is not a char boundary; it is inside Zqxlast")

    monkeypatch.setattr("healthingest.records.check.standardize", panic)
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    result = run(home, instance)
    assert not result.success
    assert "PanicException" in failure_text(result)
    assert "Zqxlast" not in "".join(str(event) for event in result.all_events)


def test_a_partition_can_be_reported_again_and_again(home: Platform, tmp_path: Path) -> None:
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        for city in ("Boston", "Salem", "Lowell"):
            outcome = deliver(home, "acme_20250106.csv", csv_of(line("M1", city=city)))
            report(instance, home, [outcome])
        report(instance, home, [outcome, deliver(home, "acme_20250107.csv", csv_of(line("M1")))])
        feed = instance.fetch_materializations(dg.AssetKey(["client_feed", "acme"]), limit=9).records
        assert len(feed) == 4, "one for each report"
        assert instance.get_materialized_partitions(dg.AssetKey("silver")) == {KEY, "acme|2025-01-07"}


def test_what_the_cli_reports_is_what_a_run_would_have_reported(home: Platform, instance: dg.DagsterInstance) -> None:
    outcome = deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", dob="x")))
    report(instance, home, [outcome])
    for asset in ("bronze_files", "quarantine", "silver", "audit"):
        records = instance.fetch_materializations(dg.AssetKey(asset), limit=5).records
        assert [r.partition_key for r in records] == [KEY], asset
    feed = instance.fetch_materializations(dg.AssetKey(["client_feed", "acme"]), limit=5).records
    assert len(feed) == 1
    bronze = instance.fetch_materializations(dg.AssetKey("bronze_files"), limit=1).records[0].asset_materialization
    assert bronze is not None
    assert bronze.metadata["file ids"].value == outcome.delivery.file_id
    evaluations = instance.get_event_records(dg.EventRecordsFilter(dg.DagsterEventType.ASSET_CHECK_EVALUATION))
    found = [r.event_log_entry.dagster_event.asset_check_evaluation_data for r in evaluations]
    assert {(e.check_name, e.passed, e.partition) for e in found} == {
        ("invalid_ratio", False, KEY),
        ("file_rules", True, KEY),
        ("row_accounting", True, KEY),
        ("resent_files", True, KEY),
    }


@pytest.mark.parametrize(("on_breach", "severity"), [("alert", "WARN"), ("hold", "ERROR")])
def test_a_file_of_too_few_records_fails_the_check_of_file_rules(
    home: Platform, instance: dg.DagsterInstance, on_breach: str, severity: str
) -> None:
    home = configure(home, f"client_id: acme\nquality: {{min_records: 2, on_breach: {on_breach}}}\n")
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    result = run(home, instance)
    check = checks_of(result)["file_rules"]
    assert (check.passed, check.severity.name) == (False, severity)
    assert "at least 2" in str(check.description)
    assert result.success is (on_breach == "alert")


def test_asset_pages_link_to_the_report_where_reports_are_served(
    home: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTHINGEST_REPORTS_URL", "http://127.0.0.1:3001")
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    events = run(home, instance).get_asset_materialization_events()
    shown = {e.asset_key.to_user_string(): e.step_materialization_data.materialization.metadata for e in events}
    for asset in ("quarantine", "silver", "audit"):
        assert str(shown[asset]["quality report"].value).startswith("http://127.0.0.1:3001/acme/")
