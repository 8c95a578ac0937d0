"""A contract: one version of the columns, rules and protection that a client's records must meet.

Contracts live in `client_configs/contracts/<name>/<version>.yaml` and never change once published.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Literal

import polars as pl
from pydantic import Field, StrictStr, model_validator

from healthingest.contracts import strict_yaml
from healthingest.contracts.rules import DELIVERY_DATE, DOMAINS, STANDARD, Domain, Rule, Strict
from healthingest.errors import ConfigError

ColumnType = Literal["identifier", "name", "text"] | Domain
#: Types whose values have a standard form that not every text has; failing it rejects the record.
PARSED_TYPES: frozenset[ColumnType] = frozenset(DOMAINS)
#: Name of a column group; its key is made when a client first uses a contract that has it.
Group = Annotated[StrictStr, Field(pattern=r"^[a-z][a-z0-9_]{0,30}$")]


#: Columns that all rows have, on their way, in silver or for a reader; only what is dropped may be called so.
_TAKEN = frozenset({"client_id", "member_token", "creation_date", "last_seen", "age_band_as_of", "sequence"})
_MADE = {
    "year": "year", "month": "year and month", "last4": "last four characters", "first": "first character",
    "zip3": "three digits, where the Census proves more than 20,000 people, else 000,",
}  # fmt: skip
#: Rules of the reader; no other rule may have these ids.
READER_RULES = frozenset({
    "too_few_fields", "too_many_fields", "unterminated_quote", "text_after_quote", "record_too_large",
    "swallowed_records", "encoding",
})  # fmt: skip
#: Column type -> what its standard forms look like.
_STANDARD_SHAPES: dict[str, str] = {
    "gender": "[MFXUO]", "us_state": "[A-Z]{2}", "us_zip": "[0-9]{5}(-[0-9]{4})?", "phone": r"\+[0-9]{7,15}",
    "date": "[0-9]{4}-[0-9]{2}-[0-9]{2}", "email": "[^A-Z]+", "ssn": "[0-9]{3}-[0-9]{2}-[0-9]{4}",
    "mbi": "[0-9A-Z]{11}", "npi": "[0-9]{10}",
}  # fmt: skip


#: How near a column's values come to naming a person.
Class = Literal["identifier", "quasi-identifier", "free"]
#: What a type's values are unless the contract says otherwise; whatever is not listed names a person.
_CLASSES: dict[str, Class] = {
    "gender": "free", "us_state": "quasi-identifier", "us_zip": "quasi-identifier", "date": "quasi-identifier",
    "npi": "quasi-identifier", "text": "quasi-identifier",
}  # fmt: skip
#: Types whose values name a person by their form: no contract can say otherwise.
_ALWAYS_NAMES = frozenset({"phone", "email", "ssn", "mbi"})
#: Way of generalising -> the type whose values it takes.
_GENERALIZED: dict[str, str] = {"year": "date", "month": "date", "age_band": "date", "zip3": "us_zip"}


def standard_shape(kind: str) -> str | None:
    """Regular expression that the standard forms of a column type match; None: they may be any text."""
    return _STANDARD_SHAPES.get(kind)


class Policy(Strict):
    """What becomes of a column's values; a column must say it, there is no default."""

    #: Into silver as `member_token`, keyed and per client.
    token: bool = False
    #: Into silver as it is (codes and the like, nothing that names a person).
    keep: bool = False
    #: Into the vault, under the key of this column group.
    vault: Group | None = None
    #: Name of a derived silver column -> how it is made.
    generalize: dict[StrictStr, Literal["year", "month", "age_band", "zip3"]] = Field(default_factory=dict)
    #: Name of a derived silver column -> what of the value stays readable.
    mask: dict[StrictStr, Literal["last4", "first"]] = Field(default_factory=dict)
    #: Nowhere: validated, then dropped (sequence dates).
    drop: bool = False

    @model_validator(mode="after")
    def _says_something(self) -> "Policy":
        said = (self.token, self.keep, self.vault, self.generalize, self.mask)
        if not (any(said) or self.drop):
            raise ValueError("a policy must name at least one of: token, keep, vault, generalize, mask, drop")
        if self.vault == "footer":
            raise ValueError("footer is no name for a column group: the vault's files use it themselves")
        if self.drop and any(said):
            raise ValueError("'drop' cannot stand with another policy")
        if "age_band" in self.generalize.values() and "year" not in self.generalize.values():
            raise ValueError("an age band is made from the year when it is read; generalise to a year too")
        return self


