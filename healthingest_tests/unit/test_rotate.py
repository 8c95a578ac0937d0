"""Rotation: everything is under the new keys, nothing is unreadable meanwhile, and nobody's row has changed."""

import random
import shutil
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from healthingest import read_silver
from healthingest.bulk import ingest_bronze
from healthingest.cli import app
from healthingest.drill import drill
from healthingest.erase import Request, erase_member
from healthingest.errors import BusyError, KeyringError, UsageError
from healthingest.ingest import ingest_many, register
from healthingest.lake.lake import Lake
from healthingest.maintain import maintain
from healthingest.platform import Platform
from healthingest.privacy.keyring_file import load_keyring, write_copy
from healthingest.rotate import leftovers, revoke, rotate
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import csv_of, deliver, drop, line
from healthingest_tests.histories import expected, found, history_of, new_home

LATEST_ONLY = {"bronze": 0, "quarantine": 0, "vault": 0, "sightings": 0, "silver": 0}


def some_days(home: Platform, days: range) -> None:
    for day in days:
        rows = [line(f"M{n}", city=f"City {day}" if n % 3 == day % 3 else "Boston") for n in range(6)]
        deliver(home, f"acme_202501{day:02}.csv", csv_of(*rows, line(f"X{day}", zip="12")))


def shown(home: Platform) -> pl.DataFrame:
    return read_silver(role="operations", places=home.places).collect().sort("client_id", "member_id")


def rejected(home: Platform) -> str:
    return CliRunner().invoke(app, ["quarantine", "show", "acme_20250101.csv", "--values"]).output


def test_everything_is_under_the_new_keys_and_reads_as_before(home: Platform) -> None:
    some_days(home, range(1, 5))
    before, records, tokens = shown(home), rejected(home), home.lake.silver.frame(["member_token"])
    done = rotate(home, "acme")
    assert done.generation == 2
    assert done.renewed == {"bronze": 4, "sightings": 0, "silver": 6, "vault": 4, "quarantine": 4}
    now = Platform.open(home.places)
    assert leftovers(now.current("acme"), "acme") == LATEST_ONLY
    assert revoke(now, "acme") == 1
    assert {len(versions) for p, versions in load_keyring(home.places).keys["acme"].items() if p != "erasure"} == {1}
    assert shown(home).drop("member_token").equals(before.drop("member_token"))
    assert rejected(home) == records
    assert tokens.join(home.lake.silver.frame(["member_token"]), on="member_token").is_empty()
    some_days(Platform.open(home.places), range(1, 5))  # known, and unchanged
    again = deliver(home, "acme_20250105.csv", csv_of(*(line(f"M{n}", city="New") for n in range(8))))
    assert (again.counts.inserted, again.counts.updated) == (2, 6)
    assert found(Platform.open(home.places)).members[0][2] == "New"


def test_no_file_that_an_old_key_opens_or_made_is_left_on_disk_but_silvers_old_versions(home: Platform) -> None:
    some_days(home, range(1, 3))
    lake = home.lake
    before = {p for table in (lake.quarantine, lake.sightings) for p in table.files_of("acme")}
    before |= {*lake.vault.root.rglob("*.parquet"), *lake.bronze.root.rglob("*.sealed")}
    assert len(before) >= 8
    rotate(home, "acme")
    assert not [path for path in before if path.exists()]


def test_a_rotation_beside_another_one_or_a_maintenance_does_nothing(home: Platform) -> None:
    some_days(home, range(1, 2))
    before = home.places.keyring.read_bytes()
    with home.lake.exclusion.maintenance():
        for work in (rotate, revoke):
            with pytest.raises(BusyError, match="running; let it end"):
                work(home, "acme")
    assert home.places.keyring.read_bytes() == before
    assert rotate(home, "acme").generation == 2


def test_a_second_rotation_and_a_rebuild_from_bronze_after_it(home: Platform) -> None:
    some_days(home, range(1, 4))
    volatile = ["member_token", "creation_date"]  # the second: of any record with that content
    before = shown(home).drop(volatile)
    rotate(home, "acme")
    assert rotate(home, "acme").generation == 3
    revoke(home, "acme")
    assert shown(home).drop(volatile).equals(before)
    for folder in ("silver", "vault", "quarantine", "checkpoint/sightings", "checkpoint/audit"):
        remove_tree(home.places.output / folder)
    again = Platform.open(home.places, whole=False)
    assert {o.status for group in ingest_bronze(again, run_id="again") for o in group} == {"succeeded"}
    assert shown(again).drop(volatile).equals(before)


