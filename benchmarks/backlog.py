"""What it saves that waiting files of one client share commits: small files one by one, and as `ingest --all` does it.

Both end with the same silver, which is held against each other; each runs in a fresh process.

Example: python -m benchmarks.backlog --files 200 --buckets 16
"""

import argparse
import json
import os
import random
from datetime import date, timedelta
from typing import Any

from benchmarks.measure import child, install, machine_line, workplace

_HEADER = "member_id,first_name,last_name,dob,gender,address,city,state,zip,phone_number,email"


def main() -> int:
    """Measure both ways and print a line for each; 1 if they end otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--records", type=int, default=50)
    parser.add_argument("--buckets", type=int, default=1)
    parser.add_argument("--ingest", choices=["one by one", "together"], help=argparse.SUPPRESS)  # the child's part
    arguments = parser.parse_args()
    if arguments.ingest:
        print(json.dumps(_ingest(together=arguments.ingest == "together")))
        return 0
    os.umask(0o077)
    print(machine_line())
    print(f"{arguments.files} files of {arguments.records} records, one client in {arguments.buckets} buckets")
    found = []
    for how in ("one by one", "together"):
        with workplace() as root:
            env = install(root)
            (root / "home" / "client_configs" / "acme.yaml").write_text(
                f"client_id: acme\nsilver: {{buckets: {arguments.buckets}}}\n"
            )
            for number in range(arguments.files):
                file = root / "home" / "input" / "raw" / f"acme_{date(2025, 1, 1) + timedelta(days=number):%Y%m%d}.csv"
                file.write_text(_text(number, arguments.records))
            took = child(["-m", "benchmarks.backlog", "--ingest", how], env)
            found.append(took.said["members"])
            print(
                f"{how}: {took.wall:.1f} s, {took.wall / arguments.files * 1000:.0f} ms a file, "
                f"{took.cpu:.1f} s of CPU, "
                f"{took.rss_mib:.0f} MiB, {took.said['commits']} commits of silver, {took.said['audit']} audit rows"
            )
    return 0 if found[0] == found[1] else 1


def _text(number: int, records: int) -> str:
    chance = random.Random(number)
    members = sorted(chance.sample(range(records * 4), records))
    rest = "MA,02139,617-253-1000,ada@example.com"
    rows = [f"M{m},Ada,Lovelace,1980-12-10,F,12 Main St,{chance.choice(['Boston', 'Lynn'])},{rest}" for m in members]
    return "\n".join([_HEADER, *rows]) + "\n"


def _ingest(*, together: bool) -> dict[str, Any]:
    """Take in everything that has landed; what it came to, comparable between both ways."""
    from healthingest.bulk import ingest_paths
    from healthingest.export import export_frame
    from healthingest.platform import Platform

    platform = Platform.open()
    paths = sorted(platform.places.landing.iterdir())
    for some in [paths] if together else [[path] for path in paths]:
        for _ in ingest_paths(platform, some, run_id="benchmark"):
            pass
    silver = platform.lake.silver_of("acme")
    shown = export_frame(platform).select("member_id", "city").sort("member_id")
    return {
        "members": shown.rows(), "commits": (silver.version() or 0) + 1,
        "audit": platform.lake.audit.frame(["file_id"]).height,
    }  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
