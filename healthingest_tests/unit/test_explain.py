"""What happened to a member, told to whoever may know it: deliveries, changes, the record that counts, refusals."""

import json

import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.errors import UsageError
from healthingest.explain import Explained, explain
from healthingest.platform import Platform
from healthingest.reading import Reader
from healthingest_tests.conftest import csv_of, deliver, line

FILES = {
    "acme_20250106.csv": csv_of(line("M1"), line("M2")),
    "acme_20250107.csv": csv_of(line("M1", city="Salem", email="new@example.com"), line("M2")),
    "acme_20250108.csv": csv_of(line("M1", city="Salem", email="new@example.com", zip="1"), line("M2")),
    "acme_20250109.csv": csv_of(line("M1", city="Salem", email="new@example.com")),
    "acme_20250105.csv": csv_of(line("M1", city="Lynn")),
}


@pytest.fixture
def told(home: Platform) -> Platform:
    for name, text in FILES.items():
        deliver(home, name, text)
    return Platform.open(home.places)


def of(home: Platform, member: str = "M1", role: str | None = None) -> Explained:
    return explain(home, "acme", member, Reader.of(home, role, None), lambda _: None)


def test_each_delivery_says_what_it_changed_in_the_order_of_records(told: Platform) -> None:
    found = of(told)
    everything = {"member_id", "first_name", "last_name", "dob", "gender", "address", "state", "zip", "phone_number"}
    changes = [(m.file_name, set(m.changed or ()), m.sets_row) for m in found.mentions]
    assert changes == [
        ("acme_20250105.csv", everything | {"city", "email"}, False), ("acme_20250106.csv", {"city"}, False),
        ("acme_20250107.csv", {"city", "email"}, True), ("acme_20250109.csv", set(), False),
    ]  # fmt: skip
    assert found.mentions[2].values == {"city": "Salem", "email": "new@example.com"}
    assert [(r.file_name, r.record_no, r.rules) for r in found.refusals] == [
        ("acme_20250108.csv", 1, (("zip", "zip.us_zip"),))
    ]  # fmt: skip
    assert found.in_silver


def test_a_role_without_the_keys_sees_names_of_columns_and_no_value(told: Platform) -> None:
    found = of(told, role="analyst")
    assert [m.changed for m in found.mentions] == [m.changed for m in of(told).mentions]
    assert all(not m.values for m in found.mentions)


def test_who_asked_is_kept_and_no_value_with_it(told: Platform) -> None:
    of(told)
    (event,) = [e for e in told.lake.events.read("acme") if e["kind"] == "explained"]
    assert (event["members"], event["purpose"], "city" in event["columns"]) == (1, "operations", True)
    assert "M1" not in json.dumps(event)
    assert "Salem" not in json.dumps(event)


def test_a_file_that_was_sent_again_no_longer_counts(told: Platform) -> None:
    deliver(told, "acme_20250107.csv", csv_of(line("M2"), line("M3")))
    found = of(Platform.open(told.places))
    assert [(m.file_name, m.active, m.sets_row) for m in found.mentions] == [
        ("acme_20250105.csv", True, False), ("acme_20250106.csv", True, False), ("acme_20250107.csv", False, False),
        ("acme_20250109.csv", True, True),
    ]  # fmt: skip


def test_nobody_is_told_in_a_sentence(told: Platform) -> None:
    with pytest.raises(UsageError, match="ever spoke of this member"):
        of(told, "M99")


def test_the_command_takes_the_id_from_standard_input_and_shows_it_as_a_table_or_json(told: Platform) -> None:
    shown = CliRunner().invoke(app, ["explain", "--client", "acme"], input="M1\n")
    assert shown.exit_code == 0, shown.output
    assert "sets the row" in shown.output
    assert "M1" not in shown.output.replace("= M1", "")
    plain = json.loads(CliRunner().invoke(app, ["explain", "--client", "acme", "--member", "M1", "--json"]).output)
    assert [m["file_name"] for m in plain["mentions"] if m["sets_row"]] == ["acme_20250107.csv"]
