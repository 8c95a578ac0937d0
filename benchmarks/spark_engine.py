"""One large delivery into a large silver, by each engine, from the same state: seconds, memory, and the same result.

A first delivery makes silver in the embedded way. Each engine then takes the second one into a copy of that: four in
five of its records are of known members, of whom one in four has moved. Silver and the second commit's change data are
held against the embedded engine's, row for row, and so are rejected records. `--kill` kills one of Spark's two workers
while batches are checked, or while buckets are merged. Needs what docs/spark.md names.

Example: python -m benchmarks.spark_engine --records 5000000 --silver 10000000 --buckets 16 --at /data/bench
"""

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Measured, child, install, machine_line, workplace

_ENGINES = ("embedded", "sail", "spark")
_FIRST, _SECOND = "acme_20250106.csv", "acme_20250107.csv"
_MIB = 2**20
_PAGE, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure, print a line for each engine; 1 if one made something else than the embedded one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=200_000, help="records of the delivery that is measured")
    parser.add_argument("--silver", type=int, default=400_000, help="records of the one before it")
    parser.add_argument("--buckets", type=int, default=16)
    parser.add_argument("--engine", choices=_ENGINES, nargs="+", default=list(_ENGINES))
    parser.add_argument("--kill", choices=["check", "merge"], help="kill a worker of spark meanwhile")
    parser.add_argument("--at", type=Path, help="keep everything there; a later run goes on with what it finds")
    parser.add_argument("--compare", type=Path, nargs=2, help=argparse.SUPPRESS)  # the child's part
    arguments = parser.parse_args()
    if arguments.compare:
        print(json.dumps(_compared(arguments.compare, arguments.buckets)))
        return 0
    os.umask(0o077)
    print(machine_line())
    print(
        f"{arguments.records:,} records into a silver of {arguments.silver:,}, {arguments.buckets} buckets", flush=True
    )
    if arguments.at:
        arguments.at.mkdir(parents=True, exist_ok=True)
        return _measure(arguments.at.resolve(), arguments)
    with workplace() as root:
        return _measure(root, arguments)


def _measure(root: Path, arguments: argparse.Namespace) -> int:
    _base(root / "base", arguments)
    wrong = 0
    for engine in arguments.engine:
        kill = arguments.kill if engine == "spark" else None
        name = f"{engine}, a worker killed at {kill}" if kill else engine
        there = root / name.replace(",", "").replace(" ", "-")
        if not (there / "figures.json").exists():
            shutil.rmtree(there, ignore_errors=True)
            shutil.copytree(root / "base", there, symlinks=True)
            figures = _run(there, engine, kill, arguments.buckets)
            (there / "figures.json").write_text(json.dumps(figures))
        print(_line(name, json.loads((there / "figures.json").read_text())), flush=True)
        if engine != "embedded" and (root / "embedded" / "figures.json").exists():
            words = ["--compare", str(root / "embedded"), str(there), "--buckets", str(arguments.buckets)]
            said = child(["-m", "benchmarks.spark_engine", *words], _env(there)).said
            print(f"{'':10} {said['said']}", flush=True)
            wrong += said["differs"]
    return int(wrong > 0)


def _base(root: Path, arguments: argparse.Namespace) -> None:
    """An installation with silver as it is before the delivery, and the delivery beside it; made once."""
    sizes = {name: getattr(arguments, name) for name in ("records", "silver", "buckets")}
    if (root / "sizes.json").exists():
        if json.loads((root / "sizes.json").read_text()) != sizes:
            raise SystemExit(f"{root} is of other sizes; name another folder.")
        return
    shutil.rmtree(root, ignore_errors=True)
    env = install(root)
    _configure(root, arguments.buckets)
    landing, start = root / "home" / "input" / "raw", arguments.silver - arguments.records * 4 // 5
    second = ["--records", str(arguments.records), "--start", str(start), "--day", "2", "--changed-in", "4"]
    for name, size in ((_FIRST, ["--records", str(arguments.silver)]), (_SECOND, second)):
        child(["-m", "benchmarks.generate", *size, "--out", str(landing / name)], env)
    took = child(["-m", "benchmarks.ingest_million", "--ingest", str(landing / _FIRST)], env)
    (landing / _FIRST).unlink()
    print(_line("silver", _figures(took)), flush=True)
    (root / "sizes.json").write_text(json.dumps(sizes))


