"""All tables and folders of one installation, bound to its output folder and keyring."""

from dataclasses import dataclass

from healthingest.lake.audit import Audit
from healthingest.lake.bronze import Bronze
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
        )
