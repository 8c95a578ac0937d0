"""Reloads the own code server when `client_configs/` changed, so that a new client needs no restart.

The sensor's tick runs inside that code server and knows its address. The client object is not Dagster's public API;
the version is pinned, and a test on a real server covers it.
"""

import logging
import threading
import time
from collections.abc import Callable

import dagster as dg

log = logging.getLogger(__name__)
_TIMEOUT_SECONDS = 120
#: A reload takes a few seconds, in which the old server goes on ticking.
_PATIENCE_SECONDS = 30.0
_lock = threading.Lock()
_asked_at: dict[str, float] = {}


def reload_once(context: dg.SensorEvaluationContext, fingerprint: str, dry_run: Callable[[], object]) -> str:
    """Ask for a reload unless one for this fingerprint is under way; returns what to tell the person watching."""
    with _lock:
        if time.monotonic() - _asked_at.get(fingerprint, -_PATIENCE_SECONDS) < _PATIENCE_SECONDS:
            return "client_configs changed; the reload is under way."
        _asked_at[fingerprint] = time.monotonic()
    origin = context.code_location_origin
    create_client = getattr(origin, "create_client", None)
    if create_client is None:
        return "client_configs changed; reload the code location, or run it as a code server to have it reload itself."
    threading.Thread(target=_reload, args=(create_client, dry_run), name="healthingest-reload", daemon=True).start()
    return "client_configs changed; the code location reloads."


def _reload(create_client: Callable[[], object], dry_run: Callable[[], object]) -> None:
    try:
        dry_run()  # definitions that raise would take the sensor away, and nothing could ever reload again
        create_client().reload_code(timeout=_TIMEOUT_SECONDS)  # type: ignore[attr-defined]
    except Exception as error:  # noqa: BLE001 - a thread's error reaches nobody; the next tick asks again
        log.warning("The code location could not be reloaded: %s", type(error).__name__)
