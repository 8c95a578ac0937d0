"""Contracts as others write them: Open Data Contract Standard (bitol-io.github.io, version 3), JSON Schema (2020-12).

What the standards have a word for is said in it; policies, types and rules of ours stand beside, under `healthingest`,
so that what was written here is read back as it was. What is not from here must say each column's policy.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from healthingest.contracts.contract import Column, Contract, standard_shape
from healthingest.contracts.rules import Rule
from healthingest.errors import UsageError

Format = Literal["odcs", "json-schema"]
_OURS = "healthingest"
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_ODCS = "v3.1.0"
#: Types that JSON Schema has a `format` of the same name for.
_FORMATS = frozenset({"date", "email"})


def written(contract: Contract, form: Format) -> str:
    """A contract in another form: YAML for odcs, JSON for json-schema."""
    return _as_odcs(contract) if form == "odcs" else json.dumps(_as_json_schema(contract), indent=2) + "\n"


def read(text: str, name: str, version: int) -> Contract:
    """A contract from either form, under a name and version of ours.

    Raises:
        UsageError: it is neither, or does not say what a contract must: each column's policy among it.
    """
    try:
        plain = yaml.safe_load(text)  # JSON is YAML
    except yaml.YAMLError:
        raise UsageError("The file is neither YAML nor JSON.") from None
    if not isinstance(plain, dict):
        raise UsageError("The file holds no contract.")
    if "$schema" in plain or "properties" in plain:
        said = _from_json_schema(plain)
    elif plain.get("kind") == "DataContract":
        said = _from_odcs(text)
    else:
        raise UsageError("The file is neither a JSON Schema nor an Open Data Contract Standard document.")
    if lacking := [str(c["name"]) for c in said["columns"] if not c.get("policy")]:
        raise UsageError(
            f"It does not say what becomes of the values of {', '.join(lacking)}: give each a policy (keep, token, "
            "vault, generalize, mask or drop) under healthingest."
        )
    try:
        return Contract.model_validate({"contract": name, "version": version} | said)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"It makes no contract: {at + ': ' if at else ''}{first['msg']}.") from None


def as_yaml(contract: Contract) -> str:
    """A contract as the registry keeps it."""
    plain = contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def _ours(column: Column) -> dict[str, Any]:
    """What only we say of a column."""
    return column.model_dump(mode="json", by_alias=True, exclude_defaults=True, include={"type", "class_", "policy"})


def _rule(rule: Rule) -> dict[str, Any]:
    return rule.model_dump(mode="json", by_alias=True, exclude_defaults=True)


# --- Open Data Contract Standard ----------------------------------------------------------------------------------


def _as_odcs(contract: Contract) -> str:
    from open_data_contract_standard.model import (
        CustomProperty,
        DataQuality,
        Description,
        OpenDataContractStandard,
        SchemaObject,
        SchemaProperty,
    )

    def quality(rule: Rule) -> DataQuality:
        return DataQuality(
            name=rule.id, type="custom", engine=_OURS, implementation=_rule(rule), severity=rule.severity,
            description=rule.text,
        )  # fmt: skip

    properties = [
        SchemaProperty(
            name=column.name,
            logicalType="date" if column.type == "date" else "string",
            physicalType="text",
            required=column.required,
            primaryKey=column.name == "member_id" or None,
            classification=column.kind_of_value,
            description=column.description or None,
            quality=[quality(rule) for rule in contract.rules if rule.column == column.name] or None,
            customProperties=[CustomProperty(property=_OURS, value=_ours(column))],
        )
        for column in contract.columns
    ]
    table = SchemaObject(name=contract.contract, logicalType="object", physicalType="file", properties=properties)
    document = OpenDataContractStandard(
        apiVersion=_ODCS, kind="DataContract", id=contract.name, name=contract.contract, status="active",
        version=f"{contract.version}.0.0", schema=[table],
        description=Description(purpose=contract.description) if contract.description else None,
        customProperties=[CustomProperty(property=_OURS, value={"rules": [_rule(rule) for rule in contract.rules]})],
    )  # fmt: skip
    return str(document.to_yaml())


def _from_odcs(text: str) -> dict[str, Any]:
    from open_data_contract_standard.model import OpenDataContractStandard

    try:
        document = OpenDataContractStandard.from_string(text)
    except (ValidationError, TypeError):
        raise UsageError("The file is no Open Data Contract Standard document of version 3.") from None
    tables = document.schema_ or []
    if len(tables) != 1:
        raise UsageError(f"The document has {len(tables)} tables; a contract is of one.")
    columns, asked = [], []
    for found in tables[0].properties or []:
        ours = _custom(found.customProperties)
        kind = "date" if found.logicalType == "date" else "text"
        columns.append(
            _column(found.name or "", kind, found.description, ours, required=bool(found.required or found.primaryKey))
        )
        asked += [q.implementation for q in found.quality or [] if q.engine == _OURS]
    rules = _custom(document.customProperties).get("rules", asked)
    purpose = document.description.purpose if document.description else None
    return {"columns": columns, "rules": rules} | ({"description": purpose} if purpose else {})


def _custom(properties: Sequence[Any] | None) -> dict[str, Any]:
    found = next((p.value for p in properties or () if p.property == _OURS), None)
    return found if isinstance(found, dict) else {}


def _column(
    name: str, kind: str, description: str | None, ours: Mapping[str, Any], *, required: bool
) -> dict[str, Any]:
    said = {"name": name, "type": kind, "required": required} | dict(ours)
    return said | ({"description": description} if description else {})


# --- JSON Schema --------------------------------------------------------------------------------------------------

#: Rule key -> what JSON Schema says for it; rules with a condition are said by us alone.
_KEYWORDS: Sequence[tuple[str, Callable[[Any], dict[str, Any]]]] = (
    ("pattern", lambda pattern: {"pattern": f"^(?:{pattern})$"}),
    ("max_length", lambda most: {"maxLength": most}),
    ("in_", lambda listed: {"enum": list(listed)}),
)


def _as_json_schema(contract: Contract) -> dict[str, Any]:
    """Of the standard form of a record, as `export` writes it; a value that is not required may be missing."""
    return {
        "$schema": _DRAFT,
        "$id": f"urn:healthingest:contract:{contract.contract}:{contract.version}",
        "title": contract.contract,
        **({"description": contract.description} if contract.description else {}),
        "type": "object",
        "properties": {column.name: _property(contract, column) for column in contract.columns},
        "required": contract.required,
        f"x-{_OURS}-rules": [_rule(rule) for rule in contract.rules],
    }


def _property(contract: Contract, column: Column) -> dict[str, Any]:
    said: dict[str, Any] = {"type": "string", **({"description": column.description} if column.description else {})}
    tests = [{"pattern": f"^{shape}$"}] if (shape := standard_shape(column.type)) else []
    said |= {"format": column.type} if column.type in _FORMATS else {}
    for rule in contract.rules:
        if rule.column == column.name and rule.severity == "error" and rule.when is None:
            tests += [say(getattr(rule, key)) for key, say in _KEYWORDS if getattr(rule, key) is not None]
    return said | ({"allOf": tests} if tests else {}) | {f"x-{_OURS}": _ours(column)}


def _from_json_schema(plain: Mapping[str, Any]) -> dict[str, Any]:
    required, columns = set(plain.get("required", ())), []
    for name, said in plain.get("properties", {}).items():
        if not isinstance(said, dict):
            raise UsageError(f"What it says of {name} is no schema.")
        kind = str(said["format"]) if said.get("format") in _FORMATS else "text"
        ours = said.get(f"x-{_OURS}") or {}
        columns.append(_column(name, kind, said.get("description"), ours, required=name in required))
    rules = plain.get(f"x-{_OURS}-rules", [])
    return {"columns": columns, "rules": rules} | (
        {"description": plain["description"]} if plain.get("description") else {}
    )
