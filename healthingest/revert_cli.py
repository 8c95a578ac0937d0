"""`healthingest revert`: take one delivery back, or give it again."""

from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json
from healthingest.release_cli import FileId, Reason, Wait
from healthingest.show import print_json

if TYPE_CHECKING:
    from healthingest.model import Delivery
    from healthingest.platform import Platform
    from healthingest.revert import Reverted


def revert_command(
    file_id: FileId,
    reason: Reason = "",
    undo: Annotated[bool, typer.Option("--undo", help="Give back what was reverted.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would happen; write nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    wait: Wait = 600,
    as_json: Json = False,
) -> int:
    """Take back any one delivery: silver becomes as if it had never come. Shows first what that changes.

    Members that it set fall back to what the other deliveries say; members that it alone brought leave silver.

    Example: healthingest revert 3f9a1c --plan
    """
    from healthingest.errors import UsageError
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor
    from healthingest.release import find_delivery
    from healthingest.revert import plan_revert, revert

    platform = Platform.open()
    delivery = find_delivery(platform, file_id)
    if not plan and not reason:
        raise UsageError("Say why with --reason; it is kept with the audit for good.")
    foreseen = plan_revert(platform, delivery, undo=undo)
    if plan and as_json:
        print_json(plain(foreseen))
    elif not as_json:
        typer.echo(_sentence(foreseen, "Would " + ("give back" if undo else "revert")))
    if plan:
        return 0
    if not yes and not typer.confirm("Do it?", err=True):
        typer.echo("Nothing was done.", err=True)
        return 1
    done = revert(platform, delivery, by=actor(), reason=reason, undo=undo, wait=wait)
    _report(platform, delivery)
    if as_json:
        print_json(plain(done))
    else:
        typer.echo(_sentence(done, "Gave back" if undo else "Reverted"))
    return 0


def plain(done: "Reverted") -> dict[str, object]:
    """What a revert does, for programs."""
    names = ("removed", "changed", "added", "records", "readings", "fresh", "silver_version")
    delivery = done.delivery
    return {"file": delivery.file_name, "file_id": delivery.file_id, "client_id": delivery.client_id} | {
        name: getattr(done, name) for name in names
    }


def _sentence(done: "Reverted", did: str) -> str:
    delivery = done.delivery
    readings = f", with {done.readings} later reading(s) of it" if done.readings else ""
    return (
        f"{did} delivery {delivery.delivery_no} of {delivery.file_name} (file id {delivery.file_id[:8]}){readings}: "
        f"{done.removed:,} members leave silver, {done.changed:,} fall back to what another delivery says, "
        f"{done.added:,} come; {done.records:,} rejected records concerned."
    )


def _report(platform: "Platform", delivery: "Delivery") -> None:
    """Tell Dagster what became of the delivery."""
    from dataclasses import replace

    from healthingest.ingest import ingest
    from healthingest.ingest_cli import telling

    with telling(platform, 1) as tell:
        tell([replace(ingest(platform, delivery, run_id="revert"), fresh=True)])
