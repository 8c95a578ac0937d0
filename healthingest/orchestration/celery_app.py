"""What Celery's workers are started with (-A): dagster-celery's app, whose runs wait for a database that is away.

There a task that cannot reach Dagster's database when it begins ends at once, and its run hangs as about to start. What
happens once a run has begun is no error of its task: Dagster writes it down, and on_celery.py looks where it could not.
"""

from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_execute_job_task

#: Again after 1, 2, 4 ... 60 s: for about an hour.
_AGAIN = {
    "autoretry_for": (Exception,),
    "retry_backoff": True,
    "retry_backoff_max": 60,
    "retry_kwargs": {"max_retries": 65},
}
app = make_app()
execute_job = create_execute_job_task(app, **_AGAIN)
