"""Columns that clients add, rename, retype, drop or fill with new codes: proposed, approved, taken in from bronze."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from deltalake import DeltaTable
from typer.testing import CliRunner

from healthingest.approve import approve, reject, reopen
from healthingest.cli import app
from healthingest.contracts.evolve import Answer
from healthingest.drift import look_again
from healthingest.errors import UsageError
from healthingest.export import export_frame
from healthingest.platform import Platform
from healthingest.proposals import Proposal, proposals_of
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, env_of, install, line, places_in

MIDDLE = f"{HEADER},MiddleName"


def silver(home: Platform) -> list[dict[str, object]]:
    """Everything that silver says of the members, but which of equal records says it."""
    frame = export_frame(Platform.open(home.places))
    return frame.drop([c for c in frame.columns if c.startswith("_")]).sort("member_id").to_dicts()


def rebuilt(home: Platform, tmp_path: Path, files: Mapping[str, str]) -> list[dict[str, object]]:
    """Silver of an installation that had the present contracts and config from the start, and got the files then."""
    configs = {p.stem: p.read_text() for p in home.places.configs.glob("*.yaml")}
    other = install(tmp_path / "from-the-start", configs)
    for contract in (home.places.configs / "contracts").glob("*/*.yaml"):
        target = other.places.configs / contract.relative_to(home.places.configs)
        target.write_text(contract.read_text())
    other = Platform.open(other.places)
    for name, text in files.items():
        deliver(other, name, text)
    return silver(other)


def opened(home: Platform) -> dict[str, Proposal]:
    platform = Platform.open(home.places)
    return {p.proposal_id: p for p in proposals_of(platform.places, platform.clients) if p.is_open}


def approved(home: Platform, proposal: str, answer: Answer = Answer()) -> list[str]:  # noqa: B008 - frozen
    done, outcomes = approve(Platform.open(home.places), proposal, answer, by="jane", reason="acme says so")
    assert done.state == "applied"
    return [f"{o.delivery.file_name} {o.status}" for o in outcomes]


def document(home: Platform, proposal: str) -> dict[str, Any]:
    text = (home.places.output / "proposals" / f"{proposal}.yaml").read_text()
    assert "Lovelace" not in text
    assert "Byron" not in text
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def middle(*lines: tuple[str, str]) -> str:
    """A file with the column MiddleName: member, middle name."""
    return csv_of(*(f"{line(member)},{name}" for member, name in lines), header=MIDDLE)


ADDED = {
    "acme_20250106.csv": csv_of(line("M1"), line("M2")),
    "acme_20250107.csv": csv_of(line("M2", city="Lynn"), line("M3")),
    "acme_20250108.csv": middle(("M1", "Byron"), ("M3", ""), ("M4", "King")),
    "acme_20250109.csv": middle(("M2", "Noel"), ("M5", "")),
    "acme_20250110.csv": csv_of(line("M4", city="Salem")),
}


def test_a_column_that_appears_is_proposed_and_once_approved_filled_from_bronze(home: Platform, tmp_path: Path) -> None:
    for name, text in ADDED.items():
        assert deliver(home, name, text).status == "succeeded"
    before = silver(home)
    table = DeltaTable(home.lake.silver.uri)
    said, columns = (table.metadata().id, table.metadata().name, table.metadata().description), table.schema().fields
    version = table.version()
    old = pl.scan_delta(home.lake.silver.uri, version=version).collect()

    proposal = opened(home)["acme.added.middlename"]
    assert list(opened(home)) == ["acme.added.middlename"]
    assert proposal.impact == "would add column middlename and fill it from 3 records of 2 deliveries"
    told = document(home, "acme.added.middlename")
    assert (told["compatibility"], told["change"]["contract"], told["state"]) == ("additive", "member/2", "open")
    assert [(e["filled"], e["records"], e["distinct"], e["shape"]) for e in told["evidence"]] == [
        (2, 3, 2, "Aaaaa (50%)"), (1, 2, 1, "Aaaa (100%)")
    ]  # fmt: skip

    with pytest.raises(UsageError, match="without a privacy policy cannot be approved"):
        approve(home, proposal.proposal_id, Answer(), by="jane", reason="yes")
    assert not (home.places.configs / "contracts" / "member" / "2.yaml").exists()
    answer = Answer(name="middle_name", type="name", policy={"vault": "identity", "mask": {"middle_initial": "first"}})
    assert len(approved(home, proposal.proposal_id, answer)) == 5
    assert (home.places.configs / "acme.yaml").read_text() == (
        "client_id: acme\ncolumns:\n  MiddleName: middle_name\ncontract: member/2\n"
    )
    after = silver(home)
    assert after == rebuilt(home, tmp_path, ADDED)
    assert [(r["member_id"], r["middle_name"], r["middle_initial"]) for r in after] == [
        ("M1", "Byron", "B*"), ("M2", "Noel", "N*"), ("M3", None, None), ("M4", None, None), ("M5", None, None)
    ]  # fmt: skip
    shared = before[0].keys() - {"creation_date"}  # of the record that last changed the member
    assert [{k: v for k, v in row.items() if k in shared} for row in after] == [
        {k: v for k, v in row.items() if k in shared} for row in before
    ]

    table = DeltaTable(home.lake.silver.uri)
    assert (table.metadata().id, table.metadata().name, table.metadata().description) == said
    assert table.schema().fields[: len(columns)] == columns
    assert (
        table.schema().fields[len(columns) :][0].metadata["comment"]
        == "first character of middle_name (quasi-identifier)"
    )
    assert pl.scan_delta(home.lake.silver.uri, version=version).collect().equals(old)
    feed = pl.DataFrame(DeltaTable(home.lake.silver.uri).load_cdf(starting_version=0).read_all())
    changed = feed.filter(pl.col("_commit_version") > version)
    assert sorted(changed["_change_type"].unique()) == ["update_postimage", "update_preimage"]
    assert not opened(home)
    assert look_again(Platform.open(home.places), "acme") == 1
    assert list(opened(home)) == ["acme.missing.middle_name"]  # the last file had it no more
    for folder in ("silver", "vault", "checkpoint/sightings", "checkpoint/audit"):
        (home.places.output / folder).rename(home.places.output / f"{folder.replace('/', '-')}.away")
    env = env_of(home.places)
    assert CliRunner().invoke(app, ["ingest", "--from-bronze", "--json"], env=env).exit_code == 0
    assert silver(home) == after


def test_a_renamed_required_column_waits_in_bronze_and_comes_in_whole(home: Platform, tmp_path: Path) -> None:
    files = {
        "acme_20250106.csv": csv_of(line("M1"), line("M2")),
        "acme_20250107.csv": csv_of(line("M1", city="Lynn"), line("M3"), header=HEADER.replace("dob", "Birth Date")),
        "acme_20250108.csv": csv_of(line("M2", city="Salem")),
    }
    assert [deliver(home, name, text).status for name, text in files.items()] == ["succeeded", "failed", "succeeded"]
    assert opened(home)["acme.renamed.dob"].impact == (
        "would read dob from 2 records of 1 delivery; would release 2 quarantined records of 1 delivery"
    )
    assert document(home, "acme.renamed.dob")["compatibility"] == "compatible"
    approved(home, "acme.renamed.dob")
    assert silver(home) == rebuilt(home, tmp_path, files)
    assert {row["member_id"] for row in silver(home)} == {"M1", "M2", "M3"}


def test_a_renamed_optional_column_is_read_under_both_names(home: Platform, tmp_path: Path) -> None:
    home = configure(home, "client_id: acme\ncolumns: {Town: {to: city, case: upper}}\n")
    files = {
        "acme_20250106.csv": csv_of(line("M1"), line("M2"), header=HEADER.replace("city", "Town")),
        "acme_20250107.csv": csv_of(line("M2", city="Lynn"), line("M3"), header=HEADER.replace("city", "Home Town")),
    }
    for name, text in files.items():
        deliver(home, name, text)
    assert list(opened(home)) == ["acme.renamed.city"]
    approved(home, "acme.renamed.city")
    assert silver(home) == rebuilt(home, tmp_path, files)
    assert [row["city"] for row in silver(home)] == ["BOSTON", "LYNN", "BOSTON"]


def test_dates_in_another_form_come_in_once_the_form_is_approved(home: Platform, tmp_path: Path) -> None:
    files = {
        "acme_20250106.csv": csv_of(line("M1"), line("M2", dob="12/31/1979")),
        "acme_20250107.csv": csv_of(*(line(f"M{n}", dob=f"12/{n}/1980") for n in range(13, 18)), line("M2")),
    }
    for name, text in files.items():
        deliver(home, name, text)
    assert opened(home)["acme.retyped.dob"].impact == "would release 6 quarantined records of 2 deliveries"
    assert document(home, "acme.retyped.dob")["suggests"] == {"date_format": "%m/%d/%Y"}
    approved(home, "acme.retyped.dob")
    assert silver(home) == rebuilt(home, tmp_path, files)
    assert len(silver(home)) == 7
    states = home.lake.quarantine.frame(["state"])["state"].unique().to_list()
    assert states == ["released"]


def test_dates_that_could_be_read_in_two_ways_are_not_guessed(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}", dob=f"0{n}/0{n + 1}/1980") for n in range(1, 6))))
    with pytest.raises(UsageError, match=r"fit %m/%d/%Y and %d/%m/%Y alike"):
        approved(home, "acme.retyped.dob")
    approved(home, "acme.retyped.dob", Answer(date_format="%d/%m/%Y"))
    assert silver(home)[0]["dob"] == "1980-02-01"


def test_a_list_of_codes_that_grows(home: Platform, tmp_path: Path) -> None:
    config = 'client_id: acme\nrules:\n  - {id: ours, column: state, in: ["MA", "NH"]}   # as of 2024\n'
    home = configure(home, config)
    files = {
        "acme_20250106.csv": csv_of(line("M1"), line("M9", state="VT")),
        "acme_20250107.csv": csv_of(*(line(f"M{n}", state="VT") for n in range(2, 8)), line("M8", state="Maine")),
    }
    for name, text in files.items():
        deliver(home, name, text)
    proposal = opened(home)["acme.codes.ours"]
    assert proposal.impact == "would release 7 quarantined records of 2 deliveries"
    assert proposal.drift.fix == {"codes": ["VT"]}
    approved(home, "acme.codes.ours")
    assert 'in: ["MA", "NH", VT]} # as of 2024' in (home.places.configs / "acme.yaml").read_text()
    assert silver(home) == rebuilt(home, tmp_path, files)
    assert len(silver(home)) == 8


def test_a_column_that_is_sent_no_more_leaves_the_contract(home: Platform, tmp_path: Path) -> None:
    header = HEADER.replace(",email", "").replace(",state", "")
    files = {
        "acme_20250106.csv": csv_of(line("M1"), line("M2")),
        "acme_20250107.csv": csv_of(",".join(v for n, v in enumerate(line("M1").split(",")) if n not in {7, 10}),
                                    header=header),
    }  # fmt: skip
    for name, text in files.items():
        deliver(home, name, text)
    assert list(opened(home)) == ["acme.missing.email", "acme.missing.state"]
    assert document(home, "acme.missing.state")["compatibility"] == "breaking"
    before = DeltaTable(home.lake.silver.uri)
    approved(home, "acme.missing.state")
    assert silver(home) == rebuilt(home, tmp_path, files)
    assert [row["email"] for row in silver(home)] == [None, "ada@example.com"]
    assert "state" not in Platform.open(home.places).clients.clients["acme"].contract.column
    after = DeltaTable(home.lake.silver.uri)
    assert (before.metadata().id, before.schema().fields) == (after.metadata().id, after.schema().fields)
    assert pl.read_delta(home.lake.silver.uri)["state"].to_list() == [None, None]


def test_in_prod_a_second_person_must_approve(tmp_path: Path) -> None:
    home = install(tmp_path)
    for name, text in ADDED.items():
        deliver(home, name, text)
    prod = Platform.open(places_in(tmp_path, HEALTHINGEST_ENV="prod"))
    answer = Answer(policy={"vault": "identity"})
    done, outcomes = approve(prod, "acme.added.middlename", answer, by="jane", reason="asked for")
    assert (done.state, outcomes) == ("second person", [])
    assert not (home.places.configs / "contracts" / "member" / "2.yaml").exists()
    with pytest.raises(UsageError, match="jane has approved"):
        approve(prod, "acme.added.middlename", Answer(), by="jane", reason="still")
    other = Answer(policy={"keep": True}, type="text")
    done, _ = approve(prod, "acme.added.middlename", other, by="john", reason="otherwise")
    assert done.state == "second person"
    done, outcomes = approve(prod, "acme.added.middlename", Answer(), by="jane", reason="as john says")
    assert (done.state, len(outcomes)) == ("applied", 5)
    assert [r["middlename"] for r in silver(home)] == ["Byron", "Noel", None, None, None]


def test_what_is_rejected_stays_so_until_it_is_opened_again(home: Platform) -> None:
    deliver(home, "acme_20250108.csv", ADDED["acme_20250108.csv"])
    reject(home, "acme.added.middlename", by="jane", reason="not for us")
    deliver(home, "acme_20250109.csv", ADDED["acme_20250109.csv"])
    assert not opened(home)
    with pytest.raises(UsageError, match="it is rejected"):
        reject(home, "acme.added.middlename", by="jane", reason="not for us")
    reopen(home, "acme.added.middlename", by="jane", reason="for us after all")
    assert opened(home)["acme.added.middlename"].state == "open"


def test_a_column_is_added_at_once_where_the_client_says_so(home: Platform, tmp_path: Path) -> None:
    home = configure(home, "client_id: acme\nschema_evolution: add_columns\n")
    for name, text in ADDED.items():
        assert deliver(home, name, text).status == "succeeded"
    assert list(opened(home)) == ["acme.missing.middlename"]
    assert silver(home) == rebuilt(home, tmp_path, ADDED)
    assert [r["middlename"] for r in silver(home)] == ["Byron", "Noel", None, None, None]
    contract = Platform.open(home.places).clients.clients["acme"].contract
    assert contract.column["middlename"].policy.vault == "unreviewed"


def test_frozen_clients_fail_the_delivery_and_are_asked(home: Platform) -> None:
    home = configure(home, "client_id: acme\nschema_evolution: freeze\n")
    assert deliver(home, "acme_20250108.csv", ADDED["acme_20250108.csv"]).error_kind == "extra_column"
    assert list(opened(home)) == ["acme.added.middlename"]


def test_other_order_asks_for_nothing_and_a_column_that_went_empty_is_told(home: Platform) -> None:
    names = HEADER.split(",")
    places = [10, *range(10)]
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2")))
    turned = [",".join(row.split(",")[at] for at in places) for row in (HEADER, line("M1"))]
    deliver(home, "acme_20250107.csv", csv_of(turned[1], header=turned[0]))
    found = {p.proposal_id: p.state for p in proposals_of(home.places, home.clients)}
    assert found == {"acme.reordered.header": "noted"}
    with pytest.raises(UsageError, match="nothing to approve"):
        approve(home, "acme.reordered.header", Answer(), by="jane", reason="fine")
    assert names[10] == "email"
    deliver(home, "acme_20250108.csv", csv_of(*(line(f"M{n}", email="") for n in range(30))))
    assert opened(home)["acme.emptied.email"].sentence == "The column email is empty now."