class Column(Strict):
    """One column of a contract."""

    name: StrictStr = Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")
    type: ColumnType
    required: bool = False
    description: StrictStr = ""
    #: Only needed where it is not what the type says.
    class_: Class | None = Field(default=None, alias="class")
    policy: Policy

    @model_validator(mode="after")
    def _policy_fits(self) -> "Column":
        if self.type in _ALWAYS_NAMES and self.kind_of_value != "identifier":
            raise ValueError(f"{self.name} is of type {self.type}, which names a person: leave its class out")
        if self.policy.keep and self.kind_of_value == "identifier":
            codes = "" if self.type in _ALWAYS_NAMES else '; if its values are codes, write "class: free"'
            raise ValueError(
                f"{self.name} may name a person and cannot be kept in the clear: vault, mask, generalise or drop "
                f"it{codes}"
            )
        for how in self.policy.generalize.values():
            if self.type != _GENERALIZED[how]:
                raise ValueError(f"{how} is made from a column of type {_GENERALIZED[how]}, and {self.name} is none")
        return self

    @property
    def kind_of_value(self) -> Class:
        """How near its values come to naming a person."""
        return self.class_ or _CLASSES.get(self.type, "identifier")

    @property
    def parsed(self) -> bool:
        """Whether its values have a standard form that not every text has."""
        return self.type in PARSED_TYPES


