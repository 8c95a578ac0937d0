"""Rejected records that somebody gave up: `checkpoint/discards/<client>/<file_id>/<n>.json`, numbered from 1.

By the delivery that was received, and by the lines of its file: another reading of the same bytes may number records
otherwise, but lines stay; where it cuts them otherwise, the word is on none of its records. A later word takes the
place of an earlier one. On disk for good before the quarantine table follows, and there for whoever makes it again.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from healthingest.lake.decisions import put_once, read_word

#: Where a record stands: the physical line on which it starts (1-based, header included), and how many it takes.
Span = tuple[int, int]


@dataclass(frozen=True)
class Discard:
    """One word on some records: given up, or (`open`) somebody's task again."""

    spans: tuple[Span, ...]
    by: str
    reason: str
    at: datetime
    open: bool = False


@dataclass(frozen=True)
class Discards:
    """Those of all clients."""

    root: Path

    def of(self, client_id: str, origin: str) -> dict[Span, Discard]:
        """Where a record stands -> the last word on it, for each of a received delivery that there is one on."""
        said: dict[Span, Discard] = {}
        folder = self.root / client_id / origin
        for place in sorted(folder.glob("*.json")) if folder.is_dir() else ():
            found = read_word(place) or {}
            spans = tuple((line, lines) for line, lines in found["spans"])
            said |= dict.fromkeys(
                spans, Discard(**{**found, "spans": spans, "at": datetime.fromisoformat(found["at"])})
            )
        return said

    def put(self, client_id: str, origin: str, word: Discard) -> None:
        """Note a word as the last one."""
        folder = self.root / client_id / origin
        said = asdict(word) | {"at": word.at.isoformat()}
        while not put_once(folder / f"{len(list(folder.glob('*.json'))) + 1:04d}.json", said):
            pass  # somebody else took the number


def word(spans: Iterable[Span], by: str, reason: str, *, back: bool) -> Discard:
    """A word said now."""
    return Discard(tuple(sorted(spans)), by, reason, datetime.now(UTC), open=back)
