"""`healthingest schema`: versions of contracts, what they hold, how they differ, and their exchange with others."""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.errors import UsageError
from healthingest.show import print_json, print_table

if TYPE_CHECKING:
    from healthingest.contracts.contract import Column, Contract
    from healthingest.contracts.versions import Change
    from healthingest.places import Places

schema_app = typer.Typer(help="Contracts: what their versions hold, and how they differ.", no_args_is_help=True)
command = command_of(schema_app)

Name = Annotated[str, typer.Argument(help="A contract and its version, like member/1; without one, its latest.")]


@command("show")
def show_command(name: Name = "", as_json: Json = False) -> int:
    """The columns and rules of a contract, with what becomes of their values; without a name, all contracts.

    Example: healthingest schema show member/1
    """
    from healthingest.places import Places

    places = Places.from_env()
    if not name:
        return _list(places, as_json=as_json)
    contract = _contract(places, name)
    if as_json:
        plain = contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        print_json(plain | {"digest": contract.digest})
        return 0
    typer.echo(f"{contract.name}  {contract.description}")
    header = ["column", "type", "required", "class", "policy", "holds"]
    print_table("", header, [
        [c.name, c.type, "yes" if c.required else "", c.kind_of_value, _policy(c), c.description]
        for c in contract.columns
    ])  # fmt: skip
    rules = [[r.id, r.column, r.severity, r.text] for r in contract.rules]
    print_table("", ["rule", "column", "severity", "the value ..."], rules)
    return 0


def _list(places: "Places", *, as_json: bool) -> int:
    from healthingest.contracts.contract import contract_names
    from healthingest.lake.registrations import Registrations, known_clients

    published = {r.name: r for r in Registrations.at(places.output).all()}
    users: dict[str, list[str]] = {name: [] for name in contract_names(places.configs)}
    for client in known_clients(places).clients.values():
        users[client.config.contract].append(client.client_id)
    if as_json:
        print_json({"contracts": [
            {"contract": name, "clients": clients}
            | {key: getattr(published.get(name), key, None) for key in ("registered_at", "compatibility")}
            for name, clients in users.items()
        ]})  # fmt: skip
        return 0
    header = ["contract", "published", "to the one before", "clients"]
    print_table("", header, [
        [name, f"{one.registered_at:%Y-%m-%d %H:%M}" if one else "not yet",
         (one.compatibility if one else None) or "", ", ".join(clients)]
        for name, clients in users.items() for one in [published.get(name)]
    ])  # fmt: skip
    return 0


@command("history")
def history_command(contract: Annotated[str, typer.Argument(help="A contract's name.")], as_json: Json = False) -> int:
    """Who published which version, when and why, and what each changed.

    Example: healthingest schema history member
    """
    from healthingest.lake.registrations import Registrations
    from healthingest.places import Places

    found = Registrations.at(Places.from_env().output).all(contract)
    if as_json:
        print_json({"versions": [vars(r) | {"changes": [vars(c) for c in r.changes]} for r in found]})
        return 0
    if not found:
        raise UsageError(f"No version of {contract} is published; a contract is when a delivery first meets it.")
    for one in found:
        step = f", {one.compatibility}" if one.compatibility else ""
        typer.echo(f"{one.name}  {one.registered_at:%Y-%m-%d %H:%M} UTC by {one.registered_by}{step}: {one.reason}")
        _say(one.changes)
    return 0


@command("diff")
def diff_command(before: Name, after: Name, as_json: Json = False) -> int:
    """What one version of a contract asks that another does not, and how much that is: compatible, additive, breaking.

    Example: healthingest schema diff member/1 member/2
    """
    from healthingest.contracts.versions import changes, compatibility
    from healthingest.places import Places

    places = Places.from_env()
    old, new = _contract(places, before), _contract(places, after)
    found = changes(old, new)
    if as_json:
        step = {"before": old.name, "after": new.name, "compatibility": compatibility(found)}
        print_json(step | {"changes": [vars(c) for c in found]})
        return 0
    typer.echo(f"{old.name} to {new.name}: {compatibility(found) if found else 'no difference'}")
    _say(found)
    return 0


