"""How long one large delivery takes on its first and second day, by stage, and what memory it needs.

Each ingest runs in a fresh process on a temporary installation. The outcome is held against what the generator knows:
a fast wrong ingest is no result.

Example: python -m benchmarks.ingest_million --records 1000000
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import child, install, machine_line, workplace

_FILES = {1: "acme_20250106.csv", 2: "acme_20250107.csv"}
_TOTALS = ("process wall", "process CPU", "peak RSS MiB")


def main() -> int:
    """Generate both days, ingest them one after the other, print the table; 1 if a count is not as generated."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="work in this new folder and leave it")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--ingest", metavar="FILE", help=argparse.SUPPRESS)  # the child's part
    arguments = parser.parse_args()
    if arguments.ingest:
        print(json.dumps(_ingest(Path(arguments.ingest))))
        return 0
    if arguments.keep and arguments.keep.exists():
        parser.error(f"{arguments.keep} exists; name a new folder")
    os.umask(0o077)
    with workplace(arguments.keep) as root:
        env = install(root)
        days = [_day(root, env, day, arguments.records) for day in _FILES]
    wrong = [sentence for day in days for sentence in day["wrong"]]
    print(json.dumps({"machine": machine_line(), "days": days}, indent=1) if arguments.json else _table(days))
    for sentence in wrong:
        print(f"WRONG: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def _day(root: Path, env: dict[str, str], day: int, records: int) -> dict[str, Any]:
    file = root / "home" / "input" / "raw" / _FILES[day]
    size = ["--records", str(records)]
    truth = child(["-m", "benchmarks.generate", *size, "--day", str(day), "--out", str(file)], env).said
    took = child(["-m", "benchmarks.ingest_million", "--ingest", str(file)], env)
    result = took.said
    found = result["counts"] | {"status": result["status"]}
    expected = {"status": "succeeded", "records": truth["records"], "rejected": truth["bad"]}
    good = truth["records"] - truth["bad"]
    expected |= (
        {"inserted": good, "updated": 0}
        if day == 1
        else {"inserted": 0, "updated": truth["changed"], "unchanged": good - truth["changed"]}
    )
    wrong = [
        f"day {day}: {name} is {found[name]}, generated were {value}"
        for name, value in expected.items()
        if found[name] != value
    ]
    stages = result["stages"] | {"process wall": took.wall, "process CPU": took.cpu, "peak RSS MiB": took.rss_mib}
    return {"day": day, "bytes": file.stat().st_size, "stages": stages, "counts": found, "wrong": wrong}


def _ingest(file: Path) -> dict[str, Any]:
    """Ingest one landed file in this process, timing what `Outcome.stages` does not: imports and registering."""
    start = time.perf_counter()
    from healthingest.ingest import ingest, register
    from healthingest.platform import Platform

    platform = Platform.open()
    opened = time.perf_counter()
    delivery = register(platform, file)
    registered = time.perf_counter()
    outcome = ingest(platform, delivery, run_id="benchmark")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    stages = {"import, open": opened - start, "register": registered - opened} | dict(outcome.stages)
    return {
        "status": outcome.status,
        "counts": outcome.counts.as_dict(),
        "stages": stages,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss_mib": usage.ru_maxrss / 1024,
    }


def _table(days: list[dict[str, Any]]) -> str:
    names = list(dict.fromkeys(name for day in days for name in day["stages"] if name not in _TOTALS))
    lines = [machine_line()]
    for day in days:
        counts = ", ".join(
            f"{day['counts'][name]:,} {name}" for name in ("records", "rejected", "inserted", "updated", "unchanged")
        )
        lines.append(f"day {day['day']}: {day['bytes'] / 2**20:,.0f} MiB, {counts}")
    lines.append(f"\n{'seconds':<14}" + "".join(f"{'day ' + str(day['day']):>10}" for day in days))
    for name in [*names, *_TOTALS]:
        places = 0 if name.endswith("MiB") else 2
        cells = "".join(f"{day['stages'].get(name, 0.0):>10.{places}f}" for day in days)
        lines.append(f"{name:<14}{cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