class Contract(Strict):
    """The whole contract, as its YAML says it."""

    contract: StrictStr = Field(pattern=r"^[a-z][a-z0-9_]*$")
    version: int = Field(ge=1, strict=True)
    description: StrictStr = ""
    columns: list[Column] = Field(min_length=1)
    rules: list[Rule] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> "Contract":
        names = [column.name for column in self.columns]
        ids = [rule.id for rule in self.rules]
        for what, values in (("column", names), ("rule id", ids)):
            twice = sorted({v for v in values if values.count(v) > 1})
            if twice:
                raise ValueError(f"{what} {twice[0]} is given twice")
        for rule in self.rules:
            if wrong := self.objection(rule):
                raise ValueError(wrong)
        if [c.name for c in self.columns if c.policy.token] != ["member_id"]:
            raise ValueError("exactly the column member_id must have the policy token")
        if not self.column["member_id"].required:
            raise ValueError("member_id must be required: a record without it is nobody's")
        if astray := [c.name for c in self.columns if c.name in _TAKEN and not c.policy.drop]:
            raise ValueError(f"a column can only be called {astray[0]} if it is dropped: that name is taken")
        made = [target for c in self.columns for target in (*c.policy.generalize, *c.policy.mask)]
        for target in made:
            if made.count(target) > 1 or target in self.column or target in _TAKEN or target.startswith("_"):
                raise ValueError(f"a derived column cannot be called {target}: that name is taken")
        return self

    @property
    def name(self) -> str:
        """`<contract>/<version>`, as client configs and tables write it."""
        return f"{self.contract}/{self.version}"

    @cached_property
    def digest(self) -> str:
        """Digest of what it says, 64 hex digits: equal whatever the layout and comments of its YAML."""
        # Without defaults: a key that a later version of this software knows must not change what is published.
        plain = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    @cached_property
    def column(self) -> dict[str, Column]:
        """Columns by name."""
        return {column.name: column for column in self.columns}

    def objection(self, rule: Rule) -> str | None:
        """Why a rule, the contract's own or a client's, cannot be used here; None if it can."""
        for name in rule.columns:
            if name not in self.column:
                return f"{self.name} has no column {name}; it has {', '.join(self.column)}"
        kind = self.column[rule.column].type
        if rule.between and kind != "date":
            return f"between is for date columns, and {rule.column} is none; use number, or length"
        if rule.compare and (kind == "date") != (self.column[rule.compare.to].type == "date"):
            return f"{rule.column} and {rule.compare.to} cannot be compared: only one of them is a date"
        checks = ("required", "control_characters", "not_ahead")
        built_in = {f"{c.name}.{check}" for c in self.columns for check in (*checks, c.type)}
        if rule.id in built_in or rule.id in READER_RULES:  # it would silently take that check's place
            return f"the id {rule.id} belongs to a check that is built in; choose another"
        replaced = next((own for own in self.rules if own.id == rule.id), rule)
        if replaced.column != rule.column:
            return f"the id {rule.id} is the contract's rule of {replaced.column}; choose another for {rule.column}"
        return self._never_passes(rule) or self._evaluates(rule)

    def _never_passes(self, rule: Rule) -> str | None:
        """Listed values are compared with standard forms: one that is none of its column's would never be met."""
        for name, listed in [(rule.column, rule.in_ or rule.not_in), *([rule.when.listed] if rule.when else [])]:
            shape = _STANDARD_SHAPES.get(self.column[name].type)
            for value in listed or ():
                if shape and not re.fullmatch(shape, value):
                    return f"{value!r} is never a standard value of {name}; write it as silver or an export shows it"
        return None

    def _evaluates(self, rule: Rule) -> str | None:
        """Try a rule on a frame of one empty record: what throws must do so now, never on a delivery."""
        if rule.of_the_file or rule.is_:
            return None
        text = {c.name: pl.String() for c in self.columns} | {c.name + STANDARD: pl.String() for c in self.columns}
        frame = pl.DataFrame({DELIVERY_DATE: [None]}, schema={DELIVERY_DATE: pl.Date()}).with_columns(
            pl.lit(None, dtype).alias(name) for name, dtype in text.items()
        )
        try:
            dtype = frame.select(self.passes(rule)).to_series().dtype
        except pl.exceptions.PolarsError:
            return f"the rule {rule.id} cannot be evaluated; check its values"
        return None if dtype == pl.Boolean else f"the rule {rule.id} does not answer yes or no"

    def standard_of(self, name: str) -> pl.Expr:
        """The standard form of a column's value in a standardised frame."""
        return pl.col(name + STANDARD) if self.column[name].parsed else pl.col(name)

    def passes(self, rule: Rule) -> pl.Expr:
        """Where a record passes one of the rules that look at it alone; null where it has no value."""
        dates = rule.compare is not None and self.column[rule.column].type == "date"
        return rule.passes(self.standard_of, both_dates=dates)

    @property
    def required(self) -> list[str]:
        """Names of the columns that every file must have."""
        return [column.name for column in self.columns if column.required]

    @property
    def kept(self) -> list[str]:
        """Contract columns that silver shows as they are (String)."""
        return [column.name for column in self.columns if column.policy.keep]

    @property
    def derived(self) -> dict[str, tuple[str, str]]:
        """Derived silver column -> (contract column, how)."""
        return {
            target: (column.name, how)
            for column in self.columns
            for target, how in (column.policy.generalize | column.policy.mask).items() if how != "age_band"
        }  # fmt: skip

    @property
    def age_bands(self) -> dict[str, str]:
        """Column that a reader is shown -> the derived column with the year of birth that it is made from."""
        return {
            band: next(year for year, how in column.policy.generalize.items() if how == "year")
            for column in self.columns
            for band, how in column.policy.generalize.items() if how == "age_band"
        }  # fmt: skip

    @property
    def comments(self) -> dict[str, tuple[str, Class]]:
        """Silver column that is made from this contract -> what it holds, and its class."""
        kept = {c.name: (c.description or c.name, c.kind_of_value) for c in self.columns if c.policy.keep}
        made: dict[str, tuple[str, Class]] = {
            target: (f"{_MADE[how]} of {column}", "quasi-identifier") for target, (column, how) in self.derived.items()
        }
        return kept | made

    def with_policies(self, policies: Mapping[str, Policy]) -> "Contract":
        """The contract as one client has it, whose config gives some columns other policies.

        Raises:
            ValueError: there is no such column, or a policy does not fit it.
        """
        if not policies:
            return self
        for name in policies:
            if name not in self.column:
                raise ValueError(f"{self.name} has no column {name}; it has {', '.join(self.column)}")
        plain = self.model_dump(by_alias=True)
        for column in plain["columns"]:
            if column["name"] in policies:
                column["policy"] = policies[column["name"]].model_dump()
        return Contract.model_validate(plain)

    @property
    def groups(self) -> frozenset[str]:
        """Its column groups."""
        return frozenset(self.vaulted.values())

    @property
    def vaulted(self) -> dict[str, str]:
        """Vaulted contract column -> its column group."""
        return {column.name: column.policy.vault for column in self.columns if column.policy.vault}


def contract_names(configs: Path) -> list[str]:
    """Every `<name>/<version>` in the registry below `configs`, usable or not, in order."""
    found = [
        (file.parent.name, int(file.stem))
        for file in (configs / "contracts").glob("*/*.yaml") if re.fullmatch("[1-9][0-9]{0,5}", file.stem)
    ]  # fmt: skip
    return [f"{name}/{version}" for name, version in sorted(found)]


def load_contract(configs: Path, name: str) -> Contract:
    """Load `<name>/<version>` from the registry below `configs`.

    Raises:
        ConfigError: no such contract, or its file is not a valid contract of that name and version.
    """
    file = configs / "contracts" / f"{name}.yaml"
    if not file.is_file():
        raise ConfigError(f"there is no contract {name}; expected it at contracts/{name}.yaml.", file=file)
    contract = _contract_of(file, strict_yaml.text_of(file))
    if contract.name != name:
        raise ConfigError(f"the file says it is {contract.name}, its place says {name}; make them equal.", file=file)
    return contract


@lru_cache(maxsize=64)
def _contract_of(file: Path, text: str) -> Contract:
    """The contract that a text says; hundreds of clients share one, and it takes 15 ms to hold it against itself."""
    return strict_yaml.document_of(file, text).parse(Contract)
