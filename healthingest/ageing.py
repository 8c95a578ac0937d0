"""How long rejected records have waited for somebody, by client: needs no key, tells no value.

Only records of deliveries that count are anybody's task: those of a delivery that a later one of its name has replaced
are not. A record is as old as the delivery that first brought it, however often that was read again.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from healthingest.lake.audit import Audit
from healthingest.lake.quarantine import Quarantine

#: Upper bound of each class of age, and what it is called.
CLASSES: tuple[tuple[timedelta, str], ...] = (
    (timedelta(days=1), "under a day"), (timedelta(days=7), "1 to 7 days"), (timedelta(days=30), "7 to 30 days"),
    (timedelta.max, "over 30 days"),
)  # fmt: skip


@dataclass(frozen=True)
class Waiting:
    """A client's open records."""

    client_id: str
    records: int
    oldest: timedelta
    #: Of each class how many.
    classes: tuple[int, ...]


def ageing(output: Path, now: datetime) -> dict[str, Waiting]:
    """Client -> its open records, for each client that has any."""
    columns = ["client_id", "file_id", "quarantined_at"]
    rows = Quarantine.at(output).frame(columns, pl.col("state") == "open")
    if rows.is_empty():
        return {}
    rows = rows.join(Audit.at(output).standing(), on="file_id")
    rows = rows.with_columns(age=now - pl.min_horizontal("came", "quarantined_at"))
    return {str(client): _waiting(str(client), part["age"]) for (client,), part in rows.group_by("client_id")}


def _waiting(client_id: str, ages: pl.Series) -> Waiting:
    bounds = [bound for bound, _ in CLASSES]
    below = [int((ages < bound).sum()) if bound < timedelta.max else len(ages) for bound in bounds]
    counts = tuple(b - a for a, b in zip([0, *below], below, strict=False))
    oldest = ages.max()
    return Waiting(client_id, len(ages), oldest if isinstance(oldest, timedelta) else timedelta(), counts)
