"""`healthingest quarantine discard|reopen|ageing|feedback`: closing the loop on rejected records."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from healthingest.command import Json
from healthingest.quarantine_cli import Files, OfClient, OfDay, OfRule, open_platform, wanted
from healthingest.release_cli import Reason
from healthingest.show import print_json, print_table

Records = Annotated[
    list[int] | None, typer.Option("--record", help="Only the record of this number; may be given again.")
]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what would happen; write nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def discard_records(
    files: Files = None, client: OfClient = None, day: OfDay = None, rule: OfRule = None, record: Records = None,
    reason: Reason = "", plan: Plan = False, yes: Yes = False, as_json: Json = False,
) -> int:  # fmt: skip
    """Give open records up: nobody need do anything about them. Shows first how many; reopen takes it back.

    Example: healthingest quarantine discard acme_20250106.csv --record 33 --reason "acme: a test record"
    """
    return _close(files, client, day, rule, record, reason, plan=plan, yes=yes, as_json=as_json, back=False)


def reopen_records(
    files: Files = None, client: OfClient = None, day: OfDay = None, rule: OfRule = None, record: Records = None,
    reason: Reason = "", plan: Plan = False, yes: Yes = False, as_json: Json = False,
) -> int:  # fmt: skip
    """Take records up again that were given up.

    Example: healthingest quarantine reopen acme_20250106.csv --record 33 --reason "it was real after all"
    """
    return _close(files, client, day, rule, record, reason, plan=plan, yes=yes, as_json=as_json, back=True)


def _close(
    files: list[str] | None, client: str | None, day: datetime | None, rule: str | None, record: list[int] | None,
    reason: str, *, plan: bool, yes: bool, as_json: bool, back: bool,
) -> int:  # fmt: skip
    from healthingest.discard import chosen, discard
    from healthingest.errors import UsageError
    from healthingest.privacy.roles import actor

    if not files and not client:
        raise UsageError("Name files, or a client with --client.")
    if not plan and not reason:
        raise UsageError("Say why with --reason; it is kept for good.")
    platform = open_platform()
    rows = chosen(platform, wanted(files, client, day, rule, None), record or (), back=back)
    what = "reopen" if back else "discard"
    said = {"records": rows.height, "files": rows["file_id"].n_unique()}
    if not as_json:
        typer.echo(f"Would {what} {said['records']:,} record(s) of {said['files']} file(s).")
    if not plan and rows.height:
        if not yes and not typer.confirm("Do it?", err=True):
            typer.echo("Nothing was done.", err=True)
            return 1
        discard(platform, rows, by=actor(), reason=reason, back=back)
    if as_json:
        print_json(said)
    return 0


def ageing_command(client: OfClient = None, as_json: Json = False) -> int:
    """How long open records have waited, by client.

    Example: healthingest quarantine ageing
    """
    from datetime import UTC

    from healthingest.ageing import CLASSES, ageing
    from healthingest.places import Places
    from healthingest.report.overview import age

    found = ageing(Places.from_env().output, datetime.now(UTC))
    rows = [one for name, one in sorted(found.items()) if client in {None, name}]
    names = [name for _, name in CLASSES]
    if as_json:
        print_json({"clients": [
            {"client_id": w.client_id, "open": w.records, "oldest_days": round(w.oldest.total_seconds() / 86400, 2)}
            | dict(zip(names, w.classes, strict=True))
            for w in rows
        ]})  # fmt: skip
    elif not rows:
        typer.echo("No rejected record waits for anybody.")
    else:
        print_table("", ["client", "open", "oldest", *names], [
            [w.client_id, f"{w.records:,}", age(w.oldest), *(f"{n:,}" if n else "" for n in w.classes)] for w in rows
        ])  # fmt: skip
    return 0


def feedback_command(
    out: Annotated[Path, typer.Option(help="File to write: .md or .txt. Mode 0600.")],
    files: Files = None, client: OfClient = None, day: OfDay = None, as_json: Json = False,
) -> int:  # fmt: skip
    """Write a letter to the sender: how many records could not be taken, which columns and lines, and why. No values.

    Example: healthingest quarantine feedback acme_20250106.csv --out to_acme.md
    """
    from healthingest.errors import UsageError
    from healthingest.feedback import letter
    from healthingest.places import Places
    from healthingest.private_file import check_target, write_text
    from healthingest.rejections import rejected, tasks

    if not files and not client:
        raise UsageError("Name files, or a client with --client: a letter is for one sender.")
    check_target(Places.from_env(), out, {".md", ".txt"})
    platform = open_platform()
    rows = tasks(platform, rejected(platform, wanted(files, client, day, None, None)))
    if rows.is_empty():
        raise UsageError("Nothing of these files is open: there is nothing to write to the sender.")
    if rows["client_id"].n_unique() > 1:
        raise UsageError("These files are of several clients; a letter is for one sender.")
    write_text(letter(platform, rows), out)
    if as_json:
        print_json({"file": str(out), "records": rows.height})
    else:
        typer.echo(f"A letter on {rows.height} records written to {out}.")
    return 0
