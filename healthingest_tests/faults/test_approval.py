"""A schema change approved while others ingest, or killed at any step: silver is as if it had been so from the start.

HEALTHINGEST_NIGHTLY kills it at more steps.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from healthingest.approve import approve
from healthingest.contracts.evolve import Answer
from healthingest.platform import Platform
from healthingest.reread import stale
from healthingest_tests.conftest import HEADER, csv_of, deliver, drop, env_of, line
from healthingest_tests.dying import DIE_AFTER
from healthingest_tests.histories import change_feed_is_real
from healthingest_tests.unit.test_schema_stories import rebuilt, silver

#: Runs the command, and dies right after the named step.
_DYING = (
    DIE_AFTER
    + """
import healthingest.approve as approve
import healthingest.contracts.evolve as evolve
from healthingest.lake.proposals import Words
from healthingest.lake.registrations import Registrations
from healthingest.lake.silver import Silver

die_after(evolve.os, "link", "contract")
die_after(evolve, "replace_text", "config")
die_after(Registrations, "put", "published")
die_after(Silver, "for_client", "widened")
die_after(approve, "undecided", "looked")
die_after(approve, "stale", "stale")
die_after_a_group(approve)
die_after(Words, "put", "noted")
from healthingest.cli import main
main()
"""
)
STEPS = ["contract", "config", "group"]
if os.environ.get("HEALTHINGEST_NIGHTLY"):
    STEPS += ["published", "widened", "looked", "stale", "noted"]
#: Registers and ingests what is named, one by one, and says so; opened the installation before anything was approved.
_WORKER = """
import sys
from healthingest.ingest import ingest, register
from healthingest.platform import Platform

platform = Platform.open()
for name in sys.argv[1:]:
    ingest(platform, register(platform, platform.places.landing / name), run_id="worker")
    print(name, flush=True)
"""
WIDE = f"{HEADER},plan"


def environment(home: Platform) -> dict[str, str]:
    return env_of(home.places)  # fmt: skip


def file_of(day: int) -> str:
    """Members come, change and go on; from the third day on each has a plan."""
    records = [line(f"M{n}", city="ABCDEF"[day % 6]) for n in range(day, day + 6)]
    if day < 3:
        return csv_of(*records)
    return csv_of(*(f"{record},P{(day + n) % 3}" for n, record in enumerate(records)), header=WIDE)


@pytest.mark.parametrize("step", STEPS)
def test_an_approval_killed_at_any_step_is_finished_by_the_same_command(
    home: Platform, tmp_path: Path, step: str
) -> None:
    files = {f"acme_2025010{day}.csv": file_of(day) for day in range(1, 5)}
    for name, text in files.items():
        deliver(home, name, text)
    words = ["healthingest", "schema", "approve", "acme.added.plan", "--policy", "keep", "--type", "text"]
    env = environment(home)
    died = subprocess.run([sys.executable, "-c", _DYING, step, *words], env=env, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-500:]
    done = subprocess.run([sys.executable, "-c", _DYING, "", *words], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert silver(home) == rebuilt(home, tmp_path, files)
    assert sorted(p.name for p in (home.places.configs / "contracts" / "member").glob("*.yaml")) == ["1.yaml", "2.yaml"]
    platform = Platform.open(home.places)
    assert stale(platform, "acme") == []
    change_feed_is_real(platform)


def test_files_that_others_ingest_during_an_approval_are_whole(home: Platform, tmp_path: Path) -> None:
    files = {f"acme_202501{day:02}.csv": file_of(day) for day in range(1, 21)}
    names = sorted(files)
    for name in names:
        drop(home, name, files[name])
    for name in names[:4]:
        deliver(home, name, files[name])
    lots = [names[4::2], names[5::2]]
    workers = [
        subprocess.Popen([sys.executable, "-c", _WORKER, *lot], env=environment(home), stdout=subprocess.PIPE)
        for lot in lots
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline()  # it is at work, with the config of before in its memory
    answer = Answer(policy={"keep": True}, type="text")
    approve(Platform.open(home.places), "acme.added.plan", answer, by="jane", reason="asked for")
    for worker in workers:
        worker.communicate(timeout=120)
        assert worker.returncode == 0
    assert silver(home) == rebuilt(home, tmp_path, files)
    platform = Platform.open(home.places)
    assert stale(platform, "acme") == []
    rows = platform.lake.audit.frame(["file_id", "file_name", "contract", "reread_of"])
    assert rows["file_id"].n_unique() == rows.height
    received = rows.filter(pl.col("reread_of").is_null())
    assert sorted(received["file_name"]) == names
    assert {"member/1", "member/2"} == set(received["contract"])  # some came before, some after
    change_feed_is_real(platform)
