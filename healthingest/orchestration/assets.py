"""The four assets: `bronze_files`, and one step that yields `quarantine`, `silver` and `audit` with their checks.

One step for three assets, because a Dagster run costs processes and events, not work; frames never leave the step,
since Dagster's default IO manager would pickle members' values to disk.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Any

import dagster as dg

from healthingest.contracts.clients import Client, ClientSet
from healthingest.contracts.contract import Contract
from healthingest.errors import HealthingestError, UnroutableError
from healthingest.ingest import deliveries, ingest, register
from healthingest.landing.discovery import list_landing, settle
from healthingest.model import Delivery, Outcome
from healthingest.orchestration import checks, metadata
from healthingest.orchestration.backfill import Partition, leads_to, process_range, register_range
from healthingest.orchestration.events import (
    feed_event,
    feed_key,
    readable_errors,
    refuse_unfinished,
    results,
    selected,
)
from healthingest.platform import Platform

OpenPlatform = Callable[[], Platform]
PIPELINE = "member_files"
OWNERS = ["team:data-engineering"]
_RETRY = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


class FileConfig(dg.Config):
    """Which landed file a run is for; none: all files of the partition."""

    file_name: str | None = None


def feeds(clients: ClientSet) -> list[dg.AssetSpec]:
    """One external asset per active client, with the client's own freshness policy."""
    return [_feed(clients.clients[client_id]) for client_id in clients.active]


def _feed(client: Client) -> dg.AssetSpec:
    freshness = client.config.freshness
    policy = dg.FreshnessPolicy.time_window(
        fail_window=freshness.longest_gap,
        warn_window=freshness.longest_gap - freshness.grace if freshness.grace else None,
    )
    return dg.AssetSpec(
        feed_key(client.client_id),
        group_name="client_feeds",
        description=f"Deliveries of client `{client.client_id}`, whenever one was taken into silver.",
        owners=client.config.owners or OWNERS,
        kinds={"csv"},
        freshness_policy=policy,
        metadata={"contract": client.contract.name, "expected every": str(freshness.expect_every)},
    )


def pipeline_assets(
    open_platform: OpenPlatform, partitions: dg.PartitionsDefinition, clients: ClientSet, contract: Contract | None
) -> list[dg.AssetsDefinition]:
    """The assets that do the work; `contract` is the one whose columns the UI shows."""
    return [
        _bronze_files(open_platform, partitions, clients, contract),
        _process_deliveries(open_platform, partitions, contract),
    ]


