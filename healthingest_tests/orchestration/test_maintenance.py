"""Maintenance by the clock, and Dagster's own events: what may be forgotten and what must not."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from deltalake import DeltaTable, Field

from healthingest.errors import UsageError
from healthingest.orchestration import retention
from healthingest.orchestration.build import build_defs
from healthingest.orchestration.retention import forget_runs
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, deliver, drop, line
from healthingest_tests.orchestration.test_runs import run


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        yield made


def test_the_nightly_job_does_what_the_command_does_and_shows_it(home: Platform, instance: dg.DagsterInstance) -> None:
    for day in range(1, 4):
        deliver(home, f"acme_2025010{day}.csv", csv_of(line("M1", city=f"C{day}")))
    defs = build_defs(home.places)
    result = defs.resolve_job_def("maintenance").execute_in_process(instance=instance)
    assert result.success
    (output,) = [e for e in result.all_events if e.event_type == dg.DagsterEventType.STEP_OUTPUT]
    shown = {name: value.value for name, value in output.step_output_data.metadata.items()}
    assert "checkpoint written" in str(shown["silver: log"])
    assert "fewer files" in str(shown["audit: compact"])
    assert len(home.lake.audit.snapshot().file_uris()) == 1
    schedule = defs.resolve_schedule_def("maintenance_daily")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING


def test_runs_that_later_ones_have_replaced_are_forgotten_and_no_partition_turns_grey(
    home: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    drop(home, "acme_20250107.csv", csv_of(line("M1")))
    runs = [run(home, instance, key).run_id for key in ("acme|2025-01-06", "acme|2025-01-07", "acme|2025-01-06")]
    silver = dg.AssetKey("silver")
    before = set(instance.get_materialized_partitions(silver))
    assert forget_runs(instance, timedelta(days=30)).removed == 0, "they are young"
    monkeypatch.setattr(retention, "LEAST", timedelta(days=-2))
    done = forget_runs(instance, timedelta(days=-1))
    assert (done.removed, {r.run_id for r in instance.get_runs()}) == (1, set(runs[1:]))
    assert set(instance.get_materialized_partitions(silver)) == before == {"acme|2025-01-06", "acme|2025-01-07"}


def test_less_than_a_week_of_events_is_refused(instance: dg.DagsterInstance) -> None:
    with pytest.raises(UsageError, match="7 days"):
        forget_runs(instance, timedelta(days=6))


def test_the_hourly_job_holds_the_tables_against_the_registry_and_shows_the_exact_difference(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    defs = build_defs(home.places)
    key = dg.AssetCheckKey(dg.AssetKey("installation"), "schema_in_sync")

    def reconciled() -> dg.AssetCheckEvaluation:
        assert defs.resolve_job_def("schema_reconciliation").execute_in_process(instance=instance).success
        record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
        event = record.event.dagster_event if record.event else None
        assert event
        evaluation = event.event_specific_data
        assert isinstance(evaluation, dg.AssetCheckEvaluation)
        return evaluation

    assert reconciled().description == "The tables are as the registry says."
    DeltaTable(home.lake.silver.uri).alter.set_table_properties({"delta.enableChangeDataFeed": "false"})
    mended = reconciled()
    assert mended.passed
    assert str(mended.description).startswith(
        "Repaired: silver: delta.enableChangeDataFeed is false and should be true;"
    )
    assert "must read the table as a whole once" in str(mended.metadata["silver delta.enableChangeDataFeed"].value)
    DeltaTable(home.lake.audit.uri).alter.add_columns([Field("score", "integer")])
    failed = reconciled()
    assert (failed.passed, failed.description) == (False, "audit: score is none of this table's columns.")
    assert defs.resolve_schedule_def("schema_reconciliation_hourly").default_status == dg.DefaultScheduleStatus.RUNNING
