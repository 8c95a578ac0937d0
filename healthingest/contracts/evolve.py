"""The next version of a contract and a client's YAML that take in a difference: made, tried whole, then written.

Made in a copy of the registry and loaded there like any other, so that what is refused is refused before anything is
written. A version that says the same already is used.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from healthingest.contracts import strict_yaml
from healthingest.contracts.clients import Client, ClientConfig, load_client
from healthingest.contracts.contract import Contract, contract_names, load_contract
from healthingest.contracts.edit import REMOVED, edited, replace_text
from healthingest.contracts.source import normal_header, plain_name
from healthingest.contracts.versions import Change, Compatibility, changes, compatibility
from healthingest.errors import ConfigError, UsageError

Edits = dict[tuple[str | int, ...], Any]


@dataclass(frozen=True)
class Answer:
    """What a person says with an approval, where the evidence alone does not tell."""

    #: Contract column that a new column of the files becomes.
    name: str | None = None
    type: str | None = None
    #: As the contract's YAML says it: {"vault": "identity"}.
    policy: Mapping[str, Any] | None = None
    description: str = ""
    date_format: str | None = None
    #: Codes that a list gets besides those that the proposal names.
    codes: tuple[str, ...] = ()
    #: The client's word -> ours.
    map: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """What shall be changed, as edits of the YAML of a contract, of the client's, or of both."""

    contract: Edits = field(default_factory=dict)
    config: Edits = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """What would be in force."""

    client: Client
    before: Contract
    #: `<name>/<version>` and text of a contract that is to be written; None: no new one is needed.
    contract: tuple[str, str] | None
    #: The client's YAML and its new text.
    file: Path
    config: str

    @property
    def changes(self) -> list[Change]:
        """Every difference between the contract now and then."""
        return changes(self.before, self.client.contract) if self.before.name != self.client.contract.name else []

    @property
    def compatibility(self) -> Compatibility:
        """How much they ask; a change of the client's own YAML alone lets in more than before."""
        return compatibility(self.changes)


def candidate(configs: Path, client: Client, kind: str, column: str | None, header: str | None, rule: str,
              fix: Mapping[str, Any], answer: Answer) -> Candidate:  # fmt: skip
    """What takes in a difference, tried in a copy of the registry.

    Raises:
        UsageError: something must be said first, like a new column's policy.
        ConfigError: the contract or config that would come out cannot be used.
    """
    file = _file_of(client)
    if kind not in _STEPS:
        raise UsageError("There is nothing to approve: columns are found by their names, whatever their order.")
    step = _STEPS[kind](client, column or "", header, rule, fix, answer)
    before = load_contract(configs, client.config.contract)
    made = _version(configs, before, step.contract) if step.contract else None
    name = made[0] if made else before.name
    edits = step.config | ({("contract",): name} if name != before.name else {})
    text = edited(strict_yaml.text_of(file), edits)
    contract = (name, made[1]) if made and made[1] is not None else None
    return Candidate(_tried(configs, file, text, contract), before, contract, file, text)


def moved(configs: Path, client: Client, contract: str) -> Candidate:
    """The client under another contract of the registry; what its YAML says of columns that this lacks is taken out.

    Raises:
        UsageError: the client has no YAML that can be changed.
        ConfigError: what would come out cannot be used.
    """
    file = _file_of(client)
    edits: Edits = {("contract",): contract} if client.config.contract != contract else {}
    edits |= _without(client.config, set(load_contract(configs, contract).column))
    text = edited(strict_yaml.text_of(file), edits)
    before = load_contract(configs, client.config.contract)
    return Candidate(_tried(configs, file, text, None), before, None, file, text)


def _file_of(client: Client) -> Path:
    if client.file is None:
        raise UsageError(f"{client.client_id} has no YAML that can be changed.")
    return client.file[0]


