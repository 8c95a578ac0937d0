"""The benchmark measures a right ingest of a known file; nothing here is timed."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.contenders import contenders
from benchmarks.generate import DEFECTS, HEADER, Plan, write_file
from healthingest_tests.conftest import REPO


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    assert write_file(first, Plan(3000)) == write_file(second, Plan(3000))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text().splitlines()[0] == ",".join(HEADER)


def test_the_second_day_differs_in_a_tenth_and_every_defect_occurs(tmp_path: Path) -> None:
    write_file(tmp_path / "1.csv", Plan(20_000))
    truth = write_file(tmp_path / "2.csv", Plan(20_000, day=2))
    days = [(tmp_path / f"{day}.csv").read_text().replace("2025-01-07", "2025-01-06").splitlines() for day in (1, 2)]
    changed = sum(one != two for one, two in zip(*days, strict=True))
    assert truth.changed <= changed <= truth.changed + truth.bad
    assert 1800 <= truth.changed <= 2200
    assert 300 <= truth.bad <= 500
    assert set(truth.defects) == set(DEFECTS)
    assert min(truth.defects.values()) > 0


def test_half_of_the_records_can_be_bad_all_changed_and_none_malformed(tmp_path: Path) -> None:
    plain = Plan(20_000, start=7, malformed=False)
    write_file(tmp_path / "1.csv", plain)
    truth = write_file(tmp_path / "2.csv", replace(plain, day=2, bad_in=2, changed_in=1))
    lines = [(tmp_path / f"{day}.csv").read_text().splitlines()[1:] for day in (1, 2)]
    assert 9_000 < truth.bad < 11_000
    assert truth.changed == 20_000 - truth.bad
    assert "extra_field" not in truth.defects
    assert not [line for line in lines[1] if line.endswith("surplus")]
    assert not set(lines[0]) & set(lines[1])
    assert lines[0][0].startswith("M000000007,")


def test_every_contender_that_is_installed_upserts_the_files_that_it_is_given() -> None:
    names = [name for name, contender in contenders().items() if contender.installed]
    words = [
        "--size",
        "2k",
        "--runs",
        "1",
        "--workloads",
        "first,second-100",
        "--contenders",
        ",".join(names),
        "--json",
    ]
    done = subprocess.run([sys.executable, "-m", "benchmarks", *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    workloads = json.loads(done.stdout)["workloads"]
    for rows in workloads.values():
        assert [row["contender"] for row in rows] == names
        for row in rows:
            assert 1_900 < row["rows_in"] <= 2_000
            assert row["rows_out"] in (None, row["rows_in"] - row["rejected"])
            assert row["wall"] > 0 < row["rss_mib"]


def test_words_that_name_nothing_are_refused() -> None:
    words = [sys.executable, "-m", "benchmarks", "--workloads", "frist"]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no 'frist'; there is first, second-10" in done.stderr


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
