"""The `healthingest` command: every command readable for people, `--json` for programs, one line for an error.

What belongs here: arguments, exit codes (0 success, 1 a finding or failure, 2 wrong usage). Not: work, tables (`show`).
Imports are made where they are used, so that `--help` answers at once.
"""

import os
import re
import sys
from datetime import timedelta
from typing import Annotated

import typer
from typer.exceptions import Abort, TyperException

from healthingest.alerts_cli import alerts_app
from healthingest.command import Json, command_of
from healthingest.desk_cli import ageing_command, discard_records, feedback_command, reopen_records
from healthingest.erase_cli import erase_app
from healthingest.errors import UsageError
from healthingest.explain_cli import explain_command
from healthingest.export_cli import export_command
from healthingest.hardening import harden
from healthingest.ingest_cli import ingest_command
from healthingest.keys_cli import audit_app, keys_app
from healthingest.marts_cli import marts_app
from healthingest.migrate_cli import migrate_app
from healthingest.proposals_cli import schema_app
from healthingest.quarantine_cli import quarantine_app
from healthingest.release_cli import discard_command, release_command
from healthingest.repair_cli import replay_command
from healthingest.revert_cli import revert_command
from healthingest.show import print_json, print_status, print_table
from healthingest.silver_cli import silver_app
from healthingest.storage_cli import storage_app

app = typer.Typer(
    help="Member files in, one protected and fully accounted silver table out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(erase_app, name="erase")
app.add_typer(alerts_app, name="alerts")
app.add_typer(marts_app, name="marts")
schema_app.add_typer(migrate_app, name="migrate")
app.add_typer(schema_app, name="schema")
app.add_typer(silver_app, name="silver")
app.add_typer(storage_app, name="storage")
command = command_of(app)
of_quarantine = command_of(quarantine_app)
of_quarantine("replay")(replay_command)
of_quarantine("discard")(discard_records)
of_quarantine("reopen")(reopen_records)
of_quarantine("ageing")(ageing_command)
of_quarantine("feedback")(feedback_command)
command("ingest")(ingest_command)
command("explain")(explain_command)
command("export")(export_command)
command("release")(release_command)
command("discard")(discard_command)
command("revert")(revert_command)


def main() -> None:
    """Run the command with nobody else able to read what it writes or holds."""
    harden()
    # Before polars is loaded: its allocator gives memory back early, so that the merge can have what reading had; and
    # each of its arenas does so only while it is in use.
    os.environ.setdefault("_RJEM_MALLOC_CONF", f"dirty_decay_ms:300,muzzy_decay_ms:0,narenas:{os.cpu_count() or 1}")
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
    """Draw the pages anew: the overview, one per client, and one per delivery behind it. Counts only, no values.

    Example: healthingest report acme
    """
    from healthingest.alerting.watch import Watch
    from healthingest.platform import Platform
    from healthingest.report.write import write_report

    platform = Platform.open()
    overview = str(Watch.over(platform.places).write_overview())
    known = platform.lake.audit.frame(["client_id"])["client_id"].drop_nulls().unique().sort().to_list()
    pages = {client_id: str(write_report(platform, client_id)) for client_id in client or known}
    if as_json:
        print_json({"reports": pages, "overview": overview})
    else:
        typer.echo(overview)
        for page in pages.values():
            typer.echo(page)
        if not pages:
            typer.echo("Nothing has been delivered yet; there is nothing to report.")
    return 0


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
