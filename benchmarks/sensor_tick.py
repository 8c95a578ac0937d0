"""How long one tick of the landing zone's sensor takes with a million files in the folder, a few of them new.

All but the new ones were seen before: they stand in the sensor's ledger and have a row in the audit table. A child
process loads the definitions, then ticks three times, as a code server does; the last finds nothing new.

Example: python -m benchmarks.sensor_tick --files 1000000 --new 100
"""

import argparse
import json
import os
import secrets
import sys
import time
from datetime import UTC, datetime, timedelta
from itertools import islice, product
from pathlib import Path

from benchmarks.measure import child, install, machine_line, workplace

_DAYS = 1_000


def main() -> int:
    """Lay the files out, tick in a fresh process, print the figures; 1 if a new file got no run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--step", choices=["lay out", "tick"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.umask(0o077)
    clients = [f"client{n:04}" for n in range(-(-arguments.files // (_DAYS * 3)))]
    if arguments.step == "lay out":
        _lay_out(clients, arguments.files, arguments.new)
    if arguments.step:
        print(json.dumps(_ticks() if arguments.step == "tick" else {}))
        return 0
    print(machine_line())
    with workplace() as root:
        env = install(root, clients)
        print(f"{arguments.files:,} files of {len(clients):,} clients, {arguments.new:,} of them new", flush=True)
        words = ["-m", "benchmarks.sensor_tick", f"--files={arguments.files}", f"--new={arguments.new}", "--step"]
        child([*words, "lay out"], env)  # not here: a child's peak is never below its parent's
        took = child([*words, "tick"], env)
    said = took.said
    print(f"ticks {', '.join(f'{seconds:.1f}' for seconds in said['seconds'])} s; runs asked for {said['runs']}; "
          f"cursor {max(said['cursor']):,} bytes; peak memory of the process {took.rss_mib:,.0f} MiB")  # fmt: skip
    return int(sum(said["runs"]) != arguments.new)


def _lay_out(clients: list[str], files: int, new: int) -> None:
    import polars as pl

    from healthingest.lake.audit import SCHEMA
    from healthingest.orchestration import seen
    from healthingest.places import today
    from healthingest.platform import Platform

    home = Platform.open()
    first = today() - timedelta(days=_DAYS)
    every = product(range(_DAYS), ("", "_1", "_2"), clients)
    names = [f"{c}_{first + timedelta(days=d):%Y%m%d}{s}.csv" for d, s, c in islice(every, files)]
    for name in names:
        file = os.open(home.places.landing / name, os.O_CREAT | os.O_WRONLY, 0o600)
        os.write(file, name.encode())
        os.close(file)
    memory = seen.Seen(home.places.output / "checkpoint" / "landing")
    for name in names[:-new]:
        info = os.lstat(home.places.landing / name)
        memory.recent[name] = (info.st_size, info.st_ctime_ns, seen.SUBMITTED)
    cursor = memory.cursor()
    for _ in range(2):  # the second look is at what the first has folded
        again = seen.Seen.load(cursor, memory.folder)
        again.new(home.places.landing)
        cursor = again.cursor()
    (home.places.home / "cursor").write_text(cursor)
    known = pl.DataFrame({"file_name": names[:-new]}).with_columns(
        file_id=pl.Series([secrets.token_hex(16) for _ in names[:-new]]), status=pl.lit("failed"),
        client_id=pl.col("file_name").str.slice(0, 10), ingestion_time=pl.lit(datetime.now(UTC)),
    )  # fmt: skip
    lacking = [pl.lit(None, dtype=kind).alias(name) for name, kind in SCHEMA.items() if name not in known.columns]
    home.lake.audit.append_once({"before": known.with_columns(lacking).select(SCHEMA.names()).cast(SCHEMA)})


def _ticks() -> dict[str, list[float]]:
    import dagster as dg

    from healthingest.orchestration.build import build_defs
    from healthingest.platform import Platform

    places = Platform.open().places
    cursor: str | None = (Path(places.home) / "cursor").read_text()
    repository = build_defs(places).get_repository_def()
    sensor = repository.get_sensor_def("landing_zone")
    said: dict[str, list[float]] = {"seconds": [], "runs": [], "cursor": []}
    with dg.DagsterInstance.ephemeral() as instance:
        for _ in range(3):
            context = dg.build_sensor_context(instance, cursor, repository_def=repository, sensor_name="landing_zone")
            start = time.perf_counter()
            data = sensor.evaluate_tick(context)
            said["seconds"].append(time.perf_counter() - start)
            said["runs"].append(len(data.run_requests or []))
            cursor = data.cursor
            said["cursor"].append(len(cursor or ""))
    return said


if __name__ == "__main__":
    sys.exit(main())
