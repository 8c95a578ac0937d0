"""The steward's desk: records given up and taken up again, how long others wait, and a letter to the sender."""

import json
import os
import signal
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from healthingest.ageing import ageing
from healthingest.alerting.watch import Watch
from healthingest.cli import app
from healthingest.discard import chosen, discard
from healthingest.errors import UsageError
from healthingest.ingest import ingest
from healthingest.platform import Platform
from healthingest.rejections import Wanted
from healthingest.release import close_delivery
from healthingest.repair import plan_replay
from healthingest.report.overview import write_overview
from healthingest_tests.conftest import configure, csv_of, deliver, line
from healthingest_tests.dying import DIE_AFTER
from healthingest_tests.unit.test_repair import exported, mended, take_in
from healthingest_tests.unit.test_revert import rebuilt, shown, take_back

BAD = csv_of(line("M1"), line("SECRET2", zip="SECRETZIP"), line("M3", dob="x"), "M4,short")


def states(home: Platform) -> dict[int, str]:
    rows = home.lake.quarantine.frame(["file_id", "record_no", "state"])
    last = max(home.lake.bronze.latest("acme"), key=lambda r: r.delivery.delivery_no).delivery.file_id
    return {number: state for file_id, number, state in rows.rows() if file_id == last}


def give_up(home: Platform, *records: int, back: bool = False) -> int:
    rows = chosen(home, Wanted(client="acme"), records, back=back)
    return discard(home, rows, by="jane", reason="test records", back=back)


