"""Gives rejected records up, or takes them up again: noted first, then the quarantine table follows."""

from collections.abc import Sequence

import polars as pl

from healthingest.closed import settle_records
from healthingest.errors import UsageError
from healthingest.lake.discards import word
from healthingest.platform import Platform
from healthingest.privacy.roles import decision_reason
from healthingest.rejections import Wanted, rejected


def chosen(platform: Platform, wanted: Wanted, records: Sequence[int] = (), *, back: bool = False) -> pl.DataFrame:
    """Rows of quarantine that can be given up (or taken up again): open (or discarded) ones, by numbers if any.

    Raises:
        UsageError: nothing is known of a file that was named.
    """
    rows = rejected(platform, wanted).filter(pl.col("state") == ("discarded" if back else "open"))
    return rows.filter(pl.col("record_no").is_in(list(records))) if records else rows


def discard(platform: Platform, rows: pl.DataFrame, *, by: str, reason: str, back: bool = False) -> int:
    """Give up (or take up again) what `chosen` gave; how many records.

    Raises:
        UsageError: the reason is not one line of text, or a whole delivery was discarded.
    """
    reason = decision_reason(reason)
    for part in rows.partition_by("client_id", "file_id", maintain_order=True):
        client_id, file_id, numbers = part["client_id"][0], part["file_id"][0], part["record_no"].to_list()
        found = platform.lake.bronze.find(client_id, file_id)
        verdict = platform.lake.decisions.of(client_id, file_id)
        if found is None:
            raise UsageError(f"Delivery {file_id} is not in bronze; restore bronze.")
        if verdict and verdict.decision == "discarded":
            raise UsageError(f"{found.delivery.file_name} was discarded as a whole; its records stay closed.")
        kind = "records_reopened" if back else "records_discarded"
        with platform.lake.exclusion.shared(client_id):
            told = {"who": by, "file_id": file_id, "records": len(numbers), "reason": reason}
            platform.lake.events.append(client_id, kind, "", told)
            platform.lake.discards.put(client_id, found.delivery.origin, word(numbers, by, reason, back=back))
            settle_records(platform, found.delivery)
    return rows.height
