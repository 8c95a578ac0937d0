"""Machines on one machine: network namespaces on a bridge, each with a /tmp and a /dev/shm of its own.

All else of the file system they share, as machines share a network file system; what is below /tmp, they do not. The
bridge has an address too, by which they reach what runs here. Only root may make them; elsewhere tests are skipped.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

_PRIVATE = 'mount -t tmpfs tmpfs /tmp && mount -t tmpfs tmpfs /dev/shm && exec "$@"'


@dataclass(frozen=True)
class Machine:
    """A namespace, by its name; its wire to the bridge has that name here."""

    name: str
    address: str

    @property
    def inside(self) -> list[str]:
        """What starts a command there."""
        entered = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--propagation", "private"]
        return [*entered, "sh", "-c", _PRIVATE, "sh"]

    def pids(self) -> list[int]:
        """All processes there."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self.name).split()]

    def kill(self) -> None:
        """Kill all processes there, and what they start meanwhile."""
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def cut(self) -> None:
        """Pull its plug out of the network; its processes go on."""
        _run("ip", "link", "set", self.name, "down")

    def mend(self) -> None:
        """Put the plug in again."""
        _run("ip", "link", "set", self.name, "up")


@contextlib.contextmanager
def machines(number: int) -> Iterator[tuple[str, list[Machine]]]:
    """Make so many; yields the bridge's address and them, and at the end removes them and all that runs there."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("only root can make network namespaces, with iproute2")
    token, net = secrets.token_hex(3), f"10.{secrets.randbelow(64) + 64}.{secrets.randbelow(254) + 1}"
    bridge = f"hi{token}"
    found = [Machine(f"hi{token}n{at}", f"{net}.{at}") for at in range(1, number + 1)]
    try:
        try:
            _run("ip", "link", "add", bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{net}.254/24", "dev", bridge)
            _run("ip", "link", "set", bridge, "up")
            for machine in found:
                _make(machine, bridge)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces may be made here: {error.stderr.strip()}")
        yield f"{net}.254", found
    finally:
        for machine in found:
            with contextlib.suppress(subprocess.CalledProcessError):
                machine.kill()
                _run("ip", "netns", "del", machine.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "link", "del", bridge)


def _make(machine: Machine, bridge: str) -> None:
    within = ("ip", "-n", machine.name)
    _run("ip", "netns", "add", machine.name)
    _run("ip", "link", "add", machine.name, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
    _run("ip", "link", "set", machine.name, "master", bridge, "up")
    _run(*within, "addr", "add", f"{machine.address}/24", "dev", "eth0")
    for name in ("lo", "eth0"):
        _run(*within, "link", "set", name, "up")
    subprocess.run([*machine.inside, "true"], check=True, capture_output=True, text=True)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
