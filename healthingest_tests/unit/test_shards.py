"""Clients dealt out over several tables of silver: each stays where its first rows went, and readers see them all."""

import json
import os
import random
import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.contracts.clients import Layout
from healthingest.doctor import examine
from healthingest.erase import Request, erase_client, erase_member
from healthingest.errors import ConfigError, UsageError
from healthingest.export import export_frame
from healthingest.ingest import ingest, register
from healthingest.lake.destinations import Destinations
from healthingest.maintain import maintain
from healthingest.marts.membership import counted, update
from healthingest.places import Places
from healthingest.platform import Platform
from healthingest.reading import read_silver
from healthingest.reconcile import differences
from healthingest.relayout import buckets, relayout
from healthingest.rotate import rotate
from healthingest.status import current
from healthingest_tests.conftest import configure, csv_of, deliver, drop, install, line
from healthingest_tests.histories import CONFIGS, change_feed_is_real, expected, found, history_of

CLIENTS = [f"c{n}" for n in range(8)]


def opened(home: Platform, shards: int) -> Platform:
    """The installation with another number of tables."""
    env = {
        "HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(home.places.keyring),
        "HEALTHINGEST_SILVER_SHARDS": str(shards),
    }  # fmt: skip
    return Platform.open(Places.from_env(env))


def tables(home: Platform) -> dict[str, set[str]]:
    """Table -> its clients, of those that exist."""
    there = [silver for silver in home.lake.silvers() if silver.exists()]
    return {silver.path.name: set(silver.frame(["client_id"])["client_id"]) for silver in there}


def new_home(tmp_path: Path, shards: int, configs: dict[str, str] | None = None) -> Platform:
    return opened(install(tmp_path, configs or {name: f"client_id: {name}\n" for name in CLIENTS}), shards)


