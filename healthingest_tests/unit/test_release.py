"""Held deliveries, closed by a person: released into silver, discarded, or accepted; in any order, and for good."""

import json
import random
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest import read_silver
from healthingest.bulk import ingest_bronze
from healthingest.cli import app
from healthingest.erase import Request, erase_member
from healthingest.errors import UsageError
from healthingest.ingest import ingest, register
from healthingest.lake.decisions import verdict_of
from healthingest.model import Delivery, Outcome
from healthingest.platform import Platform
from healthingest.privacy.roles import actor
from healthingest.release import Wish, close_delivery, find_delivery
from healthingest.rotate import rotate
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import configure, csv_of, deliver, drop, install, line
from healthingest_tests.histories import change_feed_is_real

HOLD = "client_id: acme\nquality: {max_invalid_ratio: 0.3, on_breach: hold}\n"
BAD = [line("X1", zip="1"), line("X2", zip="2"), line("X3", zip="3")]


@pytest.fixture
def holding(home: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.setenv("HEALTHINGEST_HOME", str(home.places.home))
    monkeypatch.setenv("HEALTHINGEST_KEYRING", str(home.places.keyring))
    return configure(home, HOLD)


def held(home: Platform, name: str = "acme_20250106.csv", *lines: str) -> Delivery:
    outcome = deliver(home, name, csv_of(*(lines or (line("M1"), line("M2"))), *BAD))
    assert outcome.status == "held"
    return outcome.delivery


def close(home: Platform, delivery: Delivery, wish: Wish = "release", reason: str = "acme confirms") -> Outcome:
    return close_delivery(home, delivery, wish, by="jane", reason=reason, wait=0)


def shown(home: Platform) -> dict[str, str]:
    frame = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
    return dict(frame.iter_rows())


def row(home: Platform, delivery: Delivery) -> dict[str, object]:
    found = home.lake.audit.row(delivery.file_id)
    assert found is not None
    return found


def test_a_released_delivery_is_merged_and_the_audit_says_who_and_why(holding: Platform) -> None:
    delivery = held(holding)
    assert shown(holding) == {}
    outcome = close(holding, delivery)
    assert (outcome.status, outcome.counts.inserted, outcome.counts.rejected) == ("succeeded", 2, 3)
    assert shown(holding) == {"M1": "Boston", "M2": "Boston"}
    found = row(holding, delivery)
    assert [found[n] for n in ("status", "decision", "decided_by", "decision_reason")] == [
        "succeeded", "released", "jane", "acme confirms",
    ]  # fmt: skip
    assert "Released by jane" in str(found["message"])
    events = [e for e in holding.lake.events.read("acme") if e["kind"] == "released"]
    assert [(e["who"], e["file_id"], e["reason"]) for e in events] == [("jane", delivery.file_id, "acme confirms")]
    assert holding.lake.events.faults() == []
    states = holding.lake.quarantine.frame(["state"])["state"].to_list()
    assert states == ["open"] * 3  # what was rejected is rejected still
    change_feed_is_real(holding)


def test_a_discarded_delivery_never_reaches_silver_and_its_rejected_records_are_closed(holding: Platform) -> None:
    delivery = held(holding)
    came = row(holding, delivery)["ingestion_time"]
    outcome = close(holding, delivery, "discard")
    assert (outcome.status, shown(holding)) == ("discarded", {})
    assert row(holding, delivery)["ingestion_time"] == came  # it is not the client's latest by that
    assert [row(holding, delivery)[n] for n in ("status", "decision", "decided_by")] == [
        "discarded",
        "discarded",
        "jane",
    ]
    assert holding.lake.quarantine.frame(["state"])["state"].to_list() == ["discarded"] * 3
    again = ingest(holding, delivery, run_id="again")
    assert (again.status, again.closed, again.fresh) == ("discarded", True, False)
    with pytest.raises(UsageError, match="Discarded by jane"):
        close(holding, delivery)


def test_what_is_done_twice_is_done_once(holding: Platform) -> None:
    delivery = held(holding)
    close(holding, delivery)
    versions = [t.version() for t in (holding.lake.silver, holding.lake.audit)]
    second = close(holding, delivery, reason="another reason")
    assert (second.fresh, second.verdict and second.verdict.decision_reason) == (False, "acme confirms")
    assert [t.version() for t in (holding.lake.silver, holding.lake.audit)] == versions
    assert len([e for e in holding.lake.events.read("acme") if e["kind"] == "released"]) == 1
    with pytest.raises(UsageError, match="Released by jane"):
        close(holding, delivery, "discard")


def test_what_was_taken_over_its_limit_is_accepted_without_a_change_of_silver(home: Platform) -> None:
    alerting = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.3}\n")
    outcome = deliver(alerting, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    assert (outcome.status, outcome.breached, outcome.closed) == ("succeeded", True, False)
    version = alerting.lake.silver.version()
    accepted = close(alerting, outcome.delivery)
    assert (accepted.status, accepted.closed, accepted.fresh) == ("succeeded", True, True)
    assert alerting.lake.silver.version() == version
    assert row(alerting, outcome.delivery)["decision"] == "accepted"
    assert ingest(alerting, outcome.delivery, run_id="again").closed
    with pytest.raises(UsageError, match=r"cannot be discarded\. Accepted by jane"):
        close(alerting, outcome.delivery, "discard")


def test_nothing_else_can_be_closed(holding: Platform) -> None:
    good = deliver(holding, "acme_20250101.csv", csv_of(line("M1"))).delivery
    failed = deliver(holding, "acme_20250102.csv", "no header\n").delivery
    for delivery, said in ((good, "within its limits"), (failed, "is failed; only a held delivery")):
        with pytest.raises(UsageError, match=said):
            close(holding, delivery)
        with pytest.raises(UsageError, match=r"in silver|is failed"):
            close(holding, delivery, "discard")
    for reason in ("", " ", "two\nlines", "x" * 501, "bell \x07"):
        with pytest.raises(UsageError, match="one line of text"):
            close(holding, held(holding), reason=reason)
    assert not (holding.places.output / "checkpoint" / "decisions").exists()


def test_a_released_delivery_takes_its_place_in_the_sequence_and_later_records_still_win(holding: Platform) -> None:
    delivery = held(holding, "acme_20250106.csv", line("M1", city="Salem"), line("M2", city="Salem"))
    deliver(holding, "acme_20250107.csv", csv_of(line("M1", city="Lynn")))
    deliver(holding, "acme_20250105.csv", csv_of(line("M2", city="Quincy")))
    counts = close(holding, delivery).counts
    assert (counts.stale, counts.updated) == (1, 1)
    assert shown(holding) == {"M1": "Lynn", "M2": "Salem"}


def test_a_held_delivery_that_a_later_one_of_its_name_has_replaced_can_only_be_discarded(holding: Platform) -> None:
    delivery = held(holding)
    deliver(holding, "acme_20250106.csv", csv_of(line("M1", city="Lynn")))
    with pytest.raises(UsageError, match=r"Delivery 2 .* replaces this one; discard it"):
        close(holding, delivery)
    assert close(holding, delivery, "discard").status == "discarded"
    assert shown(holding) == {"M1": "Lynn"}


def test_a_released_delivery_is_replaced_by_the_next_of_its_name(holding: Platform) -> None:
    close(holding, held(holding, "acme_20250106.csv", line("M1"), line("M2")))
    deliver(holding, "acme_20250106.csv", csv_of(line("M2", city="Lynn")))
    assert shown(holding) == {"M2": "Lynn"}
    change_feed_is_real(holding)


def test_a_delivery_that_takes_back_too_much_is_released_too(holding: Platform) -> None:
    deliver(holding, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(9))))
    second = deliver(holding, "acme_20250106.csv", csv_of(line("M1")))
    assert (second.status, len(shown(holding))) == ("held", 9)
    assert close(holding, second.delivery).status == "succeeded"
    assert shown(holding) == {"M1": "Boston"}


