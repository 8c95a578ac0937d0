"""A breaking change of a contract in steps: the new column beside the old, filled, announced, the old one gone.

The operator writes two versions of the contract: a wide one with the new columns beside the old, and a narrow one
without the old. Silver can be read and written at any moment between; each step may be cut off and done again.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime

import polars as pl

from healthingest.approve import replay
from healthingest.contracts.contract import Contract, load_contract
from healthingest.contracts.evolve import moved, write
from healthingest.contracts.versions import Change, changes, compatibility
from healthingest.errors import UsageError
from healthingest.lake.delta import retry
from healthingest.lake.migrations import Migration, Migrations, Step
from healthingest.lake.narrow import drop_columns
from healthingest.lake.registrations import Registrations
from healthingest.lake.silver import comments, readable_columns
from healthingest.model import Outcome
from healthingest.places import Places, today
from healthingest.platform import Platform
from healthingest.privacy.roles import LONGEST_REASON, reason_given

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
    places, reason = platform.places, reason_given(reason, LONGEST_REASON)
    state = open_one(places, client_id)
    if state is None:
        before = _client_contract(platform, client_id)
        _require_steps(platform, client_id, before, wide, narrow)
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
        Registrations.at(places.output).publish(places.configs, name, by=by, reason=reason)
    platform = _give(platform, client_id, wide, wait)
    platform.lake.silver_for(client_id).for_client(client_id, platform.clients.clients[client_id].contract)
    return _note(places, state, "widened", by)


def backfill(platform: Platform, client_id: str, *, by: str, on_group: OnGroup = lambda _: None) -> Migration:
    """Fill the new columns: read all deliveries again that were read without them. May be cut off at any time.

    Raises:
        UsageError: no change is under way, or it has not begun.
    """
    state = _required(platform, client_id, "widened")
    _read_again(platform, client_id, by, on_group)
    return state if _is_past(state, "filled") else _note(platform.places, state, "filled", by)


def switch(platform: Platform, client_id: str, on: date, *, by: str) -> Migration:
    """Tell readers from when on the old columns are gone: in their comments in silver's schema.

    Raises:
        UsageError: the new columns are not filled yet, or the day has passed.
    """
    state = _required(platform, client_id, "filled")
    if on < today():
        raise UsageError(f"{on} has passed; name a day on which readers can have switched over.")
    had, wide, narrow = (_readable(platform, client_id, n) for n in (state.before, state.wide, state.narrow))
    new = ", ".join(sorted(wide.keys() - had.keys()))
    for column in sorted(wide.keys() - narrow.keys()):
        text = f"{wide[column]}; of {client_id} until {on}"
        _comment(platform, client_id, column, text + (f", then {new}" if new else ""))
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
    had = {name: _readable(platform, client_id, name) for name in (state.wide, state.narrow)}
    platform = _give(platform, client_id, state.narrow, wait)
    _read_again(platform, client_id, by, on_group)
    wide, narrow = had[state.wide], had[state.narrow]
    said = _take_out(platform, client_id, {column: wide[column] for column in wide.keys() - narrow.keys()})
    return _note(platform.places, replace(state, note=f"{state.note}.{said}" if said else state.note), "finished", by)


def cancel(
    platform: Platform, client_id: str, *, by: str, wait: float = 600.0, on_group: OnGroup = lambda _: None
) -> Migration:
    """Give the client its first version back, read its deliveries again, and take the new columns out of silver.

    Raises:
        UsageError: no change is under way.
    """
    if done := _ended(platform, client_id, "cancelled"):
        return done
    state = _required(platform, client_id, "started")
    had = {name: _readable(platform, client_id, name) for name in (state.before, state.wide)}
    platform = _give(platform, client_id, state.before, wait)
    _read_again(platform, client_id, by, on_group)
    wide, before = had[state.wide], had[state.before]
    _take_out(platform, client_id, {column: wide[column] for column in wide.keys() - before.keys()})
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


def _require_steps(platform: Platform, client_id: str, before: Contract, wide_name: str, narrow_name: str) -> None:
    configs, client = platform.places.configs, platform.clients.clients[client_id]
    wide, narrow = (load_contract(configs, name) for name in (wide_name, narrow_name))
    if compatibility(changes(before, wide)) == "breaking":
        raise UsageError(f"{wide.name} breaks with {before.name}; it must only have the new columns beside the old.")
    found = changes(wide, narrow)
    if not any(_takes_out(change) for change in found):
        raise UsageError(f"{narrow.name} has all that {wide.name} has; there is nothing to take out in steps.")
    for change in found:
        if change.compatibility != "compatible" and not _takes_out(change):
            what = ": ".join(filter(None, [change.subject, change.text]))
            raise UsageError(f"{narrow.name} does more than take out what {wide.name} has ({what}); do that before.")
    for name in (wide_name, narrow_name):
        moved(configs, client, name)  # now, and not once readers have been given a day


def _takes_out(change: Change) -> bool:
    return change.text in {"removed", "silver no longer shows it"} or change.text.endswith("no longer made of it")


def _give(platform: Platform, client_id: str, contract: str, wait: float) -> Platform:
    """Write a version into the client's YAML while nobody is at work on it; the installation, opened anew."""
    with platform.lake.exclusion.alone(client_id, wait=wait):
        now = Platform.open(platform.places)
        if client_id not in now.clients.clients:
            raise UsageError(f"The YAML of {client_id} cannot be used now; healthingest doctor says why.")
        if now.clients.clients[client_id].config.contract != contract:
            write(platform.places.configs, moved(platform.places.configs, now.clients.clients[client_id], contract))
    return Platform.open(platform.places)


