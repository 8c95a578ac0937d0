"""Where a client's rows go: every layout gives the same silver, and nothing but its first rows settles it."""

import json
import random
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.contracts.clients import Layout
from healthingest.doctor import examine
from healthingest.erase import Request, erase_client, erase_member
from healthingest.errors import AccountingError
from healthingest.export import export_frame, export_members
from healthingest.ingest import ingest_many
from healthingest.lake.destinations import Destinations
from healthingest.lake.rewrite import CHANGED, GONE, files_in
from healthingest.lake.silver import Snapshot
from healthingest.maintain import maintain
from healthingest.planning import plan_paths
from healthingest.platform import Platform
from healthingest.reading import read_silver
from healthingest.reread import read_again, stale
from healthingest.rotate import revoke, rotate
from healthingest.status import current
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, drop, env_of, install, line
from healthingest_tests.histories import CONFIGS, change_feed_is_real, expected, history_of, in_any_order

LAYOUTS = {
    "own": "silver: {table: special}\n",
    "buckets": "silver: {buckets: 4}\n",
    "dated": "silver: {table: special, partition_by: [client_id, creation_date]}\n",
}
OTHER_DATED = "silver: {table: other, partition_by: [client_id, creation_date]}\n"
#: By record dates, so that a member's row may go back to a day before.
BY_RECORD = "client_id: acme\nsource: {creation_date: {from: column, column: creation_date}}\n"


def record(member: str, day: int, **values: str) -> str:
    return f"{line(member, **values)},2025-01-0{day}"


def file_of(*records: str) -> str:
    return csv_of(*records, header=f"{HEADER},creation_date")


def home_of(tmp_path: Path, layout: str) -> Platform:
    """The client acme as the layout says, and globex in the table of all."""
    return install(tmp_path, {"acme": BY_RECORD + layout, "globex": "client_id: globex\n"})


def shown(home: Platform) -> list[tuple[str, ...]]:
    frame = export_frame(Platform.open(home.places)).select("client_id", "member_id", "city", "creation_date")
    return [tuple(map(str, row)) for row in frame.sort(pl.all()).rows()]


