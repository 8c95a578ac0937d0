"""A breaking change of a contract in steps: the new column beside the old, filled, announced, the old one gone.

The operator writes two versions of the contract: a wide one with the new columns beside the old, and a narrow one
without the old. Silver can be read and written at any moment between; each step may be cut off and done again.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime

from deltalake import DeltaTable

from healthingest.approve import replay
from healthingest.contracts import strict_yaml
from healthingest.contracts.clients import load_client
from healthingest.contracts.contract import Contract, load_contract
from healthingest.contracts.edit import client_file, edited, replace_text
from healthingest.contracts.versions import changes, compatibility, hold_against_registry
from healthingest.errors import UsageError
from healthingest.lake.delta import retry
from healthingest.lake.migrations import Migration, Migrations, Step
from healthingest.lake.narrow import drop_columns
from healthingest.lake.registrations import Registrations
from healthingest.lake.silver import comments, readable_columns
from healthingest.model import Outcome
from healthingest.places import Places, today
from healthingest.platform import Platform
from healthingest.privacy.roles import reason_given

_LONGEST_REASON = 500
OnGroup = Callable[[list[Outcome]], None]
_ORDER: tuple[Step, ...] = ("started", "widened", "filled", "announced", "finished")


def start(
    platform: Platform, client_id: str, wide: str, narrow: str, *, by: str, reason: str, wait: float = 600.0
) -> Migration:
    """Begin a change, or finish beginning it: publish both versions and give the client the wide one.

    Raises:
        UsageError: there is no such client, another change of it is open, or the versions are not a wide and a narrow.
        ConfigError: one of the versions cannot be used.
        BusyError: others did not finish with the client within `wait` seconds.
    """
    places, reason = platform.places, reason_given(reason, _LONGEST_REASON)
    state = open_one(places, client_id)
    if state is None:
        before = _client_contract(platform, client_id)
        _require_steps(platform, before, wide, narrow)
        name = f"{client_id}.{narrow}.{datetime.now(UTC):%Y%m%dT%H%M%S}"
        state = Migration(name, client_id, before.name, wide, narrow, "started", None, by, datetime.now(UTC), reason)
        Migrations.at(places.output).put(state)
    elif (state.wide, state.narrow) != (wide, narrow):
        raise UsageError(
            f"{client_id} is on its way from {state.before} to {state.narrow}; finish or cancel that first."
        )
    if state.step != "started":
        return state
    for name in (wide, narrow):
        _publish(places, name, by, reason)
    platform = _give(platform, client_id, wide, wait)
    platform.lake.silver_for(client_id).for_client(client_id, platform.clients.clients[client_id].contract)
    return _note(places, state, "widened", by)


def backfill(platform: Platform, client_id: str, *, by: str, on_group: OnGroup = lambda _: None) -> Migration:
    """Fill the new columns: read all deliveries again that were read without them. May be cut off at any time.

    Raises:
        UsageError: no change is under way, or it has not begun.
    """
    state = _required(platform, client_id, "widened")
    for group in replay(platform, client_id, run_id=f"schema migrate by {by}"):
        on_group(group)
    return state if _is_past(state, "filled") else _note(platform.places, state, "filled", by)


def switch(platform: Platform, client_id: str, on: date, *, by: str) -> Migration:
    """Tell readers from when on the old columns are gone: in their comments in silver's schema.

    Raises:
        UsageError: the new columns are not filled yet, or the day has passed.
    """
    state = _required(platform, client_id, "filled")
    if on < today():
        raise UsageError(f"{on} has passed; name a day on which readers can have switched over.")
    wide, narrow = (load_contract(platform.places.configs, name) for name in (state.wide, state.narrow))
    before = load_contract(platform.places.configs, state.before)
    new = ", ".join(sorted(_silver_columns(wide) - _silver_columns(before)))
    said = comments(wide)
    for column in sorted(_silver_columns(wide) - _silver_columns(narrow)):
        _comment(
            platform, client_id, column, f"{said[column]}; of {client_id} until {on}" + (f", then {new}" if new else "")
        )
    return _note(platform.places, replace(state, switch_on=on), "announced", by)


def finish(
    platform: Platform, client_id: str, *, by: str, wait: float = 600.0, on_group: OnGroup = lambda _: None
) -> Migration:
    """Give the client the narrow version, read its deliveries again, and take the old columns out of silver.

    A column that other clients still have stays, empty for this one; the returned note says so.

    Raises:
        UsageError: the change was not announced, or its day has not come.
        BusyError: others did not finish with the client within `wait` seconds.
    """
    if done := _ended(platform, client_id, "finished"):
        return done
    state = _required(platform, client_id, "announced")
    if state.switch_on is None or state.switch_on > today():
        raise UsageError(f"Readers were told that the old columns stay until {state.switch_on}; finish then.")
    platform = _give(platform, client_id, state.narrow, wait)
    for group in replay(platform, client_id, run_id=f"schema migrate by {by}"):
        on_group(group)
    wide, narrow = (load_contract(platform.places.configs, name) for name in (state.wide, state.narrow))
    leaving = _silver_columns(wide) - _silver_columns(narrow)
    staying = {column: who for column in leaving if (who := _still_used(platform, client_id, column))}
    for column in staying:
        _comment(platform, client_id, column, comments(wide)[column])
    if gone := leaving - staying.keys():
        drop_columns(platform.lake.silver_of(client_id), gone)
    said = "".join(f" {column} stays for {who}." for column, who in sorted(staying.items()))
    return _note(platform.places, replace(state, note=f"{state.note}.{said}" if said else state.note), "finished", by)


def cancel(
    platform: Platform, client_id: str, *, by: str, wait: float = 600.0, on_group: OnGroup = lambda _: None
) -> Migration:
    """Give the client its first version back and read its deliveries again; the new columns stay in silver, empty.

    Raises:
        UsageError: no change is under way.
    """
    if done := _ended(platform, client_id, "cancelled"):
        return done
    state = _required(platform, client_id, "started")
    platform = _give(platform, client_id, state.before, wait)
    for group in replay(platform, client_id, run_id=f"schema migrate by {by}"):
        on_group(group)
    return _note(platform.places, state, "cancelled", by)


def open_one(places: Places, client_id: str) -> Migration | None:
    """The change of a client that is under way, if one is."""
    return next((m for m in Migrations.at(places.output).all(client_id) if m.is_open), None)


def next_step(state: Migration) -> str:
    """What to do next, as a command."""
    command = {
        "started": f"start --client {state.client_id} --wide {state.wide} --narrow {state.narrow}",
        "widened": f"backfill --client {state.client_id}",
        "filled": f"switch --client {state.client_id} --on DATE",
        "announced": f"finish --client {state.client_id}",
    }.get(state.step)
    return f"healthingest schema migrate {command}" if command else ""


def _ended(platform: Platform, client_id: str, step: Step) -> Migration | None:
    """The client's latest change, if that is how it ended: the command was cut off after its last step."""
    found = Migrations.at(platform.places.output).all(client_id)
    return found[-1] if found and found[-1].step == step else None


