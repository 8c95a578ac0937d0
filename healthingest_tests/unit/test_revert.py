"""Any delivery can be taken back, in any order, and given again: silver is as if it had never come."""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest import read_silver
from healthingest.bulk import ingest_bronze
from healthingest.cli import app
from healthingest.erase import Request, erase_member
from healthingest.errors import UsageError
from healthingest.ingest import ingest_many, register
from healthingest.lake.reverts import word
from healthingest.maintain import maintain
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.release import close_delivery
from healthingest.revert import Reverted, plan_revert, revert
from healthingest.rotate import rotate
from healthingest_tests.conftest import configure, csv_of, deliver, drop, examples, install, line
from healthingest_tests.dying import DIE_AFTER
from healthingest_tests.histories import CONFIGS, File, Word, change_feed_is_real, expected, found, history_of


def take_back(home: Platform, delivery: Delivery, *, undo: bool = False) -> Reverted:
    return revert(home, delivery, by="jane", reason="sent by mistake", undo=undo, wait=0)


def shown(home: Platform) -> dict[str, str]:
    frame = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
    return dict(frame.iter_rows())


def content(home: Platform) -> list[tuple[object, ...]]:
    """All of silver but what says which of several equal records won, and when."""
    frame = home.lake.silver.frame().drop("_sequence", "_file_id", "_record_no", "creation_date", "_ingested_at")
    return sorted(frame.rows(), key=str)


def rebuilt(home: Platform) -> Platform:
    """Silver and everything that is made with it, built again from bronze and what people said."""
    root = home.places.output
    for name in ("silver", "quarantine", "vault", "checkpoint/audit", "checkpoint/sightings"):
        shutil.rmtree(root / name, ignore_errors=True)
    again = Platform.open(home.places, whole=False)
    list(ingest_bronze(again, run_id="again"))
    return again


def ten_days(home: Platform) -> list[Delivery]:
    """Ten deliveries: members come, change and stay away."""
    chance, found = random.Random(9), []
    for day in range(1, 11):
        members = [f"M{i}" for i in range(30) if chance.random() < 0.5] + [f"D{day}"]
        lines = [line(m, city=chance.choice(["Boston", "Salem", "Lynn"])) for m in members]
        found.append(deliver(home, f"acme_202501{day:02}.csv", csv_of(*lines)).delivery)
    return found


def test_two_deliveries_out_of_ten_can_go_in_both_orders_as_if_they_had_never_come(
    home: Platform, tmp_path: Path
) -> None:
    deliveries = ten_days(home)
    whole = content(home)
    without = install(tmp_path / "without")
    for delivery in deliveries:
        if delivery not in {deliveries[4], deliveries[7]}:
            path = home.places.landing / delivery.file_name
            deliver(without, delivery.file_name, path.read_bytes())
    for first, second in itertools.permutations([deliveries[4], deliveries[7]]):
        take_back(home, first)
        done = take_back(home, second)
        assert done.removed >= 1
        assert shown(home) == shown(without)
        take_back(home, first, undo=True)
        take_back(home, second, undo=True)
        assert content(home) == whole
    change_feed_is_real(home)


