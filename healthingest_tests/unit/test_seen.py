"""The sensor's memory of the landing zone: a small cursor, a ledger on disk, and ticks that die between the two."""

import json
import random
import time
from pathlib import Path

import pytest

from healthingest.landing.discovery import list_landing, look
from healthingest.orchestration import seen
from healthingest.orchestration.seen import SUBMITTED, UNROUTABLE, Seen
from healthingest_tests.conftest import examples


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen, "_FOLD", 3)
    monkeypatch.setattr(seen, "_LOOKS", 4)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


def tick(cursor: str | None, raw: Path, runs: int = 100) -> tuple[str, list[str]]:
    """One look that gives the first files a run: the cursor to store, and the names of those files."""
    now = Seen.load(cursor, raw.parent / "ledger")
    found = [landed for landed in now.new(raw) if now.decided(landed) != UNROUTABLE][:runs]
    for landed in found:
        now.put(landed, UNROUTABLE if landed.name.startswith("bad") else SUBMITTED)
    return now.cursor(), [landed.name for landed in found]


def write(raw: Path, name: str, text: str = "x") -> None:
    """A new inode, as senders write: so the change is seen even within one tick of the kernel's clock."""
    temporary = raw / f".{name}.tmp"
    temporary.write_text(text)
    temporary.rename(raw / name)


def test_a_cursor_stays_small_and_no_file_gets_a_second_run(raw: Path) -> None:
    cursor, given = None, []
    for day in range(60):
        write(raw, f"f{day:03}")
        cursor, names = tick(cursor, raw)
        given += names
    assert given == sorted(given) == [f"f{day:03}" for day in range(60)]
    assert cursor
    assert len(json.loads(cursor)["recent"]) <= 5
    assert len(list((raw.parent / "ledger").iterdir())) <= 2


def test_a_file_in_the_ledger_that_changes_gets_a_run_again(raw: Path) -> None:
    cursor = None
    for number in range(9):
        write(raw, f"f{number}")
        cursor, _ = tick(cursor, raw)
    write(raw, "f1", "changed")
    cursor, names = tick(cursor, raw)
    assert names == ["f1"]


def test_what_leads_nowhere_is_looked_at_in_each_tick(raw: Path) -> None:
    write(raw, "bad")
    cursor, names = tick(None, raw)
    assert names == ["bad"]
    landed = look(raw / "bad")
    assert landed is not None
    again = Seen.load(cursor, raw)
    assert (again.new(raw), again.decided(landed)) == ([landed], UNROUTABLE)


def test_files_beyond_what_one_tick_looks_at_all_get_their_turn_beside_ones_that_lead_nowhere(raw: Path) -> None:
    for number in range(10):
        write(raw, f"bad{number}")
        write(raw, f"f{number}")
    cursor, given = None, set()
    for _ in range(20):
        cursor, names = tick(cursor, raw, runs=2)
        given |= set(names)
    assert {f"f{number}" for number in range(10)} <= given


def test_the_newest_file_does_not_wait_for_many_that_are_looked_at_again(raw: Path) -> None:
    for number in range(20):
        write(raw, f"f{number:02}")
    time.sleep(0.05)  # the kernel's clock for files goes in steps of some milliseconds
    write(raw, "f07", "the newest")
    assert "f07" in tick(None, raw, runs=2)[1]


@pytest.mark.parametrize("lost", ["ledger", "cursor", "torn"])
def test_what_is_lost_makes_the_sensor_look_again_and_never_overlook(raw: Path, lost: str) -> None:
    cursor = None
    for number in range(4):
        write(raw, f"f{number}")
        cursor, _ = tick(cursor, raw)
    cursor, _ = tick(cursor, raw)
    (place,) = (raw.parent / "ledger").iterdir()
    if lost == "ledger":
        place.unlink()
    if lost == "torn":
        place.write_bytes(place.read_bytes()[:-5])
    _, names = tick(None if lost == "cursor" else cursor, raw)
    assert {"f0", "f1", "f2"} <= set(names)


@pytest.mark.parametrize("seed", range(examples(60)))
def test_in_any_history_of_files_and_dying_ticks_each_version_gets_its_run(raw: Path, seed: int) -> None:
    chance, cursor, owed, stored = random.Random(seed), None, {}, {}
    for step in range(60):
        name = f"f{chance.randrange(15)}"
        if chance.random() < 0.7:
            write(raw, name, "x" * step)
        elif (raw / name).exists():
            (raw / name).unlink()
        owed = {landed.name: landed for landed in list_landing(raw)}
        after, names = tick(cursor, raw, runs=3)
        assert not [n for n in names if stored.get(n) == owed[n]], "a stored run is not asked for again"
        if chance.random() < 0.6:  # else the tick dies: neither its requests nor its cursor count
            cursor = after
            stored |= {n: owed[n] for n in names}
    for _ in range(20):
        cursor, names = tick(cursor, raw, runs=3)
        stored |= {n: owed[n] for n in names}
    assert {n: stored.get(n) for n in owed} == owed
