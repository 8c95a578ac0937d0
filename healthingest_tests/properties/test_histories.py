"""Silver is a function of the set of deliveries: random histories, in random orders, groups and repeats."""

import multiprocessing as mp
import os
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from healthingest import members
from healthingest.ingest import ingest_many, register
from healthingest.lake import rewrite
from healthingest.records import parts
from healthingest_tests.conftest import drop, examples
from healthingest_tests.histories import expected, found, history_of, in_any_order, new_home


def in_sorted_order(root: Path, files: list[tuple[str, str]]) -> object:
    """One file after the other, each name's versions in their order."""
    home = new_home(root)
    for name, text in sorted(files, key=lambda file: file[0]):
        ingest_many(home, [register(home, drop(home, name, text))], run_id="sorted")
    return found(home)


_SIZES = members._LARGE, parts.PIECE_ROWS, rewrite.FILE_ROWS


def in_pieces(*, small: bool) -> None:
    """Make every delivery one that is too large for memory, a piece of it two rows and a file of silver three."""
    members._LARGE, parts.PIECE_ROWS, rewrite.FILE_ROWS = (-1, 2, 3) if small else _SIZES


def try_one(root: Path, seed: int) -> None:
    in_pieces(small=seed % 3 == 0)
    files = history_of(random.Random(seed))
    assert in_any_order(root / str(seed), files, random.Random(-seed)) == expected(files), f"seed {seed}"


def test_any_order_of_a_random_history_leads_to_what_it_defines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POLARS_MAX_THREADS", "1")  # for the processes that start here: their frames are tiny
    workers = ProcessPoolExecutor(os.cpu_count() or 1, mp_context=mp.get_context("spawn"))
    with workers as pool:
        for tried in [pool.submit(try_one, tmp_path, seed) for seed in range(examples(20))]:
            tried.result()


@pytest.mark.parametrize("seed", range(examples(6)))
def test_the_sorted_order_leads_to_what_a_history_defines(tmp_path: Path, seed: int) -> None:
    files = history_of(random.Random(seed))
    assert in_sorted_order(tmp_path, files) == expected(files)


def test_the_histories_hold_what_they_are_meant_to_try() -> None:
    kinds: dict[str, int] = {}
    for seed in range(240):
        files = history_of(random.Random(seed))
        told = expected(files)
        kinds["held"] = kinds.get("held", 0) + any(d[0] == "held" for d in told.deliveries.values())
        kinds["again"] = kinds.get("again", 0) + any(number > 1 for _, number in told.deliveries)
        kinds["duplicates"] = kinds.get("duplicates", 0) + any(d[4] for d in told.deliveries.values())
        kinds["rejected"] = kinds.get("rejected", 0) + bool(told.quarantine)
        kinds["same bytes"] = kinds.get("same bytes", 0) + (len(set(files)) < len(files))
    assert min(kinds.values()) > 20, kinds
