"""What is measured: each workload makes its files, brings every contender's table into its state, and loads in turns.

Each load is a process of its own, imports included; of several runs the one with the least wall time counts.
"""

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.measure import Measured, child


@dataclass(frozen=True)
class Row:
    """One contender in one workload."""

    contender: str
    wall: float
    cpu: float
    rss_mib: float
    rows_in: int
    rejected: int
    rows_out: int | None
    lacks: str
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Task:
    """Where and how much: the folder, the environment of children, records of a file, runs of each load."""

    root: Path
    env: dict[str, str]
    size: int
    runs: int
    contenders: Sequence[Contender]
    #: Files of the workload of many files.
    files: int
    #: Contender -> interpreter of the virtual environment that it has to itself.
    pythons: Mapping[str, str] = field(default_factory=dict)
    #: Told what is going on.
    on_step: Callable[[str], None] = lambda _: None


@dataclass(frozen=True)
class Workload:
    """Tables are filled with `before`, one load each; what is measured is loading `then`, in one process."""

    name: str
    title: str
    then: Callable[[Task], list[dict[str, int]]]
    before: Callable[[Task], list[dict[str, int]]] = lambda _: []
    #: Contenders that take part; all unless named.
    only: tuple[str, ...] = ()
    notes: str = field(default="")


def _file(task: Task, **more: int) -> list[dict[str, int]]:
    return [{"records": task.size, "day": 1, "bad_in": 50, "changed_in": 10, "start": 0} | more]


def _first(task: Task) -> list[dict[str, int]]:
    return _file(task)


def _grown(times: int) -> Callable[[Task], list[dict[str, int]]]:
    return lambda task: [_file(task, day=day + 1, start=day * task.size)[0] for day in range(times)]


def _many(task: Task) -> list[dict[str, int]]:
    return [_file(task, records=1000, day=day + 1, start=20 * day)[0] for day in range(task.files)]


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("first", "First load", _first),
        Workload("second-10", "Second day, 10 % changed", lambda t: _file(t, day=2), _first),
        Workload("second-100", "Second day, 100 % changed", lambda t: _file(t, day=2, changed_in=1), _first),
        Workload("bad-50", "First load, 50 % bad records", lambda t: _file(t, bad_in=2)),
        Workload("tenfold", "First load, ten times the records", lambda t: _file(t, records=10 * t.size)),
        Workload(
            "grown-1", "Daily file, 10 % changed, after one such file: silver of one size",
            lambda t: _file(t, day=30), _grown(1), ("healthingest", "floe"),
        ),
        Workload(
            "grown-20", "The same daily file, silver of twenty times the size",
            lambda t: _file(t, day=30), _grown(20), ("healthingest", "floe"),
        ),
        Workload("files", "Many files of 1,000 records", _many),
    )
}  # fmt: skip


def run(task: Task, workload: Workload) -> Iterator[Row]:
    """Measure a workload; one row per contender, in the order in which they are named."""
    part = [c for c in task.contenders if not workload.only or c.name in workload.only]
    before, then = workload.before(task), workload.then(task)
    for contender in part:
        for number, plan in enumerate(before):
            task.on_step(f"{contender.name}: filling the table, {number + 1} of {len(before)}")
            _load(task, contender, _state(task, contender), [_made(task, plan, contender)])
    took: dict[str, list[tuple[Measured, int | None]]] = {contender.name: [] for contender in part}
    for number in range(task.runs):
        for contender in part:
            task.on_step(f"{contender.name}: run {number + 1} of {task.runs}")
            took[contender.name].append(_run(task, contender, then))
    for contender in part:
        shutil.rmtree(_state(task, contender))
        best, rows_out = min(took[contender.name], key=lambda one: one[0].wall)
        walls = tuple(round(one.wall, 2) for one, _ in took[contender.name])
        figures = (best.wall, best.cpu, best.rss_mib, best.said["rows_in"], best.said["rejected"])
        yield Row(contender.name, *figures, rows_out, contender.lacks, walls)


def _run(task: Task, contender: Contender, then: list[dict[str, int]]) -> tuple[Measured, int | None]:
    work = task.root / "work"
    shutil.copytree(_state(task, contender), work)
    try:
        measured = _load(task, contender, work, [_made(task, plan, contender) for plan in then])
        if not contender.table:
            return measured, None
        return measured, child(["-m", "benchmarks.contenders", contender.name, str(work)], task.env).said["rows_out"]
    finally:
        shutil.rmtree(work)


def _state(task: Task, contender: Contender) -> Path:
    folder = task.root / "state" / contender.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _load(task: Task, contender: Contender, folder: Path, files: list[Path]) -> Measured:
    contender.land(folder, files)
    words = ["-m", "benchmarks.contenders", contender.name, str(folder), *map(str, files)]
    return child(words, task.env, task.pythons.get(contender.name, sys.executable))


def _made(task: Task, plan: dict[str, int], contender: Contender) -> Path:
    """The generated file, made once; the same arguments give the same bytes."""
    named: dict[str, Any] = {"records": 0, "day": 0, "bad_in": 0, "changed_in": 0, "start": 0} | plan
    folder = task.root / "files" / "-".join([*map(str, named.values()), str(int(contender.malformed))])
    from datetime import date, timedelta

    file = folder / f"acme_{date(2025, 1, 5) + timedelta(days=named['day']):%Y%m%d}.csv"
    if not file.exists():
        folder.mkdir(parents=True)
        words = [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]
        words += [] if contender.malformed else ["--no-malformed"]
        child(["-m", "benchmarks.generate", *words, "--out", str(file)], task.env)
    return file
