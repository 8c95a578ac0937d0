"""Runs on Celery's workers: sixteen files give what one process makes of them, whatever dies in the middle of a run."""

import os
import secrets
import shlex
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import dagster as dg
import pytest

from healthingest_tests.conftest import drop
from healthingest_tests.distributed.crowd import (
    embedded,
    files,
    is_as_if_one_process_had_done_it,
    land,
    runs_of_one_client_followed_each_other,
    wait_for_rows,
    wait_for_runs,
)
from healthingest_tests.distributed.postgres import Postgres, postgres
from healthingest_tests.distributed.rabbitmq import RabbitMQ, rabbitmq, require_rabbitmq
from healthingest_tests.distributed.site import (
    Site,
    kill_in_the_middle_of_a_run,
    leaves,
    site,
    tell,
    wait_for_work,
)
from healthingest_tests.servers import REPO, family, start, stop

pytest.importorskip("dagster_celery")
pytestmark = pytest.mark.server
_WORKER = ["dagster-celery", "worker", "start", "-A", "healthingest.orchestration.celery_app"]
_WORKER += ["-y", str(REPO / "deploy" / "distributed" / "worker.yaml")]


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with postgres() as found:
        yield found


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    require_rabbitmq()
    with rabbitmq() as found:
        yield found


@pytest.fixture
def spread(database: Postgres, broker: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """An installation with the shipped settings for Celery, in databases and on a broker of its own."""
    results = f"celery_{secrets.token_hex(4)}"
    database.run(f"CREATE DATABASE {results}")
    monkeypatch.setenv("DAGSTER_PG_URL", database.dagster_database())
    monkeypatch.setenv("HEALTHINGEST_CELERY_BROKER", broker.url)
    monkeypatch.setenv("HEALTHINGEST_CELERY_RESULTS", f"db+{database.url(results)}")
    return site(tmp_path, "distributed/dagster.celery.yaml")


def worker(at: Site, name: str) -> subprocess.Popen[bytes]:
    return start([*_WORKER, "-n", name], env=at.env, cwd=at.folder)


def test_a_worker_that_is_killed_in_the_middle_of_a_run_loses_and_doubles_nothing(spread: Site, tmp_path: Path) -> None:
    land(spread.home)
    workers = [worker(spread, name) for name in ("first", "second")]
    try:
        with spread.parts(), spread.instance() as instance:
            began = time.monotonic()
            died, _ = kill_in_the_middle_of_a_run(instance, [partial(family, at.pid) for at in workers])
            killed = time.monotonic()
            wait_for_rows(spread.home, 16, 900)
            print(f"16 files in {time.monotonic() - began:.0f} s, {time.monotonic() - killed:.0f} s after the kill")
            wait_for_runs(instance, 120)
            tell(instance)
            assert instance.get_run_by_id(died).status == dg.DagsterRunStatus.FAILURE
            assert runs_of_one_client_followed_each_other(instance) >= 17
    finally:
        stop(*workers)
    is_as_if_one_process_had_done_it(spread.home, embedded(tmp_path / "other", spread.home.places.keyring))


def test_runs_whose_processes_or_whose_broker_is_killed_are_made_anew_and_what_waits_in_the_broker_waits_on(
    spread: Site, broker: RabbitMQ, tmp_path: Path
) -> None:
    land(spread.home)
    workers = [worker(spread, name) for name in ("first", "second")]
    try:
        with spread.parts(), spread.instance() as instance:
            died, _ = kill_in_the_middle_of_a_run(instance, [partial(leaves, at.pid) for at in workers])
            wait_for_rows(spread.home, 6, 600)
            at_work = wait_for_work(instance)
            broker.kill()
            time.sleep(20)
            print(f"{len(at_work)} runs at work: {at_work}")
            tell(instance)
            broker.start()
            wait_for_rows(spread.home, 16, 900)
            wait_for_runs(instance, 120)
            tell(instance)
            assert instance.get_run_by_id(died).status == dg.DagsterRunStatus.FAILURE
            assert runs_of_one_client_followed_each_other(instance) >= 17
    finally:
        stop(*workers)
    is_as_if_one_process_had_done_it(spread.home, embedded(tmp_path / "other", spread.home.places.keyring))


def test_a_database_that_is_away_in_the_middle_of_runs_loses_and_doubles_nothing_and_no_run_hangs(
    spread: Site, database: Postgres, tmp_path: Path
) -> None:
    land(spread.home)
    workers = [worker(spread, name) for name in ("first", "second")]
    try:
        with spread.parts(), spread.instance() as instance:
            wait_for_rows(spread.home, 3, 600)
            at_work = wait_for_work(instance)
            own = [spread.env[name].rpartition("/")[2] for name in ("DAGSTER_PG_URL", "HEALTHINGEST_CELERY_RESULTS")]
            with database.shut(*own):
                time.sleep(20)
            print(f"{len(at_work)} runs at work: {at_work}")
            wait_for_rows(spread.home, 16, 900)
            wait_for_runs(instance, 300)
            tell(instance)
            assert runs_of_one_client_followed_each_other(instance) >= 16
    finally:
        stop(*workers)
    is_as_if_one_process_had_done_it(spread.home, embedded(tmp_path / "other", spread.home.places.keyring))


def test_a_worker_that_its_unit_asks_to_end_lets_its_run_end_and_takes_no_other(spread: Site) -> None:
    unit = (REPO / "deploy" / "systemd" / "healthingest-celery.service").read_text()
    (said,) = [line.partition("=")[2] for line in unit.splitlines() if line.startswith("ExecStop=")]
    name, text = next(files())
    drop(spread.home, name, text)
    only = worker(spread, "only")
    reaped = threading.Thread(target=only.wait)  # as systemd does
    try:
        with spread.parts(), spread.instance() as instance:
            (at_work,) = wait_for_work(instance)
            land(spread.home)
            reaped.start()
            env = os.environ | {"MAINPID": str(only.pid)}
            subprocess.run(shlex.split(said), env=env, timeout=300, check=True)
            reaped.join(30)
            assert only.returncode == 0
            begun = [record.dagster_run for record in instance.get_run_records() if record.start_time]
            assert [(run.run_id, run.status.name) for run in begun] == [(at_work, "SUCCESS")]
    finally:
        stop(only)
