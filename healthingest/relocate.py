"""Takes a running installation to another place, an object store say, as it is: no delivery is read or merged again.

Everything in the output folder names everything else by its place below that folder, so that a copy is as good as the
original. Until all is there the new place says that it is not whole; then the old one says where everything went. What
has landed and is not decided goes to the new landing zone; what is decided lies sealed in bronze.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from healthingest.errors import BusyError, StorageError, UsageError
from healthingest.lake.whereabouts import require_here, say, unsay, word_of
from healthingest.landing.discovery import Landed, list_landing, settle
from healthingest.places import Places
from healthingest.platform import Platform
from healthingest.storage.files import appearing
from healthingest.storage.objects import ObjectPath
from healthingest.storage.probe import require_usable

#: Of no use elsewhere: locks, what somebody works on, the sensor's memory of the other landing zone, Dagster's files.
_LEFT = (
    "checkpoint/locks/*", "checkpoint/spool/*", "checkpoint/exchange/*", "checkpoint/probes/*", "checkpoint/landing/*",
    "checkpoint/whereabouts.json", "bronze/*/locks/*", "dagster/*", ".*.tmp", "*/.*.tmp",
)  # fmt: skip
#: From this size on a file is one that is written once (data, sealed copies): its name and size say that it is there.
_WRITTEN_ONCE = 1 << 20
_AT_A_TIME, _BLOCK, _TRIES = 8, 1 << 23, 5
#: Name below the output folder -> bytes.
Listing = Mapping[str, int]
Tell = Callable[[str, int], None]


@dataclass(frozen=True)
class Copied:
    """What was, or would be, taken along."""

    source: str
    target: str
    files: int
    bytes: int
    #: Names of landed files that are not decided yet, and where they go.
    landed: list[str]
    landing: str
    #: Landed files that were still being written, which stay.
    unfinished: list[str]


def plan_copy(platform: Platform, target: Path, landing: Path) -> Copied:
    """What would be copied; writes nothing.

    Raises:
        UsageError: the target is no place for it.
    """
    _require_free(platform.places, target, landing)
    listing = _listing(platform.places.output)
    ready, unfinished = _undecided(platform, landing)
    return _told(platform.places, target, landing, listing, ready, unfinished)


def count_files(platform: Platform) -> int:
    """How many files a copy takes along, but for landed ones."""
    return len(_listing(platform.places.output))


def copy(
    platform: Platform, target: Path, landing: Path, *, verify: bool, wait: float, on_step: Tell = lambda *_: None
) -> Copied:
    """Bring the installation to `target`, and what waits in its landing zone to `landing`; end it where it is.

    May be cut off at any time, and run again: what is there is not copied twice.

    Args:
        platform: The installation where it is.
        target: The output folder that is to be; empty, or what an earlier try left.
        landing: The landing zone that is to be; may be the present one.
        verify: Whether all bytes are read again at both places, and compared.
        wait: Seconds to wait for ingests and maintenance that are at work.
        on_step: Told what is being done, and how many more files of the output folder are.

    Raises:
        UsageError: the target is no place for it.
        StorageError: it cannot be used; something did not arrive as it is.
        BusyError: others were at work; nothing is lost, run it again.
    """
    source = platform.places.output
    _require_free(platform.places, target, landing)
    if isinstance(target, ObjectPath):
        require_usable(target, prod=platform.places.env == "prod")
    with ExitStack() as held:
        held.enter_context(platform.lake.exclusion.maintenance())
        for client_id in sorted(platform.clients.clients):
            held.enter_context(platform.lake.exclusion.alone(client_id, wait=wait))
        require_here(source)
        say(target, "arriving", source)
        listing = _copy_until_still(source, target, on_step)
        if verify:
            _compare(source, target, listing, on_step)
        ready, unfinished = _undecided(platform, landing)
        _copy_landed(ready, landing, on_step)
        say(source, "moved", target)
        unsay(target)
    return _told(platform.places, target, landing, listing, ready, unfinished)


def copy_latecomers(places: Places, target: Path, landing: Path, on_step: Tell = lambda *_: None) -> Copied | None:
    """After a move: what has landed at the old place since; None: the installation has not moved to `target`."""
    word = word_of(places.output)
    if word is None or word.state != "moved" or word.other != str(target):
        return None
    moved = Platform.open(Places(**{**vars(places), "output": target}))
    ready, unfinished = _undecided(moved, landing)
    _copy_landed(ready, landing, on_step)
    return _told(places, target, landing, {}, ready, unfinished)


def _require_free(places: Places, target: Path, landing: Path) -> None:
    """Refuse a place that something else is in, or that is in the way of this.

    Raises:
        UsageError: it is such a place.
    """
    source = places.output
    for one, other in ((source, target), (places.landing, target), (landing, target), (landing, source)):
        if f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/"):
            raise UsageError(f"{one} and {other} are the same, or one holds the other; name places beside each other.")
    word = word_of(target)
    if word and word.state == "arriving" and word.other == str(source):
        return
    if word or next(_names(target), None):
        raise UsageError(f"There is something in {target} already; name an empty folder.")


def _copy_until_still(source: Path, target: Path, on_step: Tell) -> Listing:
    """Copy until nothing has changed meanwhile: alerts and runs that nothing holds back may write on.

    Raises:
        BusyError: something went on writing.
    """
    for _ in range(_TRIES):
        before = _stats(source)
        listing = {name: size for name, (size, _) in before.items()}
        there = _listing(target)
        for name in there.keys() - listing.keys():  # what was removed since an earlier try must not stay anywhere
            (target / name).unlink(missing_ok=True)
        _each(lambda name: _copy_file(source / name, target / name), sorted(
            name for name, size in listing.items() if size < _WRITTEN_ONCE or there.get(name) != size
        ), "copying", on_step)  # fmt: skip
        if _stats(source) != before:
            continue
        if _listing(target) != listing:
            raise StorageError(f"Not everything arrived in {target}; run this again.")
        return listing
    raise BusyError(f"Something goes on writing below {source}; stop Dagster's processes, and run this again.")


def _copy_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with source.open("rb") as file, appearing(target) as place:
        with place.open("wb") as out:
            shutil.copyfileobj(file, out, _BLOCK)
        if not isinstance(place, ObjectPath):
            place.chmod(0o600)


def _compare(source: Path, target: Path, listing: Listing, on_step: Tell) -> None:
    """Hold all bytes of both places against each other.

    Raises:
        StorageError: a file differs.
    """

    def same(name: str) -> None:
        if _digest(source / name) != _digest(target / name):
            raise StorageError(f"{target / name} is not what {source / name} is; run this again.")

    _each(same, sorted(listing), "comparing", on_step)


def _digest(place: Path) -> bytes:
    with place.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _each(do: Callable[[str], None], names: list[str], what: str, on_step: Tell) -> None:
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for _ in pool.map(do, names):
            on_step(what, 1)


def _undecided(platform: Platform, landing: Path) -> tuple[list[Landed], list[str]]:
    """Landed files that must come along, and those that are still being written."""
    if str(landing) == str(platform.places.landing):
        return [], []
    found = list_landing(platform.places.landing)
    whole = settle(found)
    unfinished = sorted({f.name for f in found} - {f.name for f in whole})
    ids = {f: platform.file_id(f.path) for f in whole}
    decided = platform.lake.audit.decided(set(ids.values()))
    return [f for f in whole if decided.get(ids[f]) in {None, "unroutable"}], unfinished


def _copy_landed(files: list[Landed], landing: Path, on_step: Tell) -> None:
    for landed in files:
        _copy_file(landed.path, landing / landed.name)
        on_step("landed files", 0)


def _told(
    places: Places, target: Path, landing: Path, listing: Listing, ready: list[Landed], unfinished: list[str]
) -> Copied:
    size = sum(listing.values())
    names = [f.name for f in ready]
    return Copied(str(places.output), str(target), len(listing), size, names, str(landing), unfinished)


def _listing(root: Path) -> Listing:
    return {name: size for name, (size, _) in _stats(root).items()}


def _stats(root: Path) -> dict[str, tuple[int, int]]:
    """Name -> bytes and last change (ns) of all that is to be copied."""
    return {name: stat for name, stat in _names(root) if not any(fnmatchcase(name, left) for left in _LEFT)}


def _names(root: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    if isinstance(root, ObjectPath):
        yield from ((name, (info.st_size, info.st_mtime_ns)) for name, info in root.everything())
        return
    for folder, _, files in os.walk(root):
        for name in files:
            place = Path(folder, name)
            try:
                info = place.lstat()
            except FileNotFoundError:
                continue
            yield place.relative_to(root).as_posix(), (info.st_size, info.st_mtime_ns)
