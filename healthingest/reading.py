"""What a role reads of the members: silver with the values that its keys open, and an event for each reading.

What a role lacks comes back as null, because its keys do not open it. Silver is loaded first, then the vault: a vault
row without its silver row says nothing, the other way round loses one.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property

import polars as pl
from deltalake import DeltaTable
from polars.io.plugins import register_io_source

from healthingest.contracts.contract import Contract, load_contract
from healthingest.errors import IncompleteError, KeyringError, UsageError
from healthingest.lake.silver import Snapshot, readable_columns
from healthingest.lake.vault import Vault
from healthingest.places import Places, today
from healthingest.platform import Platform
from healthingest.privacy.generalize import age_band
from healthingest.privacy.keyring import Keyring, vault_purpose
from healthingest.privacy.roles import Role, actor, role_named


def read_silver(
    *,
    role: str,
    purpose: str | None = None,
    clients: Sequence[str] | None = None,
    as_of: date | None = None,
    places: Places | None = None,
) -> pl.LazyFrame:
    """Current members, as far as `role` may see them, one row each.

    Columns: client_id, member_token (String), every contract column that is kept or vaulted (String; null where the
    role lacks the group's key), derived columns (String, years Int32), age bands as of `as_of` (today), creation_date
    (Date, of the record that last changed the member). Only columns that the query needs are opened. Each time the
    frame is collected an event is written: who, role, purpose, columns opened, and how many members; all of them where
    the query's filter fails, since the error may show their values.

    Raises:
        UsageError: no such role or client, or the role is for other purposes.
        KeyringError: the keyring cannot be used, or lacks what it must hold.
        ConfigError: roles.yaml cannot be used.
    """
    return Reader.of(Platform.open(places), role, purpose).frame(clients, as_of)


@dataclass(frozen=True)
class Reader:
    """One role's sight of an installation."""

    platform: Platform
    name: str
    role: Role
    purpose: str
    keyring: Keyring

    @classmethod
    def of(cls, platform: Platform, name: str | None, purpose: str | None) -> "Reader":
        """A reader with what the role (None: the keyring's own, or `operations`) grants and the keyring holds.

        Raises:
            UsageError, ConfigError: as `read_silver`.
        """
        name = name or platform.keyring.role or "operations"
        role, purpose = role_named(platform.places.configs, name, purpose)
        return cls(platform, name, role, purpose, role.narrow(platform.keyring))

    def frame(self, clients: Sequence[str] | None, as_of: date | None) -> pl.LazyFrame:
        """The lazy frame of `read_silver`; no key is in its plan, and it cannot be serialised."""
        snapshots = self.snapshots(clients)
        schema = self._schema()

        def read(
            with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, _: int | None
        ) -> Iterator[pl.DataFrame]:
            wanted = list(schema) if with_columns is None else with_columns
            needed = {*wanted, *(predicate.meta.root_names() if predicate is not None else ())}
            left = n_rows
            for snapshot in snapshots:
                if left == 0:
                    return
                rows = self.rows(snapshot, needed, as_of or today())
                shown, members = rows.select(self._as_shown(schema, rows, needed)), rows.height
                try:
                    shown = shown if predicate is None else shown.filter(predicate)
                    shown = shown if left is None else shown.head(left)
                    members = shown.height
                finally:  # also where the query fails: polars' error shows values that it failed on
                    self.record(snapshot.client_id, "read", self.opened(snapshot.client_id, needed), members)
                left = None if left is None else left - members
                yield shown.select(wanted)

        return register_io_source(read, schema=schema)

    def snapshots(self, clients: Sequence[str] | None) -> list[Snapshot]:
        """One version of its table of silver, as it is now, for each client that is in one, wanted and granted.

        Raises:
            UsageError: one that is wanted does not exist, or the role has no right to it.
        """
        present = self._present()
        return [Snapshot(present[client_id], client_id) for client_id in self._clients(clients, sorted(present))]

    def _present(self) -> dict[str, DeltaTable]:
        """Client -> the table of silver that its rows are in.

        A client that is being moved may be in two tables, of which its note says which counts; or in none, if one was
        opened before its rows came and the other after they had left: then its note has changed meanwhile.
        """
        destinations = self.platform.lake.destinations
        before = destinations.folders()
        while True:
            tables = {silver.path.name: silver.snapshot() for silver in destinations.tables() if silver.exists()}
            there = {(client_id, name) for name, table in tables.items() for client_id in _clients_in(table)}
            after = destinations.folders()
            if after == before:
                at = {client_id: after.get(client_id) or destinations.of(client_id).folder for client_id, _ in there}
                return {client_id: tables[name] for client_id, name in there if at[client_id] == name}
            before = after

    def rows(self, snapshot: Snapshot, columns: Collection[str], as_of: date) -> pl.DataFrame:
        """Silver's rows of one client with those of the `columns` that the role may open, and age bands.

        Where an erasure or rotation has meanwhile deleted what that version needs, those of the latest version.
        """
        try:
            return self._rows(snapshot, columns, as_of)
        except (FileNotFoundError, IncompleteError, KeyringError):
            now = Reader.of(Platform.open(self.platform.places), self.name, self.purpose)
            latest = Snapshot(now.platform.lake.silver_of(snapshot.client_id).snapshot(), snapshot.client_id)
            if latest.table.version() == snapshot.table.version() and now.keyring == self.keyring:
                raise
            return now._rows(latest, columns, as_of)  # noqa: SLF001 - a reader as this one is

    def _rows(self, snapshot: Snapshot, columns: Collection[str], as_of: date) -> pl.DataFrame:
        rows = pl.scan_delta(snapshot.table).filter(pl.col("client_id") == snapshot.client_id).collect()
        if opened := self.opened(snapshot.client_id, columns):
            rows = self._with_values(snapshot.client_id, rows, opened)
        bands = {band: year for contract in self.contracts for band, year in contract.age_bands.items()}
        return rows.with_columns(
            **{band: age_band(pl.col(year), as_of) for band, year in bands.items() if year in rows.columns}
        )

    def opened(self, client_id: str, columns: Collection[str]) -> set[str]:
        """Those of the columns that the vault may hold values of and the role may open.

        Raises:
            KeyringError: the installation's own keyring lacks a key that it must hold.
        """
        groups = {(c, g) for contract in self.contracts for c, g in contract.vaulted.items() if c in columns}
        granted = {(c, g) for c, g in groups if self.role.groups == "*" or g in self.role.groups}
        if self.platform.keyring.role is None:
            for group in {g for _, g in granted}:
                self.platform.keyring.derive(vault_purpose(group), client_id)
        return {c for c, g in granted if self.keyring.holds(vault_purpose(g), client_id)}

    @cached_property
    def contracts(self) -> list[Contract]:
        """What rows may have been written under: the registry's contracts and the clients' own forms of them."""
        clients = self.platform.clients.clients.values()
        met = [silver.frame(["_contract"])["_contract"].unique() for silver in self.platform.lake.silvers()]
        names = {*(client.config.contract for client in clients), *(name for some in met for name in some)}
        plain = [load_contract(self.platform.places.configs, name) for name in sorted(names)]
        return [*plain, *(client.contract for client in clients if client.config.policies)]

    def record(self, client_id: str, kind: str, columns: Collection[str], members: int) -> None:
        """Write the event of one reading; without it there is no reading."""
        details = {"who": actor(), "purpose": self.purpose, "columns": sorted(columns), "members": members}
        self.platform.lake.events.append(client_id, kind, self.name, details)

    def _clients(self, wanted: Sequence[str] | None, present: Sequence[str]) -> list[str]:
        granted = None if self.role.clients == "*" else set(self.role.clients)
        for client_id in wanted or ():
            if client_id not in present and client_id not in self.platform.clients.clients:
                known = ", ".join(self.platform.clients.clients)
                raise UsageError(f"There is no client {client_id}; there is {known}.")
            if granted is not None and client_id not in granted:
                raise UsageError(f"The role {self.name} has no right to {client_id}.")
        return [c for c in present if (wanted is None or c in wanted) and (granted is None or c in granted)]

    @staticmethod
    def _as_shown(schema: pl.Schema, rows: pl.DataFrame, needed: Collection[str]) -> Iterator[pl.Expr]:
        for name, dtype in schema.items():
            if name in needed:
                yield (pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)

    def _with_values(self, client_id: str, rows: pl.DataFrame, columns: Collection[str]) -> pl.DataFrame:
        vault = Vault(self.platform.lake.vault.root, self.keyring)
        values = vault.values(client_id, rows.select("member_token", "_file_id"), columns)
        lost = rows.join(values, on=["member_token", "_file_id"], how="anti")
        if lost.height:
            raise IncompleteError(
                f"The vault has no values for {lost.height} members of {client_id}, from "
                f"{lost['_file_id'].n_unique()} deliveries; restore {vault.root} from its backup."
            )
        joined = rows.join(values, on=["member_token", "_file_id"], how="left", suffix="__vault")
        # A column that is kept by one policy and vaulted by another stands in both places.
        both = [c for c in values.columns if f"{c}__vault" in joined.columns]
        return joined.with_columns(pl.coalesce(c, f"{c}__vault") for c in both)

    def _schema(self) -> pl.Schema:
        """What a reader is shown: the same columns whatever the role, so that queries need not know it."""
        text = pl.String()
        found: dict[str, pl.DataType] = {"client_id": text, "member_token": text}
        for contract in self.contracts:
            found |= {c.name: text for c in contract.columns if c.policy.keep or c.policy.vault}
            found |= readable_columns(contract) | dict.fromkeys(contract.age_bands, text)
        found |= dict.fromkeys(of_two_types(self.contracts), text)  # of clients with tables of their own
        return pl.Schema(found | {"creation_date": pl.Date()})


def of_two_types(contracts: Sequence[Contract]) -> set[str]:
    """Columns of silver that have one type in one table and another in another: they are shown as text."""
    types: dict[str, set[pl.DataType]] = {}
    for contract in contracts:
        for name, dtype in readable_columns(contract).items():
            types.setdefault(name, set()).add(dtype)
    return {name for name, found in types.items() if len(found) > 1}


def _clients_in(table: DeltaTable) -> list[str]:
    found: list[str] = pl.scan_delta(table).select(pl.col("client_id").unique()).collect()["client_id"].to_list()
    return found
