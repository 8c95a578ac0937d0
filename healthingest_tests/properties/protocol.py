"""The protocol of the design ("Order, re-runs and crashes") as a model: tables are dicts, a step is what is atomic.

A worker is a generator that yields before each of its steps and says what it is about to do; whoever runs it may run
others first, or drop it there: a crash. `Defect` names what may be built wrong on purpose, so that the model can be
shown to notice. Tests and the making of histories are in `test_protocol.py`.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from typing import NamedTuple

HELD, APPLIED = 1, 2
RANK = {"failed": 1, "held": 2, "succeeded": 3}


class Defect(Enum):
    """One wrong turn each; the number is that of the counterexample in `facts/convergence.md`, if it has one."""

    VAULT_REPLACED = "1: a vault part is replaced under one name"
    HELD_COUNTED = "2: sightings of held deliveries count"
    UNDECIDED_COUNTED = "2: sightings of failed and undecided deliveries count"
    SUPERSEDED_COUNTED = "3: sightings of superseded deliveries count"
    REVERT_OF_OWN_ROWS = "4: a revert looks only at rows that the reverted delivery set"
    REVERT_OF_OWN_MEMBERS = "5: a revert recomputes only the reverted delivery's own members"
    SIGHTINGS_BEFORE_SILVER = "6: others' sightings are read before silver"
    SIGHTINGS_KEPT = "7: after a conflict the sightings are not read again"
    SEQUENCE_PREDICATE = "8: the merge refuses a lower sequence"
    DECIDED_TWICE = "9: a worker does not look whether the delivery was decided meanwhile"
    FAILED_OVER_SUCCESS = "9: the last audit row wins, also a failed one"
    LEDGER_BEFORE_SILVER = "10: the erasure ledger is read before the snapshot"
    LEDGER_AFTER_ERASURE = "10: the ledger is written after silver's commit"
    ERASURE_WITHOUT_NUMBER = "10: an erasure commits without the client's transaction"
    ERASURE_IGNORES_MAINTENANCE = "11: an erasure does not wait for maintenance that loaded silver before it"
    ERASURE_IGNORES_ATTEMPTS = "11: an erasure does not wait for attempts begun before it"
    MAINTENANCE_DROPS_ALL = "12: maintenance drops parts that are about to be committed"
    MAINTENANCE_WITHOUT_GRACE = "12: maintenance drops parts under a reader of an older silver"
    CONFIG_NOT_PINNED = "13: each attempt reads with the config of the moment"
    QUARANTINE_REPLACED = "14: a re-run replaces the delivery's quarantine rows"
    SIGHTINGS_PRUNED_TO_LATEST = "15: pruning keeps the latest sighting of each member only"
    NUMBER_GIVEN_TWICE = "16: delivery_no is max + 1"
    NUMBERED_OUT_OF_ORDER = "16: delivery_no is put-if-absent, but without the slot's lock"
    SIGHTED_AFTER_COMMIT = "steps: own sightings follow the commit"
    NO_EMPTY_COMMIT = "steps: nothing is committed when nothing changed"
    EMPTY_COMMIT_UNNUMBERED = "steps: a commit that changes nothing leaves out the client's transaction"
    COMMIT_BY_PATH = "steps: a commit by path, or with a refreshed handle"
    # Found while this model was built; not in facts/convergence.md.
    SLOT_DECIDED_IN_ANY_ORDER = "new: a re-delivery is judged before the earlier ones of its slot were"
    TAKE_BACK_BY_SILVER = "new: what a re-delivery takes back is counted in silver, not in its slot"
    STALE_NOT_RECOMPUTED = "new: a re-delivery's own stale members keep the superseded delivery's row"
    REPAIR_UNDER_FILE_ID = "new: a repaired record's value is stored under its file's id"
    SIGHTINGS_NOT_SUPPRESSED = "new: own sightings are written without a look at the erasure ledger"
    SWEEPS_WITHOUT_LOCK = "new: two erasures sweep the vault at once"
    PARTS_UNLINKED = "new: parts are removed after a conflict that was only a lost answer"
    RESERVATION_LEFT = "new: nobody registers what a dead worker reserved a number for"


# --- what is delivered ----------------------------------------------------------------------------------------


class Record(NamedTuple):
    """One record: `raw` is A, B or C; or ? if it is rejected."""

    member: str
    raw: str
    date: int


@dataclass(frozen=True)
class File:
    """A file as landed; its slot is its name: a client and a day."""

    client: str
    day: int
    records: tuple[Record, ...]
    #: "": readable; "early": fails before anything is written; "late": fails for good after its sightings.
    fails: str = ""

    @property
    def slot(self) -> str:
        return f"{self.client}{self.day}"

    @cached_property
    def file_id(self) -> str:
        """A function of name and content."""
        said = " ".join(f"{r.member}={r.raw}{'' if r.date == self.day else f'@{r.date}'}" for r in self.records)
        return f"{self.slot}[{said}{'!' * bool(self.fails)}{self.fails}]"


class Sighting(NamedTuple):
    """Delivery (or repair) `source` said this of a member. Silver's row is the sighting that set it."""

    source: str
    client: str
    member: str
    content: str
    sequence: tuple[int, ...]


