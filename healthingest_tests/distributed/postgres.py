"""A Postgres server of the test's own: made in a temporary folder, and stopped at the end whatever happens.

Its clock speaks New York's time, as servers in the field do; Dagster's database is put to UTC, as docs/distributed.md
asks.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from healthingest_tests.servers import free_port

_FOLDERS = (Path("/usr/lib/postgresql/15/bin"), Path("/usr/local/bin"))
_START_SECONDS = 60


class Postgres(NamedTuple):
    """A server that runs."""

    host: str
    port: int
    password: str

    def url(self, database: str, driver: str = "postgresql+psycopg2") -> str:
        return f"{driver}://postgres:{self.password}@{self.host}:{self.port}/{database}"

    def run(self, *statements: str, database: str = "postgres") -> None:
        import psycopg2

        connection = psycopg2.connect(self.url(database, "postgresql"))
        connection.autocommit = True
        with contextlib.closing(connection), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    @contextlib.contextmanager
    def shut(self, *databases: str) -> Iterator[None]:
        """Cut all connections to databases and take no new ones, as while their server is away."""
        for name in databases:
            self.run(
                f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
            )
        try:
            yield
        finally:
            self.run(*(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true" for name in databases))

    def dagster_database(self, *, in_utc: bool = True) -> str:
        """Make a database as docs/distributed.md says, and return its URL for Dagster."""
        name = f"dagster_{secrets.token_hex(4)}"
        self.run(f"CREATE DATABASE {name}", *([f"ALTER DATABASE {name} SET timezone TO 'UTC'"] if in_utc else []))
        return self.url(name)


@contextlib.contextmanager
def postgres(host: str = "127.0.0.1") -> Iterator[Postgres]:
    """Run a server on a free port of an address; as the user `postgres` where this is root, which it refuses."""
    bin_ = next(folder for folder in _FOLDERS if (folder / "initdb").exists())
    user = "postgres" if os.geteuid() == 0 else None
    folder, server = Path(tempfile.mkdtemp(prefix="healthingest-postgres-")), None
    found = Postgres(host, free_port(), secrets.token_hex(16))
    try:
        (folder / "password").write_text(found.password)
        for path in (folder, folder / "password"):
            if user:
                shutil.chown(path, user)
        as_user = {"user": user, "group": user, "extra_groups": []} if user else {}
        made = [str(bin_ / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "-A", "scram-sha-256", "-E", "UTF8"]
        made += ["--no-sync", f"--pwfile={folder / 'password'}"]
        subprocess.run(made, check=True, capture_output=True, cwd=folder, **as_user)
        with (folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {host}/24 scram-sha-256\n")
        said = {"listen_addresses": host, "port": found.port, "unix_socket_directories": folder, "fsync": "off",
                "timezone": "America/New_York", "max_connections": 200}  # fmt: skip
        words = [word for name, value in said.items() for word in ("-c", f"{name}={value}")]
        server = subprocess.Popen(
            [str(bin_ / "postgres"), "-D", str(folder / "data"), *words], cwd=folder, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user,
        )  # fmt: skip
        _wait_for(found)
        yield found
    finally:
        if server:
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(server: Postgres) -> None:
    import psycopg2

    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            return server.run("SELECT 1")
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
