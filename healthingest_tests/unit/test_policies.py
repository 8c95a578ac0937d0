"""Column policies: what of each value silver, the vault and a reader get, by contract and by client."""

from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from healthingest.contracts.clients import load_clients
from healthingest.export import export_frame
from healthingest.platform import Platform
from healthingest_tests.conftest import configure, csv_of, deliver, install, line

_POLICIES = """client_id: acme
policies:
  phone_number: {mask: {phone_last4: last4}}
  first_name: {vault: clinical, mask: {initial: first}}
  dob: {vault: identity, generalize: {birth_year: year, birth_month: month}}
  address: {drop: true}
"""


def silver_of(home: Platform) -> dict[str, object]:
    return home.lake.silver.frame().to_dicts()[0]


def test_each_policy_leaves_what_it_says_in_silver_and_the_vault(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": _POLICIES})
    deliver(home, "acme_20250106.csv", csv_of(line("M1", first_name="Élodie", phone_number="617-253-1000")))
    row = silver_of(home)
    made = {name: row[name] for name in ("phone_last4", "initial", "birth_year", "birth_month", "zip3", "gender")}
    assert made == {
        "phone_last4": "*1000", "initial": "É*", "birth_year": 1980, "birth_month": "1980-12", "zip3": "021",
        "gender": "F",
    }  # fmt: skip
    vaulted = home.lake.vault.rows("acme", home.lake.silver.frame(["member_token", "_file_id"]))
    assert set(vaulted.columns) == {
        "member_token", "_file_id", "identity/member_id", "clinical/first_name", "identity/last_name", "identity/dob",
        "contact/city", "contact/zip", "contact/email",
    }  # fmt: skip


def test_a_short_value_is_masked_whole_and_a_missing_one_stays_missing(tmp_path: Path) -> None:
    config = "client_id: acme\npolicies: {city: {mask: {city_end: last4}}}\n"
    home = install(tmp_path, {"acme": config})
    records = [line("M1", city="Boston"), line("M2", city=""), line("M3", city="Winchester")]
    deliver(home, "acme_20250106.csv", csv_of(*records))
    assert sorted(home.lake.silver.frame()["city_end"].to_list(), key=str) == ["*", "*ster", None]


def test_a_changed_policy_counts_for_new_deliveries_and_old_values_stay_readable(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2")))
    home = configure(home, "client_id: acme\npolicies: {city: {vault: identity}, address: {drop: true}}\n")
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem")))
    shown = export_frame(home).sort("member_id").select("member_id", "city", "address").rows()
    assert shown == [("M1", "Salem", None), ("M2", "Boston", "12 Main St")]


@pytest.mark.parametrize("first", ["acme", "globex"])
def test_clients_with_other_columns_in_silver_stand_beside_each_other(tmp_path: Path, first: str) -> None:
    home = install(tmp_path, {"acme": _POLICIES, "globex": "client_id: globex\n"})
    other = "globex" if first == "acme" else "acme"
    for day, client_id in enumerate([first, other, first, other], 6):
        done = deliver(home, f"{client_id}_2025010{day}.csv", csv_of(line("M1", city=f"Town {day}"), line(f"M{day}")))
        assert done.status == "succeeded"
    shown = home.lake.silver.frame().group_by("client_id").agg(pl.col("phone_last4").unique(), pl.len())
    assert shown.sort("client_id").rows() == [("acme", ["*1000"], 3), ("globex", [None], 3)]


def test_what_a_policy_no_longer_makes_is_gone_from_a_member_that_changes(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": _POLICIES})
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    home = configure(home, "client_id: acme\n")
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem")))
    row = silver_of(home)
    assert (row["phone_last4"], row["initial"], row["birth_year"]) == (None, None, 1980)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{nickname: {drop: true}}", "no column nickname"),
        ("{member_id: {vault: identity}}", "exactly the column member_id"),
        ("{email: {keep: true}}", "cannot be kept in the clear"),
        ("{email: {}}", "at least one of"),
        ("{email: {mask: {state: last4}}}", "name is taken"),
    ],
)
def test_a_policy_that_does_not_fit_takes_out_its_client_alone_with_file_and_key(
    tmp_path: Path, text: str, said: str
) -> None:
    home = install(tmp_path, {"acme": f"client_id: acme\npolicies: {text}\n", "globex": "client_id: globex\n"})
    (problem,) = load_clients(home.places).problems
    assert said in str(problem)
    assert "acme.yaml:2" in str(problem)
    assert "policies" in str(problem)
    assert home.clients.active == ["globex"]


def test_two_clients_cannot_give_one_silver_column_two_types(tmp_path: Path) -> None:
    month = "client_id: globex\npolicies: {dob: {vault: identity, generalize: {birth_year: month}}}\n"
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": month})
    (problem,) = home.clients.problems
    assert "birth_year of another type" in str(problem)


def test_a_column_that_is_kept_cannot_be_the_year_that_another_client_derives(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\n"})
    folder = home.places.configs / "contracts" / "odd"
    folder.mkdir()
    (folder / "1.yaml").write_text(
        "contract: odd\nversion: 1\ncolumns:\n"
        "  - {name: member_id, type: identifier, required: true, policy: {token: true, vault: identity}}\n"
        "  - {name: birth_year, type: text, class: free, policy: {keep: true}}\n"
    )
    home = configure(home, "client_id: globex\ncontract: odd/1\n", stem="globex")
    (problem,) = home.clients.problems
    assert "birth_year of another type" in str(problem)
    assert home.clients.active == ["acme"]


def test_the_tables_schema_says_of_every_readable_column_what_it_is_and_how_near_a_person(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": _POLICIES})
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    fields = DeltaTable(home.lake.silver.uri).schema().fields
    said = {field.name: field.metadata.get("comment", "") for field in fields}
    assert all(text.endswith(("(identifier)", "(quasi-identifier)", "(free)")) for text in said.values()), said
    assert said["member_token"].endswith("(identifier)")
    assert said["initial"] == "first character of first_name (quasi-identifier)"
    assert said["gender"].endswith("(free)")


def test_the_content_hash_covers_what_is_only_masked(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\npolicies: {city: {mask: {city_first: first}}}\n"})
    deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Boston")))
    done = deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem")))
    assert done.counts.updated == 1
    assert home.lake.silver.frame().select(pl.col("city_first")).item() == "S*"
