"""An installation goes to another place as it is: nothing is read again or lost, and the old place is closed."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from healthingest import relocate
from healthingest.cli import app
from healthingest.erase import Request, drop_notices, erase_member
from healthingest.errors import BusyError, StorageError, UsageError
from healthingest.export import export_frame
from healthingest.ingest import ingest, register
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, deliver, drop, env_of, line
from healthingest_tests.histories import change_feed_is_real, found


@pytest.fixture
def used(home: Platform) -> Platform:
    """An installation with deliveries of every kind, and one file that waits."""
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="12"), line("M3")))
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem"), line("M4")))
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Lynn"), line("M4")))
    drop(home, "acme_20250108.csv", csv_of(line("M5")))
    return home


def moved_to(root: Path) -> tuple[Path, Path]:
    return root / "there" / "output", root / "there" / "landing"


def opened(home: Platform, root: Path) -> Platform:
    output, landing = moved_to(root)
    return Platform.open(replace(home.places, output=output, landing=landing))


def rows(home: Platform) -> list[tuple[object, ...]]:
    return home.lake.audit.frame(["file_id", "status", "accepted", "rejected"]).sort("file_id").rows()


def test_all_is_there_as_it_was_and_files_go_on_where_they_were(used: Platform, tmp_path: Path) -> None:
    before, audit, silver = found(used), rows(used), used.lake.silver.frame().sort("member_token")
    done = relocate.copy(used, *moved_to(tmp_path), verify=True, wait=0)
    assert done.landed == ["acme_20250108.csv"], "what is decided lies sealed in bronze"
    there = opened(used, tmp_path)
    assert found(there) == before
    assert rows(there) == audit
    assert there.lake.silver.frame().sort("member_token").equals(silver)
    assert there.lake.silver.version() == used.lake.silver.version()
    change_feed_is_real(there)
    path = there.places.landing / "acme_20250108.csv"
    assert ingest(there, register(there, path), run_id="r").counts.inserted == 1
    again = drop(there, "acme_20250106.csv", (used.places.landing / "acme_20250106.csv").read_text())
    assert ingest(there, register(there, again), run_id="r").fresh is False
    assert len(rows(there)) == len(audit) + 1
    assert sorted(export_frame(there)["member_id"]) == ["M1", "M3", "M4", "M5"]


def test_the_old_place_is_closed_and_says_where_all_is_now(used: Platform, tmp_path: Path) -> None:
    was, audit = register(used, used.places.landing / "acme_20250108.csv"), rows(used)
    relocate.copy(used, *moved_to(tmp_path), verify=False, wait=0)
    with pytest.raises(StorageError, match="there/output"):
        Platform.open(used.places)
    with pytest.raises(StorageError, match="moved"):  # a process that had opened it before
        ingest(used, was, run_id="late")
    with pytest.raises(StorageError, match="moved"):
        relocate.copy(used, tmp_path / "elsewhere", used.places.landing, verify=False, wait=0)
    assert not (tmp_path / "elsewhere").exists()
    for words in (["doctor"], ["status"], ["alerts", "watch"]):
        told = CliRunner().invoke(app, words, env=env_of(used.places))
        assert told.exit_code == 1, told.output
        assert "there/output" in told.output.replace("\n", "")
    assert rows(used) == audit


def test_a_plan_writes_nothing_and_the_command_says_what_to_set(used: Platform, tmp_path: Path) -> None:
    output, landing = moved_to(tmp_path)
    command = ["storage", "copy", str(output), "--landing", str(landing)]
    told = CliRunner().invoke(app, [*command, "--plan"], env=env_of(used.places))
    assert told.exit_code == 0, told.output
    assert "1 landed ones would be copied" in told.output
    assert not output.exists()
    told = CliRunner().invoke(app, command, env=env_of(used.places))
    assert f"HEALTHINGEST_OUTPUT={output}" in told.output
    drop(used, "acme_20250109.csv", csv_of(line("M9")))  # a sender that does not know it yet
    told = CliRunner().invoke(app, command, env=env_of(used.places))
    assert told.exit_code == 0, told.output
    assert (landing / "acme_20250109.csv").is_file()


_CUT_OFF = """
import os, signal, sys
from pathlib import Path
from healthingest import relocate
from healthingest.platform import Platform

left = int(sys.argv[3])

def on_step(what, done):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

relocate.copy(Platform.open(), Path(sys.argv[1]), Path(sys.argv[2]), verify=False, wait=0, on_step=on_step)
"""


@pytest.mark.parametrize("after", [1, 20])
def test_who_is_killed_in_the_middle_goes_on_and_nobody_works_in_half_of_it(
    used: Platform, tmp_path: Path, after: int
) -> None:
    output, landing = moved_to(tmp_path)
    command = [sys.executable, "-c", _CUT_OFF, str(output), str(landing), str(after)]
    assert subprocess.run(command, env=env_of(used.places), check=False).returncode < 0
    with pytest.raises(StorageError, match="not whole"):
        opened(used, tmp_path)
    deliver(used, "acme_20250110.csv", csv_of(line("M7")))  # the old place is where it is until all is there
    gone = used.lake.bronze.root / "acme" / "left over"
    (output / "bronze" / "acme").mkdir(parents=True, exist_ok=True)
    (output / "bronze" / "acme" / gone.name).write_text("what was erased between two tries")
    before = found(used)
    relocate.copy(Platform.open(used.places), output, landing, verify=True, wait=0)
    assert found(opened(used, tmp_path)) == before
    assert not list(output.rglob("left over"))


def test_it_waits_for_nobody_who_is_at_work_and_refuses_places_that_are_taken(used: Platform, tmp_path: Path) -> None:
    output, landing = moved_to(tmp_path)
    with used.lake.exclusion.shared("acme"), pytest.raises(BusyError, match="acme"):
        relocate.copy(used, output, landing, verify=False, wait=0)
    assert not output.exists()

    def write(_: str, __: int) -> None:
        (used.places.output / "checkpoint" / f"{os.urandom(4).hex()}.json").write_text("{}")

    with pytest.raises(BusyError, match="goes on writing"):
        relocate.copy(used, output, landing, verify=False, wait=0, on_step=write)
    Platform.open(used.places)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("")
    for place in (taken, used.places.output, used.places.output / "in it", used.places.landing, used.places.home):
        with pytest.raises(UsageError):
            relocate.copy(used, place, landing, verify=False, wait=0)
    assert [path.name for path in taken.iterdir()] == ["file"]


def test_what_an_erasure_left_for_a_while_goes_at_the_new_place_too(used: Platform, tmp_path: Path) -> None:
    erase_member(used, "acme", "M1", Request(wait=0, notice=timedelta(days=1)))
    relocate.copy(used, *moved_to(tmp_path), verify=False, wait=0)
    there = opened(used, tmp_path)
    (entry,) = there.lake.erasures.entries("acme")
    note = there.lake.erasures.note("acme", entry)
    assert note
    assert note["notices"]
    there.lake.erasures.put("acme", entry, note | {"notice_until": "2020-01-01T00:00:00+00:00"})
    assert drop_notices(there) == len(note["notices"])
