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
    "invalid_ratio", "max_invalid_ratio", "rules", "file_breaches", "extra_columns", "message", "error_kind",
    "decision", "decided_by", "ingestion_time",
]  # fmt: skip
_RULES = 5


def of_deliveries(scene: Scene) -> Found:
    """What rows that nobody has looked at yet say; on a first look, of each client's latest alone."""
    rows = _new_rows(scene)
    told = _standing(rows, scene) if scene.loaded.first else rows
    noted = [row for row in rows if row["ingestion_time"] > rows[-1]["ingestion_time"] - _OVERLAP]
    seen = Seen({f"file/{row['file_id']}": rank_of(row) for row in noted}, _latest(rows))
    held = _held(scene)
    return [found for row in told for found in of_row(row, scene, held)], seen


def _standing(rows: Sequence[Row], scene: Scene) -> list[Row]:
    """Those rows of a long history that still say something: each client's latest, and what still leads nowhere."""
    there = {printable(landed.name) for landed in list_landing(scene.places.landing)}
    latest = {row["client_id"]: row for row in rows if row["client_id"]}
    return [*latest.values(), *(row for row in rows if row["status"] == "unroutable" and row["file_name"] in there)]


def _new_rows(scene: Scene) -> list[Row]:
    new = None if scene.loaded.first else pl.col("ingestion_time") > scene.loaded.watermark("audit") - _OVERLAP
    rows = scene.audit.frame(_COLUMNS, new).sort("ingestion_time").to_dicts()
    return [row for row in rows if scene.loaded.rank(f"file/{row['file_id']}") < rank_of(row)]


def _latest(rows: Sequence[Row]) -> dict[str, datetime]:
    return {"audit": rows[-1]["ingestion_time"]} if rows else {}


def _held(scene: Scene) -> Mapping[str, int]:
    """Client -> how many of its deliveries are held."""
    held = scene.deliveries.filter(pl.col("status") == "held")
    return dict(held.group_by("client_id").len().iter_rows())


def of_row(row: Row, scene: Scene, held: Mapping[str, int]) -> Iterator[Observation]:
    """What one row says of its client's conditions, or of the landing zone."""
    if row["status"] == "unroutable":
        text = f"{row['file_name']}: {row['message']}"
        yield _observation("unroutable", row, scene, text, firing=True)
        return
    taken = row["status"] == "succeeded"
    yield from _quality(row, scene, held.get(row["client_id"], 0))
    if taken:
        yield _observation("changed_file", row, scene, _changed(row), firing=row["delivery_no"] > 1)
        extra = row["extra_columns"] or 0
        said = f"{row['file_name']} has {extra} column(s) that the contract does not know; they stay in bronze."
        fine = f"{row['file_name']} has the columns of the contract."
        yield _observation("contract_drift", row, scene, said if extra else fine, firing=bool(extra))
        said = " ".join(row["file_breaches"] or ())
        fine = f"{row['file_name']} has as many records as expected."
        accepted = row["decision"] is not None
        yield _observation("file_rules", row, scene, said or fine, firing=bool(said) and not accepted)


def _quality(row: Row, scene: Scene, still_held: int) -> Iterator[Observation]:
    name, status = row["file_name"], row["status"]
    share = f"{row['invalid_ratio'] or 0:.1%} of {row['records'] or 0:,} records were rejected"
    if status == "failed":
        yield _observation("delivery_failed", row, scene, f"{name}: {row['message']}", firing=True)
    elif status == "held":
        yield _observation("delivery_held", row, scene, f"{name} is held. {row['message'] or ''}".strip(), firing=True)
    else:
        by = f" ({row['decision']} by {row['decided_by']})" if row["decision"] else ""
        left = f" Deliveries still held: {still_held}." if still_held else ""
        ended = f"{name} was discarded{by}." if status == "discarded" else f"{name} was taken: {share}{by}."
        yield _observation("delivery_held", row, scene, ended + left, firing=False)
        if status == "succeeded":
            yield _observation("delivery_failed", row, scene, ended, firing=False)
            over = over_limit(row) and not row["decision"]
            told = f"{name}: {share}, over the limit of {row['max_invalid_ratio']:.1%}." if over else ended
            yield _observation("invalid_ratio", row, scene, told, firing=over)


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
