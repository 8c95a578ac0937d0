"""The jobs `approve_proposal` and `reject_proposal`: a person's word on a change of files, from the launchpad."""

from typing import Any

import dagster as dg
from pydantic import Field

from healthingest.approve import approve, reject
from healthingest.contracts.evolve import Answer
from healthingest.orchestration.assets import OpenPlatform
from healthingest.orchestration.events import readable_errors
from healthingest.orchestration.report import report
from healthingest.privacy.roles import actor


class Approval(dg.Config):
    """Which proposal, why, and what the evidence does not tell; `policy` as a contract writes it: {vault: identity}.

    `by` names whoever decided, where it is not the user that Dagster runs as.
    """

    proposal: str
    reason: str
    by: str = ""
    name: str = ""
    type: str = ""
    policy: dict[str, Any] = Field(default_factory=dict)
    date_format: str = ""
    codes: list[str] = Field(default_factory=list)
    map: dict[str, str] = Field(default_factory=dict)


class Rejection(dg.Config):
    """Which proposal, and why."""

    proposal: str
    reason: str
    by: str = ""


def approving_jobs(open_platform: OpenPlatform) -> list[dg.JobDefinition]:
    """Both jobs."""

    @dg.op(name="approve", description="Contract, YAML and tables follow; what waited in bronze is read again.")
    def approve_op(context: dg.OpExecutionContext, config: Approval) -> None:
        answer = Answer(
            config.name or None, config.type or None, config.policy or None, "", config.date_format or None,
            tuple(config.codes), config.map,
        )  # fmt: skip
        with readable_errors():
            platform = open_platform()
            done, outcomes = approve(
                platform, config.proposal, answer, by=config.by or actor(), reason=config.reason,
                on_group=lambda group: report(context.instance, platform, group),
            )  # fmt: skip
        context.log.info("%s: %s, %s deliveries read again", done.proposal_id, done.state, len(outcomes))
        context.add_output_metadata({"proposal": done.proposal_id, "state": done.state, "read again": len(outcomes)})

    @dg.op(name="reject", description="What was seen stays in bronze.")
    def reject_op(context: dg.OpExecutionContext, config: Rejection) -> None:
        with readable_errors():
            done = reject(open_platform(), config.proposal, by=config.by or actor(), reason=config.reason)
        context.add_output_metadata({"proposal": done.proposal_id, "state": done.state})

    @dg.job(name="approve_proposal", description="Takes a change of a client's files in; in prod a second person must.")
    def approve_job() -> None:
        approve_op()

    @dg.job(name="reject_proposal", description="Leaves a change of a client's files out.")
    def reject_job() -> None:
        reject_op()

    return [approve_job, reject_job]
