"""Different clients never get in each other's way: eight at once, and no commit is ever tried again."""

import multiprocessing as mp
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.places import Places
from healthingest_tests.conftest import csv_of, drop, install, line

CLIENTS = [f"client{n}" for n in range(8)]
_DAYS = range(1, 5)


def work(places: Places, client: str, barrier: Any, queue: Any) -> None:
    from deltalake.exceptions import CommitFailedError

    from healthingest.ingest import ingest, register
    from healthingest.lake import delta
    from healthingest.platform import Platform

    conflicts = []
    wait = delta.time.sleep

    def counted(seconds: float) -> None:
        conflicts.append(seconds)
        wait(seconds)

    try:
        delta.time.sleep = counted  # type: ignore[assignment]
        platform = Platform.open(places)
        barrier.wait(60)
        paths = [platform.places.landing / f"{client}_2025010{day}.csv" for day in _DAYS]
        statuses = [ingest(platform, register(platform, path), run_id="r").status for path in paths]
        queue.put((statuses, len(conflicts)))
    except (Exception, CommitFailedError) as error:  # noqa: BLE001 - the parent must see it
        queue.put((repr(error), 0))


def _records(client: int, day: int) -> list[str]:
    """On its even days a client changes members, on its odd ones it only adds some: merges meet appends."""
    even = (client + day) % 2 == 0
    known = [line(f"M{n}", city=f"City {'ABCDE'[day] if even and n % 5 == 0 else 'A'}") for n in range(60)]
    return [*known, *([] if even else [line(f"N{day}{n}") for n in range(5)]), line("M", zip="12")]


def test_eight_clients_at_once_never_conflict(tmp_path: Path) -> None:
    home = install(tmp_path, {client: f"client_id: {client}\n" for client in CLIENTS})
    for client in CLIENTS:
        for day in _DAYS:
            drop(home, f"{client}_2025010{day}.csv", csv_of(*_records(CLIENTS.index(client), day)))
    for table in (home.lake.silver, home.lake.quarantine, home.lake.sightings, home.lake.audit):
        table.snapshot()
    for client in home.clients.clients.values():
        home.lake.silver.for_client(client.client_id, client.contract)
        home.publish(client)  # as making tables: once, by whoever comes first
    spawn = mp.get_context("spawn")
    barrier, queue = spawn.Barrier(len(CLIENTS)), spawn.Queue()
    workers = [spawn.Process(target=work, args=(home.places, client, barrier, queue)) for client in CLIENTS]
    for worker in workers:
        worker.start()
    ends = [queue.get(timeout=180) for _ in workers]
    for worker in workers:
        worker.join(30)
    assert ends == [(["succeeded"] * len(_DAYS), 0)] * len(CLIENTS)
    members = home.lake.silver.frame(["client_id"]).group_by("client_id").agg(pl.len()).sort("client_id")
    assert members["len"].to_list() == [60 + 5 * len(_DAYS) // 2] * len(CLIENTS)
    assert home.lake.audit.frame(["status"]).height == len(CLIENTS) * len(_DAYS)
