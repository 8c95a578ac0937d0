"""Rows of a large delivery that wait on disk: encrypted under a key that only this process knows, and only in memory.

Whoever kills the process leaves files that nobody can ever read; maintenance takes them away.
"""

import contextlib
import secrets
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import polars as pl

from healthingest.privacy.vault_file import scan_under, write_under


class Spool:
    """A folder of its own, gone with the object at the latest."""

    def __init__(self, root: Path) -> None:
        """Below `root`, a folder of such folders; nothing is made before something is put."""
        self._folder, self._key, self._count = root / secrets.token_hex(8), secrets.token_bytes(32), 0
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def put(self, rows: pl.DataFrame) -> Callable[[Sequence[str] | None], pl.DataFrame]:
        """Write rows; what is returned reads them, or some of their columns, as long as it is kept."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._count += 1
        path, keys = self._folder / f"{self._count}.parquet", dict.fromkeys(rows.columns, self._key)
        write_under(rows, path, self._key, keys, aad=path.name.encode(), compression="lz4")

        def read(columns: Sequence[str] | None) -> pl.DataFrame:
            rows = scan_under(path, self._key, keys, aad=path.name.encode())
            _ = self  # the folder stays while this function does
            return (rows if columns is None else rows.select(columns)).collect()

        return read


def sweep(root: Path, older_than: timedelta) -> int:
    """Take away what processes that were killed have left; how many folders."""
    before, gone = time.time() - older_than.total_seconds(), 0
    for folder in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):  # its process, alive, has just ended with it
            if folder.stat().st_mtime < before:
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
    return gone
