"""Gold equals what a from-scratch count gives, after whatever happened to silver in between."""

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from healthingest.erase import Request, erase_member
from healthingest.maintain import maintain
from healthingest.marts.membership import counted, update
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.revert import revert
from healthingest.rotate import rotate
from healthingest_tests.conftest import csv_of, deliver, examples, install, line
from healthingest_tests.dying import DIE_AFTER

#: (client, state, age band) -> members, additions, changes, leavers.
Counted = dict[tuple[str, str | None, str | None], tuple[int, ...]]


@dataclass
class World:
    """An installation, and what of silver's history was seen with one's own eyes."""

    home: Platform
    chance: random.Random
    taken: list[Delivery] = field(default_factory=list)
    #: (client, token) -> (hash, state, age band), as of the last look.
    before: dict[tuple[str, str], tuple[str, str, str]] = field(default_factory=dict)
    flows: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)

    def look(self, *, renumbered: bool = False) -> None:
        """Count what changed since the last look, each commit being looked at by itself."""
        year = datetime.now(UTC).year
        rows = self.home.lake.silver.frame(["client_id", "member_token", "_content_hash", "state", "birth_year"])
        now = {}
        for client, token, content, state, born in rows.rows():
            age = year - born
            now[client, token] = (content, state, "90+" if age >= 90 else f"{age // 10 * 10}-{age // 10 * 10 + 9}")
        if not renumbered:
            for key in now.keys() | self.before.keys():
                old, new = self.before.get(key), now.get(key)
                if new and not old:
                    self.flows[key[0], *new[1:], "additions"] += 1
                elif old and not new:
                    self.flows[key[0], *old[1:], "leavers"] += 1
                elif old and new and old[0] != new[0]:
                    self.flows[key[0], *new[1:], "changes"] += 1
        self.before = now

    def expected(self) -> Counted:
        members = Counter((key[0], *said[1:]) for key, said in self.before.items())
        cells = {(c, s, b) for c, s, b, _ in self.flows} | set(members)
        return {
            cell: (members[cell], *(self.flows[*cell, flow] for flow in ("additions", "changes", "leavers")))
            for cell in cells
        }


def ingests(world: World) -> None:
    client = world.chance.choice(["acme", "globex"])
    lines = [
        line(f"M{n}", state=world.chance.choice(["MA", "NY"]), dob=f"{world.chance.choice([1930, 1980, 2010])}-05-05")
        for n in world.chance.sample(range(9), world.chance.randint(1, 9))
    ]
    name = f"{client}_2025010{world.chance.randint(1, 9)}.csv"
    outcome = deliver(world.home, name, csv_of(*lines))
    world.taken += [outcome.delivery] if outcome.status == "succeeded" else []


def takes_back(world: World) -> None:
    if world.taken:
        delivery = world.chance.choice(world.taken)
        noted = world.home.lake.reverts.number(delivery.client_id, delivery.file_id)
        revert(world.home, delivery, by="jane", reason="why not", undo=noted % 2 == 1, wait=0)


def erases(world: World) -> None:
    if any(d.client_id == "acme" for d in world.taken):
        erase_member(world.home, "acme", f"M{world.chance.randint(0, 8)}", Request(wait=0))


def maintains(world: World) -> None:
    maintain(world.home)


def counts(world: World) -> None:
    update(world.home.lake, world.home.places.output)


def rotates(world: World) -> None:
    if any(d.client_id == "globex" for d in world.taken):
        rotate(world.home, "globex")
        world.home = Platform.open(world.home.places)
        world.look(renumbered=True)


STEPS: dict[Callable[[World], None], int] = {
    ingests: 8, takes_back: 3, erases: 1, maintains: 1, rotates: 1, counts: 3,
}  # fmt: skip


def found(home: Platform) -> Counted:
    rows = counted(home.places.output)
    assert rows["complete"].all()
    assert rows["month"].n_unique() <= 2  # a test may run over midnight
    flows = rows.group_by("client_id", "state", "age_band").agg(pl.col("additions", "changes", "leavers").sum())
    last = rows.filter(pl.col("month") == pl.col("month").max().over("client_id"))
    cells = flows.join(last, on=["client_id", "state", "age_band"], how="left", nulls_equal=True)
    numbers = [pl.col("members").fill_null(0), "additions", "changes", "leavers"]
    return {
        (c, s, b): tuple(rest) for c, s, b, *rest in cells.select("client_id", "state", "age_band", *numbers).rows()
    }


@pytest.mark.parametrize("seed", range(examples(3)))
def test_gold_is_the_count_from_scratch_after_anything(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    world = World(install(tmp_path, {c: f"client_id: {c}\n" for c in ("acme", "globex")}), chance)
    ingests(world)
    world.look()
    for _ in range(14):
        step = chance.choices(list(STEPS), list(STEPS.values()))[0]
        step(world)
        world.look()
    counts(world)
    assert found(world.home) == world.expected(), seed
    version = DeltaTable(str(world.home.places.output / "gold" / "membership_by_month")).version()
    counts(world)
    assert DeltaTable(str(world.home.places.output / "gold" / "membership_by_month")).version() == version


DYING = (
    DIE_AFTER
    + """
from healthingest.marts import membership
from healthingest.cli import app
die_after(membership, "_rows", "counted")
die_after(membership, "write_deltalake", "written")
app(sys.argv)
"""
)


@pytest.mark.parametrize("step", ["counted", "written"])
def test_an_update_that_dies_is_made_up_for_and_nothing_counts_twice(home: Platform, step: str) -> None:
    world = World(home, random.Random(1))
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2", state="NY")))
    world.look()
    command = [sys.executable, "-c", DYING, step, "marts", "update"]
    died = subprocess.run(command, env=os.environ, check=False, capture_output=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    deliver(home, "acme_20250102.csv", csv_of(line("M1", city="Lynn"), line("M3")))
    world.look()
    counts(world)
    assert found(home) == world.expected()
