"""The systems that are measured beside each other. Each reads a member file and upserts it into a table of its own.

A contender's module is light; what it needs is imported in its own process (`python -m benchmarks.contenders`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Loaded:
    """What a contender says of one load."""

    rows_in: int
    #: Records that it kept out, and told of or not.
    rejected: int


@dataclass(frozen=True)
class Contender:
    """One system, set up as its competent user would."""

    name: str
    #: Modules that must be installed.
    needs: tuple[str, ...]
    #: What it does not do of what this system does.
    lacks: str
    #: Load files, in order, into the table below a folder.
    load: Callable[[Path, list[Path]], Loaded]
    #: The Delta table below the folder; empty: it has none.
    table: str
    #: Whether a line with a field too many is survived; else it is given files without them.
    malformed: bool = True
    #: Gets files there before the clock starts.
    land: Callable[[Path, list[Path]], None] = lambda _root, _files: None

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return all(find_spec(module) for module in self.needs)


def contenders() -> dict[str, Contender]:
    """All of them, ours first."""
    from benchmarks.contenders import bare, dlt_upsert, floe_scd1, limit, ours, pandas_merge

    modules = (ours, floe_scd1, dlt_upsert, pandas_merge, bare, limit)
    return {module.CONTENDER.name: module.CONTENDER for module in modules}