class Reading(NamedTuple):
    """What a delivery says under one config."""

    own: dict[str, Sighting]
    accepted: int
    rejected: tuple[int, ...]


def content_of(raw: str, config: int) -> str:
    """What standardising makes of a value: each version of the config makes something else of it."""
    return "ABC"[("ABC".index(raw) + config) % 3]


@dataclass(frozen=True)
class Delivery:
    """A registered file, with what was pinned then."""

    file: File
    number: int
    config: int

    @property
    def file_id(self) -> str:
        return self.file.file_id

    def read(self, config: int) -> Reading:
        """Of each member the record with the greatest sequence."""
        own: dict[str, Sighting] = {}
        accepted, rejected = 0, []
        for number, record in enumerate(self.file.records, 1):
            if record.raw == "?":
                rejected.append(number)
                continue
            accepted += 1
            sequence = self.sequence(record.date, number)
            if record.member not in own or sequence > own[record.member].sequence:
                content = content_of(record.raw, config)
                own[record.member] = Sighting(self.file_id, self.file.client, record.member, content, sequence)
        return Reading(own, accepted, tuple(rejected))

    def sequence(self, date: int, record_no: int, repair_no: int = 0) -> tuple[int, ...]:
        return (date, self.file.day, self.number, record_no, repair_no)


def parent_of(source: str) -> str:
    """The delivery that a repair belongs to; a delivery's own id gives itself."""
    return source.partition("+")[0]


# --- the tables -----------------------------------------------------------------------------------------------

Key = tuple[str, str]  # client, member


@dataclass(frozen=True)
class Version:
    """Silver at one version: rows, numbers and states from one handle. Never changed after it was made."""

    rows: Mapping[Key, Sighting] = field(default_factory=dict)
    transactions: dict[str, int] = field(default_factory=dict)
    #: How each delivery was judged at first (from the commits' metadata); a release does not change it.
    judged: Mapping[str, int] = field(default_factory=dict)

    def number(self, client: str) -> int:
        return self.transactions.get(f"client/{client}", 0)

    def state(self, source: str) -> int | None:
        return self.transactions.get(f"file/{source}")


class Said(NamedTuple):
    """What a commit's metadata says of the delivery that it decides."""

    file_id: str
    state: int
    counts: dict[str, int]


@dataclass
class Silver:
    """The table: its versions, its change feed and its log's metadata."""

    current: Version = field(default_factory=Version)
    feed: list[list[tuple[Key, Sighting | None, Sighting | None]]] = field(default_factory=list)
    log: list[Said | None] = field(default_factory=list)

    def commit(
        self, handle: Version, client: str, changes: Mapping[Key, Sighting | None], sets: Mapping[str, int],
        said: Said | None, *, guarded: bool = True, numbered: bool = True,
    ) -> bool:  # fmt: skip
        """Delta's part: refuse if another commit moved the client's number since `handle` was loaded."""
        if guarded and handle.number(client) != self.current.number(client):
            return False
        rows, states, judged = dict(self.current.rows), dict(self.current.transactions), dict(self.current.judged)
        self.feed.append([(key, rows.get(key), new) for key, new in changes.items()])
        for key, new in changes.items():
            if new is None:
                rows.pop(key, None)
            else:
                rows[key] = new
        states |= sets
        if numbered:
            states[f"client/{client}"] = handle.number(client) + 1
        if said:
            judged.setdefault(said.file_id, said.state)
        self.log.append(said)
        self.current = Version(rows, states, judged)
        return True

    def decision(self, file_id: str) -> Said | None:
        """What the latest commit that decided a delivery said."""
        return next((said for said in reversed(self.log) if said and said.file_id == file_id), None)


class Part(NamedTuple):
    """A vault part: its number in its name, and values by (source, member)."""

    client: str
    number: int
    values: dict[tuple[str, str], str]


@dataclass
class Rejected:
    """A quarantine row."""

    file_id: str
    record_no: int
    state: str = "open"
    #: Which repair was made: key of the steward's task -> repair number.
    repairs: dict[str, int] = field(default_factory=dict)


class AuditRow(NamedTuple):
    file_id: str
    status: str
    counts: dict[str, int]


