"""The landing zone's sensor: one run per new complete file, and a reload when a client is added.

Thin over `tick` and `landing.discovery`. It must survive any file: every key is checked before Dagster sees it.
"""

import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from healthingest.contracts.clients import fingerprint
from healthingest.errors import UnroutableError, scrubbed
from healthingest.ingest import landed_before, record_unroutable
from healthingest.landing.discovery import Landed, settle
from healthingest.landing.names import FileName, printable
from healthingest.orchestration.assets import FileConfig, OpenPlatform
from healthingest.orchestration.checks import resent_files, store_check
from healthingest.orchestration.events import readable_errors
from healthingest.orchestration.finding import find, leads_somewhere, owe
from healthingest.orchestration.partitions import partition_key
from healthingest.orchestration.reload import reload_once
from healthingest.orchestration.seen import SUBMITTED, UNROUTABLE, Seen
from healthingest.orchestration.tick import Plan, plan
from healthingest.platform import Platform

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

#: Dagster ends a tick after 60 s; digests and audit rows must leave room for the run requests. A tick that is ended
#: keeps no cursor: without a limit, a few thousand unroutable files (26 ms each) would end every tick, for ever.
_WORK_SECONDS = 15.0
_RUNS_PER_TICK = 50
#: The daemon looks every 5 s; 5 here is missed by a hair now and then, which costs another 5.
_INTERVAL_SECONDS = 3


def ingest_job() -> "UnresolvedAssetJobDefinition":
    """The job that takes one partition's files from the landing zone to the audit table."""
    selection = dg.AssetSelection.assets("bronze_files", "quarantine", "silver", "audit")
    return dg.define_asset_job("ingest_delivery", selection, description="From the landing zone to the audit table.")


