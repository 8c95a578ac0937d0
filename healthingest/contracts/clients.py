"""Client configs: one YAML per client, and the set of all of them with what is wrong in each.

A broken config takes only its own client out; everything else goes on.
"""

import codecs
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictStr, field_validator, model_validator

from healthingest.contracts import strict_yaml
from healthingest.contracts.contract import Contract, load_contract
from healthingest.contracts.rules import Rule, Strict
from healthingest.errors import ConfigError
from healthingest.places import Places

#: Keys of a config that decide what a delivery becomes; the rest (alerts, freshness, ...) may change at any time.
_PINNED = {"client_id", "contract", "source", "columns", "rules", "quality", "schema_evolution", "silver"}
CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
_ASCII = "member_id,\n"
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _duration(value: object) -> object:
    match = re.fullmatch(r"([0-9]{1,4})([mhd])", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("write a duration like 30m, 24h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


Duration = Annotated[timedelta, BeforeValidator(_duration)]


class CreationDate(Strict):
    """Where a record's date comes from: the file's name, or a column of it (backfills)."""

    from_: Literal["file_name", "column"] = Field(default="file_name", alias="from")
    column: StrictStr = "creation_date"


class Trailer(Strict):
    """A control record at the end of a file: how it starts, and which field (1-based) counts the records."""

    starts_with: StrictStr = Field(min_length=1)
    count_field: int | None = Field(default=None, ge=1)


class Source(Strict):
    """How the client writes its files."""

    delimiter: StrictStr = ","
    encoding: StrictStr | list[StrictStr] = "utf-8"
    null_values: list[StrictStr] = Field(default_factory=lambda: ["", "NULL", "N/A"])
    creation_date: CreationDate = Field(default_factory=CreationDate)
    trailer: Trailer | None = None

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, value: str) -> str:
        if len(value) != 1 or not value.isascii() or value in '"\r\n':
            raise ValueError('a delimiter is one ASCII character, e.g. "," or "|" or "\\t"')
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | list[str]) -> str | list[str]:
        for name in [value] if isinstance(value, str) else value:
            try:
                "x".encode(name)  # not codecs.lookup, which also knows hex and zip
            except (LookupError, ValueError):
                raise ValueError(f"there is no encoding {name}; common ones are utf-8, cp1252, latin-1") from None
            if not name.lower().startswith(("utf-16", "utf_16")) and _ASCII.encode(name) != _ASCII.encode():
                raise ValueError(f"{name} does not write ASCII as ASCII; only such encodings and UTF-16 can be read")
        if not value:
            raise ValueError("name at least one encoding, e.g. utf-8")
        return value

    @property
    def encodings(self) -> list[str]:
        """Normalised codec names, in the order they are tried."""
        names = [self.encoding] if isinstance(self.encoding, str) else self.encoding
        return [codecs.lookup(name).name for name in names]


class ColumnSource(Strict):
    """One column of the client's files: which contract column it is, and how its values are written."""

    to: StrictStr
    date_formats: list[StrictStr] | None = Field(default=None, min_length=1)

    @field_validator("date_formats")
    @classmethod
    def _four_digit_years(cls, value: list[str] | None) -> list[str] | None:
        for fmt in value or ():
            parts = re.findall(r"%(.)", fmt)
            if sorted(parts) not in (["Y", "d", "m"], ["Y", "b", "d"]):
                raise ValueError("a date format has %Y, %m (or %b) and %d, once each, e.g. %m/%d/%Y")
        return value