def _without(config: ClientConfig, known: set[str]) -> Edits:
    """Edits that take out what a YAML says of columns but those."""
    edits: Edits = {("columns", h): REMOVED for h, source in config.columns.items() if source.to not in known}
    edits |= {("policies", column): REMOVED for column in config.policies if column not in known}
    return edits | {("rules", n): REMOVED for n, rule in enumerate(config.rules) if not set(rule.columns) <= known}


def _tried(configs: Path, file: Path, text: str, contract: tuple[str, str] | None) -> Client:
    """The client that a YAML's new text makes, in a copy of the registry with that contract in it."""
    with tempfile.TemporaryDirectory(prefix="healthingest-schema-") as folder:
        copy = Path(folder)
        for part in ("contracts", "hooks"):
            if (configs / part).is_dir():
                shutil.copytree(configs / part, copy / part)
        if contract:
            (copy / "contracts" / f"{contract[0]}.yaml").write_text(contract[1], encoding="utf-8")
        (copy / file.name).write_text(text, encoding="utf-8")
        return load_client(copy / file.name, copy)


def write(configs: Path, made: Candidate) -> None:
    """Write the contract, if there is a new one, then the client's YAML; both whole, and again without harm.

    Raises:
        ConfigError: somebody has written another contract of that version meanwhile.
    """
    if made.contract:
        target = configs / "contracts" / f"{made.contract[0]}.yaml"
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_text(made.contract[1], encoding="utf-8")
        try:
            os.link(temporary, target)  # exclusive, and never half-written
        except FileExistsError:
            if target.read_text(encoding="utf-8") != made.contract[1]:
                raise ConfigError("it was written by somebody else a moment ago; approve again.", file=target) from None
        finally:
            temporary.unlink()
    replace_text(made.file, made.config)


def _version(configs: Path, before: Contract, edits: Edits) -> tuple[str, str | None]:
    """Name of the version that the edits come to, and its text if it must be written.

    Made of the client's own version, whatever others have added since: what one client's people approve must not show
    another's values.
    """
    known = [load_contract(configs, n) for n in contract_names(configs) if n.startswith(f"{before.contract}/")]
    text = strict_yaml.text_of(configs / "contracts" / f"{before.name}.yaml")
    text = edited(text, _resolved(yaml.safe_load(text), edits) | {("version",): known[-1].version + 1})
    text = re.sub(r"\A(?:#.*\n)+", "", text)  # its first lines speak of the version before
    new = strict_yaml.document_of(Path("contract.yaml"), text).parse(Contract)
    same = next((one for one in known if _said(one) == _said(new)), None)
    return (same.name, None) if same else (new.name, text)


def _resolved(plain: Mapping[str, Any], edits: Edits) -> Edits:
    """Edits whose paths name columns and rules by name or id, with their places in this text; `+` is the end."""
    resolved: Edits = {}
    for path, value in edits.items():
        steps: list[str | int] = list(path)
        if len(path) > 1 and path[0] in {"columns", "rules"}:
            held, key = plain.get(str(path[0])) or [], "name" if path[0] == "columns" else "id"
            steps[1] = len(held) if path[1] == "+" else [one[key] for one in held].index(path[1])
        resolved[tuple(steps)] = value
    return resolved


def _said(contract: Contract) -> dict[str, Any]:
    return contract.model_dump(mode="json", exclude={"version", "description"}, exclude_defaults=True)


# --- what each kind of difference asks for ------------------------------------------------------------------------


def _added(client: Client, _: str, header: str | None, __: str, fix: Mapping[str, Any], answer: Answer) -> Step:
    if header is None:
        raise UsageError("The new column's name cannot be told; ask the sender, and map it in the client's YAML.")
    name = answer.name or _column_name(header)
    to: Edits = {} if normal_header(name) == normal_header(header) else {("columns", header): name}
    if name in client.contract.column and not answer.name:
        raise UsageError(f"The contract has a column {name} already; say what this one is called: --name.")
    if name in client.contract.column:  # it is that one, says the person
        return Step(config=to or {("columns", header): name})
    if not answer.policy:
        raise UsageError(
            f"A column without a privacy policy cannot be approved; say what becomes of {name}: "
            "--policy vault:identity, keep, drop, or a mapping as a contract writes it."
        )
    column = {"name": name, "type": answer.type or fix.get("type", "text")}
    column |= {"description": answer.description} if answer.description else {}
    return Step({("columns", "+"): column | {"policy": dict(answer.policy or {})}}, to)


