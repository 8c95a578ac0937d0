"""What runs, commands and backfills tell Dagster of deliveries, and how errors are told: always without a value."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dagster as dg

from healthingest.errors import ContentionError, HealthingestError, scrubbed, unexpected
from healthingest.ingest import replaces
from healthingest.model import Outcome
from healthingest.orchestration import checks, metadata
from healthingest.platform import Platform

#: Metadata of a failure that says: the deliveries' audit rows tell all, and nothing else is wrong.
DECIDED = "deliveries are decided"


def feed_key(client_id: str) -> dg.AssetKey:
    """The external asset that stands for a client's deliveries."""
    return dg.AssetKey(["client_feed", client_id])


def feed_event(outcome: Outcome) -> dg.AssetMaterialization:
    """The evidence that a client delivered; Dagster's freshness daemon watches it."""
    return dg.AssetMaterialization(
        feed_key(outcome.delivery.client_id),
        metadata={"file": outcome.delivery.file_name, "records": outcome.counts.records},
    )


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
        silver = lake.silver_of(applied[0].delivery.client_id)
        yield dg.MaterializeResult(asset_key="silver", metadata=metadata.of_silver(applied, silver) | link)
    if judged:
        yield checks.invalid_ratio(judged)
        yield checks.file_rules(judged)


def selected(
    context: dg.AssetExecutionContext, made: Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]
) -> Iterator[dg.MaterializeResult[Any] | dg.AssetCheckResult]:
    """Those results that belong to what the run was asked for."""
    names = {key.name for key in context.selected_asset_check_keys}
    for result in made:
        if isinstance(result, dg.AssetCheckResult):
            if result.check_name in names:
                yield result
        elif result.asset_key in context.selected_asset_keys:
            yield result


def refuse_unfinished(outcomes: Sequence[Outcome]) -> None:
    """Fail the run, with one sentence per delivery, if one was held or failed.

    Raises:
        dg.Failure: not to be retried: only a corrected file helps.
    """
    bad = [o for o in outcomes if o.status not in {"succeeded", "discarded", "reverted"}]
    if bad:
        text = " ".join(f"{o.delivery.file_name} {o.status}: {o.message}" for o in bad)
        raise dg.Failure(text, metadata={DECIDED: "true"}, allow_retries=False) from None


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn every error into one sentence without a value: Dagster stores errors, their causes and contexts."""
    try:
        yield
    except HealthingestError as error:
        kind = {"error kind": error.kind}
        raise dg.Failure(str(error), metadata=kind, allow_retries=isinstance(error, ContentionError)) from None
    except dg.Failure:
        raise
    except BaseException as error:  # its text may hold a record's values
        if not unexpected(error):
            raise
        kind = {"error kind": type(error).__name__}
        raise dg.Failure(scrubbed(error), metadata=kind, allow_retries=True) from None
