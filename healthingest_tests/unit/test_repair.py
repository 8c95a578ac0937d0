"""Rejected records, mended in a file and taken in again, each in its own place; and what a steward may not see."""

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.erase import Request, erase_member
from healthingest.errors import UsageError
from healthingest.platform import Platform
from healthingest.private_file import write_private
from healthingest.reading import Reader
from healthingest.rejections import Wanted, rejected
from healthingest.repair import _register, for_repair, plan_replay, replay
from healthingest.revert import revert
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, examples, line
from healthingest_tests.histories import change_feed_is_real
from healthingest_tests.unit.test_revert import rebuilt, shown

Row = dict[str, str]


def exported(home: Platform, out: Path, *files: str) -> list[Row]:
    """The open records as `quarantine export --repair` writes them."""
    reader = Reader.of(home, None, None)
    write_private(for_repair(home, rejected(home, Wanted(files, state="open")), reader), out)
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def mended(out: Path, rows: list[Row]) -> Path:
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out


def take_in(home: Platform, path: Path) -> list[str]:
    return [o.status for o in replay(home, plan_replay(home, path), by="jane", run_id="replay")]


def states(home: Platform) -> list[tuple[str, int, str]]:
    frame = home.lake.quarantine.frame(["file_id", "record_no", "state"]).sort("record_no", "state")
    return [(f, n, s) for f, n, s in frame.rows()]


def test_a_mended_record_reaches_silver_and_is_linked_to_its_file_record_and_person(
    home: Platform, tmp_path: Path
) -> None:
    first = deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="1"), line("M3", zip="2"))).delivery
    rows = exported(home, tmp_path / "open.csv")
    assert [(r["_record_no"], r["_line"], r["member_id"], r["zip"]) for r in rows] == [
        ("2", "3", "M2", "1"), ("3", "4", "M3", "2"),
    ]  # fmt: skip
    assert "zip" in rows[0]["_problems"]
    rows[0]["zip"] = "02139"
    assert take_in(home, mended(tmp_path / "mended.csv", rows)) == ["succeeded"]
    assert shown(home).keys() == {"M1", "M2"}
    latest = max(home.lake.bronze.latest("acme"), key=lambda r: r.delivery.delivery_no).delivery
    assert latest.reread_of == first.file_id
    repair = home.lake.bronze.repair_of(latest)
    assert repair == {"by": "jane", "of": first.file_id, "records": [2]}
    event = next(e for e in home.lake.events.read("acme") if e["kind"] == "repaired")
    assert (event["who"], event["file_id"], event["records"]) == ("jane", first.file_id, 1)
    assert [(n, s) for f, n, s in states(home) if f == first.file_id] == [(2, "released"), (3, "released")]
    assert [(n, s) for f, n, s in states(home) if f == latest.file_id] == [(3, "open")]
    change_feed_is_real(home)
    assert shown(rebuilt(home)).keys() == {"M1", "M2"}


def test_a_later_file_still_wins_over_a_record_that_was_mended_after_it(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Salem", zip="1"), line("M2", city="Salem", zip="1")))
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Lynn")))
    rows = exported(home, tmp_path / "open.csv")
    for row in rows:
        row["zip"] = "02139"
    take_in(home, mended(tmp_path / "open.csv", rows))
    assert shown(home) == {"M1": "Lynn", "M2": "Salem"}


def test_what_still_fails_stays_as_it_came_and_a_second_replay_does_nothing(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", zip="1"), line("M2", zip="2")))
    rows = exported(home, tmp_path / "open.csv")
    rows[0]["zip"], rows[1]["zip"] = "02139", "wrong"
    path = mended(tmp_path / "mended.csv", rows)
    take_in(home, path)
    left = exported(home, tmp_path / "left.csv")
    assert [(r["_record_no"], r["zip"]) for r in left] == [("2", "2")]
    again = plan_replay(home, path)
    assert [(list(one.released), list(one.closed), list(one.still)) for one in again] == [([], [1], [2])]
    assert take_in(home, path) == []


def test_a_repair_of_a_repair_a_revert_of_one_and_its_undoing(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", zip="1"), line("M2", zip="2")))
    for number in (0, 0):
        rows = exported(home, tmp_path / "open.csv")
        rows[number]["zip"] = "02139"
        take_in(home, mended(tmp_path / "open.csv", rows[:1]))
    assert shown(home).keys() == {"M1", "M2"}
    second = max(home.lake.bronze.latest("acme"), key=lambda r: r.delivery.delivery_no).delivery
    revert(home, second, by="jane", reason="wrong", wait=0)
    assert shown(home).keys() == {"M1"}
    assert len(exported(home, tmp_path / "open.csv")) == 1
    revert(home, second, by="jane", reason="right", undo=True, wait=0)
    assert shown(home).keys() == {"M1", "M2"}
    assert shown(rebuilt(home)).keys() == {"M1", "M2"}
    change_feed_is_real(home)


def test_a_malformed_record_is_shown_as_received_and_one_span_may_become_several(
    home: Platform, tmp_path: Path
) -> None:
    swallowed = line("M2", address='"12 Main St') + "\n" + line("M3")
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), "M9,short", swallowed, line("M4", address='"x"'), line("M5")))
    rows = exported(home, tmp_path / "open.csv")
    assert [r["_received"].split(",")[0] for r in rows] == ["M9", "M2"]
    good = dict(zip(HEADER.split(","), next(csv.reader([line("M0")])), strict=True))
    span = rows[1] | good
    repaired = [rows[0] | good | {"member_id": "M9"}, *(span | {"member_id": m} for m in ("M2", "M3", "M4"))]
    take_in(home, mended(tmp_path / "open.csv", repaired))
    assert shown(home).keys() == {"M1", "M2", "M3", "M4", "M5", "M9"}
    row = home.lake.audit.frame().sort("delivery_no").to_dicts()[-1]
    assert (row["records"], row["accepted"], row["rejected"]) == (6, 6, 0)


