"""One huge file on Spark's workers: the same tables as the embedded way makes, whatever becomes of the workers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from healthingest.contracts.clients import load_client
from healthingest.engines.exchange import jobs_of
from healthingest.errors import ConfigError, EngineError
from healthingest.ingest import ingest, register
from healthingest.maintain import maintain
from healthingest.model import Outcome
from healthingest.platform import Platform
from healthingest.storage.objects import ObjectPath
from healthingest_tests.conftest import REPO, configure, csv_of, drop, env_of, install, line
from healthingest_tests.stores import BUCKET, seaweedfs

pytest.importorskip("pyspark")
from healthingest_tests.distributed.spark import Cluster, found, sail, standalone
from healthingest_tests.servers import family

_BUCKETS = "client_id: acme\nsilver: {buckets: 4}\nquality: {max_invalid_ratio: 1.0}\n"


def files() -> dict[str, str]:
    """A first file, and one with updates, repeats, bad records and a stray quote that swallows records."""
    first = [line(f"M{n}") for n in range(3000)]
    second = [line(f"M{n}", city="Salem") for n in range(0, 3000, 7)] + [line(f"N{n}") for n in range(500)]
    second += [line(f"M{n}") for n in range(1, 300, 3)] + [line("M1", city="Lynn"), line("M1", city="Quincy")]
    second += [line(f"B{n}", dob="1980-02-31", zip="12") for n in range(50)] + ["too,few", line("L") + ",more"]
    second += [line("S1", address='"12 Main'), line("S2"), line("S3", address='13 Main"'), line("S4")]
    return {"acme_20250101.csv": csv_of(*first), "acme_20250102.csv": csv_of(*second)}


def work(home: Platform, name: str) -> Outcome:
    return ingest(home, register(home, home.places.landing / name), run_id="r")


def tables(home: Platform) -> dict[str, pl.DataFrame]:
    """What both ways must have in common, row for row."""
    times = {"_ingested_at", "ingestion_time", "started_at", "duration_s", "quarantined_at", "_commit_timestamp"}

    def rows(frame: pl.DataFrame, *drop: str) -> pl.DataFrame:
        kept = frame.drop([c for c in frame.columns if c in times | set(drop)])
        keys = [
            c for c in ("_commit_version", "_change_type", "member_token", "record_no", "file_id") if c in kept.columns
        ]
        return kept.select(sorted(kept.columns)).sort(keys)

    feed = pl.DataFrame(home.lake.silver.snapshot().load_cdf(starting_version=0).read_all())
    frames = {
        "silver": rows(home.lake.silver.frame()), "quarantine": rows(home.lake.quarantine.frame(), "sealed_record"),
        "audit": rows(home.lake.audit.frame()), "feed": rows(feed),
    }  # fmt: skip
    assert all(frame.height for frame in frames.values())
    return frames


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """An installation that has taken both files in the embedded way."""
    monkeypatch.setenv("HEALTHINGEST_KEYRING", str(tmp_path / "embedded" / "keys" / "keyring.json"))
    home = install(tmp_path / "embedded", {"acme": _BUCKETS})
    for name, text in files().items():
        drop(home, name, text)
    return home


def on(home: Platform, root: Path, cluster: Cluster) -> Platform:
    """The same installation, untouched, whose client is worked on by a cluster."""
    shutil.copytree(home.places.home, root / "home")
    env = {"HEALTHINGEST_HOME": str(root / "home"), "HEALTHINGEST_KEYRING": str(home.places.keyring)}
    there = Platform.open(type(home.places).from_env(env))
    return configure(there, f'{_BUCKETS}engine: {{kind: spark, remote: "{cluster.remote}"}}\n')


@pytest.fixture(params=[sail, standalone], ids=["sail", "spark"])
def cluster(request: pytest.FixtureRequest, embedded: Platform, tmp_path: Path) -> Iterator[Cluster]:
    with request.param({"HEALTHINGEST_KEYRING": str(embedded.places.keyring)}, tmp_path / "cluster") as running:
        yield running


def test_a_file_on_workers_makes_the_tables_of_the_embedded_way(
    embedded: Platform, cluster: Cluster, tmp_path: Path
) -> None:
    there = on(embedded, tmp_path / "there", cluster)
    for home in (embedded, there):
        assert [work(home, name).status for name in files()] == ["succeeded", "succeeded"]
    one, other = tables(embedded), tables(there)
    for name, frame in one.items():
        assert frame.equals(other[name]), name
    assert set(one["feed"]["_change_type"]) == {"insert", "update_preimage", "update_postimage"}
    # One commit for all buckets; nothing waits any more.
    assert there.lake.silver.version() == embedded.lake.silver.version()
    assert not list(jobs_of(there.places.output).iterdir())


def test_workers_reach_an_object_store_as_they_reach_a_folder(
    embedded: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seaweedfs(tmp_path / "weed") as store:
        for name, value in (store | {"HEALTHINGEST_TEST_STORE": f"s3://{BUCKET}"}).items():
            monkeypatch.setenv(name, value)
        shutil.copytree(embedded.places.keyring.parent, tmp_path / "there" / "keys")
        there = install(tmp_path / "there", {"acme": _BUCKETS})
        assert isinstance(there.places.output, ObjectPath)
        with sail({"HEALTHINGEST_KEYRING": str(there.places.keyring)}, tmp_path / "cluster") as cluster:
            there = configure(there, f'{_BUCKETS}engine: {{kind: spark, remote: "{cluster.remote}"}}\n')
            for name, text in files().items():
                drop(there, name, text)
                assert work(embedded, name).status == work(there, name).status == "succeeded"
        one, other = tables(embedded), tables(there)
        for name, frame in one.items():
            assert frame.equals(other[name]), name
        assert not [place for place in jobs_of(there.places.output).rglob("*") if place.is_file()]


@pytest.mark.parametrize("kind", ["read", "rows"])
def test_a_worker_that_dies_changes_nothing(embedded: Platform, tmp_path: Path, kind: str) -> None:
    with standalone({"HEALTHINGEST_KEYRING": str(embedded.places.keyring)}, tmp_path / "cluster") as cluster:
        there = on(embedded, tmp_path / "there", cluster)
        first, second = files()
        work(embedded, first), work(embedded, second)
        work(there, first)
        jobs, killed = jobs_of(there.places.output), threading.Event()

        def kill() -> None:
            while not found(jobs, f"*/*.{kind}"):  # what is to be checked, or merged, lies ready: tasks begin
                time.sleep(0.005)
            for pid in family(cluster.workers[0].pid):
                os.kill(pid, signal.SIGKILL)
            killed.set()

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        assert work(there, second).status == "succeeded"
        assert killed.wait(5)
    one, other = tables(embedded), tables(there)
    for name, frame in one.items():
        assert frame.equals(other[name]), name


_INGEST = """
import sys
from healthingest.ingest import ingest, register
from healthingest.platform import Platform
home = Platform.open()
ingest(home, register(home, home.places.landing / sys.argv[1]), run_id="r")
"""


@pytest.mark.parametrize("kind", ["read", "rows"])
def test_a_run_that_is_killed_is_made_good_by_the_next_and_leaves_nothing(
    embedded: Platform, tmp_path: Path, kind: str
) -> None:
    with sail({"HEALTHINGEST_KEYRING": str(embedded.places.keyring)}, tmp_path / "cluster") as cluster:
        there = on(embedded, tmp_path / "there", cluster)
        first, second = files()
        work(embedded, first), work(embedded, second)
        work(there, first)
        jobs, before = jobs_of(there.places.output), there.lake.silver.version()
        run = subprocess.Popen([sys.executable, "-c", _INGEST, second], env=env_of(there.places))
        while not found(jobs, f"*/*.{kind}"):
            assert run.poll() is None
            time.sleep(0.005)
        run.kill()
        run.wait()
        assert there.lake.silver.version() == before
        assert found(jobs, "*/*"), "it left files"
        assert work(there, second).status == "succeeded"
    maintain(there)
    assert not list(jobs.iterdir())
    one, other = tables(embedded), tables(there)
    for name, frame in one.items():
        assert frame.equals(other[name]), name


def test_the_benchmark_finds_the_same_rows() -> None:
    words = ["--records", "2000", "--silver", "4000", "--buckets", "2", "--engine", "embedded", "sail"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.spark_engine", *words], cwd=REPO, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "row for row those of the embedded engine" in done.stdout


def test_a_server_that_is_not_there_leaves_the_file_waiting(home: Platform) -> None:
    there = configure(home, 'client_id: acme\nengine: {kind: spark, remote: "sc://127.0.0.1:9"}\n')
    drop(there, "acme_20250101.csv", csv_of(line("M1")))
    with pytest.raises(EngineError, match="cannot be reached; the file waits"):
        work(there, "acme_20250101.csv")
    assert not there.lake.silver.exists()
    assert not there.lake.audit.exists() or there.lake.audit.frame().is_empty()
    again = configure(home, "client_id: acme\n")
    assert work(again, "acme_20250101.csv").counts.inserted == 1


def test_a_small_file_goes_the_embedded_way(home: Platform) -> None:
    there = configure(home, 'client_id: acme\nengine: {kind: spark, remote: "sc://127.0.0.1:9", above: 2GB}\n')
    drop(there, "acme_20250101.csv", csv_of(line("M1")))
    assert work(there, "acme_20250101.csv").counts.inserted == 1


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("{kind: spork}", "embedded"),
        ("{kind: spark}", "remote: sc://host:15002"),
        ('{kind: spark, remote: "http://x"}', "sc://host:15002"),
        ('{kind: spark, remote: "sc://x:1/;token=abc"}', "env:VARIABLE"),
        ('{kind: spark, remote: "sc://x", abov: 2GB}', "abov"),
        ('{kind: spark, remote: "sc://x", above: 2}', "2GB"),
    ],
)
def test_a_misspelt_engine_is_an_error_of_the_config(tmp_path: Path, engine: str, said: str) -> None:
    home = install(tmp_path)
    file = home.places.configs / "acme.yaml"
    file.write_text(f"client_id: acme\nengine: {engine}\n")
    with pytest.raises(ConfigError, match=said) as error:
        load_client(file, home.places.configs)
    assert "abc" not in str(error.value)
