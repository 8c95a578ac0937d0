"""`healthingest schema migrate`: breaking changes in steps, each a command."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.show import print_json, print_table

if TYPE_CHECKING:
    from healthingest.lake.migrations import Migration
    from healthingest.model import Outcome

migrate_app = typer.Typer(
    help="Breaking changes of a contract in steps: start, backfill, switch, finish. Any may be cut off and repeated.",
    no_args_is_help=True,
)
command = command_of(migrate_app)
ClientId = Annotated[str, typer.Option("--client", help="Whose contract changes.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for ingests that are at work on the client.")]


@command("start")
def start_command(
    client: ClientId,
    wide: Annotated[str, typer.Option(help="The version with the new columns beside the old, like member/2.")],
    narrow: Annotated[str, typer.Option(help="The version without the old columns, like member/3.")],
    reason: Annotated[str, typer.Option(help="Why: one line, kept for good.")],
    wait: Wait = 600,
    as_json: Json = False,
) -> int:
    """Publish both versions and give the client the wide one; silver gets the new columns, empty.

    Example: healthingest schema migrate start --client acme --wide member/2 --narrow member/3 --reason "months"
    """
    from healthingest.migrate import start
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor

    return _say([start(Platform.open(), client, wide, narrow, by=actor(), reason=reason, wait=wait)], as_json=as_json)


@command("backfill")
def backfill_command(client: ClientId, as_json: Json = False) -> int:
    """Fill the new columns from bronze: read the client's deliveries again.

    Example: healthingest schema migrate backfill --client acme
    """
    from healthingest.migrate import backfill
    from healthingest.privacy.roles import actor

    return _telling(lambda platform, tell: backfill(platform, client, by=actor(), on_group=tell), as_json=as_json)


@command("switch")
def switch_command(
    client: ClientId,
    on: Annotated[datetime, typer.Option(formats=["%Y-%m-%d"], help="The day the old columns go.")],
    as_json: Json = False,
) -> int:
    """Tell readers, in silver's schema, until when the old columns stay.

    Example: healthingest schema migrate switch --client acme --on 2027-01-31
    """
    from healthingest.migrate import switch
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor

    return _say([switch(Platform.open(), client, on.date(), by=actor())], as_json=as_json)


@command("finish")
def finish_command(client: ClientId, wait: Wait = 600, as_json: Json = False) -> int:
    """Give the client the narrow version and take the old columns out of silver, once their day has come.

    Example: healthingest schema migrate finish --client acme
    """
    from healthingest.migrate import finish
    from healthingest.privacy.roles import actor

    return _telling(lambda platform, tell: finish(platform, client, by=actor(), wait=wait, on_group=tell),
                    as_json=as_json)  # fmt: skip


@command("cancel")
def cancel_command(client: ClientId, wait: Wait = 600, as_json: Json = False) -> int:
    """Go back to the version before, as long as the change is not finished.

    Example: healthingest schema migrate cancel --client acme
    """
    from healthingest.migrate import cancel
    from healthingest.privacy.roles import actor

    return _telling(lambda platform, tell: cancel(platform, client, by=actor(), wait=wait, on_group=tell),
                    as_json=as_json)  # fmt: skip


@command("status")
def status_command(
    client: Annotated[str | None, typer.Option("--client", help="One client only.")] = None, as_json: Json = False
) -> int:
    """How far each change has come, and what is next.

    Example: healthingest schema migrate status
    """
    from healthingest.lake.migrations import Migrations
    from healthingest.places import Places

    return _say(Migrations.at(Places.from_env().output).all(client), as_json=as_json)


def _telling(work: "Callable[..., Migration]", *, as_json: bool) -> int:
    from healthingest.ingest_cli import telling
    from healthingest.platform import Platform

    platform = Platform.open()
    count = 0
    with telling(platform, 0) as tell:

        def told(outcomes: "list[Outcome]") -> None:
            nonlocal count
            count += len(outcomes)
            tell(outcomes)

        state = work(platform, told)
    if not as_json:
        typer.echo(f"{count} deliveries were read again.")
    return _say([state], as_json=as_json)


def _say(found: "list[Migration]", *, as_json: bool) -> int:
    from healthingest.migrate import next_step

    if as_json:
        print_json({"migrations": [vars(one) | {"next": next_step(one)} for one in found]})
        return 0
    if not found:
        typer.echo("No change is under way.")
        return 0
    print_table("", ["client", "from", "by way of", "to", "state", "readers switch", "by", "next"], [
        [m.client_id, m.before, m.wide, m.narrow, m.step, str(m.switch_on or ""), m.done_by, next_step(m) or m.note]
        for m in found
    ])  # fmt: skip
    return 0
