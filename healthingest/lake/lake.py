"""All tables and folders of one installation, bound to its output folder and keyring."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from healthingest.errors import IncompleteError
from healthingest.lake.audit import Audit
from healthingest.lake.bronze import Bronze
from healthingest.lake.decisions import Decisions
from healthingest.lake.events import Events
from healthingest.lake.exclusion import Exclusion
from healthingest.lake.ledger import Ledger
from healthingest.lake.quarantine import Quarantine
from healthingest.lake.sightings import Sightings
from healthingest.lake.silver import Silver
from healthingest.lake.vault import Vault
from healthingest.places import Places
from healthingest.privacy.keyring import Keyring


@dataclass(frozen=True)
class Lake:
    """Where data rests."""

    bronze: Bronze
    quarantine: Quarantine
    sightings: Sightings
    vault: Vault
    silver: Silver
    audit: Audit
    events: Events
    erasures: Ledger
    holds: Ledger
    decisions: Decisions
    exclusion: Exclusion
    keyring: Keyring
    #: Where rows of large deliveries wait while they are worked on (`privacy.spool`).
    spool: Path

    def require_whole(self) -> None:
        """Refuse to go on where a table is gone that others say was there; a new one would hide the loss.

        Raises:
            IncompleteError: silver or sightings are missing although deliveries were applied.
        """
        if not self.silver.exists():
            applied = self.audit.frame(["file_id"], pl.col("status") == "succeeded").height
            if applied:
                raise IncompleteError(
                    f"{self.silver.path} is missing, but the audit table says that {applied} deliveries were applied; "
                    "restore it from its backup, or run healthingest ingest --from-bronze."
                )
        elif not self.sightings.exists() and self.silver.frame(["member_token"]).height:
            raise IncompleteError(
                f"{self.sightings.path} is missing, but silver has members; restore it from its backup, or move "
                f"{self.silver.path} away too and run healthingest ingest --from-bronze."
            )

    @classmethod
    def of(cls, places: Places, keyring: Keyring) -> "Lake":
        """Bind everything below the output folder; creates nothing yet."""
        root = places.output
        return cls(
            bronze=Bronze(root / "bronze", keyring),
            quarantine=Quarantine.at(root),
            sightings=Sightings.at(root),
            vault=Vault(root / "vault", keyring),
            silver=Silver.at(root),
            audit=Audit.at(root),
            events=Events(root / "checkpoint" / "events", keyring),
            erasures=Ledger(root / "checkpoint" / "erasures", keyring),
            holds=Ledger(root / "checkpoint" / "holds", keyring),
            decisions=Decisions(root / "checkpoint" / "decisions"),
            exclusion=Exclusion(root / "checkpoint" / "locks"),
            keyring=keyring,
            spool=root / "checkpoint" / "spool",
        )