class Repaired(NamedTuple):
    """The record that a steward put in a rejected one's place, pinned with its number."""

    delivery: Delivery
    record_no: int
    repair_no: int
    member: str
    raw: str

    @property
    def source(self) -> str:
        return f"{self.delivery.file_id}+{self.record_no}.{self.repair_no}"

    @property
    def sighting(self) -> Sighting:
        record = self.delivery.file.records[self.record_no - 1]
        sequence = self.delivery.sequence(record.date, self.record_no, self.repair_no)
        content = content_of(self.raw, self.delivery.config)
        return Sighting(self.source, self.delivery.file.client, self.member, content, sequence)


class World:
    """All tables, and what the model itself knows of the workers."""

    def __init__(
        self, defects: Iterable[Defect] = (), *, slot_rule: bool = False, chance: Callable[[str], bool] | None = None
    ) -> None:
        """`slot_rule`: a re-delivery that takes back more than it brings is held, and slots are decided in order.

        `chance` says whether a misfortune (a full disk, a lost answer) happens here.
        """
        self.defects = frozenset(defects)
        self.slot_rule = slot_rule
        self.chance = chance or (lambda _what: False)
        self.config: Counter[str] = Counter()
        # The landing zone and bronze.
        self.landing: dict[str, File] = {}
        self.landed: list[str] = []
        self.was_read: set[str] = set()
        self.sealed: dict[str, File] = {}
        self.slots: dict[str, dict[int, str]] = {}
        self.manifests: dict[str, Delivery] = {}
        self.repaired: dict[str, Repaired] = {}
        # The tables.
        self.quarantine: list[Rejected] = []
        self.sightings: list[Sighting] = []
        self.appended: set[str] = set()
        self.silver = Silver()
        self.ledger: set[Key] = set()
        self.vault: dict[tuple[str, int, int], Part] = {}
        self.audit: dict[str, list[AuditRow]] = {}
        # Who works, and what the steward was told: for the checks.
        self.live: dict[int, str] = {}
        self.locks: dict[str, int] = {}
        self.rulings: dict[tuple[str, int], str] = {}
        self._nonce = 0
        self._readings: dict[tuple[str, int], Reading] = {}

    def has(self, defect: Defect) -> bool:
        return defect in self.defects

    def reading(self, delivery: Delivery) -> Reading:
        """Parse a delivery from bronze, under the config that was pinned when it was registered."""
        config = self.config[delivery.file.client] if self.has(Defect.CONFIG_NOT_PINNED) else delivery.config
        known = self._readings.get((delivery.file_id, config))
        if known is None:
            known = self._readings[delivery.file_id, config] = delivery.read(config)
        return known

    def value(self, source: str, member: str) -> str:
        """What goes into the vault for a member: the value as bronze (or the repair) has it."""
        if source in self.repaired:
            return self.repaired[source].sighting.content
        return self.reading(self.manifests[source]).own[member].content

    def of_slot(self, slot: str) -> list[Delivery]:
        return sorted((d for d in self.manifests.values() if d.file.slot == slot), key=lambda d: d.number)

    def put_part(self, client: str, source: str, number: int, values: dict[tuple[str, str], str]) -> tuple:
        """Create `<source>-<number>-<nonce>`."""
        self._nonce += 1
        name = (source, 0, 0) if self.has(Defect.VAULT_REPLACED) else (source, number, self._nonce)
        self.vault[name] = Part(client, number, values)
        return name

    def decided(self, file_id: str) -> bool:
        """Whether nothing more will come of a delivery unless someone decides otherwise."""
        delivery = self.manifests.get(file_id)
        failed = delivery is not None and delivery.file.fails and file_id in self.audit
        unseen = self.has(Defect.NO_EMPTY_COMMIT) and file_id in self.audit
        return bool(failed or unseen or self.silver.current.state(file_id))


# --- steps ----------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What a worker is about to do, and when it can."""

    label: str
    ready: Callable[[], bool]


Work = Generator[str | Step, None, bool]  # True: done; False: it failed and must be tried again


def take(world: World, me: int, lock: str) -> Generator[str | Step, None, None]:
    """Take a lock; a crash gives it back."""
    yield Step(f"takes the lock of {lock}", lambda: lock not in world.locks)
    world.locks[lock] = me


def release(world: World, me: int) -> None:
    """Give back a worker's locks."""
    for lock in [name for name, owner in world.locks.items() if owner == me]:
        del world.locks[lock]


# --- register -------------------------------------------------------------------------------------------------


def land(world: World, _me: int, file: File) -> Work:
    """The client writes a file, over what has that name."""
    yield f"lands {file.file_id}"
    world.landing[file.slot] = file
    world.landed.append(file.file_id)
    return True


