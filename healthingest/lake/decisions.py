"""What people decided about deliveries: `checkpoint/decisions/<client>/<file_id>.json`, the first word is the last.

Put if absent, and on disk for good before anything follows from it: silver is brought in line with it, and whoever
builds silver again finds it here. The chain of events tells of it too; this file decides.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from healthingest.model import Verdict, Word
from healthingest.storage.files import put_new


@dataclass(frozen=True)
class Decisions:
    """The decisions of all clients."""

    root: Path

    def of(self, client_id: str, file_id: str) -> Verdict | None:
        """What was decided about a delivery; None: nothing."""
        return _verdict(read_word(self._place(client_id, file_id)))

    def asked(self, client_id: str, file_id: str) -> Verdict | None:
        """What a first person wants of a delivery where it takes two; None: nobody has asked."""
        return _verdict(read_word(self._asked(client_id, file_id)))

    def ask(self, client_id: str, file_id: str, verdict: Verdict) -> Verdict:
        """Note what a first person wants, unless somebody has asked; returns what was asked first."""
        put_once(self._asked(client_id, file_id), _plain(verdict))
        return self.asked(client_id, file_id) or verdict

    def put(self, client_id: str, file_id: str, verdict: Verdict) -> Verdict:
        """Note a decision unless there is one; returns the one that counts."""
        if put_once(self._place(client_id, file_id), _plain(verdict)):
            return verdict
        return self.of(client_id, file_id) or verdict

    def _asked(self, client_id: str, file_id: str) -> Path:
        return self.root / client_id / f"{file_id}.asked"

    def _place(self, client_id: str, file_id: str) -> Path:
        return self.root / client_id / f"{file_id}.json"


def _plain(verdict: Verdict) -> dict[str, Any]:
    return asdict(verdict) | {"decided_at": verdict.decided_at.isoformat()}


def _verdict(said: Mapping[str, Any] | None) -> Verdict | None:
    return Verdict(**{**said, "decided_at": datetime.fromisoformat(said["decided_at"])}) if said else None


def read_word(place: Path) -> dict[str, Any] | None:
    """What `put_once` wrote; None if nothing."""
    try:
        said: dict[str, Any] = json.loads(place.read_text())
    except FileNotFoundError:
        return None
    return said


def put_once(place: Path, said: Mapping[str, Any]) -> bool:
    """Write a word as JSON unless there is one; there for good when this returns. False if there was one."""
    return put_new(place, json.dumps(said).encode())


def verdict_of(decision: Word, by: str, reason: str) -> Verdict:
    """A decision made now."""
    return Verdict(decision, by, reason, datetime.now(UTC))
