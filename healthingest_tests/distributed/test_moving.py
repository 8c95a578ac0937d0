"""From one machine to several, as docs/storage.md says: files to S3, Dagster's history to Postgres, none read again."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from healthingest.places import Places
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, drop, install, line
from healthingest_tests.distributed.crowd import silver_of, wait_for_rows, wait_for_runs
from healthingest_tests.distributed.postgres import Postgres, postgres
from healthingest_tests.histories import change_feed_is_real, found
from healthingest_tests.servers import BIN, environment, running
from healthingest_tests.stores import BUCKET, seaweedfs

pytestmark = pytest.mark.server
_DAEMON = ["dagster-daemon", "run", "-m", "healthingest.definitions"]
_ASSETS = ("bronze_files", "quarantine", "silver", "audit")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found_:
        yield found_


def told(instance: dg.DagsterInstance) -> dict[str, object]:
    """What people see of a history, whatever its events are numbered."""
    keys = [dg.AssetKey(name) for name in _ASSETS]
    states = instance.all_instigator_state()
    return {
        "runs": sorted((r.dagster_run.run_id, r.dagster_run.status.name, r.start_time, r.end_time, r.create_timestamp)
                       for r in instance.get_run_records()),
        "tags": sorted((r.run_id, tuple(sorted(r.tags.items()))) for r in instance.get_runs()),
        "partitions": {k.to_user_string(): sorted(instance.get_materialized_partitions(k)) for k in keys},
        "logs": {r.run_id: [(e.timestamp, e.dagster_event_type) for e in instance.all_logs(r.run_id)]
                 for r in instance.get_runs()},
        "checks": sorted((key.to_user_string(), record.run_id, record.status.name)
                         for key, record in instance.event_log_storage.get_latest_asset_check_execution_by_key(
                             [dg.AssetCheckKey(dg.AssetKey("audit"), "open_records"),
                              dg.AssetCheckKey(dg.AssetKey("quarantine"), "invalid_ratio")]).items()),
        "sensors": sorted((s.instigator_name, s.status.name, str(s.instigator_data)) for s in states),
        "ticks": sum(len(instance.get_ticks(s.instigator_origin_id, s.selector_id)) for s in states),
    }  # fmt: skip


def command(env: dict[str, str], *words: str) -> str:
    done = subprocess.run([str(BIN / "healthingest"), *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installation_moves_to_s3_and_postgres_with_its_history_and_goes_on(
    server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTHINGEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEALTHINGEST_KEYRING", str(tmp_path / "keys" / "keyring.json"))
    old, dagster_home = install(tmp_path), tmp_path / "dagster"
    env = environment(old, dagster_home)
    for day in (6, 7):
        drop(old, f"acme_2025010{day}.csv", csv_of(line("M1"), line(f"M{day}"), line("M2", zip="12")))
    with running(_DAEMON, env=env, cwd=tmp_path):
        wait_for_rows(old, 2, 180)
        with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
            wait_for_runs(instance, 120)
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        before = told(instance)
    assert before["partitions"]["silver"] == ["acme|2025-01-06", "acme|2025-01-07"]  # type: ignore[index]
    drop(old, "acme_20250108.csv", csv_of(line("M8")))  # it waits while nobody is there
    had, silver = found(old), silver_of(old)
    with seaweedfs(tmp_path / "store") as store:
        output, landing = f"s3://{BUCKET}/output", f"s3://{BUCKET}/landing"
        command(env | store, "storage", "copy", output, "--landing", landing, "--verify")
        shipped = Path(__file__).parents[2] / "deploy" / "distributed" / "dagster.yaml"
        (dagster_home / "dagster.yaml").write_text(shipped.read_text())
        there = env | store | {"HEALTHINGEST_OUTPUT": output, "HEALTHINGEST_INPUT": landing}
        there |= {"DAGSTER_PG_URL": server.dagster_database()}
        subprocess.run([str(BIN / "dagster"), "instance", "migrate"], env=there, check=True, capture_output=True)
        command(there, "storage", "history")
        for name, value in there.items():
            monkeypatch.setenv(name, value)
        with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
            assert told(instance) == before
        home = Platform.open(Places.from_env(there))
        assert found(home) == had
        assert silver_of(home).equals(silver)
        with running(_DAEMON, env=os.environ | there, cwd=tmp_path):
            wait_for_rows(home, 3, 180)
            drop(home, "acme_20250109.csv", csv_of(line("M1", city="Salem")))
            drop(home, "acme_20250106.csv", (old.places.landing / "acme_20250106.csv").read_bytes())  # once more
            wait_for_rows(home, 4, 180)
            with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
                wait_for_runs(instance, 120)
                assert instance.get_runs_count() == len(before["runs"]) + 2, "nothing was ingested again"  # type: ignore[arg-type]
                assert {run.status.name for run in instance.get_runs()} == {"SUCCESS"}
                assert len(instance.get_materialized_partitions(dg.AssetKey("silver"))) == 4
        assert home.lake.audit.frame(["status"])["status"].to_list() == ["succeeded"] * 4
        change_feed_is_real(Platform.open(home.places))