def landing_zone_sensor(
    open_platform: OpenPlatform,
    partitions: dg.PartitionsDefinition,
    loaded_fingerprint: str,
    dry_run: Callable[[], object],
    job: "UnresolvedAssetJobDefinition",
) -> dg.SensorDefinition:
    """Build the sensor for definitions that were loaded with configs of `loaded_fingerprint`."""

    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        platform = open_platform()
        remarks = [str(problem) for problem in platform.clients.problems]
        now_on_disk = fingerprint(platform.places.configs)
        if now_on_disk != loaded_fingerprint:
            remarks.append(reload_once(context, now_on_disk, dry_run))
        seen = Seen.load(context.cursor, platform.places.output / "checkpoint" / "landing")
        found, told = find(platform, seen, f"{loaded_fingerprint} {now_on_disk}", _RUNS_PER_TICK)
        remarks += told
        worth = _worth_a_look(found, seen, platform)
        planned = plan(settle(worth), platform.route, platform.waits_for)
        remarks += [f"{name} waits for its client's config." for name in planned.waiting]
        deadline = time.monotonic() + _WORK_SECONDS
        known, unknown = _split_by_partition(planned, partitions)
        remarks += [f"{name} waits for the code location to reload." for name in unknown]
        requests, again = _requests(platform, known, seen, deadline)  # first: good files do not wait for bad ones
        noted, evidence = _note_unroutable(platform, planned, seen, deadline)
        owe(seen, worth, waiting={*planned.waiting, *unknown})
        remarks += [*(f"{name.name}: {sentence}" for name, sentence in again), *noted]
        evidence += [_landed_again(context.instance, name, sentence) for name, sentence in again]
        if requests:  # else the skip reason says it
            for remark in remarks:
                context.log.warning(remark)
        reason = " ".join(remarks) or "Nothing new in the landing zone."
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else dg.SkipReason(reason),
            cursor=seen.cursor(),
            asset_events=evidence,
        )

    @dg.sensor(
        name="landing_zone",
        job=job,
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Starts one run per file that is complete in the landing zone and was not taken before.",
    )
    def landing_zone(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        with readable_errors():
            return look(context)

    return landing_zone


def _worth_a_look(files: list[Landed], seen: Seen, platform: Platform) -> list[Landed]:
    """Leave out unroutable files that are known and still lead nowhere, so that they cost no wait in each tick."""
    return [f for f in files if seen.decided(f) != UNROUTABLE or leads_somewhere(platform, f.name)]


def _note_unroutable(
    platform: Platform, planned: Plan, seen: Seen, deadline: float
) -> tuple[list[str], list[dg.AssetObservation]]:
    """Remarks on files that lead nowhere, and an observation on `audit` for each that got its row just now."""
    remarks, evidence = [], []
    for number, (landed, error) in enumerate(planned.unroutable):
        if number and time.monotonic() > deadline:
            remarks.append(f"{len(planned.unroutable) - number} more lead nowhere; the next tick notes them.")
            break
        shown = printable(landed.name)
        try:
            fresh = record_unroutable(platform, landed.path, error, run_id="")
        except Exception as problem:  # noqa: BLE001 - one file must not stop the tick; it is looked at again
            remarks.append(f"{shown}: {scrubbed(problem)}")
            continue
        seen.put(landed, UNROUTABLE)
        remarks.append(f"{shown}: {error}")
        if fresh:
            told = {"file": shown, "status": "unroutable", "reason": str(error)}
            evidence.append(dg.AssetObservation("audit", description=f"{shown} leads nowhere.", metadata=told))
    return remarks, evidence


def _split_by_partition(
    planned: Plan, partitions: dg.PartitionsDefinition
) -> tuple[list[tuple[Landed, FileName]], list[str]]:
    """Candidates whose partition these definitions know, and the names of the others, which a reload brings.

    Before the cap on runs is applied: where no reload is possible, those that wait would fill it in every tick.
    """
    known, unknown = [], []
    for landed, name in planned.candidates:
        if partitions.has_partition_key(partition_key(name.client_id, name.creation_date)):
            known.append((landed, name))
        else:
            unknown.append(name.name)
    return known, unknown


def _landed_again(instance: dg.DagsterInstance, name: FileName, sentence: str) -> dg.AssetObservation:
    """The warning that replaced bytes have come back: a failed check of their partition, and an observation."""
    key = partition_key(name.client_id, name.creation_date)
    store_check(instance, resent_files({name.name: sentence}), key, str(uuid.uuid4()))
    told = {"file": name.name, "status": "superseded", "reason": sentence}
    return dg.AssetObservation("audit", description=f"{name.name} came back.", metadata=told, partition=key)


def _requests(
    platform: Platform, candidates: list[tuple[Landed, FileName]], seen: Seen, deadline: float
) -> tuple[list[dg.RunRequest], list[tuple[FileName, str]]]:
    """A run for each new file, and what to say of files that are an earlier delivery of their name.

    What exceeds the tick's budget stays unseen and comes with the next one.
    """
    ids: dict[str, tuple[Landed, FileName]] = {}
    for landed, name in candidates[:_RUNS_PER_TICK]:
        try:
            ids[platform.file_id(landed.path)] = (landed, name)
        except UnroutableError:  # it vanished meanwhile; if it comes back, it is seen again
            continue
        if time.monotonic() > deadline:
            break
    decided = platform.lake.audit.decided(ids)
    requests, again = [], []
    for file_id, (landed, name) in ids.items():
        seen.put(landed, SUBMITTED)
        known = platform.lake.bronze.find(name.client_id, file_id)
        if decided.get(file_id) in {None, "unroutable"}:
            requests.append(_request(file_id, name))
        elif known and (sentence := landed_before(platform, known.delivery)):
            again.append((name, sentence))
    return requests, again


def _request(file_id: str, name: FileName) -> dg.RunRequest:
    config = FileConfig(file_name=name.name)
    key = partition_key(name.client_id, name.creation_date)
    return dg.RunRequest(
        run_key=f"{name.client_id}|{name.creation_date.isoformat()}|{file_id}",
        partition_key=key,
        run_config=dg.RunConfig(ops={"bronze_files": config, "process_deliveries": config}),
        tags={"client": name.client_id, "healthingest/file": name.name},
    )
