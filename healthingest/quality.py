"""What a client's `quality` asks of a delivery as a whole, and the sentences that say what it does not keep to."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from healthingest.contracts.clients import Quality
from healthingest.lake.audit import Audit
from healthingest.model import Counts, Delivery

#: Deliveries and their numbers of records.
Alongside = Sequence[tuple[Delivery, int]]


@dataclass(frozen=True)
class Judgement:
    """What of a delivery breaks its client's `quality`."""

    #: The share of rejected records; None if it is within its limit.
    ratio: str | None
    #: Other sentences about the file as a whole.
    file: tuple[str, ...]
    #: Whether the delivery must be held for it.
    holds: bool


def judge_quality(
    quality: Quality, counts: Counts, delivery: Delivery, audit: Audit, alongside: Alongside = ()
) -> Judgement:
    """Hold a delivery's counts against its client's limits; `alongside`: deliveries that await their audit rows.

    A change of volume never holds: what came before depends on the order of arrival, and silver must not.
    """
    ratio = _ratio(quality, counts)
    size = _size(quality, counts.records)
    holds = quality.on_breach == "hold" and bool(ratio or size)
    return Judgement(ratio, (*size, *_volume(quality, counts.records, delivery, audit, alongside)), holds)


def _ratio(quality: Quality, counts: Counts) -> str | None:
    if counts.invalid_ratio <= quality.max_invalid_ratio:
        return None
    share = f"{counts.invalid_ratio:.1%}, over the limit of {quality.max_invalid_ratio:.1%}"
    return f"{counts.rejected} of {counts.records} records were rejected ({share})."


def _size(quality: Quality, records: int) -> list[str]:
    least, most = quality.min_records, quality.max_records
    sentences = []
    if least is not None and records < least:
        sentences.append(f"The file has {records} records; this client's files have at least {least}.")
    if most is not None and records > most:
        sentences.append(f"The file has {records} records; this client's files have at most {most}.")
    return sentences


def _volume(quality: Quality, records: int, delivery: Delivery, audit: Audit, alongside: Alongside) -> list[str]:
    allowed = quality.max_volume_change
    before = _records_before(delivery, audit, alongside) if allowed is not None else None
    if allowed is None or not before:
        return []
    change = (records - before) / before
    if abs(change) <= allowed:
        return []
    against = f"{change:+.0%} against the {before} of the one before"
    return [f"The file has {records} records, {against}; at most {allowed:.0%} is expected."]


def _records_before(delivery: Delivery, audit: Audit, alongside: Alongside) -> int | None:
    """Records of the client's latest applied delivery whose date and suffix come before this one's."""
    mine = (pl.col("client_id") == delivery.client_id) & (pl.col("status") == "succeeded")
    rows = audit.frame(["creation_date", "file_suffix", "delivery_no", "records"], mine)
    waiting = [(d.creation_date, d.suffix, d.delivery_no, count) for d, count in alongside]
    rows = pl.concat([rows, pl.DataFrame(waiting, schema=rows.schema, orient="row")])
    rank = pl.struct("creation_date", "file_suffix")
    earlier = rows.filter(
        (pl.col("creation_date") < delivery.creation_date)
        | ((pl.col("creation_date") == delivery.creation_date) & (pl.col("file_suffix") < delivery.suffix))
    ).sort(rank, "delivery_no")
    return int(earlier["records"][-1]) if earlier.height else None
