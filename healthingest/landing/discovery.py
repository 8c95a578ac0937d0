"""Which files lie in the landing zone, and which of them are complete. Reads no content."""

import fcntl
import hashlib
import os
import stat
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from healthingest.storage.objects import ObjectPath

#: A file counts as complete once it is unchanged for this long and no process has it open for writing.
QUIET_SECONDS = 2.0
_UNFINISHED = (".tmp", ".part", ".partial", ".filepart", ".crdownload", ".swp", "~")


@dataclass(frozen=True)
class Landed:
    """A file in the landing zone, as one look at the folder saw it."""

    path: Path
    name: str
    #: Bytes.
    size: int
    #: Last change of content, name or permissions; nanoseconds since the epoch.
    changed_ns: int


def _is_set_aside(name: str) -> bool:
    """Whether a name is hidden, or marked as unfinished."""
    return name.startswith(".") or name.endswith(_UNFINISHED)


def look(path: Path) -> Landed | None:
    """Describe one landed file; None if it is gone, hidden, marked unfinished or not a plain file."""
    if _is_set_aside(path.name):
        return None
    try:
        info = path.lstat()
    except OSError:
        return None
    return _landed(path, info)


def _landed(path: Path, info: os.stat_result) -> Landed | None:
    if not stat.S_ISREG(info.st_mode):
        return None
    # ctime, because nobody can set it: `cp -p` and `unzip` bring any mtime, also one that lies ahead.
    return Landed(path, path.name, info.st_size, info.st_ctime_ns)


#: Seconds after which a listing of an object store is broken off, to be gone on with: a tick of Dagster ends after 60.
LISTING_SECONDS = 20.0


@dataclass
class Sweep:
    """A part of the landing zone, by name: what lies behind `after`, up to and with `until`, or to the end if empty."""

    after: str = ""
    #: Said by the listing, where it was broken off.
    until: str = ""

    def covers(self, name: str) -> bool:
        """Whether a file of that name would have been listed."""
        return name > self.after and (not self.until or name <= self.until)

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return not self.after and not self.until


#: Files of which `marks_of` tells at a time.
_AT_A_TIME = 1 << 15
Marks = npt.NDArray[np.uint64]


def mark(name: str, size: int, changed_ns: int) -> bytes:
    """Eight bytes that stand for a landed file as it is: another size or change gives others."""
    said = b"%b\0%d\0%d" % (os.fsencode(name), size, changed_ns)
    return hashlib.blake2b(said, digest_size=8).digest()


def marks_of(landing: Path, sweep: Sweep) -> Iterator[tuple[list[str], Marks, npt.NDArray[np.int64]]]:
    """The names of files that could be deliveries, in no order, the mark of each and when it changed (ns).

    Some ten thousand at a time: of a million files nothing is held but what the caller keeps. In an object store those
    behind `sweep.after`, for LISTING_SECONDS; `sweep.until` then says where to go on. A folder is always listed whole.
    """
    entries = _entries(landing, sweep)
    while some := list(islice(entries, _AT_A_TIME)):
        names, marks, changed = [], bytearray(), array("q")
        for name, info in some:
            if stat.S_ISREG(info.st_mode):
                names.append(name)
                marks += mark(name, info.st_size, info.st_ctime_ns)
                changed.append(info.st_ctime_ns)
        yield names, np.frombuffer(bytes(marks), np.uint64), np.array(changed, np.int64)


def _entries(landing: Path, sweep: Sweep | None = None) -> Iterator[tuple[str, os.stat_result]]:
    """Names and stats of what lies in the landing zone, but for what is set aside; an absent one has nothing."""
    if isinstance(landing, ObjectPath):
        yield from _objects(landing, sweep)
        return
    if sweep:
        sweep.after = ""
    try:
        entries = os.scandir(landing)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            if _is_set_aside(entry.name):
                continue
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError:
                continue  # gone meanwhile
            yield entry.name, info


def _objects(landing: ObjectPath, sweep: Sweep | None) -> Iterator[tuple[str, os.stat_result]]:
    last, ends = "", 0.0
    for name, info in landing.entries(sweep.after if sweep else ""):
        ends = ends or time.monotonic() + LISTING_SECONDS  # from here on: Azure begins at the first name each time
        if sweep and last and time.monotonic() >= ends:
            sweep.until = last
            return
        last = name
        if not _is_set_aside(name):
            yield name, info


def list_landing(landing: Path) -> list[Landed]:
    """All files of the landing zone that could be deliveries, by name; an absent folder is an empty one."""
    found = sorted((landing / name, info) for name, info in _entries(landing))
    return [landed for path, info in found if (landed := _landed(path, info))]


def is_complete(landed: Landed, now_ns: int) -> bool:
    """Whether the file is unchanged since the look, quiet for QUIET_SECONDS, and not open for writing.

    An object appears when all of it has been written.
    """
    if isinstance(landed.path, ObjectPath):
        return look(landed.path) == landed
    quiet = now_ns - landed.changed_ns >= QUIET_SECONDS * 1e9
    return quiet and look(landed.path) == landed and not _open_for_writing(landed.path)


def settle(files: Iterable[Landed], *, sleep: Callable[[float], None] = time.sleep) -> list[Landed]:
    """Return those files that are complete, waiting once, up to QUIET_SECONDS, for those changed just now.

    Deciding within one call keeps a small file's way to silver short; a sensor that compares two ticks adds one.
    """
    files = list(files)
    now = time.time_ns()
    local = [f for f in files if not isinstance(f.path, ObjectPath)]
    young = [now - f.changed_ns for f in local if now - f.changed_ns < QUIET_SECONDS * 1e9]
    if young:
        sleep(min(QUIET_SECONDS, QUIET_SECONDS - min(young) / 1e9))
    now = time.time_ns()
    return [f for f in files if is_complete(f, now)]


def _open_for_writing(path: Path) -> bool:
    """Ask the kernel: a read lease is refused while any process has the file open for writing.

    Where leases do not exist (network file systems, foreign owners) the quiet time alone decides.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    else:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return False
    finally:
        os.close(fd)
