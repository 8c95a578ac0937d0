"""`healthingest quarantine`: see what was rejected and why, give it back to the sender, take in what passes now."""

import os
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.show import outcome_row, print_json, print_outcomes, print_table

if TYPE_CHECKING:
    from healthingest.model import Outcome
    from healthingest.platform import Platform
    from healthingest.reading import Reader
    from healthingest.rejections import Wanted
    from healthingest.reread import Foretold

quarantine_app = typer.Typer(help="Rejected records: see them, give them back to the sender.", no_args_is_help=True)
command = command_of(quarantine_app)


class State(StrEnum):
    """States of a quarantined record."""

    open = "open"
    released = "released"
    discarded = "discarded"
    reverted = "reverted"
    erased = "erased"


Files = Annotated[list[str] | None, typer.Argument(help="File names, or file ids (six digits or more). None: all.")]
OfClient = Annotated[str | None, typer.Option("--client", help="Only this client.")]
OfDay = Annotated[datetime | None, typer.Option("--date", formats=["%Y-%m-%d"], help="Only files of this date.")]
OfRule = Annotated[str | None, typer.Option("--rule", help="Only records that break this rule.")]
OfState = Annotated[State | None, typer.Option("--state", help="Only records in this state.")]
Values = Annotated[
    bool, typer.Option("--values", help="Show the records as received; needs the key of rejected records.")
]
Role = Annotated[
    str | None, typer.Option(help="With --values: the role of roles.yaml that you act in. Default: as for export.")
]
Purpose = Annotated[str | None, typer.Option(help="With --values: what for, one of the role's purposes.")]


@command("list")
def list_command(
    files: Files = None,
    client: OfClient = None,
    day: OfDay = None,
    rule: OfRule = None,
    state: OfState = None,
    as_json: Json = False,
) -> int:
    """Deliveries with rejected records: how many, how many still open, and which rules they break.

    Example: healthingest quarantine list --client acme --date 2025-01-06
    """
    from healthingest.rejections import per_delivery, rejected

    found = per_delivery(rejected(open_platform(), wanted(files, client, day, rule, state))).to_dicts()
    if as_json:
        print_json({"deliveries": found})
        return 0
    if not found:
        typer.echo("No rejected records.")
        return 0
    closed = any(d["closed"] for d in found)
    header = ["file", "date", "client", "rejected", "open", *(["closed"] * closed), "rules (records)", "file id"]
    print_table("", header, [
        [d["file_name"], str(d["creation_date"]), d["client_id"], str(d["records"]), str(d["open"]),
         *([", ".join(d["closed"])] * closed), ", ".join(d["rules"]), d["file_id"]]
        for d in found
    ])  # fmt: skip
    return 0


@command("show")
def show_command(
    files: Annotated[list[str], typer.Argument(help="File names, or file ids (six digits or more).")],
    record: Annotated[
        list[int] | None, typer.Option(help="Only the record of this number; may be given again.")
    ] = None,
    rule: OfRule = None,
    state: OfState = None,
    limit: Annotated[int, typer.Option(min=1, help="Records at most.")] = 50,
    values: Values = False,
    role: Role = None,
    purpose: Purpose = None,
    as_json: Json = False,
) -> int:
    """Rejected records of a file, each with its lines, everything that is wrong with it, and who closed it and why.

    Example: healthingest quarantine show acme_20250106.csv --record 17
    """
    import polars as pl

    from healthingest.rejections import problems, rejected, with_words

    platform = open_platform()
    rows = rejected(platform, wanted(files, None, None, rule, state))
    rows = rows.filter(pl.col("record_no").is_in(record)) if record else rows
    words = with_words(platform, rows.head(limit))
    words = words.select(file="file_name", record="record_no", state="state", by="state_by", reason="state_reason",
                         at="state_at")  # fmt: skip
    shown = problems(platform, rows.head(limit), _reader(platform, role, purpose) if values else None)
    if as_json:
        states = words.with_columns(pl.col("at").dt.to_string("iso")).to_dicts()
        print_json({"rejected": rows.height, "problems": shown.to_dicts(), "states": states})
        return 0
    last: tuple[str, int] | None = None
    table = []
    for row in shown.to_dicts():
        again, last = last == (row["file"], row["record"]), (row["file"], row["record"])
        where = ["", "", ""] if again else [row["file"], str(row["record"]), _lines(row["line"], row["lines"])]
        table.append([*where, row["column"], row["problem"], row["rule"]])
    print_table("", ["file", "record", "line", "column", "problem", "rule"], table)
    for closed in words.filter(pl.col("state") != "open").to_dicts():
        who = f" by {closed['by']} on {closed['at']:%Y-%m-%d %H:%M} UTC: {closed['reason']}" if closed["by"] else ""
        typer.echo(f"Record {closed['record']} of {closed['file']} is {closed['state']}{who}.")
    if values:
        for (number,), part in shown.group_by("record", maintain_order=True):
            typer.echo(f"{number}: {part['received'][0]}")
    if rows.height > limit:
        typer.echo(f"{limit} of {rows.height} rejected records are shown; --limit shows more.")
    return 0