@pytest.mark.parametrize(
    ("config", "encoded"),
    [
        ("source: {encoding: latin-1, delimiter: ';'}", lambda text: text.replace(",", ";").encode("latin-1")),
        ("", lambda text: text.encode("utf-16")),
        ("", lambda text: gzip.compress(text.encode())),
        ("", lambda text: text.replace("\n", "\r\n").encode()),
        ("", lambda text: b"\xef\xbb\xbf" + text.encode()),
        ("source: {header: false, names: [" + HEADER + "]}", lambda text: text.partition("\n")[2].encode()),
    ],
)
def test_files_of_any_form_can_be_mended(
    home: Platform, tmp_path: Path, config: str, encoded: Callable[[str], bytes]
) -> None:
    home = configure(home, f"client_id: acme\n{config}\n")
    text = csv_of(line("M1", city="Åby"), line("M2", zip="1", city="Orléans"), line("M3"))
    deliver(home, "acme_20250106.csv", encoded(text))
    rows = exported(home, tmp_path / "open.csv")
    rows[0]["zip"], rows[0]["address"] = "02139", 'a "b", c; d\ne'
    take_in(home, mended(tmp_path / "open.csv", rows))
    assert shown(home) == {"M1": "Åby", "M2": "Orléans", "M3": "Boston"}


def test_formulas_in_the_export_are_harmless_and_come_back_as_they_were(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", zip="1", address="=1+1")))
    rows = exported(home, tmp_path / "open.csv")
    assert rows[0]["address"] == "'=1+1"
    rows[0]["zip"] = "02139"
    take_in(home, mended(tmp_path / "open.csv", rows))
    from healthingest import read_silver

    found = read_silver(role="operations", places=home.places).select("address").collect()
    assert found["address"].to_list() == ["=1+1"]


def test_records_of_a_file_that_was_replaced_or_reverted_are_not_taken(home: Platform, tmp_path: Path) -> None:
    first = deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="1"))).delivery
    rows = exported(home, tmp_path / "open.csv")
    rows[0]["zip"] = "02139"
    path = mended(tmp_path / "open.csv", rows)
    revert(home, first, by="jane", reason="wrong", wait=0)
    assert "reverted" in str(plan_replay(home, path)[0].message)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M3")))
    assert "has replaced it" in str(plan_replay(home, path)[0].message)
    assert take_in(home, path) == []


