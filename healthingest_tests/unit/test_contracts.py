"""Client configs and contracts: what is refused when it is loaded, and what the refusal tells its author."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from healthingest.contracts.clients import Client, fingerprint, load_client, load_clients
from healthingest.contracts.contract import load_contract
from healthingest.errors import ConfigError
from healthingest.records.validate import Validator
from healthingest_tests.conftest import CONTRACTS, env_of, install, places_in

MINIMAL_CONTRACT = """\
contract: mini
version: 1
columns:
  - {name: member_id, type: identifier, required: true, policy: {token: true}}
  - {name: born, type: date, policy: {drop: true}}
"""
#: A few kilobytes that stand for 2 ** 99 values.
_BOMB = "client_id: acme\nk0: &k0 [x, x]\n" + "".join(f"k{i}: &k{i} [*k{i - 1}, *k{i - 1}]\n" for i in range(1, 99))


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    places = places_in(tmp_path)
    shutil.copytree(CONTRACTS, places.configs / "contracts")
    return places.configs


def load(configs: Path, text: str) -> Client:
    file = configs / "acme.yaml"
    file.write_text(text)
    return load_client(file, configs)


def refused(configs: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(configs, text)
    return caught.value


def test_a_config_of_one_line_gets_the_defaults_of_the_design(configs: Path) -> None:
    client = load(configs, "client_id: acme\n")
    config = client.config
    assert client.contract.name == "member/1"
    assert (config.source.delimiter, config.source.encodings) == (",", ["utf-8"])
    assert config.source.null_values == ["", "NULL", "N/A"]
    assert (config.quality.max_invalid_ratio, config.quality.on_breach) == (0.05, "alert")
    assert (config.freshness.expect_every.total_seconds(), config.freshness.grace.total_seconds()) == (86400, 14400)
    assert config.schema_evolution == "review"
    assert config.active


def test_the_whole_example_of_the_design_loads(configs: Path) -> None:
    client = load(
        configs,
        """\
client_id: acme
contract: member/1
source:
  delimiter: ","
  encoding: utf-8            # or a fallback list, tried in order, never lossy
  null_values: ["", "NULL", "N/A"]
  creation_date: {from: file_name}          # or {from: column, column: creation_date}
  trailer: {starts_with: "TRAILER", count_field: 2}   # optional control record
columns:                     # their header name -> contract column; and per-column overrides
  MemberID: member_id
  DOB: {to: dob, date_formats: ["%m/%d/%Y"]}
rules:                       # added to the contract's, or overriding one by id
  - {id: ma_only, column: state, in: ["MA", "NH"]}
