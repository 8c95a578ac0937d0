"""Runs histories of the protocol's model under a schedule, with crashes and repeats, and holds the end to the oracle.

The steps are in `protocol.py`; who goes next is the `Chooser`'s to say; the histories are made in `test_protocol.py`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from healthingest_tests.properties.protocol import (
    APPLIED,
    HELD,
    AuditRow,
    BrokenError,
    Defect,
    Delivery,
    File,
    Key,
    Sighting,
    Step,
    Work,
    World,
    discard,
    erase,
    ingest,
    land,
    maintain,
    new_config,
    prune,
    read,
    release,
    release_held,
    repair,
    toggle,
    without_value,
)


class Op(NamedTuple):
    """Something that happens, at any time after what it needs; `copies` workers may be given it at once."""

    kind: str
    args: tuple
    copies: int = 1
    #: Not before all files were ingested.
    late: bool = False

    def __str__(self) -> str:
        said = " ".join(a.file_id if isinstance(a, File) else str(a) for a in self.args)
        return f"{self.kind} {said}{f' (given to {self.copies})' * (self.copies > 1)}"


@dataclass(frozen=True)
class History:
    """What happens, and how roughly."""

    operations: tuple[Op, ...]
    slot_rule: bool = False
    workers: int = 3
    crashes: int = 0
    #: How often the worker that made a step makes the next one too.
    sticky: float = 0.5
    #: How often it stands still for a while.
    stalls: float = 0.0
    #: How often a disk is full or an answer is lost, where either can be.
    misfortune: float = 0.0

    def of(self, kind: str) -> list[tuple]:
        return [op.args for op in self.operations if op.kind == kind]


@dataclass(eq=False)
class Task:
    """One thing to get done, however many workers it takes."""

    label: str
    kind: str
    slot: str
    start: Callable[[World, int], Work]
    ready: Callable[[World], bool]
    copies: int = 1
    running: int = 0
    done: bool = False


@dataclass(eq=False)
class Worker:
    number: int
    task: Task
    work: Work
    step: str | Step

    @property
    def ready(self) -> bool:
        return isinstance(self.step, str) or self.step.ready()


Option = Task | Worker
#: What gets done in every history; the others may be about a file that was overwritten before anyone had sealed it.
NEEDS_NOTHING = {"land", "erase", "maintain", "read", "config"}


class Chooser:
    """Who goes next: here always the first who can."""

    def pick(self, options: Sequence[Option], last: Option | None) -> Option:
        return last if last in options else options[0]

    def crash(self, live: Sequence[Worker]) -> Worker | None:
        """A worker that dies before its next step, if any."""
        return None

    def chance(self, what: str) -> bool:
        """Whether a misfortune happens."""
        return False


class Simulation:
    """Runs one history under one chooser and holds the outcome against the oracle."""

    def __init__(self, history: History, chooser: Chooser, defects: Iterable[Defect] = ()) -> None:
        self.history, self.chooser = history, chooser
        self.world = World(defects, slot_rule=history.slot_rule, chance=chooser.chance)
        self.tasks = tasks_of(self, history)
        self.live: list[Worker] = []
        self.schedule: list[str] = []
        self._started = 0
        self._last: Option | None = None

    def run(self) -> None:
        """To the end, and check.

        Raises:
            BrokenError: with what is wrong.
        """
        for _ in range(6):
            self._run_until_idle()
            if not self._reopen():
                break
        else:
            raise BrokenError("A delivery is never decided.")
        if never := [task.label for task in self.tasks if not task.done and task.kind in NEEDS_NOTHING]:
            raise BrokenError(f"Never done: {never}.")
        self._check()

    def run_again(self) -> None:
        """Everything once more, which must change nothing.

        Raises:
            BrokenError: with what is wrong.
        """
        before = {key: row.content for key, row in self.world.silver.current.rows.items()}
        for task in self.tasks:
            if task.done and task.kind in {"attempt", "erase"}:
                task.done = False
        self._run_until_idle()
        if before != {key: row.content for key, row in self.world.silver.current.rows.items()}:
            raise BrokenError("Doing everything once more changed silver.")
        self._check()

    def quiet(self, slots: Sequence[str]) -> bool:
        """Whether nothing is left to do for these slots."""
        settled = all(self.world.decided(i) for slot in slots for i in self.world.slots.get(slot, {}).values())
        return settled and not any(t.slot in slots and (not t.done or t.running) for t in self.tasks)

    def _run_until_idle(self) -> None:
        while options := self._options():
            if len(self.schedule) > 5000:
                raise BrokenError("This never ends.")
            if dying := self.chooser.crash(self.live):
                self._end(dying, f"dies before it {_label(dying.step)}")
                continue
            chosen = self._last = self.chooser.pick(options, self._last)
            if isinstance(chosen, Task):
                chosen = self._last = self._start(chosen)
            else:
                self._advance(chosen)
        if self.live:
            raise BrokenError("Workers wait for each other.")

    def _options(self) -> list[Option]:
        options: list[Option] = [worker for worker in self.live if worker.ready]
        if len(self.live) < self.history.workers or not options:
            options += [t for t in self.tasks if not t.done and t.running < t.copies and t.ready(self.world)]
        return options

    def _start(self, task: Task) -> Worker:
        self._started += 1
        task.running += 1
        work = task.start(self.world, self._started)
        worker = Worker(self._started, task, work, "starts")
        self.world.live[worker.number] = task.kind
        self.live.append(worker)
        self._advance(worker)
        return worker

    def _advance(self, worker: Worker) -> None:
        self.schedule.append(f"w{worker.number} {worker.task.label}: {_label(worker.step)}")
        try:
            worker.step = next(worker.work)
        except StopIteration as end:
            worker.task.done |= end.value
            self._end(worker, "is done" if end.value else "gives up")

    def _end(self, worker: Worker, how: str) -> None:
        self.schedule.append(f"w{worker.number} {worker.task.label}: {how}")
        worker.work.close()
        worker.task.running -= 1
        self.live.remove(worker)
        del self.world.live[worker.number]
        release(self.world, worker.number)

    def _reopen(self) -> bool:
        """A registered delivery whose worker died is found by the next run over its slot."""
        left = {slot for slot, places in self.world.slots.items() if not all(map(self.world.decided, places.values()))}
        for task in self.tasks:
            if task.label.startswith("ingest") and task.slot in left:
                task.done = False
        return bool(left)

    def _check(self) -> None:
        if wrong := [*_wrong_rows(self.world, self.history), *_wrong_traces(self.world, self.history)]:
            raise BrokenError(" ".join(wrong))


def _label(step: str | Step) -> str:
    return step if isinstance(step, str) else step.label


def tasks_of(simulation: Simulation, history: History) -> list[Task]:
    """Each operation's tasks, with what they have to wait for."""
    tasks: list[Task] = []
    landed: dict[str, Task] = {}
    for op in history.operations:
        if op.kind == "land":
            file: File = op.args[0]
            landing, ingesting = _landing(file, landed.get(file.slot), op.copies)
            landed[file.slot] = landing
            tasks += [landing, ingesting]
        else:
            tasks.append(_task(simulation, op))
    return tasks


