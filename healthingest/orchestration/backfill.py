"""A backfill of many partitions as one run: each client's files share commits, each partition gets its own events.

What Dagster would make of results in such a run is one event for all partitions, and checks without any.
"""

from collections.abc import Iterator, Sequence
from datetime import date
from typing import Any

import dagster as dg

from healthingest.errors import UnroutableError
from healthingest.ingest import ingest_many, landed_before, register
from healthingest.landing.discovery import list_landing, settle
from healthingest.model import Delivery, Outcome
from healthingest.orchestration import metadata
from healthingest.orchestration.checks import store_check
from healthingest.orchestration.events import feed_event, readable_errors, refuse_unfinished, results, selected
from healthingest.orchestration.partitions import partition_key
from healthingest.platform import Platform

#: Client and day.
Partition = tuple[str, date]
#: Files between two reports to Dagster.
_GROUP = 64


def register_range(
    context: dg.AssetExecutionContext, platform: Platform, partitions: Sequence[Partition]
) -> dg.MaterializeResult[Any]:
    """Take in what landed for many partitions; those without a file say so, and stay missing in silver."""
    wanted = set(partitions)
    landed = [f for f in list_landing(platform.places.landing) if leads_to(platform, f.name) in wanted]
    by_partition: dict[Partition, list[Delivery]] = {}
    for file in settle(landed):
        try:
            delivery = register(platform, file.path)
        except UnroutableError as error:  # it changed or vanished just now; the sensor takes it later
            context.log.warning("%s: %s", file.name, error)
            continue
        by_partition.setdefault((delivery.client_id, delivery.creation_date), []).append(delivery)
    context.log.info("files of %s of %s partitions", len(by_partition), len(partitions))
    for client_id, day in partitions:
        found = by_partition.get((client_id, day), [])
        shown = metadata.of_bronze(found, platform.lake.bronze.root / client_id)
        context.add_asset_metadata(shown, partition_key=str(partition_key(client_id, day)))
    return dg.MaterializeResult()


def process_range(
    context: dg.AssetExecutionContext, platform: Platform, partitions: Sequence[Partition]
) -> Iterator[dg.AssetMaterialization]:
    """Ingest what landed for many partitions."""
    unfinished: list[Outcome] = []
    for client_id in sorted({client_id for client_id, _ in partitions}):
        with readable_errors():
            days = {day for c, day in partitions if c == client_id}
            found = [r.delivery for r in platform.lake.bronze.of_client(client_id)]
            mine = sorted((d for d in found if d.creation_date in days), key=lambda d: d.rank)
        for at in range(0, len(mine), _GROUP):
            with readable_errors():
                outcomes = ingest_many(platform, mine[at : at + _GROUP], run_id=context.run.run_id)
            context.log.info("%s: %s of %s files", client_id, min(at + _GROUP, len(mine)), len(mine))
            yield from _range_events(context, platform, outcomes)
            unfinished += [o for o in outcomes if o.status != "succeeded" and not landed_before(platform, o.delivery)]
    refuse_unfinished(unfinished)


def _range_events(
    context: dg.AssetExecutionContext, platform: Platform, outcomes: Sequence[Outcome]
) -> Iterator[dg.AssetMaterialization]:
    """The events of each partition among these outcomes; checks are stored at once, with their partition."""
    taken = [o for o in outcomes if o.fresh and o.status == "succeeded"]
    if taken:
        yield feed_event(taken[-1])
    by_partition: dict[dg.MultiPartitionKey, list[Outcome]] = {}
    for o in outcomes:
        by_partition.setdefault(partition_key(o.delivery.client_id, o.delivery.creation_date), []).append(o)
    for key, mine in by_partition.items():
        newest = list({o.delivery.file_name: o for o in mine}.values())
        for result in selected(context, results(platform, newest)):
            if isinstance(result, dg.AssetCheckResult):
                store_check(context.instance, result, key, context.run.run_id)
            else:
                yield dg.AssetMaterialization(result.asset_key or "", partition=key, metadata=result.metadata)


def leads_to(platform: Platform, name: str) -> Partition | None:
    """The partition of a landed file; None if it leads nowhere."""
    try:
        routed = platform.route(name)
    except UnroutableError:
        return None
    return routed.client_id, routed.creation_date
