"""`healthingest ingest`: landed files, everything that landed, or all of bronze, without the Dagster daemon."""

import multiprocessing as mp
import os
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from healthingest.command import Json
from healthingest.errors import UsageError
from healthingest.show import outcome_row, print_json, print_outcomes, print_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from healthingest.bulk import Done
    from healthingest.model import Outcome
    from healthingest.places import Places
    from healthingest.platform import Platform

    #: Says what is being worked on, and how many files are done.
    Show = Callable[[str, int], None]


def ingest_command(
    files: Annotated[list[str] | None, typer.Argument(help="Paths, or names in the landing zone.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything that has landed.")] = False,
    from_bronze: Annotated[
        bool, typer.Option("--from-bronze", help="Every delivery in bronze: builds again whatever table is gone.")
    ] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would happen; write nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Bring files to silver without the Dagster daemon; same path, same result.

    A run that is stopped may be started again: what is done is not done twice.

    Example: healthingest ingest acme_20250106.csv
    """
    if (bool(files), all_, from_bronze).count(True) != 1:
        raise UsageError("Name files to ingest, or say --all, or --from-bronze.")
    if plan and from_bronze:
        raise UsageError("--plan is for landed files; it does not go with --from-bronze.")
    from healthingest.places import Places
    from healthingest.platform import Platform

    places = Places.from_env()
    paths = [] if from_bronze else _landed(places) if all_ else _named(places, files or [])
    platform = Platform.open(places, whole=not from_bronze)
    if plan:
        return _plan(platform, paths, as_json=as_json)
    outcomes, problems = _ingest(platform, paths, from_bronze=from_bronze, left=all_)
    if as_json:
        print_json({"files": [outcome_row(o) for o in outcomes] + problems})
    else:
        print_outcomes(outcomes, problems, platform)
    broken = bool(platform.clients.problems) and not files
    return 1 if problems or broken or any(o.status != "succeeded" for o in outcomes) else 0


def _landed(places: "Places") -> list[Path]:
    if not places.landing.is_dir():
        raise UsageError(f"There is no landing zone at {places.landing}; make it, or set HEALTHINGEST_HOME.")
    from healthingest.landing.discovery import list_landing

    return [landed.path for landed in list_landing(places.landing)]


def _named(places: "Places", files: list[str]) -> list[Path]:
    from healthingest.storage.objects import place_of

    paths = []
    for name in files:
        path = Path(name)
        path = place_of(name) if "://" in name else path if path.exists() else places.landing / name
        if not path.is_file():
            raise UsageError(f"There is no file {name!r}, here or in {places.landing}.")
        paths.append(path)
    return paths


def _ingest(
    platform: "Platform", paths: list[Path], *, from_bronze: bool, left: bool
) -> "tuple[list[Outcome], list[dict[str, Any]]]":
    """Everything's outcome or problem, told to Dagster group by group, so that little is untold after a crash.

    `left`: also what somebody registered and died before deciding; its landed file may be gone.
    """
    from healthingest.bulk import Problem, ingest_bronze, ingest_paths, ingest_undecided

    run_id = f"cli-{os.getpid()}"
    outcomes: list[Outcome] = []
    problems: list[dict[str, Any]] = []
    tried: set[str] = set()
    total = len(list(platform.lake.bronze.all())) if from_bronze else len(paths)
    with telling(platform, total) as tell, progress("ingest", total) as show:

        def shown(text: str) -> None:
            show(text, 0)

        groups: Iterator[list[Done]] = (
            ingest_bronze(platform, run_id=run_id, on_stage=shown)
            if from_bronze
            else ingest_paths(platform, paths, run_id=run_id, on_stage=shown)
        )
        clients = platform.lake.bronze.clients() if left else []
        for group in chain(groups, ingest_undecided(platform, clients, tried, run_id=run_id, on_stage=shown)):
            ended = [done for done in group if not isinstance(done, Problem)]
            outcomes += ended
            problems += [vars(done) for done in group if isinstance(done, Problem)]
            tried |= {done.file for done in group if isinstance(done, Problem)}
            tell(ended)
            show("", len(group))
    return outcomes, problems


def _plan(platform: "Platform", paths: list[Path], *, as_json: bool) -> int:
    from healthingest.planning import by_client, plain, plan_paths

    with progress("plan", len(paths)) as show:
        planned = []
        for item in plan_paths(platform, paths, lambda name: show(name, 0)):
            planned.append(item)
            show("", 1)
    if as_json:
        print_json({"files": [plain(p) for p in planned], "clients": by_client(planned)})
    else:
        print_plan(planned, by_client(planned))
    return 1 if any(p.status not in {"succeeded", "done"} for p in planned) else 0


@contextmanager
def progress(what: str, total: int) -> "Iterator[Show]":
    """A progress bar where a person is watching."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=total)

        def show(text: str, done: int) -> None:
            bar.update(task, description=text or what, advance=done)

        yield show


@contextmanager
def telling(platform: "Platform", files: int) -> "Iterator[Callable[[list[Outcome]], None]]":
    """How to tell Dagster, where there is one, of what `files` files came to. The ingest itself is done by then.

    It is told in lots: opening its databases costs as much as telling a dozen files.
    """
    from healthingest.bulk import GROUP

    if not os.environ.get("DAGSTER_HOME"):
        yield lambda _outcomes: None
        return
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    lot: list[Outcome] = []
    with _teller(platform.places, beside=files >= 2 * GROUP) as tell:

        def add(outcomes: "list[Outcome]") -> None:
            lot.extend(outcomes)
            if len(lot) >= GROUP:
                tell(lot.copy())
                lot.clear()

        try:
            yield add
        finally:
            tell(lot)


@contextmanager
def _teller(places: "Places", *, beside: bool) -> "Iterator[Callable[[list[Outcome]], None]]":
    """How to tell of one lot; `beside`: in a process of its own, since it costs about as much as the ingest itself."""
    if not beside:
        yield lambda outcomes: _say_if(_tell(places, outcomes))
        return
    with ProcessPoolExecutor(1, mp_context=mp.get_context("spawn")) as pool:
        told: list[Future[str | None]] = []
        yield lambda outcomes: told.append(pool.submit(_tell, places, outcomes))
        problems = [problem for future in told if (problem := _result(future))]
    _say_if(problems[0] if problems else None)


def _tell(places: "Places", outcomes: "list[Outcome]") -> str | None:
    """Report outcomes to the instance of DAGSTER_HOME; what went wrong, if something did."""
    from healthingest.platform import Platform

    if not outcomes:
        return None
    try:
        from healthingest.orchestration.report import report_to_home

        report_to_home(Platform.open(places), outcomes)
    except Exception as error:  # noqa: BLE001 - whatever Dagster's storage raises
        return type(error).__name__
    return None


def _result(future: "Future[str | None]") -> str | None:
    try:
        return future.result()
    except Exception as error:  # noqa: BLE001 - the process may have been killed
        return type(error).__name__


def _say_if(problem: str | None) -> None:
    if problem:
        told = f"The files are ingested, but Dagster was not told ({problem}); is DAGSTER_HOME right?"
        typer.echo(f"healthingest: {told}", err=True)
