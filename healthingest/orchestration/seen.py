"""Which files of the landing zone need no second look: the sensor's cursor, and behind it a ledger on disk.

The cursor alone would grow with the landing zone. So what an earlier cursor already held goes, now and then, to a
ledger: a file of marks under an id of its own, which the cursor names. The order makes it safe: a cursor is stored once
its run requests are, so only what came with the last cursor is folded; a tick that dies leaves the old cursor with the
old ledger. Whoever resets the cursor, or loses either, looks at all files again, which repeats nothing.
"""

import io
import json
import random
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from healthingest.landing.discovery import Landed, Marks, Sweep, look, mark, marks_of
from healthingest.storage.files import put

#: What was decided of a file: it got a run, or it leads nowhere.
SUBMITTED, UNROUTABLE = "submitted", "unroutable"
#: File name -> (size, changed_ns, what was decided).
Recent = dict[str, tuple[int, int, str]]
#: Entries of a cursor from which on those with a run go to the ledger.
_FOLD = 1_000
#: Files that one tick looks at; with more, the next tick goes on behind them.
_LOOKS = 2_000
#: Files that are looked at side by side, where each is a request to a store.
_SIDE_BY_SIDE = 16


@dataclass
class Told:
    """What a cursor holds between ticks where queues tell of new files (ADR 28)."""

    #: Seconds since the epoch: when the landing zone was last listed, and nothing of it was left for later.
    listed: float = 0.0
    #: A digest of what was known of the clients then.
    known: str = ""
    #: Names that the last tick could not decide on.
    owed: list[str] = field(default_factory=list)
    #: Receipts of messages that may be deleted once this is read from a cursor, by the queue's URL.
    receipts: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, raw: dict[str, Any]) -> "Told":
        """From a cursor's part.

        Raises:
            ValueError, TypeError, AttributeError, KeyError, OverflowError: it is none.
        """
        receipts = {str(url): [str(one) for one in some] for url, some in raw["receipts"].items()}
        return cls(float(raw["listed"]), str(raw["known"]), [str(name) for name in raw["owed"]], receipts)


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
    #: The last name that was listed, where an object store's listing was broken off; the next tick goes on behind it.
    listed: str = ""
    #: None where no queue tells of files.
    told: Told | None = None
    #: Whether the last look at all files found more than a tick looks at.
    crowded: bool = False
    _stored: Recent = field(default_factory=dict)

    @classmethod
    def load(cls, cursor: str | None, folder: Path) -> "Seen":
        """Read a cursor; one that cannot be read is an empty one, since every step behind it may be repeated."""
        try:
            raw = json.loads(cursor or "{}")
            ledger, after, recent = raw.get("ledger"), str(raw.get("after", "")), raw.get("recent", raw)
            listed = str(raw.get("listed", ""))
            read = {str(n): (int(size), int(at), str(what)) for n, (size, at, what) in recent.items()}
            told = Told.of(raw["told"]) if "told" in raw else None
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
            return cls(folder)
        found = _read(folder, ledger)
        ledger = ledger if found.size else None
        return cls(folder, dict(read), ledger, after, found, listed, told, _stored=dict(read))

    def put(self, landed: Landed, what: str) -> None:
        """Note what was decided of a file."""
        self.recent[landed.name] = (landed.size, landed.changed_ns, what)

    def decided(self, landed: Landed) -> str | None:
        """What was decided of a file as it is, if lately."""
        size, changed_ns, what = self.recent.get(landed.name, (-1, -1, ""))
        return what if (size, changed_ns) == (landed.size, landed.changed_ns) else None

    def led_nowhere(self) -> list[str]:
        """Names of files that led nowhere when they were seen."""
        return [name for name, said in self.recent.items() if said[2] == UNROUTABLE]

    def named(self, names: Iterable[str], landing: Path) -> list[Landed]:
        """Those of some files that are there and changed since they were seen, in the order given; folds the cursor."""
        if len(_taken(self._stored)) > _FOLD:
            self._fold(None)
        with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
            looked = pool.map(lambda name: _look(landing, name), dict.fromkeys(names))
        found = [landed for landed in looked if landed]
        marks = np.frombuffer(b"".join(mark(f.name, f.size, f.changed_ns) for f in found), np.uint64)
        done = _within(marks, self.known) | np.isin(marks, _marks(_taken(self.recent)))
        return [landed for landed, was in zip(found, done.tolist(), strict=True) if not was]

    def new(self, landing: Path) -> list[Landed]:
        """Files that changed since they were seen, by name, and those that led nowhere: a new client may change that.

        Forgets what does not lie in the landing zone any more; folds the cursor where it has grown. Of a large object
        store it looks at a part, and the next call at the next one.
        """
        sweep = Sweep(self.listed)
        done = np.sort(np.concatenate([self.known, _marks(_taken(self.recent))]))
        present: set[str] = set()
        found: dict[str, int] = {}
        parts = [np.empty(0, np.uint64)]
        for names, marks, changed in marks_of(landing, sweep):
            present.update(name for name in names if name in self.recent)
            found |= {names[at]: int(changed[at]) for at in np.flatnonzero(~_within(marks, done)).tolist()}
            parts.append(marks)
        self.listed = sweep.until
        self.recent = {n: said for n, said in self.recent.items() if n in present or not sweep.covers(n)}
        if len(_taken(self._stored)) > _FOLD:
            self._fold(np.concatenate(parts) if sweep.whole else None)
        self.crowded = len(found) > _LOOKS or bool(sweep.until)
        return [landed for name in self._turn(found, sweep) if (landed := look(landing / name))]

    def _turn(self, found: Mapping[str, int], sweep: Sweep) -> list[str]:
        """Those names (name -> when it changed) that are to be looked at now; the others are another tick's.

        Half of them the newest, which shall not wait for what is looked at once more; half of them each in its turn,
        whatever clogs the other half.
        """
        if len(found) <= _LOOKS:
            self.after = ""
            return sorted(found)
        newest = set(sorted(found, key=found.__getitem__)[-_LOOKS // 2 :])
        rest = sorted(found.keys() - newest)
        if not sweep.whole:  # other parts have their turns between
            return [*sorted(newest), *random.sample(rest, _LOOKS // 2)]
        turn = ([name for name in rest if name > self.after] + rest)[: _LOOKS // 2]
        self.after = turn[-1]
        return [*sorted(newest), *turn]

    def cursor(self) -> str:
        """The cursor to store."""
        said: dict[str, object] = {"recent": dict(sorted(self.recent.items()))}
        if self.ledger:
            said |= {"ledger": self.ledger}
        if self.listed:
            said |= {"listed": self.listed}
        if self.told:
            said |= {"told": asdict(self.told)}
        return json.dumps(said | ({"after": self.after} if self.after else {}))

    def _fold(self, present: Marks | None) -> None:
        """Move what the last cursor held to a new ledger, without what is no longer `present`, where that is known."""
        old = _taken(self._stored)
        known = np.unique(np.concatenate([self.known, _marks(old)]))
        self.known = known if present is None else np.intersect1d(known, present)
        before, self.ledger = self.ledger, secrets.token_hex(8)
        content = io.BytesIO()
        np.save(content, self.known)
        put(_place(self.folder, self.ledger), content.getvalue())
        for place in self.folder.glob("*.npy"):
            if place.stem not in {before, self.ledger}:
                place.unlink(missing_ok=True)
        self.recent = {name: said for name, said in self.recent.items() if name not in old}


def _look(landing: Path, name: str) -> Landed | None:
    """Look at a file that somebody named; None also where no file can have that name."""
    try:
        return look(landing / name)
    except ValueError:
        return None


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
