"""The jobs `release_delivery`, `discard_delivery` and `revert_delivery`: a person's word on a delivery."""

import dagster as dg

from healthingest.ingest import ingest
from healthingest.orchestration.assets import OpenPlatform
from healthingest.orchestration.events import readable_errors
from healthingest.orchestration.report import report
from healthingest.privacy.roles import actor
from healthingest.release import Wish, close_delivery, find_delivery
from healthingest.revert import revert


class Closing(dg.Config):
    """Which delivery, and why; `by` names whoever decided, where it is not the user that Dagster runs as."""

    file_id: str
    reason: str
    by: str = ""


def closing_jobs(open_platform: OpenPlatform) -> list[dg.JobDefinition]:
    """All of them."""
    return [
        _revert_job(open_platform),
        _job(open_platform, "release", "Merges what was valid of a held delivery, or accepts one over its limits."),
        _job(open_platform, "discard", "Closes a held delivery without merging it, for good."),
    ]


class Reverting(Closing):
    """The same; `undo` gives back what was reverted."""

    undo: bool = False


def _revert_job(open_platform: OpenPlatform) -> dg.JobDefinition:
    description = "Takes one delivery back, as if it had never come; or gives it again."

    @dg.op(description=description)
    def take_back(context: dg.OpExecutionContext, config: Reverting) -> None:
        with readable_errors():
            platform = open_platform()
            delivery = find_delivery(platform, config.file_id)
            done = revert(platform, delivery, by=config.by or actor(), reason=config.reason, undo=config.undo)
            report(context.instance, platform, [ingest(platform, delivery, run_id=context.run_id)])
            context.add_output_metadata({
                "file": delivery.file_name, "members removed": done.removed, "members changed": done.changed,
                "members added": done.added,
            })  # fmt: skip

    @dg.job(name="revert_delivery", description=description)
    def revert_delivery() -> None:
        take_back()

    return revert_delivery


def _job(open_platform: OpenPlatform, wish: Wish, description: str) -> dg.JobDefinition:
    @dg.op(name=wish, description=description)
    def close(context: dg.OpExecutionContext, config: Closing) -> None:
        with readable_errors():
            platform = open_platform()
            delivery = find_delivery(platform, config.file_id)
            outcome = close_delivery(platform, delivery, wish, by=config.by or actor(), reason=config.reason)
            report(context.instance, platform, [outcome])
            said = outcome.verdict.sentence if outcome.verdict else ""
            context.log.info("%s %s. %s", delivery.file_name, outcome.status, said)
            context.add_output_metadata({"file": delivery.file_name, "status": outcome.status, "decision": said})

    @dg.job(name=f"{wish}_delivery", description=description)
    def job() -> None:
        close()

    return job
