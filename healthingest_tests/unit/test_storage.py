"""Landing zone and output in an object store: words put once, locks that outlive nobody, stores that are refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
import dagster as dg
import pytest
from obstore.exceptions import BaseError
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.errors import BusyError, ConfigError, StorageError, scrubbed
from healthingest.export import export_frame
from healthingest.lake.exclusion import Exclusion
from healthingest.landing import discovery
from healthingest.orchestration import seen
from healthingest.orchestration.build import build_defs
from healthingest.orchestration.seen import Seen
from healthingest.platform import Platform
from healthingest.storage import objects
from healthingest.storage.files import put, put_new, remove_tree
from healthingest.storage.objects import ObjectPath, place_of
from healthingest.storage.options import load_stores, options_for
from healthingest.storage.probe import require_usable
from healthingest_tests.conftest import csv_of, deliver, env_of, install, line
from healthingest_tests.histories import change_feed_is_real
from healthingest_tests.stores import BUCKET, moto, rclone, seaweedfs


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A SeaweedFS server; the environment that leads there."""
    with seaweedfs(tmp_path_factory.mktemp("weed")) as environment:
        yield environment


@pytest.fixture
def bucket(store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectPath:
    """A folder of its own in the bucket, for this process and those it starts."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HEALTHINGEST_HOME", str(tmp_path / "home"))
    return ObjectPath(f"s3://{BUCKET}/{tmp_path.name}")


@pytest.fixture
def home(bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """An installation whose landing zone and output are in the bucket."""
    monkeypatch.setenv("HEALTHINGEST_TEST_STORE", str(bucket))
    home = install(tmp_path)
    assert isinstance(home.places.output, ObjectPath)
    return home


def test_deliveries_in_a_bucket_come_to_silver_once_and_in_their_order(home: Platform) -> None:
    first, second = csv_of(line("M1"), line("M2", zip="12")), csv_of(line("M1", city="Salem"), line("M3"))
    late = csv_of(line("M1", city="Lynn"), line("M4"))
    assert deliver(home, "acme_20250107.csv", second).status == "succeeded"
    assert deliver(home, "acme_20250106.csv", late).status == "succeeded"
    assert deliver(home, "acme_20250106.csv", first).status == "succeeded", "it replaces the late one"
    assert deliver(home, "acme_20250107.csv", second).fresh is False
    shown = export_frame(home).select("member_id", "city").sort("member_id").rows()
    assert shown == [("M1", "Salem"), ("M3", "Boston")]
    change_feed_is_real(home)


def test_everything_that_landed_in_a_bucket_is_ingested_by_the_command(home: Platform) -> None:
    for day in (6, 7, 8):
        (home.places.landing / f"acme_2025010{day}.csv").write_text(csv_of(line(f"M{day}")))
    (home.places.landing / "who knows #1?.csv").write_text("a,b\n")
    done = CliRunner().invoke(app, ["ingest", "--all"], env=env_of(home.places))
    assert done.exit_code == 1, done.output
    assert "who knows" in done.output
    assert export_frame(home)["member_id"].sort().to_list() == ["M6", "M7", "M8"]


_INGEST = """
import os, signal, sys
from healthingest.ingest import ingest_many, register
from healthingest.orchestration.build import build_defs
from healthingest.platform import Platform

def on_stage(stage):
    if stage == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)

platform = Platform.open()
paths = sorted(platform.places.landing.iterdir())
ingest_many(platform, [register(platform, path) for path in paths], run_id="worker", on_stage=on_stage)
"""


@pytest.mark.parametrize("dies_at", ["sight", "silver", "audit"])
def test_a_process_killed_in_a_bucket_is_made_good_by_the_next_at_once(home: Platform, dies_at: str) -> None:
    (home.places.landing / "acme_20250106.csv").write_text(csv_of(line("M1"), line("M2", zip="12")))
    first = subprocess.run([sys.executable, "-c", _INGEST, dies_at], env=env_of(home.places), check=False)
    assert first.returncode == -signal.SIGKILL
    assert list(home.places.output.glob("checkpoint")), "it had begun"
    second = subprocess.run([sys.executable, "-c", _INGEST, ""], env=env_of(home.places), check=False, timeout=60)
    assert second.returncode == 0
    assert export_frame(home)["member_id"].to_list() == ["M1"]
    assert home.lake.audit.frame(["status", "accepted", "rejected"]).rows() == [("succeeded", 1, 1)]
    assert home.lake.quarantine.frame().height == 1
    change_feed_is_real(home)


def test_a_word_is_put_once_and_a_file_as_a_whole(bucket: ObjectPath) -> None:
    place = bucket / "words" / "one.json"
    assert put_new(place, b"first")
    assert not put_new(place, b"second")
    assert put_new(place, b"first"), "whose answer was lost and who asks again has put it"
    assert place.read_bytes() == b"first"
    put(place, b"third")
    assert place.read_bytes() == b"third"
    unfinished = bucket / "words" / "two"
    with pytest.raises(TypeError), unfinished.open("wb") as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert not unfinished.exists()
    remove_tree(bucket)
    assert not bucket.is_dir()


def test_what_is_replaced_while_it_is_read_is_an_error_and_never_a_mix(bucket: ObjectPath) -> None:
    place = bucket / "large"
    place.write_bytes(b"a" * 20_000_000)
    with place.open("rb") as file:
        assert file.read(10) == b"a" * 10
        place.write_bytes(b"b" * 20_000_000)
        with pytest.raises(OSError, match="replaced while it was read"):
            file.read()


_HOLDER = """
import sys, time
from healthingest.lake.exclusion import Exclusion
from healthingest.storage.objects import place_of
with getattr(Exclusion(place_of(sys.argv[1])), sys.argv[2])(*sys.argv[3:]):
    print("held", flush=True)
    time.sleep(600)
