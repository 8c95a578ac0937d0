"""Dagster on Postgres, its parts apart: all works as it does on files, and a killed daemon loses nothing."""

import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
import yaml

from healthingest.dagster_storage import postgres_url, require_usable
from healthingest.errors import StorageError
from healthingest.platform import Platform
from healthingest_tests.conftest import install
from healthingest_tests.distributed.crowd import (
    CONFIGS,
    embedded,
    is_as_if_one_process_had_done_it,
    land,
    runs_of_one_client_followed_each_other,
    wait_for_rows,
    wait_for_runs,
)
from healthingest_tests.distributed.postgres import Postgres, postgres
from healthingest_tests.orchestration.test_dagster_evidence import (  # noqa: F401 - the same sentences, here on Postgres
    test_a_crash_that_is_tried_again_is_a_warning_and_the_success_ends_it,
    test_a_daemon_that_has_beaten_and_stops_is_told_and_one_that_this_instance_does_not_need_is_not,
    test_a_failure_before_a_restart_still_holds_after_the_tick_that_it_cut_off,
    test_a_failure_from_when_a_config_was_broken_ends_with_that_clients_next_good_run,
    test_a_run_counts_once_however_often_it_is_looked_at,
    test_a_run_that_concerns_no_client_is_told_by_its_job,
    test_a_run_that_hangs_is_told_until_it_ends,
    test_a_sensor_that_stays_out_or_was_switched_off_is_told,
    test_a_sensor_whose_code_raises_is_told_at_once_by_the_class_of_its_error,
    test_a_tick_that_a_restart_cut_off_is_no_alert_and_a_code_server_that_stays_away_is,
    test_no_run_is_overlooked_however_many_ended_since,
    test_the_last_retry_in_vain_says_how_often_it_was_tried,
)
from healthingest_tests.orchestration.test_maintenance import (  # noqa: F401
    test_runs_that_later_ones_have_replaced_are_forgotten_and_no_partition_turns_grey,
    test_the_hourly_job_holds_the_tables_against_the_registry_and_shows_the_exact_difference,
    test_the_nightly_job_does_what_the_command_does_and_shows_it,
)
from healthingest_tests.orchestration.test_runs import (  # noqa: F401
    test_what_the_cli_reports_is_what_a_run_would_have_reported,
)
from healthingest_tests.servers import BIN, environment, free_port, kill, running, start, stop, wait_for_http

pytestmark = pytest.mark.server
LOCATION = "healthingest"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


@pytest.fixture
def dagster_home(server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the shipped settings, whose database is made and empty."""
    monkeypatch.setenv("DAGSTER_PG_URL", server.dagster_database())
    home = tmp_path / "dagster"
    home.mkdir()
    shipped = Path(__file__).parents[2] / "deploy" / "distributed" / "dagster.yaml"
    (home / "dagster.yaml").write_text(shipped.read_text())
    return home


@pytest.fixture
def instance(dagster_home: Path) -> Iterator[dg.DagsterInstance]:
    """What the tests that are shared with one machine's storage get here: that storage changed, and nothing else."""
    settings = dagster_home / "dagster.yaml"
    settings.write_text(yaml.safe_dump({"storage": yaml.safe_load(settings.read_text())["storage"]}))
    with dg.DagsterInstance.from_config(str(dagster_home)) as made:
        yield made


def test_webserver_daemon_and_code_server_apart_ingest_and_a_killed_daemon_loses_and_doubles_nothing(
    dagster_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTHINGEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEALTHINGEST_KEYRING", str(tmp_path / "keys" / "keyring.json"))
    home = install(tmp_path, CONFIGS)
    env = environment(home, dagster_home, "distributed/dagster.yaml")
    code, web, workspace = free_port(), free_port(), tmp_path / "workspace.yaml"
    workspace.write_text(
        yaml.safe_dump({"load_from": [{"grpc_server": {"host": "127.0.0.1", "port": code, "location_name": LOCATION}}]})
    )
    server = ["dagster", "code-server", "start", "-m", "healthingest.definitions", "-h", "127.0.0.1", "-p", str(code)]
    server += ["--location-name", LOCATION]
    webserver = ["dagster-webserver", "-w", str(workspace), "-h", "127.0.0.1", "-p", str(web)]
    daemon = ["dagster-daemon", "run", "-w", str(workspace)]
    land(home)
    with running(server, webserver, env=env, cwd=tmp_path):
        began = time.monotonic()
        first = start(daemon, env=env, cwd=tmp_path)
        try:
            wait_for_http(web)
            wait_for_rows(home, 3, 120)
        finally:
            kill(first)
        second = start(daemon, env=env, cwd=tmp_path)
        try:
            wait_for_rows(home, 16, 400)
            print(f"16 files in {time.monotonic() - began:.0f} s, the daemon killed after 3")
            with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
                wait_for_runs(instance, 120)
                assert runs_of_one_client_followed_each_other(instance) >= 16
                changed = [record.update_timestamp for record in instance.get_run_records(limit=1)]
        finally:
            stop(second)
    assert abs((datetime.now(UTC) - changed[0]).total_seconds()) < 600  # no zone but UTC in the records
    assert not list(dagster_home.rglob("*.db"))
    is_as_if_one_process_had_done_it(home, embedded(tmp_path / "other", home.places.keyring))


# --- what doctor says ---------------------------------------------------------------------------------------------


def doctor(home: Platform, dagster_home: Path) -> str:
    env = {"HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(home.places.keyring)}
    said = subprocess.run(
        [str(BIN / "healthingest"), "doctor"], env=os.environ | env | {"DAGSTER_HOME": str(dagster_home)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "Traceback" not in said.stderr
    return " ".join((said.stdout + said.stderr).split())


def test_doctor_says_where_dagster_keeps_its_runs_and_that_its_tables_are_not_made_yet_and_makes_none(
    home: Platform, dagster_home: Path, server: Postgres
) -> None:
    url = postgres_url(dagster_home)
    assert url
    assert "dagster instance migrate" in doctor(home, dagster_home)
    assert "dagster instance migrate" in require_usable(url)
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        instance.get_runs_count()
    assert require_usable(url) == f"Postgres at 127.0.0.1:{server.port}, database {url.rpartition('/')[2]}"


def test_a_database_whose_times_dagster_would_misread_is_refused(server: Postgres) -> None:
    with pytest.raises(StorageError, match=r"America/New_York.*ALTER DATABASE dagster_\w+ SET timezone TO 'UTC'"):
        require_usable(server.dagster_database(in_utc=False))


def test_a_url_without_its_driver_a_server_that_is_away_and_a_variable_that_is_not_set_are_one_sentence_each(
    server: Postgres, dagster_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StorageError, match=r"named as postgresql\+psycopg2://"):
        require_usable(server.url("postgres", driver="postgresql"))
    with pytest.raises(StorageError, match="takes no connection") as raised:
        require_usable(server._replace(password="wrong-secret").url("postgres"))
    assert "wrong-secret" not in str(raised.value)
    monkeypatch.delenv("DAGSTER_PG_URL")
    with pytest.raises(StorageError, match="DAGSTER_PG_URL, which is not set"):
        postgres_url(dagster_home)
