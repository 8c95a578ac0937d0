"""Rule kinds, conditions and severities; transforms and hooks; what of a whole file is held against its client."""

from collections.abc import Callable
from pathlib import Path

import pytest

from healthingest.contracts.clients import load_client
from healthingest.errors import ConfigError
from healthingest.platform import Platform
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, line
from healthingest_tests.unit.test_records import check, failure, plain_client, rules, standard


def passing(rule: dict[str, object], *values: str, column: str = "city", **source: object) -> list[str]:
    """Those values of one column that a rule lets through."""
    client = plain_client(rules=[{"id": "r", "column": column, **rule}], **source)
    result = check(csv_of(*(line(f"M{n}", **{column: f'"{v}"'}) for n, v in enumerate(values))), client)
    assert all(rules(result, n) == {"r"} for n in result.reasons)
    return [values[n - 1] for n in sorted(result.accepted)]


@pytest.mark.parametrize(
    ("rule", "values", "passes"),
    [
        ({"not_blank": True}, ["x", "", " ", "NULL", "\u200b"], ["x"]),
        ({"length": {"min": 2, "max": 3}}, ["a", "ab", "é李x", "abcd", ""], ["ab", "é李x", ""]),
        ({"length": {"min": 2}}, ["a", "ab"], ["ab"]),
        ({"max_length": 2}, ["ab", "abc"], ["ab"]),
        ({"pattern": "a|b"}, ["a", "b", "zb", "ax", "ab", ""], ["a", "b", ""]),
        ({"pattern": "[0-9]{2}"}, ["12", "١٢", "123"], ["12"]),
        ({"in": ["NO", "x"]}, ["NO", "no", "x", ""], ["NO", "x", ""]),
        ({"not_in": ["noone", "x"]}, ["noone", "a", ""], ["a", ""]),
        (
            {"number": {"min": 0, "max": 120}},
            ["0", "120", "120.5", "-1", "abc", "1e2", "1,5", "", "00012.50", "٣"],
            ["0", "120", "", "00012.50"],
        ),
        ({"number": {"min": -1.5}}, ["-1.5", "-1.6", "999999"], ["-1.5", "999999"]),
        ({"is": "ssn"}, ["123-45-6789", "123456789", "000-45-6789", "666-45-6789", "900-45-6789", "123-00-6789",
                         "123-45-0000", "12-345-6789", "123-456789", ""], ["123-45-6789", "123456789", ""]),
        ({"is": "mbi"}, ["1EG4-TE5-MK73", "1EG4TE5MK73", "1eg4te5mk73", "1EG4-TE5MK73", "0EG4TE5MK73", "1SG4TE5MK73",
                         "1EG4TE5MK7", ""], ["1EG4-TE5-MK73", "1EG4TE5MK73", "1eg4te5mk73", ""]),
        ({"is": "npi"}, ["1234567893", "1234567890", "3234567893", "123456789", "12345678931", "1245319599", ""],
         ["1234567893", "1245319599", ""]),
        ({"is": "us_zip"}, ["02139", "2139", ""], ["02139", ""]),
        ({"is": "phone"}, ["617-253-1000", "555-555-5555", ""], ["617-253-1000", ""]),
        ({"is": "date"}, ["2020-02-29", "2019-02-29"], ["2020-02-29"]),
    ],
)  # fmt: skip
def test_each_rule_kind_lets_through_what_it_says(
    rule: dict[str, object], values: list[str], passes: list[str]
) -> None:
    assert passing(rule, *values) == passes


@pytest.mark.parametrize(
    ("bounds", "passes"),
    [
        ({"max": "creation_date - 18y"}, [1, 2, 3]),
        ({"min": "creation_date - 100y"}, [2, 3, 4]),
        ({"min": "creation_date-6574d", "max": "creation_date"}, [4]),
        ({"min": "creation_date - 6575d"}, [3, 4]),
        ({"min": "1925-01-06", "max": "1925-01-06"}, [2]),
        ({"max": "creation_date - 1200m"}, [1, 2]),
    ],
)
def test_dates_are_held_against_the_deliverys_own(bounds: dict[str, str], passes: list[int]) -> None:
    dates = ["1925-01-05", "1925-01-06", "2007-01-06", "2007-01-07"]  # the delivery is of 2025-01-06
    assert passing({"between": bounds}, *dates, column="dob") == [dates[n - 1] for n in passes]


