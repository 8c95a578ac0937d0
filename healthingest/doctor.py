"""`healthingest doctor`: looks at everything that must be right on this machine, and changes nothing."""

import os
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

from healthingest.errors import HealthingestError, scrubbed
from healthingest.places import Places
from healthingest.storage.objects import ObjectPath

#: Versions that the design rests on; others are known to lose or leak data.
_PINNED = {"deltalake": "1.6.3", "dagster": "1.13.27"}
#: Seconds that a message must stay hidden: a tick takes up to 60, and the next one deletes it.
_LEAST_HIDDEN = 120


class Finding(NamedTuple):
    """One thing that was looked at."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    text: str


def examine(places: Places | None = None) -> list[Finding]:
    """Look at versions, places, keyring, permissions, configs, roles, tables, queues, validation and Dagster."""
    try:
        places = places or Places.from_env()
    except HealthingestError as error:
        return [Finding("fail", "environment", str(error))]
    return [finding for look in _LOOKS for finding in _safely(look, places)]


def _safely(look: Callable[[Places], Iterator[Finding]], places: Places) -> list[Finding]:
    try:
        return list(look(places))
    except HealthingestError as error:
        return [Finding("fail", look.__name__.strip("_"), str(error))]
    except Exception as error:  # noqa: BLE001 - a broken part must not hide the others
        return [Finding("fail", look.__name__.strip("_"), scrubbed(error))]


def _versions(_: Places) -> Iterator[Finding]:
    running = ".".join(map(str, sys.version_info[:3]))
    yield Finding("ok" if sys.version_info >= (3, 11) else "fail", "python", f"{running}; 3.11 or later is needed")
    for package, wanted in _PINNED.items():
        have = version(package)
        text = have if have == wanted else f"{have} is installed; install {wanted}, other versions are not safe here"
        yield Finding("ok" if have == wanted else "fail", package, text)


def _folders(places: Places) -> Iterator[Finding]:
    from healthingest.lake.whereabouts import require_here

    require_here(places.output)
    for name, folder in (("configs", places.configs), ("landing zone", places.landing), ("output", places.output)):
        if isinstance(folder, ObjectPath):
            yield from _store(name, folder, places)
        elif not folder.is_dir():
            missing = "is missing; it is made at the first ingest" if name == "output" else "is missing; make it"
            yield Finding("warn" if name == "output" else "fail", name, f"{folder} {missing}")
        elif name == "output" and not os.access(folder, os.W_OK):
            yield Finding("fail", name, f"{folder} cannot be written; change its owner")
        else:
            yield Finding("ok", name, str(folder))


def _store(name: str, folder: ObjectPath, places: Places) -> Iterator[Finding]:
    from healthingest.storage.probe import require_usable

    folder.is_dir()  # raises if it cannot be listed
    if name == "output":
        require_usable(folder, prod=places.env == "prod")
        yield Finding("ok", name, f"{folder} refuses to make an object twice, as it must")
    else:
        yield Finding("ok", name, str(folder))


def _keyring(places: Places) -> Iterator[Finding]:
    from healthingest.privacy.keyring_file import keyring_status

    if not places.keyring.exists() and places.env == "dev" and not any(places.output.glob("silver*")):
        yield Finding("warn", "keyring", f"{places.keyring} does not exist yet; the first ingest makes it")
        return
    state = keyring_status(places)
    if state["missing"]:
        yield Finding("warn", "keyring", f"{places.keyring} cannot open: {', '.join(state['missing'])}")
    else:
        yield Finding("ok", "keyring", f"{places.keyring}, id {state['keyring_id']}, mode {state['mode']}")


def _permissions(places: Places) -> Iterator[Finding]:
    from healthingest.permissions import too_wide

    found = list(too_wide(places))
    for wide in found:
        yield Finding("fail" if wide.grave else "warn", "permissions", wide.text)
    if not found:
        yield Finding("ok", "permissions", "nothing is wider than needed")


def _clients(places: Places) -> Iterator[Finding]:
    from healthingest.lake.registrations import known_clients

    clients = known_clients(places)
    for problem in clients.problems:
        yield Finding("fail", "client config", str(problem))
    text = ", ".join(clients.active) or f"none; add a YAML to {places.configs}"
    yield Finding("ok" if clients.active else "warn", "active clients", text)


def _roles(places: Places) -> Iterator[Finding]:
    """What a role is granted by a name that nothing has comes back as null, or not at all: nobody would say why."""
    from healthingest.contracts.clients import load_clients
    from healthingest.privacy.roles import load_roles

    clients, roles = load_clients(places).clients, load_roles(places.configs)
    groups = {group for client in clients.values() for group in client.contract.groups}
    had = {path.name for path in (places.output / "bronze").glob("*")}
    unknown = [
        f"The role {name} names the {kind} {one}, and there is none; it grants nothing by it."
        for name, role in roles.items()
        for kind, named, known in (("group", role.groups, groups), ("client", role.clients, {*clients, *had}))
        for one in named
        if one not in {"*", *known}
    ]
    for text in unknown:
        yield Finding("warn", "roles", text)
    if not unknown:
        yield Finding("ok", "roles", ", ".join(roles))


def _tables(places: Places) -> Iterator[Finding]:
    from healthingest.lake.audit import Audit
    from healthingest.lake.destinations import Destinations
    from healthingest.lake.quarantine import Quarantine
    from healthingest.lake.registrations import known_clients
    from healthingest.lake.sightings import Sightings

    if places.keyring.exists():
        from healthingest.lake.lake import Lake
        from healthingest.privacy.keyring_file import load_keyring

        Lake.of(places, load_keyring(places)).require_whole()
    destinations = Destinations.at(places, known_clients(places).layouts)
    for wish in destinations.wishes():
        yield Finding("warn", "layout of silver", wish)
    for plan in (places.output / "checkpoint" / "relayouts").glob("[!.]*.json"):
        text = f"A rebucket or move of {plan.stem} was cut off: run healthingest silver with what you had asked for."
        yield Finding("warn", "relayout", text)
    for table in (*destinations.tables(), *(t.at(places.output) for t in (Quarantine, Sightings, Audit))):
        number = table.version()
        yield Finding("ok", f"table {table.path.name}", "not yet made" if number is None else f"version {number}")


def _queues(places: Places) -> Iterator[Finding]:
    from healthingest.lake.registrations import known_clients
    from healthingest.landing.notified import state_of
    from healthingest.storage.options import load_stores

    for queue in load_stores(places.configs).discovery.sqs:
        subject = f"queue {queue.name}"
        if queue.client and queue.client not in known_clients(places).active:
            yield Finding("warn", subject, f"is for {queue.client}, which is no active client; nothing comes of it")
        try:
            state = state_of(queue)
        except HealthingestError as error:  # the sensor lists meanwhile, and the other queues are to be looked at
            yield Finding("fail", subject, str(error))
            continue
        yield Finding("ok", subject, f"about {state.waiting} messages wait, {state.received} are being worked on")
        if state.hidden < _LEAST_HIDDEN:
            text = (
                f"gives a message again after {state.hidden} s; set its visibility timeout to {_LEAST_HIDDEN} or more"
            )
            yield Finding("warn", subject, text)
        if not state.has_dead_letters:
            yield Finding("warn", subject, "has no dead letter queue: what is no message of S3 comes again and again")
        if not isinstance(places.landing, ObjectPath) or places.landing.parts[0] != "s3:":
            yield Finding("fail", subject, f"tells of files in S3, and the landing zone is {places.landing}")


def _validation(_: Places) -> Iterator[Finding]:
    import pandera.polars as pa

    from healthingest.records.validate import uses_native_backend

    if uses_native_backend(pa.DataFrameSchema()):
        yield Finding("ok", "validation", "pandera's native polars backend")
    else:
        yield Finding(
            "fail", "validation", "pandera does not use its native polars backend; unset PANDERA_USE_NARWHALS_BACKEND"
        )


def _dagster_home(_: Places) -> Iterator[Finding]:
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        yield Finding("warn", "DAGSTER_HOME", "not set; commands work, but Dagster keeps no history of them")
    elif not (Path(home) / "dagster.yaml").is_file():
        yield Finding("warn", "DAGSTER_HOME", f"{home} has no dagster.yaml; copy deploy/dagster.yaml there")
    else:
        yield Finding("ok", "DAGSTER_HOME", home)


def _dagster_storage(_: Places) -> Iterator[Finding]:
    from healthingest.dagster_storage import password_in, postgres_url, require_usable

    home = Path(os.environ.get("DAGSTER_HOME") or "")
    if not home.is_absolute() or not (home / "dagster.yaml").is_file():
        return
    if password_in(home):
        text = f"a password stands in {home / 'dagster.yaml'}; name a variable there: {{env: DAGSTER_PG_URL}}"
        yield Finding("warn", "dagster_storage", text)
    if url := postgres_url(home):
        yield Finding("ok", "dagster_storage", require_usable(url))


_LOOKS = (
    _versions,
    _folders,
    _keyring,
    _permissions,
    _clients,
    _roles,
    _tables,
    _queues,
    _validation,
    _dagster_home,
    _dagster_storage,
)
