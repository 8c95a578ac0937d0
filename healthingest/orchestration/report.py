"""Tells a Dagster instance of a delivery that was ingested without a run, as a run would have told it."""

import uuid
from collections.abc import Sequence
from itertools import groupby

import dagster as dg

from healthingest.model import Outcome
from healthingest.orchestration import metadata
from healthingest.orchestration.checks import store_check
from healthingest.orchestration.events import feed_event, results
from healthingest.orchestration.partitions import partition_key
from healthingest.platform import Platform


def report(instance: dg.DagsterInstance, platform: Platform, outcomes: Sequence[Outcome]) -> None:
    """Store the materializations and check evaluations of these outcomes, per partition."""

    def partition(outcome: Outcome) -> tuple[str, str]:
        return outcome.delivery.partition

    # One id for all: each costs a database file of its own.
    run_id = str(uuid.uuid4())
    # Freshness asks when a client was last heard of: one event for each is enough.
    received = (o for o in outcomes if o.status == "succeeded" and not o.delivery.reread_of)
    for last in {o.delivery.client_id: o for o in received}.values():
        instance.report_runless_asset_event(feed_event(last))
    for _, group in groupby(sorted(outcomes, key=partition), key=partition):
        _report_partition(instance, platform, list(group), run_id)


def _report_partition(
    instance: dg.DagsterInstance, platform: Platform, outcomes: Sequence[Outcome], run_id: str
) -> None:
    delivery = outcomes[0].delivery
    key = _key(outcomes[0])
    shown = metadata.of_bronze([o.delivery for o in outcomes], platform.lake.bronze.root / delivery.client_id)
    instance.report_runless_asset_event(dg.AssetMaterialization("bronze_files", partition=key, metadata=shown))
    for result in results(platform, outcomes):
        if isinstance(result, dg.AssetCheckResult):
            store_check(instance, result, key, run_id)
        else:
            materialized = dg.AssetMaterialization(result.asset_key or "", partition=key, metadata=result.metadata)
            instance.report_runless_asset_event(materialized)


def report_to_home(platform: Platform, outcomes: Sequence[Outcome]) -> None:
    """Report what was decided just now to the instance that DAGSTER_HOME names, and what it was never told.

    A command that died between its work and its report left the instance without: the next one makes up for it.

    Raises:
        Exception: whatever a broken instance raises; the ingest itself is done by then.
    """
    with dg.DagsterInstance.get() as instance:
        told = instance.get_materialized_partitions(dg.AssetKey("audit"))
        report(instance, platform, [o for o in outcomes if o.fresh or _key(o) not in told])


def _key(outcome: Outcome) -> dg.MultiPartitionKey:
    return partition_key(outcome.delivery.client_id, outcome.delivery.creation_date)
