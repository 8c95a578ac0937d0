"""`healthingest explain`: what happened to one member."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from healthingest.command import Json, asked_member_id
from healthingest.show import print_json, print_table

if TYPE_CHECKING:
    from healthingest.explain import Explained


def explain_command(
    client: Annotated[str, typer.Option(help="Client whose member it is.")],
    member: Annotated[
        str | None, typer.Option(help="The member's id; without it, it is asked for, so that no shell keeps it.")
    ] = None,
    token: Annotated[str | None, typer.Option(help="The member's token in silver, instead of the id.")] = None,
    role: Annotated[str | None, typer.Option(help="The role of roles.yaml that you act in.")] = None,
    purpose: Annotated[str | None, typer.Option(help="What for, one of the role's purposes.")] = None,
    as_json: Json = False,
) -> int:
    """Every delivery that spoke of a member, what each changed, which record set its row, which rules refused it.

    Names of columns; their values only where the role opens them. Who asked is kept in the chain of events.

    Example: healthingest explain --client acme --role steward --purpose correction
    """
    from healthingest.erase import member_of_token
    from healthingest.explain import explain
    from healthingest.platform import Platform
    from healthingest.reading import Reader

    platform = Platform.open()
    member_id = member_of_token(platform, client, token) if token else member or asked_member_id()
    reader = Reader.of(platform, role, purpose)

    def on_step(name: str) -> None:
        if not as_json and sys.stderr.isatty():
            typer.echo(f"reading {name}", err=True)

    _show(explain(platform, client, member_id.strip(), reader, on_step), as_json=as_json)
    return 0


def _show(found: "Explained", *, as_json: bool) -> None:
    if as_json:
        plain: dict[str, Any] = {"client_id": found.client_id, "member_token": found.token,
                                 "in_silver": found.in_silver}  # fmt: skip
        plain["mentions"] = [vars(m) | {"values": dict(m.values)} for m in found.mentions]
        plain["refusals"] = [
            vars(r) | {"rules": [{"column": column, "rule": rule} for column, rule in r.rules]} for r in found.refusals
        ]
        print_json(plain)
        return
    where = "is in silver" if found.in_silver else "is not in silver"
    typer.echo(f"The member with the token {found.token} of {found.client_id} {where}.")
    rows = []
    for m in found.mentions:
        what = (
            "could not be read"
            if m.changed is None
            else ", ".join(f"{c} = {m.values[c]}" if c in m.values else c for c in m.changed) or "nothing new"
        )
        counts = "sets the row" if m.sets_row else "counts" if m.active else "does not count"
        rows.append([m.creation_date, m.file_name, str(m.delivery_no), str(m.record_no), m.status or "", counts, what])
    print_table("", ["date", "file", "delivery", "record", "status", "", "said anew"], rows)
    if found.refusals:
        print_table("", ["file", "record", "rules", "state"], [
            [r.file_name, str(r.record_no), ", ".join(rule for _, rule in r.rules), r.state] for r in found.refusals
        ])  # fmt: skip
