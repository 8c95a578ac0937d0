"""Processes killed at any moment and at every step, several at a time on the same files: what is run again ends right.

HEALTHINGEST_NIGHTLY multiplies the histories and kills at every step, as in an object store; each test prints how many
processes it started and killed.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from healthingest.platform import Platform
from healthingest_tests.conftest import env_of, examples
from healthingest_tests.histories import File, change_feed_is_real, expected, found, history_of, new_home

#: Ingests everything landed, in an order of its own, one by one or in groups; dies where it is told to.
_WORKER = """
import os, random, signal, sys
from healthingest.errors import UnroutableError
from healthingest.ingest import ingest_many, register
from healthingest.platform import Platform

chance, dies_at = random.Random(sys.argv[1]), sys.argv[2]
step = [0]

def on_stage(stage):
    step[0] += 1
    if dies_at and (stage == dies_at or dies_at == f"step {step[0]}"):
        os.kill(os.getpid(), signal.SIGKILL)

platform = Platform.open()
paths = sorted(p for p in platform.places.landing.iterdir() if not p.name.startswith("."))
chance.shuffle(paths)
while paths:
    taken = []
    for path in [paths.pop() for _ in range(min(len(paths), chance.choice([1, 1, 3])))]:
        try:
            taken.append(register(platform, path))
        except UnroutableError:  # the next version landed just now
            paths.insert(0, path)
    ingest_many(platform, taken, run_id="worker", on_stage=on_stage)
"""
#: Every named step of a delivery's way; a process that dies before one died after the step before it.
STEPS = [
    "read", "standardize", "validate", "tokenise", "quarantine", "sight", "compare", "vault", "silver", "audit",
    "report",
]  # fmt: skip
if not {"HEALTHINGEST_NIGHTLY", "HEALTHINGEST_TEST_STORE"} & os.environ.keys():  # the others are like one of these
    STEPS = ["read", "tokenise", "quarantine", "vault", "silver", "audit"]


def start(home: Platform, seed: int, dies_at: str = "") -> subprocess.Popen[bytes]:
    env = env_of(home.places) | {"POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-c", _WORKER, str(seed), dies_at]
    with (home.places.home / "stderr.log").open("ab") as told:
        return subprocess.Popen(command, env=env, stderr=told)


def land(home: Platform, name: str, text: str) -> None:
    """Let a file appear whole, as senders do."""
    hidden = home.places.landing / f".{name}"
    hidden.write_text(text)
    hidden.rename(home.places.landing / name)


def rounds(files: list[File]) -> list[list[File]]:
    """The versions of all names, one of each a round."""
    waiting: dict[str, list[str]] = {}
    for name, text in files:
        waiting.setdefault(name, []).append(text)
    return [
        [(name, texts[number]) for name, texts in waiting.items() if number < len(texts)]
        for number in range(max(map(len, waiting.values())))
    ]


def ends_as_defined(home: Platform, files: list[File]) -> None:
    (last,) = [start(home, 0)]
    assert last.wait(180) == 0
    assert found(home) == expected(files)
    change_feed_is_real(home)


@pytest.mark.parametrize("seed", range(examples(3)))
def test_processes_killed_at_any_moment_four_at_a_time_leave_nothing_that_a_further_run_does_not_mend(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    home, files, runs, kills = new_home(tmp_path), history_of(chance), 0, 0
    for landed in rounds(files):
        for name, text in landed:
            land(home, name, text)
        workers = [start(home, chance.randrange(10**6)) for _ in range(4)]  # each file is given to all of them
        time.sleep(chance.uniform(1.0, 4.0))
        for worker in workers:
            if chance.random() < 0.75:
                worker.send_signal(signal.SIGKILL)
        codes = [worker.wait(180) for worker in workers]
        assert set(codes) <= {0, -signal.SIGKILL}
        runs, kills = runs + len(codes), kills + codes.count(-signal.SIGKILL)
        register_all(home)  # the next version must not overwrite one that nobody has read
    print(f"{runs} processes, {kills} killed")
    ends_as_defined(home, files)


def register_all(home: Platform) -> None:
    from healthingest.ingest import register

    fresh = Platform.open(home.places)
    for path in fresh.places.landing.iterdir():
        register(fresh, path)


@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_a_step_boundary_beside_one_that_lives_is_mended(tmp_path: Path, step: str) -> None:
    chance = random.Random(step)
    home, files, kills = new_home(tmp_path), history_of(chance), 0
    for number, landed in enumerate(rounds(files)):
        for name, text in landed:
            land(home, name, text)
        if not number:  # alone: beside others it may find all done by them
            kills += start(home, chance.randrange(10**6), step).wait(180) == -signal.SIGKILL
        dying = [start(home, chance.randrange(10**6), step), start(home, 1, f"step {chance.randint(1, 30)}")]
        codes = [worker.wait(180) for worker in dying]
        assert set(codes) <= {0, -signal.SIGKILL}
        kills += codes.count(-signal.SIGKILL)
        beside = [start(home, 2, step), start(home, 3)]
        codes = [worker.wait(180) for worker in beside]
        assert codes[1] == 0
        kills += codes.count(-signal.SIGKILL)
        register_all(home)
    assert kills
    ends_as_defined(home, files)
