"""What rows of the audit table say of their clients' deliveries.

Each row is an event that counts once, in the order they were decided, so that a bad file is told of although a good one
followed before anybody looked; a row that a person has decided on since is a new one.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta

import polars as pl

from healthingest.alerting.conditions import Observation
from healthingest.alerting.scene import Found, Row, Scene
from healthingest.alerting.store import Seen
from healthingest.lake.audit import over_limit, rank_of
from healthingest.landing.discovery import list_landing
from healthingest.landing.names import printable

#: Rows are written a moment after the time they bear: so far back a look goes each time.
_OVERLAP = timedelta(hours=1)
_COLUMNS = [
    "file_id", "client_id", "file_name", "creation_date", "delivery_no", "status", "records", "accepted", "rejected",
    "invalid_ratio", "max_invalid_ratio", "rules", "file_breaches", "message", "error_kind",
    "decision", "decided_by", "decided_at", "reread_of", "started_at", "ingestion_time",
]  # fmt: skip
_RULES = 5
#: When a row was written, decided on by a person, or made of an old delivery's bytes.
_MOMENTS = ("ingestion_time", "decided_at", "started_at")


def of_deliveries(scene: Scene) -> Found:
    """What rows that nobody has looked at yet say; on a first look, of each client's latest alone."""
    mark = scene.loaded.watermark("audit")
    first = mark.timestamp() <= 0
    rows = _new_rows(scene, None if first else mark - _OVERLAP)
    latest = max([mark, *([scene.now] if first and not rows else []), *(_known_at(row) for row in rows)])
    # Marks are kept in whole seconds: what the next look may find again must be noted from there.
    noted = [row for row in rows if _known_at(row) > latest.replace(microsecond=0) - _OVERLAP]
    seen = Seen({f"file/{row['file_id']}": rank_of(row) for row in noted}, {"audit": latest})
    held = _held(scene)
    told = _standing(rows, scene) if first else rows
    return [found for row in told for found in of_row(row, scene, held)], seen


def _known_at(row: Row) -> datetime:
    """When a row came to say what it says."""
    moments: list[datetime] = [row[name] for name in _MOMENTS if row[name]]
    return max(moments)


def _standing(rows: Sequence[Row], scene: Scene) -> list[Row]:
    """Those rows of a long history that still say something: each client's latest, and what still leads nowhere."""
    there = {printable(landed.name) for landed in list_landing(scene.places.landing)}
    latest = {row["client_id"]: row for row in rows if row["client_id"]}
    return [*latest.values(), *(row for row in rows if row["status"] == "unroutable" and row["file_name"] in there)]


def _new_rows(scene: Scene, since: datetime | None) -> list[Row]:
    new = None if since is None else pl.any_horizontal(pl.col(*_MOMENTS) > since)
    rows = sorted(scene.audit.frame(_COLUMNS, new).to_dicts(), key=_known_at)
    return [row for row in rows if scene.loaded.rank(f"file/{row['file_id']}") < rank_of(row)]


def _held(scene: Scene) -> Mapping[str, int]:
    """Client -> how many of its deliveries are held, and are the latest of their names."""
    latest = scene.deliveries.sort("delivery_no").group_by("client_id", "file_name").last()
    held = latest.filter(pl.col("status") == "held")
    return dict(held.group_by("client_id").len().iter_rows())


def of_row(row: Row, scene: Scene, held: Mapping[str, int]) -> Iterator[Observation]:
    """What one row says of its client's conditions, or of the landing zone."""
    if row["status"] == "unroutable":
        text = f"{row['file_name']}: {row['message']}"
        yield _observation("unroutable", row, scene, text, firing=True)
        return
    if row["status"] == "failed":
        yield _observation("delivery_failed", row, scene, f"{row['file_name']}: {row['message']}", firing=True)
        return
    yield _held_ones(row, scene, held.get(row["client_id"], 0))
    # It was told of when it was taken; what holds of it is no longer wrong.
    if row["decision"] in {"accepted", "reverted"}:
        yield from (seen for seen in _taken(row, scene) if not seen.firing and _is_on(row, seen.condition, scene))
    elif row["status"] == "succeeded":
        yield from (seen for seen in _taken(row, scene) if seen.firing or _counts(row, seen.condition, scene))


