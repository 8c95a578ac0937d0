"""`healthingest silver`: how and where a client's rows lie."""

from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.show import print_json

if TYPE_CHECKING:
    from healthingest.platform import Platform
    from healthingest.relayout import Goal, Relaid

silver_app = typer.Typer(
    help="How and where clients' rows lie in silver. What is wanted stands in a client's YAML; this brings it about.",
    no_args_is_help=True,
)
command = command_of(silver_app)
ClientId = Annotated[str, typer.Option("--client", help="Whose rows.")]
Plan = Annotated[bool, typer.Option("--plan", help="Only say what would be done; write nothing.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for ingests that are at work on the client.")]


@command("rebucket")
def rebucket_command(
    client: ClientId,
    buckets: Annotated[
        int | None, typer.Option(min=1, max=256, help="How many buckets; as many as its YAML wants by default.")
    ] = None,
    plan: Plan = False,
    wait: Wait = 600,
    as_json: Json = False,
) -> int:
    """Spread a client's rows over another number of buckets, in one commit that no reader notices.

    The client's files wait until it is done. It may be cut off at any time: run again, it goes on.

    Example: healthingest silver rebucket --client acme --buckets 16 --plan
    """
    from healthingest import relayout

    return _run(client, relayout.buckets(client, buckets), plan=plan, wait=wait, as_json=as_json)


@command("move")
def move_command(
    client: ClientId,
    table: Annotated[
        str | None, typer.Option(help="To output/silver_TABLE; by default where its YAML wants them.")
    ] = None,
    plan: Plan = False,
    wait: Wait = 600,
    as_json: Json = False,
) -> int:
    """Move a client's rows to another table of silver, with the states of its deliveries.

    The client's files wait until it is done. It may be cut off at any time: run again, it goes on. Until it is done,
    whoever reads the tables without `read_silver` may see the client in both.

    Example: healthingest silver move --client acme --table special
    """
    from healthingest import relayout

    return _run(client, relayout.table(client, table), plan=plan, wait=wait, as_json=as_json)


def _run(client: str, goal: "Goal", *, plan: bool, wait: float, as_json: bool) -> int:
    from healthingest.ingest_cli import progress
    from healthingest.platform import Platform
    from healthingest.relayout import plan_relayout, relayout

    platform = Platform.open()
    planned = plan_relayout(platform, client, goal)
    if plan:
        _say(planned, as_json=as_json)
        return 0
    with progress(f"{client}: write", planned.groups) as show:
        shown = 0

        def tell(done: int, of: int) -> None:
            nonlocal shown
            show(f"{client}: {'commit' if done == of else 'write'}", done - shown)
            shown = done

        done = relayout(
            platform, client, goal, wait=wait, on_group=tell,
            on_wait=lambda: show(f"{client}: waiting for ingests that are at work", 0),
        )  # fmt: skip
    _say(done, as_json=as_json)
    if not as_json:
        _remind(platform, client, done)
    return 0


def _remind(platform: "Platform", client: str, done: "Relaid") -> None:
    """Say so where the YAML wants something else: whoever builds silver again goes by that."""
    wished = platform.lake.destinations.wished.get(client)
    if wished is None or (wished.own, wished.buckets) == (done.shall.own, done.shall.buckets):
        return
    table = f"table: {done.shall.own}, " if done.shall.own else ""
    typer.echo(f"Its YAML says otherwise; write silver: {{{table}buckets: {done.shall.buckets}}} there.")


def _say(found: "Relaid", *, as_json: bool) -> None:
    if as_json:
        layouts = {"was": found.was.model_dump(mode="json"), "shall": found.shall.model_dump(mode="json")}
        print_json(vars(found) | layouts)
        return
    what = f"{found.client_id}: {found.rows:,} rows in {found.files:,} files ({found.file_bytes / 1e6:,.1f} MB)"
    if found.was == found.shall:
        typer.echo(f"{what} are in {found.shall.said} already; nothing to do.")
        return
    if found.version is not None:
        typer.echo(f"{what} went from {found.was.said} to {found.shall.said}, in version {found.version}.")
        return
    left = f", {found.groups_done} of them left by an earlier run" if found.groups_done else ""
    typer.echo(
        f"{what} would go from {found.was.said} to {found.shall.said}, in {found.groups} groups of buckets{left}."
    )
    typer.echo("As many bytes would be written; the old files stay until maintain takes them. Nothing was written.")
