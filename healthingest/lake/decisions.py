"""What people decided about deliveries: `checkpoint/decisions/<client>/<file_id>.json`, the first word is the last.

Put if absent, and on disk for good before anything follows from it: silver is brought in line with it, and whoever
builds silver again finds it here. The chain of events tells of it too; this file decides.
"""

import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from healthingest.model import Verdict, Word


@dataclass(frozen=True)
class Decisions:
    """The decisions of all clients."""

    root: Path

    def of(self, client_id: str, file_id: str) -> Verdict | None:
        """What was decided about a delivery; None: nothing."""
        try:
            said = json.loads(self._place(client_id, file_id).read_text())
        except FileNotFoundError:
            return None
        return Verdict(**said | {"decided_at": datetime.fromisoformat(said["decided_at"])})

    def put(self, client_id: str, file_id: str, verdict: Verdict) -> Verdict:
        """Note a decision unless there is one; returns the one that counts."""
        said = asdict(verdict) | {"decided_at": verdict.decided_at.isoformat()}
        if put_once(self._place(client_id, file_id), said):
            return verdict
        return self.of(client_id, file_id) or verdict

    def _place(self, client_id: str, file_id: str) -> Path:
        return self.root / client_id / f"{file_id}.json"


def put_once(place: Path, said: Mapping[str, Any]) -> bool:
    """Write a word as JSON unless there is one; on disk for good when this returns. False if there was one."""
    place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = place.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("x") as file:
            json.dump(said, file)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, place)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def verdict_of(decision: Word, by: str, reason: str) -> Verdict:
    """A decision made now."""
    return Verdict(decision, by, reason, datetime.now(UTC))
