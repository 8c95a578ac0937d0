"""Hundreds of clients that fail at once: the real daemon tells each place once of each cause, within a minute.

HEALTHINGEST_NIGHTLY makes it 200 clients instead of 60.
"""

import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from healthingest.approve import reject
from healthingest.platform import Platform
from healthingest_tests.conftest import HEADER, csv_of, drop, install, line
from healthingest_tests.receiver import Receiver, receiving
from healthingest_tests.servers import BIN, REPO, environment, free_port, running, wait_for_http

pytestmark = pytest.mark.server
CLIENTS = [f"c{n:03}" for n in range(200 if os.environ.get("HEALTHINGEST_NIGHTLY") else 60)]
BAD = csv_of(line("M1") + ",x", line("M2", zip="1") + ",x", header=f"{HEADER},surprise")


def heading(body: dict[str, object]) -> tuple[str, str, int]:
    """Kind, condition and number of clients of a message to the webhook."""
    data = body["data"]
    assert isinstance(data, dict)
    return str(body["type"]), data["condition"], len({alert["client_id"] for alert in data["alerts"]})


def command(*words: str, env: dict[str, str], cwd: Path) -> None:
    done = subprocess.run([str(BIN / "healthingest"), *words], env=env, cwd=cwd, capture_output=True, text=True)
    assert done.returncode in {0, 1}, done.stderr


def told(hook: Receiver) -> dict[str, list[tuple[str, str, int]]]:
    return {path: sorted(heading(body) for body in hook.bodies(path)) for path in ("/ops", "/pager")}


def every_client_sends(home: Platform, date: str, text: str, env: dict[str, str], cwd: Path) -> None:
    for client in CLIENTS:
        drop(home, f"{client}_{date}.csv", text)
    command("ingest", "--all", env=env, cwd=cwd)


def test_each_place_hears_once_of_each_cause_within_a_minute_and_once_of_its_end(tmp_path: Path) -> None:
    home = install(tmp_path, {client: f"client_id: {client}\n" for client in CLIENTS})
    with receiving() as hook:
        place = {"kind": "webhook", "secret": "env:HOOK_SECRET"}
        places = {name: place | {"url": f"env:{name.upper()}"} for name in ("ops", "pager")}
        (home.places.configs / "alerts.yaml").write_text(yaml.safe_dump({"places": places}))
        env = environment(home, tmp_path / "dagster", "dagster.dev.yaml") | {"HOOK_SECRET": "whsec_" + "c2VjcmV0" * 4}
        env |= {name.upper(): f"{hook.url}/{name}" for name in ("ops", "pager")}
        every_client_sends(home, "20250106", BAD, env, tmp_path)
        port = free_port()
        dev = ["dagster", "dev", "-w", str(REPO / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
        with running(dev, env=env, cwd=tmp_path):
            wait_for_http(port)
            hook.wait_for(lambda: len(hook.taken) >= 4, 60, "message of each cause to each place")
            time.sleep(12)  # the next look
        begun = [("alert.firing", "contract_drift", len(CLIENTS)), ("alert.firing", "invalid_ratio", len(CLIENTS))]
        assert told(hook) == {"/ops": begun, "/pager": begun}
        for path in ("/ops", "/pager"):
            first, second = (request.at for request in hook.taken if request.path == path)
            assert second - first >= 1  # services take about one message a second
        hook.taken.clear()
        every_client_sends(home, "20250107", csv_of(line("M1")), env, tmp_path)
        for client in CLIENTS:
            reject(home, f"{client}.added.surprise", by="jane", reason="not for us")
        command("alerts", "watch", env=env, cwd=tmp_path)
        time.sleep(16)  # what else may have the same cause is waited for
        command("alerts", "watch", env=env, cwd=tmp_path)
        over = [("alert.resolved", "contract_drift", len(CLIENTS)), ("alert.resolved", "invalid_ratio", len(CLIENTS))]
        assert told(hook) == {"/ops": over, "/pager": over}
        assert hook.refused == []
