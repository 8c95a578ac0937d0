"""Rows in pieces: the same as in one frame, wherever the pieces lie; and those on disk tell nobody anything."""

import os
import time
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthingest import members
from healthingest.lake import rewrite
from healthingest.platform import Platform
from healthingest.privacy.spool import Spool, sweep
from healthingest.records import parts
from healthingest.records.parts import Parts
from healthingest_tests.conftest import csv_of, deliver, install, line

SCHEMA = pl.Schema({"a": pl.Int64(), "b": pl.String()})


def frame_of(count: int, start: int = 0) -> pl.DataFrame:
    numbers = range(start, start + count)
    return pl.DataFrame({"a": numbers, "b": [f"secret{n}" for n in numbers]}, schema=SCHEMA)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@given(
    sizes=st.lists(st.integers(0, 5), max_size=6), data=st.data(), aside=st.booleans(), piece=st.integers(1, 7),
    twice=st.booleans(),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_rows_in_pieces_are_picked_and_narrowed_like_a_frame(
    shelf: Path, sizes: list[int], data: st.DataObject, aside: bool, piece: int, twice: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PIECE_ROWS", piece)
        starts = [sum(sizes[:n]) for n in range(len(sizes))]
        given_frames = [frame_of(size, start) for size, start in zip(sizes, starts, strict=True)]
        rows = Parts.of(frame_of(0), given_frames, Spool(shelf) if aside else None)
    plain = frame_of(sum(sizes))
    assert (rows.height, rows.schema, rows.in_memory) == (plain.height, SCHEMA, not aside)
    for _ in range(1 + twice):
        mask = pl.Series(
            data.draw(st.lists(st.booleans(), min_size=plain.height, max_size=plain.height)), dtype=pl.Boolean
        )
        rows, plain = rows.filter(mask), plain.filter(mask)
        assert rows.frame().equals(plain)
    assert rows.column("b").equals(plain["b"])
    assert rows.select(["b"]).frame().equals(plain.select("b"))
    doubled = rows.map(lambda some: some.with_columns(c=pl.col("a") * 2))
    assert doubled.frame().equals(plain.with_columns(c=pl.col("a") * 2))
    assert doubled.column("c").equals((plain["a"] * 2).alias("c"))


def test_rows_that_wait_on_disk_hold_no_value_in_clear_and_go_with_the_last_who_needs_them(tmp_path: Path) -> None:
    rows = Parts.of(frame_of(0), [frame_of(1000)], Spool(tmp_path))
    (file,) = tmp_path.rglob("*.parquet")
    assert b"secret" not in file.read_bytes()
    with pytest.raises(pl.exceptions.PolarsError):
        pl.read_parquet(file)
    narrowed = rows.select(["b"])
    del rows
    assert narrowed.column("b")[999] == "secret999"
    del narrowed
    assert not list(tmp_path.iterdir())


def test_folders_that_a_killed_process_left_are_taken_away_in_time(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "1.parquet").write_text("x")
    (tmp_path / "young").mkdir()
    day_before = time.time() - 86_500
    os.utime(tmp_path / "old", (day_before, day_before))
    assert sweep(tmp_path, timedelta(days=1)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["young"]
    (tmp_path / "ended").symlink_to(tmp_path / "while it was looked at")
    assert sweep(tmp_path, timedelta(days=1)) == 0
    assert sweep(tmp_path / "absent", timedelta(days=1)) == 0


def days(home: Platform) -> list[dict[str, int]]:
    """A first day with a member twice, and a second with changed, unchanged, new and rejected ones; their counts."""
    first = [*(line(f"M{n}") for n in range(9)), line("M1", city="Salem"), line("M2", zip="bad")]
    then = [line("M1", city="Salem"), line("M3", city="Lynn"), line("M4"), line("M9"), line("M8", city="Lynn")]
    done = [deliver(home, f"acme_2025010{day}.csv", csv_of(*rows)) for day, rows in ((6, first), (7, then))]
    return [outcome.counts.as_dict() for outcome in done]


def test_a_delivery_too_large_for_memory_gives_what_a_small_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = install(tmp_path / "small")
    expected = days(small)
    monkeypatch.setattr(members, "_LARGE", 1)
    monkeypatch.setattr(parts, "PIECE_ROWS", 2)
    monkeypatch.setattr(rewrite, "FILE_ROWS", 3)
    large = install(tmp_path / "large")
    assert days(large) == expected

    def shown(home: Platform) -> list[tuple[object, ...]]:
        from healthingest.export import export_frame

        return export_frame(home).select("member_id", "city", "zip", "last_seen").sort("member_id").rows()

    assert shown(large) == shown(small)
    assert not list(large.lake.spool.iterdir())