@pytest.mark.parametrize("seed", range(6))
def test_rotations_anywhere_in_a_random_history_change_nothing_of_what_it_comes_to(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    home, files = new_home(tmp_path), history_of(chance)
    at = set(chance.sample(range(len(files)), min(2, len(files))))
    for number, (name, text) in enumerate(files):
        ingest_many(home, [register(home, drop(home, name, text))], run_id="r")
        if number in at:
            client_id = name.split("_")[0]
            rotate(home, client_id)
            if chance.random() < 0.5:
                revoke(home, client_id)
            if chance.random() < 0.5:
                maintain(Platform.open(home.places))
    assert found(Platform.open(home.places)) == expected(files)


def test_the_change_feed_tells_a_rotation_from_a_change(home: Platform) -> None:
    some_days(home, range(1, 3))
    first = home.lake.silver.version()
    assert first is not None
    version = rotate(home, "acme").silver_version
    deliver(home, "acme_20250105.csv", csv_of(line("M0", city="New")))
    table = DeltaTable(home.lake.silver.uri)
    marked = [e["version"] for e in table.history() if '"tokens"' in e.get("healthingest", "")]
    feed = pl.DataFrame(table.load_cdf(starting_version=first + 1).read_all())
    renamed = feed.filter(pl.col("_commit_version").is_in(marked))
    assert version in marked
    assert renamed["_change_type"].value_counts().sort("_change_type").rows() == [("delete", 6), ("insert", 6)]
    state = set(DeltaTable(home.lake.silver.uri, version=first).to_pyarrow_table()["member_token"].to_pylist())
    for row in feed.sort("_commit_version", "_change_type").to_dicts():
        (state.discard if row["_change_type"] == "delete" else state.add)(row["member_token"])
    assert state == set(home.lake.silver.frame(["member_token"])["member_token"])


def test_a_frame_that_was_made_before_the_rotation_is_read_after_it(home: Platform) -> None:
    some_days(home, range(1, 3))
    frame, before = read_silver(role="operations", places=home.places), shown(home)
    rotate(home, "acme")
    revoke(home, "acme")
    late = frame.collect().sort("client_id", "member_id")
    assert late.drop("member_token").equals(before.drop("member_token"))


def test_an_open_platform_goes_on_with_the_new_keys_and_an_old_copy_is_refused(home: Platform, tmp_path: Path) -> None:
    some_days(home, range(1, 3))
    write_copy(load_keyring(home.places), tmp_path / "old.json", None)
    rotate(Platform.open(home.places), "acme")
    revoke(Platform.open(home.places), "acme")
    assert deliver(home, "acme_20250103.csv", csv_of(line("M0", city="New"))).counts.updated == 1  # opened before
    assert leftovers(Platform.open(home.places), "acme") == LATEST_ONLY
    with pytest.raises(KeyringError, match="lacks the latest keys of acme"):
        drill(home.places, tmp_path / "old.json")
    shutil.copy(tmp_path / "old.json", home.places.keyring)
    with pytest.raises(KeyringError, match="lacks the latest keys of acme"):
        register(home, drop(home, "acme_20250104.csv", csv_of(line("M1"))))


def test_an_installation_that_is_opened_while_its_keys_change_works_with_the_new_ones(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_days(home, range(1, 3))
    whole = Lake.require_whole

    def slow(lake: Lake) -> None:  # a rotation between reading the keyring and being open
        monkeypatch.setattr(Lake, "require_whole", whole)
        rotate(Platform.open(home.places), "acme")
        revoke(Platform.open(home.places), "acme")
        whole(lake)

    monkeypatch.setattr(Lake, "require_whole", slow)
    opened = Platform.open(home.places)
    register(opened, drop(home, "acme_20250103.csv", csv_of(line("M0", city="New"))))
    now = Platform.open(home.places)
    assert leftovers(now, "acme") == LATEST_ONLY
    assert deliver(now, "acme_20250103.csv", csv_of(line("M0", city="New"))).counts.updated == 1
    assert all(now.lake.bronze.is_whole("acme", r.delivery.file_id) for r in now.lake.bronze.of_client("acme"))


def test_old_keys_that_something_needs_are_kept(
    home: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_days(home, range(1, 3))
    assert revoke(home, "acme") == 0
    monkeypatch.setattr("healthingest.rotate._reseal_bronze", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rotate(home, "acme")  # dies right after its first step
    monkeypatch.undo()
    with pytest.raises(UsageError, match="rotate first"):
        revoke(Platform.open(home.places), "acme")
    some_days(home, range(3, 4))
    assert shown(home).height == 6
    assert rotate(home, "acme").generation == 2
    assert revoke(home, "acme") == 1


def test_an_erased_member_stays_erased_after_a_rotation(home: Platform) -> None:
    some_days(home, range(1, 3))
    erase_member(home, "acme", "M2", Request(wait=0))
    rotate(home, "acme")
    revoke(home, "acme")
    assert deliver(home, "acme_20250109.csv", csv_of(line("M1"), line("M2"))).counts.suppressed == 1
    assert "M2" not in shown(home)["member_id"].to_list()
    assert erase_member(home, "acme", "M1", Request(wait=0))["erased"]["silver"] == 1


def test_the_commands_rotate_and_revoke_and_say_so(home: Platform) -> None:
    some_days(home, range(1, 3))
    run = CliRunner().invoke
    assert "keys of generation 2" in run(app, ["keys", "rotate"]).output
    assert "acme: 1 and 2" in run(app, ["keys", "status"]).output
    assert "acme: 1 old generations forgotten" in run(app, ["keys", "revoke", "acme"]).output
    assert run(app, ["keys", "rotate", "nobody"]).exit_code == 2
    kinds = [event["kind"] for event in home.lake.events.read("acme")]
    assert kinds == ["keys rotated", "old keys revoked"]


def test_a_new_column_group_gets_a_key_of_the_generation_that_its_client_has(home: Platform) -> None:
    from healthingest_tests.conftest import configure

    some_days(home, range(1, 3))
    rotate(home, "acme")
    revoke(home, "acme")
    again = configure(home, "client_id: acme\npolicies: {phone_number: {vault: phones}}\n")
    deliver(again, "acme_20250109.csv", csv_of(line("M1", phone_number="617-253-1111")))
    assert "+16172531111" in shown(again)["phone_number"].to_list()
