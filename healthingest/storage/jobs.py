"""Folders that last as long as the process that works with them: what one that was killed left is known, and swept.

The process holds a lock in its folder: on a disk one that the system takes back from who dies, in an object store a
lease. Whoever sweeps must get that lock first, so that he never takes a folder of a process that lives.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from healthingest.storage import lease
from healthingest.storage.files import remove_tree
from healthingest.storage.objects import ObjectPath

_LOCK = "_lock"
#: Age of a folder without a lock that nobody can still be making or taking away.
_ABANDONED = timedelta(days=1)


@contextmanager
def own_folder(root: Path) -> Iterator[Path]:
    """A folder below `root` for a job of this process; gone with all its files at the end."""
    folder = root / secrets.token_hex(8)
    if isinstance(folder, ObjectPath):
        with lease.holding(folder / _LOCK):
            try:
                yield folder
            finally:
                _empty(folder)
        return
    folder.mkdir(parents=True, mode=0o700)
    try:
        with _locked(folder):
            yield folder
    finally:
        remove_tree(folder)


def sweep_jobs(root: Path) -> int:
    """Take away the folders below `root` whose processes have died; how many.

    In an object store a process of another machine counts as dead once it has not renewed its lease for `lease.TTL`
    seconds, which are waited for.
    """
    if isinstance(root, ObjectPath):
        return _sweep_leased(root)
    return sum(_swept(folder) for folder in root.iterdir()) if root.is_dir() else 0


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    new = folder / f"{_LOCK}.new"
    fd = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        new.rename(folder / _LOCK)  # whoever sees it finds it held
        yield
    finally:
        os.close(fd)


def _swept(folder: Path) -> bool:
    """Whether a folder was a dead process's; then it is gone."""
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:  # it is being made or taken away, or whoever did that died
        with contextlib.suppress(FileNotFoundError):
            old = folder.stat().st_mtime < time.time() - _ABANDONED.total_seconds()
            if old:
                remove_tree(folder)
            return old
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove_tree(folder)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _sweep_leased(root: ObjectPath) -> int:
    watched, gone = lease.Watched(), 0
    # Some stores go on listing folders that are empty.
    left = sorted({root / place.relative_to(root).parts[0] for place in root.rglob("*")})
    pauses = lease.waits()
    while left:
        for folder in list(left):
            if mine := lease.take(folder / _LOCK, watched):
                _empty(folder)
                mine.give_back()
                gone += 1
            if mine or watched.lives(folder / _LOCK):
                left.remove(folder)
        if left:
            time.sleep(next(pauses))
    return gone


def _empty(folder: ObjectPath) -> None:
    """Delete all but the lease: while it is there, its holder renews it."""
    for place in list(folder.rglob("*")):
        if place.name != _LOCK:
            place.unlink(missing_ok=True)
