"""Order, re-runs and crashes, on the model in `protocol.py`: random histories, every schedule of a small one, and
defects planted one at a time, which must be found.

A seed gives a history and its schedule. A history that breaks is printed with both.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace

import pytest

from healthingest_tests.conftest import examples
from healthingest_tests.properties.protocol import BrokenError, Defect, File, Record
from healthingest_tests.properties.simulation import Chooser, History, Op, Option, Simulation, Worker


class Dice(Chooser):
    """A schedule, crashes and misfortunes by a seeded generator."""

    def __init__(self, dice: random.Random, history: History) -> None:
        self._dice, self._history, self._crashes = dice, history, history.crashes
        self._clock = 0
        self._asleep: dict[Option, int] = {}

    def pick(self, options: Sequence[Option], last: Option | None) -> Option:
        """Mostly anyone; but now and then a worker stands still while the others do a lot, or all they can."""
        self._clock += 1
        if last and self._dice.random() < self._history.stalls:
            self._asleep[last] = self._clock + self._dice.choice([8, 30, 10_000])
        awake = [option for option in options if self._asleep.get(option, 0) <= self._clock] or options
        if last in awake and self._dice.random() < self._history.sticky:
            return last
        return self._dice.choice(awake)

    def crash(self, live: Sequence[Worker]) -> Worker | None:
        if not self._crashes or not live or self._dice.random() > 0.04:
            return None
        self._crashes -= 1
        return self._dice.choice(live)

    def chance(self, what: str) -> bool:
        return self._dice.random() < self._history.misfortune


def broken(history: History, dice: random.Random, defects: Sequence[Defect] = ()) -> str | None:
    """What is wrong after this history, with all one needs to see why; None if nothing is."""
    simulation = Simulation(history, Dice(dice, history), defects)
    try:
        simulation.run()
        simulation.run_again()
    except BrokenError as error:
        return printed(simulation, error)
    return None


def printed(simulation: Simulation, error: BrokenError) -> str:
    history = simulation.history
    operations = "\n".join(f"  {op}" for op in history.operations)
    schedule = "\n".join(f"  {line}" for line in simulation.schedule)
    return f"{error}\nOperations (slot rule: {history.slot_rule}):\n{operations}\nSchedule:\n{schedule}"


# --- random histories -----------------------------------------------------------------------------------------


def some_file(dice: random.Random, client: str, members: str, *, dated: bool) -> File:
    day = dice.randint(1, 3)
    records = []
    for member in dice.choices(members, k=dice.choice([0, 1, 1, 2, 2, 3, len(members)])):
        date = dice.randint(1, 3) if dated else day
        records.append(Record(member, dice.choice("AAABBC?"), date))
    fails = dice.choice(["early", "late", "late"]) if dice.random() < 0.1 else ""
    return File(client, day, tuple(records), fails)


def decisions_on(dice: random.Random, file: File, members: str) -> list[Op]:
    """What people may decide about one delivery."""
    found: list[Op] = []
    if dice.random() < 0.3:
        found += [Op("toggle", (file.file_id, n), dice.choice([1, 1, 2])) for n in range(1, dice.choice([2, 2, 3, 4]))]
    if dice.random() < 0.2:
        found.append(Op("release", (file.file_id,), dice.choice([1, 2])))
    for number, record in enumerate(file.records, 1):
        if record.raw == "?":
            for _ in range(dice.choice([0, 1, 1, 2])):
                repaired = (file.file_id, number, dice.choice(members), dice.choice("ABC"))
                found.append(
                    Op("discard", (file.file_id, number)) if dice.random() < 0.4 else Op("repair", repaired, 2)
                )
    return found


def on_the_side(dice: random.Random, kind: str, client: str, members: str) -> list[Op]:
    """Operations that are about no delivery."""
    late = dice.random() < 0.3
    if kind == "erase":
        asked = dice.sample(members, k=dice.randint(1, min(2, len(members))))
        return [Op("erase", (client, member), dice.choice([1, 1, 2]), late) for member in asked]
    if kind == "prune":
        closed = tuple(f"{client}{day}" for day in (1, 2, 3) if dice.random() < 0.7)
        return [Op("prune", (client, closed), late=late)] * dice.randint(1, 2)
    return [Op(kind, (client,), late=late)] * dice.randint(1, 2)


def rough(dice: random.Random, operations: Sequence[Op]) -> History:
    """These operations, under a schedule of some roughness."""
    return History(
        tuple(operations), slot_rule=dice.random() < 0.5, workers=dice.randint(2, 4),
        crashes=dice.choice([0, 0, 1, 2, 4]), sticky=dice.choice([0.0, 0.5, 0.8, 0.95]),
        stalls=dice.choice([0.0, 0.05, 0.1]), misfortune=dice.choice([0, 0, 0.05, 0.2]),
    )  # fmt: skip


def some_history(dice: random.Random) -> History:
    """Anything, in a small domain."""
    clients = dice.choice(["x"] * 7 + ["xy"])
    members = "abcd"[: dice.choice([1, 2, 2, 3, 4])]
    dated = dice.random() < 0.2
    files = [some_file(dice, dice.choice(clients), members, dated=dated) for _ in range(dice.randint(2, 5))]
    operations = [Op("land", (file,), dice.choice([1, 1, 2])) for file in files]
    for file in dict.fromkeys(files):
        operations += decisions_on(dice, file, members)
    for client in clients:
        for kind, likely in {"read": 0.5, "maintain": 0.5, "config": 0.2, "erase": 0.3, "prune": 0.2}.items():
            if dice.random() < likely:
                operations += on_the_side(dice, kind, client, members)
    return rough(dice, operations)


def dense_history(dice: random.Random, kinds: Sequence[str] = ()) -> History:
    """Few members whom every delivery mentions, and much of one or two `kinds` of operation."""
    kinds = kinds or dice.sample(["read", "maintain", "erase", "prune", "config", "toggle"], k=2)
    members = "ab"[: dice.choice([1, 2])]
    files = []
    for _ in range(dice.randint(2, 4)):
        day = dice.randint(1, 3)
        said = [Record(m, dice.choice("AAB"), day) for m in members if dice.random() < 0.9]
        files.append(File("x", day, tuple(said)))
    operations = [Op("land", (file,), dice.choice([1, 1, 2])) for file in files]
    for kind in kinds:
        if kind == "toggle":
            chosen = dice.sample(sorted({f.file_id for f in files}), k=1)
            operations += [Op("toggle", (i, n), 2) for i in chosen for n in range(1, dice.choice([2, 3]))]
        else:
            operations += on_the_side(dice, kind, "x", members) + on_the_side(dice, kind, "x", members)
    return rough(dice, operations)


def any_history(dice: random.Random) -> History:
    return dense_history(dice) if dice.random() < 0.5 else some_history(dice)


def test_the_protocol_gives_the_defined_state_in_every_history() -> None:
    for seed in range(examples(5000)):
        dice = random.Random(seed)
        assert not (said := broken(any_history(dice), dice)), f"Seed {seed}: {said}"


# --- defects, each in the scene of its counterexample -----------------------------------------------------------


def file(text: str) -> File:
    """From `1[a=A b=?@3]`: client x, day 1; the record of b is rejected and dated 3. `!late` at the end: it fails."""
    day, said, fails = re.fullmatch(r"(\d)\[(.*)\](?:!(\w+))?", text).groups("")
    fields = [re.fullmatch(r"(\w)=(.)(?:@(\d))?", word).groups(day) for word in said.split()]
    return File("x", int(day), tuple(Record(member, raw, int(date)) for member, raw, date in fields), fails)


def land(text: str, copies: int = 1) -> Op:
    return Op("land", (file(text),), copies)


def toggle(text: str, number: int = 1) -> Op:
    return Op("toggle", (file(text).file_id, number))


def late(op: Op) -> Op:
    return op._replace(late=True)


ERASE_M = Op("erase", ("x", "m"))
MAINTAIN = Op("maintain", ("x",))
READ = Op("read", ("x",))

#: A schedule in which one worker stands still while another goes its whole way.
PATIENT = {"sticky": 0.9, "stalls": 0.05, "crashes": 0, "misfortune": 0.0}
#: Operations, and what of the History is fixed; the schedule, crashes and the rest are drawn.
SCENES: dict[Defect, tuple[list[Op], dict]] = {
    Defect.VAULT_REPLACED: ([land("1[a=A b=B]", 2), land("2[b=A]"), toggle("2[b=A]")], {}),
    Defect.HELD_COUNTED: ([land("1[m=B]"), land("2[m=A n=? o=?]")], {}),
    Defect.UNDECIDED_COUNTED: ([land("1[m=B]"), land("2[m=A]!late")], {}),
    Defect.SUPERSEDED_COUNTED: ([land("1[m=B]"), land("2[m=A]"), land("2[n=A]")], {"slot_rule": False}),
    Defect.REVERT_OF_OWN_ROWS: ([land("1[m=A]"), land("2[m=B]"), land("3[m=A]"), toggle("3[m=A]")], {}),
    Defect.REVERT_OF_OWN_MEMBERS: ([land("1[m=A]"), land("1[]"), toggle("1[]")], {"slot_rule": False}),
    Defect.SIGHTINGS_BEFORE_SILVER: ([land("1[m=B]"), land("2[m=A]")], PATIENT),
    Defect.SIGHTINGS_KEPT: ([land("1[m=A]"), land("2[m=B]"), land("3[m=C]")], {}),
    Defect.SEQUENCE_PREDICATE: ([land("1[m=A]"), land("3[m=A]"), toggle("3[m=A]"), land("2[m=B]")], {}),
    Defect.DECIDED_TWICE: ([land("1[m=A]", 3)], {}),
    Defect.FAILED_OVER_SUCCESS: ([land("1[m=A]", 3)], {"misfortune": 0.2}),
    Defect.LEDGER_BEFORE_SILVER: ([land("1[m=A]"), ERASE_M], PATIENT),
    Defect.LEDGER_AFTER_ERASURE: ([land("1[m=A]"), ERASE_M], {}),
    Defect.ERASURE_WITHOUT_NUMBER: ([land("1[m=A]"), ERASE_M], PATIENT),
    Defect.ERASURE_IGNORES_MAINTENANCE: ([land("1[m=A]"), late(ERASE_M), late(MAINTAIN)], {}),
    Defect.ERASURE_IGNORES_ATTEMPTS: ([land("1[m=A]"), ERASE_M], PATIENT),
    Defect.MAINTENANCE_DROPS_ALL: ([land("1[m=A]"), MAINTAIN], {}),
    Defect.MAINTENANCE_WITHOUT_GRACE: ([land("1[m=A]"), land("2[m=B]"), READ, READ, READ, late(MAINTAIN)], PATIENT),
    Defect.CONFIG_NOT_PINNED: ([land("1[m=A]", 2), Op("config", ("x",))], {"crashes": 1}),
    Defect.QUARANTINE_REPLACED: ([land("1[m=? n=A]", 2), Op("discard", (file("1[m=? n=A]").file_id, 1))], {}),
    Defect.SIGHTINGS_PRUNED_TO_LATEST: (
        [land("1[m=A]"), land("2[m=B]"), toggle("2[m=B]"), Op("prune", ("x", ()))], {},
    ),
    Defect.NUMBER_GIVEN_TWICE: ([land("1[m=A]"), land("1[m=B]")], {}),
    Defect.NUMBERED_OUT_OF_ORDER: ([land("1[m=A]"), land("1[m=B]")], {}),
    Defect.SIGHTED_AFTER_COMMIT: ([land("1[m=A]"), land("2[m=B]")], {}),
    Defect.NO_EMPTY_COMMIT: ([land("1[m=A]"), land("2[m=A]")], {}),
    Defect.EMPTY_COMMIT_UNNUMBERED: ([land("1[m=A]"), land("2[m=B]"), land("3[m=A]")], {}),
    Defect.COMMIT_BY_PATH: ([land("1[m=A]"), land("2[m=B]")], {}),
    Defect.SLOT_DECIDED_IN_ANY_ORDER: ([land("1[a=A b=A]", 2), land("1[c=A]")], {"slot_rule": True}),
    Defect.TAKE_BACK_BY_SILVER: ([land("1[m=A]"), land("1[]"), land("2[m=A]")], {"slot_rule": True}),
    Defect.STALE_NOT_RECOMPUTED: ([land("1[m=A@3]"), land("1[m=C]"), land("2[m=B]")], {}),
    Defect.REPAIR_UNDER_FILE_ID: (
        [land("1[m=A m=?]"), Op("repair", (file("1[m=A m=?]").file_id, 2, "m", "B"))], {},
    ),
    Defect.SIGHTINGS_NOT_SUPPRESSED: ([land("1[m=A]"), ERASE_M], {}),
    Defect.SWEEPS_WITHOUT_LOCK: ([land("1[m=A n=A]"), late(ERASE_M), late(Op("erase", ("x", "n")))], {}),
    Defect.PARTS_UNLINKED: ([land("1[m=A]")], {"misfortune": 0.2}),
    Defect.RESERVATION_LEFT: ([land("1[m=A]"), land("1[m=B]")], {"crashes": 2}),
}  # fmt: skip
#: Histories within which a planted defect must show.
BOUND = 1000


@pytest.mark.parametrize("defect", Defect, ids=lambda defect: defect.name.lower())
def test_a_planted_defect_is_found(defect: Defect) -> None:
    operations, fixed = SCENES[defect]
    for seed in range(BOUND):
        dice = random.Random(seed)
        history = replace(rough(dice, operations), **fixed)
        state = dice.getstate()
        if broken(history, dice, [defect]):
            dice.setstate(state)
            assert not (said := broken(history, dice)), f"Also without the defect, seed {seed}: {said}"
            return
    pytest.fail(f"{BOUND} histories did not show that {defect.value}.")


# --- every schedule of something small --------------------------------------------------------------------------


class Script(Chooser):
    """Follows a list of choices; then each worker goes on as long as it can. Notes what else could have been."""

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = choices
        #: Per step: the choice, how many there were, and whether another one would have been a pre-emption.
        self.taken: list[tuple[int, int, bool]] = []

    def pick(self, options: Sequence[Option], last: Option | None) -> Option:
        goes_on = last in options
        at = len(self.taken)
        choice = self._choices[at] if at < len(self._choices) else options.index(last) if goes_on else 0
        self.taken.append((choice, len(options), goes_on))
        return options[choice]


def every_schedule(history: History, preemptions: int, defects: Sequence[Defect] = ()) -> tuple[int, str | None]:
    """How many schedules there are with up to so many pre-emptions, and what is wrong in the first broken one."""
    todo: list[tuple[list[int], int]] = [([], preemptions)]
    tried = 0
    while todo:
        choices, left = todo.pop()
        script = Script(choices)
        simulation = Simulation(history, script, defects)
        tried += 1
        try:
            simulation.run()
        except BrokenError as error:
            return tried, printed(simulation, error)
        for at in range(len(choices), len(script.taken)):
            chosen, count, goes_on = script.taken[at]
            if left >= goes_on:
                before = [choice for choice, _, _ in script.taken[:at]]
                todo += [([*before, other], left - goes_on) for other in range(count) if other != chosen]
    return tried, None


#: Operations, and up to how many pre-emptions.
SMALL = {
    "two days": ([land("1[m=B]"), land("2[m=A]")], 2),
    "given twice": ([land("1[m=A]", 2)], 3),
    "sent again": ([land("1[m=A]"), land("1[m=B]")], 3),
    "erased": ([land("1[m=A]"), ERASE_M], 3),
    "reverted": ([land("1[m=B]"), land("2[m=A]"), toggle("2[m=A]")], 2),
    "erased while maintained": ([land("1[m=A]"), ERASE_M, MAINTAIN], 2),
}


@pytest.mark.parametrize("name", SMALL)
def test_every_schedule_of_something_small_gives_the_defined_state(name: str) -> None:
    operations, preemptions = SMALL[name]
    tried, said = every_schedule(History(tuple(operations), slot_rule=True), preemptions)
    assert not said
    assert tried > 1000


@pytest.mark.parametrize(
    "defect", [Defect.SIGHTINGS_BEFORE_SILVER, Defect.SIGHTED_AFTER_COMMIT, Defect.COMMIT_BY_PATH],
    ids=lambda defect: defect.name.lower(),
)  # fmt: skip
def test_two_preemptions_are_enough_to_show_a_wrong_order_of_steps(defect: Defect) -> None:
    operations, _ = SMALL["two days"]
    assert every_schedule(History(tuple(operations)), 2, [defect])[1]
