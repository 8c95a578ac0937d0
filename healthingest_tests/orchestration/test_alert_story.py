"""A night on the real daemon: exactly the messages that an on-call person expects, in order, and none twice.

HEALTHINGEST_NIGHTLY keeps the webhook down for ten minutes instead of half a one.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, install, line
from healthingest_tests.orchestration.test_servers import land
from healthingest_tests.receiver import Receiver, receiving
from healthingest_tests.servers import BIN, REPO, environment, free_port, running, wait_for_http, wait_for_status

pytestmark = pytest.mark.server
BAD = [line(f"X{n}", zip="1") for n in range(4)]
OUTAGE_SECONDS = 600 if os.environ.get("HEALTHINGEST_NIGHTLY") else 30
_SILENCE = "client_id: globex\nfreshness: {expect_every: 1m, grace: 0m}\n"


@dataclass
class Night:
    """The installation, its environment, and the webhook."""

    home: Platform
    hook: Receiver
    env: dict[str, str]
    root: Path

    @contextmanager
    def daemon(self) -> Iterator[None]:
        port = free_port()
        dev = ["dagster", "dev", "-w", str(REPO / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
        with running(dev, env=self.env, cwd=self.root):
            wait_for_http(port)
            yield

    def told(self) -> list[str]:
        """Kind, condition and clients of each message so far."""
        said = []
        for body in self.hook.bodies("/hook"):
            data = body["data"]
            who = sorted(alert["client_id"] or "-" for alert in data["alerts"])
            said.append(" ".join([body["type"].removeprefix("alert."), data["condition"], *who]))
        return said

    def hears(self, *messages: str, seconds: float = 60) -> None:
        """Wait for the next messages; fails if others come."""
        before = getattr(self, "_heard", [])
        expected = [*before, *messages]
        deadline = time.monotonic() + seconds
        while len(self.told()) < len(expected) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert self.told() == expected, (self.root / "servers.log").read_text()[-3000:]
        self._heard = expected

    def deliver(self, name: str, *lines: str, status: str = "succeeded") -> None:
        land(self.home, name, csv_of(*lines))
        assert wait_for_status(self.home, name, 90)[0] == status


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": _SILENCE})
    with receiving() as hook:
        places: dict[str, Any] = {"hook": {"kind": "webhook", "url": "env:HOOK_URL", "secret": "env:HOOK_SECRET"}}
        timing = {"group_wait_seconds": 1, "retry_first_seconds": 2, "retry_longest_seconds": 10}
        settings = {"places": places, "timing": timing, "environment": "night"}
        (home.places.configs / "alerts.yaml").write_text(yaml.safe_dump(settings))
        env = environment(home, tmp_path / "dagster", "dagster.dev.yaml")
        env |= {"HOOK_URL": f"{hook.url}/hook", "HOOK_SECRET": "whsec_" + "c2VjcmV0" * 4}
        yield Night(home, hook, env, tmp_path)


def kill_its_run(night: Night, file_name: str) -> None:
    """Kill the process of the run that takes a file, as the kernel does when memory runs out."""
    deadline = time.monotonic() + 60
    with dg.DagsterInstance.from_config(night.env["DAGSTER_HOME"]) as instance:
        while time.monotonic() < deadline:
            wanted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={"healthingest/file": file_name})
            for run in instance.get_runs(wanted):
                messages = [record.user_message or record.message for record in instance.all_logs(run.run_id)]
                if found := re.search(r"\(pid: ([0-9]+)\)", " ".join(messages)):
                    os.kill(int(found[1]), signal.SIGKILL)
                    return
            time.sleep(0.1)
    raise AssertionError("the run never started")


def test_a_night_is_told_as_it_happened(night: Night) -> None:
    with night.daemon():
        night.deliver("globex_20250106.csv", line("M1"))
        night.deliver("acme_20250106.csv", line("M1"))
        night.deliver("acme_20250107.csv", line("M1"), *BAD)
        night.hears("firing invalid_ratio acme")
        night.deliver("acme_20250108.csv", line("M1"), *BAD)  # told already
        night.deliver("acme_20250109.csv", line("M1"))
        night.hears("resolved invalid_ratio acme")
        # A client goes silent and returns.
        night.hears("firing data_delay globex", seconds=120)
        night.deliver("globex_20250107.csv", line("M1"))
        night.hears("resolved data_delay globex")
        (night.home.places.configs / "globex.yaml").write_text(f"{_SILENCE}active: false\n")
        # A run is killed by the kernel, and tried again.
        land(night.home, "acme_20250110.csv", csv_of(*(line(f"M{n}") for n in range(150_000))))
        kill_its_run(night, "acme_20250110.csv")
        night.hears("firing run_crashed acme", seconds=120)
        assert wait_for_status(night.home, "acme_20250110.csv", 120)[0] == "succeeded"
        night.hears("resolved run_crashed acme")
        # A sensor's code raises.
        keyring = night.home.places.keyring
        keyring.rename(keyring.with_suffix(".away"))
        night.hears("firing sensor_failing -", seconds=90)
        keyring.with_suffix(".away").rename(keyring)
        night.hears("resolved sensor_failing -", seconds=90)
        # The webhook goes down, and the whole system is restarted meanwhile.
        night.hook.status = 503
        down = time.monotonic()
        night.deliver("acme_20250111.csv", line("M1"), *BAD)
        night.hook.wait_for(lambda: len(night.hook.refused) >= 2, 60, "second attempt")
    with night.daemon():
        time.sleep(max(0.0, down + OUTAGE_SECONDS - time.monotonic()))
        night.hook.status = 200
        night.hears("firing invalid_ratio acme")
        night.deliver("acme_20250112.csv", line("M1"))
        night.hears("resolved invalid_ratio acme")
        time.sleep(15)
        night.hears()
    ids = [request.headers["webhook-id"] for request in night.hook.taken]
    assert len(set(ids)) == len(ids)


def test_a_daemon_that_died_is_told_by_the_watch_beside_it(night: Night) -> None:
    settings = yaml.safe_load((night.home.places.configs / "alerts.yaml").read_text())
    settings["limits"] = {"silent_for": "1m"}
    (night.home.places.configs / "alerts.yaml").write_text(yaml.safe_dump(settings))
    (night.home.places.configs / "globex.yaml").unlink()
    with night.daemon():
        night.deliver("acme_20250106.csv", line("M1"))
        time.sleep(12)
        night.hears()

    def watch() -> None:
        command = [str(BIN / "healthingest"), "alerts", "watch"]
        done = subprocess.run(command, env=night.env, cwd=night.root, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    deadline, kinds = time.monotonic() + 150, set[str]()
    while len(kinds) < 2 and time.monotonic() < deadline:
        watch()
        time.sleep(5)
        kinds = {" ".join(message.split()[:2]) for message in night.told()}
    assert kinds == {"firing daemon_down", "firing not_ticking"}
    with night.daemon():
        time.sleep(30)
    watch()
    ended = {" ".join(message.split()[:2]) for message in night.told()} - kinds
    assert "resolved daemon_down" in ended
