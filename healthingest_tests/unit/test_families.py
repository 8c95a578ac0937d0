"""Dependents whose subscriber is not in the file, and dates that run backwards: rules that a client may switch on."""

import random
from pathlib import Path

import pytest

from healthingest.erase import Request, erase_member
from healthingest.model import Outcome
from healthingest.platform import Platform
from healthingest_tests.conftest import CONTRACTS, HEADER, configure, csv_of, deliver, examples, line
from healthingest_tests.unit.test_repair import exported, mended, take_in
from healthingest_tests.unit.test_revert import rebuilt, shown

COLUMNS = """  - {name: subscriber_id, type: text, policy: {drop: true}}
  - {name: relationship, type: text, policy: {keep: true}}
  - {name: effective_date, type: date, policy: {drop: true}}
  - {name: termination_date, type: date, policy: {drop: true}}
"""
YAML = """client_id: acme
contract: family/1
quality: {max_invalid_ratio: 1.0}
rules:
  - {id: subscriber_present, column: subscriber_id, subscriber: {relationship: relationship, self_values: ["18"]}}
  - {id: term_after_effective, column: termination_date, compare: {is: ">=", to: effective_date}}
"""
MORE = ",subscriber_id,relationship,effective_date,termination_date"


def record(
    member: str, subscriber: str = "", relation: str = "", dates: tuple[str, str] = ("", ""), **values: str
) -> str:
    return ",".join([line(member, **values), subscriber, relation, *dates])


@pytest.fixture
def families(home: Platform) -> Platform:
    folder = home.places.configs / "contracts" / "family"
    folder.mkdir(parents=True)
    member = (CONTRACTS / "member" / "1.yaml").read_text().replace("contract: member", "contract: family")
    (folder / "1.yaml").write_text(_with_columns(member))
    return configure(home, YAML)


def _with_columns(member: str) -> str:
    before, rules, after = member.partition("\nrules:")
    return before.rstrip("\n") + "\n" + COLUMNS + rules + after


def send(home: Platform, name: str, *records: str) -> Outcome:
    return deliver(home, name, csv_of(*records, header=HEADER + MORE))


def refused(home: Platform) -> list[tuple[int, list[str]]]:
    rows = home.lake.quarantine.frame(["record_no", "reasons"]).sort("record_no")
    return [(number, [reason["rule"] for reason in reasons]) for number, reasons in rows.rows()]


def test_dependents_without_a_sound_subscriber_in_the_file_are_refused(
    families: Platform,
) -> None:
    outcome = send(
        families, "acme_20250106.csv",
        record("S1", "S1", "18"), record("D1", "S1", "01"), record("D2", "S9", "19"),
        record("S2", "S2", "18", zip="1"), record("D3", "S2", "19"), record("N1"),
    )  # fmt: skip
    assert shown(families).keys() == {"S1", "D1", "N1"}
    assert refused(families) == [
        (3, ["subscriber_present"]), (4, ["zip.us_zip"]), (5, ["subscriber_present"]),
    ]  # fmt: skip
    assert (outcome.counts.accepted, outcome.counts.rejected) == (3, 3)
    assert shown(rebuilt(families)).keys() == {"S1", "D1", "N1"}


def test_the_rule_can_warn_and_is_off_unless_the_client_has_it(families: Platform) -> None:
    home = configure(families, YAML.replace('["18"]}}', '["18"]}, severity: warn}'))
    outcome = send(home, "acme_20250106.csv", record("D1", "S9", "19"))
    assert (outcome.counts.accepted, outcome.counts.warned) == (1, 1)
    home = configure(families, YAML.partition("rules:")[0])
    assert send(home, "acme_20250107.csv", record("D2", "S9", "19")).counts.rejected == 0


def test_a_termination_before_the_effective_date_is_refused(families: Platform) -> None:
    send(
        families, "acme_20250106.csv", record("A", dates=("2025-01-01", "2024-12-31")),
        record("B", dates=("2025-01-01", "2025-01-01")), record("C", dates=("2025-01-01", "")),
    )  # fmt: skip
    assert refused(families) == [(1, ["term_after_effective"])]


def test_a_repair_beside_an_erased_subscriber_is_taken(families: Platform, tmp_path: Path) -> None:
    send(families, "acme_20250106.csv", record("S1", "S1", "18"), record("D1", "S1", "19"), record("N1", zip="1"))
    erase_member(families, "acme", "S1", Request(wait=0))
    rows = exported(families, tmp_path / "open.csv")
    rows[0]["zip"] = "02139"
    assert take_in(families, mended(tmp_path / "open.csv", rows)) == ["succeeded"]
    assert shown(families).keys() == {"D1", "N1"}


def test_dependents_of_an_erased_subscriber_stay_also_when_silver_is_built_again(families: Platform) -> None:
    send(families, "acme_20250106.csv", record("S1", "S1", "18"), record("D1", "S1", "19"))
    erase_member(families, "acme", "S1", Request(wait=0))
    assert shown(families).keys() == {"D1"}
    assert shown(rebuilt(families)).keys() == {"D1"}


@pytest.mark.parametrize("seed", range(examples(4)))
def test_what_is_refused_is_what_the_rule_defines(families: Platform, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    people = []
    for _ in range(25):
        member, bad = f"P{chance.randint(0, 15)}", chance.random() < 0.2
        subscriber = chance.choice([member, f"P{chance.randint(0, 15)}", ""])
        people.append((member, subscriber, chance.choice(["18", "01", ""]), bad))
    send(families, "acme_20250106.csv", *[record(m, s, r, zip="1" if bad else "02139") for m, s, r, bad in people])
    last = {m: (s, r) for m, s, r, bad in people if not bad}
    there = {m for m, (s, r) in last.items() if s in {m, ""} or r == "18"}
    orphans = {
        number for number, (m, s, r, bad) in enumerate(people, 1)
        if not bad and s not in {m, ""} and r != "18" and s not in there
    }  # fmt: skip
    assert {number for number, rules in refused(families) if "subscriber_present" in rules} == orphans
