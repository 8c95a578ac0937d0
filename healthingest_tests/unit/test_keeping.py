"""Maintenance: what it takes away, what it must leave, and that nothing anybody reads changes by it."""

import os
import random
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from healthingest import clean_source, consolidate
from healthingest.contracts.clients import load_client
from healthingest.errors import BusyError, ConfigError, IncompleteError, UsageError
from healthingest.export import export_frame
from healthingest.ingest import ingest, ingest_many, register
from healthingest.maintain import maintain
from healthingest.platform import Platform
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import configure, csv_of, deliver, drop, env_of, line
from healthingest_tests.histories import change_feed_is_real, expected, found, history_of, new_home

NOW = timedelta(0)


def days_of(home: Platform, number: int) -> None:
    """So many daily files, each of which changes somebody: as many parts of the vault."""
    for day in range(1, number + 1):
        rows = [line(f"M{n}", city=f"City {day}" if n in {0, day} else "Boston") for n in range(25)]
        deliver(home, f"acme_202501{day:02}.csv", csv_of(*rows, line("X", zip="12")))


def said(home: Platform, **how: object) -> dict[str, str]:
    return {step.name: step.text for step in maintain(home, **how)}  # type: ignore[arg-type]


def test_tables_have_fewer_files_and_the_same_rows_and_repeats_still_do_nothing(home: Platform) -> None:
    days_of(home, 6)
    tables = [home.lake.silver, home.lake.quarantine, home.lake.sightings, home.lake.audit]
    before = [table.frame().sort(table.frame().columns[2]) for table in tables[:1]], export_frame(home)
    files = [len(table.snapshot().file_uris()) for table in tables]
    maintain(home)
    assert [len(table.snapshot().file_uris()) for table in tables] == [1, 1, 1, 1]
    assert max(files) > 1
    assert export_frame(home).equals(before[1])
    change_feed_is_real(home)
    versions = [table.version() for table in tables]
    for path in sorted(home.places.landing.iterdir()):
        assert not ingest(home, register(home, path), run_id="again").fresh
    assert [table.version() for table in tables] == versions, "the log's transactions outlive its entries"


def test_change_data_and_old_files_go_only_once_nothing_of_the_time_that_is_kept_needs_them(home: Platform) -> None:
    days_of(home, 3)
    feed = home.lake.silver.path / "_change_data"
    maintain(home)
    assert list(feed.rglob("*.parquet"))
    change_feed_is_real(home)
    assert home.lake.silver.vacuum(NOW) > 0
    assert not list(feed.rglob("*.parquet"))
    assert len(export_frame(home)) == 25


@pytest.mark.parametrize("days", [0, 1, 6])
def test_less_than_a_week_is_refused_and_nothing_is_touched(home: Platform, days: int) -> None:
    days_of(home, 2)
    before = home.lake.audit.version()
    with pytest.raises(UsageError, match="at least 7 days"):
        maintain(home, keep=timedelta(days=days))
    assert home.lake.audit.version() == before