def rows_of(home: Platform, client_id: str = "acme") -> dict[str, int]:
    """Table -> how many rows of a client are in it."""
    tables = [silver for silver in home.lake.silvers() if silver.exists()]
    return {t.path.name: n for t in tables if (n := t.frame(["client_id"], pl.col("client_id") == client_id).height)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_order_of_a_random_history_leads_to_what_it_defines(tmp_path: Path, layout: str) -> None:
    seed = 5  # with all three clients, and files that were sent again
    files = history_of(random.Random(seed))
    configs = CONFIGS | {name: CONFIGS[name] + LAYOUTS[layout] for name in ("globex", "hist")}
    assert in_any_order(tmp_path, files, random.Random(-seed), configs) == expected(files)


@pytest.mark.parametrize("layout", ["buckets", "dated"])
def test_whatever_happens_to_a_client_happens_where_its_rows_are(tmp_path: Path, layout: str) -> None:
    home = home_of(tmp_path, LAYOUTS[layout])
    deliver(home, "globex_20250106.csv", csv_of(line("G1")))
    deliver(home, "acme_20250106.csv", file_of(*(record(f"M{n}", 1 + n % 3) for n in range(9))))
    deliver(home, "acme_20250107.csv", file_of(record("M1", 5, city="Lynn"), record("M2", 1), record("M9", 7)))
    second = deliver(home, "acme_20250107.csv", file_of(*(record(f"M{n}", 6, city="Salem") for n in (1, 3, 4))))
    assert (second.counts.updated, second.message is not None) == (3, True)
    folder = "silver" if layout == "buckets" else "silver_special"
    assert (rows_of(home), rows_of(home, "globex")) == ({folder: 9}, {"silver": 1})
    assert [c["members"] for c in current(home)["clients"]] == [9, 1]
    (planned,) = plan_paths(home, [drop(home, "acme_20250108.csv", file_of(record("M1", 8), record("M99", 8)))])
    assert (planned.counts.updated, planned.counts.inserted) == (1, 1)
    change_feed_is_real(home)

    rotate(home, "acme")
    assert revoke(Platform.open(home.places), "acme") == 1
    home = Platform.open(home.places)
    deliver(home, "acme_20250109.csv", file_of(record("M5", 9, city="Lynn"), record("N1", 9)))
    before = shown(home)
    assert len(before) == 11
    maintain(home)
    assert shown(home) == before
    seen = read_silver(role="operations", places=home.places).select("client_id", "member_id", "city").collect()
    assert sorted(map(tuple, seen.rows())) == sorted((c, m, city) for c, m, city, _ in before)

    certificate = erase_member(home, "acme", "M3", Request())
    assert (certificate["erased"]["silver"], certificate["looked_through"]["silver"]["found"]) == (1, 0)
    assert shown(home) == [row for row in before if row[1] != "M3"]

    loose = BY_RECORD + LAYOUTS[layout] + "rules: [{id: lynn, column: city, not_in: [Lynn]}]\n"
    home = configure(home, loose + "quality: {max_invalid_ratio: 1.0}\n")
    for _ in read_again(home, stale(home, "acme"), run_id="again"):
        pass
    after = shown(home)
    assert {row[2] for row in after} == {"Boston", "Salem"}
    for place in ("silver", "silver_special", "vault", "quarantine", "checkpoint/sightings", "checkpoint/audit"):
        remove_tree(home.places.output / place)
    env = env_of(home.places)
    done = CliRunner().invoke(app, ["ingest", "--from-bronze", "--json"], env=env)
    assert done.exit_code == 0, done.output
    home = Platform.open(home.places)
    assert (shown(home), rows_of(home)) == (after, {folder: 9})

    assert erase_client(home, "acme", Request())["erased"][folder] == 9
    assert rows_of(Platform.open(home.places)) == {}


def test_a_change_reads_and_writes_the_buckets_that_it_touches_alone(tmp_path: Path) -> None:
    home = home_of(tmp_path, "silver: {buckets: 16}\n")
    deliver(home, "acme_20250106.csv", file_of(*(record(f"M{n}", 1) for n in range(100))))
    silver = home.lake.silver_of("acme")
    before = {file.path for file in files_in(silver.snapshot(), {"client_id": "acme"})}
    deliver(home, "acme_20250107.csv", file_of(record("M1", 2, city="Salem")))
    after = {file.path for file in files_in(silver.snapshot(), {"client_id": "acme"})}
    assert (len(before), len(after), len(before & after)) == (16, 16, 15)
    placed = silver.frame(["member_token", "_bucket"]).to_dicts()
    assert all(int(row["member_token"][:8], 16) % 16 == row["_bucket"] for row in placed)

    row, snapshot = silver.frame().head(1), Snapshot(silver.snapshot(), "acme")
    for file in files_in(snapshot.table, {"client_id": "acme"}):
        if file.partition["_bucket"] != str(row["_bucket"][0]):
            (silver.path / file.path).rename(tmp_path / file.path.replace("/", "-"))
    silver.commit(snapshot, {}, row.with_columns(_change=pl.lit(GONE)))
    assert Snapshot(silver.snapshot(), "acme").rows == 99


def test_a_member_whose_date_changes_goes_to_that_partition_and_leaves_the_other(tmp_path: Path) -> None:
    home = home_of(tmp_path, LAYOUTS["dated"])
    deliver(home, "acme_20250106.csv", file_of(record("M1", 1), record("M2", 1), record("M3", 2)))
    deliver(home, "acme_20250107.csv", file_of(record("M1", 2, city="Salem"), record("M4", 3)))
    files = files_in(home.lake.silver_of("acme").snapshot(), {"client_id": "acme"})
    held = sorted((file.partition["creation_date"][-1], file.rows) for file in files)
    assert held == [("1", 1), ("2", 1), ("2", 1), ("3", 1)]
    change_feed_is_real(home)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", LAYOUTS["dated"]), (LAYOUTS["own"], LAYOUTS["dated"]), (LAYOUTS["buckets"], LAYOUTS["dated"]),
        (LAYOUTS["dated"], "silver: {table: other}\n"), (LAYOUTS["dated"], ""),
        (LAYOUTS["dated"], "silver: {table: other, partition_by: [client_id, creation_date]}\n"),
    ],
)  # fmt: skip
def test_a_config_cannot_move_rows_that_are_there(tmp_path: Path, before: str, after: str) -> None:
    home = home_of(tmp_path, before)
    home = configure(home, BY_RECORD + LAYOUTS["own"])  # until there are rows it may change its mind
    home = configure(home, BY_RECORD + before)
    text = file_of(record("M1", 1))
    deliver(home, "acme_20250106.csv", text)
    home = configure(home, BY_RECORD + after)
    (problem,) = home.clients.problems
    assert "no command moves them" in str(problem)
    assert "ingest --from-bronze" in str(problem)
    assert (home.clients.active, rows_of(home).popitem()[1]) == (["globex"], 1)
    home = configure(home, BY_RECORD + before)
    assert not home.clients.problems
    deliver(home, "acme_20250107.csv", file_of(record("M2", 2)))
    assert list(rows_of(home).values()) == [2]