def _renamed(
    client: Client, column: str, header: str | None, rule: str, fix: Mapping[str, Any], answer: Answer
) -> Step:
    if answer.policy or answer.name:
        return _added(client, column, header, rule, {}, answer)
    source = client.column_source(column).model_dump(exclude_defaults=True, by_alias=True)
    headers = fix.get("headers") or [header]
    return Step(config={("columns", h): column if set(source) == {"to"} else source for h in headers})


def _dropped(client: Client, column: str, *_: Any) -> Step:  # noqa: ANN401 - what the other kinds need
    known = client.contract.column[column]
    if known.policy.token:
        raise UsageError(f"{column} names the member and cannot leave the contract; ask the sender for it.")
    contract: Edits = {("columns", column): REMOVED}
    contract |= {("rules", rule.id): REMOVED for rule in client.contract.rules if column in rule.columns}
    return Step(contract, _without(client.config, set(client.contract.column) - {column}))


def _retyped(client: Client, column: str, header: str | None, _: str, fix: Mapping[str, Any], answer: Answer) -> Step:
    if fix.get("zip_repair"):
        return _source(client, column, header, {"zip_repair": True})
    fmt = answer.date_format or fix.get("date_format")
    if fmt is None and fix.get("fits"):
        raise UsageError(f"The dates of {column} fit {' and '.join(fix['fits'])} alike; say which: --date-format.")
    if fmt is None:
        raise UsageError(
            f"What became of {column} cannot be told from its values; change the client's YAML or its contract, then "
            f"run healthingest quarantine release --client {client.client_id}."
        )
    known = client.column_source(column).date_formats or ["%Y-%m-%d"]
    return _source(client, column, header, {"date_formats": [*known, *([fmt] if fmt not in known else [])]})


def _codes(client: Client, column: str, header: str | None, rule: str, fix: Mapping[str, Any], answer: Answer) -> Step:
    if answer.map:
        words = client.column_source(column).map or {}
        return _source(client, column, header, {"map": {**words, **answer.map}})
    new = sorted({*fix.get("codes", ()), *answer.codes})
    listed = next((one for one in client.rules if one.id == rule and one.in_), None)
    if listed is None:
        raise UsageError(f"Say what each new word of {column} means here: --map WORD=CODE.")
    if not new:
        raise UsageError(f"Which codes {column} shall have cannot be told here; say them: --code CODE.")
    known = list(listed.in_ or ())
    places = {len(known) + at: code for at, code in enumerate(code for code in new if code not in known)}
    own = [one.id for one in client.config.rules]
    if rule in own:
        return Step(config={("rules", own.index(rule), "in", at): code for at, code in places.items()})
    return Step({("rules", rule, "in", at): code for at, code in places.items()})


_STEPS: dict[str, Callable[[Client, str, str | None, str, Mapping[str, Any], Answer], Step]] = {
    "added": _added,
    "renamed": _renamed,
    "missing": _dropped,
    "emptied": _dropped,
    "retyped": _retyped,
    "codes": _codes,
}


def _source(client: Client, column: str, header: str | None, said: Mapping[str, Any]) -> Step:
    """Edits of how the client's files write a column: under every header that leads to it, or under its name."""
    headers = [h for h, source in client.config.columns.items() if source.to == column]
    if header is not None and normal_header(header) not in map(normal_header, headers):
        headers.append(header)
    before = client.column_source(column).model_dump(exclude_defaults=True, by_alias=True, exclude={"to"})
    return Step(config={("columns", h): {"to": column} | before | dict(said) for h in headers or [column]})


def _column_name(header: str) -> str:
    name = plain_name(header)
    return name if name[:1].isalpha() else f"column_{name}"