"""


def held_by_another(bucket: ObjectPath, *how: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", _HOLDER, str(bucket), *how], stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    return process


def test_who_is_alone_with_a_client_waits_for_those_inside_and_takes_over_from_the_dead(bucket: ObjectPath) -> None:
    locks, other = Exclusion(bucket), held_by_another(bucket, "shared", "acme")
    try:
        with locks.shared("acme"), locks.shared("acme"):  # any number beside each other
            pass
        with pytest.raises(BusyError), locks.alone("acme", wait=0.2):
            pass
        with locks.alone("globex", wait=0):
            pass
    finally:
        other.kill()
        other.wait()
    with locks.alone("acme", wait=0):
        pass


def test_one_maintenance_runs_at_a_time_and_one_that_died_keeps_nobody_out(bucket: ObjectPath) -> None:
    locks, other = Exclusion(bucket), held_by_another(bucket, "maintenance")
    try:
        with pytest.raises(BusyError), locks.maintenance():
            pass
    finally:
        other.kill()
        other.wait()
    with locks.maintenance():
        pass


def test_a_holder_whose_lease_was_taken_over_ends(bucket: ObjectPath) -> None:
    other = held_by_another(bucket, "maintenance")
    try:
        (bucket / "_maintenance.lock").write_bytes(b"{}")  # as somebody does who has waited in vain
        assert other.wait(30) == os.EX_TEMPFAIL
    finally:
        other.kill()


def test_a_lease_of_another_machine_is_waited_for_until_it_is_not_renewed(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    from healthingest.storage import lease

    monkeypatch.setattr(lease, "TTL", 1.0)
    gate = bucket / "_maintenance.lock"
    gate.write_bytes(b'{"lease": "x", "machine": "another", "pid": 1, "started": "1", "number": 7}')
    begun = time.monotonic()
    with Exclusion(bucket).maintenance():
        assert time.monotonic() - begun >= 1.0


def test_a_store_that_makes_objects_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rclone(tmp_path / "rclone") as store:
        for name, value in (store | {"HEALTHINGEST_TEST_STORE": f"s3://{BUCKET}"}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match="two writers would lose what they wrote"):
            install(tmp_path)


def test_a_store_that_does_not_encrypt_as_it_is_told_is_refused_in_prod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "client_configs").mkdir()
    (tmp_path / "client_configs" / "storage.yaml").write_text("s3: {encryption: 'aws:kms:dsse', kms_key_id: key/12}\n")
    with moto() as store:  # which takes no key for this
        for name, value in (store | {"HEALTHINGEST_HOME": str(tmp_path)}).items():
            monkeypatch.setenv(name, value)
        boto3.client("s3", endpoint_url=store["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
        place = ObjectPath(f"s3://{BUCKET}/output")
        with pytest.raises(
            StorageError, match="told to encrypt by aws:kms:dsse and answers aws:kms:dsse by another key"
        ):
            require_usable(place, prod=True)
        assert not list(place.rglob("*")), "nothing is left there"
        require_usable(place, prod=False)


def test_a_store_that_cannot_encrypt_as_it_is_told_is_refused(home: Platform) -> None:
    (home.places.configs / "storage.yaml").write_text("s3: {encryption: 'aws:kms', kms_key_id: key/1234}\n")
    with pytest.raises(StorageError, match="cannot be used"):
        Platform.open(home.places)


def test_options_are_typed_and_secrets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "storage.yaml"
    monkeypatch.setenv("HEALTHINGEST_CONFIGS", str(tmp_path))
    monkeypatch.setenv("MINIO_SECRET", "hidden")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    file.write_text("s3:\n  endpoint_url: https://minio.example.org\n  secret_access_key: env:MINIO_SECRET\n")
    assert options_for("s3")["aws_secret_access_key"] == "hidden"
    assert options_for("s3")["aws_region"] == "eu-west-1"
    for wrong in ("s3: {endpoint_ulr: x}\n", "s3: {secret_access_key: hidden}\n", "s3: {kms_key_id: k}\n", "s4: {}\n"):
        file.write_text(wrong)
        with pytest.raises(ConfigError) as refused:
            load_stores(tmp_path)
        assert "storage.yaml" in str(refused.value)
        assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("uri", ["ftp://host/folder", "s3://", "s3:///key", "http://x/y"])
def test_a_place_that_is_in_no_known_store_is_refused_in_a_sentence(uri: str) -> None:
    with pytest.raises(StorageError):
        place_of(uri)


def test_an_object_is_the_same_in_a_listing_and_by_itself_though_azure_quotes_its_tag_in_one_of_them() -> None:
    changed = datetime(2026, 11, 30, tzinfo=UTC)
    alone, listed = objects._stat(1, changed, '"0x271940B98B5E1C0"'), objects._stat(1, changed, "0x271940B98B5E1C0")
    assert (alone.st_ctime_ns, alone.st_ino) == (listed.st_ctime_ns, listed.st_ino)
    assert objects._stat(1, changed, '"0x3"').st_ctime_ns != alone.st_ctime_ns


def test_nothing_takes_a_place_in_a_store_for_a_local_file() -> None:
    place = ObjectPath(f"s3://{BUCKET}/a/b.csv")
    assert (str(place.parent / "c"), place.name, str(place)) == (
        f"s3://{BUCKET}/a/c",
        "b.csv",
        f"s3://{BUCKET}/a/b.csv",
    )
    assert str(place.relative_to(place.parent.parent)) == "a/b.csv"
    with pytest.raises(TypeError, match="object store"):
        os.stat(place)  # noqa: PTH116 - it is what must fail
    with pytest.raises(StorageError):
        place.chmod(0o600)


def test_a_run_of_dagster_in_a_bucket_goes_all_the_way(home: Platform) -> None:
    (home.places.landing / "acme_20250106.csv").write_text(csv_of(line("M1"), *(line(f"M{n}") for n in range(20))))
    job = build_defs(home.places).resolve_job_def("ingest_delivery")
    with dg.DagsterInstance.ephemeral() as instance:
        done = job.execute_in_process(instance=instance, partition_key="acme|2025-01-06", raise_on_error=False)
        assert done.success
        seen = build_defs(home.places).resolve_sensor_def("landing_zone")
        told = seen(dg.build_sensor_context(instance=instance, definitions=build_defs(home.places)))
    assert isinstance(told, dg.SensorResult)
    assert not told.run_requests, "it is decided"
    pages = [str(place) for place in (home.places.output / "reports").rglob("*.html")]
    assert f"{home.places.output}/reports/acme/index.html" in pages


def test_a_listing_that_is_broken_off_is_gone_on_with_and_no_file_gets_a_second_run_or_none(
    bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "LISTING_SECONDS", 0.0)  # one name a tick
    monkeypatch.setattr(seen, "_FOLD", 3)
    landing, cursor, given = bucket / "landing", None, list[str]()

    def ticks(number: int) -> None:
        nonlocal cursor
        for _ in range(number):
            now = Seen.load(cursor, tmp_path / "ledger")
            for landed in now.new(landing):
                now.put(landed, seen.SUBMITTED)
                given.append(landed.name)
            cursor = now.cursor()

    for number in range(8):
        (landing / f"f{number}").write_bytes(b"x")
    ticks(8)
    assert given == [f"f{number}" for number in range(8)]
    ticks(12)
    (landing / "a new one").write_bytes(b"x")
    (landing / "f3").write_bytes(b"changed")
    (landing / "f5").unlink()
    ticks(18)
    assert given[8:] in (["a new one", "f3"], ["f3", "a new one"])
    assert cursor
    assert "f5" not in json.loads(cursor)["recent"]


def test_a_name_with_a_line_end_is_said_in_a_sentence_since_it_hides_all_others(home: Platform) -> None:
    landing = home.places.landing
    (landing / "acme_20250106.csv").write_text(csv_of(line("M1")))
    put = {"Bucket": BUCKET, "Key": f"{landing.key}/acme_2025\n0107.csv", "Body": b"x"}
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"]).put_object(**put)
    done = CliRunner().invoke(app, ["ingest", "--all"], env=env_of(home.places))
    assert done.exit_code == 1
    assert "control character" in " ".join(done.output.split())
    assert not home.lake.audit.exists()


def test_an_object_that_may_not_be_looked_at_waits_and_a_store_that_refuses_is_said_in_a_sentence(
    bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = bucket / "acme_20250106.csv"
    place.write_bytes(b"x")
    assert discovery.look(place)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    assert discovery.look(place) is None
    with pytest.raises(BaseError) as refused:
        list(bucket.entries())
    said = scrubbed(refused.value)
    assert "The object store did not do as asked" in said
    assert "canary" not in said
