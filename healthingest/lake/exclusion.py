"""Who may work at a time: one maintenance; on a client any number of attempts together, or an erasure alone.

Two file locks per client, which the system takes back from a process that dies: all pass the gate one by one, so that
whoever wants to be alone keeps newcomers out while those inside finish. One machine only, like the lease of
maintenance; between machines silver's transactions still let one writer of a client win, and nothing be half-done.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from healthingest.errors import BusyError

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
        with self._file("_maintenance", "lock") as lease:
            if not _taken(lease):
                raise BusyError("Another maintenance, erasure or rotation is running; let it end.")
            yield

    @contextlib.contextmanager
    def shared(self, client_id: str) -> Iterator[None]:
        """Work on a client beside others; waits while somebody is alone with it."""
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
        with self._file(client_id, "gate") as gate, self._file(client_id, "room") as room:
            until, told = time.monotonic() + wait, f"Others are at work on {client_id}; nothing was done, let them end."
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
        with self._file(f"_{what}", "lock") as lock:
            if not _taken(lock):
                told = f"Another process is at work on the {what}; let it end."
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