quality: {max_invalid_ratio: 0.05, on_breach: alert}   # alert | hold
freshness: {expect_every: 24h, grace: 4h}
schema_evolution: review     # review | add_columns | freeze
silver: {buckets: 1, partition_by: [client_id]}
alerts: {slack: "env:ACME_SLACK_WEBHOOK", pagerduty: "env:ACME_PD_KEY"}
""",
    )
    assert client.column_source("dob").date_formats == ["%m/%d/%Y"]
    assert client.config.columns["MemberID"].to == "member_id"


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("client_id: acme\nqualty: {}\n", 2, "qualty", "not known"),
        ("client_id: acme\nquality: {max_invalid_ration: 0.1}\n", 2, "quality.max_invalid_ration", "not known"),
        ("client_id: acme\nquality:\n  max_invalid_ratio: 5\n", 3, "quality.max_invalid_ratio", "less than or equal"),
        ("client_id: acme\nquality:\n  max_invalid_ratio: -0.1\n", 3, "quality.max_invalid_ratio", "greater than"),
        ("client_id: acme\nquality:\n  max_invalid_ratio: true\n", 3, "quality.max_invalid_ratio", "number"),
        ("client_id: acme\nquality: {on_breach: ignore}\n", 2, "quality.on_breach", "'alert' or 'hold'"),
        ("client_id: acme\nclient_id: globex\n", 2, "client_id", "twice"),
        ("client_id: acme\nquality:\n  on_breach: hold\n  on_breach: alert\n", 4, "quality.on_breach", "twice"),
        ("client_id: NO\n", 1, "client_id", 'write "NO" in quotes'),
        ("client_id: 01234\n", 1, "client_id", 'write "01234" in quotes'),
        ("client_id: 12:30\n", 1, "client_id", 'write "12:30" in quotes'),
        ("client_id: 1_000\n", 1, "client_id", 'write "1_000" in quotes'),
        ("client_id: 0x1F\n", 1, "client_id", 'write "0x1F" in quotes'),
        ("client_id: 42\n", 1, "client_id", "string"),
        (
            "client_id: acme\nrules:\n  - id: west\n    column: state\n    in: [CA, NO]\n",
            5, "rules.0.in.1", 'write "NO" in quotes',
        ),
        (
            "client_id: acme\nrules:\n  - {id: z, column: zip, in: [01234]}\n",
            3, "rules.0.in.0", 'write "01234" in quotes',
        ),
        ("client_id: acme\nactive: yes\n", 2, "active", 'write "yes" in quotes'),
        ("client_id: acme\nrules:\n  - {id: r, column: zip, pattern: '['}\n", 3, "rules.0.pattern", "does not compile"),
        ("client_id: acme\nrules:\n  - {id: r, column: zip, pattern: '(?!0)'}\n", 3, "rules.0.pattern", "look-around"),
        ("client_id: acme\nrules:\n  - {id: r, column: zip, pattern: 'a)|(?:b'}\n", 3, "rules.0.pattern", "compile"),
        ("client_id: acme\nrules:\n  - {id: r, column: zap, max_length: 5}\n", 3, "rules.0", "no column zap"),
        ("client_id: acme\nrules:\n  - {id: r, column: zip}\n", 3, "rules.0", "exactly one of"),
        ("client_id: acme\nrules:\n  - {id: r, column: zip, max_length: 5, in: ['1']}\n", 3, "rules.0", "exactly one"),
        ("client_id: acme\nrules:\n  - {id: r, column: dob, between: {min: '20200101'}}\n", 3, "rules.0.between.min",
         "1900-01-01"),
        ("client_id: acme\nrules:\n  - {id: r, column: dob, between: {}}\n", 3, "rules.0.between", "min"),
        ("client_id: acme\nrules:\n  - {id: r, column: zip, between: {min: '2020-01-01'}}\n", 3, "rules.0", "date"),
        (
            ("client_id: acme\nrules:\n  - {id: a, column: zip, max_length: 5}\n"
            "  - {id: a, column: city, max_length: 5}\n"),
            None, None, "same id",
        ),
        ("client_id: acme\ncolumns:\n  MemberNo: member_no\n", 3, "columns.MemberNo", "no column member_no"),
        ("client_id: acme\ncolumns:\n  A: zip\n  B: {to: zip, case: upper}\n", 4, "columns.B", "both lead to zip"),
        ("client_id: acme\ncolumns:\n  D: {to: dob, date_formats: ['%m/%d/%y']}\n", 3, "columns.D.date_formats", "%Y"),
        ("client_id: acme\ncolumns:\n  D: {to: dob, date_formats: []}\n", 3, "columns.D.date_formats", "at least 1"),
        ('client_id: "acme|2025-01-06"\n', 1, "client_id", "letters, digits"),
        ('client_id: "../acme"\n', 1, "client_id", "letters, digits"),
        ('client_id: ""\n', 1, "client_id", "letters, digits"),
        ("client_id: acme\nsource: {delimiter: ';;'}\n", 2, "source.delimiter", "one ASCII character"),
        ("client_id: acme\nsource: {encoding: utf-88}\n", 2, "source.encoding", "there is no encoding utf-88"),
        ("client_id: acme\nsource: {encoding: hex}\n", 2, "source.encoding", "there is no encoding hex"),
        ("client_id: acme\nsource: {encoding: []}\n", 2, "source.encoding", "at least one"),
        ("client_id: acme\nsource: {creation_date: {from: column, column: zip}}\n", 2, "source.creation_date.column",
         "date column"),
        ("client_id: acme\ncontract: member/2\n", 2, "contract", "there is no contract member/2"),
        ("client_id: acme\ncontract: ../member/1\n", 2, "contract", "named like member/1"),
        ("client_id: acme\nfreshness: {expect_every: 24}\n", 2, "freshness.expect_every", "30m, 24h or 7d"),
        ("client_id: acme\nfreshness: {expect_every: 0h}\n", 2, "freshness.expect_every", "every 0"),
        ("client_id: acme\nalerts: {slack: 'https://hooks.example/T0/SECRET'}\n", 2, "alerts", "env:VARIABLE"),
        ("client_id: acme\nsilver: {buckets: 257}\n", 2, "silver.buckets", "256"),
        ("client_id: acme\nsilver: {table: Special}\n", 2, "silver.table", "pattern"),
        ("client_id: acme\nsilver: {partition_by: [creation_date]}\n", 2, "silver", "[client_id]"),
        ("client_id: acme\nsilver: {partition_by: [client_id, creation_date]}\n", 2, "silver", 'one with "table"'),
        (
            "client_id: acme\nsilver: {table: a, buckets: 2, partition_by: [client_id, creation_date]}\n", 2, "silver",
            "no buckets",
        ),
        ("contract: member/1\n", 1, "client_id", "required"),
        ("- client_id: acme\n", None, None, "key: value"),
        ("", None, None, "key: value"),
        ("client_id: [acme\n", 2, None, "not valid YAML"),
        ("client_id: &a acme\ncolumns: &c {x: *c}\n", 2, "columns.x", "alias"),
        (_BOMB, None, None, "aliases to aliases"),
        (f"client_id: acme\nversion: {'1' * 5000}\n", 2, "version", "too long"),
        ("client_id: !!python/object/apply:os.getcwd []\n", None, None, ""),
        ("client_id: acme\n---\nclient_id: b\n", 2, None, "not valid YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_refused_with_file_line_key_and_what_to_write(
    configs: Path, text: str, line: int | None, key: str | None, words: str
) -> None:
    error = refused(configs, text)
    assert error.file.name == "acme.yaml"
    assert "acme.yaml" in str(error)
    assert words in str(error)
    if line is not None:
        assert error.line == line
        assert f"acme.yaml:{line}" in str(error)
    if key is not None:
        assert error.key == key
        assert f"key '{key}'" in str(error)


def test_a_config_that_is_no_file_stops_nobody_else(tmp_path: Path) -> None:
    home = install(tmp_path)
    os.mkfifo(home.places.configs / "globex.yaml")
    (home.places.configs / "initech.yaml").mkdir()
    looked = [sys.executable, "-c", "from healthingest.doctor import examine; [print(f.text) for f in examine()]"]
    env = env_of(home.places)
    said = subprocess.run(looked, env=env, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert "globex.yaml: the file cannot be read as UTF-8 text." in said
    assert "initech.yaml: the file cannot be read as UTF-8 text." in said
    assert "acme" in said
    assert fingerprint(home.places.configs)


@pytest.mark.parametrize("text", ["client_id: SECRET|x\n", "client_id: a\nalerts: {slack: https://h/SECRET}\n"])
def test_a_refusal_does_not_repeat_a_secret(configs: Path, text: str) -> None:
    assert "SECRET" not in str(refused(configs, text))


def test_quoted_values_that_yaml_would_reinterpret_load_as_they_look(configs: Path) -> None:
    client = load(
        configs,
        "client_id: acme\nsource: {null_values: ['NO', '01234', \"12:30\"]}\n"
        "rules:\n  - {id: r, column: state, in: ['NO', CA]}\n",
    )
    assert client.config.source.null_values == ["NO", "01234", "12:30"]
    assert client.config.rules[0].in_ == ["NO", "CA"]


@pytest.mark.parametrize("rule_id", ["dob.date", "member_id.required", "last_name.control_characters"])
def test_a_rule_cannot_take_the_place_of_a_check_that_is_built_in(configs: Path, rule_id: str) -> None:
    column = rule_id.split(".", maxsplit=1)[0]
    error = refused(configs, f"client_id: acme\nrules:\n  - {{id: {rule_id}, column: {column}, max_length: 99}}\n")
    assert error.line == 3
    assert rule_id in str(error)


@pytest.mark.parametrize("broken", ["[" * 5000, "client_id: \x00", "client_id: x\n\tb: 1", "\xff\xfe", "a: *b"])
def test_one_broken_config_of_ten_leaves_nine(configs: Path, broken: str, tmp_path: Path) -> None:
    for number in range(9):
        (configs / f"client_{number}.yaml").write_text(f"client_id: client_{number}\n")
    (configs / "client_4b.yaml").write_bytes(broken.encode("latin-1"))
    clients = load_clients(places_in(tmp_path))
    assert list(clients.clients) == [f"client_{number}" for number in range(9)]
    assert [problem.file.name for problem in clients.problems] == ["client_4b.yaml"]


def test_a_folder_named_like_a_config_stops_nobody(configs: Path, tmp_path: Path) -> None:
    (configs / "acme.yaml").write_text("client_id: acme\n")
    (configs / "zoo.yaml").mkdir()
    clients = load_clients(places_in(tmp_path))
    assert clients.active == ["acme"]
    assert [problem.file.name for problem in clients.problems] == ["zoo.yaml"]


def test_two_files_that_claim_one_client_leave_it_with_the_first(configs: Path, tmp_path: Path) -> None:
    (configs / "a.yaml").write_text("client_id: acme\n")
    (configs / "b.yaml").write_text("client_id: acme\nactive: false\n")
    clients = load_clients(places_in(tmp_path))
    assert clients.active == ["acme"]
    assert clients.problems[0].key == "client_id"
    assert "already taken" in str(clients.problems[0])


def test_an_inactive_client_is_loaded_but_not_served(configs: Path, tmp_path: Path) -> None:
    (configs / "acme.yaml").write_text("client_id: acme\nactive: false\n")
    clients = load_clients(places_in(tmp_path))
    assert list(clients.clients) == ["acme"]
    assert clients.active == []


def test_a_clients_rule_replaces_the_contracts_rule_of_that_id_in_its_place(configs: Path) -> None:
    plain = load(configs, "client_id: acme\n")
    client = load(
        configs,
        "client_id: acme\nrules:\n  - {id: city.length, column: city, max_length: 7}\n"
        "  - {id: ma_only, column: state, in: [MA]}\n",
    )
    assert [r.id for r in client.rules] == [*(r.id for r in plain.rules), "ma_only"]
    assert {r.id: r.max_length for r in client.rules}["city.length"] == 7
    assert {r.id: r.max_length for r in plain.rules}["city.length"] == 100
    assert "ma_only" in Validator.of(client).reasons


def test_the_config_hash_follows_what_decides_and_nothing_else(configs: Path) -> None:
    base = load(configs, "client_id: acme\n").config_hash
    same = load(configs, "# a comment\nquality: {on_breach: alert}\nclient_id: 'acme'\n").config_hash
    alerts = load(configs, "client_id: acme\nalerts: {slack: 'env:X'}\nfreshness: {grace: 1h}\n").config_hash
    other = load(configs, "client_id: acme\nquality: {on_breach: hold}\n").config_hash
    assert base == same == alerts
    assert other != base


def test_a_pinned_config_gives_the_same_client_again(configs: Path) -> None:
    client = load(
        configs,
        "client_id: acme\nsource: {creation_date: {from: column}, trailer: {starts_with: T, count_field: 2}}\n"
        "columns: {DOB: {to: dob, date_formats: ['%m/%d/%Y']}, Id: member_id}\n"
        "rules:\n  - {id: r, column: state, in: [MA]}\n  - {id: d, column: dob, between: {max: creation_date}}\n",
    )
    again = Client.from_pin(client.pin, configs)
    assert again.config == client.config
    assert again.config_hash == client.config_hash


def test_the_fingerprint_changes_with_any_yaml_and_with_nothing_else(configs: Path) -> None:
    (configs / "acme.yaml").write_text("client_id: acme\n")
    seen = [fingerprint(configs)]
    (configs / "notes.txt").write_text("x")
    assert fingerprint(configs) == seen[0]
    (configs / "acme.yaml").write_text("client_id: acme\n# later\n")
    seen.append(fingerprint(configs))
    (configs / "globex.yml").write_text("client_id: globex\n")
    seen.append(fingerprint(configs))
    (configs / "globex.yml").rename(configs / "initech.yml")
    seen.append(fingerprint(configs))
    contract = configs / "contracts" / "member" / "1.yaml"
    contract.write_text(contract.read_text() + "\n")
    seen.append(fingerprint(configs))
    (configs / "initech.yml").unlink()
    seen.append(fingerprint(configs))
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("version: 1", "version: 2"), "the file says it is mini/2"),
        (("contract: mini", "contract: maxi"), "the file says it is maxi/1"),
        (("{drop: true}", "{}"), "must name at least one"),
        (("{drop: true}", "{drop: true, keep: true}"), "cannot stand with"),
        ((", policy: {drop: true}", ""), "required"),
        (("{token: true}", "{vault: identity}"), "exactly the column member_id"),
        (("{drop: true}", "{token: true}"), "exactly the column member_id"),
        (("{drop: true}", "{vault: footer}"), "footer is no name"),
        (("{drop: true}", "{vault: 'a b'}"), "pattern"),
        (("{drop: true}", "{vault: identity, generalize: {_born: year}}"), "name is taken"),
        (("{drop: true}", "{vault: identity, generalize: {client_id: year}}"), "name is taken"),
        (("{drop: true}", "{vault: identity, generalize: {member_id: year}}"), "name is taken"),
        (("{drop: true}", "{generalize: {born3: zip3}}"), "column of type us_zip"),
        (("{drop: true}", "{generalize: {band: age_band}}"), "generalise to a year too"),
        (("type: date, policy: {drop: true}", "type: email, policy: {keep: true}"), "cannot be kept in the clear"),
        *[
            (("type: date, policy: {drop: true}", f"type: {t}, class: {c}, policy: {{keep: true}}"), "leave its class")
            for t in ("email", "phone", "ssn", "mbi")
            for c in ("free", "quasi-identifier")
        ],
        *[
            (("name: born, type: date, policy: {drop: true}", f"name: {name}, type: text, {policy}"), "name is taken")
            for name in ("client_id", "member_token", "creation_date", "last_seen", "sequence")
            for policy in ("policy: {vault: identity}", "class: free, policy: {keep: true}")
        ],
        (("name: born", "name: member_id"), "given twice"),
        (("required: true, policy", "required: false, policy"), "member_id must be required"),
        (("name: born", "name: 'born; drop'"), "pattern"),
        (("type: date", "type: number"), "identifier"),
        (("version: 1\n", "version: 1\nrules: [{id: a, column: x, max_length: 1}]\n"), "no column x"),
        (("version: 1\n", "version: 1\nrules: [{id: born.date, column: born, max_length: 9}]\n"), "born.date"),
        (("version: 1\n", "version: true\n"), ""),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(configs: Path, change: tuple[str, str], words: str) -> None:
    folder = configs / "contracts" / "mini"
    folder.mkdir()
    (folder / "1.yaml").write_text(MINIMAL_CONTRACT)
    load_contract(configs, "mini/1")  # as it stands it is fine
    assert change[0] in MINIMAL_CONTRACT
    (folder / "1.yaml").write_text(MINIMAL_CONTRACT.replace(*change))
    with pytest.raises(ConfigError) as caught:
        load_contract(configs, "mini/1")
    assert "1.yaml" in str(caught.value)
    assert words in str(caught.value)


def test_a_broken_contract_stops_only_the_clients_that_name_it(configs: Path, tmp_path: Path) -> None:
    (configs / "contracts" / "mini").mkdir()
    (configs / "contracts" / "mini" / "1.yaml").write_text("contract: mini\n")
    (configs / "acme.yaml").write_text("client_id: acme\n")
    (configs / "mini.yaml").write_text("client_id: mini\ncontract: mini/1\n")
    clients = load_clients(places_in(tmp_path))
    assert clients.active == ["acme"]
    (problem,) = clients.problems
    assert problem.file.name == "mini.yaml"
    assert "1.yaml" in str(problem)


def test_loaded_models_do_not_change(configs: Path) -> None:
    client = load(configs, "client_id: acme\n")
    with pytest.raises(ValueError, match="frozen"):
        client.contract.version = 2
    with pytest.raises(ValueError, match="frozen"):
        client.config.active = False
