"""Locks in an object store: leases that their holder renews, and that others take over from one who does not.

A lease is an object that conditional writes alone make, change and replace. Whoever wants one that is held watches its
ETag by a clock of his own: unchanged for TTL seconds, its holder is dead, as it is if its process is gone from this
machine. So no two machines' clocks are compared. A holder that could not renew in time, or finds its lease taken over,
ends its process at once: what it was doing may be begun again by others, as after any crash.
"""

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from healthingest.storage.objects import ObjectPath

#: Seconds without renewal after which a holder counts as dead.
TTL = 30.0
_RENEW = 5.0
#: Seconds between two looks at a lease that somebody holds; they grow.
_FIRST_LOOK, _LONGEST_LOOK = 0.05, 1.0
_GONE = 75  # exit status, EX_TEMPFAIL
log = logging.getLogger(__name__)


@dataclass
class Lease:
    """One that this process holds."""

    place: ObjectPath
    tag: str
    #: When it was last renewed (monotonic clock), before the request was made.
    at: float
    #: Tells it from every other, also from an earlier one of this process.
    name: str
    number: int = 0
    #: Held while it is renewed, so that nobody renews what is given back.
    busy: threading.Lock = field(default_factory=threading.Lock)

    def give_back(self) -> None:
        """Let go of it."""
        with self.busy, _keeping:
            _held.pop(self.place, None)
        self.place.unlink(missing_ok=True)

    def renew(self) -> bool:
        """Say that its holder lives; False if it is somebody else's by now."""
        with self.busy:
            if _held.get(self.place) is not self:
                return True
            before, self.number = time.monotonic(), self.number + 1
            content = _holder(self.name, self.number)
            tag = self.place.replace_tagged(content, self.tag)
            if tag is None and (found := self.place.read_tagged()) and found[0] == content:
                tag = found[1]  # it was renewed, and the answer was lost
            if tag is None:
                return False
            self.tag, self.at = tag, before
            return True


_held: dict[ObjectPath, Lease] = {}
_keeping = threading.Lock()
_keeper: threading.Thread | None = None


class Watched:
    """Leases of others, as this caller has seen them: how long each has been unchanged."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._seen: dict[ObjectPath, tuple[str, float]] = {}
        self._alive: set[ObjectPath] = set()

    def is_dead(self, place: ObjectPath, content: bytes, tag: str) -> bool:
        """Whether the holder of a lease is: its process is gone from this machine, or it has not renewed for long."""
        seen, since = self._seen.get(place, (tag, time.monotonic()))
        runs = _runs_here(content)
        if seen != tag or runs:
            self._alive.add(place)
        self._seen[place] = (tag, since if seen == tag else time.monotonic())
        return runs is False or time.monotonic() - self._seen[place][1] > TTL

    def lives(self, place: ObjectPath) -> bool:
        """Whether a holder was seen to be alive: it has renewed its lease, or is a process of this machine."""
        return place in self._alive


def take(place: ObjectPath, watched: Watched) -> Lease | None:
    """The lease at a place, if it is free or its holder is dead; else None."""
    before, name = time.monotonic(), secrets.token_hex(8)
    content = _holder(name, 0)
    made, found = place.put_new(content), place.read_tagged()
    if found and found[0] == content:
        return _keep(Lease(place, found[1], before, name))
    if made or found is None or not watched.is_dead(place, *found):
        return None
    tag = place.replace_tagged(content, found[1])
    return _keep(Lease(place, tag, before, name)) if tag else None


@contextlib.contextmanager
def holding(place: ObjectPath) -> Iterator[None]:
    """Hold the lease at a place; waits for it."""
    watched, pauses = Watched(), waits()
    while not (lease := take(place, watched)):
        time.sleep(next(pauses))
    try:
        yield
    finally:
        lease.give_back()


def waits() -> Iterator[float]:
    """Seconds to wait between looks, without end."""
    wait = _FIRST_LOOK
    while True:
        yield wait
        wait = min(wait * 1.5, _LONGEST_LOOK)


def _keep(lease: Lease) -> Lease:
    global _keeper  # noqa: PLW0603 - one thread per process
    with _keeping:
        _held[lease.place] = lease
        if _keeper is None or not _keeper.is_alive():
            _keeper = threading.Thread(target=_renew_all, name="healthingest-leases", daemon=True)
            _keeper.start()
    return lease


def _renew_all() -> None:
    while True:
        time.sleep(_RENEW)
        with _keeping:
            mine = list(_held.values())
        for lease in mine:
            try:
                kept = lease.renew()
            except Exception as error:  # noqa: BLE001 - the store may be away for a while
                log.warning("The lease %s could not be renewed (%s).", lease.place.name, type(error).__name__)
                kept = time.monotonic() - lease.at < TTL - 2 * _RENEW
            if not kept and _held.get(lease.place) is lease:
                log.critical("The lease %s is lost; this process ends, and its work is begun again.", lease.place.name)
                os._exit(_GONE)


def _holder(name: str, number: int) -> bytes:
    """Who holds a lease, and how often it was renewed: other content each time, so that the ETag changes."""
    pid = os.getpid()
    said = {"lease": name, "machine": _machine(), "pid": pid, "started": _started(pid), "number": number}
    return json.dumps(said).encode()


@cache
def _machine() -> str:
    """Where process numbers mean the same: this boot of this kernel, and this namespace of processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return secrets.token_hex(8)  # unlike any: nobody's death is seen, leases end by time


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since the boot; None: there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


def _runs_here(content: bytes) -> bool | None:
    """Whether a holder is a process of this machine that lives (True) or has ended (False); None: of another one."""
    try:
        said = json.loads(content)
        return _started(said["pid"]) == said["started"] if said["machine"] == _machine() else None
    except (ValueError, KeyError, TypeError):
        return None
