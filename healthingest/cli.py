"""The `healthingest` command: every command readable for people, `--json` for programs, one line for an error.

What belongs here: arguments, exit codes (0 success, 1 a finding or failure, 2 wrong usage). Not: work, tables (`show`).
Imports are made where they are used, so that `--help` answers at once.
"""

import os
import re
import resource
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from healthingest.command import Json, command_of
from healthingest.errors import UsageError
from healthingest.ingest_cli import ingest_command
from healthingest.quarantine_cli import quarantine_app
from healthingest.show import print_json, print_status, print_table

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
command("ingest")(ingest_command)


class Profile(StrEnum):
    """What an export shows."""

    operations = "operations"


def main() -> None:
    """Run the command with nobody else able to read what it writes, and no core dump of what it holds."""
    os.umask(0o077)
    # Before polars is loaded: its allocator gives memory back early, so that the merge can have what reading had.
    os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:100,muzzy_decay_ms:100")
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


# --- maintain ----------------------------------------------------------------------------------------------------


@command("maintain")
def maintain_command(
    keep: Annotated[str, typer.Option(help="How far back readers and the change feed may go: 7d or more.")] = "30d",
    events: Annotated[str, typer.Option(help="How long Dagster keeps runs that later ones have replaced.")] = "90d",
    as_json: Json = False,
) -> int:
    """Compact tables, delete what nothing needs any more, put the vault's parts together, clean the landing zone.

    Runs beside ingests, and only once at a time. The schedule `maintenance_daily` does the same.

    Example: healthingest maintain --keep 30d
    """
    from healthingest.maintain import maintain
    from healthingest.platform import Platform

    kept, events_kept = _days(keep, "--keep"), _days(events, "--events")
    steps = maintain(Platform.open(), keep=kept)
    if os.environ.get("DAGSTER_HOME"):
        os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
        from healthingest.orchestration.retention import forget_runs_at_home

        steps.append(forget_runs_at_home(events_kept))
    if as_json:
        print_json({"steps": [vars(step) for step in steps]})
    else:
        print_table("", ["step", "what was done"], [[step.name, step.text] for step in steps])
    return 0


def _days(text: str, option: str) -> timedelta:
    if not re.fullmatch(r"[0-9]{1,4}d", text):
        raise UsageError(f"{option} takes days, like 30d.")
    return timedelta(days=int(text[:-1]))


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
    from healthingest.privacy.keyring_file import init_keyring

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
    from healthingest.privacy.keyring_file import keyring_status

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
