"""What the quarantine commands say of rejected records: to the person on call, and to the sender."""

import csv
import json
import stat
from pathlib import Path

import pytest

from healthingest.platform import Platform
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, drop, line
from healthingest_tests.unit.test_cli import Shell

YAML = (
    "client_id: acme\n"
    "columns:\n  Member No: member_id\n  Post Code: zip\n"
    "rules:\n  - {id: plan, column: city, in: ['Boston'], description: our plan is sold in Boston only}\n"
)
TEXT = csv_of(
    line("M1"),
    line("SECRET2", zip="SECRETZIP", city="SECRETTOWN"),
    "SECRET3,short",
    line("M4", address='"a\nb"'),
    line("SECRET5", city='"SECRET\nTOWN"'),
    header=HEADER.replace("member_id", "MEMBER NO").replace("zip", "post-code"),
)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """An installation with three files of two clients; for tests that only look."""
    shell = Shell(tmp_path_factory.mktemp("quarantine"))
    from healthingest_tests.conftest import install

    home = configure(install(shell.root, {"acme": YAML, "globex": "client_id: globex\n"}), YAML)
    drop(home, "acme_20250106.csv", TEXT)
    drop(home, "acme_20250107.csv", csv_of(line("M1", dob="x")))
    drop(home, "globex_20250106.csv", csv_of("SECRET9,x", line("M1")))
    assert shell.run("ingest", "--all").code == 0
    return shell


def test_list_shows_a_line_per_delivery_with_its_rules(shell: Shell) -> None:
    said = shell.run("quarantine", "list")
    assert said.code == 0
    for words in ("acme_20250106.csv", "plan 2", "too_few_fields 1", "globex_20250106.csv"):
        assert words in said.out
    assert "SECRET" not in said.out
    found = json.loads(shell.run("quarantine", "list", "--json").out)["deliveries"]
    assert [(d["file_name"], d["records"], d["open"]) for d in found] == [
        ("acme_20250106.csv", 3, 3), ("acme_20250107.csv", 1, 1), ("globex_20250106.csv", 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "files"),
    [
        (["--client", "globex"], ["globex_20250106.csv"]),
        (["--date", "2025-01-07"], ["acme_20250107.csv"]),
        (["--rule", "too_few_fields"], ["acme_20250106.csv", "globex_20250106.csv"]),
        (["--state", "released"], []),
        (["acme_20250107.csv"], ["acme_20250107.csv"]),
        (["--client", "acme", "--rule", "dob.date"], ["acme_20250107.csv"]),
    ],
)
def test_list_can_be_narrowed(shell: Shell, options: list[str], files: list[str]) -> None:
    found = json.loads(shell.run("quarantine", "list", "--json", *options).out)["deliveries"]
    assert [d["file_name"] for d in found] == files


def test_show_tells_each_problem_with_its_line_in_the_senders_words(shell: Shell) -> None:
    said = json.loads(shell.run("quarantine", "show", "acme_20250106.csv", "--json").out)
    assert [(p["record"], p["line"], p["lines"], p["column"], p["rule"]) for p in said["problems"]] == [
        (2, 3, 1, "city", "plan"), (2, 3, 1, "post-code", "zip.us_zip"), (3, 4, 1, "", "too_few_fields"),
        (5, 7, 2, "city", "plan"),
    ]  # fmt: skip
    texts = [p["problem"] for p in said["problems"]]
    assert texts[0] == "our plan is sold in Boston only"
    assert texts[2] == "the record has fewer fields than the header (expected 11, found 2)"
    table = shell.run("quarantine", "show", "acme_20250106.csv", "--record", "5").out
    assert "7-8" in table
    assert "SECRET" not in table + json.dumps(said)


def test_show_opens_the_records_only_when_asked_and_only_with_the_key(shell: Shell, tmp_path: Path) -> None:
    said = shell.run("quarantine", "show", "acme_20250106.csv", "--record", "3", "--values")
    assert "3: SECRET3,short" in said.out
    other = shell.run(
        "quarantine", "show", "acme_20250106.csv", "--values", env={"HEALTHINGEST_KEYRING": str(tmp_path / "k")}
    )
    assert other.code == 1
    assert "SECRET" not in other.out


def test_a_delivery_is_named_by_the_first_digits_of_its_id_too(shell: Shell) -> None:
    found = json.loads(shell.run("quarantine", "list", "--json", "acme_20250107.csv").out)["deliveries"]
    said = json.loads(shell.run("quarantine", "show", found[0]["file_id"][:8], "--json").out)
    assert said["rejected"] == 1
    wrong = shell.run("quarantine", "show", "acme_20250108.csv")
    assert wrong.code == 2
    assert "no delivery" in wrong.err


def test_export_is_a_file_for_the_sender_without_a_value(shell: Shell, tmp_path: Path) -> None:
    out = tmp_path / "feedback.csv"
    said = shell.run("quarantine", "export", "--client", "acme", "--out", str(out))
    assert said.code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "record", "line", "lines", "column", "rule", "problem"]
    assert [(r["file"], r["record"]) for r in rows] == [("acme_20250106.csv", n) for n in "2235"] + [
        ("acme_20250107.csv", "1")
    ]
    assert "SECRET" not in out.read_text()
    assert shell.run("quarantine", "export", "--out", str(tmp_path / "x.txt")).code == 2


def test_values_in_an_export_are_no_formulas(home: Platform, tmp_path: Path) -> None:
    from healthingest.private_file import _safe_for_spreadsheets as safe_for_spreadsheets
    from healthingest.reading import Reader
    from healthingest.rejections import Wanted, problems, rejected

    deliver(home, "acme_20250106.csv", csv_of("=cmd|' /C calc'!A0,x", "-1,x", "a,x"))
    shown = safe_for_spreadsheets(problems(home, rejected(home, Wanted()), Reader.of(home, None, None)))
    assert shown["received"].to_list() == ["'=cmd|' /C calc'!A0,x", "'-1,x", "a,x"]


def test_quarantine_rows_name_contract_config_and_lines(home: Platform) -> None:
    outcome = deliver(home, "acme_20250106.csv", csv_of("short", line("M2", zip="x")))
    rows = home.lake.quarantine.frame().sort("record_no").to_dicts()
    assert [(r["line_no"], r["lines"], r["contract"], r["config_hash"]) for r in rows] == [
        (2, 1, "member/1", outcome.delivery.config_hash), (3, 1, "member/1", outcome.delivery.config_hash),
    ]  # fmt: skip


def test_a_table_of_an_earlier_version_gets_the_columns_it_lacks(home: Platform) -> None:
    from dataclasses import replace

    import polars as pl

    old = replace(
        home.lake.quarantine, schema=pl.Schema({k: v for k, v in home.lake.quarantine.schema.items() if k != "line_no"})
    )
    old.snapshot()
    deliver(home, "acme_20250106.csv", csv_of("short"))
    assert home.lake.quarantine.frame()["line_no"].to_list() == [2]
