"""One small file through the running system: seconds from its drop to silver, and the CPU seconds of its run.

`dagster dev` with the shipped settings, idle but for its sensor and daemon, whose share of CPU is taken off. A file is
in silver once its audit row is there; that is looked for every 0.1 s.

Example: python -m benchmarks.system --files 6
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import REPO, child, install, machine_line, workplace

_READY_SECONDS, _IDLE_SECONDS = 120.0, 15.0
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Start the system, drop files one after the other, print a line each and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=6)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    arguments = parser.parse_args()
    os.umask(0o077)
    with workplace() as root:
        env = install(root)
        with _dagster(root, env) as system:
            measured = _drops(root, env, arguments.files, arguments.records, lambda: _cpu(system.pid))
    walls, cpus = (sorted(part) for part in zip(*measured, strict=True))
    result = {"machine": machine_line(), "seconds": walls, "cpu_seconds": cpus}
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(f"{machine_line()}\n{arguments.files} files of {arguments.records} records, one after the other")
    for name, values in (("drop to silver, s", walls), ("CPU of a run, s", cpus)):
        print(f"{name:<20} median {values[len(values) // 2]:.1f}, {values[0]:.1f} to {values[-1]:.1f}")
    return 0


@contextmanager
def _dagster(root: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    (root / "dagster").mkdir()
    (root / "dagster" / "dagster.yaml").write_text((REPO / "deploy" / "dagster.yaml").read_text())
    env |= {"DAGSTER_HOME": str(root / "dagster"), "DAGSTER_DISABLE_TELEMETRY": "1"}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        sys.executable,
        "-m",
        "dagster",
        "dev",
        "-w",
        str(REPO / "workspace.yaml"),
        "-h",
        "127.0.0.1",
        "-p",
        port,
    ]
    with (root / "dagster.log").open("wb") as log:
        system = subprocess.Popen(command, env=env, cwd=root, stdout=log, stderr=log, start_new_session=True)
        try:
            yield system
        finally:
            os.killpg(system.pid, signal.SIGTERM)
            try:
                system.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(system.pid, signal.SIGKILL)


def _drops(
    root: Path, env: dict[str, str], files: int, records: int, cpu: Callable[[], float]
) -> list[tuple[float, float]]:
    """Seconds and CPU seconds of each file; the first one, which waits for the system to start, does not count."""
    _drop(root, env, 1, records)
    start, before = time.perf_counter(), cpu()
    time.sleep(_IDLE_SECONDS)
    idle = (cpu() - before) / (time.perf_counter() - start)
    measured = []
    for number in range(2, files + 2):
        before, start = cpu(), time.perf_counter()
        wall = _drop(root, env, number, records)
        time.sleep(4)  # the run's process ends after its row is there
        took = cpu() - before - idle * (time.perf_counter() - start)
        measured.append((wall, took))
    return measured


def _drop(root: Path, env: dict[str, str], day: int, records: int) -> float:
    """Write a file aside, move it into the landing zone and wait for its audit row; seconds."""
    name = f"acme_202501{day + 5:02d}.csv"
    words = ["--records", str(records), "--day", str(day), "--out", str(root / name)]
    child(["-m", "benchmarks.generate", *words], env)
    audit = root / "home" / "output" / "checkpoint" / "audit"
    start = time.perf_counter()
    (root / name).rename(root / "home" / "input" / "raw" / name)
    known = len(list(audit.glob("*.parquet")))
    while len(list(audit.glob("*.parquet"))) == known:
        if time.perf_counter() - start > _READY_SECONDS:
            raise RuntimeError(f"{name} is not in silver after {_READY_SECONDS:.0f} s; see dagster.log")
        time.sleep(0.1)
    return time.perf_counter() - start


def _cpu(leader: int) -> float:
    """CPU seconds of a session's processes, and of their children that have ended."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == leader:
            total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


if __name__ == "__main__":
    sys.exit(main())
