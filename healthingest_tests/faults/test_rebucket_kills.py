"""Re-bucketing killed at every step, and at any moment beside ingests: no row is lost, doubled, or out of its bucket.

In CI a few steps and one history, with HEALTHINGEST_NIGHTLY all of them and many.
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
from healthingest.relayout import REBUCKETED
from healthingest_tests.conftest import csv_of, deliver, examples, install, line
from healthingest_tests.dying import DIE_AFTER
from healthingest_tests.faults.test_kills import land, start
from healthingest_tests.histories import change_feed_is_real

_PROGRAM = (
    DIE_AFTER
    + """
import healthingest.lake.relayout as relayout
from healthingest.lake.destinations import Destinations
from healthingest.lake.events import Events

relayout.GROUP_ROWS = 10
count = [0]
write = relayout.write_parquet

def writing(rows, place, **said):
    count[0] += 1
    write(rows, place, **said)
    if at == f"file {count[0]}":
        os.kill(os.getpid(), signal.SIGKILL)

relayout.write_parquet = writing
die_after(relayout.Relayout, "begun", "plan")
die_after(relayout.Relayout, "_written", "group")
die_after(relayout, "put_entry", "commit")
die_after(Destinations, "resettle", "note")
die_after(Events, "append", "event")
die_after(relayout.Relayout, "leave", "left")
die_after(relayout.Relayout, "drop", "end")
from healthingest.cli import main
main()
"""
)
STEPS = ["plan", "file 1", "file 9", "group", "commit", "note", "event", "end"]
OF_A_MOVE = ["plan", "group", "commit", "note", "left", "event", "end"]
if not os.environ.get("HEALTHINGEST_NIGHTLY"):
    STEPS, OF_A_MOVE = ["file 9", "group", "commit", "note"], ["commit", "note"]


def rebucketing(home: Platform, buckets: int, dies_at: str = "") -> subprocess.Popen[bytes]:
    return relaying(home, ["rebucket", "--buckets", str(buckets)], dies_at)


def relaying(home: Platform, words: list[str], dies_at: str = "") -> subprocess.Popen[bytes]:
    env = os.environ | {
        "HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(home.places.keyring),
        "POLARS_MAX_THREADS": "1",
    }  # fmt: skip
    words = ["healthingest", "silver", words[0], "--client", "acme", *words[1:]]
    with (home.places.home / "stderr.log").open("ab") as told:
        return subprocess.Popen([sys.executable, "-c", _PROGRAM, dies_at, *words], env=env, stderr=told)


def is_right(home: Platform, cities: dict[str, str], buckets: int) -> None:
    home = Platform.open(home.places)
    shown = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
    assert shown.height == len(cities)
    assert dict(shown.iter_rows()) == cities
    rows = home.lake.silver.frame(["member_token", "_bucket"])
    assert all(int(row["member_token"][:8], 16) % buckets == row["_bucket"] for row in rows.to_dicts())
    assert home.lake.destinations.of("acme").buckets == buckets
    assert not list((home.places.output / "checkpoint" / "relayouts").iterdir())
    change_feed_is_real(home)


@pytest.mark.parametrize("step", STEPS)
def test_killed_after_any_step_it_is_finished_by_the_next_whatever_comes_between(home: Platform, step: str) -> None:
    cities = {f"M{n}": "Boston" for n in range(40)}
    deliver(home, "acme_20250106.csv", csv_of(*(line(m) for m in cities)))
    assert rebucketing(home, 16, step).wait(120) == -signal.SIGKILL
    deliver(Platform.open(home.places), "acme_20250107.csv", csv_of(line("M1", city="Salem"), line("N1", city="Lynn")))
    cities |= {"M1": "Salem", "N1": "Lynn"}
    assert rebucketing(home, 16).wait(120) == 0
    is_right(home, cities, 16)
    events = [event for event in home.lake.events.read("acme") if event["kind"] == REBUCKETED]
    assert [(event["from"], event["to"]) for event in events] == [(1, 16)]


@pytest.mark.parametrize("step", OF_A_MOVE)
def test_a_move_killed_after_any_step_is_finished_by_the_next_and_nobody_sees_a_member_twice(
    home: Platform, step: str
) -> None:
    cities = {f"M{n}": "Boston" for n in range(40)}
    deliver(home, "acme_20250106.csv", csv_of(*(line(m) for m in cities)))
    assert relaying(home, ["move", "--table", "special"], step).wait(120) == -signal.SIGKILL
    deliver(Platform.open(home.places), "acme_20250107.csv", csv_of(line("M1", city="Salem"), line("N1", city="Lynn")))
    cities |= {"M1": "Salem", "N1": "Lynn"}
    for again in range(2):
        shown = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
        assert (shown.height, dict(shown.iter_rows())) == (len(cities), cities)
        if not again:
            assert relaying(home, ["move", "--table", "special"]).wait(120) == 0
    there = {s.path.name: s.frame(["member_token"]).height for s in Platform.open(home.places).lake.silvers()}
    assert there == {"silver": 0, "silver_special": len(cities)}
    assert not list((home.places.output / "checkpoint" / "relayouts").iterdir())


@pytest.mark.parametrize("seed", range(min(examples(1), 10)))
def test_killed_at_any_moment_while_files_arrive_nothing_is_lost_or_doubled(tmp_path: Path, seed: int) -> None:
    chance, kills, buckets = random.Random(seed), 0, 1
    home = install(tmp_path, {"acme": "client_id: acme\n"})
    cities = {f"M{n}": "Boston" for n in range(300)}
    land(home, "acme_20250101.csv", csv_of(*(line(m) for m in cities)))
    assert start(home, 0).wait(120) == 0
    for day in range(2, 5):
        changed = dict.fromkeys(chance.sample(sorted(cities), 20), f"City {day}") | {f"N{day}": "Lynn"}
        cities |= changed
        land(home, f"acme_202501{day:02}.csv", csv_of(*(line(m, city=c) for m, c in changed.items())))
        buckets = chance.choice([2, 3, 16, 64])
        workers = [rebucketing(home, buckets), start(home, chance.randrange(10**6))]
        time.sleep(chance.uniform(0.6, 2.0))
        for worker in workers:
            worker.send_signal(signal.SIGKILL)
        kills += [worker.wait() for worker in workers].count(-signal.SIGKILL)
        shown = read_silver(role="operations", places=home.places).select(pl.len()).collect().item()
        assert 300 <= shown <= len(cities)
    last = [rebucketing(home, buckets), start(home, 0)]
    assert [worker.wait(240) for worker in last] == [0, 0]
    is_right(home, cities, buckets)
    print(f"{kills} killed")
