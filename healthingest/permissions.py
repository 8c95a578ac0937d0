"""Who can get at an installation's files, and what of that is wider than its three principals need.

Ingestion owns everything. A steward reads quarantine, audit, alerts and silver; an analyst silver and the vault, whose
columns their keyrings open or do not; both add to the chain of events. `deploy/posix/setup.sh` makes it so. Others get
nothing.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from healthingest.places import Places
from healthingest.storage.objects import ObjectPath

#: Below the output folder: what a group may reach.
_SHARED = (
    "silver", "vault", "gold", "quarantine", "reports", "proposals",
    *(
        f"checkpoint/{name}"
        for name in (
            "audit", "alerts", "alert_mutes", "contracts", "destinations", "drift", "events", "migrations", "proposals",
            "sightings",
        )
    ),
)  # fmt: skip
#: Files of the output folder that every reader needs.
_NOTES = ("keyring.id", "keyring.generations")
_MOST = 50_000
_GROUP, _OTHERS = stat.S_IRWXG, stat.S_IRWXO


@dataclass(frozen=True)
class Wide:
    """Something that is wider than needed."""

    #: Whether it must not stay so.
    grave: bool
    text: str


def too_wide(places: Places) -> Iterator[Wide]:
    """Look at the keyring, configs, landing zone, output folder, what leads there, and Dagster's home."""
    yield from _keyring(places)
    yield from _above(places)
    yield from _configs(places)
    yield from _landing(places)
    yield from _output(places)
    home = os.environ.get("DAGSTER_HOME")
    if home and Path(home).is_dir() and _mode(Path(home)) & (_GROUP | _OTHERS):
        yield Wide(grave=False, text=f"{home} is open to others; run: chmod 700 {home}")
    if places.env == "prod" and os.geteuid() == 0:
        yield Wide(grave=False, text="This runs as root; give ingestion a user of its own (deploy/posix/setup.sh).")


def _keyring(places: Places) -> Iterator[Wide]:
    from healthingest.privacy.keyring_file import keyring_status

    if not places.keyring.exists():
        return
    folder = places.keyring.parent
    if _mode(folder) & (_GROUP | _OTHERS):
        yield Wide(grave=True, text=f"The keyring's folder is open to others; run: chmod 700 {folder}")
    if places.env == "prod" and not keyring_status(places)["locked_by"]:
        yield Wide(grave=False, text="The keyring is not locked by a key-encryption key; run: healthingest keys lock")


def _configs(places: Places) -> Iterator[Wide]:
    """Who can change a config decides what is checked and protected, and which hooks run."""
    for path in islice([places.configs, *places.configs.rglob("*")] if places.configs.is_dir() else [], _MOST):
        if _mode(path) & stat.S_IWOTH:
            yield Wide(grave=True, text=f"Everybody can change {path}; run: chmod o-w {path}")


def _landing(places: Places) -> Iterator[Wide]:
    if not isinstance(places.landing, ObjectPath) and places.landing.is_dir() and _mode(places.landing) & _OTHERS:
        yield Wide(
            grave=False, text=f"Everybody on this machine gets into {places.landing}; run: chmod o= {places.landing}"
        )


def _above(places: Places) -> Iterator[Wide]:
    """Who can change a folder can put another in the place of one that lies in it, whatever that one's permissions."""
    told: set[Path] = set()
    for place in (places.keyring.parent, places.configs, places.landing, places.output):
        if isinstance(place, ObjectPath):
            continue  # who may do what there is the store's to say
        for folder in place.parents:
            mode = folder.stat().st_mode if folder.is_dir() else 0
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX and folder not in told:
                told.add(folder)
                text = f"Everybody can put something else in the place of {place}; run: chmod o-w {folder}"
                yield Wide(grave=True, text=text)


def _output(places: Places) -> Iterator[Wide]:
    root = places.output
    if isinstance(root, ObjectPath) or not root.is_dir():
        return
    owner = root.stat().st_uid
    found: dict[_Way, list[Path]] = {}
    for path in islice([root, *root.rglob("*")], _MOST):
        if way := _too_open(path, root, owner):
            found.setdefault(way, []).append(path)
    for way, paths in found.items():
        text = f"{len(paths)} files or folders below {root} {way.said}, {paths[0]} first; "
        yield Wide(grave=way.grave, text=f"{text}run: {way.command.format(owner=owner)} {paths[0]}")


@dataclass(frozen=True)
class _Way:
    """A way to be wider than needed, and the command that mends it."""

    said: str
    command: str
    grave: bool = True


_EVERYBODY = _Way("are open to everybody", "chmod -R o=")
_GROUP_WRITES = _Way("can be changed by a group", "chmod -R g-w")
_GROUP_READS = _Way("are open to a group", "chmod -R g=", grave=False)
_FOREIGN = _Way("belong to another user, who can change them", "chown -Rh {owner}")
_LINK = _Way("are links, and nobody looks at what they lead to", "ls -l", grave=False)


def _too_open(path: Path, root: Path, owner: int) -> _Way | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    # Whoever wrote the first event of a client owns its chain, and all who read go on with it.
    if info.st_uid not in {0, owner} and path.parent != root / "checkpoint" / "events":
        return _FOREIGN
    if stat.S_ISLNK(info.st_mode):
        return _LINK
    if info.st_mode & _OTHERS:
        return _EVERYBODY
    return _open_to_a_group(path, info.st_mode, root)


def _open_to_a_group(path: Path, mode: int, root: Path) -> _Way | None:
    group = mode & _GROUP
    if not group or (stat.S_ISDIR(mode) and group == stat.S_IXGRP):
        return None
    shared = [root / name for name in (*_SHARED, *_NOTES)]
    shared += root.glob("silver_*")
    if not any(path.is_relative_to(place) or place.is_relative_to(path) for place in shared):
        return _GROUP_READS
    events = root / "checkpoint" / "events"
    return _GROUP_WRITES if group & stat.S_IWGRP and not path.is_relative_to(events) else None


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0
