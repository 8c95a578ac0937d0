"""Versions of contracts: what a step asks of senders and readers, what is published, and what the registry refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from open_data_contract_standard.model import OpenDataContractStandard
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.contracts.contract import Contract
from healthingest.contracts.exchange import Format, read, written
from healthingest.contracts.versions import changes, compatibility
from healthingest.errors import ConfigError, UsageError
from healthingest.ingest import ingest, register
from healthingest.lake.registrations import Registrations, known_clients
from healthingest.platform import Platform
from healthingest_tests.conftest import CONTRACTS, csv_of, deliver, drop, install, line

Plain = dict[str, Any]
MEMBER: Plain = yaml.safe_load((CONTRACTS / "member" / "1.yaml").read_text())
MIDDLE = {"name": "middle_name", "type": "name", "policy": {"vault": "identity"}}


def copy_of(plain: Plain) -> Plain:
    return dict(yaml.safe_load(yaml.safe_dump(plain)))


def column(plain: Plain, name: str) -> Plain:
    return next(c for c in plain["columns"] if c["name"] == name)


def rule(plain: Plain, rule_id: str) -> Plain:
    return next(r for r in plain["rules"] if r["id"] == rule_id)


def publish(home: Platform, plain: Plain, version: int, contract: str = "member") -> None:
    file = home.places.configs / "contracts" / contract / f"{version}.yaml"
    file.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(plain | {"contract": contract, "version": version}, sort_keys=False))


STEPS: dict[str, tuple[Callable[[Plain], Any], str, str]] = {
    "a column at the end": (lambda c: c["columns"].append(MIDDLE), "additive", "column middle_name: added, optional"),
    "a column in the middle": (
        lambda c: c["columns"].insert(2, MIDDLE), "breaking", "a new column does not stand at the end",
    ),
    "a required column": (
        lambda c: c["columns"].append(MIDDLE | {"required": True}), "breaking", "column middle_name: added, required",
    ),
    "a column less": (lambda c: c["columns"].remove(column(c, "email")), "breaking", "column email: removed"),
    "another order": (lambda c: c["columns"].reverse(), "breaking", "the columns stand in another order"),
    "another type": (
        lambda c: column(c, "city").update(type="name"), "breaking", "column city: text becomes name",
    ),
    "no longer required": (
        lambda c: column(c, "dob").pop("required"), "compatible", "column dob: no longer required",
    ),
    "required now": (lambda c: column(c, "city").update(required=True), "breaking", "column city: required"),
    "other words": (lambda c: column(c, "city").update(description="Town."), "compatible", "another description"),
    "another group": (
        lambda c: column(c, "city").update(policy={"vault": "identity"}), "breaking", "column city: other protection",
    ),
    "something more is made": (
        lambda c: column(c, "dob")["policy"]["generalize"].update(birth_month="month"), "additive",
        "column dob: birth_month is made of it",
    ),
    "something less is made": (
        lambda c: column(c, "zip").update(policy={"vault": "contact"}), "breaking",
        "column zip: zip3 is no longer made of it",
    ),
    "another class": (
        lambda c: column(c, "gender").update({"class": "quasi-identifier"}), "breaking",
        "column gender: free becomes quasi-identifier",
    ),
    "a longer text": (
        lambda c: rule(c, "city.length").update(max_length=200), "compatible", "rule city.length: now at most 100",
    ),
    "a shorter text": (lambda c: rule(c, "city.length").update(max_length=50), "breaking", "rule city.length"),
    "only a warning": (
        lambda c: rule(c, "city.length").update(severity="warn"), "compatible", "rule city.length: now warns",
    ),
    "a rule less": (lambda c: c["rules"].remove(rule(c, "city.length")), "compatible", "rule city.length: removed"),
    "a rule more": (
        lambda c: c["rules"].append({"id": "city.x", "column": "city", "not_in": ["X"]}), "breaking", "rule city.x",
    ),
    "a warning more": (
        lambda c: c["rules"].append({"id": "city.x", "column": "city", "not_in": ["X"], "severity": "warn"}),
        "compatible", "rule city.x: added",
    ),
    "a rule of the new column": (
        lambda c: (
            c["columns"].append(MIDDLE),
            c["rules"].append({"id": "middle.length", "column": "middle_name", "max_length": 9}),
        ),
        "additive", "rule middle.length: added",
    ),
}  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_steps_class_is_that_of_its_gravest_change(step: str) -> None:
    change, expected, said = STEPS[step]
    plain = copy_of(MEMBER)
    change(plain)
    before, after = Contract.model_validate(MEMBER), Contract.model_validate(plain | {"version": 2})
    found = changes(before, after)
    assert compatibility(found) == expected
    assert said in " | ".join(": ".join(filter(None, [c.subject, c.text])) for c in found)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"in": ["A"]}, {"in": ["A", "B"]}, "compatible"),
        ({"in": ["A", "B"]}, {"in": ["A"]}, "breaking"),
        ({"not_in": ["A", "B"]}, {"not_in": ["B"]}, "compatible"),
        ({"not_in": ["B"]}, {"not_in": ["A", "B"]}, "breaking"),
        ({"length": {"min": 2, "max": 5}}, {"length": {"max": 9}}, "compatible"),
        ({"length": {"max": 9}}, {"length": {"min": 2, "max": 9}}, "breaking"),
        ({"number": {"min": 0}}, {"number": {"min": -1}}, "compatible"),
        ({"number": {"min": 0}}, {"number": {"min": 0, "max": 9}}, "breaking"),
        ({"pattern": "[A-B]"}, {"pattern": "[A-C]"}, "breaking"),
        ({"in": ["A"]}, {"not_in": ["B"]}, "breaking"),
        ({"in": ["A"]}, {"in": ["A"], "when": {"column": "state", "filled": True}}, "breaking"),
    ],
)
def test_a_rule_that_lets_all_through_that_passed_is_compatible(before: Plain, after: Plain, expected: str) -> None:
    contracts = [
        Contract.model_validate(MEMBER | {"rules": [{"id": "r", "column": "city"} | asked]})
        for asked in (before, after)
    ]
    assert compatibility(changes(*contracts)) == expected


def test_a_digest_is_of_what_a_contract_says_and_not_of_its_layout() -> None:
    plain = Contract.model_validate(MEMBER)
    said_out = copy_of(MEMBER)
    column(said_out, "city").update(required=False)  # the default, written down
    assert Contract.model_validate(said_out).digest == plain.digest
    column(said_out, "city").update(required=True)
    assert Contract.model_validate(said_out).digest != plain.digest


# --- the registry -------------------------------------------------------------------------------------------------


def test_a_version_is_published_by_the_first_delivery_that_meets_it_and_by_no_other(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    deliver(home, "acme_20250107.csv", csv_of(line("M2")))
    (one,) = Registrations.at(home.places.output).all()
    assert (one.name, one.compatibility, one.changes, one.reason) == ("member/1", None, (), "first met by acme")
    assert one.registered_by
    assert one.digest == Contract.model_validate(MEMBER).digest


def test_the_next_version_is_published_with_what_it_changes(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    plain = copy_of(MEMBER)
    plain["columns"].append(MIDDLE)
    publish(home, plain, 2)
    (home.places.configs / "acme.yaml").write_text("client_id: acme\ncontract: member/2\n")
    deliver(Platform.open(home.places), "acme_20250107.csv", csv_of(line("M2")))
    last = Registrations.at(home.places.output).all("member")[-1]
    assert (last.name, last.compatibility) == ("member/2", "additive")
    assert [(c.subject, c.text) for c in last.changes] == [("column middle_name", "added, optional")]


@pytest.mark.parametrize(("place", "changed"), [(99, 0), (2, 3)])
def test_a_column_at_the_end_changes_nobody_until_it_is_filled(home: Platform, place: int, changed: int) -> None:
    text = csv_of(*(line(f"M{n}") for n in range(3)))
    deliver(home, "acme_20250106.csv", text)
    plain, second = copy_of(MEMBER), {"vault": "contact", "generalize": {"mailing_zip3": "zip3"}}
    plain["columns"].insert(place, {"name": "mailing_zip", "type": "us_zip", "policy": second})
    publish(home, plain, 2)
    (home.places.configs / "acme.yaml").write_text("client_id: acme\ncontract: member/2\n")
    counts = deliver(Platform.open(home.places), "acme_20250107.csv", text).counts
    assert (counts.updated, counts.unchanged) == (changed, 3 - changed)


def problem(home: Platform) -> ConfigError:
    clients = known_clients(home.places)
    assert clients.clients == {}
    (one,) = clients.problems
    return one


def test_an_edited_published_version_is_refused_and_new_layout_is_not(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    publish(home, MEMBER, 1)  # the same in another layout
    assert list(known_clients(home.places).clients) == ["acme"]
    plain = copy_of(MEMBER)
    rule(plain, "city.length").update(max_length=50)
    publish(home, plain, 1)
    said = str(problem(home))
    assert "member/1 is published and was changed since" in said
    assert "member/2" in said
    assert "acme.yaml" in said
    publish(home, MEMBER, 1)
    assert list(known_clients(home.places).clients) == ["acme"]


def test_what_was_registered_with_another_text_is_not_built_again_with_the_new_one(tmp_path: Path) -> None:
    home = install(tmp_path)
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    delivery = register(home, drop(home, "acme_20250107.csv", csv_of(line("M2"))))
    for table in (Registrations.at(home.places.output).path,):  # lost, as everything may be that is not bronze
        for path in sorted(table.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
    plain = copy_of(MEMBER)
    rule(plain, "city.length").update(max_length=50)
    publish(home, plain, 1)
    outcome = ingest(Platform.open(home.places), delivery, run_id="x")
    assert outcome.status == "failed"
    assert "is not the one that this delivery was registered with" in str(outcome.message)


@pytest.mark.parametrize(
    ("change", "version", "said"),
    [
        (lambda c: None, 3, "there is no member/2 before it"),
        (
            lambda c: column(c, "dob").update(policy={"vault": "identity", "generalize": {"birth_year": "month"}}),
            2,
            "birth_year is a number in member/1 and text in member/2",
        ),
        (lambda c: column(c, "member_id").pop("required"), 2, "member_id must be required"),
        (lambda c: column(c, "email").pop("policy"), 2, "this key is required"),
        (lambda c: column(c, "email").update(policy={"keep": True}), 2, "email may name a person"),
    ],
)
def test_the_registry_refuses_what_no_table_can_follow(
    home: Platform, change: Callable[[Plain], Any], version: int, said: str
) -> None:
    plain = copy_of(MEMBER)
    change(plain)
    publish(home, plain, version)
    (home.places.configs / "acme.yaml").write_text(f"client_id: acme\ncontract: member/{version}\n")
    found = str(problem(home))
    assert said in found
    assert "\n" not in found


# --- the commands -------------------------------------------------------------------------------------------------


def test_people_see_versions_their_history_and_their_differences(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTHINGEST_HOME", str(home.places.home))
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    plain = copy_of(MEMBER)
    column(plain, "city").update(required=True)
    plain["columns"].append(MIDDLE)
    publish(home, plain, 2)

    def said(*words: str) -> str:
        done = CliRunner().invoke(app, ["schema", *words])
        assert done.exit_code == 0, done.output
        return done.output

    assert "member/2" in said("show")
    assert "not yet" in said("show")
    assert "middle_name" in said("show", "member")
    assert "middle_name" not in said("show", "member/1")
    assert "first met by acme" in said("history", "member")
    assert "member/1 to member/2: breaking" in said("diff", "member/1", "member/2")
    assert "column middle_name: added, optional" in said("diff", "member/1", "member/2")
    assert yaml.safe_load(said("diff", "member/1", "member/2", "--json"))["compatibility"] == "breaking"
    assert yaml.safe_load(said("show", "member/2", "--json"))["digest"]
    wrong = CliRunner().invoke(app, ["schema", "show", "nobody/1"])
    assert wrong.exit_code == 2
    assert "There is no contract" in wrong.output


# --- as others write them -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["odcs", "json-schema"])
def test_a_contract_is_read_back_as_it_was_written(form: Format) -> None:
    plain = copy_of(MEMBER)
    plain["rules"].append({"id": "city.x", "column": "city", "in": ["X"], "severity": "warn",
                           "when": {"column": "state", "in": ["MA"]}})  # fmt: skip
    contract = Contract.model_validate(plain)
    again = read(written(contract, form), "member", 1)
    assert (again.digest, again) == (contract.digest, contract)


def test_what_is_written_is_valid_by_the_standards_own_schemas() -> None:
    contract = Contract.model_validate(MEMBER)
    jsonschema.validate(yaml.safe_load(written(contract, "odcs")), json.loads(OpenDataContractStandard.json_schema()))
    schema = json.loads(written(contract, "json-schema"))
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    good = {
        "member_id": "M1",
        "first_name": "Ada",
        "last_name": "B",
        "dob": "1980-01-02",
        "state": "MA",
        "zip": "02139",
    }
    assert judge.is_valid(good)
    for wrong in ({"zip": "2139"}, {"gender": "man"}, {"city": "x" * 101}, {"member_id": "a b"}):
        assert not judge.is_valid(good | wrong), wrong
    assert not judge.is_valid({k: v for k, v in good.items() if k != "dob"})


def test_what_does_not_say_what_becomes_of_values_is_refused() -> None:
    token = {"type": "string", "x-healthingest": {"policy": {"token": True}}}
    schema = {"$schema": "x", "properties": {"member_id": token, "email": {"type": "string", "format": "email"}}}
    with pytest.raises(UsageError, match="becomes of the values of email"):
        read(json.dumps(schema), "member", 1)
    for text, said in (("[", "neither YAML nor JSON"), ("- a", "no contract"), ("a: b", "neither a JSON Schema")):
        with pytest.raises(UsageError, match=said):
            read(text, "member", 1)


def test_a_contract_goes_out_and_comes_back_as_the_next_version(
    home: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEALTHINGEST_HOME", str(home.places.home))
    out = tmp_path / "member.yaml"
    assert CliRunner().invoke(app, ["schema", "export", "member/1", "--out", str(out)]).exit_code == 0
    done = CliRunner().invoke(app, ["schema", "import", str(out), "member/2"])
    assert (done.exit_code, done.output.count("\n")) == (0, 1), done.output
    (home.places.configs / "acme.yaml").write_text("client_id: acme\ncontract: member/2\n")
    assert deliver(Platform.open(home.places), "acme_20250106.csv", csv_of(line("M1"))).status == "succeeded"
    for wrong in (["import", str(out), "member/2"], ["import", str(out), "member/4"], ["import", str(out), "member"],
                  ["export", "member/1", "--out", str(out)]):  # fmt: skip
        done = CliRunner().invoke(app, ["schema", *wrong])
        assert done.exit_code in {1, 2}, wrong
        assert done.stderr.count("\n") == 1
