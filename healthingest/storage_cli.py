"""`healthingest storage`: where an installation's data and Dagster's history lie, and how they get elsewhere."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.errors import UsageError
from healthingest.landing.names import printable
from healthingest.show import print_json

if TYPE_CHECKING:
    from healthingest.relocate import Copied

storage_app = typer.Typer(
    help="Bring an installation to another place: its data to an object store, Dagster's history to Postgres.",
    no_args_is_help=True,
)
command = command_of(storage_app)


@command("copy")
def copy_command(
    target: Annotated[str, typer.Argument(help="The new output folder: a path, or s3://, az://, gs://.")],
    landing: Annotated[
        str | None, typer.Option(help="The new landing zone; what waits in the present one goes there.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be copied; write nothing.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read all of it again at both places, and compare.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for ingests that are at work.")] = 600,
    as_json: Json = False,
) -> int:
    """Copy the whole installation to another place, as it is; from then on it is there.

    Nothing is ingested again. Files wait meanwhile; the present folder stays as it is, and is closed. It may be cut
    off at any time: run it again. Afterwards set HEALTHINGEST_OUTPUT (and HEALTHINGEST_INPUT) to the new places; what
    landed at the old one in between comes along when this is run once more. Keyring and configs are not copied.

    Example: healthingest storage copy s3://bucket/output --landing s3://bucket/landing --plan
    """
    from healthingest.ingest_cli import progress
    from healthingest.places import Places
    from healthingest.platform import Platform
    from healthingest.relocate import copy, copy_latecomers, count_files, plan_copy
    from healthingest.storage.objects import place_of

    places = Places.from_env()
    there = _absolute(place_of(target))
    files = _absolute(place_of(landing)) if landing else places.landing
    late = None if plan else copy_latecomers(places, there, files)
    if late is not None:
        return _say(late, "came along", as_json=as_json)
    platform = Platform.open(places)
    if plan:
        return _say(plan_copy(platform, there, files), "would be copied", as_json=as_json)
    with progress("copying", count_files(platform) * (1 + verify)) as show:
        done = copy(platform, there, files, verify=verify, wait=wait, on_step=show)
    return _say(done, "copied", as_json=as_json)


@command("history")
def history_command(
    source: Annotated[
        Path | None, typer.Option("--from", help="The DAGSTER_HOME whose files hold it; the present one by default.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Copy Dagster's history from the files below a DAGSTER_HOME to Postgres: runs, events, partitions, sensors' state.

    Dagster must be stopped, and $DAGSTER_HOME/dagster.yaml name a Postgres that has no runs yet. The files stay. It may
    be cut off at any time: run it again.

    Example: healthingest storage history --from /var/lib/healthingest/dagster
    """
    from healthingest.dagster_history import copy_history, count_history
    from healthingest.ingest_cli import progress

    said = os.environ.get("DAGSTER_HOME")
    if not said:
        raise UsageError("Set DAGSTER_HOME to the folder whose dagster.yaml names the Postgres.")
    home, source = Path(said).expanduser().resolve(), _absolute(source or Path(said))
    with progress("events", count_history(source).events) as show:
        done = copy_history(source, home, show)
    if as_json:
        print_json(vars(done))
    else:
        typer.echo(f"{done.runs:,} runs and {done.events:,} events are in the Postgres of {home}.")
    return 0


def _absolute(place: Path) -> Path:
    return place.expanduser().resolve()


def _say(done: "Copied", what: str, *, as_json: bool) -> int:
    if as_json:
        print_json(vars(done))
        return 0
    size = f"{done.bytes / 1e6:,.1f} MB"
    typer.echo(
        f"{done.files:,} files ({size}) and {len(done.landed)} landed ones {what}: {done.source} to {done.target}."
    )
    for name in done.unfinished:
        typer.echo(f"{printable(name)} is still being written and stays; run this again when it is there.")
    if what == "copied":
        typer.echo(
            f"Now set HEALTHINGEST_OUTPUT={done.target} and HEALTHINGEST_INPUT={done.landing} for all processes."
        )
    return 0
