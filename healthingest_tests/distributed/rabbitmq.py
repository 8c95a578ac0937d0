"""A RabbitMQ server of the test's own: on loopback in a temporary folder, with the shipped rabbitmq.conf.

Where there is none, root installs it by apt-get. Its port mapper (epmd) listens on a port of its own and ends with it.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from healthingest_tests.servers import REPO, free_port

_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_SECONDS = 90
_INSTALL_SECONDS = 300


def require_rabbitmq() -> None:
    """Install the server where there is none; the test is skipped where that cannot be done."""
    if _SERVER.exists():
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        pytest.skip("RabbitMQ is not installed, and only root can do that, by apt-get")
    for words in (["update"], ["install", "-y", "--no-install-recommends", "rabbitmq-server"]):
        done = subprocess.run(
            ["apt-get", *words], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True, text=True, timeout=_INSTALL_SECONDS,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"apt-get {words[0]} failed: {' '.join(done.stderr.split())[-200:]}")


@dataclass
class RabbitMQ:
    """A server that runs, or is started again on what it had stored."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    epmd_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"pyamqp://healthingest:{self.password}@{self.host}:{self.port}//"

    def start(self) -> None:
        """Start it on its folder, and return once it takes connections."""
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(_SERVER)], env=self._env(), cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                **_user(),
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while not self._takes_connections():
            said = (self.folder / "server.log").read_text(errors="replace")[-2000:]
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill it as a loss of power does; what is stored stays."""
        if self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End it and its port mapper."""
        if self._process:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        self.kill()
        epmd = shutil.which("epmd")
        if epmd:
            subprocess.run([epmd, "-port", str(self.epmd_port), "-kill"], capture_output=True, timeout=20)

    def _takes_connections(self) -> bool:
        """Whether it answers as AMQP does: the port is open before the server is ready."""
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 2) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))
        return False

    def _env(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": os.environ["PATH"], "HOME": folder, "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": "healthingest@localhost", "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODE_IP_ADDRESS": self.host, "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia", "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf", "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(self.epmd_port),
        }  # fmt: skip


@contextlib.contextmanager
def rabbitmq(more_settings: str = "") -> Iterator[RabbitMQ]:
    """Run a server with the shipped settings and these; as the user `rabbitmq` where this is root."""
    server = RabbitMQ(Path(tempfile.mkdtemp(prefix="healthingest-rabbitmq-")))
    try:
        shipped = (REPO / "deploy" / "distributed" / "rabbitmq.conf").read_text()
        user = f"default_user = healthingest\ndefault_pass = {server.password}\n"
        (server.folder / "rabbitmq.conf").write_text(shipped + user + more_settings)
        (server.folder / "plugins").write_text("[].\n")
        for path in (server.folder, *server.folder.iterdir()):
            if os.geteuid() == 0:
                shutil.chown(path, "rabbitmq", "rabbitmq")
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(server.folder, ignore_errors=True)


def _user() -> dict[str, Any]:
    return {"user": "rabbitmq", "group": "rabbitmq", "extra_groups": []} if os.geteuid() == 0 else {}