@command("export")
def export_command(
    out: Annotated[Path, typer.Option(help="File to write: .csv or .parquet. Mode 0600.")],
    files: Files = None,
    client: OfClient = None,
    day: OfDay = None,
    rule: OfRule = None,
    state: OfState = None,
    values: Values = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="The open records as received, to be mended; needs their key, as --values.")
    ] = False,
    role: Role = None,
    purpose: Purpose = None,
    as_json: Json = False,
) -> int:
    """Write a file for the sender: each record and line at fault, their column names, and what to mend. No values.

    With --repair: the open records themselves, in the client's own columns, to be mended and given to replay.

    Example: healthingest quarantine export acme_20250106.csv --out acme_feedback.csv
    """
    from healthingest.places import Places
    from healthingest.private_file import check_target, write_private
    from healthingest.rejections import problems, rejected, tasks
    from healthingest.repair import for_repair

    check_target(Places.from_env(), out)
    platform = open_platform()
    rows = rejected(platform, wanted(files, client, day, rule, None if repair else state))
    if repair:
        rows = tasks(platform, rows)
        feedback = for_repair(platform, rows, _reader(platform, role, purpose))
    else:
        feedback = problems(platform, rows, _reader(platform, role, purpose) if values else None)
    write_private(feedback, out)
    if repair and not as_json:
        typer.echo(
            f"{feedback.height} open records written to {out}. Mend them there, keep the columns, and run "
            f"healthingest quarantine replay {out}; then delete the file."
        )
    elif as_json:
        print_json({"file": str(out), "records": rows.height, "problems": feedback.height, "columns": feedback.columns})
    else:
        typer.echo(f"{feedback.height} problems of {rows.height} records written to {out}.")
    return 0


@command("release")
def release_command(
    client: Annotated[str, typer.Option("--client", help="The client whose config or contract was mended.")],
    files: Annotated[list[str] | None, typer.Argument(help="File names; none: all of the client's.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would happen; write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> int:
    """Read deliveries again after their client's config or contract was mended, and merge what passes now.

    Each becomes another delivery of its name, of the same bytes, under the present config, and replaces the earlier
    one; a later file still wins. Shows first what it would release, and what it would refuse that was accepted.

    Example: healthingest quarantine release --client acme --plan
    """
    from healthingest.ingest_cli import telling
    from healthingest.reread import foretell, read_again, stale

    platform = open_platform()
    found = stale(platform, client, [Path(name).name for name in files or ()])
    foretold = list(foretell(platform, found))
    if not as_json:
        _say_foretold(foretold)
    if as_json and (plan or not foretold):
        print_json({"deliveries": [_plain_foretold(one) for one in foretold]})
    if plan or not foretold:
        return 0
    if not yes and not typer.confirm("Read them again?", err=True):
        typer.echo("Nothing was done.", err=True)
        return 1
    outcomes: list[Outcome] = []
    with telling(platform, len(found)) as tell:
        for group in read_again(platform, found, run_id=f"quarantine release {os.getpid()}"):
            outcomes += group
            tell(group)
    if as_json:
        print_json({"deliveries": [_plain_foretold(one) for one in foretold],
                    "files": [outcome_row(o) for o in outcomes]})  # fmt: skip
    else:
        print_outcomes(outcomes, [], platform)
    return 1 if any(o.status != "succeeded" for o in outcomes) else 0


def _say_foretold(foretold: "list[Foretold]") -> None:
    if not foretold:
        typer.echo("Every delivery was read by the client's present config; there is nothing to read again.")
        return
    released, refused = (sum(getattr(one, name) for one in foretold) for name in ("released", "refused"))
    some = sum(one.released > 0 for one in foretold)
    typer.echo(f"Would release {released:,} rejected record(s) of {some} deliveries"
               f"{f', and refuse {refused:,} that were accepted' if refused else ''}.")  # fmt: skip
    print_table("", ["file", "was", "records", "rejected", "would be rejected", ""], [
        [one.registered.delivery.file_name, one.status, str(one.after.records or one.before.records),
         str(one.before.rejected), "" if one.message else str(one.after.rejected), one.message or ""]
        for one in foretold
    ])  # fmt: skip


def _plain_foretold(one: "Foretold") -> dict[str, object]:
    delivery = one.registered.delivery
    return {
        "file_name": delivery.file_name, "file_id": delivery.file_id, "status": one.status, "released": one.released,
        "refused": one.refused, "rejected": one.before.rejected, "would_be_rejected": one.after.rejected,
        "message": one.message,
    }  # fmt: skip


def open_platform() -> "Platform":
    """The installation that the environment names."""
    from healthingest.platform import Platform

    return Platform.open()


def _reader(platform: "Platform", role: str | None, purpose: str | None) -> "Reader":
    from healthingest.reading import Reader

    return Reader.of(platform, role, purpose)


def wanted(
    files: list[str] | None, client: str | None, day: datetime | None, rule: str | None, state: State | None
) -> "Wanted":
    """What the options of the commands ask for."""
    from healthingest.rejections import Wanted

    names = [Path(name).name for name in files or ()]
    return Wanted(names, client, day.date() if day else None, rule, state.value if state else None)


def _lines(first: int | None, count: int | None) -> str:
    if first is None:
        return ""
    return f"{first}-{first + count - 1}" if count and count > 1 else str(first)