@pytest.mark.parametrize(
    ("operator", "passes"),
    [("<", {1}), ("<=", {1, 2}), (">", {3}), (">=", {2, 3}), ("==", {2, 5}), ("!=", {1, 3, 4})],
)
def test_columns_are_compared_as_numbers_and_pass_where_one_is_empty(operator: str, passes: set[int]) -> None:
    client = plain_client(rules=[{"id": "c", "column": "address", "compare": {"is": operator, "to": "city"}}])
    pairs = [("9", "10"), ("10", "10"), ("10", "9"), ("x", "10"), ("x", "x"), ("", "1"), ("1", "")]
    result = check(csv_of(*(line(f"M{n}", address=a, city=b) for n, (a, b) in enumerate(pairs))), client)
    assert set(result.accepted) == passes | {6, 7}


def test_dates_are_compared_as_dates_in_whatever_format_they_come() -> None:
    client = plain_client(
        columns={"dob": {"to": "dob", "date_formats": "%m/%d/%Y"}},
        rules=[{"id": "c", "column": "dob", "compare": {"is": "<", "to": "creation_date"}}],
    )
    lines = [line("M1", dob="12/31/1999") + ",2000-01-01", line("M2", dob="01/02/2000") + ",2000-01-01"]
    result = check(csv_of(*lines, header=HEADER + ",creation_date"), client)
    assert sorted(result.accepted) == [1]


@pytest.mark.parametrize(
    ("when", "asked"),
    [
        ({"in": ["MA"]}, {"MA"}), ({"not_in": ["MA"]}, {"NH", ""}), ({"pattern": "N.*"}, {"NH"}),
        ({"filled": True}, {"MA", "NH"}), ({"filled": False}, {""}),
    ],
)  # fmt: skip
def test_a_condition_asks_only_the_records_that_meet_it(when: dict[str, object], asked: set[str]) -> None:
    client = plain_client(rules=[{"id": "r", "column": "zip", "not_blank": True, "when": {"column": "state", **when}}])
    states = ["MA", "NH", ""]
    result = check(csv_of(*(line(f"M{s}0", state=s, zip="") for s in states)), client)
    assert {states[n - 1] for n in result.reasons} == asked


def test_unique_rejects_every_copy_and_no_empty_value() -> None:
    client = plain_client(rules=[{"id": "one", "column": "email", "unique": True}])
    emails = ["a@x.org", "b@x.org", "A@X.ORG", "", "", "c@x.org"]
    result = check(csv_of(*(line(f"M{n}", email=e) for n, e in enumerate(emails))), client)
    assert result.reasons == {n: {("email", "one", "unique")} for n in (1, 3)}


def test_unique_may_take_several_columns_together_and_look_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healthingest.records.frame._BLOCK", 300)
    client = plain_client(rules=[{"id": "one", "column": "last_name", "unique": {"with": ["dob"]}}])
    names = [f"N{n}" for n in range(40)]
    lines = [line(f"M{n}", last_name=name) for n, name in enumerate([*names, "N3", "N4"])]
    lines[41] = line("M41", last_name="N4", dob="1981-01-01")
    result = check(csv_of(*lines, "short"), client)
    assert set(result.reasons) == {4, 41, 43}


def test_a_warning_accepts_its_record_and_is_counted() -> None:
    client = plain_client(
        rules=[
            {"id": "w", "column": "city", "in": ["Boston"], "severity": "warn"},
            {"id": "v", "column": "state", "in": ["MA"], "severity": "warn"},
        ]
    )
    lines = [line("M1"), line("M2", city="Rome"), line("M3", city="Rome", state="NH"), line("M4", city="Rome", zip="x")]
    result = check(csv_of(*lines), client)
    assert (sorted(result.accepted), set(result.reasons), result.counts.warned) == ([1, 2, 3], {4}, 2)
    assert rules(result, 4) == {"zip.us_zip"}
    assert {(r.rule, r.severity, r.records) for r in result.profile.rules} == {
        ("w", "warn", 2), ("v", "warn", 1), ("zip.us_zip", "error", 1),
    }  # fmt: skip