def register(world: World, me: int, slot: str) -> Generator[str | Step, None, str]:
    """Take what has landed into bronze: its bytes, then its number in the slot, then the manifest with the pins.

    All under the slot's lock, so that numbers follow arrival; the next one finishes what a dead worker left.
    """
    unlocked = world.has(Defect.NUMBERED_OUT_OF_ORDER) or world.has(Defect.NUMBER_GIVEN_TWICE)
    if not unlocked:
        yield from take(world, me, slot)
    yield "reads the landed file"
    file = world.landing[slot]
    world.was_read.add(file.file_id)
    places = world.slots.setdefault(slot, {})
    if file.file_id not in world.manifests:
        yield "seals the bytes"
        world.sealed[file.file_id] = file
        yield "reserves a number"
        if file.file_id not in places.values():
            number = len(places) + 1
            if world.has(Defect.NUMBER_GIVEN_TWICE):
                yield "writes the number"
            places[number] = file.file_id
            if world.has(Defect.NUMBER_GIVEN_TWICE):
                world.manifests.setdefault(file.file_id, Delivery(file, number, world.config[file.client]))
    left = {n: i for n, i in places.items() if i not in world.manifests}
    if world.has(Defect.RESERVATION_LEFT):
        left = {n: i for n, i in left.items() if i == file.file_id}
    for number, file_id in left.items():
        yield "writes the manifest"
        config = world.config[file.client]
        world.manifests.setdefault(file_id, Delivery(world.sealed[file_id], number, config))
    if not unlocked:
        release(world, me)
    return file.file_id


# --- one delivery ---------------------------------------------------------------------------------------------


def ingest(world: World, me: int, slot: str) -> Work:
    """Register what has landed and decide all of the slot's deliveries, earlier ones first."""
    own = yield from register(world, me, slot)
    deliveries = world.of_slot(slot)
    if not world.slot_rule or world.has(Defect.SLOT_DECIDED_IN_ANY_ORDER):
        deliveries.sort(key=lambda d: d.file_id != own)
    for delivery in deliveries:
        if not (yield from attempt(world, me, delivery)):
            return False
    return True


def attempt(world: World, me: int, delivery: Delivery) -> Work:
    """One delivery's way from bronze to its audit row."""
    file_id = delivery.file_id
    yield f"looks whether {file_id} is decided"
    if world.silver.current.state(file_id):
        return (yield from project(world, file_id))
    if delivery.file.fails == "early":
        return (yield from fail(world, file_id))
    reading = world.reading(delivery)
    yield "quarantines once"
    quarantine(world, file_id, reading.rejected)
    if delivery.file.fails == "late":
        yield from sight(world, file_id, reading.own.values())
        return (yield from fail(world, file_id))
    done = yield from commit(world, me, Decide(world, delivery, reading))
    if not done:
        yield from fail(world, file_id)
        return False
    if world.has(Defect.SIGHTED_AFTER_COMMIT):
        yield from sight(world, file_id, reading.own.values())
    return (yield from project(world, file_id))


def quarantine(world: World, file_id: str, rejected: Sequence[int]) -> None:
    if world.has(Defect.QUARANTINE_REPLACED):
        world.quarantine = [row for row in world.quarantine if row.file_id != file_id]
    elif f"quarantine/{file_id}" in world.appended:
        return
    world.appended.add(f"quarantine/{file_id}")
    world.quarantine += [Rejected(file_id, number) for number in rejected]


def sight(world: World, source: str, own: Iterable[Sighting]) -> Generator[str, None, None]:
    """Append own sightings, once; an erased member's would outlive the sweep."""
    yield "reads the ledger for its sightings"
    erased = frozenset() if world.has(Defect.SIGHTINGS_NOT_SUPPRESSED) else frozenset(world.ledger)
    yield "appends its sightings once"
    if f"sightings/{source}" not in world.appended:
        world.appended.add(f"sightings/{source}")
        world.sightings += [s for s in own if (s.client, s.member) not in erased]


def fail(world: World, file_id: str) -> Work:
    yield "writes a failed audit row"
    put_audit(world, AuditRow(file_id, "failed", {}))
    return True


def project(world: World, file_id: str) -> Work:
    """Audit is a projection of silver's states and of what the deciding commit said."""
    yield "reads silver's log"
    said = world.silver.decision(file_id)
    if said is None:  # only where the empty commit is left out
        said = Said(file_id, APPLIED, {})
    yield "writes the audit row"
    put_audit(world, AuditRow(file_id, "held" if said.state == HELD else "succeeded", said.counts))
    return True


def put_audit(world: World, row: AuditRow) -> None:
    """Rank only rises."""
    known = world.audit.get(row.file_id)
    if known and RANK[known[0].status] >= RANK[row.status] and not world.has(Defect.FAILED_OVER_SUCCESS):
        return
    world.audit[row.file_id] = [row]


