"""A release killed at every step: whoever comes next, the same command or an ingest, finishes it as it was decided."""

import signal
import subprocess
import sys

import pytest

from healthingest import read_silver
from healthingest.platform import Platform
from healthingest_tests.conftest import configure, csv_of, deliver, env_of, line
from healthingest_tests.histories import change_feed_is_real

#: Runs the command, and dies at the named step of the delivery's way.
_DYING = """
import os, signal, sys
import healthingest.ingest as ingest
import healthingest.lake.decisions as decisions

at, *sys.argv = sys.argv[1:]
whole, put = ingest.Stages.__call__, decisions.Decisions.put

def dying(self, stage):
    if stage == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, stage)

def noted(self, *arguments):
    put(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

ingest.Stages.__call__ = dying
ingest.Stages.add = lambda self, stage, seconds: dying(self, stage)
if at == "decision":
    decisions.Decisions.put = noted
from healthingest.cli import main
main()
"""
STEPS = ["decision", "read", "validate", "tokenise", "quarantine", "sight", "compare", "vault", "silver", "audit"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("next_", ["release", "ingest"])
def test_a_release_killed_at_any_step_is_finished_by_whoever_comes_next(home: Platform, step: str, next_: str) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.3, on_breach: hold}\n")
    bad = [line(f"X{n}", zip="1") for n in range(3)]
    deliver(home, "acme_20250105.csv", csv_of(line("M1", city="Lynn")))
    held = deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Salem"), line("M2"), *bad)).delivery
    env = env_of(home.places)  # fmt: skip
    release = ["healthingest", "release", held.file_id, "--reason", "acme confirms"]
    died = subprocess.run([sys.executable, "-c", _DYING, step, *release], env=env, capture_output=True)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()[-500:]
    words = release if next_ == "release" else ["healthingest", "ingest", held.file_name]
    done = subprocess.run([sys.executable, "-c", _DYING, "", *words], env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-500:]
    shown = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
    assert dict(shown.iter_rows()) == {"M1": "Salem", "M2": "Boston"}
    assert (home.lake.audit.row(held.file_id) or {})["decision"] == "released"
    assert len([e for e in home.lake.events.read("acme") if e["kind"] == "released"]) == 1
    change_feed_is_real(home)