def test_warnings_reach_the_audit_row_and_the_message(home: Platform) -> None:
    home = configure(home, 'client_id: acme\nrules: [{id: w, column: city, in: ["Rome"], severity: warn}]\n')
    outcome = deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", city="Rome")))
    row = home.lake.audit.row(outcome.delivery.file_id)
    assert row is not None
    assert (row["status"], row["warned"], row["rejected"]) == ("succeeded", 1, 0)
    assert row["rules"] == [{"column": "city", "rule": "w", "kind": "in", "records": 1, "severity": "warn"}]
    assert "warnings: 1" in (outcome.message or "")


def test_the_profile_counts_rules_pairs_and_filled_columns() -> None:
    lines = [line("M1", zip="", city=""), line("M2", zip="x", email="x"), line("M3", zip="x", email="y"), "short"]
    profile = check(csv_of(*lines), plain_client(columns={"E-Mail": "email"})).profile
    assert {(p.first, p.second, p.records) for p in profile.pairs} == {("email.email", "zip.us_zip", 2)}
    filled = {f.column: (f.header, f.records) for f in profile.filled}
    assert filled["zip"] == ("zip", 2)
    assert filled["city"] == ("city", 2)
    assert filled["creation_date"] == (None, 0)


# --- refused when the config is loaded ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("yaml", "line_no", "words"),
    [
        ("rules:\n  - {id: a, column: city, number: {min: 2, max: 1}}", 3, "nothing would pass"),
        ("rules:\n  - {id: a, column: city, length: {}}", 3, "give min, max or both"),
        ("rules:\n  - {id: a, column: city, pattern: '('}", 3, "does not compile"),
        ("rules:\n  - {id: a, column: city, pattern: '(?!x)y'}", 3, "look-around"),
        ("rules:\n  - {id: a, column: town, pattern: 'x'}", 3, "no column town"),
        ("rules:\n  - {id: a, column: city, pattern: 'x', in: ['y']}", 3, "exactly one of"),
        ("rules:\n  - {id: a, column: city, in: [NO]}", 3, '"NO"'),
        ("rules:\n  - {id: a, column: city, is: credit_card}", 3, "ssn"),
        ("rules:\n  - {id: a, column: city, unique: true, when: {column: state, filled: true}}", 3, "conditional"),
        ("rules:\n  - {id: a, column: city, not_blank: true, when: {column: nope, filled: true}}", 3, "no column nope"),
        ("rules:\n  - {id: a, column: city, not_blank: true, when: {column: state}}", 3, "exactly one of"),
        ("rules:\n  - {id: a, column: city, not_blank: true, when: {column: state, pattern: '['}}", 3, "compile"),
        ("rules:\n  - {id: a, column: city, compare: {is: '<', to: dob}}", 3, "only one of them is a date"),
        ("rules:\n  - {id: a, column: city, compare: {is: '=<', to: state}}", 3, "'<='"),
        ("rules:\n  - {id: a, column: dob, between: {min: 'creation_date - 5w'}}", 3, "creation_date - 120y"),
        ("rules:\n  - {id: a, column: city, between: {min: '1900-01-01'}}", 3, "date columns"),
        ("rules:\n  - {id: a, column: city, not_blank: true, severity: fatal}", 3, "'warn'"),
        ("rules:\n  - {id: zip.us_zip, column: zip, not_blank: true}", 3, "built in"),
        ("source:\n  delimiter: '||'", 3, "has 2"),
        ("source:\n  delimiter: '\"'", 2, "two different"),
        ("source:\n  quote: 'ab'", 3, "one ASCII character"),
        ("source:\n  header: false", 2, "names"),
        ("source:\n  names: [a]", 2, "header: false"),
        ("source:\n  encoding: [utf-8, utf-16]", 3, "alone"),
        ("source:\n  encoding: shift_jis", 3, "one-byte"),
        ("source:\n  encoding: utf-7", 3, "one-byte"),
        ("columns:\n  A: {to: city, zip_repair: true}", 3, "ZIP"),
        ("columns:\n  A: {to: city, date_formats: '%Y-%m-%d'}", 3, "dates"),
        ("columns:\n  A: {to: city, case: camel}", 3, "'upper'"),
        ("transform:\n  - {concat: [A, B], to: town}", 3, "no column town"),
        ("transform:\n  - {concat: [A, B], to: [city, state]}", 3, "one column"),
        ("transform:\n  - {split: A, to: city}", 3, "two or more"),
        ("transform:\n  - {split: A, concat: [A, B], to: [city, state]}", 3, "exactly one of"),
        ("transform:\n  - {split: A, to: [city, state]}\n  - {concat: [C, D], to: city}", 4, "two steps make city"),
        ("transform:\n  - {hook: nope/1, to: city}", 3, "hooks/nope/1.py"),
        ("transform:\n  - {split: A, to: [city, city]}", 3, "twice"),
        ("rules:\n  - {id: dob.not_ahead, column: dob, not_blank: true}", 3, "built in"),
        ("rules:\n  - {id: encoding, column: dob, not_blank: true}", 3, "built in"),
        ("rules:\n  - {id: dob.range, column: city, not_blank: true}", 3, "contract's rule of dob"),
        ("rules:\n  - {id: a, column: state, in: [Massachusetts]}", 3, "never a standard value of state"),
        ("rules:\n  - {id: a, column: city, not_blank: true, when: {column: gender, in: [Male]}}", 3, "of gender"),
        ("rules:\n  - {id: a, column: dob, between: {min: '2020-01-01', max: '1900-01-01'}}", 3, "min is after max"),
        ("rules:\n  - {id: a, column: dob, between: {max: 'creation_date + 8000y'}}", 3, "creation_date - 120y"),
        ("rules:\n  - {id: a, column: city, length: {max: -1}}", 3, "whole number"),
        ("rules:\n  - {id: a, column: city, number: {min: '5'}}", 3, "write a number"),
        ("rules:\n  - {id: a, column: city, unique: {with: [city]}}", 3, "with itself"),
        ("rules:\n  - {id: a, column: city, unique: maybe}", 3, "write true"),
        ("source:\n  delimiter: M", 3, "one ASCII character"),
        ("source: {header: false, names: [a, a]}", 2, "twice"),
        ("source:\n  header: 0", 3, "boolean"),
        ("source:\n  encoding: iso2022_jp", 3, "cannot be read"),
        ("source:\n  encoding: unicode_escape", 3, "cannot be read"),
        ("quality: {min_records: 9, max_records: 1}", 2, "no file would pass"),
        ("quality: {max_volume_change: 0}", 2, "greater than 0"),
    ],
)
def test_a_mistake_is_told_with_its_place_when_the_config_is_loaded(
    client_of: Callable[[str], object], yaml: str, line_no: int, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        client_of(yaml + "\n")
    assert caught.value.line == line_no
    assert f"acme.yaml:{line_no}" in str(caught.value)
    assert words in str(caught.value)


# --- transforms -----------------------------------------------------------------------------------------------

PEOPLE = "member_id,Full,dob,Street,Unit,State"


def test_columns_are_concatenated_and_split_before_anything_is_checked() -> None:
    client = plain_client(
        transform=[
            {"split": "Full", "separator": ",", "to": ["last_name", "first_name"]},
            {"concat": ["Street", "Unit"], "to": "address"},
        ],
    )
    text = csv_of(
        'M1,"King, Ada, Countess",1980-12-10,12 Main,Apt 3,MA', "M2,Cher,1980-12-10,12 Main,,MA",
        'M3,"B, A",1980-12-10,N/A,NULL,MA', header=PEOPLE,
    )  # fmt: skip
    result = check(text, client)
    assert [(r["last_name"], r["first_name"], r["address"]) for r in result.accepted.values()] == [
        ("King", "Ada, Countess", "12 Main Apt 3"), ("B", "A", None),
    ]  # fmt: skip
    assert rules(result, 2) == {"first_name.required"}
    assert result.extra == ()
    assert failure(csv_of("M1,1980-12-10", header="member_id,dob"), client).kind == "missing_column"
    assert failure(csv_of("x", header=PEOPLE + ",full"), client).kind == "duplicate_column"


def test_values_are_stripped_cased_mapped_repaired_and_filled() -> None:
    client = plain_client(
        columns={
            "member_id": {"to": "member_id", "strip": "#*"},
            "last_name": {"to": "last_name", "case": "upper"},
            "gender": {"to": "gender", "map": {"1": "M", "2": "F", "9": ""}},
            "state": {"to": "state", "default": "MA"},
            "zip": {"to": "zip", "zip_repair": True},
        }
    )
    result = check(
        csv_of(
            line("#M1*", last_name="o'brien", gender="1", state="", zip="2139"),
            line("M2", gender="9", zip="21391234"),
            line("M3", gender="3", zip="501"),
            line("M4", gender="2", zip="2139-1234"),
        ),
        client,
    )
    first, second, fourth = result.accepted.values()
    assert (first["member_id"], first["last_name"], first["gender"], first["state"], first["zip"]) == (
        "M1", "O'BRIEN", "M", "MA", "02139",
    )  # fmt: skip
    assert (second["gender"], second["zip"], fourth["zip"]) == (None, "02139-1234", "02139-1234")
    assert rules(result, 3) == {"gender.gender", "zip.us_zip"}
    assert rules(check(csv_of(line("M1", zip="2139"))), 1) == {"zip.us_zip"}  # never unless the client says so


def test_a_required_column_may_lack_where_the_client_has_a_default() -> None:
    client = plain_client(columns={"dob": {"to": "dob", "default": "1900-01-01"}})
    assert check("member_id,first_name,last_name\nM1,A,B\n", client).accepted[1]["dob"] == "1900-01-01"


def hook(home: Platform, text: str, version: int = 1) -> None:
    file = home.places.configs / "hooks" / "ids" / f"{version}.py"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("import polars as pl\n" + text)


WITH_HOOK = "client_id: acme\ntransform:\n  - {hook: ids/1, to: [member_id]}\n"
GOOD_HOOK = "def transform(frame):\n    return frame.with_columns(pl.col('member_id').str.replace('^OLD', 'M'))\n"


def test_a_hook_changes_values_and_is_pinned_with_the_delivery(home: Platform) -> None:
    hook(home, GOOD_HOOK)
    home = configure(home, WITH_HOOK)
    before = home.clients.clients["acme"].config_hash
    assert deliver(home, "acme_20250106.csv", csv_of(line("OLD7"))).status == "succeeded"
    from healthingest.export import export_frame

    assert export_frame(home)["member_id"].to_list() == ["M7"]
    hook(home, GOOD_HOOK + "# other\n")
    home = configure(home, WITH_HOOK)
    assert home.clients.clients["acme"].config_hash != before


def test_a_hook_that_was_changed_in_place_stops_the_deliveries_pinned_to_it(home: Platform) -> None:
    from healthingest.ingest import ingest, register
    from healthingest_tests.conftest import drop

    hook(home, GOOD_HOOK)
    home = configure(home, WITH_HOOK)
    delivery = register(home, drop(home, "acme_20250106.csv", csv_of(line("OLD7"))))
    hook(home, GOOD_HOOK + "# other\n")
    outcome = ingest(configure(home, WITH_HOOK), delivery, run_id="r")
    assert (outcome.status, outcome.error_kind) == ("failed", "config")
    assert "new version" in (outcome.message or "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def transform(frame):\n    raise ValueError(str(frame.rows()))\n", "throws ValueError"),
        ("def transform(frame):\n    return frame.head(0)\n", "another number of records"),
        ("def transform(frame):\n    return frame.reverse()\n", "another order"),
        ("def transform(frame):\n    raise SystemExit\n", "throws SystemExit"),
        ("import sys\nsys.exit(3)\n", "does not load"),
        ("def transform(frame):\n    raise pl.exceptions.PanicException\n", "throws PanicException"),
        ("def transform(frame):\n    return frame.rename({'member_id': 'x'})\n", "other columns"),
        ("def transform(frame):\n    return 7\n", "does not return a frame"),
        ("transform = 3\n", "no function transform"),
        ("import nowhere_to_be_found\n", "does not load"),
        ("def transform(frame:\n", "does not load"),
    ],
)
def test_a_bad_hook_is_refused_when_the_config_is_loaded(home: Platform, text: str, words: str) -> None:
    hook(home, text)
    (problem,) = configure(home, WITH_HOOK).clients.problems
    assert words in str(problem)
    assert "acme.yaml:3, key 'transform.0.hook'" in str(problem)


