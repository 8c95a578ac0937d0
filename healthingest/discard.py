"""Gives rejected records up, or takes them up again: noted first, then the quarantine table follows."""

from collections.abc import Sequence

import polars as pl

from healthingest.closed import settle_records
from healthingest.errors import UsageError
from healthingest.lake.discards import word
from healthingest.platform import Platform
from healthingest.privacy.roles import decision_reason
from healthingest.rejections import Wanted, rejected, tasks, with_words


def chosen(platform: Platform, wanted: Wanted, records: Sequence[int] = (), *, back: bool = False) -> pl.DataFrame:
    """Rows of quarantine that can be given up (or taken up again), by record numbers if any.

    Given up: open ones of deliveries that no later one of their name has replaced. Taken up again: those that were
    given up one by one, also where whoever did it died before the table followed.

    Raises:
        UsageError: nothing is known of a file that was named, or all of it was discarded as a whole.
    """
    rows = rejected(platform, wanted)
    rows = rows.filter(pl.col("record_no").is_in(list(records))) if records else rows
    if not back:
        return tasks(platform, rows)
    rows = with_words(platform, rows).filter(pl.col("state") == "discarded")
    single = rows.filter(~pl.col("state_of_file"))
    if rows.height and single.is_empty():
        raise UsageError(f"{rows['file_name'][0]} was discarded as a whole, which is final; its records stay closed.")
    return single


def discard(platform: Platform, rows: pl.DataFrame, *, by: str, reason: str, back: bool = False) -> int:
    """Give up (or take up again) what `chosen` gave; how many records.

    Raises:
        UsageError: the reason is not one line of text, or a delivery's sealed copy is gone.
    """
    reason = decision_reason(reason)
    for part in rows.partition_by("client_id", "file_id", maintain_order=True):
        client_id, file_id = part["client_id"][0], part["file_id"][0]
        found = platform.lake.bronze.find(client_id, file_id)
        if found is None:
            raise UsageError(f"Delivery {file_id} is not in bronze; restore bronze.")
        kind = "records_reopened" if back else "records_discarded"
        with platform.lake.exclusion.shared(client_id):
            told = {"who": by, "file_id": file_id, "records": part.height, "reason": reason}
            platform.lake.events.append(client_id, kind, "", told)
            said = word(part.select("line_no", "lines").iter_rows(), by, reason, back=back)
            platform.lake.discards.put(client_id, found.delivery.origin, said)
            settle_records(platform, found.delivery)
    return rows.height