@pytest.mark.parametrize("layout", ["", LAYOUTS["own"], LAYOUTS["dated"]])
def test_rows_from_before_there_were_notes_are_found(tmp_path: Path, layout: str) -> None:
    home = home_of(tmp_path, layout)
    deliver(home, "acme_20250106.csv", file_of(record("M1", 1)))
    remove_tree(home.places.output / "checkpoint" / "destinations")
    assert configure(home, BY_RECORD + OTHER_DATED).clients.problems
    home = configure(home, BY_RECORD + layout)
    deliver(home, "acme_20250107.csv", file_of(record("M2", 2)))
    assert list(rows_of(home).values()) == [2]


def test_how_many_buckets_there_are_is_not_guessed(tmp_path: Path) -> None:
    home = home_of(tmp_path, LAYOUTS["buckets"])
    deliver(home, "acme_20250106.csv", file_of(*(record(f"M{n}", 1) for n in range(9))))
    note = home.places.output / "checkpoint" / "destinations" / "acme.json"
    kept = note.read_text()
    note.unlink()
    (problem,) = Platform.open(home.places).clients.problems
    assert "restore it" in str(problem)
    note.write_text(kept)
    assert not Platform.open(home.places).clients.problems


def test_of_two_writers_with_two_configs_the_first_decides_for_both(tmp_path: Path) -> None:
    late = home_of(tmp_path, "")  # opened before the config was changed
    home = configure(late, BY_RECORD + LAYOUTS["own"])
    deliver(home, "acme_20250106.csv", file_of(record("M1", 1)))
    deliver(late, "acme_20250107.csv", file_of(record("M2", 2)))
    assert rows_of(home) == {"silver_special": 2}
    layouts = [Layout(table="special"), Layout()]
    both = [Destinations(tmp_path, {"new": layout}) for layout in layouts]
    assert [one.settle("new") for one in both] == [layouts[0]] * 2
    assert both[1]._put("new", layouts[1]) == layouts[0]  # had it looked before the other wrote


def test_where_rows_go_is_no_reason_to_read_a_delivery_again(tmp_path: Path) -> None:
    plain, *others = [home_of(tmp_path / name, text) for name, text in {"plain": "", **LAYOUTS}.items()]
    client = plain.clients.clients["acme"]
    assert client.pin["silver"] == {"buckets": 1, "partition_by": ["client_id"]}
    assert {home.clients.clients["acme"].config_hash for home in others} == {client.config_hash}


