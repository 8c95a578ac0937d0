"""What a process leaves in its job's folder is taken away once it has died, and never while it lives."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from healthingest.engines.exchange import jobs_of
from healthingest.maintain import maintain
from healthingest.platform import Platform
from healthingest.storage import lease
from healthingest.storage.files import put
from healthingest.storage.jobs import sweep_jobs
from healthingest.storage.objects import ObjectPath
from healthingest_tests.conftest import csv_of, deliver, env_of, install, line
from healthingest_tests.stores import BUCKET, seaweedfs

_JOB = """
import sys
from healthingest.engines.exchange import exchange_of
from healthingest.platform import Platform

with exchange_of(Platform.open(), "acme") as exchange:
    exchange.put("0.read", ["a record"])
    print(exchange.job.name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["folder", "bucket"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Platform]:
    """An installation on disk, and one whose output is in an object store."""
    if request.param == "folder":
        yield install(tmp_path)
        return
    with seaweedfs(tmp_path / "weed") as store:
        for name, value in (store | {"HEALTHINGEST_TEST_STORE": f"s3://{BUCKET}"}).items():
            monkeypatch.setenv(name, value)
        yield install(tmp_path)


def job(home: Platform) -> tuple[subprocess.Popen[str], str]:
    """A process with a job of its own, in whose folder a file lies; and the folder's name."""
    process = subprocess.Popen(
        [sys.executable, "-c", _JOB], env=env_of(home.places), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, process.stdout.readline().strip()


def folders(root: Path) -> set[str]:
    """The folders of jobs in which anything lies."""
    return {place.relative_to(root).parts[0] for place in root.rglob("*") if place.is_file()}


def test_maintenance_takes_the_folder_of_a_killed_job_and_leaves_that_of_a_live_one(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    root = jobs_of(home.places.output)
    (killed, one), (living, other) = job(home), job(home)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert folders(root) == {one, other}
        steps = {step.name: step.removed for step in maintain(home)}
        assert steps["temporary files"] == 1
        assert folders(root) == {other}
        assert (root / other / "0.read").is_file()
        assert living.poll() is None
        living.communicate()  # it ends as it should, and leaves nothing
        assert not folders(root)
    finally:
        living.kill()
        living.wait()


def test_a_job_of_another_machine_is_dead_once_it_renews_its_lease_no_more(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = jobs_of(home.places.output)
    monkeypatch.setattr(lease, "TTL", 1.0)
    put(root / "x" / "0.read", b"sealed")
    put(root / "x" / "_lock", b'{"lease": "x", "machine": "another", "pid": 1, "started": "1", "number": 7}')
    assert sweep_jobs(root) == 1
    assert not folders(root)


def test_a_folder_without_a_lock_is_taken_once_nobody_can_be_making_it(home: Platform) -> None:
    root = jobs_of(home.places.output)
    put(root / "x" / "0.read", b"sealed")
    if not isinstance(root, ObjectPath):
        assert sweep_jobs(root) == 0
        os.utime(root / "x", (0, 0))
    assert sweep_jobs(root) == 1
    assert not folders(root)