@pytest.mark.parametrize("error", ["SystemExit", "pl.exceptions.PanicException", "KeyboardInterrupt.__base__"])
def test_whatever_a_hook_throws_or_prints_on_a_delivery_stays_with_it(
    home: Platform, capfd: pytest.CaptureFixture[str], error: str
) -> None:
    ids = "frame['member_id']"
    told = f"    if {ids}.null_count() == 0:\n        print({ids}[0])\n        raise {error}({ids}[0])\n"
    hook(home, f"def transform(frame):\n{told}    return frame\n")
    outcome = deliver(configure(home, WITH_HOOK), "acme_20250106.csv", csv_of(line("SECRET7")))
    assert (outcome.status, outcome.error_kind) == ("failed", "hook")
    assert "SECRET7" not in "".join([outcome.message or "", *capfd.readouterr()])


def test_a_hook_that_fails_on_a_delivery_fails_it_and_tells_no_value(home: Platform) -> None:
    ids = "frame['member_id']"
    told = f"    if {ids}.null_count() == 0:\n        raise KeyError({ids}[0])\n"
    hook(home, f"def transform(frame):\n{told}    return frame\n")
    home = configure(home, WITH_HOOK)
    outcome = deliver(home, "acme_20250106.csv", csv_of(line("SECRET7")))
    assert (outcome.status, outcome.error_kind) == ("failed", "hook")
    assert "ids/1" in (outcome.message or "")
    assert "SECRET7" not in (outcome.message or "")