# --- what silver must show ------------------------------------------------------------------------------------


def active(world: World, transactions: Mapping[str, int]) -> set[str]:
    """Applied, not reverted, the latest such of its slot; a repair as long as its delivery is."""
    latest: dict[str, Delivery] = {}
    for file_id, delivery in world.manifests.items():
        if transactions.get(f"file/{file_id}") != APPLIED or transactions.get(f"revert/{file_id}", 0) % 2:
            continue
        slot = delivery.file.slot
        if slot not in latest or delivery.number > latest[slot].number:
            latest[slot] = delivery
    found = {delivery.file_id for delivery in latest.values()}
    return found | {r for r in world.repaired if transactions.get(f"file/{r}") and parent_of(r) in found}


def wrongly_counted(world: World, transactions: Mapping[str, int]) -> set[str]:
    """Deliveries that are not active, but make others' records stale under a defect."""
    found: set[str] = set()
    for file_id in world.manifests:
        state = transactions.get(f"file/{file_id}")
        if world.has(Defect.HELD_COUNTED) and state == HELD:
            found.add(file_id)
        if world.has(Defect.UNDECIDED_COUNTED) and state is None:
            found.add(file_id)
        if world.has(Defect.SUPERSEDED_COUNTED) and state == APPLIED:
            found.add(file_id)
    return found


@dataclass
class Change:
    """A change of which deliveries are active; everything but maintenance is one."""

    world: World
    client: str
    #: The delivery or repair that it is about, and that one's own sightings.
    source: str = ""
    own: Mapping[str, Sighting] = field(default_factory=dict)

    def done(self, silver: Version) -> bool:
        """Whether silver has it already."""
        return False

    def sets(self, silver: Version) -> dict[str, int]:
        """The transactions, beside the client's, that its commit carries."""
        return {}

    def members(self, silver: Version, seen: Sequence[Sighting], flipped: set[str]) -> set[str]:
        """Whom it concerns: everyone sighted by any delivery whose activity changes."""
        return {s.member for s in seen if s.source in flipped}

    def said(self, plan: "Plan", silver: Version, erased: frozenset[Key]) -> Said | None:
        """What its commit's metadata records."""
        return None


class Plan(NamedTuple):
    """What one snapshot led to."""

    sets: dict[str, int]
    changes: dict[Key, Sighting | None]
    best: dict[str, Sighting]


def plan(change: Change, silver: Version, seen: Sequence[Sighting], erased: frozenset[Key]) -> Plan:
    """Recompute the members concerned: of each the active sighting with the greatest sequence."""
    world, client = change.world, change.client
    sets = change.sets(silver)
    before, after = active(world, silver.transactions), active(world, silver.transactions | sets)
    rivals = after | wrongly_counted(world, silver.transactions | sets)
    seen = [s for s in seen if s.source != change.source and s.client == client] + list(change.own.values())
    members = change.members(silver, seen, before ^ after)
    best: dict[str, Sighting] = {}
    for s in seen:
        known = best.get(s.member)
        if s.source in rivals and (client, s.member) not in erased and (not known or s.sequence > known.sequence):
            best[s.member] = s
    changes: dict[Key, Sighting | None] = {}
    for member in sorted(members):
        old, new = silver.rows.get((client, member)), best.get(member)
        if new and new.source not in after:  # only under a defect: it cannot be shown, but makes the others stale
            continue
        if (old and old.content) != (new and new.content):
            changes[client, member] = new
    return Plan(sets, changes, best)


def commit(world: World, me: int, change: Change) -> Work:
    """Compare with one snapshot of silver and commit against it; after a conflict everything is read again."""
    seen: list[Sighting] | None = None
    erased: frozenset[Key] = frozenset()
    tried = False
    while True:
        if world.has(Defect.LEDGER_BEFORE_SILVER):
            yield "reads the ledger"
            erased = frozenset(world.ledger)
        if world.has(Defect.SIGHTINGS_BEFORE_SILVER):
            yield "reads the sightings"
            seen = list(world.sightings)
        yield "loads silver"
        silver = world.silver.current
        if change.done(silver) and not (tried and world.has(Defect.DECIDED_TWICE)):
            return True
        if not world.has(Defect.SIGHTINGS_BEFORE_SILVER) and not (seen and world.has(Defect.SIGHTINGS_KEPT)):
            yield "reads the sightings"
            seen = list(world.sightings)
        if not world.has(Defect.LEDGER_BEFORE_SILVER):
            yield "reads the ledger"
            erased = frozenset(world.ledger)
        planned = apply_defects(change, plan(change, silver, seen or [], erased), silver)
        parts = yield from put_values(world, change.client, silver.number(change.client) + 1, planned)
        if parts is None:
            return False
        if isinstance(change, Decide) and not world.has(Defect.SIGHTED_AFTER_COMMIT):
            # The system does this beside the comparison; here it comes as late as it may.
            yield from sight(world, change.source, change.own.values())
        tried = True
        if (yield from try_commit(world, change, silver, planned, erased)):
            return True
        if world.has(Defect.PARTS_UNLINKED):
            yield "removes its parts"
            for part in parts:
                world.vault.pop(part, None)