def test_records_that_were_given_up_are_closed_for_good_and_can_be_taken_up_again(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", BAD)
    assert give_up(home, 2, 4) == 2
    assert states(home) == {2: "discarded", 3: "open", 4: "discarded"}
    assert states(rebuilt(home)) == {2: "discarded", 3: "open", 4: "discarded"}
    assert give_up(home, 4, back=True) == 1
    assert states(home) == {2: "discarded", 3: "open", 4: "open"}
    events = [(e["kind"], e["who"], e["records"]) for e in home.lake.events.read("acme") if "records" in e]
    assert events == [("records_discarded", "jane", 2), ("records_reopened", "jane", 1)]


def test_what_was_given_up_stays_so_through_a_repair_a_revert_and_its_undoing(home: Platform, tmp_path: Path) -> None:
    first = deliver(home, "acme_20250106.csv", BAD).delivery
    give_up(home, 4)
    rows = exported(home, tmp_path / "open.csv")
    assert [r["_record_no"] for r in rows] == ["2", "3"]
    rows[0]["zip"] = "02139"
    take_in(home, mended(tmp_path / "open.csv", rows[:1]))
    assert states(home) == {3: "open", 4: "discarded"}
    take_back(home, first)
    assert states(home) == {3: "reverted", 4: "discarded"}
    take_back(home, first, undo=True)
    assert states(home) == {3: "open", 4: "discarded"}
    assert states(rebuilt(home)) == {3: "open", 4: "discarded"}
    assert shown(home).keys() == {"M1", "SECRET2"}


DISCARD = ["quarantine", "discard", "--client", "acme", "--reason", "tests", "--yes"]
REOPEN = ["quarantine", "reopen", "--client", "acme", "--reason", "not tests", "--yes"]


def test_words_on_single_records_outlast_a_revert_in_a_rebuild_too(home: Platform) -> None:
    first = deliver(home, "acme_20250106.csv", BAD).delivery
    give_up(home, 2, 4)
    take_back(home, first)
    give_up(home, 4, back=True)
    assert states(home) == {2: "discarded", 3: "reverted", 4: "reverted"}
    assert states(rebuilt(home)) == {2: "discarded", 3: "reverted", 4: "reverted"}


QUOTED = csv_of(line("M1"), '"M2,' + line("M3")[2:], line("M4") + '"', line("M5", zip="x"), line("M6", zip="y"))


def test_a_word_stays_on_its_lines_where_another_quote_numbers_records_otherwise(
    home: Platform, tmp_path: Path
) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n")
    first = deliver(home, "acme_20250106.csv", QUOTED).delivery
    before = dict(home.lake.quarantine.frame(["record_no", "line_no"]).rows())
    give_up(home, next(n for n, at in before.items() if at == 5))
    exported(home, tmp_path / "open.csv")
    home = configure(home, "client_id: acme\nsource: {quote: null}\nquality: {max_invalid_ratio: 1.0}\n")
    assert CliRunner().invoke(app, ["quarantine", "release", "--client", "acme", "--yes"]).exit_code == 0
    rows = home.lake.quarantine.frame(["file_id", "record_no", "line_no", "state"])
    again = {at: (n, s) for f, n, at, s in rows.rows() if f != first.file_id}
    assert {n for n, _ in again.values()} != set(before), "the records are numbered otherwise"
    assert [at for at, (_, state) in again.items() if state == "discarded"] == [5]
    with pytest.raises(UsageError, match="cut into other records since"):
        plan_replay(home, tmp_path / "open.csv")


def test_reopening_finds_what_a_dead_process_gave_up_and_it_stays_open(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", BAD)
    assert die_after_word(DISCARD) == -signal.SIGKILL
    assert "Would reopen 3 record(s)" in CliRunner().invoke(app, REOPEN).output
    assert set(states(home).values()) == {"open"}
    assert set(states(rebuilt(home)).values()) == {"open"}


def test_reopening_a_client_leaves_out_deliveries_that_were_discarded_as_a_whole(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.1, on_breach: hold}\n")
    held = deliver(home, "acme_20250106.csv", BAD).delivery
    deliver(home, "acme_20250107.csv", BAD)
    close_delivery(home, held, "discard", by="jane", reason="twice", wait=0)
    give_up(home)
    assert "Would reopen 3 record(s) of 1 file(s)." in CliRunner().invoke(app, REOPEN).output
    assert set(states(home).values()) == {"open"}
    refused = CliRunner().invoke(app, ["quarantine", "reopen", held.file_id, "--reason", "x", "--yes"])
    assert refused.exit_code == 2


def test_nobody_gives_up_or_writes_about_records_of_replaced_deliveries(aged: Platform, tmp_path: Path) -> None:
    assert "Would discard 3 record(s) of 1 file(s)." in CliRunner().invoke(app, [*DISCARD, "--plan"]).output
    out = tmp_path / "letter.md"
    give_up(aged, 2)
    assert CliRunner().invoke(app, ["quarantine", "feedback", "--client", "acme", "--out", str(out)]).exit_code == 0
    assert "20250107" not in out.read_text()
    assert "2 of its 4 records could not be taken. 1 was taken." in out.read_text()
    give_up(aged)
    nothing = CliRunner().invoke(app, ["quarantine", "feedback", "--client", "acme", "--out", str(out)])
    assert nothing.exit_code == 2


def test_the_letter_on_a_held_file_says_that_nothing_of_it_is_in_use(home: Platform, tmp_path: Path) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.1, on_breach: hold}\n")
    deliver(home, "acme_20250106.csv", BAD)
    out = tmp_path / "letter.md"
    CliRunner().invoke(app, ["quarantine", "feedback", "--client", "acme", "--out", str(out)])
    assert "The file waits as a whole: nothing of it is in use yet." in out.read_text()


def test_show_and_list_tell_who_closed_a_record_when_and_why(home: Platform) -> None:
    first = deliver(home, "acme_20250106.csv", BAD).delivery
    give_up(home, 2)
    show = CliRunner().invoke(app, ["quarantine", "show", "acme_20250106.csv"]).output
    assert "Record 2 of acme_20250106.csv is discarded by jane on" in show
    assert "UTC: test records." in show
    take_back(home, first)
    found = json.loads(CliRunner().invoke(app, ["quarantine", "show", "acme_20250106.csv", "--json"]).output)
    assert [(s["record"], s["state"], s["by"], s["reason"]) for s in found["states"]] == [
        (2, "discarded", "jane", "test records"), (3, "reverted", "jane", "sent by mistake"),
        (4, "reverted", "jane", "sent by mistake"),
    ]  # fmt: skip
    listed = json.loads(CliRunner().invoke(app, ["quarantine", "list", "--json"]).output)["deliveries"]
    assert (listed[0]["open"], sorted(listed[0]["closed"])) == (0, ["discarded 1", "reverted 2"])


def die_after_word(command: list[str]) -> int:
    """Exit status of a command that is killed once its word is on disk."""
    dying = (
        DIE_AFTER
        + "from healthingest.lake.discards import Discards\nfrom healthingest.cli import app\n"
        + "die_after(Discards, 'put', 'noted')\napp(sys.argv)\n"
    )
    died = subprocess.run([sys.executable, "-c", dying, "noted", *command], env=os.environ, check=False, timeout=120)
    return died.returncode


def test_whoever_dies_after_the_word_is_finished_by_the_next_who_looks(home: Platform) -> None:
    first = deliver(home, "acme_20250106.csv", BAD).delivery
    assert die_after_word(DISCARD) == -signal.SIGKILL
    assert set(states(home).values()) == {"open"}
    assert "is discarded by" in CliRunner().invoke(app, ["quarantine", "show", first.file_name]).output
    ingest(home, first, run_id="again")
    assert set(states(home).values()) == {"discarded"}


def test_the_commands_show_first_and_ask(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", BAD)
    run = CliRunner()
    assert run.invoke(app, ["quarantine", "discard", "--reason", "x"]).exit_code == 2
    assert run.invoke(app, ["quarantine", "discard", "--client", "acme"]).exit_code == 2
    plan = run.invoke(app, ["quarantine", "discard", "acme_20250106.csv", "--rule", "too_few_fields", "--plan"])
    assert "Would discard 1 record(s) of 1 file(s)." in plan.output
    said = ["quarantine", "discard", "acme_20250106.csv", "--record", "2", "--reason", "a test"]
    assert run.invoke(app, said, input="n\n").exit_code == 1
    assert run.invoke(app, said, input="y\n").exit_code == 0
    assert states(home)[2] == "discarded"
    assert run.invoke(app, ["quarantine", "reopen", *said[2:], "--yes"]).exit_code == 0
    assert states(home)[2] == "open"


@pytest.fixture
def aged(home: Platform) -> Platform:
    deliver(home, "acme_20250106.csv", BAD)
    deliver(home, "acme_20250107.csv", csv_of(line("M1"), line("M2", zip="1")))
    deliver(home, "acme_20250107.csv", csv_of(line("M1"), line("M2")))
    return home


def test_records_age_by_class_and_those_of_replaced_files_are_nobodys_task(aged: Platform) -> None:
    waiting = ageing(aged.places.output, datetime.now(UTC) + timedelta(days=8))["acme"]
    assert (waiting.records, waiting.classes, waiting.oldest.days) == (3, (0, 0, 3, 0), 8)
    give_up(aged, 2, 3, 4)
    assert ageing(aged.places.output, datetime.now(UTC)) == {}


def test_a_record_that_was_read_again_is_as_old_as_before(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", BAD)
    came = home.lake.audit.frame(["ingestion_time"])["ingestion_time"][0]
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.9}\n")
    assert CliRunner().invoke(app, ["quarantine", "release", "--client", "acme", "--yes"]).exit_code == 0
    now = datetime.now(UTC)
    assert ageing(home.places.output, now)["acme"].oldest == now - came


def test_the_command_and_the_overview_show_how_long_records_wait(aged: Platform) -> None:
    found = json.loads(CliRunner().invoke(app, ["quarantine", "ageing", "--json"]).output)["clients"]
    assert [(w["client_id"], w["open"], w["under a day"]) for w in found] == [("acme", 3, 3)]
    assert "acme" in CliRunner().invoke(app, ["quarantine", "ageing"]).output
    page = write_overview(aged.places, aged.clients, []).read_text()
    assert "Rejected records that wait for somebody" in page


def test_a_client_is_told_of_when_records_wait_longer_than_agreed_and_when_they_no_longer_do(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {max_open_age: 0m, max_invalid_ratio: 1.0}\n")
    deliver(home, "acme_20250106.csv", BAD)

    def holds() -> bool:
        alerts = Watch.over(home.places).look().book.alerts.values()
        return any(a.condition == "records_waiting" and a.open for a in alerts)

    assert holds()
    give_up(home, 2, 3, 4)
    assert not holds()


def test_the_letter_names_columns_lines_and_counts_as_the_sender_knows_them_and_no_value(
    home: Platform, tmp_path: Path
) -> None:
    home = configure(home, "client_id: acme\ncolumns: {Post Code: zip}\n")
    lines = [line(f"M{n}", zip="SECRETZIP") for n in range(30)]
    deliver(home, "acme_20250106.csv", csv_of(*lines, "M99,short").replace(",zip,", ",POST CODE,"))
    out = tmp_path / "letter.md"
    done = CliRunner().invoke(app, ["quarantine", "feedback", "--client", "acme", "--out", str(out)])
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "31 of its 31 records could not be taken." in text
    assert "Column 'POST CODE' must be a valid ZIP code of 5 digits, or ZIP+4: 30 records, lines 2, 3," in text
    assert "21 and 10 more." in text
    assert "(expected 11, found 2): 1 record, line 32." in text
    assert "SECRET" not in text
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert CliRunner().invoke(app, ["quarantine", "feedback", "--out", str(out)]).exit_code == 2


def test_what_was_given_up_of_a_held_delivery_stays_so_when_tables_are_built_again(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.1, on_breach: hold}\n")
    assert deliver(home, "acme_20250106.csv", BAD).status == "held"
    give_up(home, 2)
    assert states(rebuilt(home)) == {2: "discarded", 3: "open", 4: "open"}