# --- the file as a whole --------------------------------------------------------------------------------------


def people(count: int) -> str:
    return csv_of(*(line(f"M{n}") for n in range(count)))


@pytest.mark.parametrize(("on_breach", "status"), [("alert", "succeeded"), ("hold", "held")])
@pytest.mark.parametrize(("count", "words"), [(2, "at least 3"), (6, "at most 5")])
def test_a_file_of_too_few_or_too_many_records_is_told_or_held(
    home: Platform, on_breach: str, status: str, count: int, words: str
) -> None:
    home = configure(home, f"client_id: acme\nquality: {{min_records: 3, max_records: 5, on_breach: {on_breach}}}\n")
    outcome = deliver(home, "acme_20250106.csv", people(count))
    assert outcome.status == status
    assert words in (outcome.message or "")
    assert deliver(home, "acme_20250107.csv", people(4)).file_breaches == ()


def test_a_change_of_volume_is_told_against_the_delivery_before_and_never_holds(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {max_volume_change: 0.5, on_breach: hold}\n")
    assert deliver(home, "acme_20250106.csv", people(10)).file_breaches == ()
    assert deliver(home, "acme_20250108.csv", people(15)).file_breaches == ()
    outcome = deliver(home, "acme_20250107.csv", people(4))  # late: held against the 6th, not the 8th
    assert outcome.status == "succeeded"
    assert "-60% against the 10" in (outcome.message or "")


# --- one bad config among ten ---------------------------------------------------------------------------------


def test_one_bad_config_among_ten_stops_its_client_only(home: Platform) -> None:
    for number in range(9):
        (home.places.configs / f"c{number}.yaml").write_text(f"client_id: c{number}\n")
    home = configure(home, "client_id: acme\nrules:\n  - {id: only, column: state, in: [MA, NO]}\n")
    (problem,) = home.clients.problems
    assert str(problem) == (
        "acme.yaml:3, key 'rules.0.in.1': YAML would not read NO as this text; write \"NO\" in quotes."
    )
    for number in range(9):
        assert deliver(home, f"c{number}_20250106.csv", people(2)).status == "succeeded"


def test_the_shipped_contract_puts_every_rule_into_words(tmp_path: Path) -> None:
    from healthingest.records.validate import Validator

    validator = Validator.of(plain_client())
    assert len(validator.reasons) >= 20
    assert all(validator.texts[rule] for rule in validator.reasons)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("ssn", "123456789", "123-45-6789"), ("mbi", "1eg4-te5-mk73", "1EG4TE5MK73"),
        ("npi", "1234567893", "1234567893"), ("npi", "abcdefghij", None), ("ssn", "x", None),
    ],
)  # fmt: skip
def test_numbers_have_one_form(kind: str, text: str, expected: str | None) -> None:
    assert standard(kind, text) == expected


def test_a_config_with_every_new_key_loads(tmp_path: Path, client_of: Callable[[str], object]) -> None:
    client_of(
        "source: {quote: none, skip_lines: 1, header: false, names: [A, B, C, D, E]}\n"
        "columns:\n  A: {to: member_id, strip: '#', case: upper, map: {x: y}}\n"
        "  E: {to: zip, zip_repair: true, default: '02139'}\n"
        "transform:\n  - {split: B, separator: ', ', to: [last_name, first_name]}\n"
        "  - {concat: [C, D], to: dob, separator: '-'}\n"
    )
    assert load_client(tmp_path / "client_configs" / "acme.yaml", tmp_path / "client_configs").made_columns == {
        "last_name", "first_name", "dob",
    }  # fmt: skip