def test_an_erased_member_of_a_released_delivery_stays_erased(holding: Platform) -> None:
    delivery = held(holding)
    erase_member(holding, "acme", "M2", Request(wait=0))
    assert close(holding, delivery).counts.suppressed == 1
    assert shown(holding) == {"M1": "Boston"}


def test_a_delivery_is_released_under_keys_that_were_rotated_meanwhile(holding: Platform) -> None:
    delivery = held(holding)
    deliver(holding, "acme_20250101.csv", csv_of(line("M1", city="Lynn"), line("M9")))
    rotate(holding, "acme", wait=0)
    close(Platform.open(holding.places), delivery)
    assert shown(holding) == {"M1": "Boston", "M2": "Boston", "M9": "Boston"}


def test_a_decision_whose_process_died_is_carried_out_by_whoever_comes_next(holding: Platform) -> None:
    delivery = held(holding)
    holding.lake.decisions.put("acme", delivery.file_id, verdict_of("released", "jane", "acme confirms"))
    deliver(holding, "acme_20250106.csv", csv_of(line("M1", city="Lynn"), line("M5")))  # the next of its name
    assert row(holding, delivery)["decision"] == "released"
    assert shown(holding) == {"M1": "Lynn", "M5": "Boston"}
    other = held(holding, "acme_20250107.csv")
    holding.lake.decisions.put("acme", other.file_id, verdict_of("discarded", "jane", "sent by mistake"))
    assert ingest(holding, other, run_id="next").status == "discarded"