def _counts(row: Row, condition: str, scene: Scene) -> bool:
    """Whether a good delivery ends an alert: one that was released, or read again, ends none on a later one."""
    alert = scene.alert(row["client_id"], condition)
    on = dict(alert.details).get("date", "") if alert else ""
    return not (row["decision"] or row["reread_of"]) or on <= str(row["creation_date"])


def _is_on(row: Row, condition: str, scene: Scene) -> bool:
    """Whether an open alert is on a delivery."""
    alert = scene.alert(row["client_id"], condition)
    return alert is not None and dict(alert.details).get("file id") == row["file_id"]


def _held_ones(row: Row, scene: Scene, still_held: int) -> Observation:
    if row["status"] == "held":
        text = f"{row['file_name']} is held. {row['message'] or ''}".strip()
        return _observation("delivery_held", row, scene, text, firing=True)
    left = f"Deliveries still held: {still_held}. " if still_held else ""
    return _observation("delivery_held", row, scene, left + _ended(row), firing=bool(still_held))


def _ended(row: Row) -> str:
    """How a delivery that nobody need do anything about ended."""
    by = f" ({row['decision']} by {row['decided_by']})" if row["decision"] else ""
    if row["status"] == "succeeded":
        return f"{row['file_name']} was taken: {_share(row)}{by}."
    return f"{row['file_name']} was {row['status']}{by}."


def _share(row: Row) -> str:
    return f"{row['invalid_ratio'] or 0:.1%} of {row['records'] or 0:,} records were rejected"


def _taken(row: Row, scene: Scene) -> Iterator[Observation]:
    """What a delivery that is in silver says; a person's word makes its numbers right."""
    name, ended = row["file_name"], _ended(row)
    yield _observation("delivery_failed", row, scene, ended, firing=False)
    over = over_limit(row) and not row["decision"]
    told = f"{name}: {_share(row)}, over the limit of {row['max_invalid_ratio']:.1%}." if over else ended
    yield _observation("invalid_ratio", row, scene, told, firing=over)
    if not row["reread_of"]:
        yield _observation("changed_file", row, scene, _changed(row), firing=row["delivery_no"] > 1)
    said, fine = " ".join(row["file_breaches"] or ()), f"{name} has as many records as expected."
    yield _observation("file_rules", row, scene, said or fine, firing=bool(said) and not row["decision"])


def _changed(row: Row) -> str:
    if row["delivery_no"] > 1:
        return f"{row['file_name']} came again with other bytes: it is delivery {row['delivery_no']} of this name."
    return f"{row['file_name']} came for the first time."


def _observation(condition: str, row: Row, scene: Scene, summary: str, *, firing: bool) -> Observation:
    details = [("file", row["file_name"]), ("file id", row["file_id"])]
    if row["client_id"]:
        details += [
            ("date", str(row["creation_date"])),
            ("records", f"{row['records'] or 0:,}"),
            ("accepted", f"{row['accepted'] or 0:,}"),
            ("rejected", f"{row['rejected'] or 0:,}"),
        ]
        top = sorted(row["rules"] or (), key=lambda rule: -rule["records"])[:_RULES]
        rules = ", ".join(f"{rule['rule']} {rule['records']:,}" for rule in top)
        details += [("top failing rules", rules)] if rules else []
    return Observation(
        condition, row["client_id"], firing, row["ingestion_time"], summary, tuple(details), scene.links.delivery(row),
        evidence=f"file/{row['file_id']}",
    )  # fmt: skip
