"""`healthingest marts`: gold, what is made of silver for others to read."""

from typing import Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.show import print_json, print_table

marts_app = typer.Typer(help="Gold: members by month, from silver's change feed.", no_args_is_help=True)
command = command_of(marts_app)


@command("update")
def update_command(as_json: Json = False) -> int:
    """Take in what silver has changed since; Dagster does so every quarter of an hour.

    Example: healthingest marts update
    """
    from healthingest.marts.membership import update
    from healthingest.platform import Platform

    platform = Platform.open()
    done = update(platform.lake, platform.places.output)
    if as_json:
        print_json({"updated": [vars(one) for one in done]})
        return 0
    for one in done:
        said = "; the change feed does not reach back so far, members were counted anew" if one.cut_off else ""
        typer.echo(f"{one.table}: up to version {one.now}{said}.")
    if not done:
        typer.echo("Silver has not changed since.")
    return 0


@command("show")
def show_command(
    client: Annotated[str | None, typer.Option("--client", help="Only this client.")] = None,
    cells: Annotated[bool, typer.Option("--cells", help="By state and age band too.")] = False,
    as_json: Json = False,
) -> int:
    """Members, additions, changes and leavers, by client and month.

    Example: healthingest marts show --client acme
    """
    from healthingest.marts.membership import by_month, counted
    from healthingest.places import Places

    rows = counted(Places.from_env().output, client)
    shown = (rows if cells else by_month(rows)).to_dicts()
    if as_json:
        print_json({"membership_by_month": shown})
    elif not shown:
        typer.echo("Nothing is counted yet; run healthingest marts update.")
    else:
        print_table("", list(shown[0]), [[("" if v is None else str(v)) for v in row.values()] for row in shown])
    return 0
