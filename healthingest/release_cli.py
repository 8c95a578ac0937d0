"""`healthingest release` and `discard`: a person's word on a delivery that was held, or taken over its limits."""

from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json
from healthingest.show import outcome_row, print_json

if TYPE_CHECKING:
    from healthingest.release import Wish

FileId = Annotated[str, typer.Argument(help="A file id (six digits or more), or a file name: its latest delivery.")]
Reason = Annotated[
    str, typer.Option(help="Why: one line, kept with the audit for good. Never write a member's value here.")
]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for ingests that are at work on the client.")]


def release_command(file_id: FileId, reason: Reason, wait: Wait = 600, as_json: Json = False) -> int:
    """Merge what was valid of a held delivery; or say that what was taken over its limits is right.

    Who and why go to the audit and the chain of events; the delivery's checks turn green.

    Example: healthingest release 3f9a1c --reason "acme confirms: the new plan has no e-mail addresses"
    """
    return _close(file_id, "release", reason, wait, as_json=as_json)


def discard_command(file_id: FileId, reason: Reason, wait: Wait = 600, as_json: Json = False) -> int:
    """Close a held delivery without merging it, for good; its sender may send a corrected file.

    Example: healthingest discard acme_20250106.csv --reason "sent by mistake; acme sends another one tomorrow"
    """
    return _close(file_id, "discard", reason, wait, as_json=as_json)


def _close(file_id: str, wish: "Wish", reason: str, wait: float, *, as_json: bool) -> int:
    from healthingest.ingest_cli import telling
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor
    from healthingest.release import close_delivery, find_delivery

    platform = Platform.open()
    delivery = find_delivery(platform, file_id)
    outcome = close_delivery(platform, delivery, wish, by=actor(), reason=reason, wait=wait)
    with telling(platform, 1) as tell:
        tell([outcome])
    if as_json:
        decision = vars(outcome.verdict) if outcome.verdict else {}
        print_json(outcome_row(outcome) | decision)
    else:
        said = outcome.verdict.sentence if outcome.verdict else "In prod a second person must release it too."
        counts = outcome.counts
        typer.echo(
            f"{delivery.file_name} {outcome.status}: {counts.inserted} inserted, {counts.updated} updated, "
            f"{counts.unchanged} unchanged, {counts.stale} stale. {said}"
        )
    return 0