def _required(platform: Platform, client_id: str, step: Step) -> Migration:
    state = open_one(platform.places, client_id)
    if state is None:
        raise UsageError(f"No change of {client_id} is under way; begin one: healthingest schema migrate start.")
    if not _is_past(state, step):
        raise UsageError(f"The change of {client_id} is not that far; next is: {next_step(state)}")
    return state


def _is_past(state: Migration, step: Step) -> bool:
    return _ORDER.index(state.step) >= _ORDER.index(step)


def _note(places: Places, state: Migration, step: Step, by: str) -> Migration:
    noted = replace(state, step=step, done_by=by, done_at=datetime.now(UTC))
    Migrations.at(places.output).put(noted)
    return noted


def _client_contract(platform: Platform, client_id: str) -> Contract:
    if client_id not in platform.clients.clients:
        known = ", ".join(platform.clients.clients) or "none"
        raise UsageError(f"There is no client {client_id!r} whose config can be used; there is {known}.")
    return load_contract(platform.places.configs, platform.clients.clients[client_id].config.contract)


def _require_steps(platform: Platform, before: Contract, wide_name: str, narrow_name: str) -> None:
    wide, narrow = (load_contract(platform.places.configs, name) for name in (wide_name, narrow_name))
    if compatibility(changes(before, wide)) == "breaking":
        raise UsageError(f"{wide.name} breaks with {before.name}; it must only have the new columns beside the old.")
    added = _silver_columns(narrow) - _silver_columns(wide)
    if added or set(narrow.column) - set(wide.column):
        raise UsageError(
            f"{narrow.name} has columns that {wide.name} lacks; they must be filled before the old ones go."
        )
    if not _silver_columns(wide) - _silver_columns(narrow) and set(narrow.column) == set(wide.column):
        raise UsageError(f"{narrow.name} has all the columns of {wide.name}; there is nothing to take out in steps.")


def _publish(places: Places, name: str, by: str, reason: str) -> None:
    registrations, contract = Registrations.at(places.output), load_contract(places.configs, name)
    hold_against_registry(places.configs, contract, registrations.digests())
    number = contract.version - 1
    before = load_contract(places.configs, f"{contract.contract}/{number}") if number else None
    registrations.put(contract, before, by=by, reason=reason)


def _give(platform: Platform, client_id: str, contract: str, wait: float) -> Platform:
    """Write a version into the client's YAML while nobody is at work on it; the installation, opened anew."""
    configs = platform.places.configs
    with platform.lake.exclusion.alone(client_id, wait=wait):
        file = client_file(configs, client_id)
        if file is None:
            raise UsageError(f"{client_id} has no YAML that can be changed.")
        if load_client(file, configs).config.contract != contract:
            before = strict_yaml.text_of(file)
            replace_text(file, edited(before, {("contract",): contract}))
            try:
                load_client(file, configs)
            except Exception:
                replace_text(file, before)
                raise
    return Platform.open(platform.places)


def _silver_columns(contract: Contract) -> set[str]:
    return set(readable_columns(contract))


def _comment(platform: Platform, client_id: str, column: str, text: str) -> None:
    """Say of a column of the client's table of silver what it holds."""
    uri = platform.lake.silver_of(client_id).uri
    retry(lambda: DeltaTable(uri).alter.set_column_metadata(column, {"comment": text}))


def _still_used(platform: Platform, client_id: str, column: str) -> str:
    """Who still has a column in the client's table of silver; a config that cannot be read may."""
    place = platform.lake.silver_of(client_id).path
    users = [
        other for other, client in platform.clients.clients.items()
        if column in readable_columns(client.contract) and platform.lake.silver_of(other).path == place
    ]  # fmt: skip
    return ", ".join([*users, *(problem.file.name for problem in platform.clients.problems)])
