"""Tells a Dagster instance of a delivery that was ingested without a run, as a run would have told it."""

from collections.abc import Sequence
from itertools import groupby

import dagster as dg

from healthingest.model import Outcome
from healthingest.orchestration.assets import feed_event, results
from healthingest.orchestration.partitions import partition_key
from healthingest.platform import Platform


def report(instance: dg.DagsterInstance, platform: Platform, outcomes: Sequence[Outcome]) -> None:
    """Store the materializations and check evaluations of some outcomes, per partition."""

    def partition(outcome: Outcome) -> tuple[str, str]:
        return outcome.delivery.partition

    for _, group in groupby(sorted(outcomes, key=partition), key=partition):
        _report_partition(instance, platform, list(group))


def _report_partition(instance: dg.DagsterInstance, platform: Platform, outcomes: list[Outcome]) -> None:
    delivery = outcomes[0].delivery
    key = partition_key(delivery.client_id, delivery.creation_date)
    shown = {"files": ", ".join(o.delivery.file_name for o in outcomes)}
    instance.report_runless_asset_event(dg.AssetMaterialization("bronze_files", partition=key, metadata=shown))
    for result in results(platform, outcomes):
        if isinstance(result, dg.AssetCheckResult):
            event: dg.AssetMaterialization | dg.AssetCheckEvaluation = dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey.from_coercible(result.asset_key or "silver"),
                check_name=result.check_name or "",
                passed=result.passed,
                metadata=result.metadata,
                severity=result.severity,
                description=result.description,
                partition=key,
            )
        else:
            event = dg.AssetMaterialization(result.asset_key or "", partition=key, metadata=result.metadata)
        instance.report_runless_asset_event(event)
    for outcome in outcomes:
        if outcome.fresh and outcome.status == "succeeded":
            instance.report_runless_asset_event(feed_event(outcome))


def report_to_home(platform: Platform, outcomes: Sequence[Outcome]) -> None:
    """Report to the instance that DAGSTER_HOME names.

    Raises:
        Exception: whatever a broken instance raises; the ingest itself is done by then.
    """
    with dg.DagsterInstance.get() as instance:
        report(instance, platform, outcomes)