@command("reconcile")
def reconcile_command(
    plan: Annotated[bool, typer.Option("--plan", help="Only say what differs; write nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Hold the tables against the registry; add what is missing, and tell what differs otherwise.

    Exits with 1 if anything remains that a person must look at (with --plan, if anything differs).

    Example: healthingest schema reconcile --plan
    """
    from healthingest.lake.registrations import known_clients
    from healthingest.places import Places
    from healthingest.reconcile import differences, reconcile

    places = Places.from_env()
    clients = known_clients(places)
    mended, left = ([], differences(places, clients)) if plan else reconcile(places, clients)
    if as_json:
        print_json({"repaired": [vars(d) for d in mended], "left": [vars(d) for d in left]})
        return 1 if left else 0
    for one in mended:
        typer.echo(f"repaired: {one.sentence}")
    for one in left:
        typer.echo(one.sentence)
    if not left:
        typer.echo("The tables are as the registry says.")
    return 1 if left else 0


class Form(StrEnum):
    """Forms in which others write contracts."""

    odcs = "odcs"
    json_schema = "json-schema"


@command("export")
def export_command(
    name: Name,
    form: Annotated[Form, typer.Option("--format", help="Open Data Contract Standard, or JSON Schema.")] = Form.odcs,
    out: Annotated[Path | None, typer.Option(help="A new file; without it, the terminal.")] = None,
    as_json: Json = False,
) -> int:
    """Write a contract as others read it. Nothing is lost: `schema import` makes the same of it.

    Example: healthingest schema export member/1 --format json-schema --out member.schema.json
    """
    from healthingest.contracts.exchange import written
    from healthingest.places import Places

    contract = _contract(Places.from_env(), name)
    text = written(contract, form.value)
    if out is not None:
        _put(out, text)
    elif not as_json:
        typer.echo(text, nl=False)
    if as_json:
        print_json({"contract": contract.name, "format": form.value, "out": out} | ({} if out else {"text": text}))
    return 0


@command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="An Open Data Contract Standard document or a JSON Schema.")],
    name: Annotated[str, typer.Argument(help="The contract and version that it shall become, like member/2.")],
    as_json: Json = False,
) -> int:
    """Make a contract's next version of a document of others: a file in client_configs/contracts, for a review.

    Every column must say its policy, under `healthingest`; there is no default for what becomes of a member's values.

    Example: healthingest schema import member.odcs.yaml member/2
    """
    from healthingest.contracts.contract import load_contract
    from healthingest.contracts.exchange import as_yaml, read
    from healthingest.contracts.versions import changes, compatibility, hold_against_registry
    from healthingest.places import Places

    places = Places.from_env()
    if not re.fullmatch(r"[a-z][a-z0-9_]*/[1-9][0-9]{0,5}", name):
        raise UsageError("Name the contract and version that it shall become, like member/2.")
    if not file.is_file():
        raise UsageError(f"There is no file {file}.")
    stem, _, number = name.partition("/")
    contract = read(file.read_text(encoding="utf-8"), stem, int(number))
    hold_against_registry(places.configs, contract, {})
    target = places.configs / "contracts" / f"{name}.yaml"
    _put(target, as_yaml(contract))
    found = []
    if contract.version > 1:
        found = changes(load_contract(places.configs, f"{stem}/{contract.version - 1}"), contract)
    if as_json:
        print_json({"file": target, "compatibility": compatibility(found), "changes": [vars(c) for c in found]})
    else:
        typer.echo(f"Wrote {target}.")
        _say(found)
    return 0


def _put(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{target} is there already; name a new file.") from None


def _say(changes: "list[Change] | tuple[Change, ...]") -> None:
    for change in changes:
        typer.echo(f"  {change.compatibility:<10}  {': '.join(filter(None, [change.subject, change.text]))}")


def _contract(places: "Places", name: str) -> "Contract":
    from healthingest.contracts.contract import contract_names, load_contract

    known = contract_names(places.configs)
    if name not in known:
        latest = [one for one in known if one.startswith(f"{name}/")]
        if not latest:
            raise UsageError(f"There is no contract {name!r}; there are {', '.join(known) or 'none'}.")
        name = latest[-1]
    return load_contract(places.configs, name)


def _policy(column: "Column") -> str:
    policy = column.policy
    said = [word for word, on in (("token", policy.token), ("keep", policy.keep), ("drop", policy.drop)) if on]
    said += [f"vault {policy.vault}"] if policy.vault else []
    return ", ".join([*said, *(f"{how} as {target}" for target, how in (policy.generalize | policy.mask).items())])
