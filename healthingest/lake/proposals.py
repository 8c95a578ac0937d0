"""How deliveries differed from their contracts, and what people said about it: two Delta tables, both only grow.

`checkpoint/drift` has a row per delivery and difference; `checkpoint/proposals` one per word of a person. What is open
follows from both and the client's present config, so that nothing has to be kept in step.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from healthingest.lake.delta import Table
from healthingest.model import Delivery
from healthingest.records.drift import Drift, Kind

DRIFT_SCHEMA = pl.Schema(
    {
        "client_id": pl.String(), "file_id": pl.String(), "file_name": pl.String(), "creation_date": pl.Date(),
        "kind": pl.String(), "subject": pl.String(), "header": pl.String(), "column": pl.String(),
        "records": pl.Int64(), "filled": pl.Int64(), "distinct": pl.Int64(), "shape": pl.String(), "rule": pl.String(),
        "releases": pl.Int64(), "fix": pl.String(), "contract": pl.String(), "noted_at": pl.Datetime("us", "UTC"),
    }
)  # fmt: skip
WORD_SCHEMA = pl.Schema(
    {
        "client_id": pl.String(), "proposal": pl.String(), "word": pl.String(), "answer": pl.String(),
        "said_by": pl.String(), "said_at": pl.Datetime("us", "UTC"), "reason": pl.String(),
    }
)  # fmt: skip
Said = Literal["approved", "applied", "rejected", "reopened"]


@dataclass(frozen=True)
class Noted:
    """A difference that one delivery showed."""

    client_id: str
    file_id: str
    file_name: str
    creation_date: date
    drift: Drift
    #: Rejected records that would be accepted if it were taken in.
    releases: int
    contract: str
    noted_at: datetime


@dataclass(frozen=True)
class Word:
    """What somebody said about a proposal."""

    client_id: str
    proposal: str
    word: Said
    #: What was to be done, as the approval's options say it.
    answer: dict[str, Any]
    said_by: str
    said_at: datetime
    reason: str


class Drifts(Table):
    """What deliveries showed."""

    @classmethod
    def at(cls, output: Path) -> "Drifts":
        """The table below an output folder."""
        return cls(
            output / "checkpoint" / "drift", DRIFT_SCHEMA, description="How deliveries differed from their contracts.",
            comments={
                "subject": "the column or rule that it is about",
                "filled": "records with a value, or that broke the rule",
                "shape": "what most values look like, never a value", "releases": "records that would be accepted",
                "fix": "what would take it in, JSON",
            },
            configuration={"delta.dataSkippingStatsColumns": "client_id,noted_at"},
        )  # fmt: skip

    def put(self, found: Iterable[tuple[Delivery, Drift, int]]) -> int:
        """Note differences, each of a delivery once; how many were new."""
        now = datetime.now(UTC)
        parts = {
            f"drift/{d.file_id}/{drift.kind}/{drift.subject}": pl.DataFrame(
                [
                    {
                        "client_id": d.client_id, "file_id": d.file_id, "file_name": d.file_name,
                        "creation_date": d.creation_date, "kind": drift.kind, "subject": drift.subject,
                        "header": drift.header, "column": drift.column, "records": drift.records,
                        "filled": drift.filled, "distinct": drift.distinct, "shape": drift.shape, "rule": drift.rule,
                        "releases": releases, "fix": json.dumps(drift.fix, sort_keys=True), "contract": d.contract,
                        "noted_at": now,
                    }
                ],
                schema=DRIFT_SCHEMA,
            )
            for d, drift, releases in found
        }  # fmt: skip
        return len(self.append_once(parts))

    def of(self, client_id: str | None = None) -> list[Noted]:
        """What was noted of a client, or of all, in the order of noting."""
        rows = self.frame(None, None if client_id is None else pl.col("client_id") == client_id)
        return [_noted(row) for row in rows.sort("noted_at", "file_name", maintain_order=True).to_dicts()]


def _noted(row: dict[str, Any]) -> Noted:
    kind: Kind = row["kind"]
    drift = Drift(
        kind, row["subject"], row["header"], row["column"], row["records"], row["filled"], row["distinct"],
        row["shape"], row["rule"], json.loads(row["fix"]),
    )  # fmt: skip
    return Noted(
        row["client_id"], row["file_id"], row["file_name"], row["creation_date"], drift, row["releases"],
        row["contract"], row["noted_at"],
    )  # fmt: skip


class Words(Table):
    """What people said."""

    @classmethod
    def at(cls, output: Path) -> "Words":
        """The table below an output folder."""
        return cls(
            output / "checkpoint" / "proposals", WORD_SCHEMA,
            description="What people said about proposals to change a schema.",
            comments={"word": "approved, applied, rejected or reopened", "answer": "the approval's options, JSON"},
        )  # fmt: skip

    def put(
        self, client_id: str, proposal: str, word: Said, *, by: str, reason: str, answer: dict[str, Any] | None = None
    ) -> None:
        """Note a word."""
        now = datetime.now(UTC)
        row = {
            "client_id": client_id, "proposal": proposal, "word": word, "said_by": by, "said_at": now,
            "reason": reason, "answer": json.dumps(answer or {}, sort_keys=True),
        }  # fmt: skip
        self.append_once({f"word/{proposal}/{word}/{now.isoformat()}": pl.DataFrame([row], schema=WORD_SCHEMA)})

    def of(self, client_id: str | None = None) -> Sequence[Word]:
        """All words on a client's proposals, or on all, in order."""
        rows = self.frame(None, None if client_id is None else pl.col("client_id") == client_id).sort("said_at")
        return [Word(**row | {"answer": json.loads(row["answer"])}) for row in rows.to_dicts()]