@pytest.mark.parametrize("seed", range(6))
def test_deliveries_and_decisions_in_any_order_make_the_same_silver_also_when_it_is_built_again(
    tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    home = install(tmp_path, {"acme": HOLD})
    files = {}
    for day in range(1, 8):
        members = {f"M{n}": chance.choice(["Lynn", "Salem", "Quincy"]) for n in range(6) if chance.random() < 0.6}
        files[f"acme_2025010{day}.csv"] = (members, chance.random() < 0.5, chance.choice(["release", "discard", None]))
    expected: dict[str, str] = {}
    for members, bad, wish in files.values():
        expected |= members if not bad or wish == "release" else {}
    waiting: list[tuple[Delivery, Wish]] = []
    for name in chance.sample(sorted(files), len(files)):
        members, bad, wish = files[name]
        rows = [line(member, city=city) for member, city in members.items()]
        rejected = [line(f"X{n}", zip="1") for n in range(4 + len(rows))] if bad else []
        outcome = deliver(home, name, csv_of(*rows, *rejected))
        assert outcome.status == ("held" if bad else "succeeded")
        if bad and wish:
            waiting.append((outcome.delivery, wish))  # type: ignore[arg-type]
        while waiting and chance.random() < 0.5:
            close(home, *waiting.pop(chance.randrange(len(waiting))))
    for delivery, wish in waiting:
        close(home, delivery, wish)
    assert shown(home) == expected
    change_feed_is_real(home)
    before = home.lake.audit.frame(["file_name", "status", "decision"]).sort("file_name")
    remove_tree(home.lake.silver.path)
    remove_tree(home.lake.audit.path)
    again = Platform.open(home.places, whole=False)
    list(ingest_bronze(again, run_id="again"))
    assert shown(again) == expected
    assert again.lake.audit.frame(["file_name", "status", "decision"]).sort("file_name").equals(before)


def test_in_prod_a_release_takes_a_second_person(holding: Platform) -> None:
    delivery = held(holding)
    prod = Platform.open(replace(holding.places, env="prod"))
    assert close_delivery(prod, delivery, "release", by="jane", reason="acme confirms", wait=0).status == "held"
    assert shown(holding) == {}
    with pytest.raises(UsageError, match="a second person must"):
        close_delivery(prod, delivery, "release", by="jane", reason="really", wait=0)
    done = close_delivery(prod, delivery, "release", by="john", reason="called them", wait=0)
    assert (done.status, done.verdict and done.verdict.decided_by) == ("succeeded", "john")
    kinds = [(e["kind"], e["who"]) for e in prod.lake.events.read("acme") if "release" in e["kind"]]
    assert kinds == [("release_asked", "jane"), ("released", "john")]


def test_in_prod_one_person_may_discard(holding: Platform) -> None:
    delivery = held(holding)
    prod = Platform.open(replace(holding.places, env="prod"))
    assert close_delivery(prod, delivery, "discard", by="jane", reason="test file", wait=0).status == "discarded"


def test_a_delivery_is_named_by_its_id_or_its_file(holding: Platform) -> None:
    delivery = held(holding)
    assert find_delivery(holding, delivery.file_id[:6]) == delivery
    assert find_delivery(holding, "acme_20250106.csv") == delivery
    register(holding, drop(holding, "acme_20250109.csv", csv_of(line("M1"))))
    for unknown in ("acme_20990101.csv", delivery.file_id[:5], "ffffffff"):
        with pytest.raises(UsageError, match="There is no delivery"):
            find_delivery(holding, unknown)


def test_the_commands_say_what_they_did_and_refuse_in_one_line(holding: Platform) -> None:
    delivery, run = held(holding), CliRunner().invoke
    done = run(app, ["release", delivery.file_id, "--reason", "acme confirms", "--json"])
    said = json.loads(done.stdout)
    assert (done.exit_code, said["status"], said["decision"], said["decided_by"]) == (
        0,
        "succeeded",
        "released",
        actor(),
    )
    refused = run(app, ["discard", delivery.file_id, "--reason", "no"])
    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert "cannot be discarded. Released by" in refused.stderr
    assert run(app, ["release", "nothing", "--reason", "x"]).exit_code == 2
    other = held(holding, "acme_20250107.csv")
    done = run(app, ["discard", other.file_name, "--reason", "sent by mistake"])
    assert done.exit_code == 0
    assert "discarded" in done.stdout
    assert holding.lake.audit.frame(["decision"], pl.col("decision").is_not_null()).height == 2
