"""The second day of a large client, our whole way, against a bare `DeltaTable.merge` of all rows with change feed.

Silver holds 1,000,000 members; the next day's full file changes 10 % of them. Ours: from the landed file to the audit
row, everything included. Bare: `polars.read_csv` of the same file and one merge into a Delta table of the same rows,
with Change Data Feed: no validation, no protection, no accounting, no order. Each side in fresh processes, in turns,
best of three by wall time.

Example: python -m benchmarks.second_day
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.ingest_million import _child, _install, machine_line

if TYPE_CHECKING:
    import polars as pl

_RUNS = 3
_DAY1, _DAY2 = "acme_20250106.csv", "acme_20250107.csv"


def main() -> int:
    """Build both first days, run the second days in turns, print the table; 1 if a side did something else."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--side", choices=["bare_first", "bare"], help=argparse.SUPPRESS)  # the child's part
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_bare(arguments.side, arguments.root)))
        return 0
    os.umask(0o077)
    with tempfile.TemporaryDirectory(prefix="healthingest-bench-") as folder:
        result = _compare(Path(folder).resolve(), arguments.records)
    print(json.dumps(result, indent=1) if arguments.json else _table(result))
    for sentence in result["wrong"]:
        print(f"WRONG: {sentence}", file=sys.stderr)
    return 1 if result["wrong"] else 0


def _compare(root: Path, records: int) -> dict[str, Any]:
    env = _install(root)
    landing = root / "home" / "input" / "raw"
    for day, name in enumerate((_DAY1, _DAY2), 1):
        arguments = ["--records", str(records), "--day", str(day), "--out", str(landing / name)]
        truth, _ = _child(["benchmarks.generate", *arguments], env)
    _child(["benchmarks.ingest_million", "--ingest", str(landing / _DAY1)], env)
    _child(["benchmarks.second_day", "--side", "bare_first", "--root", str(root)], env)
    first = {"ours": root / "home" / "output", "bare": root / "table"}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in first}
    for _ in range(_RUNS):
        for side, table in first.items():
            work = root / "work"
            shutil.copytree(table, work)
            runs[side].append(_second(side, root, env | {"HEALTHINGEST_OUTPUT": str(work)}))
            shutil.rmtree(work)
    best = {side: min(done, key=lambda run: run["wall"]) for side, done in runs.items()}
    good = truth["records"] - truth["bad"]
    wrong = [] if best["ours"]["updated"] == truth["changed"] else ["ours updated another number than was changed"]
    if best["bare"]["rows"] < good:
        wrong.append(f"bare has {best['bare']['rows']} rows, {good} members")
    walls = {side: [run["wall"] for run in done] for side, done in runs.items()}
    return {"machine": machine_line(), "records": records, "best": best, "all_walls": walls, "wrong": wrong}


def _second(side: str, root: Path, env: dict[str, str]) -> dict[str, Any]:
    file = str(root / "home" / "input" / "raw" / _DAY2)
    ours = side == "ours"
    arguments = ["benchmarks.ingest_million", "--ingest", file] if ours else ["benchmarks.second_day", "--side", side]
    done, wall = _child(arguments if ours else [*arguments, "--root", str(root)], env)
    return {"wall": wall, "cpu": done["cpu"], "rss_mib": done["rss_mib"]} | (
        {"updated": done["counts"]["updated"]} if ours else {"rows": done["rows"]}
    )


# --- the bare side, in its own process ------------------------------------------------------------------------------


def _bare(side: str, root: Path) -> dict[str, Any]:
    from deltalake import DeltaTable, write_deltalake

    landing = root / "home" / "input" / "raw"
    if side == "bare_first":
        write_deltalake(root / "table", _rows(landing / _DAY1), configuration={"delta.enableChangeDataFeed": "true"})
        return {}
    rows = _rows(landing / _DAY2)
    table = DeltaTable(root / "work")
    merge = table.merge(rows, "s.member_id = t.member_id", source_alias="s", target_alias="t", streamed_exec=False)
    merge.when_matched_update_all().when_not_matched_insert_all().execute()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu, rss = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
    return {"cpu": cpu, "rss_mib": rss, "rows": table.count()}


def _rows(file: Path) -> "pl.DataFrame":
    """All rows of a file as they stand, one per key: a merge of two rows of one key fails."""
    import polars as pl

    rows = pl.read_csv(file, infer_schema=False, truncate_ragged_lines=True)
    return rows.filter(pl.col("member_id").is_not_null()).unique("member_id", keep="last")


def _table(result: dict[str, Any]) -> str:
    best = result["best"]
    lines = [result["machine"], f"{result['records']:,} records in silver and in the file, 10 % changed", ""]
    lines.append(" " * 14 + "        ours        bare   ratio")
    for name, shown in (("wall", "wall seconds"), ("cpu", "CPU seconds"), ("rss_mib", "peak RSS MiB")):
        ours, bare = best["ours"][name], best["bare"][name]
        digits = 0 if name == "rss_mib" else 2
        lines.append(f"{shown:<14}{ours:>12.{digits}f}{bare:>12.{digits}f}{ours / bare:>8.2f}")
    for side, walls in result["all_walls"].items():
        lines.append(f"all runs, {side}: {', '.join(f'{wall:.2f}' for wall in walls)} s")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
