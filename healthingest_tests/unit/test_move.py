"""A client moved to another table of silver: everything is as if its first rows had gone there."""

import os
import shutil
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.doctor import examine
from healthingest.erase import Request, erase_member
from healthingest.errors import UsageError
from healthingest.export import export_frame
from healthingest.ingest import ingest, register
from healthingest.lake.destinations import Destinations
from healthingest.lake.relayout import Relayout
from healthingest.maintain import maintain
from healthingest.marts.membership import counted, update
from healthingest.places import Places
from healthingest.platform import Platform
from healthingest.reading import read_silver
from healthingest.relayout import MOVED, Relaid, buckets, relayout, table
from healthingest.revert import revert
from healthingest.rotate import rotate
from healthingest.status import current
from healthingest_tests.conftest import configure, csv_of, deliver, drop, install, line

ACME = "client_id: acme\n"
SPECIAL = f"{ACME}silver: {{table: special}}\n"


def move(home: Platform, name: str | None = "special", client_id: str = "acme") -> Relaid:
    return relayout(Platform.open(home.places), client_id, table(client_id, name))


def where(home: Platform) -> dict[str, set[str]]:
    """Table -> clients with rows in it, of those that exist."""
    lake = Platform.open(home.places).lake
    there = [silver for silver in lake.silvers() if silver.exists()]
    return {silver.path.name: set(silver.frame(["client_id"])["client_id"]) for silver in there}


def shown(home: Platform) -> list[tuple[str, ...]]:
    return export_frame(Platform.open(home.places)).select("client_id", "member_id", "city").sort(pl.all()).rows()


def content(home: Platform) -> pl.DataFrame:
    lake = Platform.open(home.places).lake
    return lake.silver_of("acme").frame(None, pl.col("client_id") == "acme").drop("_ingested_at").sort("member_token")


def two_homes(tmp_path: Path) -> tuple[Platform, Platform]:
    """With the same keys: acme in the table of all, and in its own from the start; globex in that of all."""
    home = install(tmp_path / "a", {"acme": ACME, "globex": "client_id: globex\n"})
    shutil.copytree(tmp_path / "a" / "keys", tmp_path / "b" / "keys")
    return home, install(tmp_path / "b", {"acme": SPECIAL, "globex": "client_id: globex\n"})


def test_after_it_everything_is_as_if_the_first_rows_had_gone_there(tmp_path: Path) -> None:
    home, twin = both = two_homes(tmp_path)
    for one in both:
        deliver(one, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(20))))
        deliver(one, "globex_20250106.csv", csv_of(line("G1")))
        deliver(one, "acme_20250107.csv", csv_of(line("M1", city="Salem"), line("M2", city="Salem")))
        update(one.lake, one.places.output)
    assert where(home) == {"silver": {"acme", "globex"}}
    opened_before = Platform.open(home.places)
    done = move(home)
    assert (done.was.folder, done.shall.folder, done.rows) == ("silver", "silver_special", 20)
    assert where(home) == where(twin) == {"silver": {"globex"}, "silver_special": {"acme"}}

    def same() -> None:
        columns = content(home).columns
        assert content(home).equals(content(twin).select(columns))
        assert shown(home) == shown(twin)
        audit = [o.lake.audit.frame(["file_name", "delivery_no", "status", "inserted", "updated"]) for o in both]
        assert sorted(audit[0].rows()) == sorted(audit[1].rows())

    same()
    ingest(opened_before, register(opened_before, drop(home, "acme_20250108.csv", csv_of(line("M1", city="Lynn")))),
           run_id="a process that was there before")  # fmt: skip
    deliver(twin, "acme_20250108.csv", csv_of(line("M1", city="Lynn")))
    same()
    for one in both:
        again = Platform.open(one.places)
        deliver(again, "acme_20250107.csv", csv_of(line("M1", city="Lynn"), line("M3", city="Lynn")))
        deliver(again, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(20))))  # the very same
    same()
    found = [registered.delivery for registered in home.lake.bronze.of_client("acme")]
    first = next(delivery.file_id for delivery in found if delivery.file_name == "acme_20250106.csv")
    for undo in (False, True):
        for one in both:
            take_back(one, first, undo=undo)
        same()
    for one in both:
        update(Platform.open(one.places).lake, one.places.output)
    sums = [counted(o.places.output).group_by("client_id").agg(pl.col("members").sum()).sort("client_id") for o in both]
    assert sums[0].equals(sums[1])
    for one in both:
        erased = erase_member(Platform.open(one.places), "acme", "M3", Request())
        assert erased["looked_through"]["silver"]["found"] == 0
    same()
    rotate(Platform.open(home.places), "acme")
    maintain(Platform.open(home.places))
    for one in both:
        deliver(Platform.open(one.places), "acme_20250110.csv", csv_of(line("M5", city="Lynn"), line("N1")))
    assert shown(home) == shown(twin)
    shutil.rmtree(home.places.output / "checkpoint" / "audit")  # made again of what silver's log says: it was carried
    run(home, "ingest", "--from-bronze")
    columns = ["file_name", "delivery_no", "status", "inserted", "updated", "unchanged"]
    audit = [Platform.open(o.places).lake.audit.frame(columns) for o in both]
    assert sorted(audit[0].rows()) == sorted(audit[1].rows())


