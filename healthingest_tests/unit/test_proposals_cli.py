"""`healthingest schema propose|list|approve|reject`, as a person types them."""

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.platform import Platform
from healthingest_tests.conftest import HEADER, csv_of, deliver, line

Run = Callable[..., Result]


@pytest.fixture
def run(home: Platform) -> Run:
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",gold", line("M2") + ",", header=f"{HEADER},Plan"))
    return lambda *words: CliRunner().invoke(app, ["schema", *words])


def test_what_waits_is_listed_with_what_approving_would_do(run: Run) -> None:
    listed = run("list")
    assert listed.exit_code == 0
    assert "acme.added.plan" in listed.output
    (one,) = json.loads(run("list", "--json").output)["proposals"]
    assert one["impact"] == "would add column plan and fill it from 1 records of 1 delivery"
    assert one["change"]["needs"].startswith("A column without a privacy policy cannot be approved")
    shown = run("list", "acme.added.plan")
    assert 'says: The header has a column "Plan" that member/1 does not know.' in shown.output
    assert "gold" not in shown.output


def test_a_plan_shows_the_diffs_and_changes_nothing(run: Run, home: Platform) -> None:
    words = ("approve", "acme.added.plan", "--policy", "{vault: contact, mask: {plan_start: first}}", "--type", "text")
    planned = run(*words, "--plan")
    assert planned.exit_code == 0, planned.output
    assert "+  - name: plan" in planned.output
    assert "+contract: member/2" in planned.output
    assert "would_read_again: 1" in planned.output
    assert not (home.places.configs / "contracts" / "member" / "2.yaml").exists()


def test_it_is_approved_in_one_command_and_then_nothing_waits(run: Run, home: Platform) -> None:
    bare = run("approve", "acme.added.plan")
    assert (bare.exit_code, bare.output.count("\n")) == (2, 1)
    kept = run("approve", "acme.added.plan", "--policy", "keep", "--type", "name")
    assert kept.exit_code == 1
    assert "may name a person and cannot be kept in the clear" in kept.output
    done = run("approve", "acme.added.plan", "--policy", "vault:contact", "--reason", "acme asked for it", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (said["state"], [file["status"] for file in said["files"]]) == ("applied", ["succeeded"])
    assert run("list").output == "No change waits for approval.\n"
    assert "acme asked for it" in run("history", "member").output


def test_wrong_words_are_told_in_a_sentence(run: Run) -> None:
    for words, said in (
        (
            ("approve", "acme.added.x", "--policy", "keep"),
            "There is no proposal 'acme.added.x'; there is acme.added.plan.",
        ),
        (("approve", "acme.added.plan", "--policy", "secret"), "Write a policy as vault:GROUP"),
        (("approve", "acme.added.plan", "--map", "NB"), "Write --map as WORD=CODE"),
        (("approve", "acme.added.plan", "--policy", "vault:a", "--type", "colour"), "type"),
        (("propose", "--client", "nobody"), "There is no client nobody"),
        (("reject", "acme.added.plan", "--reason", " "), "one line of text"),
    ):
        done = run(*words)
        assert done.exit_code in {1, 2}
        assert said in done.output
        assert "Traceback" not in done.output


def test_what_is_rejected_can_be_opened_again(run: Run) -> None:
    assert run("reject", "acme.added.plan", "--reason", "not for us").exit_code == 0
    assert run("propose").output == "No change waits for approval.\n"
    assert "rejected" in run("list", "--all").output
    assert "acme.added.plan" in run("propose", "--reopen", "acme.added.plan").output
