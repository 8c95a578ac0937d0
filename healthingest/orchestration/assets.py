"""The four assets: `bronze_files`, and one step that yields `quarantine`, `silver` and `audit` with their checks.

One step for three assets, because a Dagster run costs processes and events, not work; frames never leave the step,
since Dagster's default IO manager would pickle members' values to disk.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

import dagster as dg

from healthingest.bulk import sequence_key
from healthingest.contracts.clients import Client, ClientSet
from healthingest.contracts.contract import Contract
from healthingest.errors import ContentionError, HealthingestError, UnroutableError, scrubbed, unexpected
from healthingest.ingest import deliveries, ingest, ingest_many, landed_before, register, replaces
from healthingest.landing.discovery import list_landing, settle
from healthingest.model import Delivery, Outcome
from healthingest.orchestration import checks, metadata
from healthingest.orchestration.checks import store_check
from healthingest.orchestration.partitions import partition_key
from healthingest.platform import Platform

OpenPlatform = Callable[[], Platform]
#: Client and day.
Partition = tuple[str, date]
#: Files of a backfill between two reports to Dagster.
_RANGE_GROUP = 64
PIPELINE = "member_files"
OWNERS = ["team:data-engineering"]
_RETRY = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


class FileConfig(dg.Config):
    """Which landed file a run is for; none: all files of the partition."""

    file_name: str | None = None


def feed_key(client_id: str) -> dg.AssetKey:
    """The external asset that stands for a client's deliveries."""
    return dg.AssetKey(["client_feed", client_id])


def feeds(clients: ClientSet) -> list[dg.AssetSpec]:
    """One external asset per active client, with the client's own freshness policy."""
    return [_feed(clients.clients[client_id]) for client_id in clients.active]


