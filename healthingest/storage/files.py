"""What folders and object stores do each in their way: whole writes, words that are put once, Parquet, deletion.

Locally a file is written beside its place, forced to disk, and then put there by a rename or an exclusive link.
"""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from healthingest.storage.objects import ObjectPath

if TYPE_CHECKING:  # loaded where it is needed: most commands that put a word need none of it
    import polars as pl


def options_of(place: Path) -> dict[str, str] | None:
    """What delta-rs and polars must be told to reach a place; None for a local one."""
    return place.options if isinstance(place, ObjectPath) else None


def put_new(place: Path, content: bytes) -> bool:
    """Write a file unless there is one; there for good when this returns. False if there was one."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if isinstance(place, ObjectPath):
        return place.put_new(content)
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        _write(temporary, content)
        os.link(temporary, place)  # exclusive, and never half-written
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def put(place: Path, content: bytes) -> None:
    """Write a file, whatever is there; as a whole, and there for good when this returns."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if isinstance(place, ObjectPath):
        place.write_bytes(content)
        return
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        _write(temporary, content)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_file(place: Path) -> Iterator[IO[bytes]]:
    """A file that nobody has seen, to be written from here on; on disk for good afterwards."""
    with place.open("xb") as file:
        yield file
        if not isinstance(place, ObjectPath):
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def appearing(place: Path) -> Iterator[Path]:
    """Where to write a file so that it appears at `place` as a whole, and there for good, when the block ends."""
    if isinstance(place, ObjectPath):
        yield place
        return
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Delete everything below; what cannot be deleted stays."""
    if isinstance(folder, ObjectPath):
        for place in list(folder.rglob("*")):
            place.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def scan_parquet(*places: Path, **said: Any) -> "pl.LazyFrame":  # noqa: ANN401 - as polars has them
    """Parquet files of one table, lazily; their names are no patterns."""
    import polars as pl

    return pl.scan_parquet([*map(str, places)], glob=False, storage_options=options_of(places[0]), **said)


def sink_parquet(rows: "pl.LazyFrame", place: Path, **said: Any) -> None:  # noqa: ANN401
    """Write a Parquet file that nobody has seen, a part at a time."""
    rows.sink_parquet(str(place), storage_options=options_of(place), **said)


def write_parquet(frame: "pl.DataFrame", place: Path, **said: Any) -> None:  # noqa: ANN401
    """Write a Parquet file that nobody has seen."""
    if isinstance(place, ObjectPath):
        with place.open("wb") as file:
            frame.write_parquet(file, **said)
    else:
        frame.write_parquet(place, **said)


def scratch(output: Path) -> Path:
    """A local folder for what this machine needs for a while; below the output folder, where that is local.

    HEALTHINGEST_SCRATCH names another, TMPDIR's folder is taken beside object stores.
    """
    if named := os.environ.get("HEALTHINGEST_SCRATCH"):
        return Path(named).expanduser().resolve()
    if not isinstance(output, ObjectPath):
        return output / "checkpoint" / "spool"
    return Path(tempfile.gettempdir()) / f"healthingest-{os.getuid()}"


def _write(place: Path, content: bytes) -> None:
    with place.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
