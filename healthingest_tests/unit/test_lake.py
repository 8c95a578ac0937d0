"""The tables: writes that happen once, writers that exclude each other, and what the logs may show."""

import itertools
import json
import re
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from healthingest.errors import ContentionError, HealthingestError
from healthingest.ingest import register
from healthingest.lake import delta
from healthingest.lake.delta import Table
from healthingest.lake.silver import APPLIED, BASE, HELD, readable_columns
from healthingest.model import Counts, Delivery, Outcome, Status
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, deliver, drop, install, line

SCHEMA = pl.Schema({"id": pl.String(), "n": pl.Int64()})


@pytest.fixture
def two(tmp_path: Path) -> Platform:
    return install(tmp_path, {name: f"client_id: {name}\n" for name in ("acme", "globex")})


def log_of(path: Path) -> list[dict[str, Any]]:
    """All actions of a Delta log, in order."""
    files = sorted((path / "_delta_log").glob("*.json"))
    return [json.loads(text) for file in files for text in file.read_text().splitlines()]


def silver_rows(home: Platform, delivery: Delivery, *tokens: str) -> pl.DataFrame:
    """New members as a commit takes them."""
    contract = home.clients.clients[delivery.client_id].contract
    row = dict.fromkeys(BASE) | dict.fromkeys(readable_columns(contract))
    row |= {"client_id": delivery.client_id, "_bucket": 0, "_file_id": delivery.file_id, "_content_hash": "h"}
    schema = BASE | readable_columns(contract)
    return pl.DataFrame([row | {"member_token": t} for t in tokens], schema=schema).with_columns(_change=pl.lit("new"))


def registered(home: Platform, name: str, text: str = "") -> Delivery:
    return register(home, drop(home, name, text or csv_of(line(name))))


# --- one table ------------------------------------------------------------------------------------------------


