"""Tells a Dagster instance of a delivery that was ingested without a run, as a run would have told it."""

import uuid
from collections.abc import Sequence
from itertools import groupby

import dagster as dg

from healthingest.model import Outcome
from healthingest.orchestration import metadata
from healthingest.orchestration.assets import feed_event, results
from healthingest.orchestration.partitions import partition_key
from healthingest.platform import Platform

#: Stands where a run's job would.
_JOB = "healthingest"


def report(instance: dg.DagsterInstance, platform: Platform, outcomes: Sequence[Outcome]) -> None:
    """Store the materializations and check evaluations of what was decided just now, per partition."""

    def partition(outcome: Outcome) -> tuple[str, str]:
        return outcome.delivery.partition

    fresh = sorted((o for o in outcomes if o.fresh), key=partition)
    for _, group in groupby(fresh, key=partition):
        _report_partition(instance, platform, list(group))


def _report_partition(instance: dg.DagsterInstance, platform: Platform, outcomes: list[Outcome]) -> None:
    delivery = outcomes[0].delivery
    key = partition_key(delivery.client_id, delivery.creation_date)
    for outcome in outcomes:
        if outcome.status == "succeeded":
            instance.report_runless_asset_event(feed_event(outcome))
    shown = metadata.of_bronze([o.delivery for o in outcomes], platform.lake.bronze.root / delivery.client_id)
    instance.report_runless_asset_event(dg.AssetMaterialization("bronze_files", partition=key, metadata=shown))
    for result in results(platform, outcomes):
        if isinstance(result, dg.AssetCheckResult):
            _report_check(instance, result, key)
        else:
            materialized = dg.AssetMaterialization(result.asset_key or "", partition=key, metadata=result.metadata)
            instance.report_runless_asset_event(materialized)


def _report_check(instance: dg.DagsterInstance, result: dg.AssetCheckResult, key: dg.MultiPartitionKey) -> None:
    """Store one evaluation under an id of its own.

    Dagster's own call for events without a run gives all of them the same empty run id, and its database takes only
    one evaluation per run, check and partition: the second report of a partition raised an IntegrityError.
    """
    evaluation = dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey.from_coercible(result.asset_key or "silver"),
        check_name=result.check_name or "",
        passed=result.passed,
        metadata=result.metadata,
        severity=result.severity,
        description=result.description,
        partition=key,
    )
    event = dg.DagsterEvent(
        event_type_value=dg.DagsterEventType.ASSET_CHECK_EVALUATION.value,
        event_specific_data=evaluation,
        job_name=_JOB,
    )
    instance.report_dagster_event(event, run_id=str(uuid.uuid4()))


def report_to_home(platform: Platform, outcomes: Sequence[Outcome]) -> None:
    """Report to the instance that DAGSTER_HOME names.

    Raises:
        Exception: whatever a broken instance raises; the ingest itself is done by then.
    """
    with dg.DagsterInstance.get() as instance:
        report(instance, platform, outcomes)
