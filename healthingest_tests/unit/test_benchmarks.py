"""The benchmark measures a right ingest of a known file; nothing here is timed."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.generate import DEFECTS, HEADER, write_file
from healthingest_tests.conftest import REPO


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    assert write_file(first, records=3000, day=1) == write_file(second, records=3000, day=1)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().splitlines()[0] == ",".join(HEADER)


def test_the_second_day_differs_in_a_tenth_and_every_defect_occurs(tmp_path: Path) -> None:
    write_file(tmp_path / "1.csv", records=20_000, day=1)
    truth = write_file(tmp_path / "2.csv", records=20_000, day=2)
    days = [(tmp_path / f"{day}.csv").read_text().replace("2025-01-07", "2025-01-06").splitlines() for day in (1, 2)]
    changed = sum(one != two for one, two in zip(*days, strict=True))
    assert truth.changed <= changed <= truth.changed + truth.bad
    assert 1800 <= truth.changed <= 2200
    assert 300 <= truth.bad <= 500
    assert set(truth.defects) == set(DEFECTS)
    assert min(truth.defects.values()) > 0


def test_an_ingest_gives_the_counts_that_were_generated() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.ingest_million", "--records", "2000", "--json"],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)["days"]
    assert first["wrong"] == second["wrong"] == []
    assert {"read", "validate", "silver", "process wall", "peak RSS MiB"} <= set(first["stages"])


def test_the_costs_of_protection_are_measured_on_a_day_that_was_ingested() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.protection", "--records", "2000", "--json"],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 0 < result["share"] < 1
    assert {"member tokens", "sealed copy in bronze", "policy generalize zip3"} <= set(result["parts"])
