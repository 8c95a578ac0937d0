"""Erasures killed at any moment beside ingests, which are killed too: what is run again ends with nothing left."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from healthingest import read_silver
from healthingest.absence import Member, look_for
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, env_of, examples, install, line
from healthingest_tests.faults.test_kills import land, start

_ERASER = """
import sys
from healthingest.erase import Request, erase_member
from healthingest.platform import Platform
erase_member(Platform.open(), "acme", "M2", Request(wait=120))
"""


def erase(home: Platform) -> subprocess.Popen[bytes]:
    env = env_of(home.places)  # fmt: skip
    with (home.places.home / "stderr.log").open("ab") as told:
        return subprocess.Popen([sys.executable, "-c", _ERASER], env=env, stderr=told)


@pytest.mark.parametrize("seed", range(examples(2)))
def test_an_erasure_killed_at_any_moment_beside_ingests_ends_with_nothing_left(tmp_path: Path, seed: int) -> None:
    chance, kills = random.Random(seed), 0
    home = install(tmp_path, {"acme": "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n"})
    last: dict[str, str] = {}
    for day in range(1, 7):
        rows = {f"M{n}": chance.choice(["Lynn", "Salem"]) for n in range(5) if chance.random() < 0.8}
        last |= rows
        bad = [line("M2", zip="1")] if chance.random() < 0.5 else []
        land(home, f"acme_2025010{day}.csv", csv_of(*(line(m, city=c) for m, c in rows.items()), *bad))
        for _ in range(2):
            workers = [start(home, chance.randrange(10**6)), erase(home) if day > 2 else start(home, 1)]
            time.sleep(chance.uniform(0.5, 1.6))
            for worker in workers:
                worker.send_signal(signal.SIGKILL)
            kills += [worker.wait() for worker in workers].count(-signal.SIGKILL)
    assert kills
    assert start(home, 0).wait(120) == 0
    assert erase(home).wait(120) == 0
    again = Platform.open(home.places)
    cdf = again.lake.silver.path / "_change_data"
    left = look_for(again, Member.of(again, "acme", "M2"), but=set(cdf.rglob("*.parquet")))
    assert {place: said.found for place, said in left.items() if said.found} == {}
    shown = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
    assert dict(shown.iter_rows()) == {member: city for member, city in last.items() if member != "M2"}
    audit = again.lake.audit.frame()
    assert audit.filter(pl.col("status") != "succeeded").is_empty()
    parts = ("duplicates", "suppressed", "stale", "unchanged", "inserted", "updated")
    assert (audit.select(pl.sum_horizontal(parts)).to_series() == audit["accepted"]).all()
    print(f"{kills} killed")
