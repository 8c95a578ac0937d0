"""All tables and folders of one installation, bound to its output folder and keyring."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from healthingest.contracts.clients import Layout
from healthingest.errors import IncompleteError
from healthingest.lake.audit import Audit
from healthingest.lake.bronze import Bronze
from healthingest.lake.decisions import Decisions
from healthingest.lake.destinations import Destinations
from healthingest.lake.discards import Discards
from healthingest.lake.events import Events
from healthingest.lake.exclusion import Exclusion
from healthingest.lake.ledger import Ledger
from healthingest.lake.quarantine import Quarantine
from healthingest.lake.reverts import Reverts
from healthingest.lake.sightings import Sightings
from healthingest.lake.silver import Silver
from healthingest.lake.vault import Vault
from healthingest.places import Places
from healthingest.privacy.keyring import Keyring
from healthingest.storage.files import scratch


@dataclass(frozen=True)
class Lake:
    """Where data rests."""

    destinations: Destinations
    bronze: Bronze
    quarantine: Quarantine
    sightings: Sightings
    vault: Vault
    #: That of all clients without one of their own, unless they are dealt out; who means one client's asks `silver_of`.
    silver: Silver
    audit: Audit
    events: Events
    erasures: Ledger
    holds: Ledger
    decisions: Decisions
    reverts: Reverts
    discards: Discards
    exclusion: Exclusion
    keyring: Keyring
    #: Where rows of large deliveries wait while they are worked on (`privacy.spool`).
    spool: Path

    def silver_of(self, client_id: str) -> Silver:
        """The table of silver that a client's rows are in; for reading."""
        return Silver.at(self.destinations.output, self.destinations.of(client_id))

    def silver_for(self, client_id: str) -> Silver:
        """The same for whoever is about to write: from then on a client's config cannot lead elsewhere.

        Raises:
            IncompleteError: how the client's rows lie was noted once, and the note is gone.
        """
        return Silver.at(self.destinations.output, self.destinations.settle(client_id))

    def silvers(self) -> list[Silver]:
        """Every table of silver, that of all clients first; the first of them may not exist yet."""
        return self.destinations.tables()

    def require_whole(self) -> None:
        """Refuse to go on where a table is gone that others say was there; a new one would hide the loss.

        Raises:
            IncompleteError: a table of silver or sightings are missing although deliveries were applied.
        """
        silvers = self.silvers()
        for silver in silvers:
            if silver.exists():
                continue
            rows = self.audit.frame(["client_id"], pl.col("status") == "succeeded")
            mine = {c for c in rows["client_id"].unique() if len(silvers) == 1 or self.silver_of(c).path == silver.path}
            applied = rows.filter(pl.col("client_id").is_in(mine)).height
            if applied:
                raise IncompleteError(
                    f"{silver.path} is missing, but the audit table says that {applied} deliveries were applied; "
                    "restore it from its backup, or run healthingest ingest --from-bronze."
                )
        if self.sightings.exists():
            return
        for silver in silvers:
            if silver.exists() and silver.frame(["member_token"]).height:
                raise IncompleteError(
                    f"{self.sightings.path} is missing, but silver has members; restore it from its backup, or move "
                    f"{silver.path} away too and run healthingest ingest --from-bronze."
                )

    @classmethod
    def of(cls, places: Places, keyring: Keyring, layouts: Mapping[str, Layout] | None = None) -> "Lake":
        """Bind everything below the output folder; creates nothing yet.

        `layouts`: client -> what its config says of where its rows go, which counts until it has any.
        """
        root = places.output
        return cls(
            destinations=Destinations.at(places, layouts),
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
            reverts=Reverts(root / "checkpoint" / "reverts"),
            discards=Discards(root / "checkpoint" / "discards"),
            exclusion=Exclusion(root / "checkpoint" / "locks"),
            keyring=keyring,
            spool=scratch(root),
        )
