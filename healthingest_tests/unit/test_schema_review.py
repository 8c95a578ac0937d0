"""What a hostile review of schema changes found: each of these lost, leaked or stopped something once."""

import threading
from pathlib import Path

import polars as pl
import pytest

from healthingest.approve import approve, reject
from healthingest.contracts.edit import edited
from healthingest.contracts.evolve import Answer
from healthingest.errors import ConfigError, UsageError
from healthingest.platform import Platform
from healthingest.proposals import proposals_of
from healthingest.records.glimpse import shape_of
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, install, line, places_in
from healthingest_tests.unit.test_schema_stories import approved, opened, silver

KEEP = Answer(type="text", policy={"keep": True})


def yaml_of(home: Platform, client: str = "acme") -> str:
    return (home.places.configs / f"{client}.yaml").read_text()


@pytest.fixture
def two(tmp_path: Path) -> Platform:
    return install(tmp_path, {"acme": "client_id: acme\n", "globex": "client_id: globex\n"})


def test_what_one_client_approves_shows_no_value_of_another(two: Platform) -> None:
    deliver(two, "acme_20250106.csv", csv_of(line("M1") + ",gold", header=f"{HEADER},Note"))
    deliver(two, "globex_20250106.csv", csv_of(line("G1") + ",Secret,P1", header=f"{HEADER},Note,Plan"))
    reject(two, "globex.added.note", by="jane", reason="private")
    approved(two, "acme.added.note", KEEP)
    approved(two, "globex.added.plan", KEEP)
    shown = pl.read_delta(two.lake.silver.uri).sort("client_id").select("client_id", "note", "plan")
    assert shown.rows() == [("acme", "gold", None), ("globex", None, "P1")]
    assert [yaml_of(two, c).split()[-1] for c in ("acme", "globex")] == ["member/2", "member/3"]


def test_the_policy_that_was_said_counts_whatever_another_client_has_said_of_such_a_column(two: Platform) -> None:
    for client in ("acme", "globex"):
        deliver(two, f"{client}_20250106.csv", csv_of(line("M1") + ",Secret", header=f"{HEADER},Note"))
    approved(two, "acme.added.note", KEEP)
    approved(two, "globex.added.note", Answer(type="text", policy={"vault": "identity"}))
    assert pl.read_delta(two.lake.silver.uri).sort("client_id")["note"].to_list() == ["Secret", None]


def test_a_column_of_another_type_than_another_clients_is_refused_before_anything_is_written(two: Platform) -> None:
    configure(two, "client_id: globex\npolicies: {dob: {vault: identity, generalize: {plan_year: year}}}\n", "globex")
    home = Platform.open(two.places)
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",gold", header=f"{HEADER},Plan"))
    with pytest.raises(UsageError, match="globex has a column plan_year of another type"):
        approved(home, "acme.added.plan", Answer(name="plan_year", type="text", policy={"keep": True}))
    assert Platform.open(home.places).clients.active == ["acme", "globex"]


def test_two_names_of_one_column_are_both_taken_in(home: Platform) -> None:
    deliver(home, "acme_20250105.csv", csv_of(line("M9")))
    for day, name in ((6, "Birth Date"), (7, "Date of Birth")):
        header = HEADER.replace("dob", name)
        assert deliver(home, f"acme_2025010{day}.csv", csv_of(line(f"M{day}"), header=header)).status == "failed"
    approved(home, "acme.renamed.dob")
    assert [row["member_id"] for row in silver(home)] == ["M6", "M7", "M9"]


def test_a_file_with_two_renamed_columns_says_what_both_together_release(home: Platform) -> None:
    header = HEADER.replace("dob", "Birth Date").replace("member_id", "Member Ident")
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2"), header=header))
    assert [p.releases for p in opened(home).values()] == [2, 2]
    approved(home, "acme.renamed.dob")
    approved(home, "acme.renamed.member_id")
    assert len(silver(home)) == 2


def test_what_others_write_into_the_yaml_while_an_approval_waits_stays(home: Platform) -> None:
    deliver(home, "acme_20250108.csv", csv_of(line("M4"), header=HEADER.replace("dob", "Birth Date")))
    waiting = threading.Thread(target=lambda: approved(home, "acme.renamed.dob"))
    with home.lake.exclusion.shared("acme"):
        waiting.start()
        waiting.join(1.5)
        assert waiting.is_alive()
        configure(home, 'client_id: acme\nlegal_hold: "court order 12"\n')
    waiting.join()
    assert yaml_of(home) == 'client_id: acme\nlegal_hold: "court order 12"\ncolumns:\n  Birth Date: dob\n'


def test_a_second_person_approves_what_the_first_saw_and_nothing_more(tmp_path: Path) -> None:
    rule = 'client_id: acme\nrules:\n  - {id: ours, column: state, in: ["MA", "NH"]}\n'
    home = install(tmp_path, {"acme": rule})
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}", state="VT") for n in range(8))))
    prod = Platform.open(places_in(tmp_path, HEALTHINGEST_ENV="prod"))
    approve(prod, "acme.codes.ours", Answer(), by="jane", reason="VT is fine")
    deliver(home, "acme_20250107.csv", csv_of(*(line(f"M{n}", state="CA") for n in range(20, 28))))
    done, _ = approve(prod, "acme.codes.ours", Answer(), by="john", reason="as jane")
    assert done.state == "second person"
    assert yaml_of(home) == rule
    done, _ = approve(prod, "acme.codes.ours", Answer(), by="jane", reason="CA too")
    assert done.state == "applied"


