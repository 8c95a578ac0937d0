"""Members that full files no longer name leave, within caps and after a grace, whatever the order of the files."""

import random

import pytest

from healthingest.ingest import ingest, ingest_many, register
from healthingest.platform import Platform
from healthingest.release import close_delivery
from healthingest_tests.conftest import configure, csv_of, deliver, drop, examples, line
from healthingest_tests.histories import change_feed_is_real
from healthingest_tests.unit.test_revert import rebuilt, shown, take_back


def full(home: Platform, absence: str = "{}") -> Platform:
    return configure(home, f"client_id: acme\nmembership: {{file: full, absence: {absence}}}\n")


def members(*numbers: int, city: str = "Boston") -> str:
    return csv_of(*[line(f"M{n}", city=city) for n in numbers])


def who(home: Platform) -> set[int]:
    return {int(member[1:]) for member in shown(home)}


def test_who_is_missing_from_a_full_file_leaves_and_comes_back_with_the_next_that_names_him(home: Platform) -> None:
    home = full(home)
    deliver(home, "acme_20250106.csv", members(1, 2, 3))
    outcome = deliver(home, "acme_20250107.csv", members(1, 2))
    assert who(home) == {1, 2}
    assert "Of other members 1 left, 0 came back" in str(outcome.message)
    deliver(home, "acme_20250108.csv", members(1, 2, 3))
    assert who(home) == {1, 2, 3}
    change_feed_is_real(home)
    assert who(rebuilt(home)) == {1, 2, 3}


def test_nobody_leaves_unless_the_client_says_that_its_files_are_full(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", members(1, 2))
    deliver(home, "acme_20250107.csv", members(1))
    assert who(home) == {1, 2}


def test_a_grace_of_two_files_lets_one_gap_pass(home: Platform) -> None:
    home = full(home, "{after: 2}")
    for day, named in ((6, (1, 2)), (7, (1,)), (8, (1, 2)), (9, (1,)), (10, (1,))):
        deliver(home, f"acme_202501{day:02}.csv", members(*named))
        assert who(home) == ({1} if day == 10 else {1, 2})


def test_a_file_over_its_cap_makes_nobody_leave_until_somebody_accepts_it(home: Platform) -> None:
    home = full(home, "{max_share: 0.3, max_members: 5}")
    deliver(home, "acme_20250106.csv", members(*range(10)))
    outcome = deliver(home, "acme_20250107.csv", members(*range(4), city="Lynn"))
    assert outcome.status == "succeeded"
    assert "lacks 6 of the 10 members of acme_20250106.csv (60.0%; at most 5 and 30.0%)" in str(outcome.message)
    assert any("lacks 6" in said for said in outcome.file_breaches)
    assert who(home) == set(range(10))
    assert shown(home)["M1"] == "Lynn"
    close_delivery(home, outcome.delivery, "release", by="jane", reason="acme lost a plant", wait=0)
    assert who(home) == set(range(4))
    change_feed_is_real(home)
    again = rebuilt(home)
    assert who(again) == set(range(4))
    row = again.lake.audit.row(outcome.delivery.file_id) or {}
    assert (row["decision"], row["status"]) == ("accepted", "succeeded")


def test_whom_a_full_file_names_in_a_record_that_was_rejected_has_not_left(home: Platform) -> None:
    home = configure(
        home, "client_id: acme\nmembership: {file: full, absence: {}}\nquality: {max_invalid_ratio: 1.0}\n"
    )
    deliver(home, "acme_20250106.csv", members(1, 2, 3))
    deliver(home, "acme_20250107.csv", csv_of(line("M1"), line("M2", zip="1"), "M9,short"))
    assert who(home) == {1, 2}
    assert who(rebuilt(home)) == {1, 2}


def test_a_late_full_file_neither_removes_nor_brings_anybody_that_later_ones_decide(home: Platform) -> None:
    home = full(home)
    deliver(home, "acme_20250106.csv", members(1, 2))
    deliver(home, "acme_20250108.csv", members(1, 3))
    outcome = deliver(home, "acme_20250107.csv", members(2, 3, 4))
    assert who(home) == {1, 3}
    assert (outcome.counts.stale, outcome.counts.inserted) == (3, 0)


def test_taking_back_a_full_file_brings_back_who_had_left_by_it(home: Platform) -> None:
    home = full(home)
    deliver(home, "acme_20250106.csv", members(1, 2, 3))
    second = deliver(home, "acme_20250107.csv", members(1)).delivery
    assert who(home) == {1}
    take_back(home, second)
    assert who(home) == {1, 2, 3}
    take_back(home, second, undo=True)
    assert who(home) == {1}
    change_feed_is_real(home)


def test_absence_needs_full_files(home: Platform) -> None:
    home = configure(home, "client_id: acme\nmembership: {absence: {}}\n")
    assert "write file: full" in str(home.clients.problems[0])


def expected(files: dict[str, tuple[set[int], set[int]]], after: int, cap: int) -> set[int]:
    """By definition, from file name -> members named, and those of them in rejected records; in order of names."""
    names = sorted(files)
    named = [files[name][0] | files[name][1] for name in names]
    known = set().union(*(good for good, _ in files.values()))
    counts = [True] + [len((named[i - 1] & known) - named[i]) <= cap for i in range(1, len(names))]
    left = set()
    for member in known:
        last = max(i for i, some in enumerate(named) if member in some)
        if sum(counts[last + 1 :]) >= after:
            left.add(member)
    return known - left


@pytest.mark.parametrize("seed", range(examples(4)))
def test_any_order_of_full_files_leads_to_what_they_define(home: Platform, seed: int) -> None:
    chance = random.Random(seed)
    after, cap = chance.choice([1, 2]), chance.choice([2, 3, 9])
    home = configure(
        home,
        f"client_id: acme\nmembership: {{file: full, absence: {{after: {after}, max_members: {cap}}}}}\n"
        "quality: {max_invalid_ratio: 1.0}\n",
    )
    files = {}
    for day in range(1, 6):
        some = set(chance.sample(range(8), chance.randint(3, 8)))
        bad = set(chance.sample(sorted(some), chance.choice([0, 0, 1])))
        files[f"acme_2025010{day}.csv"] = (some - bad, bad)
    order = chance.sample(sorted(files), len(files))
    waiting = []
    for name in order:
        good, bad = files[name]
        text = csv_of(*[line(f"M{n}") for n in sorted(good)], *[line(f"M{n}", zip="1") for n in sorted(bad)])
        waiting.append(register(home, drop(home, name, text)))
        if chance.random() < 0.7:
            ingest_many(home, waiting, run_id="some")
            waiting.clear()
    ingest_many(home, waiting, run_id="rest")
    assert who(home) == expected(files, after, cap)
    change_feed_is_real(home)
    gone = chance.choice(order)
    delivery = next(r.delivery for r in home.lake.bronze.of_client("acme") if r.delivery.file_name == gone)
    take_back(home, delivery)
    assert who(home) == expected({n: f for n, f in files.items() if n != gone}, after, cap)
    assert ingest(home, delivery, run_id="again").status == "reverted"
    assert who(rebuilt(home)) == who(home)
