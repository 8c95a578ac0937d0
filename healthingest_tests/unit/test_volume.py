"""The gate on volume: what a delivery adds, changes and drops against the one before, before it is in silver."""

import json

import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.errors import ConfigError
from healthingest.ingest import ingest_many, register
from healthingest.platform import Platform
from healthingest.release import close_delivery
from healthingest_tests.conftest import configure, csv_of, deliver, drop, line
from healthingest_tests.histories import change_feed_is_real
from healthingest_tests.unit.test_revert import rebuilt, shown, take_back

GATE = "client_id: acme\nquality: {volume: {max_added: 0.5, max_changed: 0.5, max_dropped: 0.2}}\n"


def members(*numbers: int, city: str = "Boston") -> str:
    return csv_of(*[line(f"M{n}", city=city) for n in numbers])


@pytest.fixture
def gated(home: Platform) -> Platform:
    home = configure(home, GATE)
    assert deliver(home, "acme_20250106.csv", members(*range(10))).status == "succeeded"
    return home


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (members(*range(7)), "the file drops 3 members (30.0% of 10; at most 20.0% is expected)"),
        (members(*range(16)), "the file adds 6 members (60.0% of 10; at most 50.0% is expected)"),
        (members(*range(10), city="Lynn"), "the file changes 10 members (100.0% of 10"),
    ],
)
def test_a_delivery_over_a_limit_waits_with_silver_unchanged_until_somebody_releases_it(
    gated: Platform, text: str, said: str
) -> None:
    before, version = shown(gated), gated.lake.silver.version()
    outcome = deliver(gated, "acme_20250107.csv", text)
    assert outcome.status == "held"
    assert said in str(outcome.message)
    assert shown(gated) == before
    done = close_delivery(gated, outcome.delivery, "release", by="jane", reason="acme confirms", wait=0)
    assert (done.status, gated.lake.silver.version() != version) == ("succeeded", True)
    assert done.counts.inserted + done.counts.updated + done.counts.unchanged == done.counts.accepted
    change_feed_is_real(gated)


def test_a_delivery_within_the_limits_passes(gated: Platform) -> None:
    assert deliver(gated, "acme_20250107.csv", members(*range(2, 15))).status == "succeeded"


def test_files_that_come_together_are_each_held_against_the_one_before(gated: Platform) -> None:
    paths = [drop(gated, f"acme_202501{day:02}.csv", members(*range(10 + 2 * day))) for day in (7, 8, 9)]
    done = ingest_many(gated, [register(gated, path) for path in paths], run_id="together")
    # 24 against 10, then 26 against 10, since nothing of the first counts.
    assert [o.status for o in done] == ["held", "held", "held"]
    close_delivery(gated, done[0].delivery, "release", by="jane", reason="yes", wait=0)
    assert deliver(gated, "acme_20250110.csv", members(*range(26))).status == "succeeded"


def test_what_was_decided_once_is_decided_so_when_silver_is_built_again(gated: Platform) -> None:
    late = deliver(gated, "acme_20250103.csv", members(*range(8))).delivery
    assert deliver(gated, "acme_20250107.csv", members(*range(9))).status == "succeeded"
    take_back(gated, late)
    held = deliver(gated, "acme_20250108.csv", members(1))
    assert held.status == "held"
    again = rebuilt(gated)
    assert shown(again) == {f"M{n}": "Boston" for n in range(10)}
    rows = again.lake.audit.frame(["file_name", "status", "message"]).sort("file_name").rows()
    assert [status for _, status, _ in rows] == ["reverted", "succeeded", "succeeded", "held"]
    assert "drops 8 members" in rows[-1][2]


def test_the_gate_can_warn_only(home: Platform) -> None:
    home = configure(home, GATE.replace("0.2}", "0.2, on_breach: alert}"))
    deliver(home, "acme_20250106.csv", members(*range(10)))
    outcome = deliver(home, "acme_20250107.csv", members(1, 2))
    assert outcome.status == "succeeded"
    assert "drops 8 members" in str(outcome.message)


def test_the_plan_tells_the_change_in_percent_before_anything_is_written(gated: Platform) -> None:
    drop(gated, "acme_20250107.csv", members(*range(1, 11)))
    drop(gated, "acme_20250108.csv", members(1))
    said = CliRunner().invoke(app, ["ingest", "--all", "--plan"])
    assert "Against the 10 members of acme_20250106.csv: 1 added (10.0%), 0 changed (0.0%), 1 dropped (10.0%)." in (
        " ".join(said.output.split())
    )
    plain = json.loads(CliRunner().invoke(app, ["ingest", "--all", "--plan", "--json"]).output)["files"]
    assert [(f["status"], (f["against"] or {}).get("dropped")) for f in plain][1:] == [("succeeded", 1), ("held", 9)]


def test_a_limit_must_be_a_share(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {volume: {max_dropped: 20}}\n")
    assert isinstance(home.clients.problems[0], ConfigError)
    assert "max_dropped" in str(home.clients.problems[0])
