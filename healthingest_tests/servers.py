"""Real Dagster processes for tests: started on free ports, and gone with everything they started at the end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg

from healthingest.platform import Platform

REPO = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
_START_SECONDS = 90
_LOG = "servers.log"


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Platform, dagster_home: Path, settings: str = "dagster.yaml") -> dict[str, str]:
    """What a Dagster process of this installation needs, with a shipped dagster.yaml; variables it names must be set.

    The databases are made here, as `dagster instance migrate` does: processes that start together make them twice.
    """
    dagster_home.mkdir(exist_ok=True)
    (dagster_home / "dagster.yaml").write_text((REPO / "deploy" / settings).read_text())
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        instance.get_runs_count()
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return clean | {
        "HEALTHINGEST_HOME": str(home.places.home),
        "HEALTHINGEST_KEYRING": str(home.places.keyring),
        "HEALTHINGEST_INPUT": str(home.places.landing),
        "HEALTHINGEST_OUTPUT": str(home.places.output),
        "DAGSTER_HOME": str(dagster_home),
        "DAGSTER_DISABLE_TELEMETRY": "1",
    }


@contextlib.contextmanager
def running(*commands: list[str], env: dict[str, str], cwd: Path) -> Iterator[Path]:
    """Run commands of the virtual environment side by side; yields their common log."""
    started: list[subprocess.Popen[bytes]] = []
    try:
        started += (start(command, env=env, cwd=cwd) for command in commands)
        yield cwd / _LOG
    finally:
        stop(*started)


def start(command: list[str], *, env: dict[str, str], cwd: Path, inside: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a command of the virtual environment as the leader of a process group; `inside`: by way of a command."""
    name, *words = command
    # Default signals: under a shell's `&` INT is ignored, and Dagster then ignores TERM as well.
    whole = [*inside, "env", "--default-signal=INT,TERM", str(BIN / name), *words]
    with (cwd / _LOG).open("ab") as out:
        return subprocess.Popen(whole, env=env, cwd=cwd, stdout=out, stderr=out, start_new_session=True)


def stop(*started: subprocess.Popen[bytes]) -> None:
    """End processes and all of their groups: asked first, killed after 15 s."""
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    for process in started:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its whole group, as a machine that loses its power does."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait_for_http(port: int, path: str = "/server_info") -> None:
    """Return once the web server answers."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return


def wait_for_status(home: Platform, file_name: str, seconds: float = 60) -> tuple[str, float]:
    """The status in the file's audit row, and the seconds until it was there; fails after `seconds`."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        rows = home.lake.audit.frame(["file_name", "status"])
        found = rows.filter(file_name=file_name)["status"].to_list()
        if found and found != ["unroutable"]:
            return found[0], time.monotonic() - start
        time.sleep(0.2)
    raise AssertionError(f"{file_name} has no audit row after {seconds} s")


def family(pid: int) -> list[int]:
    """A process and all its children and theirs."""
    found = [pid]
    for at in found:
        for task in Path(f"/proc/{at}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found
