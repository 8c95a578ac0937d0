"""Rejected records that somebody gave up: `checkpoint/discards/<client>/<file_id>/<n>.json`, numbered from 1.

By the delivery that was received: its other readings number the same records alike. A later word on a record takes the
place of an earlier one. On disk for good before the quarantine table follows, and there for whoever makes it again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from healthingest.lake.decisions import put_once, read_word


@dataclass(frozen=True)
class Discard:
    """One word on some records: given up, or (`open`) somebody's task again."""

    records: tuple[int, ...]
    by: str
    reason: str
    at: datetime
    open: bool = False


@dataclass(frozen=True)
class Discards:
    """Those of all clients."""

    root: Path

    def of(self, client_id: str, origin: str) -> dict[int, Discard]:
        """Record number -> the last word on it, for each record of a received delivery that there is one on."""
        said: dict[int, Discard] = {}
        folder = self.root / client_id / origin
        for place in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            found = read_word(place) or {}
            word = Discard(**{**found, "records": tuple(found["records"]), "at": datetime.fromisoformat(found["at"])})
            said |= dict.fromkeys(word.records, word)
        return said

    def put(self, client_id: str, origin: str, word: Discard) -> None:
        """Note a word as the last one."""
        folder = self.root / client_id / origin
        said = asdict(word) | {"at": word.at.isoformat()}
        while not put_once(folder / f"{len(list(folder.glob('*.json'))) + 1:04d}.json", said):
            pass  # somebody else took the number


def word(records: Sequence[int], by: str, reason: str, *, back: bool) -> Discard:
    """A word said now."""
    return replace(Discard(tuple(sorted(records)), by, reason, datetime.now(UTC)), open=back)