class Quality(Strict):
    """How many rejected records are too many, and what happens then."""

    max_invalid_ratio: float = Field(default=0.05, ge=0, le=1)
    on_breach: Literal["alert", "hold"] = "alert"

    @field_validator("max_invalid_ratio", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        if isinstance(value, bool):
            raise ValueError("write a number from 0.0 to 1.0")  # noqa: TRY004 - pydantic wants a ValueError
        return value


class Freshness(Strict):
    """How often a delivery is expected, and how late it may be."""

    expect_every: Duration = timedelta(hours=24)
    grace: Duration = timedelta(hours=4)

    @property
    def allowed(self) -> timedelta:
        """The longest time without a delivery that is not late."""
        return self.expect_every + self.grace

    @field_validator("expect_every")
    @classmethod
    def _not_zero(cls, value: timedelta) -> timedelta:
        if not value:
            raise ValueError("a delivery cannot be expected every 0 minutes")
        return value


class Silver(Strict):
    """How the client's part of silver is laid out; only the default exists today."""

    buckets: Literal[1] = 1
    partition_by: tuple[Literal["client_id"]] = ("client_id",)


class ClientConfig(Strict):
    """One client's YAML; all keys but `client_id` have defaults."""

    client_id: StrictStr
    active: bool = True
    contract: StrictStr = "member/1"
    source: Source = Field(default_factory=Source)
    columns: dict[StrictStr, ColumnSource] = Field(default_factory=dict)
    rules: list[Rule] = Field(default_factory=list)
    quality: Quality = Field(default_factory=Quality)
    freshness: Freshness = Field(default_factory=Freshness)
    schema_evolution: Literal["review", "add_columns", "freeze"] = "review"
    silver: Silver = Field(default_factory=Silver)
    alerts: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    owners: list[StrictStr] = Field(default_factory=list)

    @field_validator("client_id")
    @classmethod
    def _safe_id(cls, value: str) -> str:
        if not CLIENT_ID.fullmatch(value):
            raise ValueError("a client_id has up to 63 letters, digits, '_' and '-', and starts with a letter or digit")
        return value

    @field_validator("columns", mode="before")
    @classmethod
    def _short_form(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {header: {"to": to} if isinstance(to, str) else to for header, to in value.items()}

    @field_validator("contract")
    @classmethod
    def _contract_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z][a-z0-9_]*/[1-9][0-9]{0,5}", value):
            raise ValueError("a contract is named like member/1")
        return value

    @field_validator("owners")
    @classmethod
    def _reachable(cls, value: list[str]) -> list[str]:
        for owner in value:  # what Dagster takes; anything else would keep all definitions from loading
            if not re.fullmatch(r"team:[A-Za-z0-9_ .-]+|[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}", owner):
                raise ValueError('an owner is an e-mail address, or "team:" and a name')
        return value

    @field_validator("alerts")
    @classmethod
    def _no_secrets(cls, value: dict[str, str]) -> dict[str, str]:
        for place, target in value.items():
            if not target.startswith(("env:", "file:")):
                raise ValueError(f"{place} must name its secret as env:VARIABLE or file:PATH, never hold it")
        return value

    @model_validator(mode="after")
    def _unique_rule_ids(self) -> "ClientConfig":
        ids = [rule.id for rule in self.rules]
        if len(set(ids)) != len(ids):
            raise ValueError("two of this client's rules have the same id")
        return self


@dataclass(frozen=True)
class Client:
    """A client whose config and contract loaded well."""

    client_id: str
    config: ClientConfig
    contract: Contract

    @property
    def pin(self) -> dict[str, Any]:
        """The part of the config that decides what a delivery becomes, as JSON values; kept with each delivery."""
        return self.config.model_dump(mode="json", by_alias=True, include=_PINNED)

    @cached_property
    def config_hash(self) -> str:
        """Digest of `pin`: equal for configs that do the same, whatever their layout."""
        return hashlib.sha256(json.dumps(self.pin, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_pin(cls, pin: dict[str, Any], configs: Path) -> "Client":
        """The client as it was when a delivery was registered.

        Raises:
            ConfigError: the pinned contract is no longer in the registry.
        """
        config = ClientConfig.model_validate(pin)
        return cls(config.client_id, config, load_contract(configs, config.contract))

    @property
    def rules(self) -> list[Rule]:
        """The contract's rules with the client's added or put in their place, by id."""
        own = {rule.id: rule for rule in self.config.rules}
        inherited = [own.pop(rule.id, rule) for rule in self.contract.rules]
        return [*inherited, *own.values()]

    def date_formats(self, column: str) -> list[str]:
        """The formats in which this client writes the dates of a contract column, tried in order."""
        for source in self.config.columns.values():
            if source.to == column and source.date_formats:
                return source.date_formats
        return ["%Y-%m-%d"]


@dataclass(frozen=True)
class ClientSet:
    """All clients that can be served, and what keeps the others from it."""

    clients: Mapping[str, Client]
    problems: tuple[ConfigError, ...]

    @property
    def active(self) -> list[str]:
        """Ids of the clients whose files are taken, sorted."""
        return [client_id for client_id, client in self.clients.items() if client.config.active]


def load_clients(places: Places) -> ClientSet:
    """Load every `client_configs/*.yaml`; a file that cannot be used becomes a problem, never an exception."""
    clients: dict[str, Client] = {}
    problems: list[ConfigError] = []
    for file in sorted([*places.configs.glob("*.yaml"), *places.configs.glob("*.yml")]):
        if file.name == "roles.yaml" or file.name.startswith("."):
            continue
        try:
            client = load_client(file, places.configs)
            if client.client_id in clients:
                raise ConfigError(
                    f"client_id {client.client_id} is already taken by another file.",
                    file=file,
                    key="client_id",
                )
        except ConfigError as error:
            problems.append(error)
        else:
            clients[client.client_id] = client
    return ClientSet(dict(sorted(clients.items())), tuple(problems))


def load_client(file: Path, configs: Path) -> Client:
    """Load one client's YAML with its contract, and hold each against the other.

    Raises:
        ConfigError: with file, line and key of the first mistake.
    """
    document = strict_yaml.load(file)
    config = document.parse(ClientConfig)
    try:
        contract = load_contract(configs, config.contract)
    except ConfigError as error:
        raise document.error(str(error), ("contract",)) from None
    client = Client(config.client_id, config, contract)
    _hold_against_contract(client, document)
    return client


def _hold_against_contract(client: Client, document: strict_yaml.Document) -> None:
    known = ", ".join(client.contract.column)
    for header, source in client.config.columns.items():
        if source.to not in client.contract.column:
            raise document.error(
                f"{client.contract.name} has no column {source.to}; it has {known}.", ("columns", header)
            )
    targets = [source.to for source in client.config.columns.values()]
    for header, source in client.config.columns.items():
        if targets.count(source.to) > 1:
            raise document.error(f"two headers lead to {source.to}; keep one.", ("columns", header))
    for number, rule in enumerate(client.config.rules):
        if wrong := client.contract.objection(rule):
            raise document.error(f"{wrong}.", ("rules", number))
    date_from = client.config.source.creation_date
    if date_from.from_ == "column":
        column = client.contract.column.get(date_from.column)
        if column is None or column.type != "date":
            raise document.error("this must be a date column of the contract.", ("source", "creation_date", "column"))
        if not column.policy.drop:  # it comes to stand in silver, in the sequence and in statistics, in clear
            raise document.error(
                f"{column.name} is a member's value; only a column with the policy drop may order records.",
                ("source", "creation_date", "column"),
            )


def fingerprint(configs: Path) -> str:
    """Digest over names and bytes of all YAML files below `configs`; changes when any of them does."""
    digest = hashlib.sha256()
    for file in sorted(p for p in configs.rglob("*") if p.suffix in {".yaml", ".yml"} and p.is_file()):
        try:
            content = file.read_bytes()
        except OSError:
            content = b"unreadable"
        digest.update(f"{file.relative_to(configs)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
