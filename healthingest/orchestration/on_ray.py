"""Ray's run launcher, which waits for a head that is away; deploy/distributed/dagster.ray.yaml names it.

dagster-ray's own fails a run at once where Ray does not answer. Dagster's queue would so fail everything that waits in
it, and all retries, within seconds, while the head only begins anew.
"""

import logging
import time
import urllib.request

from dagster._core.launcher import LaunchRunContext
from dagster_ray import RayRunLauncher

log = logging.getLogger(__name__)
#: Below half an hour, when Dagster takes a daemon that is kept waiting for dead.
_PATIENCE = 900.0
_LOOK = 5.0


class WaitingRayRunLauncher(RayRunLauncher):
    """Takes each run to Ray as a job, when Ray is there."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Hand a run over; one that has waited a quarter of an hour in vain fails as dagster-ray says."""
        _wait_for(self.address)
        super().launch_run(context)


def _wait_for(address: str) -> None:
    """Return once the jobs API answers, or has not for too long."""
    deadline, told = time.monotonic() + _PATIENCE, False
    while not _answers(address) and time.monotonic() < deadline:
        if not told:
            log.warning("Ray does not answer at %s; runs wait for it.", address)
            told = True
        time.sleep(_LOOK)


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/api/version", timeout=_LOOK).close()  # noqa: S310 - what dagster.yaml names
    except OSError:
        return False
    return True