def test_clients_are_dealt_out_by_a_stable_hash_and_readers_see_all(tmp_path: Path) -> None:
    home = new_home(tmp_path, 3)
    for name in CLIENTS:
        deliver(home, f"{name}_20250106.csv", csv_of(line("M1"), line("M2", city="Salem")))
    dealt = tables(home)
    assert dealt == {"silver_00": {"c0", "c2", "c7"}, "silver_01": {"c4", "c5", "c6"}, "silver_02": {"c1", "c3"}}
    assert [c["members"] for c in current(home)["clients"]] == [2] * len(CLIENTS)
    shown = read_silver(role="operations", places=home.places).select("client_id", "member_id").collect()
    assert sorted(shown.rows()) == [(name, member) for name in CLIENTS for member in ("M1", "M2")]
    assert export_frame(home).height == 2 * len(CLIENTS)
    update(home.lake, home.places.output)
    members = counted(home.places.output).group_by("client_id").agg(pl.col("members").sum())
    assert sorted(members.rows()) == [(name, 2) for name in CLIENTS]
    assert not [d for d in differences(home.places, home.clients) if not d.is_lag]
    assert not [f for f in examine(home.places) if f.subject in {"tables", "client config"} and f.state == "fail"]
    env = {"HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(home.places.keyring)}
    said = CliRunner().invoke(app, ["explain", "--client", "c4", "--role", "operations", "--json"], "M1\n", env=env)
    assert said.exit_code == 0, said.output
    assert json.loads(said.output)["in_silver"] is True


def test_gold_counts_every_table_also_where_the_feed_of_one_was_cut_off(tmp_path: Path) -> None:
    home = new_home(tmp_path, 3)
    for name in ("c0", "c1"):
        deliver(home, f"{name}_20250106.csv", csv_of(line("M1"), line("M2")))
    update(home.lake, home.places.output)
    deliver(home, "c0_20250107.csv", csv_of(line("M1", city="Lynn"), line("M3")))
    shutil.rmtree(home.lake.silver_of("c0").path / "_change_data")
    done = update(home.lake, home.places.output)
    members = counted(home.places.output).group_by("client_id").agg(pl.col("members").sum())
    assert (sorted(members.rows()), [one.cut_off for one in done]) == ([("c0", 3), ("c1", 2)], [True])


def test_another_number_of_tables_moves_nobody(tmp_path: Path) -> None:
    home = new_home(tmp_path, 1)
    deliver(home, "c0_20250106.csv", csv_of(line("M1")))
    (home.places.output / "checkpoint" / "destinations" / "c0.json").unlink()  # as from before there were notes
    home = opened(home, 3)
    deliver(home, "c0_20250107.csv", csv_of(line("M2")))
    deliver(home, "c1_20250106.csv", csv_of(line("M1")))
    for day, number in enumerate((7, 1, 64), 1):
        home = opened(home, number)
        assert not home.clients.problems
        deliver(home, f"c0_2025020{day}.csv", csv_of(line(f"N{number}")))
        deliver(home, f"c1_2025020{day}.csv", csv_of(line(f"N{number}")))
        assert tables(home) == {"silver": {"c0"}, "silver_02": {"c1"}}
    assert export_frame(home).height == 9
    (home.places.output / "checkpoint" / "destinations" / "c1.json").unlink()
    home = opened(home, 3)
    deliver(home, "c1_20250301.csv", csv_of(line("M1", city="Lynn")))
    assert tables(opened(home, 5)) == {"silver": {"c0"}, "silver_02": {"c1"}}


def test_of_two_writers_with_two_numbers_the_first_decides_for_both(tmp_path: Path) -> None:
    one, other = (Destinations(tmp_path, {}, shards) for shards in (3, 64))
    assert one.settle("new") == other.settle("new") == other.of("new")
    assert (tmp_path / "checkpoint" / "destinations" / "new.json").exists()


def test_whatever_happens_to_a_client_happens_in_its_table(tmp_path: Path) -> None:
    home = new_home(tmp_path, 3)
    for name in ("c0", "c1", "c2"):
        deliver(home, f"{name}_20250106.csv", csv_of(*(line(f"M{n}") for n in range(20))))
    assert relayout(home, "c0", buckets("c0", 4)).shall.folder == "silver_00"
    assert set(home.lake.silver_of("c0").frame(["_bucket"], pl.col("client_id") == "c0")["_bucket"]) == {0, 1, 2, 3}
    assert set(home.lake.silver_of("c2").frame(["_bucket"], pl.col("client_id") == "c2")["_bucket"]) == {0}
    change_feed_is_real(home)
    rotate(home, "c0")
    home = opened(home, 3)
    assert erase_member(home, "c0", "M3", Request())["looked_through"]["silver"]["found"] == 0
    maintain(home)
    assert erase_client(home, "c1", Request())["erased"]["silver_02"] == 20
    assert export_frame(opened(home, 3)).group_by("client_id").len().sort("client_id").rows() == [
        ("c0", 19),
        ("c2", 20),
    ]
    shutil.rmtree(home.places.output / "silver_00")
    (said,) = [f.text for f in examine(home.places) if f.subject == "tables"]
    assert "silver_00 is missing" in said


@pytest.mark.skipif(not os.environ.get("HEALTHINGEST_NIGHTLY"), reason="for the night; that of one table is in CI")
@pytest.mark.parametrize("seed", range(20))
def test_a_random_history_ends_as_it_must(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    files, home = history_of(chance), new_home(tmp_path, 2, CONFIGS)
    for name, text in files:
        ingest(home, register(home, drop(home, name, text)), run_id="any")
    assert found(home) == expected(files)
    assert tables(home).keys() <= {"silver_00", "silver_01"}
    change_feed_is_real(home)


def test_a_named_table_is_not_dealt_out_and_a_config_cannot_name_a_number(tmp_path: Path) -> None:
    home = new_home(tmp_path, 3, {"acme": "client_id: acme\nsilver: {table: special}\n"})
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    assert tables(home) == {"silver_special": {"acme"}}
    (problem,) = configure(home, 'client_id: acme\nsilver: {table: "02"}\n').clients.problems
    assert isinstance(problem, ConfigError)
    assert "begins with a letter" in str(problem)
    home = configure(home, "client_id: acme\n")
    assert "silver move --client acme" in current(home)["wishes"][0]
    assert Layout(table="02").own is None


@pytest.mark.parametrize("number", ["0", "257", "x", "-1"])
def test_a_number_of_tables_that_cannot_be_is_refused(number: str) -> None:
    with pytest.raises(UsageError, match="HEALTHINGEST_SILVER_SHARDS"):
        Places.from_env({"HEALTHINGEST_SILVER_SHARDS": number})
