"""Sixteen files of four clients, and what they must come to however many machines worked on them, and which died."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl

from healthingest.ingest import ingest, register
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, drop, install, line
from healthingest_tests.histories import found

CLIENTS = ("acme", "borealis", "cygnus", "dorado")
CONFIGS = {client: f"client_id: {client}\nquality: {{max_invalid_ratio: 1.0}}\n" for client in CLIENTS}
_DAYS = (6, 7, 8, 9)
_MEMBERS = 3_000
#: These may name any of several records with the same content; the last is a time.
_ANY = ("_sequence", "_file_id", "_record_no", "creation_date", "_contract", "_ingested_at")
_CLIENT = "dagster/partition/client"


def files() -> Iterator[tuple[str, str]]:
    """Names and texts: overlapping members, some changed each day, some rejected."""
    for client, day in itertools.product(CLIENTS, _DAYS):
        yield f"{client}_2025010{day}.csv", csv_of(*_lines(CLIENTS.index(client), day))


def _lines(client: int, day: int) -> Iterator[str]:
    for member in range(_MEMBERS * (day - 6) // 4, _MEMBERS + _MEMBERS * (day - 6) // 4):
        changes = (member + day) % (5 + client) == 0
        bad = (member + day) % 97 == 0
        yield line(
            f"M{member}", **({"city": f"City {'ABCDEFGHIJ'[day]}"} if changes else {}), **({"zip": "1"} if bad else {})
        )


def land(home: Platform) -> None:
    """Make all files appear, each complete at once."""
    for name, text in files():
        drop(home, f".{name}", text).rename(home.places.landing / name)


def embedded(root: Path, keyring: Path) -> Platform:
    """An installation below `root`, under the same keys, into which one process took the same files one by one."""
    copy = root / "keys" / "keyring.json"
    copy.parent.mkdir(parents=True, mode=0o700)
    copy.write_bytes(keyring.read_bytes())
    copy.chmod(0o600)
    home = install(root, CONFIGS)
    for name, text in files():
        assert ingest(home, register(home, drop(home, name, text)), run_id="embedded").status == "succeeded"
    return home


def silver_of(home: Platform) -> pl.DataFrame:
    """Silver's rows, without what may differ from one order of work to another."""
    return pl.concat([table.frame() for table in home.lake.silvers() if table.exists()]).drop(_ANY).sort(pl.all())


def wait_for_rows(home: Platform, number: int, seconds: float) -> None:
    """Return once so many deliveries have an audit row that says what became of them; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while (have := home.lake.audit.frame(["file_id"]).height) < number:
        assert time.monotonic() < deadline, f"{have} of {number} deliveries are decided after {seconds} s"
        time.sleep(0.2)


def wait_for_runs(instance: dg.DagsterInstance, seconds: float) -> None:
    """Return once no run waits or is at work any more; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    unfinished = dg.RunsFilter(
        statuses=[s for s in dg.DagsterRunStatus if s.name not in {"SUCCESS", "FAILURE", "CANCELED"}]
    )
    while left := instance.get_runs(unfinished):
        assert time.monotonic() < deadline, f"{[run.status.name for run in left]} after {seconds} s"
        time.sleep(0.5)


def is_as_if_one_process_had_done_it(home: Platform, other: Platform) -> None:
    """Nothing is lost and nothing doubled: silver, vault, quarantine and audit say the same, one row per delivery."""
    opened = Platform.open(home.places)
    assert found(opened) == found(other)
    assert silver_of(opened).equals(silver_of(other))


def runs_of_one_client_followed_each_other(instance: dg.DagsterInstance) -> int:
    """No two runs of one client were at work at a time, by Dagster's own records; returns how many runs there were."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for record in instance.get_run_records():
        client = record.dagster_run.tags.get(_CLIENT)
        if client and record.start_time:
            spans.setdefault(client, []).append((record.start_time, record.end_time or time.time()))
    assert sorted(spans) == sorted(CLIENTS)
    for client, found_ in spans.items():
        for (_, ended), (began, _) in itertools.pairwise(sorted(found_)):
            assert began >= ended, f"runs of {client} overlapped"
    return sum(map(len, spans.values()))