def test_only_one_maintenance_runs_and_a_dead_ones_lock_is_no_lock(home: Platform) -> None:
    days_of(home, 2)
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX)"
    hold += "; print('held', flush=True); time.sleep(60)"
    lock = str(home.lake.exclusion.root / "_maintenance.lock")
    maintain(home)
    other = subprocess.Popen([sys.executable, "-c", hold, lock], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    before = home.lake.audit.version()
    with pytest.raises(BusyError, match="Another maintenance"):
        maintain(home)
    assert home.lake.audit.version() == before
    other.kill()
    other.wait()
    maintain(home)


def test_silvers_log_stays_while_a_delivery_has_no_audit_row(home: Platform) -> None:
    days_of(home, 2)
    register(home, drop(home, "acme_20250120.csv", csv_of(line("M1"))))
    assert "1 deliveries have no audit row" in said(home)["silver: log"]


# --- the vault ------------------------------------------------------------------------------------------------


def parts(home: Platform) -> set[str]:
    return {p.name for p in home.lake.vault.parts("acme")}


def test_many_rows_become_parts_of_a_size_and_are_not_put_together_again(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consolidate, "_ROWS", 5)
    days_of(home, 17)
    old, members = parts(home), export_frame(home)
    maintain(home, grace=timedelta(0))
    together = parts(home) - old
    assert len(together) > 1
    maintain(home, grace=timedelta(0))
    assert parts(home) == together
    assert export_frame(home).sort("member_id").equals(members.sort("member_id"))


def test_small_parts_become_one_and_the_replaced_ones_go_after_the_grace(home: Platform) -> None:
    days_of(home, 17)
    old, members = parts(home), export_frame(home)
    maintain(home)
    assert len(old) == 17
    assert old < parts(home)
    assert len(parts(home) - old) == 1
    maintain(home)
    assert old < parts(home), "within the grace a reader of an older silver may need them"
    deliver(home, "acme_20250118.csv", csv_of(line("M3", city="Lowell")))
    changed = export_frame(home)
    maintain(home, grace=NOW)
    assert not old & parts(home)
    assert export_frame(home).equals(changed)
    assert not changed.equals(members)


def test_no_part_goes_without_proof_that_its_values_are_elsewhere(home: Platform) -> None:
    days_of(home, 16)
    old = parts(home)
    maintain(home)
    for name in parts(home) - old:
        next(home.lake.vault.root.rglob(name)).unlink()
    with pytest.raises(IncompleteError, match="nothing was"):
        maintain(home, grace=NOW)
    assert parts(home) == old


def test_a_part_that_may_belong_to_a_coming_commit_stays(home: Platform) -> None:
    days_of(home, 16)
    groups = home.clients.clients["acme"].contract.vaulted
    row = {"member_token": "0" * 32, "_file_id": "1" * 32} | dict.fromkeys(groups, "x")
    coming = home.lake.vault.put("acme", "1" * 32, 17, pl.DataFrame([row]), groups)
    maintain(home)
    maintain(home, grace=NOW)
    assert coming.exists()


# --- the landing zone -----------------------------------------------------------------------------------------


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty-one days on, as far as the landing zone is concerned."""
    real = clean_source.time.time

    class Later:
        @staticmethod
        def time() -> float:
            return real() + 31 * 86_400

        @staticmethod
        def time_ns() -> int:
            return int((real() + 31 * 86_400) * 1e9)

    monkeypatch.setattr(clean_source, "time", Later)


@pytest.mark.parametrize("how", ["archive_after", "delete_after"])
def test_ingested_files_leave_the_landing_zone_and_no_others(home: Platform, later: None, how: str) -> None:
    home = configure(home, f"client_id: acme\nclean_source: {{{how}: 30d}}\nquality: {{on_breach: hold}}\n")
    home = configure(home, "client_id: globex\n", "globex")
    good = csv_of(line("M1"))
    deliver(home, "acme_20250106.csv", good)
    deliver(home, "acme_20250107.csv", csv_of(line("M1", zip="12")))  # held
    deliver(home, "acme_20250108.csv", "no,header\n1,2\n")  # failed
    deliver(home, "globex_20250106.csv", good)  # keep is the default
    deliver(home, "acme_20250109.csv", good)
    drop(home, "acme_20250109.csv", csv_of(line("M2")))  # other bytes since
    deliver(home, "acme_20250110.csv", good)
    sealed = (
        home.lake.bronze.root / "acme" / f"{register(home, home.places.landing / 'acme_20250110.csv').file_id}.sealed"
    )
    sealed.write_bytes(sealed.read_bytes()[:-9])  # its only other copy is damaged
    drop(home, "nobody_20250106.csv", good)
    maintain(home)
    assert sorted(p.name for p in home.places.landing.iterdir()) == [
        "acme_20250107.csv", "acme_20250108.csv", "acme_20250109.csv", "acme_20250110.csv", "globex_20250106.csv",
        "nobody_20250106.csv",
    ]  # fmt: skip
    archived = sorted(p for p in (home.places.landing.parent / "archive").rglob("*") if p.is_file())
    assert [(p.name, p.read_text()) for p in archived] == (
        [("1-acme_20250106.csv", good)] if how == "archive_after" else []
    )


def test_young_files_stay(home: Platform) -> None:
    home = configure(home, "client_id: acme\nclean_source: {delete_after: 30d}\n")
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    maintain(home)
    assert [p.name for p in home.places.landing.iterdir()] == ["acme_20250106.csv"]


@pytest.mark.parametrize("text", ["{}", "{archive_after: 1d, delete_after: 1d}", "{delete_after: 30}", "sometimes"])
def test_a_wrong_clean_source_is_refused_with_its_key(home: Platform, text: str) -> None:
    file = home.places.configs / "acme.yaml"
    file.write_text(f"client_id: acme\nclean_source: {text}\n")
    with pytest.raises(ConfigError, match=r"acme\.yaml:2, key 'clean_source"):
        load_client(file, home.places.configs)


# --- leftovers, and beside others -------------------------------------------------------------------------------


def test_what_dead_processes_left_goes_after_a_day_and_what_they_sealed_is_registered(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    days_of(home, 1)
    old, young = (home.lake.bronze.root / "acme" / f".{name}.tmp" for name in ("aaaa", "bbbb"))
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    gone = old.with_name(".cccc.tmp")
    gone.symlink_to("named meanwhile")  # listed, and not there when it is looked at: its writer was faster
    with monkeypatch.context() as patched:
        patched.setattr(type(home.lake.bronze), "_write_manifest", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            register(home, drop(home, "acme_20250120.csv", csv_of(line("M9"))))
    assert "was sealed" in said(home)["bronze"]
    assert (old.exists(), young.exists()) == (False, True)
    assert home.lake.bronze.unfinished("acme") == []


_INGEST = """
import random, sys
from healthingest.ingest import ingest, register
from healthingest.platform import Platform
platform = Platform.open()
paths = sorted(platform.places.landing.iterdir())
random.Random(sys.argv[1]).shuffle(paths)
for path in paths:
    ingest(platform, register(platform, path), run_id="worker")
"""


def test_maintenance_beside_ingests_changes_nothing_of_what_they_come_to(tmp_path: Path) -> None:
    home = new_home(tmp_path)
    files = list({name: (name, text) for seed in range(6) for name, text in history_of(random.Random(seed))}.values())
    for name, text in files:
        drop(home, name, text)
    env = env_of(home.places)  # fmt: skip
    workers = [subprocess.Popen([sys.executable, "-c", _INGEST, str(n)], env=env) for n in range(2)]
    rounds = 0
    while any(worker.poll() is None for worker in workers) or rounds < 2:
        maintain(home)
        rounds += 1
    assert [worker.wait() for worker in workers] == [0, 0]
    maintain(home)
    assert found(home) == expected(files)
    change_feed_is_real(home)


def test_all_tables_are_built_again_from_bronze(tmp_path: Path) -> None:

    from healthingest.bulk import ingest_bronze

    home, files = new_home(tmp_path), history_of(random.Random(3))
    for name, text in files:
        ingest_many(home, [register(home, drop(home, name, text))], run_id="first")
    for lost in (["silver", "vault", "quarantine", "checkpoint"], ["silver"]):
        for folder in lost:
            remove_tree(home.places.output / folder)
        again = Platform.open(home.places, whole=False)
        outcomes = [o for group in ingest_bronze(again, run_id="again") for o in group]
        assert {o.status for o in outcomes} <= {"succeeded", "held"}
        assert found(again) == expected(files)
        change_feed_is_real(again)
