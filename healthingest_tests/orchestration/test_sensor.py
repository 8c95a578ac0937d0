"""The sensor: one run per new file, and no file, however bad, keeps another one waiting."""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._utils.error import serializable_error_info_from_exc_info
from hypothesis import given
from hypothesis import strategies as st

from healthingest.ingest import ingest, register
from healthingest.orchestration import sensors
from healthingest.orchestration.build import build_defs
from healthingest.orchestration.seen import Seen
from healthingest.places import today
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, deliver, drop, install, line


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def tick(
    home: Platform, instance: dg.DagsterInstance, cursor: str | None = None, defs: dg.Definitions | None = None
) -> SensorExecutionData:
    repository = (defs or build_defs(home.places)).get_repository_def()
    context = dg.build_sensor_context(instance, cursor=cursor, repository_def=repository, sensor_name="landing_zone")
    return repository.get_sensor_def("landing_zone").evaluate_tick(context)


def names(data: SensorExecutionData) -> list[str]:
    return [r.tags["healthingest/file"] for r in data.run_requests or []]


def test_each_new_file_gets_one_run_with_its_partition_and_content_key(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    path = drop(home, "acme_20250106_1.csv", csv_of(line("M1")))
    drop(home, "acme_2025-01-07.csv", csv_of(line("M1")))

    first = tick(home, instance)
    second = tick(home, instance, first.cursor)

    assert [(r.partition_key, r.run_key) for r in first.run_requests or []] == [
        ("acme|2025-01-07", f"acme|2025-01-07|{home.file_id(home.places.landing / 'acme_2025-01-07.csv')}"),
        ("acme|2025-01-06", f"acme|2025-01-06|{home.file_id(path)}"),
    ]
    assert names(second) == []


def test_same_name_with_other_bytes_gets_a_run_of_its_own(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    first = tick(home, instance)
    drop(home, "acme_20250106.csv", csv_of(line("M1", city="Salem")))
    second = tick(home, instance, first.cursor)
    keys = {r.run_key for data in (first, second) for r in data.run_requests or []}
    assert len(keys) == 2


def test_what_the_command_line_took_gets_no_run(home: Platform, instance: dg.DagsterInstance) -> None:
    ingest(home, register(home, drop(home, "acme_20250106.csv", csv_of(line("M1")))), run_id="cli")
    assert names(tick(home, instance)) == []


BAD_NAMES = [
    "nobody_20250106.csv", "acme_20250230.csv", "acme.csv", "acme_20250106_3.csv", "acme_19000101.csv",
    f"acme_{(today() + timedelta(days=2)):%Y%m%d}.csv", "a|b_20250106.csv", "acme_20250106.csv.exe", "ünï_20250106.csv",
    "acme_20250106.csv\n", "..csv", "-rf", "acme|2025-01-06.csv", "[x]_20250106.csv", "a" * 250 + ".csv",
]  # fmt: skip


def test_bad_names_never_stop_the_tick_and_get_one_audit_row_each(home: Platform, instance: dg.DagsterInstance) -> None:
    bad = [name for name in BAD_NAMES if not name.startswith(".")]
    for name in bad:
        drop(home, name, csv_of(line("M1")))
    (home.places.landing / os.fsdecode(b"\xff\xfe.csv")).write_bytes(b"x")
    drop(home, "acme_20250106.csv", csv_of(line("M1")))

    first = tick(home, instance)
    second = tick(home, instance, first.cursor)
    third = tick(home, instance, None)

    assert names(first) == ["acme_20250106.csv"]
    assert names(second) == []
    assert names(third) == ["acme_20250106.csv"], "a lost cursor repeats the request; the run key makes it harmless"
    rows = home.lake.audit.frame(["file_name", "status"])
    assert rows.height == len(bad) + 1
    assert set(rows["status"]) == {"unroutable"}


def test_an_unroutable_file_leaves_evidence_in_dagster_once(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "nobody_20250106.csv", csv_of(line("M1")))
    first, second = tick(home, instance), tick(home, instance, None)
    (event,) = first.asset_events
    assert isinstance(event, dg.AssetObservation)
    assert event.metadata["file"].value == "nobody_20250106.csv"
    assert list(second.asset_events) == []
    instance.report_runless_asset_event(event)
    assert len(instance.fetch_observations(dg.AssetKey("audit"), limit=5).records) == 1


def test_many_unroutable_files_neither_end_the_tick_nor_delay_a_good_one(
    home: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_WORK_SECONDS", 0.0)
    for i in range(3):
        drop(home, f"aaa{i}_20250106.csv", csv_of(line("M1")))
    drop(home, "acme_20250106.csv", csv_of(line("M1")))

    data = tick(home, instance)
    assert names(data) == ["acme_20250106.csv"]
    assert home.lake.audit.frame(["file_name"]).height == 1
    for _ in range(2):
        data = tick(home, instance, data.cursor)
    assert home.lake.audit.frame(["file_name"]).height == 3, "each tick gets on"
    assert "Nothing new" in (tick(home, instance, data.cursor).skip_message or "")


def test_files_that_wait_for_a_reload_do_not_use_up_the_ticks_runs(
    home: Platform, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_RUNS_PER_TICK", 2)
    loaded = build_defs(home.places)
    (home.places.configs / "aaa.yaml").write_text("client_id: aaa\n")
    for day in range(1, 4):
        drop(home, f"aaa_2025010{day}.csv", csv_of(line("M1")))
    drop(home, "acme_20250106.csv", csv_of(line("M1")))

    first = tick(home, instance, defs=loaded)
    assert names(first) == ["acme_20250106.csv"]
    assert "aaa_20250101.csv waits for the code location" in (
        tick(home, instance, first.cursor, loaded).skip_message or ""
    )
    assert len(names(tick(home, instance, first.cursor))) == 2, "after the reload they come, a tick's worth at a time"


def test_an_unreadable_file_waits_and_the_others_go_on(home: Platform, instance: dg.DagsterInstance) -> None:
    (home.places.landing / "acme_20250106_1.csv").symlink_to("/nowhere")
    (home.places.landing / "acme_20250107.csv").mkdir()
    drop(home, "acme_20250106_2.csv", csv_of(line("M1")))
    assert names(tick(home, instance)) == ["acme_20250106_2.csv"]


def test_replaced_bytes_that_land_again_start_no_run_and_raise_a_warning(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    name, first = "acme_20250106.csv", csv_of(line("M1"))
    deliver(home, name, first)
    deliver(home, name, csv_of(line("M1", city="Salem")))
    before = (home.lake.silver.version(), home.lake.audit.version(), home.lake.sightings.version())
    drop(home, name, first)
    data = tick(home, instance)
    assert names(data) == []
    assert "delivery 2 has replaced" in (data.skip_message or "")
    (seen,) = data.asset_events
    assert seen.metadata["status"].value == "superseded"
    key = dg.AssetCheckKey(dg.AssetKey("audit"), "resent_files")
    (check,) = instance.event_log_storage.get_asset_check_execution_history(key, limit=9)
    assert (check.status.value, check.partition) == ("FAILED", "acme|2025-01-06")
    assert list(tick(home, instance, data.cursor).asset_events) == [], "once per landing"
    assert (home.lake.silver.version(), home.lake.audit.version(), home.lake.sightings.version()) == before


def test_a_file_still_open_for_writing_waits(home: Platform, instance: dg.DagsterInstance) -> None:
    path = drop(home, "acme_20250106.csv", csv_of(line("M1")))
    with path.open("a"):
        first = tick(home, instance)
    assert names(first) == []
    assert names(tick(home, instance, first.cursor)) == ["acme_20250106.csv"]


def test_files_of_a_client_with_a_broken_config_wait_and_the_reason_says_where(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\nrulez: 1\n", "globex": "client_id: globex\n"})
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    drop(home, "globex_20250106.csv", csv_of(line("M1")))

    first = tick(home, instance)
    assert names(first) == ["globex_20250106.csv"]
    assert not home.lake.audit.exists(), "a waiting file is not unroutable"

    second = tick(home, instance, first.cursor)
    assert "acme.yaml:2, key 'rulez'" in (second.skip_message or "")

    (home.places.configs / "acme.yaml").write_text("client_id: acme\n")
    assert names(tick(Platform.open(home.places), instance, second.cursor)) == ["acme_20250106.csv"]


def test_an_unroutable_file_is_taken_once_its_client_exists(home: Platform, instance: dg.DagsterInstance) -> None:
    drop(home, "globex_20250106.csv", csv_of(line("M1")))
    first = tick(home, instance)
    assert names(first) == []
    (home.places.configs / "globex.yaml").write_text("client_id: globex\n")
    assert names(tick(home, instance, first.cursor)) == ["globex_20250106.csv"]


@given(st.text() | st.just('{"a": [1]}') | st.just("[1]") | st.just('{"a": 3}') | st.just('{"a": ["x", 1, "s"]}'))
def test_any_cursor_can_be_read(cursor: str) -> None:
    assert Seen.load(cursor, Path("nowhere")).recent == {}


def test_what_a_library_quotes_when_a_tick_fails_is_not_stored_by_dagster(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    log = home.places.output / "checkpoint" / "audit" / "_delta_log"
    (log / f"{len(list(log.glob('*.json'))):020}.json").write_text('{"add": Zqxlast}\n')
    drop(home, "nobody_20250106.csv", csv_of(line("M2")))

    with pytest.raises(Exception, match=r".") as caught:
        tick(home, instance)

    stored = str(serializable_error_info_from_exc_info(caught._excinfo))
    assert "unexpected 'Z'" not in stored
    assert "An unexpected DeltaError rose at" in stored
