"""What every benchmark needs: a temporary installation, a child process with its figures, and the machine in a line.

The measuring process loads nothing heavy: a child's peak memory as Linux reports it is never below that of the
process it was started from.
"""

import json
import os
import platform as machine
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Measured:
    """A child process that ended well: the JSON it printed last, and what it took, its own children included."""

    said: dict[str, Any]
    #: Seconds from start to end, imports included.
    wall: float
    #: Seconds of all its threads.
    cpu: float
    rss_mib: float


@contextmanager
def workplace(keep: Path | None = None) -> Iterator[Path]:
    """A new folder, deleted at the end unless it is named."""
    root = keep or Path(tempfile.mkdtemp(prefix="healthingest-bench-"))
    if keep:
        keep.mkdir(parents=True)
    try:
        yield root.resolve()
    finally:
        if not keep:
            shutil.rmtree(root)


def install(root: Path, clients: Sequence[str] = ("acme",)) -> dict[str, str]:
    """An installation below root/home with clients on the shipped contract; the environment that names it."""
    configs = root / "home" / "client_configs"
    shutil.copytree(REPO / "client_configs" / "contracts", configs / "contracts")
    for client in clients:
        (configs / f"{client}.yaml").write_text(f"client_id: {client}\n")
    (root / "home" / "input" / "raw").mkdir(parents=True)
    own = {name: value for name, value in os.environ.items() if not name.startswith("HEALTHINGEST_")}
    own |= {"HEALTHINGEST_HOME": str(root / "home"), "HEALTHINGEST_KEYRING": str(root / "keys" / "keyring.json")}
    # As `healthingest` and run_pipeline.sh set it.
    own["_RJEM_MALLOC_CONF"] = f"dirty_decay_ms:300,muzzy_decay_ms:0,narenas:{os.cpu_count()}"
    return own | {"PYTHONPATH": str(REPO)}


def child(words: Sequence[str], env: dict[str, str], python: str = sys.executable) -> Measured:
    """Run `python WORDS` to its end; it prints a JSON object, alone or on its last line.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as told:
        start = time.perf_counter()
        with subprocess.Popen([python, *words], env=env, cwd=REPO, stdout=subprocess.PIPE, stderr=told) as process:
            assert process.stdout is not None
            said = process.stdout.read()
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            told.seek(0)
            raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {told.read()[-2000:].decode()}")
    text = said.decode().strip()
    answer = json.loads(text if text.startswith("{") else text.splitlines()[-1])
    return Measured(answer, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def machine_line() -> str:
    """The machine and the versions that a figure depends on."""
    names = ("polars", "deltalake", "pandera", "pyarrow", "floe-python", "dlt", "pandas")
    packages = ", ".join(f"{name} {found}" for name in names if (found := _version(name)))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, Python {machine.python_version()}, {packages}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
