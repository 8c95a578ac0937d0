"""A steward without the identity role can do everything but see values; whoever sees one leaves an event."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.platform import Platform
from healthingest_tests.conftest import configure, csv_of, deliver, line
from healthingest_tests.unit.test_repair import exported, mended
from healthingest_tests.unit.test_revert import shown

ROLES = """roles:
  steward: {purposes: [stewardship]}
  operations: {groups: "*", rejected: true, purposes: [operations]}
"""
VALUES = ("SECRETFIRST", "SECRETLAST", "SECRETCITY", "1980-12-10", "617-253", "SECRETZIP")
REVEALS = {"read", "rejected records", "explained", "export operations"}


def secret(member: str, **more: str) -> str:
    return line(member, first_name="SECRETFIRST", last_name="SECRETLAST", **{"city": "SECRETCITY"} | more)


@pytest.fixture
def desk(home: Platform) -> Platform:
    (home.places.configs / "roles.yaml").write_text(ROLES)
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.6, on_breach: hold}\n")
    deliver(home, "acme_20250106.csv", csv_of(secret("M1"), secret("M2", zip="SECRETZIP"), secret("M3")))
    deliver(
        home, "acme_20250107.csv", csv_of(secret("M1", city="SECRETCITY2"), *[secret(f"X{n}", zip="1") for n in "12"])
    )
    deliver(home, "acme_20250108.csv", csv_of(secret("M3", state="NY"), secret("M4", zip="1")))
    return home


def run(*words: str, stdin: str = "") -> str:
    done = CliRunner().invoke(app, list(words), input=stdin)
    assert done.exit_code in {0, 1}, (words, done.output)
    assert not any(value in done.output for value in VALUES), words
    return done.output


def test_a_steward_without_the_identity_role_does_everything_but_see_values(desk: Platform, tmp_path: Path) -> None:
    role = ("--role", "steward", "--purpose", "stewardship")
    # The client's own corrected record comes by mail; the steward never opens what was sealed.
    rows = exported(desk, tmp_path / "by_mail.csv", "acme_20250106.csv")
    rows[0]["zip"] = "02139"
    mended(tmp_path / "by_mail.csv", rows)
    before = len(reveals(desk))
    for words in (
        ("status",), ("quarantine", "list"), ("quarantine", "show", "acme_20250106.csv"), ("quarantine", "ageing"),
        ("quarantine", "export", "--client", "acme", "--out", str(tmp_path / "export.csv")),
        ("quarantine", "feedback", "--client", "acme", "--out", str(tmp_path / "letter.md")),
        ("release", "acme_20250107.csv", "--reason", "acme confirms"),
        ("quarantine", "replay", str(tmp_path / "by_mail.csv"), "--plan"),
        ("quarantine", "replay", str(tmp_path / "by_mail.csv"), "--yes"),
        ("quarantine", "discard", "acme_20250108.csv", "--reason", "a test record", "--yes"),
        ("revert", "acme_20250107.csv", "--plan"), ("revert", "acme_20250107.csv", "--reason", "wrong", "--yes"),
        ("revert", "acme_20250107.csv", "--undo", "--reason", "right", "--yes"),
        ("quarantine", "release", "--client", "acme", "--plan"), ("ingest", "--all", "--plan"),
        ("marts", "update"), ("marts", "show"), ("report",),
    ):  # fmt: skip
        run(*words)
    assert len(reveals(desk)) == before
    assert "city" in run("explain", "--client", "acme", *role, stdin="M1\n")
    for words in (
        ("quarantine", "export", "--client", "acme", "--values", "--out", str(tmp_path / "no.csv"), *role),
        ("quarantine", "export", "--client", "acme", "--repair", "--out", str(tmp_path / "no.csv"), *role),
        ("quarantine", "show", "acme_20250106.csv", "--values", *role),
    ):
        run(*words)
        assert not (tmp_path / "no.csv").exists()
    for file in ("export.csv", "letter.md"):
        assert not any(value in (tmp_path / file).read_text() for value in VALUES)
    told = [(e["kind"], e["columns"]) for e in reveals(desk)[before:]]
    assert told == [("explained", [])]
    assert shown(desk).keys() == {"M1", "M2", "M3"}


def test_whoever_sees_a_value_leaves_an_event_that_says_who_what_and_why(desk: Platform, tmp_path: Path) -> None:
    def seen(*words: str, stdin: str = "") -> dict[str, object]:
        before = len(reveals(desk))
        done = CliRunner().invoke(app, list(words), input=stdin)
        assert done.exit_code == 0, done.output
        new = reveals(desk)[before:]
        assert len(new) == 1, words
        return new[0]

    out = str(tmp_path / "x.csv")
    event = seen("quarantine", "export", "acme_20250106.csv", "--repair", "--out", out)
    assert (event["kind"], event["members"], event["purpose"]) == ("rejected records", 1, "operations")
    assert seen("quarantine", "show", "acme_20250106.csv", "--values")["kind"] == "rejected records"
    event = seen("explain", "--client", "acme", "--role", "operations", stdin="M1\n")
    assert "first_name" in str(event["columns"])
    assert seen("export", "--out", out)["kind"] == "export operations"


def reveals(home: Platform) -> list[dict[str, object]]:
    return [e for e in home.lake.events.read("acme") if e["kind"] in REVEALS]