def test_rows_are_appended_once_per_id_however_often_they_come(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    rows = pl.DataFrame({"id": ["a"], "n": [1]}, schema=SCHEMA)
    assert table.frame().is_empty()
    assert table.version() is None
    assert table.append_once({"x": rows})
    version = table.version()
    assert not table.append_once({"x": rows})
    assert table.version() == version
    assert table.append_once({"y": rows})
    assert not table.append_once({"z": rows.clear()})
    assert table.frame()["id"].to_list() == ["a", "a"]


def test_a_stale_writer_looks_again_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(tmp_path / "t", SCHEMA)
    rows = pl.DataFrame({"id": ["a"], "n": [1]}, schema=SCHEMA)
    table.append_once({"first": rows})
    fresh, looks = Table.snapshot, []

    def overtaken(self: Table) -> DeltaTable:
        """At the first look another writer commits the same id right behind it."""
        looks.append(handle := fresh(self))
        if len(looks) == 1:
            delta.write_deltalake(fresh(self), rows, mode="append", commit_properties=delta.commit({"x": 1}))
        return handle

    monkeypatch.setattr(Table, "snapshot", overtaken)
    assert not table.append_once({"x": rows})
    assert len(looks) == 2
    assert table.frame().height == 2


def test_a_writer_that_always_loses_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def loses() -> None:
        raise CommitFailedError("x")

    monkeypatch.setattr(delta.time, "sleep", lambda _: None)
    with pytest.raises(ContentionError, match="again"):
        delta.retry(loses)


def test_a_folder_of_other_files_is_not_made_a_table(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "precious.txt").write_text("x")
    with pytest.raises(HealthingestError, match="no Delta table"):
        Table(tmp_path / "t", SCHEMA).snapshot()
    assert [p.name for p in (tmp_path / "t").iterdir()] == ["precious.txt"]


# --- audit ----------------------------------------------------------------------------------------------------


def outcome(delivery: Delivery, status: Status, records: int = 0) -> Outcome:
    return Outcome(delivery, status, fresh=True, counts=Counts(records=records))


def test_the_rank_of_an_audit_row_only_rises(home: Platform) -> None:
    audit, now = home.lake.audit, datetime.now(UTC)
    delivery = registered(home, "acme_20250106.csv")

    def put(status: Status, records: int) -> bool:
        return bool(audit.put([outcome(delivery, status, records)], run_id="r", started_at=now))

    seen = []
    steps: list[tuple[Status, int]] = [
        ("failed", 1), ("failed", 2), ("held", 3), ("failed", 4), ("succeeded", 5), ("held", 6), ("failed", 7),
        ("succeeded", 8),
    ]  # fmt: skip
    for status, records in steps:
        wrote = put(status, records)
        row = audit.row(delivery.file_id)
        assert row is not None
        seen.append((wrote, row["status"], row["records"]))
    assert seen == [
        (True, "failed", 1), (False, "failed", 1), (True, "held", 3), (False, "held", 3), (True, "succeeded", 5),
        (False, "succeeded", 5), (False, "succeeded", 5), (False, "succeeded", 5),
    ]  # fmt: skip
    assert audit.frame().height == 1


def test_raising_one_row_leaves_the_others(home: Platform) -> None:
    audit, now = home.lake.audit, datetime.now(UTC)
    one, other = registered(home, "acme_20250106.csv"), registered(home, "acme_20250107.csv")
    audit.put([outcome(one, "failed")], run_id="r", started_at=now)
    audit.put([outcome(other, "failed")], run_id="r", started_at=now)
    audit.put([outcome(one, "succeeded")], run_id="r", started_at=now)
    assert audit.decided([one.file_id, other.file_id, "x"]) == {one.file_id: "succeeded", other.file_id: "failed"}


def test_an_unroutable_file_has_one_row(home: Platform) -> None:
    for _ in range(2):
        home.lake.audit.put_unroutable(file_id="f", file_name="x", file_bytes=1, message="m", run_id="r")
    assert home.lake.audit.frame()["status"].to_list() == ["unroutable"]


# --- silver ---------------------------------------------------------------------------------------------------


def test_of_two_writers_of_one_client_with_one_snapshot_the_second_conflicts(two: Platform) -> None:
    silver = two.lake.silver
    first, second = registered(two, "acme_20250106.csv"), registered(two, "acme_20250107.csv")
    contract = two.clients.clients["acme"].contract
    stale = [silver.for_client("acme", contract) for _ in range(2)]
    silver.commit(stale[0], {first.file_id: {"state": APPLIED}}, silver_rows(two, first, "t1"))
    with pytest.raises(CommitFailedError):
        silver.commit(stale[1], {second.file_id: {"state": APPLIED}}, silver_rows(two, second, "t2"))
    assert silver.frame()["member_token"].to_list() == ["t1"]
    assert silver.for_client("acme", contract).state(second.file_id) is None


@pytest.mark.parametrize(
    "kinds", ["append/merge", "merge/append", "merge/merge", "empty/merge", "merge/empty", "empty/empty"]
)
def test_every_kind_of_commit_of_one_client_excludes_every_other(two: Platform, kinds: str) -> None:
    silver, contract = two.lake.silver, two.clients.clients["acme"].contract
    zero = registered(two, "acme_20250105.csv")
    silver.commit(silver.for_client("acme", contract), {zero.file_id: {"state": APPLIED}}, silver_rows(two, zero, "t0"))
    stale = [silver.for_client("acme", contract) for _ in range(2)]
    for number, (snapshot, kind) in enumerate(zip(stale, kinds.split("/"), strict=True)):
        delivery = registered(two, f"acme_2025010{number + 6}.csv")
        rows = silver_rows(two, delivery, "t0" if kind == "merge" else f"t{number + 1}")
        rows = rows.with_columns(_change=pl.lit("changed" if kind == "merge" else "new"))
        rows = rows.clear() if kind == "empty" else rows
        if number == 0:
            silver.commit(snapshot, {delivery.file_id: {"state": APPLIED}}, rows)
        else:
            with pytest.raises(CommitFailedError):
                silver.commit(snapshot, {delivery.file_id: {"state": APPLIED}}, rows)


@pytest.mark.parametrize("kinds", list(itertools.product(("append", "merge", "empty"), repeat=2)), ids="/".join)
def test_writers_of_different_clients_do_not_conflict(two: Platform, kinds: tuple[str, str]) -> None:
    silver, clients = two.lake.silver, two.clients.clients
    first, second = registered(two, "acme_20250106.csv"), registered(two, "globex_20250106.csv")
    for delivery in (registered(two, "acme_20250105.csv"), registered(two, "globex_20250105.csv")):
        snapshot = silver.for_client(delivery.client_id, clients[delivery.client_id].contract)
        silver.commit(snapshot, {delivery.file_id: {"state": APPLIED}}, silver_rows(two, delivery, "old"))
    stale = [silver.for_client(d.client_id, clients[d.client_id].contract) for d in (first, second)]
    for snapshot, delivery, kind in zip(stale, (first, second), kinds, strict=True):
        rows = silver_rows(two, delivery, "old" if kind == "merge" else "newer")
        rows = rows.with_columns(_change=pl.lit("changed" if kind == "merge" else "new"))
        rows = rows.clear() if kind == "empty" else rows
        silver.commit(snapshot, {delivery.file_id: {"state": APPLIED}}, rows)
    members = dict(silver.frame().group_by("client_id").len().iter_rows())
    assert members == {c: 2 if k == "append" else 1 for c, k in zip(("acme", "globex"), kinds, strict=True)}


def test_an_empty_commit_records_state_number_and_counts(home: Platform) -> None:
    silver, contract = home.lake.silver, home.clients.clients["acme"].contract
    delivery = registered(home, "acme_20250106.csv")
    snapshot = silver.for_client("acme", contract)
    assert snapshot.number == 0
    version = silver.commit(
        snapshot, {delivery.file_id: {"state": HELD} | {"counts": {"records": 3}}}, silver_rows(home, delivery)
    )
    after = silver.for_client("acme", contract)
    assert (after.number, after.state(delivery.file_id), silver.version()) == (1, HELD, version)
    decision = silver.decision(delivery.file_id)
    assert decision is not None
    assert (decision["counts"], decision["version"]) == ({"records": 3}, version)
    assert silver.decision("another") is None


def test_a_commits_metadata_holds_the_counts_of_the_delivery(home: Platform) -> None:
    done = deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2"), "x"))
    decision = home.lake.silver.decision(done.delivery.file_id)
    assert decision is not None
    assert Counts(**decision["counts"]) == done.counts
    assert decision["version"] == done.silver_version == home.lake.silver.version()


# --- what the tables look like --------------------------------------------------------------------------------

MEMBER_COLUMNS = {"gender", "state", "birth_year", "zip3"}


def test_a_log_is_summed_up_every_twenty_commits_and_older_tables_are_told_to_by_maintenance(home: Platform) -> None:
    for number in range(21):
        deliver(home, f"acme_202501{number + 1:02}.csv", csv_of(line(f"M{number}")))
    for table in (home.lake.silver, home.lake.audit, home.lake.sightings):
        assert list((table.path / "_delta_log").glob("*.checkpoint.parquet")), table.path.name
    DeltaTable(home.lake.audit.uri).alter.set_table_properties({"delta.checkpointInterval": "100"})
    home.lake.audit.shorten_log(timedelta(days=30))
    assert DeltaTable(home.lake.audit.uri).metadata().configuration["delta.checkpointInterval"] == "20"


def test_the_tables_have_the_columns_of_the_design(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), "x"))
    lake = home.lake
    silver = lake.silver.frame().schema
    assert silver == BASE | {"gender": pl.String(), "state": pl.String(), "birth_year": pl.Int32(), "zip3": pl.String()}
    assert silver["creation_date"] == pl.Date
    assert silver["_bucket"] == pl.Int32
    assert DeltaTable(lake.silver.uri).metadata().partition_columns == ["client_id", "_bucket"]
    assert DeltaTable(lake.silver.uri).metadata().configuration["delta.enableChangeDataFeed"] == "true"
    reason = pl.Struct({"column": pl.String, "rule": pl.String, "kind": pl.String})
    quarantine = lake.quarantine.frame().schema
    assert quarantine.items() >= {
        "client_id": pl.String(), "creation_date": pl.Date(), "file_id": pl.String(), "file_name": pl.String(),
        "record_no": pl.Int64(), "reasons": pl.List(reason), "sealed_record": pl.Binary(), "contract": pl.String(),
        "run_id": pl.String(), "quarantined_at": pl.Datetime("us", "UTC"), "state": pl.String(),
    }.items()  # fmt: skip
    assert set(lake.audit.frame().columns) >= {
        "file_id", "client_id", "file_name", "creation_date", "file_suffix", "delivery_no", "run_id", "status",
        "contract",
        "config_hash", "content_hmac", "file_bytes", *Counts.names(), "invalid_ratio", "error_kind", "started_at",
        "ingestion_time", "duration_s", "silver_version",
    }  # fmt: skip
    assert lake.silver.frame()["creation_date"].to_list() == [date(2025, 1, 6)]


