"""What people took back and gave again: `checkpoint/reverts/<client>/<file_id>/<number>.json`, numbered from 1.

Odd numbers take a delivery back, even ones give it again; the greatest decides. Like every decision they are on disk
for good before anything follows, and whoever builds silver again finds them here.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from healthingest.lake.decisions import put_once


@dataclass(frozen=True)
class Revert:
    """One word on a delivery: taken back, or given again."""

    number: int
    by: str
    reason: str
    at: datetime
    #: Deliveries of its name that were registered when it was said: later ones find the name so.
    after: int

    @property
    def taken_back(self) -> bool:
        """Whether the delivery does not count from then on."""
        return is_odd(self.number)

    @property
    def sentence(self) -> str:
        """Who said it, when and why."""
        what = "Reverted" if self.taken_back else "Revert undone"
        return f"{what} by {self.by} on {self.at:%Y-%m-%d %H:%M} UTC: {self.reason}."


def is_odd(number: int) -> bool:
    """Whether so many words leave a delivery taken back."""
    return number % 2 == 1


@dataclass(frozen=True)
class Reverts:
    """Those of all clients."""

    root: Path

    def of(self, client_id: str, file_id: str) -> list[Revert]:
        """All words on a delivery, in their order."""
        folder = self.root / client_id / file_id
        if not folder.is_dir():
            return []
        return sorted((_read(place) for place in folder.glob("*.json")), key=lambda one: one.number)

    def number(self, client_id: str, file_id: str) -> int:
        """The number of the last word on a delivery; 0: nobody ever took it back."""
        folder = self.root / client_id / file_id
        return max((int(place.stem) for place in folder.glob("*.json")), default=0) if folder.is_dir() else 0

    def gone(self, client_id: str, file_id: str) -> bool:
        """Whether a delivery is taken back now."""
        return is_odd(self.number(client_id, file_id))

    def numbers(self, client_id: str) -> dict[str, int]:
        """The same of every delivery of a client that somebody ever took back."""
        folder = self.root / client_id
        names = [place.name for place in folder.iterdir()] if folder.is_dir() else []
        return {name: number for name in names if (number := self.number(client_id, name))}

    def taken_back_before(self, client_id: str, file_ids: Iterable[str], delivery_no: int) -> set[str]:
        """Which of the deliveries of a name were taken back when delivery `delivery_no` of it was registered."""
        said = {f: [word for word in self.of(client_id, f) if word.after < delivery_no] for f in file_ids}
        return {file_id for file_id, words in said.items() if words and words[-1].taken_back}

    def put(self, client_id: str, file_id: str, word: Revert) -> bool:
        """Note a word, for who is alone with the client; False if there is one of its number."""
        said = asdict(word) | {"at": word.at.isoformat()}
        return put_once(self.root / client_id / file_id / f"{word.number:04d}.json", said)


def word(number: int, by: str, reason: str, after: int) -> Revert:
    """A word said now."""
    return Revert(number, by, reason, datetime.now(UTC), after)


def _read(place: Path) -> Revert:
    said = json.loads(place.read_text())
    return replace(Revert(**said), at=datetime.fromisoformat(said["at"]))