def _run(root: Path, engine: str, kill: str | None, buckets: int) -> dict[str, Any]:
    env, words = _env(root), ["-m", "benchmarks.ingest_million", "--ingest", str(root / "home/input/raw" / _SECOND)]
    if engine == "embedded":
        return _figures(child(words, env))
    from healthingest_tests.distributed.spark import sail, standalone

    own = {name: env[name] for name in ("HEALTHINGEST_HOME", "HEALTHINGEST_KEYRING", "_RJEM_MALLOC_CONF")}
    with (sail if engine == "sail" else standalone)(own, root / "cluster") as cluster:
        _configure(root, buckets, cluster.remote)
        with _watched({process.pid for process in cluster.processes}) as peaks, _killing(root, kill, cluster) as killed:
            took = child(words, env)
        if kill and not killed.is_set():
            raise SystemExit("No worker was killed: the work was over before.")
    return _figures(took) | {"peaks": peaks}


def _configure(root: Path, buckets: int, remote: str | None = None) -> None:
    engine = f'engine: {{kind: spark, remote: "{remote}"}}\n' if remote else ""
    text = f"client_id: acme\nsilver: {{buckets: {buckets}}}\n{engine}"
    (root / "home" / "client_configs" / "acme.yaml").write_text(text)


def _env(root: Path) -> dict[str, str]:
    """The environment of a copy of the installation."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("HEALTHINGEST_")}
    own |= {"HEALTHINGEST_HOME": str(root / "home"), "HEALTHINGEST_KEYRING": str(root / "keys" / "keyring.json")}
    own["_RJEM_MALLOC_CONF"] = f"dirty_decay_ms:300,muzzy_decay_ms:0,narenas:{os.cpu_count()}"
    return own | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def _figures(took: Measured) -> dict[str, Any]:
    return {"wall": took.wall, "cpu": took.cpu, "rss": took.rss_mib, "stages": took.said["stages"],
            "counts": took.said["counts"], "status": took.said["status"], "load": os.getloadavg()[1]}  # fmt: skip


def _line(name: str, figures: dict[str, Any]) -> str:
    counts = ", ".join(f"{figures['counts'][n]:,} {n}" for n in ("rejected", "inserted", "updated", "unchanged"))
    used: dict[str, float] = dict(figures.get("peaks", {}))
    cluster = f", the cluster's CPU {used.pop('CPU s'):.1f} s" if "CPU s" in used else ""
    peaks = cluster + "".join(f", {what} {peak:,.0f} MiB" for what, peak in used.items())
    return (
        f"{name:10} {figures['status']}, {counts}: {figures['wall']:.1f} s, own CPU {figures['cpu']:.1f} s, own peak "
        f"{figures['rss']:,.0f} MiB{peaks}; load of the machine {figures['load']:.1f}"
    )


# --- the cluster while it works -----------------------------------------------------------------------------------


@contextmanager
def _watched(sessions: set[int]) -> Iterator[dict[str, float]]:
    """The greatest memory (RSS summed over processes, MiB) that the cluster's processes had at a time, by kind.

    And their CPU seconds, but for those of a process that ended within a quarter of a second.
    """
    peaks: dict[str, float] = {}
    spent: dict[int, float] = {}
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.25):
            sums: dict[str, float] = {}
            for pid, name, seconds, size in _processes(sessions):
                spent[pid] = seconds
                kind = {"java": "JVMs", "sail": "Sail"}.get(name, "Python workers")
                sums[kind] = sums.get(kind, 0.0) + size / _MIB
            sums |= {"cluster": sum(sums.values())}
            for kind, total in sums.items():
                peaks[kind] = max(peaks.get(kind, 0.0), total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()
        peaks["CPU s"] = sum(spent.values())


def _processes(sessions: set[int]) -> Iterator[tuple[int, str, float, int]]:
    """Number, name, CPU seconds and memory (bytes) of each process of some sessions."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has just ended
            continue
        fields = rest.split()
        if int(fields[3]) in sessions:
            yield int(stat.parent.name), name, (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE


@contextmanager
def _killing(root: Path, kill: str | None, cluster: Any) -> Iterator[threading.Event]:  # noqa: ANN401 - needs pyspark
    """Kill one worker with its executor and their Pythons once the named part of the work is under way."""
    from healthingest_tests.distributed.spark import found
    from healthingest_tests.servers import family

    killed, over = threading.Event(), threading.Event()
    output = root / "home" / "output"
    where, pattern = {
        "check": (output / "checkpoint" / "exchange", "*/*.checked"),
        "merge": (output / "silver" / "_change_data", "*/*/*.parquet"),
    }[kill or "check"]
    before = found(where, pattern)

    def watch() -> None:
        while not over.wait(0.01):
            if len(found(where, pattern) - before) >= 2:
                for pid in family(cluster.workers[0].pid):
                    os.kill(pid, signal.SIGKILL)
                killed.set()
                return

    thread = threading.Thread(target=watch)
    if kill:
        thread.start()
    try:
        yield killed
    finally:
        over.set()
        if kill:
            thread.join()


# --- the same result ----------------------------------------------------------------------------------------------


def _compared(roots: list[Path], buckets: int) -> dict[str, Any]:
    """Whether two installations have the same rows: silver and the last commit's change data, a bucket at a time."""
    from healthingest.places import Places
    from healthingest.platform import Platform

    homes = [Platform.open(Places.from_env(_env(root))) for root in roots]
    rows = {"silver": 0, "change data": 0, "quarantine": 0}
    differs = [f"version {homes[1].lake.silver.version()}"] * (
        homes[0].lake.silver.version() != homes[1].lake.silver.version()
    )
    for name, number in [*((n, b) for b in range(buckets) for n in ("silver", "change data")), ("quarantine", 0)]:
        frames = [_rows(home, name, number) for home in homes]
        rows[name] += frames[0].height
        if not frames[0].equals(frames[1]):
            differs.append(f"{name} of bucket {number}")
    said = ", ".join(f"{count:,} rows of {name}" for name, count in rows.items())
    verdict = f"other rows: {', '.join(differs)}" if differs else "row for row those of the embedded engine"
    return {"differs": len(differs), "said": f"{said}: {verdict}"}


def _rows(home: Any, name: str, number: int) -> Any:  # noqa: ANN401 - this process loads polars only where it compares
    """Rows of one bucket, without the times at which an attempt ran."""
    import polars as pl

    silver = home.lake.silver
    if name == "silver":
        rows = pl.scan_delta(silver.snapshot()).filter(pl.col("_bucket") == number).collect()
    elif name == "quarantine":  # sealed anew each time
        rows = home.lake.quarantine.frame().drop("sealed_record")
    else:
        feed = silver.snapshot().load_cdf(starting_version=silver.version(), predicate=f"_bucket = {number}")
        rows = pl.DataFrame(feed.read_all())
    times = ("_ingested_at", "_commit_timestamp", "quarantined_at", "_bucket")
    kept = rows.drop([c for c in times if c in rows.columns])
    keys = [c for c in ("member_token", "_change_type", "file_id", "record_no") if c in kept.columns]
    return kept.select(sorted(kept.columns)).sort(keys)


if __name__ == "__main__":
    sys.exit(main())
