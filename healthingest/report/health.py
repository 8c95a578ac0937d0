"""How every client stands now, a line each, for the overview and for Dagster."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from healthingest.contracts.clients import Client, ClientSet
from healthingest.lake.audit import Audit, over_limit
from healthingest.places import Places

Row = Mapping[str, Any]
#: Columns of the audit table that it needs.
COLUMNS = [
    "file_id", "client_id", "file_name", "creation_date", "file_suffix", "delivery_no", "status", "records", "rejected",
    "invalid_ratio", "max_invalid_ratio", "ingestion_time", "decision",
]  # fmt: skip
_RECENT = timedelta(days=30)


@dataclass(frozen=True)
class ClientHealth:
    """How one client stands."""

    client_id: str
    #: Its latest decided delivery, whatever became of it; None: there is none.
    last: Row | None
    #: When its last delivery was taken, and by how much working time the next one is late.
    taken_at: datetime | None
    late: timedelta | None
    #: Deliveries of the last 30 days, and those that are still held.
    recent: int
    held: int
    #: All its rows, in the order they were decided.
    history: tuple[Row, ...]

    @property
    def bad(self) -> bool:
        """Whether its latest delivery was not taken, or was over its limit and nobody has accepted that."""
        if self.last is None:
            return False
        return self.last["status"] in {"held", "failed"} or (over_limit(self.last) and not self.last["decision"])

    @property
    def state(self) -> str:
        """bad, late or fine; never: it has not delivered yet."""
        if self.bad:
            return "bad"
        if self.late:
            return "late"
        return "fine" if self.taken_at else "never"


def health(rows: Sequence[Row], clients: Mapping[str, Client], now: datetime) -> list[ClientHealth]:
    """How the clients stand, by name; `rows`: COLUMNS of the audit table."""
    mine: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["ingestion_time"]):
        if row["client_id"]:
            mine[row["client_id"]].append(row)
    return [_health(client_id, mine[client_id], client, now) for client_id, client in sorted(clients.items())]


def health_of(places: Places, clients: ClientSet, now: datetime) -> list[ClientHealth]:
    """How the active clients of an installation stand."""
    active = {client_id: clients.clients[client_id] for client_id in clients.active}
    return health(Audit.at(places.output).frame(COLUMNS).to_dicts(), active, now)


def _health(client_id: str, rows: Sequence[Row], client: Client, now: datetime) -> ClientHealth:
    taken = [row["ingestion_time"] for row in rows if row["status"] == "succeeded"]
    return ClientHealth(
        client_id,
        rows[-1] if rows else None,
        taken[-1] if taken else None,
        client.config.freshness.late(taken[-1], now) if taken else None,
        sum(row["ingestion_time"] > now - _RECENT for row in rows),
        sum(row["status"] == "held" for row in rows),
        tuple(rows),
    )