def _read_again(platform: Platform, client_id: str, by: str, on_group: OnGroup) -> None:
    """Read all deliveries again that were read otherwise.

    Raises:
        UsageError: one that is in silver was not taken this time, so that what it said before stands.
    """
    for group in replay(platform, client_id, run_id=f"schema migrate by {by}"):
        on_group(group)
    columns = ["file_name", "delivery_no", "status", "reread_of"]
    rows = platform.lake.audit.frame(columns, pl.col("client_id") == client_id).sort("delivery_no")
    taken = set(rows.filter(pl.col("status") == "succeeded")["file_name"])
    last = rows.group_by("file_name", maintain_order=True).last()
    left = last.filter(pl.col("reread_of").is_not_null(), pl.col("status").is_in(["held", "failed"]))
    if wrong := sorted(name for name in left["file_name"] if name in taken):
        raise UsageError(
            f"{wrong[0]} was not taken when it was read again, so that silver has it as it was read before; see "
            "healthingest status, release it or mend what is wrong, and run this again."
        )


def _readable(platform: Platform, client_id: str, name: str) -> dict[str, str]:
    """Silver columns that a version makes for a client, with what they hold."""
    contract = load_contract(platform.places.configs, name)
    policies = platform.clients.clients[client_id].config.policies
    contract = contract.with_policies({c: policy for c, policy in policies.items() if c in contract.column})
    said = comments(contract)
    return {column: said[column] for column in readable_columns(contract)}


def _take_out(platform: Platform, client_id: str, leaving: Mapping[str, str]) -> str:
    """Drop columns (-> what they hold) from the client's table of silver, but for those others have; says whose."""
    staying = {column: who for column in leaving if (who := _still_used(platform, client_id, column))}
    for column in staying:
        _comment(platform, client_id, column, leaving[column])
    if gone := leaving.keys() - staying.keys():
        drop_columns(platform.lake.silver_of(client_id), gone)
    return "".join(f" {column} stays for {who}." for column, who in sorted(staying.items()))


def _comment(platform: Platform, client_id: str, column: str, text: str) -> None:
    """Say of a column of the client's table of silver what it holds."""
    silver = platform.lake.silver_of(client_id)
    retry(lambda: silver.handle().alter.set_column_metadata(column, {"comment": text}))


def _still_used(platform: Platform, client_id: str, column: str) -> str:
    """Who still has a column in the client's table of silver; a config that cannot be read may."""
    silver = platform.lake.silver_of(client_id)
    users = {
        other for other, client in platform.clients.clients.items()
        if column in readable_columns(client.contract) and platform.lake.silver_of(other).path == silver.path
    }  # fmt: skip
    if column in [field.name for field in silver.snapshot().schema().fields]:  # also of clients whose YAML is gone
        users |= set(silver.frame(["client_id"], pl.col(column).is_not_null())["client_id"])
    return ", ".join([*sorted(users), *(problem.file.name for problem in platform.clients.problems)])
