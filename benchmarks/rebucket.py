"""How long a client's rows take into another number of buckets, and what memory that needs.

One generated delivery is ingested as the command does it; then `healthingest silver rebucket` runs to and fro, each in
a fresh process, and what silver shows is counted after each.

Example: python -m benchmarks.rebucket --records 1000000 --buckets 16
"""

import argparse
import os
from typing import Any

from benchmarks.measure import child, install, machine_line, workplace

_COMMAND = "from healthingest.cli import main; import sys; sys.argv = ['healthingest', *sys.argv[1:]]; main()"


def main() -> int:
    """Measure both ways and print a line for each; 1 if a row went missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--buckets", type=int, default=16)
    arguments = parser.parse_args()
    os.umask(0o077)
    with workplace() as root:
        env = install(root)
        file = root / "home" / "input" / "raw" / "acme_20250106.csv"
        child(["-m", "benchmarks.generate", "--records", str(arguments.records), "--day", "1", "--out", str(file)], env)
        child(["-m", "benchmarks.ingest_million", "--ingest", str(file)], env)
        print(machine_line())
        first = None
        for buckets in (arguments.buckets, 1):
            took = child(
                ["-c", _COMMAND, "silver", "rebucket", "--client", "acme", "--buckets", str(buckets), "--json"], env
            )
            said: dict[str, Any] = took.said
            plan = child(["-c", _COMMAND, "silver", "rebucket", "--client", "acme", "--plan", "--json"], env).said
            first = first or said["rows"]
            print(
                f"{said['was']['buckets']} to {buckets} buckets: {said['rows']:,} rows, "
                f"{said['files']} to {plan['files']} files, "
                f"{said['file_bytes'] / 1e6:.1f} to {plan['file_bytes'] / 1e6:.1f} MB, {said['groups']} groups: "
                f"{took.wall:.1f} s, {took.cpu:.1f} s of CPU, {took.rss_mib:.0f} MiB"
            )
            if plan["rows"] != first:
                print(f"WRONG: {plan['rows']} rows")
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
