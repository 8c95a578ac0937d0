"""Celery's run launcher, under which no run hangs; deploy/distributed/dagster.celery.yaml names it.

dagster-celery's own takes a task that has ended for a run that is well. But a task also ends where its process could
not write down how the run did (Dagster's database was away), and where Dagster let a second process go because the
first had begun (the broker had given a dead worker's run to another). Such a run would count as at work for ever, and
its client's files would wait for it.
"""

from dagster import DagsterRun
from dagster._core.launcher import CheckRunHealthResult, WorkerStatus
from dagster_celery.launcher import CeleryRunLauncher
from dagster_celery.tags import DAGSTER_CELERY_TASK_ID_TAG


class WatchedCeleryRunLauncher(CeleryRunLauncher):
    """Takes each run to Celery as a task, and says that it failed where its task ended and it did not."""

    @property
    def supports_resume_run(self) -> bool:
        """Never: a run whose worker died begins anew as another. dagster-celery 0.29.27 names an argument wrongly."""
        return False

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """How an unfinished run's process fares; what is not known yet counts as at work."""
        task_id = run.tags.get(DAGSTER_CELERY_TASK_ID_TAG)
        state = self.celery.AsyncResult(task_id).state if task_id else "PENDING"
        if state in {"SUCCESS", "FAILURE", "REVOKED"}:
            return CheckRunHealthResult(WorkerStatus.FAILED, "Its Celery task has ended, and it has not.")
        return CheckRunHealthResult(WorkerStatus.RUNNING)