def test_delta_logs_show_no_bounds_of_member_values(home: Platform) -> None:
    # One-row files: their bounds would be the very values.
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", zip="bad-SECRET")))
    deliver(home, "acme_20250107.csv", csv_of(line("M1", state="NH", gender="M")))
    deliver(home, "acme_20250108.csv", csv_of(line("M1", state="NH", gender="M"), line("M3")))
    output = home.places.output
    allowed = {
        "silver": {"_sequence"},
        "quarantine": {"file_id", "record_no"},
        "checkpoint/audit": {"file_id", "creation_date", "ingestion_time"},
        "checkpoint/sightings": {"sequence"},
        "checkpoint/contracts": {"contract", "version"},
    }
    assert {str(p.parent.relative_to(output)) for p in output.rglob("_delta_log")} == set(allowed)
    for table, columns in allowed.items():
        adds = [action["add"] for action in log_of(output / table) if "add" in action]
        assert adds
        for add in adds:
            stats = json.loads(add["stats"])
            for bounds in ("minValues", "maxValues", "nullCount"):
                assert set(stats.get(bounds, {})) <= columns, (table, bounds)
            assert set(add["partitionValues"]) <= {"client_id", "_bucket"}


def test_delta_logs_and_names_hold_no_value_of_a_member(home: Platform) -> None:
    values = {"first_name": "Zebedee", "last_name": "Quackenbush", "address": "77 Canary Row", "city": "Xanadu",
              "email": "zq@canary.example", "dob": "1931-03-07"}  # fmt: skip
    deliver(home, "acme_20250106.csv", csv_of(line("CANARY-1", **values), line("CANARY-2", **values | {"zip": "1"})))
    deliver(home, "acme_20250107.csv", csv_of(line("CANARY-1", **values | {"state": "NH"})))
    pattern = re.compile("|".join([*values.values(), "CANARY"]).encode())
    everything = list(home.places.output.rglob("*"))
    assert len(everything) > 20
    named = [p for p in everything if pattern.search(str(p.relative_to(home.places.output)).encode())]
    found = [p for p in everything if p.is_file() and pattern.search(p.read_bytes())]
    assert not named + found


def test_folders_and_files_of_the_output_are_private(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), "x"))
    assert home.places.output.stat().st_mode & 0o077 == 0