def test_an_erased_member_does_not_come_back_by_a_repair(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", zip="1"), line("M2", zip="1"), line("M3")))
    rows = exported(home, tmp_path / "open.csv")
    for row in rows:
        row["zip"] = "02139"
    path = mended(tmp_path / "open.csv", rows)
    erase_member(home, "acme", "M1", Request(wait=0))
    take_in(home, path)
    assert shown(home).keys() == {"M2", "M3"}
    assert shown(rebuilt(home)).keys() == {"M2", "M3"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "lacks the columns"),
        ("_file_id,_record_no\nffffffffffffffff,1\n", "no delivery"),
        ("_file_id,_record_no\nX,one\n", "row without"),
        ("\x00\xff", "lacks the columns"),
    ],
)
def test_a_file_that_is_no_repair_is_refused_in_one_sentence(
    home: Platform, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode("latin-1"))
    result = CliRunner().invoke(app, ["quarantine", "replay", str(path)])
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_column_that_was_dropped_or_renamed_is_refused(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", zip="1")))
    rows = exported(home, tmp_path / "open.csv")
    path = mended(tmp_path / "x.csv", [{k: v for k, v in row.items() if k != "city"} for row in rows])
    result = CliRunner().invoke(app, ["quarantine", "replay", str(path)])
    assert (result.exit_code, "must be those of the file" in result.stderr) == (2, True)


def test_the_commands_ask_first_and_a_steward_without_the_key_repairs_without_seeing(
    home: Platform, tmp_path: Path
) -> None:
    (home.places.configs / "roles.yaml").write_text(
        "roles:\n  blind: {purposes: [repair]}\n  operations: {purposes: [repair], groups: '*', rejected: true}\n"
    )
    deliver(home, "acme_20250106.csv", csv_of(line("M1", first_name="SECRETNAME", zip="1")))
    run, out = CliRunner(), tmp_path / "open.csv"
    blind = run.invoke(app, ["quarantine", "export", "--repair", "--out", str(out), "--role", "blind"])
    assert blind.exit_code == 1, blind.output
    assert not out.exists()
    assert run.invoke(app, ["quarantine", "export", "--repair", "--out", str(out)]).exit_code == 0
    readings = [e for e in home.lake.events.read("acme") if e["kind"] == "rejected records"]
    assert len(readings) == 1
    rows = exported(home, out)
    rows[0]["zip"] = "02139"
    mended(out, rows)
    plan = run.invoke(app, ["quarantine", "replay", str(out), "--plan"])
    assert (plan.exit_code, "Would release 1 mended record" in plan.output) == (0, True)
    assert run.invoke(app, ["quarantine", "replay", str(out)], input="n\n").exit_code == 1
    assert shown(home) == {}
    done = run.invoke(app, ["quarantine", "replay", str(out), "--yes", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["files"][0]["status"] == "succeeded"
    assert "SECRETNAME" not in plan.output + done.output
    assert shown(home).keys() == {"M1"}


@pytest.mark.parametrize("seed", range(examples(3)))
def test_any_records_of_any_file_can_be_mended_in_any_order_and_a_rebuild_agrees(
    home: Platform, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    members = {}
    for day in range(6, 9):
        lines = []
        for member in chance.sample([f"M{i}" for i in range(8)], 5):
            city, bad = chance.choice(["Boston", "Salem", "Lynn"]), chance.random() < 0.5
            lines.append(line(member, city=city, **({"zip": "1"} if bad else {})))
            members[member] = city  # the last file's word, once all is mended
        deliver(home, f"acme_2025010{day}.csv", csv_of(*lines))
    while rows := exported(home, tmp_path / "open.csv"):
        some = chance.sample(rows, chance.randint(1, len(rows)))
        for row in some:
            row["zip"] = "02139"
        take_in(home, mended(tmp_path / "open.csv", some))
    assert shown(home) == members
    assert shown(rebuilt(home)) == members
    change_feed_is_real(home)


def test_of_two_repairs_that_were_looked_at_together_the_second_is_told_to_look_again(
    home: Platform, tmp_path: Path
) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", zip="1"), line("M2", zip="2")))
    rows = exported(home, tmp_path / "open.csv")
    for row in rows:
        row["zip"] = "02139"
    plans = [plan_replay(home, mended(tmp_path / f"{n}.csv", [row])) for n, row in enumerate(rows)]
    assert [o.status for o in replay(home, plans[0], by="jane", run_id="a")] == ["succeeded"]
    with pytest.raises(UsageError, match="has changed meanwhile"):
        list(replay(home, plans[1], by="john", run_id="b"))
    assert take_in(home, tmp_path / "1.csv") == ["succeeded"]
    assert shown(home).keys() == {"M1", "M2"}


def test_whoever_dies_before_a_repair_is_decided_is_finished_by_the_next_ingest(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="2")))
    rows = exported(home, tmp_path / "open.csv")
    rows[0]["zip"] = "02139"
    (plan,) = plan_replay(home, mended(tmp_path / "open.csv", rows))
    assert plan.repair
    _register(home, plan.repair, plan.released, "jane")
    assert "no end yet" in str(plan_replay(home, tmp_path / "open.csv")[0].message)
    assert CliRunner().invoke(app, ["ingest", "--all"]).exit_code == 0
    assert shown(home).keys() == {"M1", "M2"}
