"""Hold the real tables against what code and registry say of them, put right what may be put right, and tell the rest.

What only lags behind is repaired: columns, comments and properties that are missing or old. What differs otherwise is
told exactly and left alone: a column of another type or one that nobody registered means that others write here.
"""

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl
from deltalake import DeltaTable, Field

from healthingest.contracts.clients import ClientSet
from healthingest.contracts.contract import Contract, Policy, contract_names, load_contract
from healthingest.errors import ConfigError
from healthingest.lake.audit import Audit
from healthingest.lake.delta import Table, delta_schema, retry
from healthingest.lake.destinations import Destinations
from healthingest.lake.quarantine import Quarantine
from healthingest.lake.registrations import Registrations
from healthingest.lake.sightings import Sightings
from healthingest.lake.silver import comments, readable_columns
from healthingest.landing.names import printable
from healthingest.places import Places

#: Property -> what setting it again does not bring back.
_LOSSES = {
    "delta.enableChangeDataFeed": "nobody can read the change feed across the versions in which it was off: whoever "
    "follows it must read the table as a whole once",
    "delta.dataSkippingStatsColumns": "the log may show bounds of other columns, of what was written meanwhile",
}
#: Metadata of a column that was added here: no delivery may ever bring it, and it is no stranger for that.
_ADDED = "healthingest.added_by"
#: Column -> the types in which some contract knows it.
Known = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Difference:
    """One difference between a table and what it should be."""

    table: str
    #: Column, or property; empty: the table as a whole.
    subject: str
    text: str
    #: Whether it can be put right without harm to anybody.
    repairable: bool
    #: What the repair does not bring back; empty: nothing, the table only lagged behind.
    loss: str = ""

    @property
    def sentence(self) -> str:
        """What differs, for people."""
        said = f"{self.text}; {self.loss}" if self.loss else self.text
        return f"{self.table}{': ' + self.subject if self.subject else ''} {said}."

    @property
    def is_lag(self) -> bool:
        """Whether nobody needs to hear of it: the next reconciliation, or delivery, ends it without a trace."""
        return self.repairable and not self.loss


@dataclass(frozen=True)
class Wanted:
    """What a table should be."""

    name: str
    table: Table
    schema: pl.Schema
    #: Column -> the comment that it is given, and those that are as good: clients' contracts may word it differently.
    comments: Mapping[str, str]
    as_good: Mapping[str, Collection[str]] = field(default_factory=dict)
    #: Which of some columns (name -> type) may be there besides: those of contracts that no client has now.
    known: Callable[[Mapping[str, str]], Known] = lambda _: {}
    #: What is said of any other column.
    unknown: str = "is none of this table's columns"


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


# --- what should be -----------------------------------------------------------------------------------------------


def _all(places: Places, clients: ClientSet) -> Iterator[Wanted]:
    destinations = Destinations.at(places, clients.layouts)
    # The latest version has the last word; one look at each client's destination, and not one per table.
    latest = sorted(clients.clients.values(), key=lambda one: one.contract.version)
    contracts = [(destinations.of(client.client_id).folder, client.contract) for client in latest]
    for silver in destinations.tables():
        yield _silver(places, silver, [contract for folder, contract in contracts if folder == silver.path.name])
    others: dict[str, Table] = {
        "quarantine": Quarantine.at(places.output), "audit": Audit.at(places.output),
        "sightings": Sightings.at(places.output), "contracts": Registrations.at(places.output),
    }  # fmt: skip
    for name, table in others.items():
        yield Wanted(name, table, table.schema, table.comments)


def _silver(places: Places, silver: Table, contracts: Sequence[Contract]) -> Wanted:
    """A table of silver, with the columns of those contracts whose records go there."""
    columns, said = dict(silver.schema), dict(silver.comments)
    as_good: dict[str, set[str]] = {}
    for contract in contracts:
        columns |= readable_columns(contract)
        said |= comments(contract)
        for column, text in comments(contract).items():
            as_good.setdefault(column, set()).add(text)
    return Wanted(
        silver.path.name, silver, pl.Schema(columns), said, as_good, lambda found: _known(places, found),
        "is in no contract of the registry",
    )  # fmt: skip


def _known(places: Places, columns: Mapping[str, str]) -> Known:
    """Those of silver's columns that any version of any contract makes, or a delivery's own config once made."""
    found: dict[str, set[str]] = {}
    for contracts in (_registered, _pinned):  # the second reads manifests; few installations ever need it
        if any(kind not in found.get(name, ()) for name, kind in columns.items()):
            for contract in contracts(places):
                made = {name: dtype for name, dtype in readable_columns(contract).items() if name in columns}
                for one in delta_schema(pl.Schema(made), {}).fields:
                    found.setdefault(one.name, set()).add(str(one.type))
    return found


def _registered(places: Places) -> Iterator[Contract]:
    """Every version of every contract; one that cannot be read knows nothing."""
    for name in contract_names(places.configs):
        with contextlib.suppress(ConfigError):
            yield load_contract(places.configs, name)


