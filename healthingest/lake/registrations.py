"""Which versions of contracts are published, by whom, when and why: the Delta table `checkpoint/contracts`.

A version is registered when a delivery first meets it, or when it is approved; from then on its text stands. What is
built from a delivery must be the same tomorrow, so a contract that was edited in place is refused by its digest here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from healthingest.contracts.clients import ClientSet, load_clients
from healthingest.contracts.contract import Contract, load_contract
from healthingest.contracts.versions import Change, Compatibility, changes, compatibility, hold_against_registry
from healthingest.lake.delta import Table
from healthingest.lake.destinations import Destinations
from healthingest.places import Places

SCHEMA = pl.Schema(
    {
        "contract": pl.String(), "version": pl.Int32(), "digest": pl.String(), "compatibility": pl.String(),
        "changes": pl.List(pl.Struct({"subject": pl.String, "text": pl.String, "compatibility": pl.String})),
        "registered_by": pl.String(), "registered_at": pl.Datetime("us", "UTC"), "reason": pl.String(),
    }
)  # fmt: skip
_COMMENTS = {
    "contract": "its name; with version it is the contract that clients and deliveries name",
    "digest": "of what the contract says, whatever its layout",
    "compatibility": "compatible, additive or breaking, against the version before; null: there is none",
    "changes": "every difference to the version before",
}


@dataclass(frozen=True)
class Registration:
    """One published version."""

    contract: str
    version: int
    digest: str
    compatibility: Compatibility | None
    changes: tuple[Change, ...]
    registered_by: str
    registered_at: datetime
    reason: str

    @property
    def name(self) -> str:
        """`<contract>/<version>`."""
        return f"{self.contract}/{self.version}"


class Registrations(Table):
    """The published versions of all contracts."""

    @classmethod
    def at(cls, output: Path) -> "Registrations":
        """The table below an output folder."""
        return cls(
            output / "checkpoint" / "contracts", SCHEMA, description="Published versions of contracts.",
            comments=_COMMENTS, configuration={"delta.dataSkippingStatsColumns": "contract,version"},
        )  # fmt: skip

    def digests(self) -> dict[str, str]:
        """`<contract>/<version>` -> digest of every published version."""
        rows = self.frame(["contract", "version", "digest"])
        return {f"{name}/{version}": text for name, version, text in rows.iter_rows()}

    def all(self, contract: str | None = None) -> list[Registration]:
        """Every published version, or those of one contract, in order."""
        where = None if contract is None else pl.col("contract") == contract
        rows = self.frame(None, where).sort("contract", "version").to_dicts()
        return [Registration(**row | {"changes": tuple(Change(**c) for c in row["changes"])}) for row in rows]

    def put(self, contract: Contract, before: Contract | None, *, by: str, reason: str) -> bool:
        """Publish a version unless it is; whether it was not. `before`: the version before it."""
        differ = changes(before, contract) if before else []
        row = {
            "contract": contract.contract, "version": contract.version, "digest": contract.digest,
            "compatibility": compatibility(differ) if before else None, "changes": [vars(c) for c in differ],
            "registered_by": by, "registered_at": datetime.now(UTC), "reason": reason,
        }  # fmt: skip
        return bool(self.append_once({f"contract/{contract.name}": pl.DataFrame([row], schema=SCHEMA)}))

    def publish(self, configs: Path, name: str, *, by: str, reason: str) -> None:
        """Publish `<name>/<version>` of the registry below `configs`, unless it is.

        Raises:
            ConfigError: it cannot stand in the registry, or another text of it is published.
        """
        contract = load_contract(configs, name)
        hold_against_registry(configs, contract, self.digests())
        number = contract.version - 1
        before = load_contract(configs, f"{contract.contract}/{number}") if number else None
        if not self.put(contract, before, by=by, reason=reason):  # somebody was faster, maybe with another text
            hold_against_registry(configs, contract, self.digests())


def known_clients(places: Places) -> ClientSet:
    """All clients, held against the published versions of their contracts and where their rows are."""
    published: Mapping[str, str] = Registrations.at(places.output).digests()
    return load_clients(places, published, Destinations.at(places).objection)
