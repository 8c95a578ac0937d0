"""`healthingest silver`: how a client's rows lie in the serving table."""

from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.show import print_json

if TYPE_CHECKING:
    from healthingest.rebucket import Rebucketing

silver_app = typer.Typer(
    help="How clients' rows lie in silver. What is wanted stands in a client's YAML; these commands bring it about.",
    no_args_is_help=True,
)
command = command_of(silver_app)


@command("rebucket")
def rebucket_command(
    client: Annotated[str, typer.Option("--client", help="Whose rows.")],
    buckets: Annotated[
        int | None, typer.Option(min=1, max=256, help="How many buckets; as many as its YAML wants by default.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done; write nothing.")] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait for ingests that are at work on the client.")
    ] = 600,
    as_json: Json = False,
) -> int:
    """Spread a client's rows over another number of buckets, in one commit that no reader notices.

    The client's files wait until it is done. It may be cut off at any time: run again, it goes on.

    Example: healthingest silver rebucket --client acme --buckets 16 --plan
    """
    from healthingest.ingest_cli import progress
    from healthingest.platform import Platform
    from healthingest.rebucket import plan_rebucket, rebucket

    platform = Platform.open()
    planned = plan_rebucket(platform, client, buckets)
    if plan:
        _say(planned, as_json=as_json)
        return 0
    with progress(f"{client}: buckets", planned.groups) as show:
        shown = 0

        def tell(done: int, of: int) -> None:
            nonlocal shown
            show(f"{client}: {'commit' if done == of else 'buckets'}", done - shown)
            shown = done

        done = rebucket(
            platform, client, buckets, wait=wait, on_group=tell,
            on_wait=lambda: show(f"{client}: waiting for ingests that are at work", 0),
        )  # fmt: skip
    _say(done, as_json=as_json)
    wished = platform.lake.destinations.wished.get(client)
    if not as_json and wished and wished.buckets != done.buckets:
        typer.echo(f"Its YAML still says {wished.buckets}; write silver: {{buckets: {done.buckets}}} there.")
    return 0


def _say(found: "Rebucketing", *, as_json: bool) -> None:
    if as_json:
        print_json(vars(found))
        return
    where = f"{found.client_id} in {found.table}"
    what = f"{found.rows:,} rows in {found.files:,} files ({found.file_bytes / 1e6:,.1f} MB)"
    if found.before == found.buckets:
        typer.echo(f"{where}: {what}, {_counted(found.buckets)} already; nothing to do.")
        return
    step = f"from {_counted(found.before)} to {_counted(found.buckets)}"
    if found.version is not None:
        typer.echo(f"{where}: {what} went {step} in version {found.version}.")
        return
    left = f", {found.groups_done} of them left by an earlier run" if found.groups_done else ""
    typer.echo(f"{where}: {what} would go {step}, written in {found.groups} groups of buckets{left}.")
    typer.echo(
        f"About {found.file_bytes / 1e6:,.1f} MB would be written; the old files stay until maintain takes them."
    )
    typer.echo("Nothing was written.")


def _counted(buckets: int) -> str:
    return "1 bucket" if buckets == 1 else f"{buckets} buckets"