def test_members_fall_back_or_leave_or_stay_and_the_plan_says_so_before(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1", city="Salem"), line("M2")))
    second = deliver(home, "acme_20250102.csv", csv_of(line("M1"), line("M2"), line("M3"), line("X", zip="1"))).delivery
    version = home.lake.silver.version()
    plan = plan_revert(home, second)
    assert (plan.removed, plan.changed, plan.added, plan.records) == (1, 1, 0, 1)
    assert home.lake.silver.version() == version
    done = take_back(home, second)
    assert (done.removed, done.changed, done.added, done.fresh) == (1, 1, 0, True)
    assert shown(home) == {"M1": "Salem", "M2": "Boston"}
    row = home.lake.audit.row(second.file_id) or {}
    assert (row["status"], row["decided_by"], row["decision_reason"]) == ("reverted", "jane", "sent by mistake")
    assert "Reverted by jane" in row["message"]
    assert home.lake.quarantine.frame(["state"])["state"].to_list() == ["reverted"]
    kinds = [e["kind"] for e in home.lake.events.read("acme")]
    assert kinds.count("reverted") == 1
    back = take_back(home, second, undo=True)
    assert (back.removed, back.changed, back.added) == (0, 1, 1)
    assert shown(home) == {"M1": "Boston", "M2": "Boston", "M3": "Boston"}
    row = home.lake.audit.row(second.file_id) or {}
    assert (row["status"], row["decision"]) == ("succeeded", None)
    assert "Revert undone by jane" in row["message"]
    assert home.lake.quarantine.frame(["state"])["state"].to_list() == ["open"]
    change_feed_is_real(home)


def test_reverting_what_had_replaced_a_file_brings_that_one_back(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1", city="Salem")))
    again = deliver(home, "acme_20250101.csv", csv_of(line("M2"))).delivery
    assert shown(home) == {"M2": "Boston"}
    take_back(home, again)
    assert shown(home) == {"M1": "Salem"}


def test_a_shorter_file_that_follows_a_revert_is_not_held_and_a_rebuild_holds_nothing_either(home: Platform) -> None:
    wrong = deliver(home, "acme_20250101.csv", csv_of(*[line(f"M{i}") for i in range(9)])).delivery
    take_back(home, wrong)
    assert deliver(home, "acme_20250101.csv", csv_of(line("M1", city="Lynn"))).status == "succeeded"
    assert shown(home) == {"M1": "Lynn"}
    take_back(home, wrong, undo=True)
    assert shown(home) == {"M1": "Lynn"}
    assert shown(rebuilt(home)) == {"M1": "Lynn"}


def test_what_is_reverted_is_said_when_its_file_comes_again_and_cannot_be_released(home: Platform) -> None:
    first = deliver(home, "acme_20250101.csv", csv_of(line("M1"))).delivery
    take_back(home, first)
    again = deliver(home, "acme_20250101.csv", csv_of(line("M1")))
    assert (again.status, again.fresh, shown(home)) == ("reverted", False, {})
    with pytest.raises(UsageError, match="was reverted"):
        close_delivery(home, first, "release", by="jane", reason="x", wait=0)
    with pytest.raises(UsageError, match="reverted already"):
        take_back(home, first)
    with pytest.raises(UsageError, match="was not reverted"):
        take_back(home, deliver(home, "acme_20250102.csv", csv_of(line("M1"))).delivery, undo=True)


def test_what_never_reached_silver_has_nothing_to_revert(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.1, on_breach: hold}\n")
    held = deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2", zip="1"))).delivery
    with pytest.raises(UsageError, match="is held; only what silver took"):
        take_back(home, held)


def test_an_erased_member_does_not_come_back_with_a_revert_or_its_undoing(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1", city="Salem"), line("M2")))
    second = deliver(home, "acme_20250102.csv", csv_of(line("M1"), line("M2"))).delivery
    erase_member(home, "acme", "M1", Request(wait=0))
    take_back(home, second)
    assert shown(home).keys() == {"M2"}
    take_back(home, second, undo=True)
    assert shown(home).keys() == {"M2"}


def test_keys_may_be_rotated_between_a_revert_and_its_undoing(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1", city="Salem")))
    second = deliver(home, "acme_20250102.csv", csv_of(line("M1"), line("M2"))).delivery
    take_back(home, second)
    rotate(home, "acme")
    home = Platform.open(home.places)
    take_back(home, second, undo=True)
    assert shown(home) == {"M1": "Boston", "M2": "Boston"}


def play(home: Platform, steps: list[File | Word]) -> None:
    """Each file and word in turn."""
    known: dict[Word, Delivery] = {}
    for name, said in steps:
        if isinstance(said, str):
            delivery = register(home, drop(home, name, said))
            ingest_many(home, [delivery], run_id="any")
            known[name, delivery.delivery_no] = delivery
        else:
            delivery = known[name, said]
            noted = home.lake.reverts.number(delivery.client_id, delivery.file_id)
            take_back(home, delivery, undo=noted % 2 == 1)


def with_words(files: list[File], chance: random.Random) -> list[File | Word]:
    """The files in the order of their names, with words on deliveries that silver took among them."""
    steps: list[File | Word] = []
    for file in sorted(files, key=lambda file: file[0]):
        steps.append(file)
        taken = [key for key, told in expected(steps).deliveries.items() if told[0] in {"succeeded", "reverted"}]
        if taken and chance.random() < 0.6:
            steps += chance.choices(taken, k=chance.randint(1, 2))
    return steps


@pytest.mark.parametrize("seed", range(examples(4)))
def test_random_words_on_random_deliveries_lead_to_what_they_define_and_so_does_a_rebuild(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    steps = with_words(history_of(chance), chance)
    home = install(tmp_path, CONFIGS)
    play(home, steps)
    assert found(home) == expected(steps)
    change_feed_is_real(home)
    again = rebuilt(home)
    assert found(again) == expected(steps)
    states = ["file_name", "record_no", "state"]
    assert home.lake.quarantine.frame(states).sort(states).equals(again.lake.quarantine.frame(states).sort(states))


DYING = (
    DIE_AFTER
    + """
from healthingest import revert
from healthingest.cli import app
from healthingest.lake.audit import Audit
from healthingest.lake.reverts import Reverts
from healthingest.lake.silver import Silver
die_after(Reverts, "put", "noted")
die_after(Silver, "commit", "silver")
die_after(revert, "settle_records", "records")
app(sys.argv)
"""
)


@pytest.mark.parametrize(
    ("step", "finisher"),
    [("noted", "command"), ("silver", "ingest"), ("silver", "maintain"), ("records", "ingest")],
)
def test_whoever_dies_at_a_revert_is_finished_by_the_next(home: Platform, step: str, finisher: str) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1", city="Salem")))
    second = deliver(home, "acme_20250102.csv", csv_of(line("M1"), line("M2"), line("X", zip="1"))).delivery
    command = ["revert", second.file_id, "--reason", "wrong month", "--yes"]
    died = subprocess.run(
        [sys.executable, "-c", DYING, step, *command], env=os.environ, check=False, capture_output=True, timeout=120
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    match finisher:
        case "command" if step == "noted":
            assert CliRunner().invoke(app, command).exit_code == 0
        case "command" | "ingest":
            deliver(home, second.file_name, (home.places.landing / second.file_name).read_bytes())
        case _:
            maintain(home)
    assert shown(home) == {"M1": "Salem"}
    row = home.lake.audit.row(second.file_id) or {}
    assert (row["status"], row["message"].count("Reverted by")) == ("reverted", 1)
    assert home.lake.quarantine.frame(["state"])["state"].to_list() == ["reverted"]
    change_feed_is_real(home)


def test_a_word_that_nobody_followed_counts_with_the_next_delivery_of_the_client(home: Platform) -> None:
    first = deliver(home, "acme_20250101.csv", csv_of(line("M1"))).delivery
    home.lake.reverts.put("acme", first.file_id, word(1, "jane", "wrong", 1))
    deliver(home, "acme_20250102.csv", csv_of(line("M2")))
    assert shown(home) == {"M2": "Boston"}
    assert (home.lake.audit.row(first.file_id) or {})["status"] == "reverted"


def test_the_command_shows_what_it_would_do_asks_and_does_it(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2")))
    run = CliRunner()
    plan = run.invoke(app, ["revert", "acme_20250101.csv", "--plan"])
    assert plan.exit_code == 0
    assert "Would revert delivery 1 of acme_20250101.csv" in plan.output
    assert "2 members leave silver, 0 fall back" in plan.output
    assert run.invoke(app, ["revert", "acme_20250101.csv"]).exit_code == 2
    refused = run.invoke(app, ["revert", "acme_20250101.csv", "--reason", "wrong"], input="n\n")
    assert (refused.exit_code, len(shown(home))) == (1, 2)
    done = run.invoke(app, ["revert", "acme_20250101.csv", "--reason", "wrong", "--yes", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["removed"] == 2
    assert shown(home) == {}
    back = run.invoke(app, ["revert", "acme_20250101.csv", "--undo", "--reason", "right after all"], input="y\n")
    assert back.exit_code == 0
    assert "Gave back delivery 1" in back.output
    assert len(shown(home)) == 2
    assert pl.DataFrame(home.lake.silver.snapshot().load_cdf()).filter(pl.col("_change_type") == "delete").height == 2


def test_a_delivery_of_a_client_whose_config_is_gone_can_still_be_taken_back_and_built_again(home: Platform) -> None:
    first = deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2"))).delivery
    deliver(home, "acme_20250102.csv", csv_of(line("M1", city="Lynn")))
    (home.places.configs / "acme.yaml").unlink()
    home = Platform.open(home.places)
    take_back(home, first)
    assert home.lake.silver.frame(["member_token"]).height == 1
    assert rebuilt(home).lake.silver.frame(["member_token"]).height == 1


def test_a_revert_that_died_between_two_readings_of_one_file_is_finished_whole(home: Platform) -> None:
    first = deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2", zip="1"))).delivery
    home = configure(
        home, "client_id: acme\ncolumns: {zip: {to: zip, zip_repair: true}}\nquality: {max_invalid_ratio: 1}\n"
    )
    assert CliRunner().invoke(app, ["quarantine", "release", "--client", "acme", "--yes"]).exit_code in {0, 1}
    readings = sorted(home.lake.bronze.of_client("acme"), key=lambda r: r.delivery.delivery_no)
    assert len(readings) == 2
    home.lake.reverts.put("acme", readings[1].delivery.file_id, word(1, "jane", "wrong", 2))
    take_back(home, first)
    assert shown(home) == {}
