"""Spark Connect servers of a test: Sail, or Apache Spark's on a standalone master with two workers."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pyspark

#: Kills the process groups that it is told of once whoever tells it is gone, however that one died.
_WATCHER = """
import os, signal, sys
for group in [int(line) for line in sys.stdin]:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""
_HOME = Path(pyspark.__file__).parent
_REPO = Path(__file__).resolve().parents[2]


@dataclass
class Cluster:
    """A running server, and the processes of its workers."""

    remote: str
    #: All that were started; each leads a session of its own, in which its children are too.
    processes: list[subprocess.Popen[bytes]]
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)


@contextmanager
def sail(env: dict[str, str], folder: Path) -> Iterator[Cluster]:
    """A Sail server."""
    port = _free()
    with _Processes(env, folder) as run:
        run.start("sail", [str(Path(sys.executable).parent / "sail"), "spark", "server", "--port", str(port)], port)
        yield Cluster(f"sc://127.0.0.1:{port}", run.started)


@contextmanager
def standalone(env: dict[str, str], folder: Path) -> Iterator[Cluster]:
    """Apache Spark: a master, two workers of one core, and a Connect server that uses them."""
    master, connect = _free(), _free()
    spark_class = str(_HOME / "bin" / "spark-class")
    here = {"SPARK_LOCAL_IP": "127.0.0.1", "SPARK_HOME": str(_HOME), "PYSPARK_PYTHON": sys.executable,
            "SPARK_LOCAL_DIRS": str(folder / "local"), "SPARK_WORKER_DIR": str(folder / "work")}  # fmt: skip
    with _Processes(env | here, folder) as run:
        base = "org.apache.spark.deploy"
        run.start("master", [spark_class, f"{base}.master.Master", "--host", "127.0.0.1", "--port", str(master),
                             "--webui-port", str(_free())], master)  # fmt: skip
        url = f"spark://127.0.0.1:{master}"
        workers = [
            run.start(f"worker{n}", [spark_class, f"{base}.worker.Worker", "--host", "127.0.0.1", "-c", "1", "-m", "2g",
                                     "--webui-port", str(_free()), url])
            for n in range(2)
        ]  # fmt: skip
        conf = {"spark.connect.grpc.binding.address": "127.0.0.1", "spark.connect.grpc.binding.port": connect,
                "spark.executor.memory": "1g", "spark.ui.enabled": "false",
                "spark.driver.host": "127.0.0.1"}  # fmt: skip
        said = [word for name, value in conf.items() for word in ("--conf", f"{name}={value}")]
        server = "org.apache.spark.sql.connect.service.SparkConnectServer"
        run.start("connect", [str(_HOME / "bin" / "spark-submit"), "--master", url, *said, "--class", server,
                              "spark-internal"], connect)  # fmt: skip
        yield Cluster(f"sc://127.0.0.1:{connect}", run.started, workers)


def found(root: Path, pattern: str) -> set[Path]:
    """What a pattern finds, while folders come and go; nothing if one has just gone."""
    with suppress(FileNotFoundError):
        return set(root.glob(pattern))
    return set()


class _Processes:
    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self._env = os.environ | env | {"PYTHONPATH": str(_REPO), "POLARS_MAX_THREADS": "1"}
        self._folder, self.started = folder, list[subprocess.Popen[bytes]]()
        folder.mkdir(parents=True, exist_ok=True)
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", _WATCHER], stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def start(self, name: str, command: list[str], port: int | None = None) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("wb") as log:
            done = subprocess.Popen(command, env=self._env, stdout=log, stderr=log, start_new_session=True)
        self.started.append(done)
        assert self._watcher.stdin
        print(done.pid, file=self._watcher.stdin, flush=True)
        ends = time.monotonic() + 240
        while port is not None:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert done.poll() is None, (self._folder / f"{name}.log").read_text()[-2000:]
            assert time.monotonic() < ends, f"{name} did not start"
            time.sleep(0.2)
        return done

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.started):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._watcher.kill()  # the groups' numbers may be others' from here on
        self._watcher.wait()


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
