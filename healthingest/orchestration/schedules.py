"""What runs by the clock: whether each client has delivered, every four hours; tables against the registry, every
hour; maintenance, every night.
"""  # noqa: D205 - one sentence

import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import dagster as dg

from healthingest.contracts.clients import ClientSet
from healthingest.drift import look_again
from healthingest.maintain import maintain
from healthingest.orchestration.assets import OpenPlatform
from healthingest.orchestration.checks import delivery_expected, delivery_expected_specs, store_check
from healthingest.orchestration.events import readable_errors
from healthingest.orchestration.retention import forget_runs
from healthingest.propose import write_proposals
from healthingest.reconcile import Difference, reconcile

CRON = "0 */4 * * *"
#: After the night's deliveries, before people come; UTC.
MAINTENANCE_CRON = "30 3 * * *"
RECONCILIATION_CRON = "15 * * * *"
SCHEMA_IN_SYNC = "schema_in_sync"
#: What a process that died did not compare with its contract is found within a few runs.
_LOOKED_BACK = timedelta(hours=6)
#: All run from the start, by UTC.
_schedule = partial(dg.ScheduleDefinition, execution_timezone="UTC", default_status=dg.DefaultScheduleStatus.RUNNING)
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
    schedule = _schedule(
        name="delivery_watch_every_4_hours",
        job=job,
        cron_schedule=CRON,
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

    schedule = _schedule(
        name="maintenance_daily",
        job=job,
        cron_schedule=MAINTENANCE_CRON,
        description="Every night what `healthingest maintain` does.",
    )
    return job, schedule


def reconciliation(open_platform: OpenPlatform) -> tuple[dg.JobDefinition, dg.ScheduleDefinition]:
    """The job that does what `healthingest schema reconcile` and `propose` do, and its schedule."""

    @dg.op(name="reconcile", description="Tables against the registry; files that nobody had compared with theirs.")
    def reconcile_op(context: dg.OpExecutionContext) -> None:
        with readable_errors():
            platform = open_platform()
            mended, left = reconcile(platform.places, platform.clients)
            since = datetime.now(UTC) - _LOOKED_BACK
            noticed = [c for c in platform.clients.active if look_again(platform, c, since)]
            for client_id in noticed:
                write_proposals(platform, client_id)
        for one in mended:
            context.log.info("repaired: %s", one.sentence)
        for one in left:
            context.log.error(one.sentence)
        context.add_output_metadata({"repaired": len(mended), "left": len(left), "proposals of": ", ".join(noticed)})
        store_check(context.instance, schema_in_sync(mended, left), None, str(uuid.uuid4()))

    @dg.job(name="schema_reconciliation", description="Puts right what lags behind the registry, and tells the rest.")
    def job() -> None:
        reconcile_op()

    schedule = _schedule(
        name="schema_reconciliation_hourly",
        job=job,
        cron_schedule=RECONCILIATION_CRON,
        description="Every hour what `healthingest schema reconcile` does.",
    )
    return job, schedule


def schema_in_sync(mended: Sequence[Difference], left: Sequence[Difference]) -> dg.AssetCheckResult:
    """Fails with the exact difference between tables and registry; what was put right is said too."""
    said = [d.sentence for d in left] + [f"Repaired: {d.sentence}" for d in mended]
    return dg.AssetCheckResult(
        asset_key="installation",
        check_name=SCHEMA_IN_SYNC,
        passed=not left,
        description=" ".join(said) or "The tables are as the registry says.",
        metadata={f"{d.table} {d.subject}".strip(): d.sentence for d in [*mended, *left]},
    )