def test_a_client_that_has_left_is_read_and_its_other_clients_go_on(tmp_path: Path) -> None:
    home = home_of(tmp_path, LAYOUTS["own"])
    deliver(home, "acme_20250106.csv", file_of(record("M1", 1)))
    before = shown(home)
    (home.places.configs / "acme.yaml").unlink()
    assert shown(home) == before
    assert [f.text for f in examine(home.places) if f.subject == "table silver_special"] == ["version 2"]
    remove_tree(home.places.output / "silver_special")
    assert "silver_special is missing" in next(f.text for f in examine(home.places) if f.subject == "tables")


def test_a_column_may_have_another_type_in_another_table(tmp_path: Path) -> None:
    year = "policies: {dob: {vault: identity, generalize: {birth: year}}}\n"
    month = "policies: {dob: {vault: identity, generalize: {birth: month}}}\n"
    configs = {"acme": f"client_id: acme\n{month}", "globex": f"client_id: globex\n{year}"}
    (problem,) = install(tmp_path / "one", configs).clients.problems
    assert "table of its own" in str(problem)
    home = install(tmp_path / "two", configs | {"globex": configs["globex"] + LAYOUTS["own"]})
    for client_id in configs:
        deliver(home, f"{client_id}_20250106.csv", csv_of(line("M1")))
    seen = read_silver(role="operations", places=home.places).select("client_id", "birth").collect()
    assert sorted(seen.rows()) == [("acme", "1980-12"), ("globex", "1980")]
    assert export_frame(home).select("client_id", "birth").rows() == [("acme", "1980-12"), ("globex", "1980")]
    assert "birth" not in export_members(home, profile="safe_harbor").frame.columns


def test_two_clients_may_share_a_table_if_its_partitions_are_the_same(tmp_path: Path) -> None:
    configs = {name: f"client_id: {name}\n{LAYOUTS['own']}" for name in ("acme", "globex")}
    home = install(tmp_path, configs)
    for client_id in configs:
        deliver(home, f"{client_id}_20250106.csv", csv_of(line("M1")))
    assert rows_of(home) == rows_of(home, "globex") == {"silver_special": 1}
    configs["globex"] = f"client_id: globex\n{LAYOUTS['dated']}"
    (problem,) = install(tmp_path / "other", configs).clients.problems
    assert "with other partitions" in str(problem)


def test_ingesting_again_changes_no_table_and_each_client_is_noted(tmp_path: Path) -> None:
    home = home_of(tmp_path, LAYOUTS["own"])
    files = {"globex_20250106.csv": csv_of(line("G1")), "acme_20250106.csv": file_of(record("M1", 1))}
    done = [deliver(home, name, text) for name, text in files.items()]
    versions = [silver.version() for silver in home.lake.silvers()]
    ingest_many(home, [outcome.delivery for outcome in done], run_id="again")
    assert versions == [silver.version() for silver in home.lake.silvers()]
    notes = (home.places.output / "checkpoint" / "destinations").glob("*")
    assert {note.stem: json.loads(note.read_text())["table"] for note in notes} == {"acme": "special", "globex": None}


def test_a_bucket_that_cannot_be_changed_leaves_nothing_of_the_others(home: Platform) -> None:
    there = configure(home, "client_id: acme\nsilver: {buckets: 4}\n")
    deliver(there, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(60))))
    silver = there.lake.silver_of("acme")
    before, files = silver.version(), silver.files_of("acme")
    assert len(files) == 4
    rows = silver.frame().with_columns(_change=pl.lit(CHANGED))
    stranger = rows.head(1).with_columns(member_token=pl.lit("f" * 32))
    with silver.change(silver.for_client("acme", there.clients.clients["acme"].contract)) as change:
        change.add(pl.concat([rows, stranger]))
        with pytest.raises(AccountingError, match="not in the table"):
            change.commit({"client/acme": 2}, {})
    assert (silver.version(), silver.files_of("acme")) == (before, files)
