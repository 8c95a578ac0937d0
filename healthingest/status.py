"""What a person on call asks first: what lies in the landing zone, what became of it, who is late."""

import time
from datetime import UTC, datetime
from typing import Any

import polars as pl

from healthingest.contracts.duration import in_hours
from healthingest.errors import UnroutableError
from healthingest.landing.discovery import Landed, list_landing
from healthingest.landing.names import printable
from healthingest.model import Counts
from healthingest.platform import Platform

_POLL_SECONDS = 1.0


def current(platform: Platform, known: dict[Landed, str] | None = None) -> dict[str, Any]:
    """The state as plain values: `landing` (file, state, message, counts), `clients`; sentences: `problems`, `wishes`.

    `known` remembers the ids of landed files, so that polling does not read every file again.
    """
    audit = platform.lake.audit.frame()
    ids = {} if known is None else known
    return {
        "landing": [_landed(platform, audit, f, ids) for f in list_landing(platform.places.landing)],
        "clients": [_client(platform, audit, client_id) for client_id in platform.clients.active],
        "problems": [str(problem) for problem in platform.clients.problems],
        "wishes": platform.lake.destinations.wishes(),
    }


def wait_until_decided(platform: Platform, seconds: float) -> tuple[dict[str, Any], bool]:
    """Poll until no landed file is open, at most so long; the state, and whether that came about."""
    deadline = time.monotonic() + seconds
    known: dict[Landed, str] = {}
    while True:
        state = current(platform, known)
        decided = all(f["state"] != "waiting" for f in state["landing"])
        if decided or time.monotonic() >= deadline:
            return state, decided
        time.sleep(_POLL_SECONDS)


def _landed(platform: Platform, audit: pl.DataFrame, landed: Landed, known: dict[Landed, str]) -> dict[str, Any]:
    try:
        platform.route(landed.name)
        file_id = known.get(landed) or known.setdefault(landed, platform.file_id(landed.path))
    except UnroutableError as error:
        if platform.waits_for(landed.name):
            return {"file": printable(landed.name), "state": "waiting", "message": "Its client's config is broken."}
        return {"file": printable(landed.name), "state": "unroutable", "message": str(error)}
    same = audit.filter((pl.col("file_id") == file_id) | (pl.col("reread_of") == file_id))
    rows = same.sort("delivery_no").tail(1).to_dicts()
    if not rows or rows[0]["status"] == "unroutable":
        return {"file": printable(landed.name), "state": "waiting", "message": None}
    counts = {name: rows[0][name] for name in Counts.names()}
    return {"file": printable(landed.name), "state": rows[0]["status"], "message": rows[0]["message"], **counts}


def _client(platform: Platform, audit: pl.DataFrame, client_id: str) -> dict[str, Any]:
    freshness = platform.clients.clients[client_id].config.freshness
    taken = audit.filter((pl.col("client_id") == client_id) & (pl.col("status") == "succeeded")).sort("ingestion_time")
    last = taken["ingestion_time"].max()
    late = None
    if isinstance(last, datetime):
        over = freshness.late(last, datetime.now(UTC))
        late = in_hours(over) if over else None
    return {
        "client_id": client_id,
        "last_file": taken["file_name"][-1] if taken.height else None,
        "last_delivery": last.isoformat(timespec="seconds") if isinstance(last, datetime) else None,
        "late": late,
        "members": platform.lake.silver_of(client_id).frame(["client_id"], pl.col("client_id") == client_id).height,
    }
