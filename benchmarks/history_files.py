"""How fast one `healthingest ingest --all` takes in a history of many small files, with Dagster told and without.

5,000 files of 1,000 records, of ten clients, a file a day: 95 % of the members come again each day, 2 % of them moved.

Example: python -m benchmarks.history_files --files 5000
"""

import argparse
import os
import random
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

from benchmarks.measure import REPO, Measured, child, install, machine_line

_CLIENTS = [f"client{n}" for n in range(10)]
_HEADER = "member_id,first_name,last_name,dob,gender,address,city,state,zip,phone_number,email"


def main() -> int:
    """Write the files, ingest them in a fresh process per setting, print the table; 1 if a file was not taken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--without-dagster", action="store_true", help="only the setting without DAGSTER_HOME")
    arguments = parser.parse_args()
    os.umask(0o077)
    print(machine_line())
    print(f"{arguments.files:,} files of {arguments.records:,} records, {len(_CLIENTS)} clients")
    print(f"{'':<18}{'seconds':>10}{'files/s':>10}{'CPU s':>10}{'peak MiB':>10}{'silver commits':>16}")
    settings = ["no Dagster"] if arguments.without_dagster else ["no Dagster", "Dagster told"]
    return max(_try(setting, arguments.files, arguments.records) for setting in settings)


def _try(setting: str, files: int, records: int) -> int:
    with tempfile.TemporaryDirectory(prefix="healthingest-bench-") as folder:
        root = Path(folder).resolve()
        env = install(root, _CLIENTS)
        _write(root / "home" / "input" / "raw", files, records)
        if setting == "Dagster told":
            (root / "dagster").mkdir()
            (root / "dagster" / "dagster.yaml").write_text((REPO / "deploy" / "dagster.yaml").read_text())
            env["DAGSTER_HOME"] = str(root / "dagster")
        took, commits = _ingest(env)
        taken = sum(file["status"] == "succeeded" for file in took.said["files"])
        figures = f"{took.wall:>10.1f}{files / took.wall:>10.1f}{took.cpu:>10.1f}{took.rss_mib:>10,.0f}{commits:>16,}"
        print(f"{setting:<18}{figures}", flush=True)
        if taken != files:
            print(f"WRONG: {taken} of {files} files were taken", file=sys.stderr)
        return int(taken != files)


def _ingest(env: dict[str, str]) -> tuple[Measured, int]:
    took = child(["-m", "healthingest", "ingest", "--all", "--json"], env)
    silver = Path(env["HEALTHINGEST_HOME"]) / "output" / "silver" / "_delta_log"
    return took, sum(1 for _ in silver.glob("*.json"))


def _write(landing: Path, files: int, records: int) -> None:
    chance, first = random.Random(7), date(2019, 1, 1)
    for number in range(files):
        client, day = _CLIENTS[number % len(_CLIENTS)], number // len(_CLIENTS)
        rows = [_HEADER]
        for n in range(records):
            member = n if chance.random() < 0.95 else 1_000_000 + day * records + n
            city = "Boston" if chance.random() < 0.98 else f"Town {chance.randint(0, 9)}"
            zip_ = "02139" if n or day % 3 else "12"
            rows.append(
                f"M{member:07},Ada,Lovelace,1980-12-10,F,{n} Main St,{city},MA,{zip_},617-253-1000,ada{n}@example.com"
            )
        name = f"{client}_{first + timedelta(days=day):%Y%m%d}.csv"
        (landing / name).write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    sys.exit(main())
