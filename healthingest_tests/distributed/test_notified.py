"""The real daemon, killed with its code server at each step between a message and its deletion; moto has S3 and SQS."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import pytest

from healthingest.export import export_frame
from healthingest.places import Places
from healthingest.platform import Platform
from healthingest_tests.conftest import CONTRACTS, csv_of, env_in, line, places_in
from healthingest_tests.servers import environment, kill
from healthingest_tests.stores import Notifying, moto

#: Runs the daemon, which kills its process group, and so the code server, once it has come to a step.
_DAEMON = """
import os, signal, sys
import dagster._daemon.sensor as daemon
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation as Location
from dagster._daemon.cli import main

def die(): os.killpg(0, signal.SIGKILL)

def around(holder, name, step, *, when=lambda *_: True, before=False):
    whole = getattr(holder, name)
    def dying(*arguments, **said):
        if before and at == step and when(arguments, None):
            die()
        done = whole(*arguments, **said)
        if not before and at == step and when(arguments, done):
            die()
        return done
    setattr(holder, name, dying)

at, sys.argv = os.environ["DIES_AT"], ["dagster-daemon", *sys.argv[1:]]
around(Location, "get_sensor_execution_data", "evaluated", when=lambda _, done: bool(done.run_requests))
around(daemon.SensorLaunchContext, "set_run_requests", "reserved")
around(daemon, "_create_sensor_run", "created")
ended = lambda arguments, _: arguments[0].run_count > 0
around(daemon.SensorLaunchContext, "update_state", "submitted", before=True, when=ended)
around(daemon.SensorLaunchContext, "__exit__", "stored", when=ended)
main()
"""
#: The definitions, in a code server that kills them both once it has received messages that name files.
_DEFINITIONS = """
import os, signal
from healthingest.orchestration import finding

hear = finding.hear

def dying(*arguments):
    heard = hear(*arguments)
    if os.environ["DIES_AT"] == "received" and heard.names:
        os.killpg(0, signal.SIGKILL)
    return heard

finding.hear = dying
from healthingest.definitions import *
"""
_STEPS = ("received", "evaluated", "reserved", "created", "submitted", "stored")
_SECONDS = 300


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notifying]:
    with moto() as aws:
        for name, value in (aws | env_in(tmp_path)).items():
            monkeypatch.setenv(name, value)
        yield Notifying("members", hidden=5)


@pytest.fixture
def home(bucket: Notifying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setenv("HEALTHINGEST_INPUT", "s3://members/input/raw")
    places = places_in(tmp_path, HEALTHINGEST_INPUT="s3://members/input/raw")
    shutil.copytree(CONTRACTS, places.configs / "contracts")
    for client in ("acme", "globex"):
        (places.configs / f"{client}.yaml").write_text(f"client_id: {client}\n")
    list_every(places, bucket, "2h")
    return Platform.open(places)


def list_every(places: Places, bucket: Notifying, duration: str) -> None:
    queue = f"{{queue: '{bucket.queue}', region: us-east-1, allow_http: true}}"
    text = f"discovery:\n  full_listing_every: {duration}\n  sqs: [{queue}]\n"
    (places.configs / "storage.yaml").write_text(text)


def start(tmp_path: Path, env: dict[str, str], dies_at: str) -> subprocess.Popen[bytes]:
    (tmp_path / "dying.py").write_text(_DEFINITIONS)
    (tmp_path / "workspace.yaml").write_text(
        f"load_from:\n  - python_file: {{relative_path: {tmp_path / 'dying.py'}, location_name: healthingest}}\n"
    )
    command = [sys.executable, "-c", _DAEMON, "run", "-w", str(tmp_path / "workspace.yaml")]
    with (tmp_path / "servers.log").open("ab") as out:
        own = {"env": env | {"DIES_AT": dies_at}, "cwd": tmp_path, "stdout": out, "stderr": out}
        return subprocess.Popen(command, start_new_session=True, **own)  # type: ignore[call-overload]


def last_listing(tmp_path: Path) -> float:
    """When the sensor's cursor says that all was listed; 0 before."""
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        data = [s.instigator_data for s in instance.all_instigator_state() if s.instigator_name == "landing_zone"]
    cursor = next((getattr(d, "cursor", None) for d in data if d), None)
    return float(json.loads(cursor)["told"]["listed"]) if cursor else 0.0


def until(what: str, tmp_path: Path, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS
    while not done():
        assert time.monotonic() < deadline, f"{what}: {(tmp_path / 'servers.log').read_text()[-3000:]}"
        time.sleep(0.5)


def rows(home: Platform) -> list[tuple[str, str]]:
    if not home.lake.audit.exists():
        return []
    return sorted(home.lake.audit.frame(["file_name", "status"]).rows())


def runs_of(tmp_path: Path) -> Counter[str]:
    """How many runs each file's key has."""
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        return Counter(run.tags["dagster/run_key"] for run in instance.get_runs() if "dagster/run_key" in run.tags)


def killed_at(step: str, tmp_path: Path, env: dict[str, str], put: Callable[[], None]) -> None:
    """Start the daemon, put a file once it looks, and wait until it has died at a step of taking it."""
    daemon = start(tmp_path, env, step)
    try:
        until("no tick ended", tmp_path, lambda: last_listing(tmp_path) > 0)
        put()
        assert daemon.wait(_SECONDS) == -signal.SIGKILL, f"it does not die at {step}"
    finally:
        kill(daemon)


def test_a_daemon_killed_at_any_step_takes_every_file_exactly_once(
    home: Platform, bucket: Notifying, tmp_path: Path
) -> None:
    env = environment(home, tmp_path / "dagster") | {"HEALTHINGEST_INPUT": str(home.places.landing)}
    env |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    settings = tmp_path / "dagster" / "dagster.yaml"
    text = settings.read_text()
    assert "max_concurrent_runs: 4" in text
    settings.write_text(text.replace("max_concurrent_runs: 4", "max_concurrent_runs: 0"))  # none dies with the daemon
    files = {f"{client}_2025010{day}.csv": f"M{day}" for day in (1, 2, 3) for client in ("acme", "globex")}
    for number, (step, name) in enumerate(zip(_STEPS, files, strict=True)):

        def put(name: str = name, number: int = number) -> None:
            (bucket.put_in_parts if number % 2 else bucket.put)(name, csv_of(line(files[name])))
            bodies = bucket.take_all()
            bucket.send(*reversed(bodies), *bodies)

        killed_at(step, tmp_path, env, put)

    daemon = start(tmp_path, env, "")
    try:
        until("messages stay", tmp_path, lambda: bucket.count() == 0)
    finally:
        kill(daemon)
    assert sorted(runs_of(tmp_path).values()) == [1] * len(files), "each file has one run, and Dagster has it for good"

    settings.write_text(text)
    list_every(home.places, bucket, "1m")
    daemon, listed = start(tmp_path, env, ""), last_listing(tmp_path)
    try:
        until("no tick ended", tmp_path, lambda: last_listing(tmp_path) > listed)
        bucket.be_silent()
        bucket.put("acme_20250109.csv", csv_of(line("M9")))
        files["acme_20250109.csv"] = "M9"
        until("files are missing", tmp_path, lambda: len(rows(home)) >= len(files))
    finally:
        kill(daemon)
    assert rows(home) == sorted((name, "succeeded") for name in files)
    shown = export_frame(home).select("client_id", "member_id").rows()
    assert sorted(shown) == sorted((name.partition("_")[0], member) for name, member in files.items())
    assert set(runs_of(tmp_path).values()) == {1}