def _landing(file: File, before: Task | None, copies: int) -> tuple[Task, Task]:
    """A file lands once the earlier one of its name was read, and is then ingested by someone."""
    landing = Task(
        f"land {file.file_id}", "land", file.slot, lambda world, me: land(world, me, file),
        lambda world: before is None or (before.done and before.label.removeprefix("land ") in world.was_read),
    )  # fmt: skip
    ingesting = Task(
        f"ingest {file.slot}", "attempt", file.slot, lambda world, me: ingest(world, me, file.slot),
        lambda _world: landing.done, copies,
    )  # fmt: skip
    return landing, ingesting


_WORK: dict[str, tuple[str, Callable[..., Work]]] = {
    "toggle": ("attempt", toggle),
    "release": ("attempt", release_held),
    "repair": ("attempt", repair),
    "discard": ("discard", discard),
    "erase": ("erase", erase),
    "maintain": ("maintain", maintain),
    "prune": ("prune", prune),
    "read": ("read", read),
    "config": ("config", new_config),
}


def _task(simulation: Simulation, op: Op) -> Task:
    kind, work = _WORK[op.kind]
    args = (str(op), *op.args) if op.kind == "repair" else op.args
    slot = op.args[0].partition("[")[0] if op.kind in {"toggle", "release", "repair", "discard"} else ""
    return Task(
        str(op), kind, slot, lambda world, me: work(world, me, *args), lambda world: _possible(simulation, world, op),
        op.copies,
    )  # fmt: skip


def _possible(simulation: Simulation, world: World, op: Op) -> bool:
    """Whether what an operation is about is there yet."""
    target = op.args[0]
    if op.late and not all(task.done for task in simulation.tasks if task.label.startswith("ingest")):
        return False
    if op.kind == "toggle":
        before = world.silver.current.transactions.get(f"revert/{target}", 0)
        return target in world.manifests and world.decided(target) and before >= op.args[1] - 1
    if op.kind == "release":
        return target in world.manifests and world.decided(target)
    if op.kind in {"repair", "discard"}:
        return any((row.file_id, row.record_no) == op.args[:2] for row in world.quarantine)
    if op.kind == "prune":
        return world.has(Defect.SIGHTINGS_PRUNED_TO_LATEST) or simulation.quiet(op.args[1])
    return True


# --- the oracle -----------------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """What silver must show, as a function of deliveries, pins and decisions."""

    rows: dict[Key, str]
    states: dict[str, int]


