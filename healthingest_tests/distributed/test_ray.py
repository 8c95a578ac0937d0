"""Runs on Ray's nodes: sixteen files give what one process makes of them, whatever node dies in the middle of a run."""

import json
import shlex
import shutil
import string
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest

from healthingest_tests.distributed.crowd import (
    embedded,
    is_as_if_one_process_had_done_it,
    land,
    runs_of_one_client_followed_each_other,
    wait_for_rows,
    wait_for_runs,
)
from healthingest_tests.distributed.machines import Machine, machines
from healthingest_tests.distributed.postgres import postgres
from healthingest_tests.distributed.site import Site, at_work, kill_in_the_middle_of_a_run, site, tell, wait_for_work
from healthingest_tests.servers import REPO, start

pytest.importorskip("dagster_ray")
pytestmark = pytest.mark.server
_START_SECONDS = 180
_ALWAYS = ["sh", "-c", 'while :; do "$@"; sleep 5; done', "sh"]


@dataclass
class Cluster:
    """An installation, and the machines of Ray that share its files."""

    site: Site
    head: Machine
    nodes: list[Machine]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, machine: Machine) -> None:
        """Start Ray on a machine by the command of its shipped unit, again whenever it ends, as the unit says."""
        unit = REPO / "deploy" / "systemd" / f"healthingest-ray-{'head' if machine == self.head else 'node'}.service"
        (said,) = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
        values = {"RAY_NODE_ADDRESS": machine.address, "RAY_HEAD_ADDRESS": f"{self.head.address}:6379"}
        ray, *words = shlex.split(string.Template(said.partition("=")[2]).substitute(values, RAY_NODE_CPUS="2"))
        command = [Path(ray).name, *words]
        self.started.append(start(command, env=self.site.env, cwd=self.site.folder, inside=[*machine.inside, *_ALWAYS]))

    def alive(self) -> int:
        """How many machines the head knows and believes alive."""
        try:
            with urllib.request.urlopen(f"http://{self.head.address}:8265/nodes?view=summary", timeout=5) as answer:
                found = json.load(answer)["data"]["summary"]
        except OSError:
            return 0
        return sum(node["raylet"].get("state") == "ALIVE" for node in found)

    def busy_node(self, instance: dg.DagsterInstance) -> Machine:
        """One where a run is within the step that writes silver."""
        while True:
            wait_for_work(instance)
            busy = {pid for _, pid in at_work(instance)}
            for node in self.nodes:
                if busy & set(node.pids()):
                    return node

    def wait_for(self, number: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while (have := self.alive()) != number:
            assert time.monotonic() < deadline, f"{have} of {number} machines are there\n{self.site.said()}"
            time.sleep(0.5)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all machines see: each has a /tmp of its own."""
    made = Path(tempfile.mkdtemp(prefix="healthingest-ray-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head and two nodes, which reach Postgres by the bridge, with the shipped settings for Ray."""
    with machines(3) as (bridge, (head, *nodes)), postgres(bridge) as database:
        monkeypatch.setenv("DAGSTER_PG_URL", database.dagster_database())
        monkeypatch.setenv("HEALTHINGEST_RAY_ADDRESS", f"http://{head.address}:8265")
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        made = Cluster(site(folder, "distributed/dagster.ray.yaml"), head, nodes)
        _shorten(made.site.dagster_home / "dagster.yaml")
        began = time.monotonic()
        made.start(head)
        made.wait_for(1)
        print(f"head after {time.monotonic() - began:.0f} s")
        for node in nodes:
            made.start(node)
        made.wait_for(3)
        print(f"both nodes after {time.monotonic() - began:.0f} s")
        try:
            yield made
        finally:
            for machine in (*nodes, head):
                machine.kill()
            for process in made.started:
                process.wait(20)


def _shorten(settings: Path) -> None:
    """What died before it began is noticed sooner than by the shipped settings, so that the test ends."""
    shipped = settings.read_text()
    assert "start_timeout_seconds: 900" in shipped
    settings.write_text(shipped.replace("start_timeout_seconds: 900", "start_timeout_seconds: 180"))


def test_a_node_that_is_killed_in_the_middle_of_a_run_loses_and_doubles_nothing(cluster: Cluster, folder: Path) -> None:
    at = cluster.site
    land(at.home)
    with at.parts(), at.instance() as instance:
        began = time.monotonic()
        died, number = kill_in_the_middle_of_a_run(instance, [node.pids for node in cluster.nodes])
        cluster.nodes[number].kill()
        killed = time.monotonic()
        wait_for_rows(at.home, 16, 900)
        print(f"16 files in {time.monotonic() - began:.0f} s, {time.monotonic() - killed:.0f} s after the kill")
        wait_for_runs(instance, 200)
        tell(instance)
        # The same run went on at the other node, and did not begin anew.
        assert instance.count_resume_run_attempts(died) == 1
        assert instance.get_run_by_id(died).status == dg.DagsterRunStatus.SUCCESS
        assert runs_of_one_client_followed_each_other(instance) >= 16
    is_as_if_one_process_had_done_it(at.home, embedded(folder / "other", at.home.places.keyring))


def test_a_head_that_dies_and_comes_back_without_memory_loses_and_doubles_nothing(
    cluster: Cluster, folder: Path
) -> None:
    at = cluster.site
    land(at.home)
    with at.parts(), at.instance() as instance:
        wait_for_rows(at.home, 3, 600)
        busy = wait_for_work(instance)
        cluster.head.kill()
        killed = time.monotonic()
        time.sleep(20)  # runs are due meanwhile
        tell(instance)
        cluster.start(cluster.head)
        wait_for_rows(at.home, 16, 900)
        print(f"16 files {time.monotonic() - killed:.0f} s after the kill, {len(busy)} runs being at work")
        wait_for_runs(instance, 300)
        tell(instance)
        assert runs_of_one_client_followed_each_other(instance) >= 16
    is_as_if_one_process_had_done_it(at.home, embedded(folder / "other", at.home.places.keyring))


def test_a_node_that_is_cut_off_but_lives_and_one_that_goes_on_in_its_place_come_to_the_same(
    cluster: Cluster, folder: Path
) -> None:
    at = cluster.site
    land(at.home)
    with at.parts(), at.instance() as instance:
        wait_for_rows(at.home, 2, 600)
        lost = cluster.busy_node(instance)
        lost.cut()
        cut = time.monotonic()
        wait_for_rows(at.home, 16, 900)
        wait_for_runs(instance, 400)
        print(f"16 files {time.monotonic() - cut:.0f} s after the cut; {len(lost.pids())} processes are left there")
        lost.mend()
        cluster.wait_for(3)
        tell(instance)
        assert runs_of_one_client_followed_each_other(instance) >= 16
    is_as_if_one_process_had_done_it(at.home, embedded(folder / "other", at.home.places.keyring))