def apply_defects(change: Change, planned: Plan, silver: Version) -> Plan:
    """Two ways of changing less than the comparison asks for."""
    changes = planned.changes
    if change.world.has(Defect.SEQUENCE_PREDICATE) and isinstance(change, Decide):
        changes = {
            key: new for key, new in changes.items()
            if not new or key not in silver.rows or new.sequence > silver.rows[key].sequence
        }  # fmt: skip
    if change.world.has(Defect.STALE_NOT_RECOMPUTED) and isinstance(change, Decide):
        stale = {
            key for key, new in changes.items() if key[1] in change.own and (not new or new.source != change.source)
        }
        changes = {key: new for key, new in changes.items() if key not in stale}
    return planned._replace(changes=changes)


def put_values(world: World, client: str, number: int, planned: Plan) -> Generator[str, None, list[tuple] | None]:
    """One vault part for each delivery that values come from; None if the disk was full."""
    rows = [row for row in planned.changes.values() if row]
    parts = []
    for source in sorted({row.source for row in rows}):
        yield "writes a vault part"
        if world.chance("disk full"):
            return None
        values = {
            (vault_id(world, source), r.member): world.value(source, r.member) for r in rows if r.source == source
        }
        parts.append(world.put_part(client, source, number, values))
    return parts


def vault_id(world: World, source: str) -> str:
    return parent_of(source) if world.has(Defect.REPAIR_UNDER_FILE_ID) else source


def try_commit(
    world: World, change: Change, silver: Version, planned: Plan, erased: frozenset[Key]
) -> Generator[str, None, bool]:
    empty = not planned.changes
    if empty and world.has(Defect.NO_EMPTY_COMMIT):
        return True
    unnumbered = (empty and world.has(Defect.EMPTY_COMMIT_UNNUMBERED)) or (
        isinstance(change, Erase) and world.has(Defect.ERASURE_WITHOUT_NUMBER)
    )
    yield "commits to silver"
    done = world.silver.commit(
        silver, change.client, planned.changes, planned.sets, change.said(planned, silver, erased),
        guarded=not unnumbered and not world.has(Defect.COMMIT_BY_PATH), numbered=not unnumbered,
    )  # fmt: skip
    return done and not world.chance("lost answer")


# --- the changes ----------------------------------------------------------------------------------------------


class Decide(Change):
    """Judge a delivery and apply it, or hold it."""

    def __init__(self, world: World, delivery: Delivery, reading: Reading) -> None:
        super().__init__(world, delivery.file.client, delivery.file_id, reading.own)
        self.delivery, self.reading = delivery, reading

    def done(self, silver: Version) -> bool:
        return silver.state(self.source) is not None

    def sets(self, silver: Version) -> dict[str, int]:
        return {f"file/{self.source}": HELD if self._held(silver) else APPLIED}

    def _held(self, silver: Version) -> bool:
        """More rejected than accepted; or, against the slot's earlier deliveries, more taken back than brought."""
        if len(self.reading.rejected) > self.reading.accepted:
            return True
        if not self.world.slot_rule:
            return False
        earlier = [
            d for d in self.world.of_slot(self.delivery.file.slot)
            if d.number < self.delivery.number and silver.judged.get(d.file_id) == APPLIED
        ]  # fmt: skip
        if not earlier:
            return False
        # From bronze: a sweep takes erased members out of the sightings, and a pruning others.
        left = self.world.reading(earlier[-1]).own.keys() - self.own.keys()
        if self.world.has(Defect.TAKE_BACK_BY_SILVER):
            left = {m for m in left if (row := silver.rows.get((self.client, m))) and row.source == earlier[-1].file_id}
        return len(left) > len(self.own)

    def said(self, plan: Plan, silver: Version, erased: frozenset[Key]) -> Said:
        """The whole accounting; exclusive, in the design's order."""
        state = plan.sets[f"file/{self.source}"]
        counts = Counter(accepted=self.reading.accepted)
        if state == HELD:
            return Said(self.source, state, counts)
        counts["duplicates"] = self.reading.accepted - len(self.own)
        for member in self.own:
            old, new = silver.rows.get((self.client, member)), plan.best.get(member)
            if (self.client, member) in erased:
                counts["suppressed"] += 1
            elif not new or new.source != self.source:
                counts["stale"] += 1
            elif not old:
                counts["inserted"] += 1
            else:
                counts["unchanged" if old.content == new.content else "updated"] += 1
        return Said(self.source, state, counts)


