"""Hold the real tables against what code and registry say of them, put right what may be put right, and tell the rest.

What only lags behind is repaired: columns, comments and properties that are missing. What differs otherwise is told
exactly and left alone: a column of another type or one that nobody registered means that somebody else writes here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl
from deltalake import DeltaTable, Field

from healthingest.contracts.clients import ClientSet
from healthingest.contracts.contract import contract_names, load_contract
from healthingest.errors import ConfigError
from healthingest.lake.audit import Audit
from healthingest.lake.delta import Table, delta_schema, retry
from healthingest.lake.destinations import Destinations
from healthingest.lake.quarantine import Quarantine
from healthingest.lake.sightings import Sightings
from healthingest.lake.silver import comments, readable_columns
from healthingest.places import Places


@dataclass(frozen=True)
class Difference:
    """One difference between a table and what it should be."""

    table: str
    #: Column, or property; empty: the table as a whole.
    subject: str
    text: str
    #: Whether it only lags behind, so that it is put right without harm to anybody.
    repairable: bool

    @property
    def sentence(self) -> str:
        """What differs, for people."""
        return f"{self.table}{': ' + self.subject if self.subject else ''} {self.text}."


@dataclass(frozen=True)
class Wanted:
    """What a table should be."""

    name: str
    table: Table
    schema: pl.Schema
    comments: Mapping[str, str]
    #: Columns that may be there besides: of registered contracts that no client has now.
    known: frozenset[str] = frozenset()


def differences(places: Places, clients: ClientSet) -> list[Difference]:
    """Every difference of the tables that exist, what people must look at first; writes nothing, and needs no keys."""
    found = [found for wanted in _all(places, clients) for found in _of(wanted)]
    return sorted(found, key=lambda difference: difference.repairable)


def reconcile(places: Places, clients: ClientSet) -> tuple[list[Difference], list[Difference]]:
    """Put right what lags behind; returns what was put right, and what remains.

    Raises:
        ContentionError: others kept committing.
    """
    found = differences(places, clients)
    for wanted in _all(places, clients):
        mine = [d for d in found if d.table == wanted.name and d.repairable]
        if mine:
            retry(lambda wanted=wanted: _repair(wanted))  # type: ignore[misc]
    left = differences(places, clients)
    return [d for d in found if d not in left], left


def _all(places: Places, clients: ClientSet) -> Iterator[Wanted]:
    destinations, known = Destinations(places.output, clients.layouts), frozenset(_registered(places))
    for silver in destinations.tables():
        columns, said = dict(silver.schema), dict(silver.comments)
        for client_id, client in clients.clients.items():
            if destinations.of(client_id).folder == silver.path.name:
                columns |= readable_columns(client.contract)
                said |= comments(client.contract)
        yield Wanted(silver.path.name, silver, pl.Schema(columns), said, known)
    others: dict[str, Table] = {
        "quarantine": Quarantine.at(places.output), "audit": Audit.at(places.output),
        "sightings": Sightings.at(places.output),
    }  # fmt: skip
    for name, table in others.items():
        yield Wanted(name, table, table.schema, table.comments)


def _registered(places: Places) -> Iterator[str]:
    """Silver columns of any version of any contract; one that cannot be read knows none."""
    for name in contract_names(places.configs):
        try:
            yield from readable_columns(load_contract(places.configs, name))
        except ConfigError:
            continue


def _of(wanted: Wanted) -> Iterator[Difference]:
    if not wanted.table.exists():
        return
    name, handle = wanted.name, DeltaTable(wanted.table.uri)
    real = {field.name: field for field in handle.schema().fields}
    should = {field.name: field for field in delta_schema(wanted.schema, wanted.comments).fields}
    for column, field in should.items():
        if wrong := _of_column(real.get(column), field):
            yield Difference(name, column, *wrong)
    for column in sorted(real.keys() - should.keys() - wanted.known):
        said = "is in no contract of the registry" if wanted.known else "is none of this table's columns"
        yield Difference(name, column, said, repairable=False)
    partitions = list(handle.metadata().partition_columns)
    if partitions != list(wanted.table.partition_by):
        told = f"is partitioned by {', '.join(partitions) or 'nothing'} and should be by "
        yield Difference(name, "", told + (", ".join(wanted.table.partition_by) or "nothing"), repairable=False)
    for key, value in wanted.table.configuration.items():
        if handle.metadata().configuration.get(key) != value:
            yield Difference(name, key, f"is not {value}", repairable=True)


def _of_column(real: Field | None, should: Field) -> tuple[str, bool] | None:
    """What is wrong with a column, and whether it only lags behind."""
    if real is None:
        return "is missing", True
    if str(real.type) != str(should.type):
        return f"is {_type(real)} and should be {_type(should)}", False
    if not real.nullable and should.nullable:
        return "may not be null, which no writer here keeps to", False
    if should.metadata.get("comment") and not real.metadata.get("comment"):
        return "has no comment", True
    return None


def _type(field: Field) -> str:
    return str(getattr(field.type, "type", None) or field.type)


def _repair(wanted: Wanted) -> None:
    handle = DeltaTable(wanted.table.uri)
    real = {field.name: field for field in handle.schema().fields}
    should = list(delta_schema(wanted.schema, wanted.comments).fields)
    if missing := [field for field in should if field.name not in real]:
        handle.alter.add_columns(missing)
        handle = DeltaTable(wanted.table.uri)
    for field in should:
        comment = field.metadata.get("comment")
        if comment and field.name in real and not real[field.name].metadata.get("comment"):
            handle.alter.set_column_metadata(field.name, {"comment": comment})
            handle = DeltaTable(wanted.table.uri)
    off = {k: v for k, v in wanted.table.configuration.items() if handle.metadata().configuration.get(k) != v}
    if off:
        handle.alter.set_table_properties(off, raise_if_not_exists=False)
