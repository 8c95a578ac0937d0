"""The audit table: one row per delivery, written last; its presence is the "processed" mark.

A row's rank only rises (failed or unroutable, then held, then succeeded): an attempt that failed never replaces what
another one achieved.
"""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from deltalake import write_deltalake

from healthingest.lake.delta import ZSTD, Table, commit, retry
from healthingest.model import Counts, Outcome, Status

SCHEMA = pl.Schema(
    {
        "file_id": pl.String(),
        "client_id": pl.String(),
        "file_name": pl.String(),
        "creation_date": pl.Date(),
        "file_suffix": pl.String(),
        "delivery_no": pl.Int32(),
        "run_id": pl.String(),
        "status": pl.String(),
        "contract": pl.String(),
        "config_hash": pl.String(),
        "content_hmac": pl.String(),
        "file_bytes": pl.Int64(),
        **dict.fromkeys(Counts.names(), pl.Int64()),
        "invalid_ratio": pl.Float64(),
        "max_invalid_ratio": pl.Float64(),
        "rules": pl.List(
            pl.Struct(
                {"column": pl.String, "rule": pl.String, "kind": pl.String, "records": pl.Int64, "severity": pl.String}
            )
        ),
        "pairs": pl.List(pl.Struct({"first": pl.String, "second": pl.String, "records": pl.Int64})),
        "filled": pl.List(pl.Struct({"column": pl.String, "header": pl.String, "records": pl.Int64})),
        "error_kind": pl.String(),
        "message": pl.String(),
        "started_at": pl.Datetime("us", "UTC"),
        "ingestion_time": pl.Datetime("us", "UTC"),
        "duration_s": pl.Float64(),
        "silver_version": pl.Int64(),
    }
)
_RANK: dict[Status, int] = {"unroutable": 1, "failed": 2, "held": 3, "succeeded": 4}


class Audit(Table):
    """One row per delivery of all clients."""

    @classmethod
    def at(cls, root: Path) -> "Audit":
        """The table below an output folder."""
        return cls(
            root / "checkpoint" / "audit",
            SCHEMA,
            description="What became of every file that ever landed.",
            comments={
                "ingestion_time": "when the delivery was decided, UTC",
                "message": "sentences, no values",
                "rules": "records per broken rule, most first; severity warn: accepted ones",
                "pairs": "records per pair of rules that rejected them together, most first",
                "filled": "well-formed records with a value, per contract column, with its name in the file",
            },
            configuration={"delta.dataSkippingStatsColumns": "file_id,creation_date,ingestion_time"},
        )

    def put(self, outcome: Outcome, *, run_id: str, started_at: datetime) -> bool:
        """Record an outcome unless one of the same or a higher rank is recorded; returns whether this call did."""
        delivery, now = outcome.delivery, datetime.now(UTC)
        row = {
            "file_id": delivery.file_id,
            "client_id": delivery.client_id,
            "file_name": delivery.file_name,
            "creation_date": delivery.creation_date,
            "file_suffix": delivery.suffix,
            "delivery_no": delivery.delivery_no,
            "run_id": run_id,
            "status": outcome.status,
            "contract": delivery.contract,
            "config_hash": delivery.config_hash,
            "content_hmac": delivery.content_hmac,
            "file_bytes": delivery.file_bytes,
            **outcome.counts.as_dict(),
            "invalid_ratio": outcome.counts.invalid_ratio,
            "max_invalid_ratio": outcome.max_invalid_ratio,
            **outcome.profile.as_dict(),
            "error_kind": outcome.error_kind,
            "message": outcome.message,
            "started_at": started_at,
            "ingestion_time": now,
            "duration_s": (now - started_at).total_seconds(),
            "silver_version": outcome.silver_version,
        }
        return self._raise_to(row, _RANK[outcome.status])

    def put_unroutable(self, *, file_id: str, file_name: str, file_bytes: int, message: str, run_id: str) -> bool:
        """Record that a landed file belongs to no client or partition; once per file."""
        now = datetime.now(UTC)
        row = dict.fromkeys(SCHEMA) | {
            "file_id": file_id,
            "file_name": file_name,
            "run_id": run_id,
            "status": "unroutable",
            "file_bytes": file_bytes,
            "error_kind": "unroutable",
            "message": message,
            "started_at": now,
            "ingestion_time": now,
            "duration_s": 0.0,
        }
        return self._raise_to(row, _RANK["unroutable"])

    def decided(self, file_ids: Collection[str]) -> dict[str, Status]:
        """file_id -> status of those deliveries that have a row."""
        rows = self.frame(["file_id", "status"], pl.col("file_id").is_in(list(file_ids)))
        return dict(rows.iter_rows())

    def row(self, file_id: str) -> dict[str, Any] | None:
        """The row of one delivery, column -> value; None if it has none."""
        rows = self.frame(None, pl.col("file_id") == file_id).to_dicts()
        return rows[0] if rows else None

    def _raise_to(self, row: Mapping[str, object], rank: int) -> bool:
        rows = pl.DataFrame([row], schema=SCHEMA)
        app_id = f"audit/{row['file_id']}"

        def attempt() -> bool:
            table = self.snapshot()
            known = table.transaction_version(app_id)
            if known is not None and known >= rank:
                return False
            properties = commit({app_id: rank})
            if known is None:
                write_deltalake(table, rows, mode="append", writer_properties=ZSTD, commit_properties=properties)
            else:
                write_deltalake(
                    table, rows, mode="overwrite", predicate=f"file_id = '{row['file_id']}'",
                    writer_properties=ZSTD, commit_properties=properties,
                )  # fmt: skip
            return True

        return retry(attempt)