def take_back(home: Platform, file_id: str, *, undo: bool) -> None:
    platform = Platform.open(home.places)
    delivery = platform.lake.bronze.find("acme", file_id)
    assert delivery is not None
    revert(platform, delivery.delivery, by="ada", reason="a test", undo=undo)


def run(home: Platform, *words: str, code: int = 0) -> str:
    env = {"HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(home.places.keyring)}
    done = CliRunner().invoke(app, list(words), env=env)
    assert done.exit_code == code, done.output
    return done.output


def test_no_feed_shows_it_and_it_may_go_to_and_fro(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(9))))
    before = shown(home)
    there, back = move(home), None
    for name in ("other", "special"):
        back = move(home, name)
        deliver(Platform.open(home.places), "acme_20250107.csv", csv_of(line("M1")))
    assert back is not None
    assert (where(home), shown(home)) == ({"silver": set(), "silver_other": set(), "silver_special": {"acme"}}, before)
    home = configure(home, ACME)
    assert relayout(home, "acme", table("acme")).shall.folder == "silver"
    assert shown(home) == before
    assert deliver(home, "acme_20250108.csv", csv_of(line("M1", city="Lynn"))).counts.updated == 1
    for silver in home.lake.silvers():
        feed = pl.DataFrame(silver.handle().load_cdf(starting_version=0))
        kinds = feed["_change_type"].to_list() if feed.height else []
        late = ["update_postimage", "update_preimage"]
        assert sorted(kinds) == (["insert"] * 9 + late if silver.path.name == "silver" else []), silver.path.name
    assert there.version is not None
    moved = [(event["from"], event["to"]) for event in home.lake.events.read("acme") if event["kind"] == MOVED]
    assert moved[0] == ("silver", "silver_special")
    assert len(moved) == 4