def truth(world: World, history: History) -> Truth:
    """Knows nothing of steps: of each member the active record with the greatest sequence."""
    states: dict[str, int] = {}
    best: dict[Key, Sighting] = {}
    released = {args[0] for args in history.of("release")}
    reverts = {args[0]: args[1] for args in sorted(history.of("toggle"), key=lambda a: a[1])}
    for slot in world.slots:
        last: Delivery | None = None
        base: set[str] = set()
        for delivery in world.of_slot(slot):
            if delivery.file.fails:
                continue
            own, accepted, rejected = delivery.read(delivery.config)
            held = len(rejected) > accepted or (history.slot_rule and len(base - own.keys()) > len(own))
            if not held:
                base = set(own)
            states[delivery.file_id] = HELD if held and delivery.file_id not in released else APPLIED
            if states[delivery.file_id] == APPLIED and reverts.get(delivery.file_id, 0) % 2 == 0:
                last = delivery
        if last:
            says = [*last.read(last.config).own.values()]
            says += [r.sighting for r in world.repaired.values() if r.delivery.file_id == last.file_id]
            for s in says:
                if (s.client, s.member) not in best or s.sequence > best[s.client, s.member].sequence:
                    best[s.client, s.member] = s
    erased = {tuple(args) for args in history.of("erase")}
    return Truth({key: s.content for key, s in best.items() if key not in erased}, states)


def _wrong_rows(world: World, history: History) -> Iterable[str]:
    """Silver against the oracle, the vault and its own change feed."""
    expected, silver = truth(world, history), world.silver.current
    rows = {key: row.content for key, row in silver.rows.items()}
    if rows != expected.rows:
        yield f"Silver holds {rows}, but should hold {expected.rows}."
    states = {i: silver.state(i) for i in world.manifests if silver.state(i)}
    if states != expected.states:
        yield f"Silver's states are {states}, but should be {expected.states}."
    if missing := without_value(world, silver.rows.values(), world.vault):
        yield f"The vault has no right value for {missing}."
    replayed: dict[Key, str] = {}
    for changes in world.silver.feed:
        for key, old, new in changes:
            if (old and old.content) == (new and new.content):
                yield f"The change feed has a change of {key} that changes nothing."
            replayed.pop(key, None)
            if new:
                replayed[key] = new.content
    if replayed != rows:
        yield f"The change feed leads to {replayed}, but silver holds {rows}."


def _wrong_traces(world: World, history: History) -> Iterable[str]:
    """Audit, quarantine, numbers, and what erasure leaves."""
    for delivery in world.manifests.values():
        yield from _wrong_audit(world, delivery)
    found = Counter((row.file_id, row.record_no, row.state) for row in world.quarantine)
    expected = Counter(
        (d.file_id, number, world.rulings.get((d.file_id, number), "open"))
        for d in world.manifests.values() if d.file.fails != "early" for number in d.read(d.config).rejected
    )  # fmt: skip
    if found != expected:
        yield f"Quarantine holds {dict(found)}, but should hold {dict(expected)}."
    for slot, places in world.slots.items():
        yield from _wrong_numbers(world, slot, places)
    for client, member in history.of("erase"):
        where = [p for p in world.vault.values() if p.client == client and any(m == member for _, m in p.values)]
        if where or any((s.client, s.member) == (client, member) for s in world.sightings):
            yield f"{member} was erased, but is left in the vault or the sightings."


def _wrong_audit(world: World, delivery: Delivery) -> Iterable[str]:
    """One row, of silver's state and with the counts of the commit that decided; and these add up."""
    said = world.silver.decision(delivery.file_id)
    status = "failed" if said is None else "held" if said.state == HELD else "succeeded"
    if world.audit.get(delivery.file_id) != [AuditRow(delivery.file_id, status, said.counts if said else {})]:
        yield f"Audit says {world.audit.get(delivery.file_id)}, but silver says {said}."
    if not said or said.state == HELD:
        return
    parts = Counter(said.counts)
    accepted = parts.pop("accepted")
    if accepted != sum(parts.values()):
        yield f"{delivery.file_id}: {accepted} accepted, but accounted for {dict(parts)}."
    changes = world.silver.feed[max(n for n, s in enumerate(world.silver.log) if s is said)]
    own = sum(1 for _, _, new in changes if new and new.source == delivery.file_id)
    if own != parts["inserted"] + parts["updated"]:
        yield f"{delivery.file_id} changed {own} rows, but counts {dict(parts)}."


def _wrong_numbers(world: World, slot: str, places: Mapping[int, str]) -> Iterable[str]:
    """Each number once, without a gap, in the order of arrival."""
    deliveries = world.of_slot(slot)
    if [d.number for d in deliveries] != [*range(1, len(places) + 1)]:
        yield f"{slot}: the numbers are {[d.number for d in deliveries]} of {len(places)} reserved."
    ids = [d.file_id for d in deliveries]
    for at, later in enumerate(ids):
        for earlier in ids[:at]:
            last = len(world.landed) - 1 - world.landed[::-1].index(later)
            if world.landed.index(earlier) > last:
                yield f"{slot}: {earlier} is numbered before {later}, but came after it."
