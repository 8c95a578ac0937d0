"""Who can get at an installation's files, and what of that is wider than its three principals need.

Ingestion owns everything. A steward reads quarantine, audit and silver; an analyst silver and the vault, whose columns
their keyrings open or do not; both add to the chain of events. `deploy/posix/setup.sh` makes it so. Others get nothing.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from healthingest.places import Places

#: Below the output folder: what a group may reach.
_SHARED = ("silver", "vault", "quarantine", "checkpoint/audit", "checkpoint/events", "checkpoint/sightings", "reports")
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
    """Look at the keyring, configs, landing zone, output folder and Dagster's home."""
    yield from _keyring(places)
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
    if places.landing.is_dir() and _mode(places.landing) & _OTHERS:
        yield Wide(
            grave=False, text=f"Everybody on this machine gets into {places.landing}; run: chmod o= {places.landing}"
        )


def _output(places: Places) -> Iterator[Wide]:
    root = places.output
    if not root.is_dir():
        return
    shared = [root / name for name in _SHARED]
    open_to: dict[str, list[Path]] = {"everybody": [], "a group": []}
    for path in islice([root, *root.rglob("*")], _MOST):
        mode = 0 if path.is_symlink() else _mode(path)
        if mode & _OTHERS:
            open_to["everybody"].append(path)
        elif mode & _GROUP and not (path.is_dir() and mode & _GROUP == stat.S_IXGRP) and path.name not in _NOTES:
            in_place = any(path.is_relative_to(place) for place in shared)
            if not in_place and not any(place.is_relative_to(path) for place in shared):
                open_to["a group"].append(path)
    for who, paths in open_to.items():
        if paths:
            bits = "o=" if who == "everybody" else "g="
            text = f"{len(paths)} files or folders below {root} are open to {who}, {paths[0]} first; "
            yield Wide(grave=who == "everybody", text=f"{text}run: chmod -R {bits} {paths[0]}")


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0