def test_one_bad_date_after_a_change_was_taken_in_is_no_change(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}", dob=f"12/{n}/1980") for n in range(13, 18))))
    approved(home, "acme.retyped.dob")
    home = Platform.open(home.places)
    deliver(home, "acme_20250107.csv", csv_of(*(line(f"M{n}") for n in range(20, 60)), line("M1", dob="garbage")))
    assert not opened(home)


def test_a_column_whose_name_is_taken_stops_no_file_of_a_client_that_adds_columns(home: Platform) -> None:
    home = configure(home, "client_id: acme\nschema_evolution: add_columns\n")
    for day, name in enumerate(("last_seen", "birth_year", "member token", "City."), start=1):
        done = deliver(home, f"acme_2025010{day}.csv", csv_of(line("M1") + ",x", header=f"{HEADER},{name}"))
        assert done.status == "succeeded"
    assert len(opened(home)) == 4


def test_blank_columns_at_the_end_hide_no_change(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",gold,,", header=f"{HEADER},Plan,,"))
    assert list(opened(home)) == ["acme.added.plan"]


def test_columns_that_are_called_alike_have_proposals_of_their_own(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",x,y", header=f"{HEADER},Plan,Plan #"))
    assert list(opened(home)) == ["acme.added.plan", "acme.added.plan_13"]


def test_a_hand_that_mends_the_yaml_closes_the_proposal(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",x", header=f"{HEADER},Birth Date 2"))
    home = configure(home, "client_id: acme\ncolumns: {Birth Date 2: address}\n")
    assert [p.state for p in proposals_of(home.places, home.clients)] == ["applied"]


@pytest.mark.parametrize(
    ("value", "shape"),
    [("王小明", "aaa (100%)"), ("محمد", "aaaa (100%)"), ("12/3", "99/9 (100%)"), ("€5", "?9 (100%)")],
)
def test_no_script_of_the_world_shows_in_a_shape(value: str, shape: str) -> None:
    assert shape_of(pl.Series([value])) == shape


def test_a_yaml_that_would_come_out_otherwise_is_left_to_people() -> None:
    text = "client_id: acme\nrules:\n  - {id: a, column: state, in: &s [MA]}\n  - {id: b, column: city, in: *s}\n"
    with pytest.raises(ConfigError, match="change it by hand"):
        edited(text, {("rules", 0, "in", 1): "VT"})
    kept = 'client_id: acme\ncolumns:\n  "NO": {to: city, map: {"no": N, "01234": "x: y"}}\n'
    assert edited(kept, {("contract",): "member/2"}) == f"{kept}contract: member/2\n"


def test_a_file_whose_header_lost_its_line_end_shows_no_value_as_a_name(home: Platform) -> None:
    glued = f"{HEADER},{line('M1')}\n" + csv_of(*(line(f"M{n}") for n in range(2, 6)), header="").lstrip()
    deliver(home, "acme_20250106.csv", glued)
    assert proposals_of(home.places, home.clients) == []


def test_an_approval_that_would_take_a_file_out_of_silver_is_refused(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",1980-01-01", header=f"{HEADER},Birth Date"))
    deliver(home, "acme_20250107.csv", csv_of(line("M2"), header=HEADER.replace("dob", "Birth Date")))
    with pytest.raises(UsageError, match=r"acme_20250106.csv is in silver and could not be read any more"):
        approved(home, "acme.renamed.dob")
    assert yaml_of(home) == "client_id: acme\n"


def test_a_rejection_speaks_of_what_was_seen_then(home: Platform) -> None:
    home = configure(home, 'client_id: acme\nrules:\n  - {id: ours, column: state, in: ["MA", "NH"]}\n')
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}", state="VT") for n in range(8))))
    reject(home, "acme.codes.ours", by="jane", reason="a mistake of theirs")
    deliver(home, "acme_20250107.csv", csv_of(*(line(f"M{n}", state="VT") for n in range(8))))
    assert not opened(home)
    deliver(home, "acme_20250108.csv", csv_of(*(line(f"M{n}", state="CA") for n in range(8))))
    assert list(opened(home)) == ["acme.codes.ours"]


def test_words_that_a_map_leaves_out_stay_open(home: Platform) -> None:
    records = [line(f"M{n}", gender="NB") for n in range(8)] + [line(f"D{n}", gender="Divers") for n in range(8)]
    deliver(home, "acme_20250106.csv", csv_of(*records))
    approve(home, "acme.codes.gender", Answer(map={"NB": "X"}), by="jane", reason="as agreed")
    assert list(opened(home)) == ["acme.codes.gender"]
    approved(Platform.open(home.places), "acme.codes.gender", Answer(map={"Divers": "X"}))
    assert len(silver(home)) == 16
