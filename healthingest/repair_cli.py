"""`healthingest quarantine replay`: rejected records, mended in a file, back into silver."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json
from healthingest.show import outcome_row, print_json, print_outcomes, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from healthingest.repair import Foretold


def replay_command(
    file: Annotated[Path, typer.Argument(help="A file that quarantine export --repair wrote, with records mended.")],
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would happen; write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> int:
    """Put mended records in the place of the rejected ones. Each keeps its place: a later file still wins.

    What still fails stays as it is, and so do records whose row was taken out of the file.

    Example: healthingest quarantine replay acme_mended.csv --plan
    """
    from healthingest.errors import UsageError
    from healthingest.ingest_cli import telling
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor
    from healthingest.repair import plan_replay, replay

    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    platform = Platform.open()
    foretold = plan_replay(platform, file)
    released = sum(len(one.released) for one in foretold)
    if not as_json:
        _say(foretold, released)
    if as_json and (plan or not released):
        print_json({"deliveries": [plain(one) for one in foretold], "files": []})
    if plan or not released:
        return 1 if any(one.still or one.message for one in foretold) else 0
    if not yes and not typer.confirm("Take them in?", err=True):
        typer.echo("Nothing was done.", err=True)
        return 1
    outcomes = []
    with telling(platform, len(foretold)) as tell:
        for outcome in replay(platform, foretold, by=actor(), run_id=f"quarantine replay {os.getpid()}"):
            outcomes.append(outcome)
            tell([outcome])
    if as_json:
        print_json({"deliveries": [plain(one) for one in foretold], "files": [outcome_row(o) for o in outcomes]})
    else:
        print_outcomes(outcomes, [], platform)
    return 1 if any(o.status != "succeeded" for o in outcomes) or any(one.still for one in foretold) else 0


def plain(one: "Foretold") -> dict[str, object]:
    """What mended records come to, for programs."""
    return {
        "file": one.delivery.file_name, "file_id": one.delivery.file_id, "released": list(one.released),
        "still_rejected": list(one.still), "not_open": list(one.closed), "message": one.message,
    }  # fmt: skip


def _say(foretold: "Sequence[Foretold]", released: int) -> None:
    typer.echo(f"Would release {released:,} mended record(s).")
    header = ["file", "pass now", "still rejected", "not open", ""]
    print_table("", header, [
        [one.delivery.file_name, str(len(one.released)), _numbers(one.still), _numbers(one.closed), one.message or ""]
        for one in foretold
    ])  # fmt: skip


def _numbers(records: "Sequence[int]", most: int = 10) -> str:
    if not records:
        return "0"
    named = ", ".join(map(str, records[:most]))
    return f"{len(records)} (records {named}{', ...' if len(records) > most else ''})"
