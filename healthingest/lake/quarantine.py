"""The quarantine table: every rejected record, its reasons in clear, the record itself sealed."""

from collections.abc import Container, Iterable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from healthingest.errors import KeyringError
from healthingest.lake.delta import Table
from healthingest.model import Delivery
from healthingest.privacy.keyring import Keyring
from healthingest.privacy.seal import open_value, seal_values
from healthingest.records.damage import RECORD_NO
from healthingest.records.reasons import REASONS

SCHEMA = pl.Schema(
    {
        "client_id": pl.String(),
        "creation_date": pl.Date(),
        "file_id": pl.String(),
        "file_name": pl.String(),
        "record_no": pl.Int64(),
        "line_no": pl.Int64(),
        "lines": pl.Int64(),
        "reasons": REASONS,
        "expected_fields": pl.Int32(),
        "found_fields": pl.Int32(),
        "sealed_record": pl.Binary(),
        "contract": pl.String(),
        "config_hash": pl.String(),
        "run_id": pl.String(),
        "quarantined_at": pl.Datetime("us", "UTC"),
        "state": pl.String(),
    }
)
_APP = "quarantine/"
#: State of a record whose member was erased: its reasons stay, it does not.
ERASED = "erased"
_COMMENTS = {
    "record_no": "1-based number of the record in its file, header excluded",
    "line_no": "physical line (1-based, header included) on which the record starts",
    "lines": "physical lines that it takes",
    "reasons": "every rule the record failed; never a value",
    "expected_fields": "fields the header has; only for malformed records",
    "found_fields": "fields the record has; only for malformed records",
    "config_hash": "digest of the client's config that the delivery is pinned to",
    "sealed_record": "the record as received, AES-256-GCM, bound to its file and number",
    "state": "open, released, discarded, reverted or erased",
}


class Quarantine(Table):
    """Rejected records of all clients."""

    @classmethod
    def at(cls, root: Path) -> "Quarantine":
        """The table below an output folder."""
        return cls(
            root / "quarantine",
            SCHEMA,
            partition_by=("client_id",),
            description="Records that failed their client's contract.",
            comments=_COMMENTS,
            configuration={"delta.dataSkippingStatsColumns": "file_id,record_no"},
        )

    def put(self, batch: Iterable[tuple[Delivery, pl.DataFrame]], keyring: Keyring, run_id: str) -> set[str]:
        """Store the rejected records (frames of `damage.REJECTED_SCHEMA`) of some deliveries, once, in one commit.

        Those without `raw` are erased members'.

        Returns the file ids of those that this call stored.
        """
        parts = {_app_id(delivery): _rows(delivery, rejected, keyring, run_id) for delivery, rejected in batch}
        return {app_id.removeprefix(_APP) for app_id in self.append_once(parts)}

    def settle(self, client_id: str, file_id: str, state: str, given_up: Container[tuple[int, int]]) -> None:
        """Set the state of all records of a delivery; of those whose (line_no, lines) was given up: discarded."""
        mine = (pl.col("client_id") == client_id) & (pl.col("file_id") == file_id)
        rows = self.frame(None, mine & (pl.col("state") != ERASED))
        spans = rows.select("line_no", "lines").iter_rows()
        states = pl.Series(["discarded" if span in given_up else state for span in spans], dtype=pl.String)
        other = rows.with_columns(state=states).filter(rows["state"] != states)
        self.update_client(client_id, ["file_id", "record_no"], other)

    def older(self, client_id: str, keyring: Keyring) -> int:
        """How many rejected records are sealed under another key than the client's latest."""
        rows = self.frame(["file_id", "record_no", "sealed_record"], _sealed_of(client_id))
        return sum(not _opens(keyring, client_id, *row) for row in rows.iter_rows())

    def reseal(self, client_id: str, keyring: Keyring) -> int:
        """Seal all rejected records of a client under its latest key, for who is alone with it; how many were not."""
        rows = self.frame(None, _sealed_of(client_id))
        named = rows.select("file_id", "record_no", "sealed_record")
        old = rows.filter(pl.Series([not _opens(keyring, client_id, *r) for r in named.iter_rows()], dtype=pl.Boolean))
        named = old.select("file_id", "record_no", "sealed_record")
        opened = [open_record(keyring, client_id, *row) for row in named.iter_rows()]
        context = [bound_to(file_id, number) for file_id, number, _ in named.iter_rows()]
        sealed = seal_values(keyring.derive("rejected", client_id), opened, context)
        again = old.with_columns(sealed_record=pl.Series(sealed, dtype=pl.Binary))
        self.update_client(client_id, ["file_id", "record_no"], again)
        return old.height


def _sealed_of(client_id: str) -> pl.Expr:
    return (pl.col("client_id") == client_id) & pl.col("sealed_record").is_not_null()


def _opens(keyring: Keyring, client_id: str, file_id: str, record_no: int, sealed: bytes) -> bool:
    """Whether a record is under the client's latest key."""
    try:
        open_value([keyring.derive("rejected", client_id)], sealed, bound_to(file_id, record_no))
    except KeyringError:
        return False
    return True


def _app_id(delivery: Delivery) -> str:
    return f"{_APP}{delivery.file_id}"


def _rows(delivery: Delivery, rejected: pl.DataFrame, keyring: Keyring, run_id: str) -> pl.DataFrame:
    if rejected.is_empty():
        return pl.DataFrame(schema=SCHEMA)
    key = keyring.derive("rejected", delivery.client_id)
    context = [bound_to(delivery.file_id, number) for number in rejected[RECORD_NO]]
    erased = rejected["raw"].is_null()
    sealed = pl.Series(seal_values(key, rejected["raw"].fill_null(b""), context), dtype=pl.Binary)
    rows = rejected.select(
        client_id=pl.lit(delivery.client_id),
        creation_date=pl.lit(delivery.creation_date),
        file_id=pl.lit(delivery.file_id),
        file_name=pl.lit(delivery.file_name),
        record_no=pl.col(RECORD_NO),
        line_no="line_no",
        lines="lines",
        reasons="reasons",
        expected_fields="expected_fields",
        found_fields="found_fields",
        sealed_record=pl.when(erased).then(None).otherwise(sealed),
        contract=pl.lit(delivery.contract),
        config_hash=pl.lit(delivery.config_hash),
        run_id=pl.lit(run_id),
        quarantined_at=pl.lit(datetime.now(UTC)).cast(pl.Datetime("us", "UTC")),
        state=pl.when(erased).then(pl.lit(ERASED)).otherwise(pl.lit("open")),
    )
    return rows.sort("record_no")


def bound_to(file_id: str, record_no: int) -> bytes:
    """What a sealed record is bound to; it opens nowhere else."""
    return f"rejected\x1f{file_id}\x1f{record_no}".encode()


def open_record(keyring: Keyring, client_id: str, file_id: str, record_no: int, sealed: bytes) -> bytes:
    """The record as received, for who holds the key.

    Raises:
        KeyringError: wrong key or place.
    """
    return open_value(keyring.derive_all("rejected", client_id), sealed, bound_to(file_id, record_no))
