"""Every four hours: has each active client delivered in time, also one that never did?"""

from collections.abc import Iterator

import dagster as dg

from healthingest.contracts.clients import ClientSet
from healthingest.orchestration.assets import OpenPlatform, readable_errors
from healthingest.orchestration.checks import delivery_expected, delivery_expected_specs

CRON = "0 */4 * * *"


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