def _bronze_files(
    open_platform: OpenPlatform, partitions: dg.PartitionsDefinition, clients: ClientSet, contract: Contract | None
) -> dg.AssetsDefinition:
    @dg.asset(
        name="bronze_files",
        partitions_def=partitions,
        deps=[feed_key(client_id) for client_id in clients.active],
        group_name=PIPELINE,
        owners=OWNERS,
        kinds={"csv"},
        tags={"layer": "bronze", "phi": "sealed"},
        metadata=metadata.bronze_definition(contract) if contract else None,
        retry_policy=_RETRY,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def bronze_files(context: dg.AssetExecutionContext, config: FileConfig) -> dg.MaterializeResult[Any]:
        """Landed files, copied as they are: compressed, sealed, never changed again.

        A file name with other bytes than before is a new delivery of the same slot.
        """
        with readable_errors():
            platform = open_platform()
            start = time.perf_counter()
            partitions = _partitions(context)
            if len(partitions) > 1:
                return register_range(context, platform, partitions)
            client_id, day = partitions[0]
            taken = _register(platform, client_id, day, config.file_name)
            for delivery in taken:
                context.log.info("%s: delivery %s of its slot", delivery.file_name, delivery.delivery_no)
            seconds = {"seconds/register": round(time.perf_counter() - start, 3)}
            return dg.MaterializeResult(
                metadata=metadata.of_bronze(taken, platform.lake.bronze.root / client_id) | seconds,
                data_version=dg.DataVersion("-".join(sorted(d.file_id for d in taken))),
            )

    return bronze_files


def _register(platform: Platform, client_id: str, day: date, file_name: str | None) -> list[Delivery]:
    """Take the named file, or every complete landed file of the partition, into bronze.

    Raises:
        HealthingestError: there is none.
    """
    landed = list_landing(platform.places.landing)
    if file_name is not None:
        wanted = [f for f in landed if f.name == file_name]
    else:
        wanted = [f for f in landed if leads_to(platform, f.name) == (client_id, day)]
    taken = [register(platform, f.path) for f in settle(wanted)]
    taken = [d for d in taken if d.partition == (client_id, day.isoformat())]
    taken = taken or _in_bronze(platform, client_id, day, file_name)  # it may have left the landing zone since
    if not taken:
        what = file_name or f"A file of {client_id} for {day}"
        raise UnroutableError(f"{what} is not in the landing zone, or not complete yet; drop it there and run again.")
    return taken


def _in_bronze(platform: Platform, client_id: str, day: date, file_name: str | None) -> list[Delivery]:
    return [d for d in deliveries(platform, client_id, day) if file_name in {None, d.file_name}]


def _process_deliveries(
    open_platform: OpenPlatform, partitions: dg.PartitionsDefinition, contract: Contract | None
) -> dg.AssetsDefinition:
    @dg.multi_asset(
        name="process_deliveries",
        specs=_specs(partitions, contract),
        check_specs=checks.delivery_checks(partitions),
        can_subset=True,
        retry_policy=_RETRY,
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def process_deliveries(
        context: dg.AssetExecutionContext, config: FileConfig
    ) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult | dg.AssetMaterialization]:
        with readable_errors():
            platform = open_platform()
            partitions = _partitions(context)
        if len(partitions) > 1:
            with readable_errors():
                yield from process_range(context, platform, partitions)
            return
        with readable_errors():
            client_id, day = partitions[0]
            # Whoever materializes silver alone, before bronze_files, means the files that have landed.
            found = _in_bronze(platform, client_id, day, config.file_name) or _register(
                platform, client_id, day, config.file_name
            )
            outcomes = []
            for outcome, newest in _ingest_all(platform, found, context.run.run_id):
                if outcome.fresh and outcome.status == "succeeded":
                    # Yielded at once: were a later delivery to raise, what log_event took would be lost, and the retry
                    # finds this one decided.
                    yield feed_event(outcome)
                if newest:
                    outcomes.append(outcome)
            yield from selected(context, results(platform, outcomes))
            refuse_unfinished(outcomes)

    return process_deliveries


def _ingest_all(platform: Platform, found: Sequence[Delivery], run_id: str) -> Iterator[tuple[Outcome, bool]]:
    """Each outcome as it comes, and whether it is that of its file name's newest delivery.

    Earlier ones are history, and only ended if one died.
    """
    newest = {d.file_name: d for d in sorted(found, key=lambda d: d.delivery_no)}
    ended = platform.lake.audit.decided([d.file_id for d in found])
    for delivery in found:
        if delivery != newest[delivery.file_name] and delivery.file_id not in ended:
            yield ingest(platform, delivery, run_id=run_id), False
    for delivery in newest.values():
        yield ingest(platform, delivery, run_id=run_id), True


def _specs(partitions: dg.PartitionsDefinition, contract: Contract | None) -> list[dg.AssetSpec]:
    def spec(name: str, description: str, layer: str, shown: dict[str, Any]) -> dg.AssetSpec:
        return dg.AssetSpec(
            name,
            deps=["bronze_files"],
            description=description,
            partitions_def=partitions,
            group_name=PIPELINE,
            owners=OWNERS,
            kinds={"deltalake", "polars"},
            tags={"layer": layer},
            metadata=shown,
            skippable=True,
        )

    return [
        spec(
            "quarantine",
            "Records that failed their contract: the reasons in clear, the record itself sealed.",
            "quarantine",
            metadata.quarantine_definition(),
        ),
        spec(
            "silver",
            "The current state of every member (SCD type 1, change feed). Values that name a person are in the vault.",
            "silver",
            metadata.silver_definition(contract) if contract else {},
        ),
        spec("audit", "One row per delivery, written last.", "audit", metadata.audit_definition()),
    ]


def _partitions(context: dg.AssetExecutionContext) -> list[Partition]:
    """The partitions of this run: one, or those of a backfill."""
    keys = context.partition_keys if context.has_partition_key_range or context.has_partition_key else ()
    parts = [key.keys_by_dimension for key in keys if isinstance(key, dg.MultiPartitionKey)]
    if not parts:
        raise HealthingestError("Materialize a partition, like acme|2025-01-06.")
    return [(part["client"], date.fromisoformat(part["date"])) for part in parts]