def test_the_yaml_wants_and_the_command_brings_it_about(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    home = configure(home, f"{ACME}silver: {{table: special, buckets: 4}}\n")
    assert not home.clients.problems
    assert deliver(home, "acme_20250107.csv", csv_of(line("M2"))).counts.inserted == 1
    assert "run healthingest silver move --client acme" in current(home)["wishes"][0]
    assert "would go from output/silver to output/silver_special" in run(
        home, "silver", "move", "--client", "acme", "--plan"
    )
    assert where(home) == {"silver": {"acme"}}
    assert "Its YAML says otherwise" in run(home, "silver", "move", "--client", "acme")
    assert "silver rebucket" in current(Platform.open(home.places))["wishes"][0]
    run(home, "silver", "rebucket", "--client", "acme")
    assert not current(Platform.open(home.places))["wishes"]
    assert where(home) == {"silver": set(), "silver_special": {"acme"}}
    assert len(shown(home)) == 2


def test_more_shards_take_over_whom_the_command_moves(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    env = {"HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(home.places.keyring)}
    home = Platform.open(Places.from_env(env | {"HEALTHINGEST_SILVER_SHARDS": "4"}))
    folder = relayout(home, "acme", table("acme")).shall.folder
    assert folder in {f"silver_{n:02}" for n in range(4)}
    assert where(home) == {"silver": set(), folder: {"acme"}}


MEANWHILE = ["nothing", "a delivery", "a re-bucketing", "another table"]


class Died(BaseException):
    """As if the process had been killed."""


CUTS = [(step, what) for what in MEANWHILE for step in ("commit", "note", "leave")]
if not os.environ.get("HEALTHINGEST_NIGHTLY"):
    CUTS = [("commit", "a delivery"), ("commit", "another table"), ("note", "a re-bucketing")]


@pytest.mark.parametrize(("step", "meanwhile"), CUTS)
def test_cut_off_between_the_tables_it_is_finished_or_taken_back(
    home: Platform, monkeypatch: pytest.MonkeyPatch, step: str, meanwhile: str
) -> None:
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(9))))
    holder, name = {
        "commit": (Relayout, "commit"), "note": (Destinations, "resettle"), "leave": (Relayout, "leave"),
    }[step]  # fmt: skip
    whole = getattr(holder, name)

    def dying(*arguments: object, **said: object) -> None:
        whole(*arguments, **said)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(holder, name, dying)
        with pytest.raises(Died):
            move(home)
    home = Platform.open(home.places)
    cities = {f"M{n}": "Boston" for n in range(9)}

    def is_right() -> None:
        seen = read_silver(role="operations", places=home.places).select("member_id", "city").collect()
        assert seen.height == len(cities)
        assert dict(seen.rows()) == cities
        assert len(shown(home)) == len(cities)

    is_right()
    assert [f.state for f in examine(home.places) if f.subject == "relayout"] == ["warn"]
    if meanwhile == "a delivery":
        deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Lynn"), line("N1")))
        cities |= {"M1": "Lynn", "N1": "Boston"}
        is_right()
    if meanwhile == "a re-bucketing":
        relayout(home, "acme", buckets("acme", 4))
    if meanwhile == "another table":
        move(home, "other")
        is_right()
        assert set(where(home)) == {"silver", "silver_special", "silver_other"}
        assert [name for name, clients in where(home).items() if clients] == ["silver_other"]
    move(home)
    is_right()
    assert {name: clients for name, clients in where(home).items() if clients} == {"silver_special": {"acme"}}
    deliver(Platform.open(home.places), "acme_20250108.csv", csv_of(line("M2", city="Salem"), line("N2")))
    cities |= {"M2": "Salem", "N2": "Boston"}
    is_right()


def test_where_the_note_is_gone_the_tables_tell_from_which_one_it_has_left(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    for name in ("special", "other"):
        move(home, name)
        (home.places.output / "checkpoint" / "destinations" / "acme.json").unlink()
        home = Platform.open(home.places)
        assert deliver(home, "acme_20250107.csv", csv_of(line("M1"))).status == "succeeded"
        assert home.lake.destinations.of("acme").table == name
    home = configure(home, ACME)
    relayout(home, "acme", table("acme"))
    (home.places.output / "checkpoint" / "destinations" / "acme.json").unlink()
    home = Platform.open(home.places)
    deliver(home, "acme_20250108.csv", csv_of(line("M2")))
    assert {name: clients for name, clients in where(home).items() if clients} == {"silver": {"acme"}}


def test_a_table_by_date_is_refused(tmp_path: Path) -> None:
    home = install(tmp_path, {
        "acme": f"{ACME}silver: {{table: dated, partition_by: [client_id, creation_date]}}\n",
        "globex": "client_id: globex\n",
    })  # fmt: skip
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    deliver(home, "globex_20250106.csv", csv_of(line("G1")))
    with pytest.raises(UsageError, match="partitioned by date"):
        move(home)
    with pytest.raises(UsageError, match="partitioned"):
        move(home, "dated", "globex")
    assert where(home) == {"silver": {"globex"}, "silver_dated": {"acme"}}
