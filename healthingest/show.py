"""How the command line shows things: tables for people, one JSON document for programs.

File names are shown as text, never as markup: a name must not colour, hide or link anything.
"""

import json
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from healthingest.model import Counts, Outcome
    from healthingest.planning import Planned
    from healthingest.platform import Platform

#: Counts that tables of files show.
SHOWN = ("records", "accepted", "rejected", "inserted", "updated", "unchanged", "stale", "duplicates")
_NONE = [""] * len(SHOWN)
#: More files than this are shown as sums.
_MANY = 50
COLOURS = {
    "succeeded": "green", "held": "yellow", "discarded": "yellow", "reverted": "yellow",
    "failed": "red", "unroutable": "red", "waiting": "yellow", "error": "red",
    "superseded": "yellow",
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
    if not outcomes and not problems:
        typer.echo(f"Nothing has landed in {platform.places.landing}.")
        return
    if len(outcomes) > _MANY:
        _print_many(outcomes)
    else:
        rows = [[o.delivery.file_name, *_counts(o.counts), str(o.status)] for o in outcomes]
        print_table("", ["file", *SHOWN, "status"], rows + [[p["file"], *_NONE, p["status"]] for p in problems])
    remarks = [(o.delivery.file_name, o.message) for o in outcomes] + [(p["file"], p["message"]) for p in problems]
    _print_remarks([(name, message) for name, message in remarks if message])
    for problem in platform.clients.problems:
        typer.echo(f"{problem}")
    if outcomes and not any(o.fresh for o in outcomes):
        typer.echo("All of this had been ingested before; nothing was changed.")


def _print_many(outcomes: "list[Outcome]") -> None:
    """Sums per client and status: nobody reads a table of thousands."""
    rows = []
    for client_id, status in sorted({(o.delivery.client_id, str(o.status)) for o in outcomes}):
        mine = [o.counts.as_dict() for o in outcomes if (o.delivery.client_id, o.status) == (client_id, status)]
        rows.append([client_id, str(len(mine)), *(str(sum(c[name] for c in mine)) for name in SHOWN), status])
    print_table("", ["client", "files", *SHOWN, "status"], rows)


def _print_remarks(remarks: list[tuple[str, str]]) -> None:
    for name, message in remarks[:_MANY]:
        typer.echo(f"{name}: {message}")
    if len(remarks) > _MANY:
        typer.echo(f"{len(remarks) - _MANY} more files have remarks; healthingest status shows them.")


def print_plan(planned: "list[Planned]", clients: list[dict[str, Any]]) -> None:
    """What an ingest would do: per file while they are few, and per client."""
    if not planned:
        typer.echo("Nothing has landed; there is nothing to plan.")
        return
    if len(planned) <= _MANY:
        print_table("", ["file", *SHOWN, "would be"], [[p.file, *_counts(p.counts), p.status] for p in planned])
    rows = [
        [c["client_id"] or "none", str(c["files"]), *(str(c[name]) for name in SHOWN), _statuses(c["statuses"])]
        for c in clients
    ]
    print_table("per client", ["client", "files", *SHOWN, "would be"], rows)
    told = [(p.file, " ".join(filter(None, (p.message, p.change.sentence if p.change else None)))) for p in planned]
    _print_remarks([(name, said) for name, said in told if said])
    typer.echo("Nothing was written.")


def _statuses(statuses: dict[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


def _counts(counts: "Counts") -> list[str]:
    plain = counts.as_dict()
    return [str(plain[name]) for name in SHOWN]


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
    for sentence in (*state["problems"], *state["wishes"]):
        typer.echo(sentence)


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