def _pinned(places: Places) -> Iterator[Contract]:
    """Contracts as clients' own policies made them of old: deliveries keep the config that they were registered with.

    A client whose config cannot be read today, or has changed since, still has the columns that it brought.
    """
    audit, columns = Audit.at(places.output), ["client_id", "config_hash", "file_id"]
    if not audit.exists():
        return
    scan = pl.scan_delta(audit.handle())  # as it is: `frame` would add columns that it lacks
    if not {*columns} <= {*scan.collect_schema()}:
        return
    rows = scan.select(columns).drop_nulls().unique(columns[:2]).collect()
    for client_id, _, file_id in rows.iter_rows():
        manifest = places.output / "bronze" / client_id / f"{file_id}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, ConfigError):  # erased since, or of a contract that is
            pin = json.loads(manifest.read_text())["config"]
            policies = {name: Policy.model_validate(policy) for name, policy in pin.get("policies", {}).items()}
            if policies:
                yield load_contract(places.configs, pin["contract"]).with_policies(policies)


# --- what is ------------------------------------------------------------------------------------------------------


def _of(wanted: Wanted) -> Iterator[Difference]:
    if not wanted.table.exists():
        return
    name, handle = wanted.name, wanted.table.handle(without_files=True)
    real = {field.name: field for field in handle.schema().fields}
    should = {field.name: field for field in delta_schema(wanted.schema, wanted.comments).fields}
    for column, one in should.items():
        if wrong := _of_column(real.get(column), one, wanted.as_good.get(column, ())):
            yield Difference(name, column, *wrong)
    besides = sorted(c for c in real.keys() - should.keys() if _ADDED not in real[c].metadata)
    known = wanted.known({column: str(real[column].type) for column in besides}) if besides else {}
    for column in besides:
        if said := _of_other(real[column], known.get(column, ()), wanted.unknown):
            yield Difference(name, printable(column), said, repairable=False)
    yield from _of_table(wanted, handle)


def _of_column(real: Field | None, should: Field, as_good: Collection[str]) -> tuple[str, bool] | None:
    """What is wrong with a column, and whether it only lags behind."""
    if real is None:
        return "is missing", True
    if str(real.type) != str(should.type):
        return f"is {_type(real)} and should be {_type(should)}", False
    if not real.nullable and should.nullable:
        return "may not be null, which no writer here keeps to", False
    if not _says(real, should, as_good):
        return ("has another comment" if real.metadata.get("comment") else "has no comment"), True
    return None


def _says(real: Field, should: Field, as_good: Collection[str]) -> bool:
    """Whether a column's comment is one it may have, or says more than that: `schema migrate switch` adds to it."""
    said, wanted = str(real.metadata.get("comment") or ""), should.metadata.get("comment")
    return not wanted or any(said == one or said.startswith(f"{one}; of ") for one in {str(wanted), *as_good})


def _of_other(real: Field, types: Collection[str], unknown: str) -> str:
    """What is wrong with a column that nobody wants now; empty: a contract knows it, in this type."""
    wrong = [] if str(real.type) in types else [f"is {_type(real)}, as no contract makes it" if types else unknown]
    return " and ".join([*wrong, *([] if real.nullable else ["may not be null, so that every write fails"])])


def _of_table(wanted: Wanted, handle: DeltaTable) -> Iterator[Difference]:
    name, table, real = wanted.name, wanted.table, handle.metadata()
    if list(real.partition_columns) != list(table.partition_by):
        told = f"is partitioned by {', '.join(real.partition_columns) or 'nothing'} and should be by "
        yield Difference(name, "", told + (", ".join(table.partition_by) or "nothing"), repairable=False)
    if (real.name, real.description) != (table.path.name, table.description):
        yield Difference(name, "", "has lost its name or description", repairable=True)
    for key, value in table.configuration.items():
        if (found := real.configuration.get(key)) != value:
            said = f"is {printable(found)}" if found else "is not set"
            yield Difference(name, key, f"{said} and should be {value}", repairable=True, loss=_LOSSES.get(key, ""))


def _type(field: Field) -> str:
    return str(getattr(field.type, "type", None) or field.type)


# --- repair -------------------------------------------------------------------------------------------------------


def _repair(wanted: Wanted) -> None:
    """Each change is a commit of its own, on a fresh handle; what others have done meanwhile is left out."""
    table, handle = wanted.table, wanted.table.handle()
    real = {field.name: field for field in handle.schema().fields}
    should = list(delta_schema(wanted.schema, wanted.comments).fields)
    if missing := [field for field in should if field.name not in real]:
        handle.alter.add_columns([Field(f.name, f.type, metadata={**f.metadata, _ADDED: "reconcile"}) for f in missing])
    for one in should:
        if one.name in real and not _says(real[one.name], one, wanted.as_good.get(one.name, ())):
            comment = str(one.metadata["comment"])
            table.handle().alter.set_column_metadata(one.name, {"comment": comment})
    said = handle.metadata()
    if said.name != table.path.name:
        table.handle().alter.set_table_name(table.path.name)
    if said.description != table.description:
        table.handle().alter.set_table_description(table.description)
    off = {k: v for k, v in table.configuration.items() if said.configuration.get(k) != v}
    if off:
        table.handle().alter.set_table_properties(off, raise_if_not_exists=False)
