"""What runs by the clock: whether each client has delivered, every four hours; maintenance, every night."""

from collections.abc import Iterator
from datetime import timedelta

import dagster as dg

from healthingest.contracts.clients import ClientSet
from healthingest.maintain import maintain
from healthingest.orchestration.assets import OpenPlatform
from healthingest.orchestration.checks import delivery_expected, delivery_expected_specs
from healthingest.orchestration.events import readable_errors
from healthingest.orchestration.retention import forget_runs

CRON = "0 */4 * * *"
#: After the night's deliveries, before people come; UTC.
MAINTENANCE_CRON = "30 3 * * *"
_EVENTS_KEPT = timedelta(days=90)


def delivery_watch(
    open_platform: OpenPlatform, clients: ClientSet
) -> tuple[list[dg.AssetChecksDefinition], list[dg.ScheduleDefinition]]:
    """The checks on all client feeds and the schedule that runs them; nothing without clients."""
    if not clients.active:
        return [], []

    @dg.multi_asset_check(name="deliveries_expected", specs=delivery_expected_specs(clients.active), can_subset=True)
    def deliveries_expected(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with readable_errors():
            platform = open_platform()
            wanted = {key.asset_key.path[-1] for key in context.selected_asset_check_keys}
            found = [
                delivery_expected(platform, platform.clients.clients[client_id])
                for client_id in platform.clients.active
                if client_id in wanted
            ]
        yield from found

    job = dg.define_asset_job("delivery_watch", selection=dg.AssetSelection.checks(deliveries_expected))
    schedule = dg.ScheduleDefinition(
        name="delivery_watch_every_4_hours",
        job=job,
        cron_schedule=CRON,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Checks from the audit table that each active client delivered in time.",
    )
    return [deliveries_expected], [schedule]


def maintenance(open_platform: OpenPlatform) -> tuple[dg.JobDefinition, dg.ScheduleDefinition]:
    """The job that does what `healthingest maintain` does, and its schedule."""

    @dg.op(name="maintain", description="Compaction, vacuum, logs, vault, landing zone, Dagster's own events.")
    def maintain_op(context: dg.OpExecutionContext) -> None:
        with readable_errors():
            steps = maintain(open_platform(), on_step=context.log.info)
            steps.append(forget_runs(context.instance, _EVENTS_KEPT))
        for step in steps:
            context.log.info("%s: %s", step.name, step.text)
        context.add_output_metadata({step.name: step.text for step in steps})

    @dg.job(name="maintenance", description="Keeps tables, vault and landing zone small. One at a time.")
    def job() -> None:
        maintain_op()

    schedule = dg.ScheduleDefinition(
        name="maintenance_daily",
        job=job,
        cron_schedule=MAINTENANCE_CRON,
        execution_timezone="UTC",
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Every night what `healthingest maintain` does.",
    )
    return job, schedule
