"""Measures this system beside what people would use instead, each contender in its own process, in turns.

Contenders come with `pip install .[bench]`; one that is not installed is left out, with a line that says so.

Example: python -m benchmarks --size 1m --workloads first,second-10 --write
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.contenders import contenders
from benchmarks.measure import REPO, machine_line, workplace
from benchmarks.workloads import WORKLOADS, Row, Task, run

_RESULTS = REPO / "benchmarks" / "RESULTS.md"
_FROM, _TO = "<!-- python -m benchmarks: from here -->", "<!-- to here -->"


def main() -> int:
    """Measure, print a table per workload; 2 for words that name nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=_number, default=1_000_000, help="records of a file: 100k, 1m (default), 5000")
    parser.add_argument("--files", type=int, default=200, help="files of the workload `files` (default 200)")
    parser.add_argument("--runs", type=int, default=3, help="loads of each contender; the fastest counts (default 3)")
    parser.add_argument("--workloads", type=_names(list(WORKLOADS)), default=list(WORKLOADS), metavar="A,B",
                        help=f"some of {', '.join(WORKLOADS)}")  # fmt: skip
    parser.add_argument("--contenders", type=_names(list(contenders())), default=list(contenders()), metavar="A,B",
                        help=f"some of {', '.join(contenders())}")  # fmt: skip
    parser.add_argument("--python", type=_python, action="append", default=[], metavar="NAME=PATH",
                        help="interpreter of a contender; ours loads 0.2 s longer where another one's pandas lies beside")  # fmt: skip  # noqa: E501
    parser.add_argument("--write", action="store_true", help="put the tables into benchmarks/RESULTS.md")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    arguments = parser.parse_args()
    os.umask(0o077)
    pythons = dict(arguments.python)
    chosen = [contenders()[name] for name in arguments.contenders]
    for contender in chosen:
        if not contender.installed and contender.name not in pythons:
            print(f"{contender.name} is not installed and left out: pip install .[bench]", file=sys.stderr)
    tables: dict[str, list[Row]] = {}
    with workplace() as root:
        env = {n: v for n, v in os.environ.items() if not n.startswith(("HEALTHINGEST_", "DAGSTER_"))}
        env |= {"PYTHONPATH": str(REPO)}
        installed = [c for c in chosen if c.installed or c.name in pythons]
        for name in arguments.workloads:
            step = _say(name)
            task = Task(root / name, env, arguments.size, arguments.runs, installed, arguments.files,
                        pythons, step)  # fmt: skip
            tables[name] = list(run(task, WORKLOADS[name]))
            if not arguments.json:
                print("\n".join(_table(name, tables[name])), "", sep="\n", flush=True)
    if arguments.json:
        shown = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
        print(json.dumps({"machine": machine_line(), "size": arguments.size, "workloads": shown}, indent=1))
    if arguments.write:
        _write(arguments.size, tables)
    return 0


def _number(text: str) -> int:
    factor = {"k": 1000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    return int(text[:-1] if factor > 1 else text) * factor


def _python(text: str) -> tuple[str, str]:
    name, _, path = text.partition("=")
    if name not in contenders() or not Path(path).is_file():
        raise argparse.ArgumentTypeError("write NAME=PATH, a contender and its interpreter")
    return name, path


def _names(known: list[str]):  # type: ignore[no-untyped-def] # noqa: ANN202 - argparse wants a function
    def names(text: str) -> list[str]:
        if unknown := [name for name in text.split(",") if name not in known]:
            raise argparse.ArgumentTypeError(f"there is no {unknown[0]!r}; there is {', '.join(known)}")
        return text.split(",")

    return names


def _say(workload: str):  # type: ignore[no-untyped-def] # noqa: ANN202
    return lambda text: print(f"{workload}: {text}", file=sys.stderr, flush=True) if sys.stderr.isatty() else None


def _table(name: str, rows: list[Row]) -> list[str]:
    """Markdown; the ratio is a contender's wall time to ours: above 1 we are faster."""
    ours = next((row.wall for row in rows if row.contender == "healthingest"), None)
    lines = [f"### {WORKLOADS[name].title} (`{name}`)", ""]
    lines.append("| | wall s | CPU s | peak MiB | wall to ours | rows in | kept out | rows in table | runs, wall s |")
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for row in rows:
        ratio = f"{row.wall / ours:.2f}" if ours else ""
        out = f"{row.rows_out:,}" if row.rows_out is not None else ""
        lines.append(
            f"| {row.contender} | {row.wall:.2f} | {row.cpu:.2f} | {row.rss_mib:,.0f} | {ratio} | {row.rows_in:,} "
            f"| {row.rejected:,} | {out} | {', '.join(map(str, row.runs))} |"
        )
    return lines


def _write(size: int, tables: dict[str, list[Row]]) -> None:
    text = _RESULTS.read_text()
    head, rest = text.split(_FROM)
    _, tail = rest.split(_TO)
    lacks = {row.contender: row.lacks for rows in tables.values() for row in rows if row.lacks}
    lines = [f"`python -m benchmarks --size {size}`, {datetime.now(UTC):%Y-%m-%d}. {machine_line()}.", ""]
    for name, rows in tables.items():
        lines += [*_table(name, rows), ""]
    lines += ["What the others do not do:", "", *(f"- **{name}**: {text}" for name, text in lacks.items()), ""]
    Path(_RESULTS).write_text(head + _FROM + "\n" + "\n".join(lines) + _TO + tail)


if __name__ == "__main__":
    sys.exit(main())
