"""How far breaking changes have come: the Delta table `checkpoint/migrations`, one row per step that was done.

The latest row of a migration is its state; a step's row is written last, so that whoever died in it does it again.
"""

from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Literal

import polars as pl

from healthingest.lake.delta import Table

Step = Literal["started", "widened", "filled", "announced", "finished", "cancelled"]
SCHEMA = pl.Schema(
    {
        "migration": pl.String(), "client_id": pl.String(), "before": pl.String(), "wide": pl.String(),
        "narrow": pl.String(), "step": pl.String(), "switch_on": pl.Date(), "done_by": pl.String(),
        "done_at": pl.Datetime("us", "UTC"), "note": pl.String(),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Migration:
    """A breaking change of one client's contract, as it stands."""

    #: `<client>.<narrow contract>.<when it began>`.
    migration: str
    client_id: str
    #: Contracts: at the beginning, with both columns, and at the end.
    before: str
    wide: str
    narrow: str
    step: Step
    #: From when on readers find the old columns gone.
    switch_on: date | None
    done_by: str
    done_at: datetime
    note: str

    @property
    def is_open(self) -> bool:
        """Whether steps are left."""
        return self.step not in {"finished", "cancelled"}


class Migrations(Table):
    """All steps of all migrations."""

    @classmethod
    def at(cls, output: Path) -> "Migrations":
        """The table below an output folder."""
        return cls(
            output / "checkpoint" / "migrations", SCHEMA, description="Steps of breaking changes.",
            comments={"step": "what was done; the latest of a migration is its state", "switch_on": "for its readers"},
        )  # fmt: skip

    def all(self, client_id: str | None = None) -> list[Migration]:
        """Each migration in its latest state, in the order in which they began."""
        where = None if client_id is None else pl.col("client_id") == client_id
        rows = self.frame(None, where).sort("done_at").to_dicts()
        return list({row["migration"]: Migration(**row) for row in rows}.values())

    def put(self, state: Migration) -> None:
        """Note a step; a step of a migration is noted once."""
        row = pl.DataFrame([vars(state)], schema=SCHEMA)
        self.append_once({f"migration/{state.migration}/{state.step}/{state.switch_on}": row})
