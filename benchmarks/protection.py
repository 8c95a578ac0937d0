"""What protection costs: CPU seconds per million records, by policy, and its share of a day with 10 % changed.

The day is a whole ingest in a fresh process. Its protection is measured apart, on the same file: member tokens, the
vault's part of what changed, the sealed copy in bronze (digest, compression and encryption), sealed rejected records.
The content hash is change detection, which nobody can do without; it is shown, and not counted.

Example: python -m benchmarks.protection
"""

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import child, install, machine_line

_DAY1, _DAY2 = "acme_20250106.csv", "acme_20250107.csv"
#: Parts of a day that are protection.
_PROTECTION = ("member tokens", "vault, 10 % changed", "sealed copy in bronze", "sealed rejected records")
_GOAL = 0.25
_RUNS = 3


def main() -> int:
    """Run both days, measure the second and its parts, print the table; 1 if the share is over the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--parts", type=Path, help=argparse.SUPPRESS)  # the child's part
    arguments = parser.parse_args()
    if arguments.parts:
        print(json.dumps(_parts(arguments.parts)))
        return 0
    os.umask(0o077)
    with tempfile.TemporaryDirectory(prefix="healthingest-bench-") as folder:
        root = Path(folder).resolve()
        env, landing = install(root), root / "home" / "input" / "raw"
        for day, name in enumerate((_DAY1, _DAY2), 1):
            arguments_ = ["--records", str(arguments.records), "--day", str(day), "--out", str(landing / name)]
            child(["-m", "benchmarks.generate", *arguments_], env)
        child(["-m", "benchmarks.ingest_million", "--ingest", str(landing / _DAY1)], env)
        day2 = child(["-m", "benchmarks.ingest_million", "--ingest", str(landing / _DAY2)], env).said
        parts = child(["-m", "benchmarks.protection", "--parts", str(landing / _DAY2)], env).said
    share = sum(parts[name] for name in _PROTECTION) / day2["cpu"]
    result = {"machine": machine_line(), "records": arguments.records, "day_cpu": day2["cpu"], "parts": parts,
              "share": share}  # fmt: skip
    print(json.dumps(result, indent=1) if arguments.json else _table(result))
    return 1 if share > _GOAL and arguments.records >= 1_000_000 else 0


def _parts(file: Path) -> dict[str, float]:
    """CPU seconds of each part, the least of some runs, over all threads of this process."""
    import polars as pl

    from healthingest.ingest import register
    from healthingest.members import Members, check_delivery, read_again
    from healthingest.platform import Platform
    from healthingest.privacy import tokens
    from healthingest.privacy.generalize import generalize
    from healthingest.privacy.seal import seal_values

    platform = Platform.open()
    delivery = register(platform, file)
    client = platform.pinned_client(delivery)
    keyring, client_id = platform.keyring, client.client_id
    checked = check_delivery(platform, delivery, client, lambda _stage, _seconds: None)
    members = Members.of(checked, lambda: read_again(platform, delivery)).parts.frame()
    groups = client.contract.vaulted
    values = members.select("member_token", "_file_id", *groups)
    raw, sealing = checked.rejected["raw"], keyring.derive("rejected", client_id)
    hashed = [*client.contract.derived, *(c.name for c in client.contract.columns if not c.policy.drop)]

    def vault(rows: pl.DataFrame, named: dict[str, str]) -> None:
        platform.lake.vault.put(client_id, "bench", 10**6, rows, named).unlink()

    one = dict.fromkeys(groups, "identity")
    plain = io.BytesIO
    measured: dict[str, Callable[[], object]] = {
        "member tokens": lambda: tokens.member_token(keyring, client_id, members["member_id"]),
        "content hash (change detection)": lambda: tokens.content_hash(keyring, client_id, members, hashed),
        "vault, 10 % changed": lambda: vault(values.gather_every(10), groups),
        "sealed copy in bronze": lambda: _seal_copy(platform, file, delivery.client_id),
        "sealed rejected records": lambda: seal_values(sealing, raw, [b"bench"] * len(raw)),
        "policy vault, all rows, one group": lambda: vault(values, one),
        "policy vault, all rows, two groups": lambda: vault(values, groups),
        "  of it Parquet without encryption": lambda: values.write_parquet(plain(), compression="zstd"),
        "policy generalize year": lambda: members.select(generalize(pl.col("dob"), "year")),
        "policy generalize month": lambda: members.select(generalize(pl.col("dob"), "month")),
        "policy generalize zip3": lambda: members.select(generalize(pl.col("zip"), "zip3")),
        "policy mask last4": lambda: members.select(generalize(pl.col("phone_number"), "last4")),
        "policy mask first": lambda: members.select(generalize(pl.col("first_name"), "first")),
    }
    return {name: min(_cpu(work) for _ in range(_RUNS)) for name, work in measured.items()}


def _seal_copy(platform: Any, file: Path, client_id: str) -> None:  # noqa: ANN401 - the package loads in the child
    """What bronze does with a landed file's bytes, without looking at them."""
    import hashlib

    import pyarrow as pa

    from healthingest.privacy.seal import SealedWriter

    digest = hashlib.sha256()
    with file.open("rb") as landed, (file.parent / ".bench.tmp").open("wb") as target:
        writer = SealedWriter(target, platform.keyring.derive("bronze", client_id))
        with pa.CompressedOutputStream(pa.PythonFile(writer, mode="w"), "zstd") as compressed:
            while chunk := landed.read(4 << 20):
                digest.update(chunk)
                compressed.write(chunk)
        if not writer.finished:
            writer.finish()


def _cpu(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def _table(result: dict[str, Any]) -> str:
    lines = [result["machine"], f"{result['records']:,} records, CPU seconds", ""]
    for name, seconds in result["parts"].items():
        of_day = f"{seconds / result['day_cpu']:>8.1%} of the day" if name in _PROTECTION else ""
        lines.append(f"{name:<36}{seconds:>8.3f}{of_day}")
    lines += ["", f"{'the whole day, 10 % changed':<36}{result['day_cpu']:>8.3f}"]
    lines.append(f"{'protection':<36}{result['share'] * result['day_cpu']:>8.3f}{result['share']:>8.1%} of the day")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