class Release(Decide):
    """A person applies a held delivery."""

    def done(self, silver: Version) -> bool:
        return silver.state(self.source) == APPLIED

    def _held(self, silver: Version) -> bool:
        return False


class Toggle(Change):
    """Revert a delivery (number odd), or undo that (even)."""

    def __init__(self, world: World, delivery: Delivery, number: int) -> None:
        super().__init__(world, delivery.file.client)
        self.file_id, self.number = delivery.file_id, number

    def done(self, silver: Version) -> bool:
        return silver.transactions.get(f"revert/{self.file_id}", 0) >= self.number

    def sets(self, silver: Version) -> dict[str, int]:
        return {f"revert/{self.file_id}": self.number}

    def members(self, silver: Version, seen: Sequence[Sighting], flipped: set[str]) -> set[str]:
        if self.world.has(Defect.REVERT_OF_OWN_ROWS) and self.number % 2:
            return {row.member for row in silver.rows.values() if row.source == self.file_id}
        if self.world.has(Defect.REVERT_OF_OWN_MEMBERS):
            flipped = {s for s in flipped if parent_of(s) == self.file_id}
        return super().members(silver, seen, flipped)


class Repair(Change):
    """Apply a repaired record: a small delivery of its own, active as long as its file is."""

    def __init__(self, world: World, repaired: Repaired) -> None:
        sighting = repaired.sighting
        super().__init__(world, sighting.client, repaired.source, {sighting.member: sighting})

    def done(self, silver: Version) -> bool:
        return silver.state(self.source) is not None

    def sets(self, silver: Version) -> dict[str, int]:
        return {f"file/{self.source}": APPLIED}


class Erase(Change):
    """Take one member out of silver; its commit is needed also where silver has no such row."""

    def __init__(self, world: World, client: str, member: str) -> None:
        super().__init__(world, client)
        self.member = member

    def members(self, silver: Version, seen: Sequence[Sighting], flipped: set[str]) -> set[str]:
        return {self.member}


# --- what people ask for --------------------------------------------------------------------------------------


def toggle(world: World, me: int, file_id: str, number: int) -> Work:
    """Revert a delivery, or undo it; a failed one has nothing to revert."""
    if world.manifests[file_id].file.fails:
        return True
    return (yield from commit(world, me, Toggle(world, world.manifests[file_id], number)))


def release_held(world: World, me: int, file_id: str) -> Work:
    """Apply a held delivery."""
    delivery = world.manifests[file_id]
    if delivery.file.fails:
        return True
    if not (yield from commit(world, me, Release(world, delivery, world.reading(delivery)))):
        return False
    return (yield from project(world, file_id))


def repair(world: World, me: int, key: str, file_id: str, record_no: int, member: str, raw: str) -> Work:
    """Put a right record in the place of a rejected one: quarantine's row decides, the rest can be repeated."""
    yield "claims the quarantine row"
    row = next(r for r in world.quarantine if (r.file_id, r.record_no) == (file_id, record_no))
    if row.state == "discarded":
        return True
    number = row.repairs.setdefault(key, len(row.repairs) + 1)
    row.state = world.rulings[file_id, record_no] = "released"
    repaired = Repaired(world.manifests[file_id], record_no, number, member, raw)
    world.repaired[repaired.source] = repaired
    yield from sight(world, repaired.source, [repaired.sighting])
    return (yield from commit(world, me, Repair(world, repaired)))


def discard(world: World, _me: int, file_id: str, record_no: int) -> Work:
    """A steward gives a rejected record up, unless someone released it."""
    yield "discards the quarantine row"
    row = next(r for r in world.quarantine if (r.file_id, r.record_no) == (file_id, record_no))
    if row.state == "open":
        row.state = world.rulings[file_id, record_no] = "discarded"
    return True


def erase(world: World, me: int, client: str, member: str) -> Work:
    """Ledger, silver, wait for who may not have seen either, sweep."""
    late = world.has(Defect.LEDGER_AFTER_ERASURE)
    if not late:
        yield "writes the ledger"
        world.ledger.add((client, member))
    change = Erase(world, client, member)
    if late:
        yield "commits the erasure first"
        key = (client, member)
        changes = {key: None} if key in world.silver.current.rows else {}
        world.silver.commit(world.silver.current, client, changes, {}, None)
        yield "writes the ledger"
        world.ledger.add(key)
    elif not (yield from commit(world, me, change)):
        return False
    kinds = {"attempt", "maintain"}
    if world.has(Defect.ERASURE_IGNORES_MAINTENANCE):
        kinds -= {"maintain"}
    if world.has(Defect.ERASURE_IGNORES_ATTEMPTS):
        kinds -= {"attempt"}
    begun = {worker for worker, kind in world.live.items() if kind in kinds}
    yield Step("waits for attempts begun before", lambda: not begun & world.live.keys())
    yield from sweep(world, me, client, member)
    return True


