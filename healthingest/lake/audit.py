"""The audit table: one row per delivery, written last; its presence is the "processed" mark.

A row's rank only rises (failed or unroutable, then held, then succeeded or discarded, then every revert and its
undoing): an attempt that failed never replaces what another one achieved.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from deltalake import write_deltalake

from healthingest.lake.delta import ZSTD, Table, commit, retry
from healthingest.lake.reverts import Revert, is_odd
from healthingest.model import Counts, Outcome, Status, Verdict

#: What a person decided about a delivery; null: nobody has.
DECISION = pl.Schema(
    {
        "decision": pl.String(), "decided_by": pl.String(), "decision_reason": pl.String(),
        "decided_at": pl.Datetime("us", "UTC"),
    }
)  # fmt: skip
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
        "file_breaches": pl.List(pl.String),
        "extra_columns": pl.Int32(),
        "reread_of": pl.String(),
        "error_kind": pl.String(),
        "message": pl.String(),
        "started_at": pl.Datetime("us", "UTC"),
        "ingestion_time": pl.Datetime("us", "UTC"),
        "duration_s": pl.Float64(),
        "silver_version": pl.Int64(),
        **DECISION,
    }
)
_RANK: dict[Status, int] = {"unroutable": 1, "failed": 2, "held": 3, "succeeded": 4, "discarded": 5, "reverted": 7}
#: Rank of what was taken and a person has accepted since.
_ACCEPTED = 6
#: What each revert, and each undoing of one, adds to the rank.
_REVERT = 10


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
                "file_breaches": "what of the whole file breaks the client's quality, sentences",
                "reread_of": "the delivery that was read once more, under a later config; null: it was received",
                "extra_columns": "columns of its header that the contract does not know",
                "filled": "well-formed records with a value, per contract column, with its name in the file",
            },
            configuration={"delta.dataSkippingStatsColumns": "file_id,creation_date,ingestion_time"},
        )

    def put(self, outcomes: Iterable[Outcome], *, run_id: str, started_at: datetime) -> set[str]:
        """Record each outcome unless one of the same or a higher rank is recorded; the file ids that this call did."""
        return self._raise_to([_row(outcome, run_id, started_at) for outcome in outcomes])

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
        return bool(self._raise_to([row]))

    def put_reverts(self, file_id: str, words: Sequence[Revert], verdict: Verdict | None) -> bool:
        """Say in a delivery's row that it was taken back, or given again, by whom and why; False if it says so.

        `verdict`: what somebody decided about it before.
        """
        row = self.row(file_id)
        if row is None or not words:
            return False
        known = (self.snapshot().transaction_version(_app_id(file_id)) or 0) // _REVERT
        last = words[-1]
        said = asdict(verdict) if verdict else dict.fromkeys(DECISION)
        if last.taken_back:
            said = dict(zip(DECISION, ("reverted", last.by, last.reason, last.at), strict=True))
        sentences = [row["message"], *(one.sentence for one in words[known:])]
        status = "reverted" if last.taken_back else "succeeded"
        row |= said | {"status": status, "message": " ".join(filter(None, sentences))}
        return self._replace(row, last.number)

    def decided(self, file_ids: Collection[str]) -> dict[str, Status]:
        """file_id -> status of those deliveries that have a row."""
        rows = self.frame(["file_id", "status"], pl.col("file_id").is_in(list(file_ids)))
        return dict(rows.iter_rows())

    def row(self, file_id: str) -> dict[str, Any] | None:
        """The row of one delivery, column -> value; None if it has none."""
        return self.rows([file_id]).get(file_id)

    def standing(self) -> pl.DataFrame:
        """Deliveries whose rejected records wait for somebody: of each that was received the latest reading.

        Taken in or held, and not replaced by a later one of their name. Columns: file_id (String), came (Datetime: when
        what was received first came to an end).
        """
        known = self.frame(
            ["client_id", "file_id", "file_name", "delivery_no", "status", "reread_of", "ingestion_time"]
        ).with_columns(origin=pl.coalesce("reread_of", "file_id"))
        name, mine = ["client_id", "file_name"], pl.col("status").is_in(["succeeded", "held"])
        latest = known.filter(pl.col("status") == "succeeded").group_by(name).agg(latest=pl.col("delivery_no").max())
        alive = known.filter(mine).join(latest, on=name, how="left")
        alive = alive.filter(pl.col("latest").is_null() | (pl.col("delivery_no") >= pl.col("latest")))
        alive = alive.filter(pl.col("delivery_no") == pl.col("delivery_no").max().over("client_id", "origin"))
        first = known.select(pl.col("file_id").alias("origin"), came="ingestion_time")
        return alive.join(first, on="origin", how="left").select("file_id", "came")

    def rows(self, file_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """file_id -> row (column -> value) of those deliveries that have one."""
        rows = self.frame(None, pl.col("file_id").is_in(list(file_ids))).to_dicts() if file_ids else []
        return {row["file_id"]: row for row in rows}

    def _raise_to(self, rows: Sequence[Mapping[str, Any]]) -> set[str]:
        """Write those rows that are new in one commit, and replace those that outrank what is known."""
        wanted = {row["file_id"]: row for row in rows}

        def attempt() -> set[str]:
            table = self.snapshot()
            known = {file_id: table.transaction_version(_app_id(file_id)) for file_id in wanted}
            new = [row for file_id, row in wanted.items() if known[file_id] is None]
            if new:
                ranks = {_app_id(row["file_id"]): rank_of(row) for row in new}
                frame = pl.DataFrame(new, schema=SCHEMA)
                write_deltalake(table, frame, mode="append", writer_properties=ZSTD, commit_properties=commit(ranks))
            return {row["file_id"] for row in new}

        written = retry(attempt)
        return written | {f for f, row in wanted.items() if f not in written and self._replace(row)}

    def _replace(self, row: Mapping[str, Any], reverts: int | None = None) -> bool:
        """Put a row in the place of its delivery's, if it outranks that; `reverts`: it tells of so many.

        A row that tells of none leaves one alone that says that the delivery was taken back.
        """
        app_id = _app_id(row["file_id"])

        def attempt() -> bool:
            table = self.snapshot()
            told, known = divmod(table.transaction_version(app_id) or 0, _REVERT)
            if reverts is None and (is_odd(told) or known >= rank_of(row)):
                return False
            if reverts is not None and reverts <= told:
                return False
            rank = rank_of(row) + _REVERT * (told if reverts is None else reverts)
            write_deltalake(
                table, pl.DataFrame([row], schema=SCHEMA), mode="overwrite", predicate=f"file_id = '{row['file_id']}'",
                writer_properties=ZSTD, commit_properties=commit({app_id: rank}),
            )  # fmt: skip
            return True

        return retry(attempt)


def over_limit(row: Mapping[str, Any]) -> bool:
    """Whether more of a delivery's records were rejected than its client allows."""
    return bool((row["invalid_ratio"] or 0) > (row["max_invalid_ratio"] or 0))


def rank_of(row: Mapping[str, Any]) -> int:
    """What a row outranks: it is replaced by rows of a higher rank only."""
    return _ACCEPTED if row["decision"] == "accepted" else _RANK[row["status"]]


def _app_id(file_id: str) -> str:
    return f"audit/{file_id}"


def _row(outcome: Outcome, run_id: str, started_at: datetime) -> dict[str, Any]:
    delivery, now = outcome.delivery, datetime.now(UTC)
    return {
        "file_id": delivery.file_id,
        "client_id": delivery.client_id,
        "file_name": delivery.file_name,
        "creation_date": delivery.creation_date,
        "file_suffix": delivery.suffix,
        "delivery_no": delivery.delivery_no,
        "reread_of": delivery.reread_of,
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
        "file_breaches": list(outcome.file_breaches),
        "extra_columns": outcome.extra_columns,
        "error_kind": outcome.error_kind,
        "message": outcome.message,
        "started_at": started_at,
        "ingestion_time": outcome.ingested_at or now,
        "duration_s": (now - started_at).total_seconds(),
        "silver_version": outcome.silver_version,
        **(asdict(outcome.verdict) if outcome.verdict else dict.fromkeys(DECISION)),
    }
