"""What each layout of silver costs: files after a year of dates, and what ten small days read and write.

Silver's commits alone, of one client: a first delivery, whose members' records have dates of a whole year, then days on
which some members change and get that day's date. Bytes are those of data files that a commit adds, without the feed.

Example: python -m benchmarks.destinations
"""

import argparse
import hashlib
import json
import tempfile
import time
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.measure import machine_line
from healthingest.contracts.clients import Layout
from healthingest.lake.rewrite import CHANGED, NEW, files_in
from healthingest.lake.silver import APPLIED, Silver, Snapshot

_DAYS = 10
_LAYOUTS = {
    "default": Layout(), "16 buckets": Layout(buckets=16), "256 buckets": Layout(buckets=256),
    "creation_date": Layout(table="own", partition_by=("client_id", "creation_date")),
}  # fmt: skip


def main() -> int:
    """Measure every layout and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=500_000)
    parser.add_argument("--changed", type=int, default=100, help="members that change on a day")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    arguments = parser.parse_args()
    measured = {name: _measured(layout, arguments.members, arguments.changed) for name, layout in _LAYOUTS.items()}
    if arguments.json:
        print(json.dumps(measured))
        return 0
    print(machine_line())
    for name, said in measured.items():
        print(f"{name:14} " + ", ".join(f"{what}: {value}" for what, value in said.items()))
    return 0


def _measured(layout: Layout, members: int, changed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        silver = Silver.at(Path(folder), layout)
        started = time.perf_counter()
        _commit(silver, _rows(range(members), None).with_columns(_change=pl.lit(NEW)), "first")
        first, files = time.perf_counter() - started, _files(silver)
        begun, written, seconds = len(files), 0, 0.0
        for day in range(_DAYS):
            rows = _rows(range(day, members, members // changed), date(2026, 1, 1) + timedelta(days=day))
            started = time.perf_counter()
            _commit(silver, rows.with_columns(_change=pl.lit(CHANGED)), f"day {day}")
            seconds += time.perf_counter() - started
            after = _files(silver)
            written += sum(size for path, size in after.items() if path not in files)
            files = after
        return {
            "first s": round(first, 2), "day s": round(seconds / _DAYS, 2), "files": begun,
            "files at the end": len(files), "MB written a day": round(written / _DAYS / 1e6, 2),
        }  # fmt: skip


def _rows(numbers: range, day: date | None) -> pl.DataFrame:
    text = pl.DataFrame({"n": numbers, "token": [hashlib.sha256(b"%d" % n).hexdigest() for n in numbers]})
    offset = pl.duration(days=pl.col("token").str.slice(40, 8).str.to_integer(base=16) % 365)
    return text.select(
        client_id=pl.lit("acme"), member_token=pl.col("token").str.slice(0, 32),
        creation_date=pl.lit(day) if day else pl.lit(date(2025, 1, 1)) + offset,
        _sequence=pl.lit("s") + pl.col("n").cast(pl.String), _content_hash=pl.col("token").str.slice(32),
        _file_id=pl.lit("f"), _record_no=pl.col("n").cast(pl.Int64), _contract=pl.lit("member/1"),
    )  # fmt: skip


def _commit(silver: Silver, rows: pl.DataFrame, file_id: str) -> None:
    silver.commit(Snapshot(silver.snapshot(), "acme"), {file_id: {"state": APPLIED}}, rows)


def _files(silver: Silver) -> dict[str, int]:
    return {file.path: file.size for file in files_in(silver.snapshot(), {"client_id": "acme"})}


if __name__ == "__main__":
    raise SystemExit(main())
