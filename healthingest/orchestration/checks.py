"""The asset checks: did a delivery stay under its client's limit, do its counts add up, did each client deliver?"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg
import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.duration import in_hours
from healthingest.model import Outcome
from healthingest.orchestration.metadata import files_table, rules_table
from healthingest.platform import Platform

INVALID_RATIO = "invalid_ratio"
FILE_RULES = "file_rules"
ROW_ACCOUNTING = "row_accounting"
RESENT_FILES = "resent_files"
DELIVERY_EXPECTED = "delivery_expected"
#: Stands where a run's job would, in evaluations that are stored without one.
_JOB = "healthingest"


def delivery_checks(partitions: dg.PartitionsDefinition) -> list[dg.AssetCheckSpec]:
    """The checks that every ingest evaluates."""
    return [
        dg.AssetCheckSpec(
            INVALID_RATIO,
            asset="silver",
            blocking=True,
            partitions_def=partitions,
            description="No delivery rejects more of its records than its client's quality.max_invalid_ratio.",
        ),
        dg.AssetCheckSpec(
            FILE_RULES,
            asset="silver",
            partitions_def=partitions,
            description="Each delivery has as many records as its client's quality asks, and about as many as before.",
        ),
        dg.AssetCheckSpec(
            ROW_ACCOUNTING,
            asset="audit",
            partitions_def=partitions,
            description="Every line and record of every delivery is accounted for (design, section 3).",
        ),
        dg.AssetCheckSpec(
            RESENT_FILES,
            asset="audit",
            partitions_def=partitions,
            description="No landed file was replaced by another one of its name, and no replaced one has landed again.",
        ),
    ]


def invalid_ratio(outcomes: Sequence[Outcome]) -> dg.AssetCheckResult:
    """Fails for a delivery over its limit: ERROR where that holds the delivery, else WARN, which blocks nothing."""
    breached = [o for o in outcomes if o.breached and not o.closed]
    closed = " ".join(f"{o.delivery.file_name}: {o.verdict.sentence}" for o in outcomes if o.verdict)
    held = any(o.status == "held" for o in breached)
    worst = max((o.counts.invalid_ratio for o in outcomes), default=0.0)
    said = " ".join(f"{o.delivery.file_name}: {o.message}" for o in breached if o.message)
    return dg.AssetCheckResult(
        asset_key="silver",
        check_name=INVALID_RATIO,
        passed=not breached,
        severity=dg.AssetCheckSeverity.ERROR if held else dg.AssetCheckSeverity.WARN,
        description=said or closed or f"At most {worst:.1%} of a delivery's records were rejected.",
        metadata={
            "invalid ratio": worst,
            "quality": files_table(outcomes),
            "top failing rules": rules_table(outcomes),
        },
    )


def file_rules(outcomes: Sequence[Outcome]) -> dg.AssetCheckResult:
    """Fails for a delivery with too few, too many, or suddenly more or fewer records; blocks nothing by itself."""
    said = [f"{o.delivery.file_name}: {said}" for o in outcomes if not o.closed for said in o.file_breaches]
    held = any(o.status == "held" and o.file_breaches for o in outcomes)
    return dg.AssetCheckResult(
        asset_key="silver",
        check_name=FILE_RULES,
        passed=not said,
        severity=dg.AssetCheckSeverity.ERROR if held else dg.AssetCheckSeverity.WARN,
        description=" ".join(said) or "The deliveries have as many records as expected.",
        metadata={"records": sum(o.counts.records for o in outcomes)},
    )


def row_accounting(outcomes: Sequence[Outcome]) -> dg.AssetCheckResult:
    """Fails if the recorded counts of a delivery do not add up; the ingest refuses to publish such a one."""
    wrong = [o.delivery.file_name for o in outcomes if not adds_up(o)]
    return dg.AssetCheckResult(
        asset_key="audit",
        check_name=ROW_ACCOUNTING,
        passed=not wrong,
        description=f"Counts do not add up for {', '.join(wrong)}."
        if wrong
        else "All lines and records are accounted for.",
        metadata={"deliveries": len(outcomes), "records": sum(o.counts.records for o in outcomes)},
    )


def resent_files(said: Mapping[str, str]) -> dg.AssetCheckResult:
    """Warns where a landed file was replaced, or replaced bytes came back: file name -> sentence."""
    return dg.AssetCheckResult(
        asset_key="audit",
        check_name=RESENT_FILES,
        passed=not said,
        severity=dg.AssetCheckSeverity.WARN,
        description=" ".join(f"{name}: {sentence}" for name, sentence in said.items())
        or "No file that was taken in has come again with other bytes.",
    )


def adds_up(outcome: Outcome) -> bool:
    """The identities of the design's section 3; a delivery that failed as a whole has no counts to hold to them."""
    c = outcome.counts
    lines = c.physical_lines == c.header_lines + c.record_lines + c.blank_lines + c.trailer_lines
    records = c.records == c.accepted + c.rejected
    silver = c.inserted + c.updated + c.unchanged + c.stale + c.suppressed + c.duplicates
    return lines and records and (silver == (c.accepted if outcome.status == "succeeded" else 0))


def delivery_expected_specs(clients: Sequence[str]) -> list[dg.AssetCheckSpec]:
    """One check per client, on its feed."""
    return [
        dg.AssetCheckSpec(
            DELIVERY_EXPECTED,
            asset=dg.AssetKey(["client_feed", client_id]),
            description="The client delivered within freshness.expect_every plus grace, by the audit table's clock.",
        )
        for client_id in clients
    ]


def delivery_expected(platform: Platform, client: Client, now: datetime | None = None) -> dg.AssetCheckResult:
    """Fails for a client that is late or has never delivered; held and failed files are no delivery."""
    mine = (pl.col("client_id") == client.client_id) & (pl.col("status") == "succeeded")
    rows = platform.lake.audit.frame(["ingestion_time", "creation_date"], mine)
    freshness, last = client.config.freshness, rows["ingestion_time"].max()
    if not isinstance(last, datetime):
        return _expected(client, passed=False, text=f"{client.client_id} has never delivered a file that was taken.")
    now = now or datetime.now(UTC)
    first = min(rows["creation_date"].to_list())
    missing = freshness.missing_dates(rows["creation_date"].to_list(), first, now)
    text = f"Last taken delivery {in_hours(now - last)} ago; at most {in_hours(freshness.allowed)} are allowed"
    text += " on working days." if freshness.calendar else "."
    text += f" No file for {', '.join(map(str, missing))}." if missing else ""
    return _expected(client, passed=not missing and freshness.late(last, now) is None, text=text, last=last)


def _expected(client: Client, *, passed: bool, text: str, last: datetime | None = None) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=dg.AssetKey(["client_feed", client.client_id]),
        check_name=DELIVERY_EXPECTED,
        passed=passed,
        description=text,
        metadata={"last delivery": dg.MetadataValue.timestamp(last)} if last else {},
    )


def store_check(
    instance: dg.DagsterInstance, result: dg.AssetCheckResult, key: dg.MultiPartitionKey | None, run_id: str
) -> None:
    """Store one evaluation, of one partition or none, under the id of a run, or of what stands for one.

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
    instance.report_dagster_event(event, run_id=run_id)
