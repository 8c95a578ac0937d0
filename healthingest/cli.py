"""The `healthingest` command: every command readable for people, `--json` for programs, one line for an error.

What belongs here: arguments, exit codes (0 success, 1 a finding or failure, 2 wrong usage). Not: work, tables (`show`).
Imports are made where they are used, so that `--help` answers at once.
"""

import os
import resource
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import Abort, TyperException

from healthingest.command import Json, command_of, system_sentence
from healthingest.errors import HealthingestError, UsageError, scrubbed, unexpected
from healthingest.quarantine_cli import quarantine_app
from healthingest.show import outcome_row, print_json, print_outcomes, print_status, print_table

if TYPE_CHECKING:
    from healthingest.model import Outcome
    from healthingest.places import Places
    from healthingest.platform import Platform

app = typer.Typer(
    help="Member files in, one protected and fully accounted silver table out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
keys_app = typer.Typer(help="The keyring: make it, look at it. Key material is never shown.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(quarantine_app, name="quarantine")
command, keys_command = command_of(app), command_of(keys_app)


class Profile(StrEnum):
    """What an export shows."""

    operations = "operations"


def main() -> None:
    """Run the command with nobody else able to read what it writes, and no core dump of what it holds."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        sys.exit(app(standalone_mode=False))
    except TyperException as error:  # wrong usage
        in_words = getattr(error, "format_message", None)
        said = in_words() if in_words else str(error)
        if said.startswith("Usage:") or not said:  # no command at all: typer has the help as its message
            app(["--help"], standalone_mode=False)
        else:
            typer.echo(f"healthingest: {said.rstrip('.')}. Add --help to see what it takes.", err=True)
        sys.exit(2)
    except Abort:
        typer.echo("healthingest: Stopped.", err=True)
        sys.exit(130)


# --- ingest ------------------------------------------------------------------------------------------------------


@command("ingest")
def ingest_command(
    files: Annotated[list[str] | None, typer.Argument(help="Paths, or names in the landing zone.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything that has landed.")] = False,
    as_json: Json = False,
) -> int:
    """Bring files to silver without the Dagster daemon; same path, same result.

    Example: healthingest ingest acme_20250106.csv
    """
    if bool(files) == all_:
        raise UsageError("Name files to ingest, or say --all.")
    from healthingest.places import Places
    from healthingest.platform import Platform

    places = Places.from_env()
    paths = _landed(places) if all_ else _named(places, files or [])
    platform = Platform.open(places)
    outcomes, problems = _ingest_paths(platform, paths)
    _report(platform, outcomes)
    if as_json:
        print_json({"files": [outcome_row(o) for o in outcomes] + problems})
    else:
        print_outcomes(outcomes, problems, platform)
    broken = bool(platform.clients.problems) and all_
    return 1 if problems or broken or any(o.status != "succeeded" for o in outcomes) else 0


def _landed(places: "Places") -> list[Path]:
    if not places.landing.is_dir():
        raise UsageError(f"There is no landing zone at {places.landing}; make it, or set HEALTHINGEST_HOME.")
    from healthingest.landing.discovery import list_landing

    return [landed.path for landed in list_landing(places.landing)]


def _named(places: "Places", files: list[str]) -> list[Path]:
    paths = []
    for name in files:
        path = Path(name)
        path = path if path.exists() else places.landing / name
        if not path.is_file():
            raise UsageError(f"There is no file {name!r}, here or in {places.landing}.")
        paths.append(path)
    return paths


def _ingest_paths(platform: "Platform", paths: list[Path]) -> "tuple[list[Outcome], list[dict[str, Any]]]":
    """Ingest in the order of the sequence, with a progress bar where a person is watching."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from healthingest.landing.discovery import look, settle
    from healthingest.model import Outcome

    complete = {f.path for f in settle([f for f in map(look, paths) if f is not None])}
    outcomes: list[Outcome] = []
    problems: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("ingest", total=len(paths))
        for path in sorted(paths, key=lambda p: _order(platform, p)):
            if path in complete:
                done = _ingest_one(platform, path, lambda text: progress.update(task, description=text))
            else:
                done = _problem(path, "waiting", "The file is still being written, or is hidden or a link.")
            if isinstance(done, Outcome):
                outcomes.append(done)
            else:
                problems.append(done)
            progress.advance(task)
    return outcomes, problems


def _ingest_one(platform: "Platform", path: Path, show: Callable[[str], None]) -> "Outcome | dict[str, Any]":
    """One file's outcome, or why it has none; an error with one file must not keep the others out."""
    from healthingest.errors import UnroutableError
    from healthingest.ingest import ingest, record_unroutable, register

    run_id, name = f"cli-{os.getpid()}", _safe(path.name)
    show(f"{name}: register")
    try:
        try:
            delivery = register(platform, path)
        except UnroutableError as error:
            if broken := platform.waits_for(path.name):
                return _problem(path, "waiting", f"Its client's config is broken. {broken}")
            record_unroutable(platform, path, error, run_id=run_id)
            return _problem(path, "unroutable", str(error))
        return ingest(platform, delivery, run_id=run_id, on_stage=lambda stage: show(f"{name}: {stage}"))
    except HealthingestError as error:
        return _problem(path, "error", str(error))
    except OSError as error:
        return _problem(path, "error", system_sentence(error))
    except BaseException as error:  # its text may hold a record's values
        if not unexpected(error):
            raise
        return _problem(path, "error", scrubbed(error))


def _safe(name: str) -> str:
    from healthingest.landing.names import printable

    return printable(name)


def _order(platform: "Platform", path: Path) -> tuple[str, str, str, str]:
    from healthingest.errors import UnroutableError

    try:
        name = platform.route(path.name)
    except UnroutableError:
        return "", "", "", path.name
    return name.client_id, name.creation_date.isoformat(), name.suffix, path.name


def _problem(path: Path, status: str, message: str) -> dict[str, Any]:
    return {"file": _safe(path.name), "status": status, "message": message}


def _report(platform: "Platform", outcomes: "list[Outcome]") -> None:
    """Tell Dagster, where there is one; the ingest itself is done by then and must not be lost."""
    if not os.environ.get("DAGSTER_HOME") or not outcomes:
        return
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    try:
        from healthingest.orchestration.report import report_to_home

        report_to_home(platform, outcomes)
    except Exception as error:  # noqa: BLE001 - whatever Dagster's storage raises
        told = f"The files are ingested, but Dagster was not told ({type(error).__name__}); is DAGSTER_HOME right?"
        typer.echo(f"healthingest: {told}", err=True)


# --- status ------------------------------------------------------------------------------------------------------


@command("status")
def status_command(
    wait: Annotated[
        float, typer.Option(min=0, help="Wait up to so many seconds until every landed file is decided.")
    ] = 0,
    as_json: Json = False,
) -> int:
    """What has landed, what became of it, and when each client delivered last.

    Example: healthingest status --wait 60
    """
    from healthingest.platform import Platform
    from healthingest.status import wait_until_decided

    platform = Platform.open()
    state, decided = wait_until_decided(platform, wait)
    if as_json:
        print_json(state)
    else:
        print_status(state)
    if wait and not decided:
        typer.echo(f"healthingest: Not every landed file was decided within {wait:g} s.", err=True)
        return 1
    return 1 if state["problems"] else 0


# --- export ------------------------------------------------------------------------------------------------------


@command("export")
def export_command(
    out: Annotated[Path, typer.Option(help="File to write: .csv or .parquet. Mode 0600.")],
    profile: Annotated[Profile, typer.Option(help="What it shows.")] = Profile.operations,
    client: Annotated[list[str] | None, typer.Option(help="Only this client; may be given again.")] = None,
    as_json: Json = False,
) -> int:
    """Write current members with their values, for those who hold the keys.

    Example: healthingest export --profile operations --out members.csv --client acme
    """
    from healthingest.lake.export import check_target, export_frame, write_private
    from healthingest.places import Places
    from healthingest.platform import Platform

    check_target(Places.from_env(), out)
    platform = Platform.open()
    frame = export_frame(platform, profile=profile.value, clients=client)
    write_private(frame, out)
    if as_json:
        print_json({"file": str(out), "members": frame.height, "columns": frame.columns, "profile": profile.value})
    else:
        typer.echo(f"{frame.height} members written to {out}.")
    return 0


# --- report ------------------------------------------------------------------------------------------------------


@command("report")
def report_command(
    client: Annotated[list[str] | None, typer.Argument(help="Clients. None: all that ever delivered.")] = None,
    as_json: Json = False,
) -> int:
    """Draw the quality reports anew: a page per client, with one per delivery behind it. Counts only, no values.

    Example: healthingest report acme
    """
    from healthingest.platform import Platform
    from healthingest.report.write import write_report

    platform = Platform.open()
    known = platform.lake.audit.frame(["client_id"])["client_id"].drop_nulls().unique().sort().to_list()
    pages = {client_id: str(write_report(platform, client_id)) for client_id in client or known}
    if as_json:
        print_json({"reports": pages})
    else:
        for page in pages.values():
            typer.echo(page)
        if not pages:
            typer.echo("Nothing has been delivered yet; there is nothing to report.")
    return 0


# --- keys --------------------------------------------------------------------------------------------------------


@keys_command("init")
def keys_init_command(as_json: Json = False) -> int:
    """Make the keyring, once. Back it up: without it the protected values cannot be read.

    Example: HEALTHINGEST_ENV=prod healthingest keys init
    """
    from healthingest.places import Places
    from healthingest.privacy.keyring import init_keyring

    path = init_keyring(Places.from_env())
    if as_json:
        print_json({"path": str(path)})
    else:
        typer.echo(f"A keyring was made at {path}. Back it up now, apart from the data.")
    return 0


@keys_command("status")
def keys_status_command(as_json: Json = False) -> int:
    """Where the keyring is, its id, its age and what it can open.

    Example: healthingest keys status --json
    """
    from healthingest.places import Places
    from healthingest.privacy.keyring import keyring_status

    state = keyring_status(Places.from_env())
    if as_json:
        print_json(state)
    else:
        for name, value in state.items():
            typer.echo(f"{name:14} {', '.join(value) if isinstance(value, list) else value}")
    return 1 if state["missing"] else 0


# --- doctor ------------------------------------------------------------------------------------------------------


@command("doctor")
def doctor_command(as_json: Json = False) -> int:
    """Look at everything that must be right, and say what to do where it is not.

    Example: healthingest doctor
    """
    from healthingest.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [finding._asdict() for finding in findings]})
    else:
        rows = [[f.state, f.subject, f.text] for f in findings]
        print_table("", ["", "what", "finding"], rows)
    return 1 if any(finding.state == "fail" for finding in findings) else 0
