"""Processes killed at any moment, two at a time on the same files: what is run again ends in the defined state."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from healthingest.lake.export import export_frame
from healthingest.platform import Platform
from healthingest_tests.conftest import examples, install
from healthingest_tests.unit.test_history import expected, history

_INGEST_ALL = """
from healthingest.ingest import ingest, register
from healthingest.platform import Platform
platform = Platform.open()
for path in sorted(platform.places.landing.iterdir()):
    ingest(platform, register(platform, path), run_id="worker")
"""


def workers(home: Platform, count: int) -> list[subprocess.Popen[bytes]]:
    env = os.environ | {
        "HEALTHINGEST_HOME": str(home.places.home),
        "HEALTHINGEST_KEYRING": str(home.places.keyring),
    }
    command = [sys.executable, "-c", _INGEST_ALL]
    return [subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL) for _ in range(count)]


@pytest.mark.parametrize("seed", range(100, 100 + examples(3)))
def test_killed_workers_leave_nothing_that_a_further_run_does_not_mend(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    home = install(tmp_path)
    files = history(chance)
    waiting: dict[str, list[str]] = {}
    for name, text in files:
        waiting.setdefault(name, []).append(text)
    while any(waiting.values()):  # each round lands the next version of every file, and kills who works on it
        for name in [n for n, versions in waiting.items() if versions]:
            (home.places.landing / name).write_text(waiting[name].pop(0))
        started = workers(home, 2)
        time.sleep(chance.uniform(0.5, 1.6))
        for worker in started:
            worker.send_signal(signal.SIGKILL)
            worker.wait()

    (last,) = workers(home, 1)
    assert last.wait(120) == 0

    audit = home.lake.audit.frame(["file_id", "status"])
    assert audit["file_id"].n_unique() == audit.height, "one audit row per delivery"
    silver = home.lake.silver.frame(["member_token"])
    assert silver["member_token"].n_unique() == silver.height
    rows = export_frame(home).select("member_id", "city", "last_seen").sort("member_id").rows()
    assert [(member, city, str(seen)) for member, city, seen in rows] == expected(files)
