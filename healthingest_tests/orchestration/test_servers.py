"""The whole system as it runs in the field: real webserver, daemon and code server, watched from outside."""

import time
from pathlib import Path

import pytest

from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, drop, line
from healthingest_tests.servers import REPO, environment, free_port, running, wait_for_http, wait_for_status

pytestmark = pytest.mark.server
#: The promise of the operating manual.
ONBOARDING_SECONDS = 30


def land(home: Platform, name: str, text: str) -> None:
    """Make a file appear complete at once, as a careful sender does."""
    hidden = home.places.landing / f".{name}"
    hidden.write_text(text)
    hidden.rename(home.places.landing / name)


def onboard(home: Platform, client: str) -> float:
    """Add a client and its first file at the same moment; seconds until the file is decided."""
    (home.places.configs / f"{client}.yaml").write_text(f"client_id: {client}\n")
    land(home, f"{client}_20250106.csv", csv_of(line("M1")))
    status, seconds = wait_for_status(home, f"{client}_20250106.csv")
    assert status == "succeeded"
    return seconds


def test_dagster_dev_ingests_dropped_files_and_takes_on_clients_without_a_restart(
    home: Platform, tmp_path: Path
) -> None:
    port = free_port()
    dev = ["dagster", "dev", "-w", str(REPO / "workspace.yaml"), "-h", "127.0.0.1", "-p", str(port)]
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    with running(dev, env=environment(home, tmp_path / "dagster"), cwd=tmp_path):
        wait_for_http(port)
        assert wait_for_status(home, "acme_20250106.csv")[0] == "succeeded"
        time.sleep(5)  # idle
        land(home, "acme_20250107.csv", csv_of(line("M1", city="Salem")))
        status, latency = wait_for_status(home, "acme_20250107.csv")
        assert status == "succeeded"
        (home.places.configs / "broken.yaml").write_text("client_id: a|b\n")
        seconds = onboard(home, "newco")
        again = onboard(home, "another")
    print(f"dagster dev: file to silver {latency:.1f} s, onboarding {seconds:.1f} and {again:.1f} s")
    assert max(seconds, again) <= ONBOARDING_SECONDS


def test_a_code_server_and_a_daemon_do_the_same(home: Platform, tmp_path: Path) -> None:
    port = free_port()
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(
        f"load_from:\n  - grpc_server: {{host: 127.0.0.1, port: {port}, location_name: healthingest}}\n"
    )
    server = ["dagster", "code-server", "start", "-m", "healthingest.definitions", "-h", "127.0.0.1", "-p", str(port)]
    server += ["--location-name", "healthingest"]
    daemon = ["dagster-daemon", "run", "-w", str(workspace)]
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    with running(server, daemon, env=environment(home, tmp_path / "dagster"), cwd=tmp_path):
        assert wait_for_status(home, "acme_20250106.csv", 90)[0] == "succeeded"
        seconds = onboard(home, "newco")
    print(f"code server and daemon: onboarding {seconds:.1f} s")
    assert seconds <= ONBOARDING_SECONDS
