"""Who may work at a time: one maintenance; on a client any number of attempts together, or an erasure alone.

On one machine two file locks per client, which the system takes back from a process that dies: all pass the gate one
by one, so that whoever wants to be alone keeps newcomers out while those inside finish. In an object store, between
machines, leases do the same: a newcomer notes itself in the room and then looks at the gate, whoever wants to be alone
takes the gate and then looks into the room; so one of them sees the other. Silver's transactions stand behind both.
"""

import contextlib
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from healthingest.errors import BusyError
from healthingest.storage import lease
from healthingest.storage.objects import ObjectPath

_LOOK = 0.05  # seconds between two looks at a lock


@dataclass(frozen=True)
class Exclusion:
    """The locks of an installation."""

    root: Path

    @contextlib.contextmanager
    def maintenance(self) -> Iterator[None]:
        """Be the only one that takes files away.

        Raises:
            BusyError: another one is at it.
        """
        told = "Another maintenance, erasure or rotation is running; let it end."
        if isinstance(self.root, ObjectPath):
            with _leased(self.root / "_maintenance.lock", 0, told):
                yield
            return
        with self._file("_maintenance", "lock") as lock:
            if not _taken(lock):
                raise BusyError(told)
            yield

    @contextlib.contextmanager
    def shared(self, client_id: str) -> Iterator[None]:
        """Work on a client beside others; waits while somebody is alone with it."""
        if isinstance(self.root, ObjectPath):
            with _inside(self.root / f"{client_id}.room", self.root / f"{client_id}.gate"):
                yield
            return
        with self._file(client_id, "gate") as gate, self._file(client_id, "room") as room:
            fcntl.flock(gate, fcntl.LOCK_SH)
            fcntl.flock(room, fcntl.LOCK_SH)
            fcntl.flock(gate, fcntl.LOCK_UN)
            yield

    @contextlib.contextmanager
    def alone(self, client_id: str, *, wait: float, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Be the only one with a client; `on_wait` is told if that takes time.

        Raises:
            BusyError: others did not finish within `wait` seconds.
        """
        told = f"Others are at work on {client_id}; nothing was done, let them end."
        if isinstance(self.root, ObjectPath):
            until = time.monotonic() + wait
            with _leased(self.root / f"{client_id}.gate", wait, told, on_wait):
                _wait_until_empty(self.root / f"{client_id}.room", until, told, on_wait)
                yield
            return
        with self._file(client_id, "gate") as gate, self._file(client_id, "room") as room:
            until = time.monotonic() + wait
            for lock in (gate, room):
                if not _taken(lock):
                    if on_wait:
                        on_wait()
                        on_wait = None
                    _wait_for(lock, until, told)
            yield

    @contextlib.contextmanager
    def only(self, what: str, *, wait: float) -> Iterator[None]:
        """Be the only one at something that concerns no single client.

        Raises:
            BusyError: another one did not finish within `wait` seconds.
        """
        told = f"Another process is at work on the {what}; let it end."
        if isinstance(self.root, ObjectPath):
            with _leased(self.root / f"_{what}.lock", wait, told):
                yield
            return
        with self._file(f"_{what}", "lock") as lock:
            if not _taken(lock):
                _wait_for(lock, time.monotonic() + wait, told)
            yield

    @contextlib.contextmanager
    def _file(self, client_id: str, name: str) -> Iterator[int]:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self.root / f"{client_id}.{name}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            yield fd
        finally:
            os.close(fd)


def _wait_for(lock: int, until: float, told: str) -> None:
    """Take a lock that others hold.

    Raises:
        BusyError: they hold it still, `until` being past (monotonic clock).
    """
    while not _taken(lock):
        if time.monotonic() > until:
            raise BusyError(told)
        time.sleep(_LOOK)


def _taken(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- in an object store ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _leased(place: ObjectPath, wait: float, told: str, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold a lease.

    Raises:
        BusyError: somebody else did not let go of it within `wait` seconds; one that died is waited for.
    """
    watched, until = lease.Watched(), time.monotonic() + wait
    pauses = lease.waits()
    while not (mine := lease.take(place, watched)):
        if on_wait:
            on_wait()
            on_wait = None
        if time.monotonic() > until and watched.lives(place):
            raise BusyError(told)
        time.sleep(next(pauses))
    try:
        yield
    finally:
        mine.give_back()


@contextlib.contextmanager
def _inside(room: ObjectPath, gate: ObjectPath) -> Iterator[None]:
    """Be noted in a room, having come through its gate while nobody held it."""
    watched, pauses = lease.Watched(), lease.waits()
    while True:
        mine = lease.take(room / secrets.token_hex(8), watched)
        if mine and not _is_held(gate, watched):
            break
        if mine:  # whoever is alone would wait for this one
            mine.give_back()
        time.sleep(next(pauses))
    try:
        yield
    finally:
        mine.give_back()


def _wait_until_empty(room: ObjectPath, until: float, told: str, on_wait: Callable[[], None] | None) -> None:
    watched = lease.Watched()
    for pause in lease.waits():
        held = [place for place in room.glob("*") if _is_held(place, watched)]
        if not held:
            return
        if on_wait:
            on_wait()
            on_wait = None
        if time.monotonic() > until:
            raise BusyError(told)
        time.sleep(pause)


def _is_held(place: ObjectPath, watched: lease.Watched) -> bool:
    """Whether somebody alive holds a lease; what one left who is dead goes."""
    found = place.read_tagged()
    if found is None:
        return False
    if not watched.is_dead(place, *found):
        return True
    dead = lease.take(place, watched)
    if dead:
        dead.give_back()
    return dead is None
