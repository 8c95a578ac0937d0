"""Rotations killed at any moment while files arrive and are ingested by processes that are killed too.

In CI 2,000 members, with HEALTHINGEST_NIGHTLY 100,000.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from healthingest import read_silver
from healthingest.platform import Platform
from healthingest.privacy.keyring_file import load_keyring
from healthingest.rotate import leftovers, revoke
from healthingest_tests.conftest import csv_of, env_of, examples, install, line
from healthingest_tests.faults.test_kills import land, start

_ROTATOR = """
from healthingest.platform import Platform
from healthingest.rotate import rotate
rotate(Platform.open(), "acme", wait=120)
"""
MEMBERS = 100_000 if os.environ.get("HEALTHINGEST_NIGHTLY") else 2_000


def rotator(home: Platform) -> subprocess.Popen[bytes]:
    env = env_of(home.places)  # fmt: skip
    with (home.places.home / "stderr.log").open("ab") as told:
        return subprocess.Popen([sys.executable, "-c", _ROTATOR], env=env, stderr=told)


@pytest.mark.parametrize("seed", range(min(examples(2), 10)))
def test_rotations_killed_at_random_while_files_arrive_leave_nothing_unreadable_or_under_old_keys(
    tmp_path: Path, seed: int
) -> None:
    chance, kills = random.Random(seed), 0
    home = install(tmp_path, {"acme": "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n"})
    land(home, "acme_20250101.csv", csv_of(*(line(f"M{n}") for n in range(MEMBERS)), line("X", zip="12")))
    assert start(home, 0).wait(120) == 0
    cities = {f"M{n}": "Boston" for n in range(MEMBERS)}
    for day in range(2, 7):
        changed = {f"M{n}": f"City {day}" for n in chance.sample(range(MEMBERS), MEMBERS // 20)}
        cities |= changed
        bad = [line("X", zip="12")] * chance.randint(0, 3)
        land(home, f"acme_202501{day:02}.csv", csv_of(*(line(m, city=c) for m, c in changed.items()), *bad))
        workers = [rotator(home), start(home, chance.randrange(10**6))]
        time.sleep(chance.uniform(0.5, 2.0))
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
        kills += [worker.wait() for worker in workers].count(-signal.SIGKILL)
        assert read_silver(role="operations", places=home.places).select("member_id").collect().height == MEMBERS
    assert kills
    assert start(home, 0).wait(240) == 0
    assert rotator(home).wait(240) == 0
    now = Platform.open(home.places)
    assert set(leftovers(now.current("acme"), "acme").values()) == {0}
    assert revoke(now, "acme") >= 1
    held = load_keyring(home.places).keys["acme"]
    assert {len(versions) for versions in held.values()} == {1}
    shown = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
    assert dict(shown.iter_rows()) == cities
    latest = Platform.open(home.places).lake
    assert all(latest.bronze.is_whole("acme", r.delivery.file_id) for r in latest.bronze.of_client("acme"))
    assert latest.audit.frame().filter(pl.col("status") != "succeeded").is_empty()
    print(f"{kills} processes killed, generation {max(held['bronze'])}")
