"""Forgets Dagster runs whose every event has been replaced by a later one; Dagster itself keeps its event log for ever.

A run that still is the latest word on any partition stays, however old: deleting it would turn that partition grey.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg

from healthingest.errors import UsageError
from healthingest.maintain import Step

#: Less is refused: retries and people still look at such runs.
LEAST = timedelta(days=7)
_PAGE = 200
_MADE = dg.DagsterEventType.ASSET_MATERIALIZATION


def forget_runs(instance: dg.DagsterInstance, keep: timedelta) -> Step:
    """Delete finished runs older than `keep` that are nobody's latest, with their events.

    Raises:
        UsageError: `keep` is too short.
    """
    if keep < LEAST:
        raise UsageError(f"Dagster's events must be kept {LEAST.days} days at least.")
    old = list(_finished_before(instance, datetime.now(UTC) - keep))
    latest = _latest_runs(instance)
    gone = [run_id for run_id in old if run_id not in latest]
    for run_id in gone:
        instance.delete_run(run_id)
    kept = len(old) - len(gone)
    return Step("Dagster", len(gone), f"{len(gone)} old runs forgotten; {kept} are still the latest of a partition")


def forget_runs_at_home(keep: timedelta) -> Step:
    """The same for the instance that DAGSTER_HOME names."""
    with dg.DagsterInstance.get() as instance:
        return forget_runs(instance, keep)


def _finished_before(instance: dg.DagsterInstance, moment: datetime) -> Iterator[str]:
    ended = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    wanted, cursor = dg.RunsFilter(statuses=ended, created_before=moment), None
    while page := instance.get_run_records(wanted, limit=_PAGE, cursor=cursor):
        yield from (record.dagster_run.run_id for record in page)
        cursor = page[-1].dagster_run.run_id


def _latest_runs(instance: dg.DagsterInstance) -> set[str]:
    """Runs that hold the latest materialization of any partition of any asset."""
    latest: set[str] = set()
    for key in instance.all_asset_keys():
        ids = instance.event_log_storage.get_latest_storage_id_by_partition(key, _MADE)
        latest |= _runs_of(instance, list(ids.values()))
        record = next(iter(instance.fetch_materializations(key, limit=1).records), None)
        latest |= {record.run_id} if record else set()
    return latest


def _runs_of(instance: dg.DagsterInstance, storage_ids: list[int]) -> set[str]:
    runs: set[str] = set()
    for at in range(0, len(storage_ids), _PAGE):
        wanted = dg.EventRecordsFilter(_MADE, storage_ids=storage_ids[at : at + _PAGE])
        runs |= {record.run_id for record in instance.event_log_storage.get_event_records(wanted)}
    return runs