def readers_gone(world: World) -> Step:
    """The grace: whoever reads now reads to its end."""
    readers = {worker for worker, kind in world.live.items() if kind == "read"}
    return Step("waits for readers", lambda: not readers & world.live.keys())


def sweep(world: World, me: int, client: str, member: str) -> Generator[str | Step, None, None]:
    """Take the member out of all parts, those of lost attempts too, and out of the sightings."""
    if not world.has(Defect.SWEEPS_WITHOUT_LOCK):
        yield from take(world, me, f"sweeps of {client}")
    yield "lists parts with the member"
    found = {name: part for name, part in world.vault.items()
             if part.client == client and any(m == member for _, m in part.values)}  # fmt: skip
    for (source, number, _), part in found.items():
        yield "writes a part without the member"
        world.put_part(client, source, number, {k: v for k, v in part.values.items() if k[1] != member})
    if found:
        yield readers_gone(world)
    for name, part in found.items():
        yield "drops a part with the member"
        if world.vault.get(name) is part:
            del world.vault[name]
    yield "sweeps the sightings"
    world.sightings = [s for s in world.sightings if (s.client, s.member) != (client, member)]
    release(world, me)


def maintain(world: World, me: int, client: str) -> Work:
    """Consolidate the vault: what silver references goes to a new part, then old parts go.

    A part whose number silver has not reached may be about to be committed.
    """
    yield from take(world, me, f"maintenance of {client}")
    yield "loads silver"
    silver = world.silver.current
    yield "reads the vault"
    every = world.has(Defect.MAINTENANCE_DROPS_ALL)
    old = {name: part for name, part in world.vault.items()
           if part.client == client and (every or part.number <= silver.number(client))}  # fmt: skip
    wanted = {(vault_id(world, row.source), row.member) for row in silver.rows.values() if row.client == client}
    values = {key: value for part in old.values() for key, value in part.values.items() if key in wanted}
    yield "writes the consolidated part"
    if values:
        world.put_part(client, "consolidated", silver.number(client), values)
    if not world.has(Defect.MAINTENANCE_WITHOUT_GRACE):
        yield readers_gone(world)
    yield "drops old parts"
    for name in old:
        world.vault.pop(name, None)
    release(world, me)
    return True


def prune(world: World, _me: int, client: str, closed: Sequence[str]) -> Work:
    """Beyond the revert window (the `closed` slots) keep each member's latest active sighting only."""
    yield "loads silver"
    silver = world.silver.current
    yield "reads the sightings"
    seen = [s for s in world.sightings if s.client == client]
    if not world.has(Defect.SIGHTINGS_PRUNED_TO_LATEST):
        seen = [s for s in seen if world.manifests[parent_of(s.source)].file.slot in closed]
    kept: dict[str, Sighting] = {}
    counted = active(world, silver.transactions)
    for s in sorted(seen, key=lambda s: s.sequence):
        if s.source in counted:
            kept[s.member] = s
    gone = set(seen) - set(kept.values())
    yield "deletes old sightings"
    world.sightings = [s for s in world.sightings if s not in gone]
    return True


def new_config(world: World, _me: int, client: str) -> Work:
    yield f"changes the config of {client}"
    world.config[client] += 1
    return True


class BrokenError(AssertionError):
    """The protocol did not keep its word."""


def read(world: World, _me: int, client: str) -> Work:
    """A reader: silver first, then the vault, matched on (_file_id, token)."""
    yield "loads silver"
    rows = [row for row in world.silver.current.rows.values() if row.client == client]
    yield "lists the vault"
    names = list(world.vault)
    yield "reads the vault"
    if wrong := without_value(world, rows, names):
        raise BrokenError(f"A reader of an earlier silver finds no right value for {wrong}.")
    return True


def without_value(world: World, rows: Iterable[Sighting], names: Iterable[tuple]) -> list[Sighting]:
    """Rows whose value is missing, or not the one silver speaks of, in the parts listed before."""
    values: dict[tuple[str, str, str], set[str]] = {}
    for name in names:
        if part := world.vault.get(name):
            for (source, member), value in part.values.items():
                values.setdefault((part.client, source, member), set()).add(value)
    return [
        row for row in rows
        if (row.client, row.member) not in world.ledger
        and values.get((row.client, vault_id(world, row.source), row.member)) != {row.content}
    ]  # fmt: skip