def _feed(client: Client) -> dg.AssetSpec:
    freshness = client.config.freshness
    policy = dg.FreshnessPolicy.time_window(
        fail_window=freshness.allowed, warn_window=freshness.expect_every if freshness.grace else None
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
                return _register_range(context, platform, partitions)
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


def _register_range(
    context: dg.AssetExecutionContext, platform: Platform, partitions: Sequence[Partition]
) -> dg.MaterializeResult[Any]:
    """Take in what landed for many partitions; those without a file say so, and stay missing in silver."""
    wanted = set(partitions)
    landed = [f for f in list_landing(platform.places.landing) if _leads_to(platform, f.name) in wanted]
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


def _register(platform: Platform, client_id: str, day: date, file_name: str | None) -> list[Delivery]:
    """Take the named file, or every complete landed file of the partition, into bronze.

    Raises:
        HealthingestError: there is none.
    """
    landed = list_landing(platform.places.landing)
    if file_name is not None:
        wanted = [f for f in landed if f.name == file_name]
    else:
        wanted = [f for f in landed if _leads_to(platform, f.name) == (client_id, day)]
    taken = [register(platform, f.path) for f in settle(wanted)]
    taken = [d for d in taken if d.partition == (client_id, day.isoformat())]
    taken = taken or _in_bronze(platform, client_id, day, file_name)  # it may have left the landing zone since
    if not taken:
        what = file_name or f"A file of {client_id} for {day}"
        raise UnroutableError(f"{what} is not in the landing zone, or not complete yet; drop it there and run again.")
    return taken


def _in_bronze(platform: Platform, client_id: str, day: date, file_name: str | None) -> list[Delivery]:
    return [d for d in deliveries(platform, client_id, day) if file_name in {None, d.file_name}]


def _leads_to(platform: Platform, name: str) -> Partition | None:
    try:
        routed = platform.route(name)
    except UnroutableError:
        return None
    return routed.client_id, routed.creation_date


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
            yield from _process_range(context, platform, partitions)
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
        yield from _selected(context, results(platform, outcomes))
        refuse_unfinished(outcomes)

    return process_deliveries


def _process_range(
    context: dg.AssetExecutionContext, platform: Platform, partitions: Sequence[Partition]
) -> Iterator[dg.AssetMaterialization]:
    """Many partitions in this one process: each client's files share commits, each partition gets its own events.

    What Dagster would make of results in such a run is one event for all partitions, and checks without any.
    """
    unfinished: list[Outcome] = []
    for client_id in sorted({client_id for client_id, _ in partitions}):
        with readable_errors():
            days = {day for c, day in partitions if c == client_id}
            found = [r.delivery for r in platform.lake.bronze.of_client(client_id)]
            mine = sorted((d for d in found if d.creation_date in days), key=sequence_key)
        for at in range(0, len(mine), _RANGE_GROUP):
            with readable_errors():
                outcomes = ingest_many(platform, mine[at : at + _RANGE_GROUP], run_id=context.run.run_id)
            context.log.info("%s: %s of %s files", client_id, min(at + _RANGE_GROUP, len(mine)), len(mine))
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
        for result in _selected(context, results(platform, newest)):
            if isinstance(result, dg.AssetCheckResult):
                store_check(context.instance, result, key, context.run.run_id)
            else:
                yield dg.AssetMaterialization(result.asset_key or "", partition=key, metadata=result.metadata)


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


def results(
    platform: Platform, outcomes: Sequence[Outcome]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """What the assets and checks say of some deliveries of one partition; silver only where one was applied."""
    lake = platform.lake
    judged = [o for o in outcomes if o.status != "failed"]
    applied = [o for o in outcomes if o.status == "succeeded"]
    link = metadata.report_link(platform, outcomes)
    rejected = metadata.of_quarantine(outcomes, lake.quarantine)
    yield dg.MaterializeResult(asset_key="quarantine", metadata=rejected | link)
    yield dg.MaterializeResult(asset_key="audit", metadata=metadata.of_audit(outcomes, lake.audit) | link)
    yield checks.row_accounting(outcomes)
    replaced = {o.delivery.file_name: replaces(platform, o.delivery) for o in outcomes}
    yield checks.resent_files({name: sentence for name, sentence in replaced.items() if sentence})
    if applied:
        yield dg.MaterializeResult(asset_key="silver", metadata=metadata.of_silver(applied, lake.silver) | link)
    if judged:
        yield checks.invalid_ratio(judged)
        yield checks.file_rules(judged)


def feed_event(outcome: Outcome) -> dg.AssetMaterialization:
    """The evidence that a client delivered; Dagster's freshness daemon watches it."""
    return dg.AssetMaterialization(
        feed_key(outcome.delivery.client_id),
        metadata={"file": outcome.delivery.file_name, "records": outcome.counts.records},
    )


def refuse_unfinished(outcomes: Sequence[Outcome]) -> None:
    """Fail the run, with one sentence per delivery, if one was held or failed.

    Raises:
        dg.Failure: not to be retried: only a corrected file helps.
    """
    bad = [o for o in outcomes if o.status != "succeeded"]
    if bad:
        text = " ".join(f"{o.delivery.file_name} {o.status}: {o.message}" for o in bad)
        raise dg.Failure(text, allow_retries=False) from None


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn every error into one sentence without a value: Dagster stores errors, their causes and contexts."""
    try:
        yield
    except HealthingestError as error:
        raise dg.Failure(str(error), allow_retries=isinstance(error, ContentionError)) from None
    except dg.Failure:
        raise
    except BaseException as error:  # its text may hold a record's values
        if not unexpected(error):
            raise
        raise dg.Failure(scrubbed(error), allow_retries=True) from None


def _selected(
    context: dg.AssetExecutionContext, made: Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    names = {key.name for key in context.selected_asset_check_keys}
    for result in made:
        if isinstance(result, dg.AssetCheckResult):
            if result.check_name in names:
                yield result
        elif result.asset_key in context.selected_asset_keys:
            yield result


def _partitions(context: dg.AssetExecutionContext) -> list[Partition]:
    """The partitions of this run: one, or those of a backfill."""
    keys = context.partition_keys if context.has_partition_key_range or context.has_partition_key else ()
    parts = [key.keys_by_dimension for key in keys if isinstance(key, dg.MultiPartitionKey)]
    if not parts:
        raise HealthingestError("Materialize a partition, like acme|2025-01-06.")
    return [(part["client"], date.fromisoformat(part["date"])) for part in parts]
