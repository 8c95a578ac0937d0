"""Which files of the landing zone need no second look: the sensor's cursor, and behind it a ledger on disk.

The cursor alone would grow with the landing zone. So what an earlier cursor already held goes, now and then, to a
ledger: a file of marks under an id of its own, which the cursor names. The order makes it safe: a cursor is stored once
its run requests are, so only what came with the last cursor is folded; a tick that dies leaves the old cursor with the
old ledger. Whoever resets the cursor, or loses either, looks at all files again, which repeats nothing.
"""

import io
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from healthingest.landing.discovery import Landed, Marks, look, mark, marks_of
from healthingest.storage.files import put

#: What was decided of a file: it got a run, or it leads nowhere.
SUBMITTED, UNROUTABLE = "submitted", "unroutable"
#: File name -> (size, changed_ns, what was decided).
Recent = dict[str, tuple[int, int, str]]
#: Entries of a cursor from which on those with a run go to the ledger.
_FOLD = 1_000
#: Files that one tick looks at; with more, the next tick goes on behind them.
_LOOKS = 2_000


@dataclass
class Seen:
    """What a cursor and its ledger say."""

    folder: Path
    recent: Recent = field(default_factory=dict)
    ledger: str | None = None
    #: The last name whose turn came in a tick with too many files.
    after: str = ""
    #: Sorted marks of files that got their run long ago.
    known: Marks = field(default_factory=lambda: np.empty(0, np.uint64))
    _stored: Recent = field(default_factory=dict)

    @classmethod
    def load(cls, cursor: str | None, folder: Path) -> "Seen":
        """Read a cursor; one that cannot be read is an empty one, since every step behind it may be repeated."""
        try:
            raw = json.loads(cursor or "{}")
            ledger, after, recent = raw.get("ledger"), str(raw.get("after", "")), raw.get("recent", raw)
            read = {str(n): (int(size), int(at), str(what)) for n, (size, at, what) in recent.items()}
        except (ValueError, TypeError, AttributeError):
            return cls(folder)
        found = _read(folder, ledger)
        return cls(folder, dict(read), ledger if found.size else None, after, found, dict(read))

    def put(self, landed: Landed, what: str) -> None:
        """Note what was decided of a file."""
        self.recent[landed.name] = (landed.size, landed.changed_ns, what)

    def decided(self, landed: Landed) -> str | None:
        """What was decided of a file as it is, if lately."""
        size, changed_ns, what = self.recent.get(landed.name, (-1, -1, ""))
        return what if (size, changed_ns) == (landed.size, landed.changed_ns) else None

    def new(self, landing: Path) -> list[Landed]:
        """Files that changed since they were seen, by name, and those that led nowhere: a new client may change that.

        Forgets what does not lie in the landing zone any more; folds the cursor where it has grown.
        """
        done = np.sort(np.concatenate([self.known, _marks(_taken(self.recent))]))
        present: set[str] = set()
        found: dict[str, int] = {}
        parts = [np.empty(0, np.uint64)]
        for names, marks, changed in marks_of(landing):
            present.update(name for name in names if name in self.recent)
            found |= {names[at]: int(changed[at]) for at in np.flatnonzero(~_within(marks, done)).tolist()}
            parts.append(marks)
        self.recent = {name: said for name, said in self.recent.items() if name in present}
        if len(_taken(self._stored)) > _FOLD:
            self._fold(np.concatenate(parts))
        return [landed for name in self._turn(found) if (landed := look(landing / name))]

    def _turn(self, found: Mapping[str, int]) -> list[str]:
        """Those names (name -> when it changed) that are to be looked at now; the others are another tick's.

        Half of them the newest, which shall not wait for what is looked at once more; half of them each in its turn,
        whatever clogs the other half.
        """
        if len(found) <= _LOOKS:
            self.after = ""
            return sorted(found)
        newest = set(sorted(found, key=found.__getitem__)[-_LOOKS // 2 :])
        rest = sorted(found.keys() - newest)
        turn = ([name for name in rest if name > self.after] + rest)[: _LOOKS // 2]
        self.after = turn[-1]
        return [*sorted(newest), *turn]

    def cursor(self) -> str:
        """The cursor to store."""
        said: dict[str, object] = {"recent": dict(sorted(self.recent.items()))}
        if self.ledger:
            said |= {"ledger": self.ledger}
        return json.dumps(said | ({"after": self.after} if self.after else {}))

    def _fold(self, present: Marks) -> None:
        """Move what the last cursor held to a new ledger, without what is gone from the landing zone."""
        old = _taken(self._stored)
        self.known = np.intersect1d(np.concatenate([self.known, _marks(old)]), present)
        before, self.ledger = self.ledger, secrets.token_hex(8)
        content = io.BytesIO()
        np.save(content, self.known)
        put(_place(self.folder, self.ledger), content.getvalue())
        for place in self.folder.glob("*.npy"):
            if place.stem not in {before, self.ledger}:
                place.unlink(missing_ok=True)
        self.recent = {name: said for name, said in self.recent.items() if name not in old}


def _taken(recent: Recent) -> Recent:
    """Those that got a run."""
    return {name: said for name, said in recent.items() if said[2] == SUBMITTED}


def _marks(recent: Recent) -> Marks:
    return np.frombuffer(b"".join(mark(name, size, at) for name, (size, at, _) in recent.items()), np.uint64)


def _within(marks: Marks, all_sorted: Marks) -> npt.NDArray[np.bool_]:
    """Which marks are among some (`np.isin` would sort and copy a million of them each time)."""
    if not all_sorted.size:
        return np.zeros(marks.size, np.bool_)
    at = np.minimum(np.searchsorted(all_sorted, marks), all_sorted.size - 1)
    return np.equal(all_sorted[at], marks)


def _place(folder: Path, ledger: str) -> Path:
    return folder / f"{ledger}.npy"


def _read(folder: Path, ledger: object) -> Marks:
    """A ledger's marks; none where it is lost or torn, so that all files are looked at again."""
    if not isinstance(ledger, str) or not ledger.isalnum():
        return np.empty(0, np.uint64)
    try:
        found = np.load(io.BytesIO(_place(folder, ledger).read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return np.empty(0, np.uint64)
    return found if found.dtype == np.uint64 and found.ndim == 1 else np.empty(0, np.uint64)
