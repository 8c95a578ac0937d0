"""What members fall back to when other deliveries count than before: after a file sent again, a revert, its undoing.

Silver's row of a member is the active sighting with the greatest sequence. So whoever a delivery named whose activity
changes is looked at again: the best of the sightings that count now sets the row, or the member leaves silver.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.errors import PermanentError
from healthingest.lake.rewrite import CHANGED, GONE, NEW
from healthingest.lake.sightings import only_active
from healthingest.lake.silver import Snapshot, readable_columns
from healthingest.members import read_again
from healthingest.platform import Platform
from healthingest.records.damage import RECORD_NO

#: Takes deliveries (file_id, file_name) and says of each whether it counts.
Active = Callable[[pl.DataFrame], pl.Series]


def fallen(
    snapshot: Snapshot, sightings: pl.DataFrame, members: pl.DataFrame, active: Active,
    absent: pl.DataFrame | None = None,
) -> pl.DataFrame:  # fmt: skip
    """Of `members` (token), whose row changes: `_change`, and where it does not go, the sighting that sets it.

    `sightings`: the client's, as `Sightings` has them, with token (Int128) and hash (Int128). `absent` (token): whose
    sightings count for nothing, since full files no longer name them.
    """
    theirs = sightings.join(members, on="token", how="semi")
    counting = theirs if absent is None else theirs.join(absent, on="token", how="anti")
    best = only_active(counting, active).sort("sequence").unique("token", keep="last")
    known = snapshot.hashes(members).rename({"hash": "__hash"}).join(members, on="token", how="semi")
    lost = known.join(best, on="token", how="anti").select("token")
    gone = theirs.join(lost, on="token", how="semi").unique("token").with_columns(_change=pl.lit(GONE))
    change = pl.when(pl.col("__hash").is_null()).then(pl.lit(NEW)).otherwise(pl.lit(CHANGED))
    set_anew = best.join(known, on="token", how="left").filter(pl.col("hash").ne_missing(pl.col("__hash")))
    return pl.concat([gone, set_anew.with_columns(_change=change).drop("__hash")], how="vertical")


def rows_of(platform: Platform, client: Client, changed: pl.DataFrame) -> Iterator[tuple[Client, pl.DataFrame]]:
    """The rows of what `fallen` gave, as `Members` has them, with `_change`: by delivery, each with its own contract.

    Of who goes only the token, with `client`.

    Raises:
        PermanentError: bronze lacks a delivery, or no longer gives what was sighted of it.
    """
    gone = pl.col("_change") == GONE
    for part in changed.filter(~gone).partition_by("file_id"):
        yield _rows_of(platform, client.client_id, part)
    left = changed.filter(gone)
    if left.height:
        yield client, left.select("member_token", "_change")


def _rows_of(platform: Platform, client_id: str, wanted: pl.DataFrame) -> tuple[Client, pl.DataFrame]:
    """What one delivery says of the wanted members; their values are read from bronze."""
    file_id, wanted = str(wanted["file_id"][0]), wanted.select("member_token", "_change")
    registered = platform.lake.bronze.find(client_id, file_id)
    if registered is None:
        raise PermanentError(f"Delivery {file_id} is not in bronze, but members fall back to it; restore bronze.")
    named = read_again(platform, registered.delivery).parts
    found = (some.join(wanted, on="member_token", how="inner") for some in named)
    rows = pl.concat([pl.DataFrame(schema=named.schema | {"_change": pl.String()}), *found])
    if rows.height != wanted.height:
        raise PermanentError(f"Delivery {file_id} in bronze no longer gives what was sighted of it; restore bronze.")
    return platform.pinned_client(registered.delivery), rows


def silver_rows(changed: pl.DataFrame, client: Client) -> pl.DataFrame:
    """Silver's rows, with `_change`, of members as `Members` has them; who goes needs no more than member_token."""
    if "sequence" not in changed.columns:
        none = pl.lit(None, pl.Date)
        return changed.with_columns(client_id=pl.lit(client.client_id), creation_date=none)
    return changed.select(
        "_change",
        "member_token",
        *readable_columns(client.contract),
        "creation_date",
        "_content_hash",
        "_file_id",
        "_contract",
        client_id=pl.lit(client.client_id),
        _sequence=pl.col("sequence"),
        _record_no=pl.col(RECORD_NO),
        _ingested_at=pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC")),
        _bucket=pl.lit(0, pl.Int32),  # where a client has more, `Silver.change` says which
    )
