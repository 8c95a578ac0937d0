"""Generated deliveries: the pipeline takes them like the real ones, and they hold nothing of a member."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.errors import UsageError
from healthingest.ingest import ingest, register
from healthingest.platform import Platform
from healthingest.qa import generate
from healthingest_tests.conftest import CONTRACTS, csv_of, deliver, install, line

COUNTS = ["records", "accepted", "rejected", "inserted", "updated", "unchanged", "duplicates"]
PIPED = """
client_id: pipes
source: {delimiter: "|", encoding: cp1252, skip_lines: 1, trailer: {starts_with: TRL, count_field: 2}}
columns:
  ID: member_id
  Given: first_name
  Family: last_name
  Born: {to: dob, date_formats: ["%d.%m.%Y"]}
  Sex: {to: gender, map: {male: M, female: F}}
rules: [{id: ids, column: member_id, pattern: "M[0-9]{8}"}]
quality: {max_invalid_ratio: 0.5}
"""
ACME = "client_id: acme\nquality: {max_invalid_ratio: 0.5}\n"


def real(root: Path) -> Platform:
    home = install(root, {"acme": ACME, "pipes": PIPED})
    for day in (1, 2, 3):
        rows = [
            line(f"Zmember{n}", last_name="Zname", city=f"Ztown{day if n % 5 == 0 else 0}") for n in range(40 + day)
        ]
        rows += [line(f"Zb{n}", email="", zip="12") for n in range(3)] + [line("Zc", dob="1700-01-01"), "Zd,too,few"]
        rows += [line("Zmember1"), line("", last_name="Znone")]
        deliver(home, f"acme_2025010{day}.csv", csv_of(*rows))
    piped = [f"M{n:08d}|Zfirst|Zlast|01.02.1980|female" for n in range(10)] + ["x|Zfirst|Zlast|01.02.1980|male"]
    deliver(home, "pipes_20250101.csv", "\n".join(["report", "ID|Given|Family|Born|Sex", *piped, "TRL|11"]) + "\n")
    return home


def audit(home: Platform) -> pl.DataFrame:
    return home.lake.audit.frame().sort("file_name")


def test_the_pipeline_gets_from_generated_files_what_it_got_from_the_real_ones(tmp_path: Path) -> None:
    home, other = real(tmp_path / "real"), install(tmp_path / "qa", {"acme": ACME, "pipes": PIPED})
    made = list(generate(home, tmp_path / "made", clients=None, seed=1))
    assert [m.records for m in made] == [48, 49, 50, 11]
    for file in sorted((tmp_path / "made").iterdir()):
        shutil.copy(file, other.places.landing)
        ingest(other, register(other, other.places.landing / file.name), run_id="qa")
    one, two = audit(home), audit(other)
    assert two["status"].to_list() == one["status"].to_list() == ["succeeded"] * 4
    assert two.select(COUNTS).rows() == one.select(COUNTS).rows()
    assert two["rules"].to_list() == one["rules"].to_list()
    for mine, theirs in zip(one["filled"], two["filled"], strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a["column"], a["header"]) == (b["column"], b["header"])
            assert abs(a["records"] - b["records"]) <= 6, a["column"]


def test_nothing_of_a_member_is_in_them_and_a_seed_gives_the_same_again(tmp_path: Path) -> None:
    home = real(tmp_path / "real")
    for name, seed in (("one", 1), ("same", 1), ("two", 2)):
        list(generate(home, tmp_path / name, clients=["acme"], seed=seed))
    texts = {n: {f.name: f.read_text() for f in (tmp_path / n).iterdir()} for n in ("one", "same", "two")}
    assert texts["one"] == texts["same"] != texts["two"]
    for text in texts["one"].values():
        records = "\n".join(text.splitlines()[1:])
        assert not any(
            real in records
            for real in (
                "Zmember",
                "Zname",
                "Ztown",
                "Znone",
                "Ada",
                "Lovelace",
                "12 Main",
                "02139",
                "617-253",
                "1980-12-10",
            )
        )


def test_generated_files_are_never_written_where_real_ones_lie(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1")))
    for place in (home.places.landing, home.places.output / "qa", tmp_path):
        with pytest.raises(UsageError, match="--out"):
            list(generate(home, place, clients=None, seed=1))
    run = CliRunner().invoke
    done = run(app, ["export", "--profile", "qa", "--out", str(tmp_path / "qa")])
    assert done.output == f"1 deliveries with 1 invented records, 0 of them bad, written to {tmp_path / 'qa'}.\n"


def test_every_type_of_column_gets_values_that_its_own_rules_accept(tmp_path: Path) -> None:
    contract = """
contract: every
version: 1
columns:
  - {name: member_id, type: identifier, required: true, policy: {token: true, vault: identity}}
"""
    types = ["name", "text", "date", "gender", "us_state", "us_zip", "phone", "email", "ssn", "mbi", "npi"]
    contract += "".join(f"  - {{name: a_{t}, type: {t}, required: true, policy: {{vault: identity}}}}\n" for t in types)
    values = ["M1", "Ada", "text", "2000-01-01", "F", "MA", "02139", "617-253-1000", "a@b.org", "219-09-9998",
              "1EG4-TE5-MK73", "1234567893"]  # fmt: skip
    home = install(tmp_path, {"acme": "client_id: acme\n"})
    assert CONTRACTS.is_dir()
    (home.places.configs / "contracts" / "every").mkdir()
    (home.places.configs / "contracts" / "every" / "1.yaml").write_text(contract)
    (home.places.configs / "acme.yaml").write_text("client_id: acme\ncontract: every/1\n")
    home = Platform.open(home.places)
    header = ",".join(["member_id", *(f"a_{t}" for t in types)])
    rows = [",".join([f"M{n}", *values[1:]]) for n in range(200)]
    assert deliver(home, "acme_20250101.csv", csv_of(*rows, header=header)).counts.rejected == 0
    other = install(tmp_path / "other")
    shutil.copytree(home.places.configs, other.places.configs, dirs_exist_ok=True)
    other = Platform.open(other.places)
    (made,) = generate(home, tmp_path / "made", clients=None, seed=3)
    done = deliver(other, made.file.name, made.file.read_bytes())
    assert (done.counts.accepted, done.counts.rejected) == (200, 0), done.profile.rules


def test_what_transforms_make_is_written_as_the_client_sends_it(tmp_path: Path) -> None:
    steps = "[{concat: [group, number], separator: '-', to: member_id}, {split: name, to: [first_name, last_name]}]"
    config = {"acme": f"{ACME}transform: {steps}\n"}
    home, other = install(tmp_path / "real", config), install(tmp_path / "qa", config)
    rows = [f"G1,{n},Zfirst Zlast,1980-12-10" for n in range(20)]
    text = csv_of(*rows, "G1,98,Zfirst Zlast,1700-01-01", "G1,99,Zfirst", header="group,number,name,dob")
    deliver(home, "acme_20250101.csv", text)
    (made,) = generate(home, tmp_path / "made", clients=None, seed=1)
    deliver(other, made.file.name, made.file.read_bytes())
    one, two = audit(home), audit(other)
    assert two.select("status", *COUNTS).rows() == one.select("status", *COUNTS).rows()
    assert two["rules"].to_list() == one["rules"].to_list()
