"""Client configs: one YAML per client, and the set of all of them with what is wrong in each.

A broken config takes only its own client out; everything else goes on.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, StrictBool, StrictStr, ValidationError, field_validator, model_validator

from healthingest.contracts import strict_yaml
from healthingest.contracts.contract import Contract, Policy, load_contract
from healthingest.contracts.duration import Duration
from healthingest.contracts.engine import Engine
from healthingest.contracts.freshness import Freshness
from healthingest.contracts.hooks import Hook, load_hook, try_hook
from healthingest.contracts.rules import Rule, Strict
from healthingest.contracts.secret import SECRET_REFERENCE
from healthingest.contracts.source import ColumnSource, Source, Transform
from healthingest.contracts.versions import hold_against_registry, silver_types
from healthingest.errors import ConfigError
from healthingest.places import Places

#: Keys of a config that decide what a delivery becomes; the rest (alerts, freshness, ...) may change at any time.
_PINNED = {
    "client_id", "contract", "source", "columns", "transform", "rules", "quality", "schema_evolution", "silver",
    "policies", "membership",
}  # fmt: skip
CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


class Volume(Strict):
    """How much of the delivery before a delivery may add, change and drop, each as a share of that one's members."""

    max_added: float | None = Field(default=None, ge=0)
    max_changed: float | None = Field(default=None, ge=0)
    max_dropped: float | None = Field(default=None, ge=0, le=1)
    #: Which deliveries are held depends on what had arrived before each; what follows from people's words does not.
    on_breach: Literal["alert", "hold"] = "hold"

    @field_validator("max_added", "max_changed", "max_dropped", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        return _a_share(value)


class Absence(Strict):
    """When members whom full files no longer name leave silver; a file over a cap makes nobody leave."""

    #: Consecutive full files that lack a member before it leaves.
    after: int = Field(default=1, ge=1, strict=True)
    #: At most so many members of the full file before may be missing, or such a share of them.
    max_members: int | None = Field(default=None, ge=0, strict=True)
    max_share: float | None = Field(default=None, ge=0, le=1)

    @field_validator("max_share", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        return _a_share(value)


class Membership(Strict):
    """What the client's files say of who is a member."""

    #: `full`: each names all members; `changes`: those that have come or changed.
    file: Literal["full", "changes"] = "changes"
    absence: Absence | None = None

    @model_validator(mode="after")
    def _absence_needs_full_files(self) -> "Membership":
        if self.absence and self.file != "full":
            raise ValueError("absence means nothing for files of changes; write file: full, or leave absence out")
        return self


class Quality(Strict):
    """What a delivery as a whole must keep to, and what happens if it does not.

    `max_volume_change` never holds a delivery, whatever `on_breach` says: what came before it depends on the order of
    arrival, and silver must not.
    """

    max_invalid_ratio: float = Field(default=0.05, ge=0, le=1)
    min_records: int | None = Field(default=None, ge=0, strict=True)
    max_records: int | None = Field(default=None, ge=1, strict=True)
    #: Largest change of the number of records against the client's delivery before, as a share of that one's.
    max_volume_change: float | None = Field(default=None, gt=0)
    #: How long a rejected record may wait for somebody; None: for ever.
    max_open_age: Duration | None = None
    #: Limits on members, against the delivery before; these can hold.
    volume: Volume | None = None
    on_breach: Literal["alert", "hold"] = "alert"

    @model_validator(mode="after")
    def _some_number_passes(self) -> "Quality":
        if self.min_records is not None and self.max_records is not None and self.min_records > self.max_records:
            raise ValueError("min_records is greater than max_records, so no file would pass")
        return self

    @field_validator("max_invalid_ratio", "max_volume_change", mode="before")
    @classmethod
    def _no_truth_value(cls, value: object) -> object:
        return _a_share(value)


def _a_share(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("write a number from 0.0 to 1.0")  # noqa: TRY004 - pydantic wants a ValueError
    return value


class Layout(Strict):
    """Which table of silver the client's rows go to, and how they lie there; settled by the client's first rows."""

    #: A table `output/silver_<table>` that only the clients have who name it; None: the one of all others, or, in a
    #: config, one of those that all others are dealt out to. Those have numbers for names, which no config can say.
    table: StrictStr | None = Field(default=None, pattern=r"^([a-z][a-z0-9_]{0,30}|[0-9]{2,3})$")
    #: By hash of the member, so that a change of a few members need not read all of a large client's files.
    buckets: int = Field(default=1, ge=1, le=256, strict=True)
    partition_by: tuple[Literal["client_id", "creation_date"], ...] = ("client_id",)

    @model_validator(mode="after")
    def _possible(self) -> "Layout":
        if self.partition_by not in {("client_id",), ("client_id", "creation_date")}:
            raise ValueError("partition_by is [client_id] or [client_id, creation_date]")
        if self.dated and self.table is None:
            raise ValueError(
                'partition columns are those of a whole table: to have creation_date, give the client one with "table"'
            )
        if self.dated and self.buckets > 1:
            raise ValueError("a table that is partitioned by creation_date has no buckets; keep one of them")
        return self

    @property
    def folder(self) -> str:
        """The table's folder below the output folder."""
        return "silver" if self.table is None else f"silver_{self.table}"

    @property
    def own(self) -> str | None:
        """The table that its clients name; None: the one of all others, or their part of it."""
        return None if self.table is None or self.table.isdigit() else self.table

    @property
    def said(self) -> str:
        """Where and how rows lie, for people."""
        buckets = f" in {self.buckets} buckets" if self.buckets > 1 else ""
        dated = " partitioned by creation_date" if self.dated else ""
        return f"output/{self.folder}{buckets}{dated}"

    @property
    def dated(self) -> bool:
        """Whether members of one date lie together."""
        return "creation_date" in self.partition_by


class CleanSource(Strict):
    """When `maintain` takes a client's ingested files out of the landing zone: so long after they landed."""

    archive_after: Duration | None = None
    delete_after: Duration | None = None

    @model_validator(mode="after")
    def _one(self) -> "CleanSource":
        if (self.archive_after is None) == (self.delete_after is None):
            raise ValueError('write keep, or one of "archive_after: 30d" and "delete_after: 30d"')
        return self

    @property
    def after(self) -> timedelta:
        """How long a file stays."""
        return self.archive_after if self.archive_after is not None else self.delete_after or timedelta()


class ClientConfig(Strict):
    """One client's YAML; all keys but `client_id` have defaults."""

    client_id: StrictStr
    active: StrictBool = True
    contract: StrictStr = "member/1"
    source: Source = Field(default_factory=Source)
    columns: dict[StrictStr, ColumnSource] = Field(default_factory=dict)
    #: Contract column -> the policy that it has for this client instead of the contract's.
    policies: dict[StrictStr, Policy] = Field(default_factory=dict)
    transform: list[Transform] = Field(default_factory=list)
    rules: list[Rule] = Field(default_factory=list)
    quality: Quality = Field(default_factory=Quality)
    membership: Membership | None = None
    freshness: Freshness = Field(default_factory=Freshness)
    schema_evolution: Literal["review", "add_columns", "freeze"] = "review"
    silver: Layout = Field(default_factory=Layout)
    clean_source: Literal["keep"] | CleanSource = "keep"
    engine: Engine = Field(default_factory=Engine)
    alerts: dict[StrictStr, StrictStr] = Field(default_factory=dict)
    owners: list[StrictStr] = Field(default_factory=list)
    #: Why nothing of this client may be erased; empty: it may.
    legal_hold: StrictStr = ""

    @field_validator("silver")
    @classmethod
    def _no_number(cls, value: Layout) -> Layout:
        if value.table is not None and value.own is None:
            raise ValueError(
                "a table's name begins with a letter; those with numbers are dealt out, see docs/scaling.md"
            )
        return value

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
            if place not in {"slack", "teams", "pagerduty", "email"}:
                raise ValueError("a client's own places are slack, teams, pagerduty and email")
            if not SECRET_REFERENCE.fullmatch(target):
                raise ValueError(f"{place} must name its secret as env:VARIABLE or file:PATH, never hold it")
        return value

    @model_validator(mode="after")
    def _unique_rule_ids(self) -> "ClientConfig":
        ids = [rule.id for rule in self.rules]
        if len(set(ids)) != len(ids):
            raise ValueError("two of this client's rules have the same id")
        return self


def _drop_later_keys(pin: dict[str, Any]) -> None:
    """Leave out what came to configs later and is not said: a config that has not changed keeps its digest."""
    pin["quality"].pop("max_open_age", None)  # decides nothing about a delivery
    if pin["quality"].get("volume") is None:
        pin["quality"].pop("volume", None)
    if pin.get("membership") is None:
        pin.pop("membership", None)
    for rule in pin["rules"]:
        if rule.get("subscriber") is None:
            rule.pop("subscriber", None)


#: Tells one content of a path from the next: inode, size, and change time, which nobody can set.
FileStamp = tuple[int, int, int]


def stamp_of(file: Path) -> FileStamp:
    """The stamp of a file as it is now; that of none if it is gone."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_size, found.st_ctime_ns


@dataclass(frozen=True)
class Client:
    """A client whose config, contract and hooks loaded well."""

    client_id: str
    config: ClientConfig
    contract: Contract
    #: name/version -> the Python function that a transform of the config calls.
    hooks: Mapping[str, Hook] = field(default_factory=dict)
    #: Its YAML and that file's stamp when it was read; None for a client as a delivery is pinned to it.
    file: tuple[Path, FileStamp] | None = field(default=None, compare=False)

    @property
    def pin(self) -> dict[str, Any]:
        """The part of the config that decides what a delivery becomes, as JSON values; kept with each delivery."""
        pin = self.config.model_dump(mode="json", by_alias=True, include=_PINNED)
        # Where rows go makes no other rows of them: the same digest for all, which is the one that it always was.
        pin["silver"] = Layout().model_dump(mode="json", exclude={"table"})
        _drop_later_keys(pin)
        hooks = {name: hook.digest for name, hook in self.hooks.items()}
        return pin | {"hooks": hooks, "contract_digest": self.contract.digest}

    @cached_property
    def config_hash(self) -> str:
        """Digest of `pin`: equal for configs that do the same, whatever their layout."""
        return hashlib.sha256(json.dumps(self.pin, sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def from_pin(cls, pin: dict[str, Any], configs: Path) -> "Client":
        """The client as it was when a delivery was registered.

        Raises:
            ConfigError: the pinned contract or a hook is no longer in the registry, or is another one now.
        """
        digests = pin.get("hooks", {})
        said = {key: value for key, value in pin.items() if key not in {"hooks", "contract_digest"}}
        config = ClientConfig.model_validate(said)
        contract = load_contract(configs, config.contract).with_policies(config.policies)
        if pin.get("contract_digest", contract.digest) != contract.digest:
            raise ConfigError(
                f"the contract {contract.name} is not the one that this delivery was registered with; put its text "
                "back and publish the change as a new version.",
                file=configs / "contracts" / f"{contract.name}.yaml",
            )
        hooks = {name: load_hook(configs, name) for name in digests}
        for name, hook in hooks.items():
            if hook.digest != digests[name]:
                raise ConfigError(
                    f"the hook {name} is not the one that this delivery was registered with; put its text back and "
                    "publish the change as a new version.",
                    file=hook.file,
                )
        return cls(config.client_id, config, contract, hooks)

    @property
    def rules(self) -> list[Rule]:
        """The contract's rules with the client's added or put in their place, by id."""
        own = {rule.id: rule for rule in self.config.rules}
        inherited = [own.pop(rule.id, rule) for rule in self.contract.rules]
        return [*inherited, *own.values()]

    def column_source(self, column: str) -> ColumnSource:
        """How this client writes a contract column."""
        return self._sources.get(column) or ColumnSource(to=column)

    @cached_property
    def _sources(self) -> dict[str, ColumnSource]:
        return {source.to: source for source in self.config.columns.values()}

    @cached_property
    def made_columns(self) -> frozenset[str]:
        """Contract columns that come from a transform instead of a column of the file."""
        return frozenset(to for step in self.config.transform if step.hook is None for to in step.to)


@dataclass(frozen=True)
class ClientSet:
    """All clients that can be served, and what keeps the others from it."""

    clients: Mapping[str, Client]
    problems: tuple[ConfigError, ...]
    #: `<contract>/<version>` -> digest of the published versions that they were held against.
    published: Mapping[str, str] = field(default_factory=dict)

    @property
    def layouts(self) -> dict[str, Layout]:
        """Client -> where its rows of silver shall go."""
        return {client_id: client.config.silver for client_id, client in self.clients.items()}

    @property
    def active(self) -> list[str]:
        """Ids of the clients whose files are taken, sorted."""
        return [client_id for client_id, client in self.clients.items() if client.config.active]


#: Column of a table of silver -> its type, and the client who has it.
_Types = dict[str, tuple[str, str]]
#: Says what is wrong with where a client's rows shall go; None: nothing.
Objection = Callable[[str, Layout], str | None]


def load_clients(
    places: Places, published: Mapping[str, str] | None = None, objection: Objection = lambda *_: None
) -> ClientSet:
    """Load every `client_configs/*.yaml`; a file that cannot be used becomes a problem, never an exception.

    `published`: `<contract>/<version>` -> digest of each version that must not have changed.
    """
    published = published or {}
    clients: dict[str, Client] = {}
    problems: list[ConfigError] = []
    tables: dict[str, _Types] = {}
    for file in sorted([*places.configs.glob("*.yaml"), *places.configs.glob("*.yml")]):
        if file.name in {"roles.yaml", "alerts.yaml", "storage.yaml"} or file.name.startswith("."):
            continue
        try:
            client = load_client(file, places.configs, published, env=places.env)
            if client.client_id in clients:
                raise ConfigError(
                    f"client_id {client.client_id} is already taken by another file.",
                    file=file,
                    key="client_id",
                )
            if wrong := objection(client.client_id, client.config.silver):
                raise ConfigError(wrong, file=file, key="silver")
            _refuse_other_partitions(client, clients.values(), file)
            _refuse_other_type(client, tables.setdefault(client.config.silver.folder, {}), file)
        except ConfigError as error:
            problems.append(error)
        else:
            clients[client.client_id] = client
    return ClientSet(dict(sorted(clients.items())), tuple(problems), published)


def _refuse_other_partitions(client: Client, others: Iterable[Client], file: Path) -> None:
    mine = client.config.silver
    for other in others:
        if other.config.silver.folder == mine.folder and other.config.silver.dated != mine.dated:
            raise ConfigError(f"{other.client_id} has the same table with other partitions; take another, or its own.",
                              file=file, key="silver.partition_by")  # fmt: skip


def _refuse_other_type(client: Client, types: "_Types", file: Path) -> None:
    """A table of silver has one type per column, whoever's it is; `types` is given this client's columns."""
    mine = {name: (kind, client.client_id) for name, kind in silver_types(client.contract).items()}
    for name in sorted(mine.keys() & types.keys()):
        if mine[name][0] != types[name][0]:
            raise ConfigError(
                f"{types[name][1]} has a column {name} of another type; call this one otherwise, or give the client a "
                "table of its own.", file=file, key="policies",
            )  # fmt: skip
    types |= mine | types


def load_client(file: Path, configs: Path, published: Mapping[str, str] | None = None, *, env: str = "dev") -> Client:
    """Load one client's YAML with its contract, and hold each against the other and the registry.

    `env`: HEALTHINGEST_ENV; in prod every change of a schema waits for people.

    Raises:
        ConfigError: with file, line and key of the first mistake.
    """
    stamp = stamp_of(file)  # before it is read: what changes meanwhile is read once more
    document = strict_yaml.load(file)
    config = document.parse(ClientConfig)
    if env == "prod" and config.schema_evolution != "review":
        raise document.error("in prod only review is allowed; write review, or leave it out.", ("schema_evolution",))
    with _told_at(document, ("contract",)):
        contract = load_contract(configs, config.contract)
        hold_against_registry(configs, contract, published or {})
    try:
        contract = contract.with_policies(config.policies)
    except ValueError as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise document.error(said.removeprefix("Value error, ") + ".", ("policies",)) from None
    hooks = _load_hooks(config, configs, document)
    client = Client(config.client_id, config, contract, hooks, (file, stamp))
    _hold_against_contract(client, document)
    for number, step in enumerate(config.transform):
        if step.hook is not None:
            with _told_at(document, ("transform", number, "hook")):
                try_hook(hooks[step.hook], step.to)
    return client


def _load_hooks(config: ClientConfig, configs: Path, document: strict_yaml.Document) -> dict[str, Hook]:
    hooks: dict[str, Hook] = {}
    for number, step in enumerate(config.transform):
        if step.hook is not None:
            with _told_at(document, ("transform", number, "hook")):
                hooks[step.hook] = load_hook(configs, step.hook)
    return hooks


@contextmanager
def _told_at(document: strict_yaml.Document, at: tuple[str | int, ...]) -> Iterator[None]:
    """Let a mistake in another file be told where the client's YAML names that file."""
    try:
        yield
    except ConfigError as error:
        raise document.error(str(error), at) from None


def _hold_against_contract(client: Client, document: strict_yaml.Document) -> None:
    for check in (_columns_exist, _columns_fit, _transforms_fit, _rules_fit, _record_date_fits):
        check(client, document)


def _columns_exist(client: Client, document: strict_yaml.Document) -> None:
    """Everything that names a contract column names one there is; headers of one column say the same of it."""
    known = ", ".join(client.contract.column)
    named: list[tuple[tuple[str | int, ...], str]] = [
        (("columns", header), source.to) for header, source in client.config.columns.items()
    ]
    for number, step in enumerate(client.config.transform):
        named += [(("transform", number, "to"), to) for to in step.to]
    for at, to in named:
        if to not in client.contract.column:
            raise document.error(f"{client.contract.name} has no column {to}; it has {known}.", at)
    first: dict[str, tuple[str, ColumnSource]] = {}
    for header, source in client.config.columns.items():
        other, same = first.setdefault(source.to, (header, source))
        if same != source:  # a sender may change a name; how the values are read must not depend on it
            raise document.error(
                f"{other} and {header} both lead to {source.to} and say different things of it; write the same "
                "for both, or keep one.", ("columns", header),
            )  # fmt: skip


def _columns_fit(client: Client, document: strict_yaml.Document) -> None:
    for header, source in client.config.columns.items():
        kind = client.contract.column[source.to].type
        if source.zip_repair and kind != "us_zip":
            raise document.error(
                f"this is for ZIP columns, and {source.to} is none.", ("columns", header, "zip_repair")
            )
        if source.date_formats and kind != "date":
            raise document.error(f"this is for dates, and {source.to} is none.", ("columns", header, "date_formats"))


def _transforms_fit(client: Client, document: strict_yaml.Document) -> None:
    made: set[str] = set()
    for number, step in enumerate(client.config.transform):
        if step.hook is None:
            if twice := made.intersection(step.to):
                raise document.error(f"two steps make {min(twice)}; keep one.", ("transform", number, "to"))
            made.update(step.to)


def _rules_fit(client: Client, document: strict_yaml.Document) -> None:
    for number, rule in enumerate(client.config.rules):
        if wrong := client.contract.objection(rule):
            raise document.error(f"{wrong}.", ("rules", number))


def _record_date_fits(client: Client, document: strict_yaml.Document) -> None:
    date_from = client.config.source.creation_date
    if date_from.from_ != "column":
        return
    at = ("source", "creation_date", "column")
    column = client.contract.column.get(date_from.column)
    if column is None or column.type != "date":
        raise document.error("this must be a date column of the contract.", at)
    if not column.policy.drop:  # it comes to stand in silver, in the sequence and in statistics, in clear
        raise document.error(
            f"{column.name} is a member's value; only a column with the policy drop may order records.", at
        )


def fingerprint(configs: Path) -> str:
    """Digest over names and bytes of all YAML files and hooks below `configs`; changes when any of them does."""
    digest = hashlib.sha256()
    for file in sorted(p for p in configs.rglob("*") if p.suffix in {".yaml", ".yml", ".py"} and p.is_file()):
        try:
            content = file.read_bytes()
        except OSError:
            content = b"unreadable"
        digest.update(f"{file.relative_to(configs)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:16]
