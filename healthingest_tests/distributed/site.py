"""One installation whose runs are taken to many machines: Dagster's parts apart, and deaths in the middle of a run.

A machine here is a process and all its children; test_ray.py gives each a network of its own besides.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import yaml

from healthingest.platform import Platform
from healthingest_tests.conftest import install
from healthingest_tests.distributed.crowd import CONFIGS
from healthingest_tests.servers import BIN, environment, family, free_port, start, stop

LOCATION = "healthingest"
#: The step that writes silver: a run that is in it has begun and not ended.
STEP = "process_deliveries"
_SECONDS = 400


@dataclass
class Site:
    """An installation, and what its processes are started with."""

    home: Platform
    folder: Path
    env: dict[str, str]
    #: Where the code server listens.
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)

    @property
    def dagster_home(self) -> Path:
        return Path(self.env["DAGSTER_HOME"])

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.dagster_home))

    @contextmanager
    def parts(self) -> Iterator[None]:
        """Run the code server and the daemon, each a process of its own."""
        workspace = self.folder / "workspace.yaml"
        at = {"host": self.host, "port": self.port, "location_name": LOCATION}
        workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": at}]}))
        code = ["dagster", "code-server", "start", "-m", "healthingest.definitions", "-h", self.host]
        code += ["-p", str(self.port), "--location-name", LOCATION]
        started = [start(code, env=self.env, cwd=self.folder)]
        try:
            started.append(start(["dagster-daemon", "run", "-w", str(workspace)], env=self.env, cwd=self.folder))
            yield
        finally:
            stop(*started)

    def said(self) -> str:
        """The end of what all processes printed, for a test that fails."""
        return (self.folder / "servers.log").read_text(errors="replace")[-5000:]


def site(folder: Path, settings: str) -> Site:
    """Make an installation of all clients below a folder, with shipped settings whose variables are set."""
    home = install(folder, CONFIGS)
    env = environment(home, folder / "dagster", settings)
    # Celery and Ray start `celery` and `dagster` by their names, as the shipped units do.
    return Site(home, folder, env | {"PATH": f"{BIN}:{env['PATH']}"})


def tell(instance: dg.DagsterInstance) -> None:
    """Print what became of each run, and when (s after the first was made)."""
    records = sorted(instance.get_run_records(), key=lambda record: record.create_timestamp)
    first = records[0].create_timestamp.timestamp()
    for record in records:
        run, spans = record.dagster_run, [record.create_timestamp.timestamp(), record.start_time, record.end_time]
        when = "  ".join(f"{at - first:6.1f}" if at else "     -" for at in spans)
        again = run.parent_run_id[:8] if run.parent_run_id else ""
        print(run.run_id[:8], when, run.status.name, run.tags.get("dagster/partition", run.job_name), again)


def leaves(pid: int) -> list[int]:
    """The processes below one that have no children: of a worker, those of its runs."""
    below = family(pid)[1:]
    return [at for at in below if family(at) == [at]]


def send(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to processes that may be gone."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_in_the_middle_of_a_run(
    instance: dg.DagsterInstance, machines: Sequence[Callable[[], list[int]]]
) -> tuple[str, int]:
    """Kill the processes of a machine while one of them is at work on a file.

    They are stopped first, so that the run cannot end between the look at it and the kill.

    Args:
        instance: where the runs are.
        machines: for each that may die, what tells its processes.

    Returns:
        The run that died, and which of the machines did.
    """
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        for run_id, pid in at_work(instance):
            for number, pids in enumerate(machines):
                if pid not in (frozen := pids()):
                    continue
                send(frozen, signal.SIGSTOP)
                if (run_id, pid) in at_work(instance):
                    send(frozen, signal.SIGKILL)
                    send(pids(), signal.SIGKILL)
                    return run_id, number
                send(frozen, signal.SIGCONT)
        time.sleep(0.05)
    tell(instance)
    raise AssertionError(f"no run was at work there within {_SECONDS} s")


def wait_for_work(instance: dg.DagsterInstance) -> list[str]:
    """Return once runs are within the step that writes silver, and which."""
    deadline = time.monotonic() + _SECONDS
    while not (found := [run_id for run_id, _ in at_work(instance)]):
        assert time.monotonic() < deadline, f"no run was at work within {_SECONDS} s"
        time.sleep(0.05)
    return found


def at_work(instance: dg.DagsterInstance) -> list[tuple[str, int]]:
    """Runs within the step that writes silver, and the processes that do."""
    found = []
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event]
        began = [e.event_type for e in events if e.step_key == STEP]
        ended = {dg.DagsterEventType.STEP_SUCCESS, dg.DagsterEventType.STEP_FAILURE} & set(began)
        pids = [e.engine_event_data.metadata["pid"].value for e in events if _names_a_process(e)]
        if began and not ended and pids:
            found.append((run.run_id, int(str(pids[-1]))))
    return found


def _names_a_process(event: dg.DagsterEvent) -> bool:
    return event.event_type == dg.DagsterEventType.ENGINE_EVENT and "pid" in event.engine_event_data.metadata
