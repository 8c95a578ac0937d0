"""The jobs `release_delivery` and `discard_delivery`: a person's word on a held delivery, from the launchpad."""

import dagster as dg

from healthingest.orchestration.assets import OpenPlatform
from healthingest.orchestration.events import readable_errors
from healthingest.orchestration.report import report
from healthingest.privacy.roles import actor
from healthingest.release import Wish, close_delivery, find_delivery


class Closing(dg.Config):
    """Which delivery, and why; `by` names whoever decided, where it is not the user that Dagster runs as."""

    file_id: str
    reason: str
    by: str = ""


def closing_jobs(open_platform: OpenPlatform) -> list[dg.JobDefinition]:
    """Both jobs."""
    return [
        _job(open_platform, "release", "Merges what was valid of a held delivery, or accepts one over its limits."),
        _job(open_platform, "discard", "Closes a held delivery without merging it, for good."),
    ]


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
