"""How the command line shows things: tables for people, one JSON document for programs.

File names are shown as text, never as markup: a name must not colour, hide or link anything.
"""

import json
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from healthingest.model import Outcome
    from healthingest.platform import Platform

#: Counts that tables of files show.
SHOWN = ("records", "accepted", "rejected", "inserted", "updated", "unchanged", "stale", "duplicates")
COLOURS = {
    "succeeded": "green", "held": "yellow", "failed": "red", "unroutable": "red", "waiting": "yellow", "error": "red",
    "ok": "green", "warn": "yellow", "fail": "red",
}  # fmt: skip


def outcome_row(outcome: "Outcome") -> dict[str, Any]:
    """One outcome as plain values, for programs."""
    delivery = outcome.delivery
    return {
        "file": delivery.file_name,
        "file_id": delivery.file_id,
        "client_id": delivery.client_id,
        "creation_date": delivery.creation_date,
        "status": outcome.status,
        "fresh": outcome.fresh,
        **outcome.counts.as_dict(),
        "invalid_ratio": outcome.counts.invalid_ratio,
        "silver_version": outcome.silver_version,
        "error_kind": outcome.error_kind,
        "message": outcome.message,
        "seconds": {stage: round(seconds, 4) for stage, seconds in outcome.stages.items()},
    }


def print_outcomes(outcomes: "list[Outcome]", problems: list[dict[str, Any]], platform: "Platform") -> None:
    """What an ingest did: a table per file, then a sentence for each file that has one."""
    rows = [[o.delivery.file_name, *(str(o.counts.as_dict()[name]) for name in SHOWN), str(o.status)] for o in outcomes]
    rows += [[p["file"], *([""] * len(SHOWN)), p["status"]] for p in problems]
    if not rows:
        typer.echo(f"Nothing has landed in {platform.places.landing}.")
        return
    print_table("", ["file", *SHOWN, "status"], rows)
    for name, message in [(o.delivery.file_name, o.message) for o in outcomes] + [
        (p["file"], p["message"]) for p in problems
    ]:
        if message:
            typer.echo(f"{name}: {message}")
    for problem in platform.clients.problems:
        typer.echo(f"{problem}")
    if outcomes and not any(o.fresh for o in outcomes):
        typer.echo("All of this had been ingested before; nothing was changed.")


def print_status(state: dict[str, Any]) -> None:
    """The landing zone and the clients, as two tables, then what is wrong with configs."""
    files = [[f["file"], *(str(f.get(name, "")) for name in SHOWN), f["state"]] for f in state["landing"]]
    print_table("landing zone", ["file", *SHOWN, "state"], files)
    for landed in state["landing"]:
        if landed["message"]:
            typer.echo(f"{landed['file']}: {landed['message']}")
    clients = [
        [c["client_id"], c["last_file"] or "never", c["last_delivery"] or "", c["late"] or "", str(c["members"])]
        for c in state["clients"]
    ]
    print_table("clients", ["client", "last file", "taken at (UTC)", "late", "members"], clients)
    for problem in state["problems"]:
        typer.echo(problem)


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on stdout; columns of numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for number, name in enumerate(header):
        numeric = bool(rows) and number > 0 and all(not r[number] or r[number].isdigit() for r in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Text, not markup: a file's name must not colour, hide or link anything.
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    console = Console()
    console.width = console.width if console.is_terminal else 160
    console.print(table)


def print_json(value: object) -> None:
    """One JSON document on stdout; dates in ISO form."""

    def plain(item: object) -> str:
        return item.isoformat() if isinstance(item, (date, datetime)) else str(item)

    typer.echo(json.dumps(value, default=plain, indent=1))
