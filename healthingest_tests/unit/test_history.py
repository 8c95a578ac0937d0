"""Random histories with re-sent files: any order that keeps each name's own order leads to the same silver."""

import random
from pathlib import Path

import pytest

from healthingest.lake.export import export_frame
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, deliver, examples, install, line

File = tuple[str, str]


def history(chance: random.Random) -> list[File]:
    """Three days, two files a day, each sent up to three times, with members that come and go and move."""
    files: list[File] = []
    for day in range(3):
        for suffix in ("", "_1"):
            base = [f"M{i}" for i in range(8) if chance.random() < 0.8] or ["M0"]
            for _ in range(chance.choice([1, 1, 2, 3])):
                ids = [m for m in base if chance.random() < 0.85] or base
                records = [line(m, city=chance.choice(["Boston", "Salem", "Lynn"])) for m in ids]
                files.append((f"acme_2025010{day + 5}{suffix}.csv", csv_of(*records)))
    return files


def shuffled(files: list[File], chance: random.Random) -> list[File]:
    """The files in another order of names; what came first under a name stays first."""
    names = [name for name, _ in files]
    chance.shuffle(names)
    waiting = {name: [text for other, text in files if other == name] for name in names}
    return [(name, waiting[name].pop(0)) for name in names]


def silver_after(root: Path, files: list[File]) -> list[tuple[object, ...]]:
    """Who is where, and when last named, after these deliveries."""
    home: Platform = install(root)
    for name, text in files:
        deliver(home, name, text)
    rows = export_frame(home).select("member_id", "city", "last_seen").sort("member_id").rows()
    return [(member, city, str(seen)) for member, city, seen in rows]


def counting(files: list[File]) -> dict[str, str]:
    """Of each name the last file that counts: one that would take back more members than it brings is held."""
    last: dict[str, str] = {}
    for name, text in files:
        before, brought = ({line.split(",")[0] for line in t.splitlines()[1:]} for t in (last.get(name, ""), text))
        if len(before - brought) <= len(brought):
            last[name] = text
    return last


def expected(files: list[File]) -> list[tuple[object, ...]]:
    """By definition: of each name the last file counts; of these the greatest date and suffix wins."""
    last = counting(files)
    state: dict[str, tuple[str, str]] = {}
    for name in sorted(last, key=lambda n: (n[5:13], "_1" in n)):
        for record in last[name].splitlines()[1:]:
            fields = record.split(",")
            state[fields[0]] = (fields[6], f"{name[5:9]}-{name[9:11]}-{name[11:13]}")
    return [(member, *where) for member, where in sorted(state.items())]


@pytest.mark.parametrize("seed", range(examples(4)))
def test_any_order_of_a_random_history_leads_to_the_state_it_defines(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    files = history(chance)
    for number, order in enumerate([files, shuffled(files, chance)]):
        assert silver_after(tmp_path / str(number), order) == expected(files)
