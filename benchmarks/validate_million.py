"""What reading and validating one file costs against `polars.read_csv` and the same rules as bare polars expressions.

Each side runs in fresh processes, in turns, best of three by CPU seconds (all threads, without imports); this process
loads nothing heavy, since a child's peak memory as Linux reports it is never below that of the process it was started
from. Both sides hold all rows at the end, and must reject the same records by the same rules; on top of that, only ours
sees malformed records (`polars.read_csv` fails on them, or, as here, cuts their surplus fields off), keeps what it
rejects as received, and gives every accepted value its standard form.

Example: python -m benchmarks.validate_million --records 1000000
         python -m benchmarks.validate_million --memory
"""

import argparse
import hashlib
import json
import os
import platform as machine
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl

    from healthingest.contracts.clients import Client
    from healthingest.landing.preflight import Facts
    from healthingest.records.check import CheckedBatch

REPO = Path(__file__).resolve().parent.parent
_DAY = date(2025, 1, 6)
_RUNS = 3
_MEMORY_LIMIT_MIB = 1536
#: Malformed records, by what the generator calls them: the bare side cannot see them.
_UNSEEN = "extra_field"


def main() -> int:
    """Generate the file, run both sides over it, print the table; 1 if they disagree or need too much memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, help="1,000,000 unless told; 10,000,000 with --memory")
    parser.add_argument("--memory", action="store_true", help="only ours, a batch at a time: peak memory")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of the table")
    parser.add_argument("--side", choices=sorted(_SIDES), help=argparse.SUPPRESS)  # the child's part
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_SIDES[arguments.side](arguments.file)))
        return 0
    records = arguments.records or (10_000_000 if arguments.memory else 1_000_000)
    with tempfile.TemporaryDirectory(prefix="healthingest-bench-") as folder:
        file = Path(folder) / "acme_20250106.csv"
        truth = _child("benchmarks.generate", "--records", str(records), "--out", str(file))
        result: dict[str, Any] = {"machine": _machine(), "records": records, "bytes": file.stat().st_size}
        result |= _memory(file, truth) if arguments.memory else _compare(file, truth)
    table = _memory_table if arguments.memory else _table
    print(json.dumps(result, indent=1) if arguments.json else table(result))
    for sentence in result["wrong"]:
        print(f"WRONG: {sentence}", file=sys.stderr)
    return 1 if result["wrong"] else 0


def _child(module: str, *arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=REPO, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def _side(name: str, file: Path) -> dict[str, Any]:
    return _child("benchmarks.validate_million", "--side", name, "--file", str(file))


# --- the parent's part -------------------------------------------------------------------------------------------


def _compare(file: Path, truth: dict[str, Any]) -> dict[str, Any]:
    runs: dict[str, list[dict[str, Any]]] = {"bare": [], "ours": [], "reader": []}
    for _ in range(_RUNS):
        for name, done in runs.items():
            done.append(_side(name, file))
    best = {name: min(done, key=lambda run: float(run["cpu"]["total"])) for name, done in runs.items()}
    bare, ours = best["bare"], best["ours"]
    # Ours parses one batch while it checks the one before it; so reading is measured alone, in a third process.
    for clock in ("cpu", "wall"):
        ours[clock]["read"] = best["reader"][clock]["total"]
        ours[clock]["rules"] = ours[clock]["total"] - ours[clock]["read"]
    unseen = truth["defects"][_UNSEEN]
    held = [
        ("records rejected by ours", ours["rejected"], truth["bad"]),
        ("records accepted by ours", ours["accepted"], truth["records"] - truth["bad"]),
        ("records rejected by bare, with those it cannot see", bare["rejected"] + unseen, ours["rejected"]),
        ("records accepted by bare, without those it cannot see", bare["accepted"] - unseen, ours["accepted"]),
        ("records per rule", bare["rules"], ours["rules"]),
        ("which record fails which rule", bare["pairs"], ours["pairs"]),
    ]
    wrong = [f"{what}: {found}, should be {expected}" for what, found, expected in held if found != expected]
    return {
        "bare": bare,
        "ours": ours,
        "ratio": ours["cpu"]["total"] / bare["cpu"]["total"],
        "ratio_with_preflight": (ours["cpu"]["total"] + ours["cpu"]["preflight"]) / bare["cpu"]["total"],
        "all_runs_cpu": {name: [run["cpu"]["total"] for run in done] for name, done in runs.items()},
        "wrong": wrong,
    }


def _memory(file: Path, truth: dict[str, Any]) -> dict[str, Any]:
    done = _side("stream", file)
    expected = {"accepted": truth["records"] - truth["bad"], "rejected": truth["bad"]}
    wrong = [f"{name}: {done[name]}, generated were {value}" for name, value in expected.items() if done[name] != value]
    if done["rss_mib"] > _MEMORY_LIMIT_MIB:
        wrong.append(f"peak memory is {done['rss_mib']:,.0f} MiB, at most {_MEMORY_LIMIT_MIB:,} are allowed")
    return {"stream": done, "wrong": wrong}


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("polars", "pandera", "pyarrow"))
    return f"{os.cpu_count()} cores, Python {machine.python_version()}, {packages}"


def _head(result: dict[str, Any]) -> str:
    return f"{result['machine']}\n{result['records']:,} records, {result['bytes'] / 2**20:,.0f} MiB"


def _table(result: dict[str, Any]) -> str:
    bare, ours = result["bare"], result["ours"]
    lines = [
        f"{_head(result)}; {bare['checks']} checks bare, {ours['checks']} ours",
        f"rejected: {ours['rejected']:,}, of which {bare['rejected']:,} by rules, the same on both sides"
        if not result["wrong"]
        else "the two sides disagree, see below",
        f"\n{'CPU seconds':<22}{'bare':>10}{'ours':>10}{'ratio':>10}",
    ]
    for part in ("read", "rules", "total"):
        b, o = bare["cpu"][part], ours["cpu"][part]
        lines.append(f"{part:<22}{b:>10.2f}{o:>10.2f}{o / b:>10.2f}")
    # Mostly memory touched for the first time; on a busy machine it varies more than the rest.
    lines.append(f"{'  of it system':<22}{bare['system']['total']:>10.2f}{ours['system']['total']:>10.2f}")
    preflight = ours["cpu"]["preflight"]
    both = ours["cpu"]["total"] + preflight
    lines.append(f"{'pre-flight':<22}{'':>10}{preflight:>10.2f}")
    lines.append(f"{'total with pre-flight':<22}{bare['cpu']['total']:>10.2f}{both:>10.2f}"
                 f"{result['ratio_with_preflight']:>10.2f}")  # fmt: skip
    lines.append(f"\n{'wall seconds':<22}{bare['wall']['total']:>10.2f}{ours['wall']['total']:>10.2f}")
    lines.append(f"{'peak RSS MiB':<22}{bare['rss_mib']:>10,.0f}{ours['rss_mib']:>10,.0f}")
    for name, runs in result["all_runs_cpu"].items():
        lines.append(f"{'all runs, ' + name:<22}" + "".join(f"{cpu:>10.2f}" for cpu in runs))
    return "\n".join(lines)


def _memory_table(result: dict[str, Any]) -> str:
    done = result["stream"]
    lines = [_head(result), f"accepted {done['accepted']:,}, rejected {done['rejected']:,}, {done['batches']} batches"]
    lines += [f"{clock + ' seconds':<16}{done[clock]['total']:>10.2f}" for clock in ("cpu", "wall")]
    lines.append(f"{'peak RSS MiB':<16}{done['rss_mib']:>10,.0f}   (limit {_MEMORY_LIMIT_MIB:,})")
    return "\n".join(lines)


# --- what children measure ---------------------------------------------------------------------------------------


class _Meter:
    """CPU (user and system, all threads), system and wall seconds of named parts of this process."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self.system: dict[str, float] = {}
        self.wall: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        before, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        yield
        after, self.wall[part] = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - wall
        self.system[part] = after.ru_stime - before.ru_stime
        self.cpu[part] = after.ru_utime - before.ru_utime + self.system[part]

    def result(self, *parts: str) -> dict[str, Any]:
        """All parts and, as `total`, the sum of those named; and the memory that was needed until now."""
        clocks = {"cpu": self.cpu, "system": self.system, "wall": self.wall}
        totals = {name: clock | {"total": sum(clock[part] for part in parts)} for name, clock in clocks.items()}
        return totals | {"rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


# --- ours --------------------------------------------------------------------------------------------------------


def _checked(file: Path, facts: "Facts", client: "Client") -> "Iterator[CheckedBatch]":
    """The product's own way over a file, a batch at a time: the one call that this benchmark is about."""
    from healthingest.records.check import checked_batches
    from healthingest.records.read import RecordReader

    with file.open("rb") as source:
        yield from checked_batches(RecordReader(source, facts, client), client, _DAY, lambda *_: None)


def _client() -> "Client":
    from healthingest.contracts.clients import Client, ClientConfig
    from healthingest.contracts.contract import load_contract

    config = ClientConfig.model_validate({"client_id": "acme"})
    return Client("acme", config, load_contract(REPO / "client_configs", config.contract))


def _facts(file: Path, client: "Client") -> "Facts":
    from healthingest.landing.preflight import Preflight

    preflight = Preflight.of(client.config.source)
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            preflight.feed(chunk)
    return preflight.facts()


def _warm(client: "Client") -> None:
    """Import, and build once what is built once per process, outside of the measured time, as for the other side."""
    import polars as pl

    import healthingest.records.check  # noqa: F401 - the import itself is what counts
    from healthingest.records.standardize import standard_form
    from healthingest.records.validate import Validator

    standard_form(pl.Series("warm", ["617-555-0123"]), "phone")
    Validator.of(client)


def _run_ours(file: Path) -> dict[str, Any]:
    """All rows held: the side that is compared."""
    import polars as pl

    from healthingest.records.validate import Validator

    client, meter = _client(), _Meter()
    _warm(client)
    with meter("preflight"):
        facts = _facts(file, client)
    with meter("checked"):
        batches = list(_checked(file, facts, client))
    result = meter.result("checked")
    failed = pl.concat([batch.rejected for batch in batches]).select("_record_no", "reasons").explode("reasons")
    pairs = failed.select("_record_no", rule=pl.col("reasons").struct.field("rule"))
    malformed = pl.col("rule") == "too_many_fields"
    schemas = [Validator.of(client).errors, Validator.of(client).warnings]
    return result | _outcome(
        accepted=sum(batch.accepted.height for batch in batches),
        rejected=sum(batch.rejected.height for batch in batches),
        checks=sum(len(column.checks) for schema in schemas for column in schema.columns.values()),
        pairs=pairs.filter(~malformed),
    )


def _run_reader(file: Path) -> dict[str, Any]:
    """Reading alone, all rows held."""
    from healthingest.records.read import RecordReader

    client, meter = _client(), _Meter()
    _warm(client)
    facts = _facts(file, client)
    with file.open("rb") as source, meter("read"):
        batches = [batch.rows for batch in RecordReader(source, facts, client)]
    return meter.result("read") | {"rows": sum(rows.height for rows in batches)}


def _run_stream(file: Path) -> dict[str, Any]:
    """Nothing held but counts: the memory that a file of any size needs."""
    client, meter = _client(), _Meter()
    _warm(client)
    counts = {"accepted": 0, "rejected": 0, "batches": 0}
    with meter("preflight"):
        facts = _facts(file, client)
    with meter("checked"):
        for batch in _checked(file, facts, client):
            counts["accepted"] += batch.accepted.height
            counts["rejected"] += batch.rejected.height
            counts["batches"] += 1
    return meter.result("preflight", "checked") | counts


def _outcome(*, accepted: int, rejected: int, checks: int, pairs: "pl.DataFrame") -> dict[str, Any]:
    """What both sides are held against each other by; `pairs`: record number and rule, one row per failed rule."""
    ordered = pairs.select(record="_record_no", rule="rule").sort("record", "rule")
    per_rule = ordered.group_by("rule").len().sort("rule")
    return {
        "accepted": accepted,
        "rejected": rejected,
        "checks": checks,
        "rules": dict(per_rule.iter_rows()),
        "pairs": hashlib.sha256(ordered.write_csv().encode()).hexdigest(),
    }


# --- bare polars -------------------------------------------------------------------------------------------------

_COLUMNS = (
    "member_id", "first_name", "last_name", "dob", "gender", "address", "city", "state", "zip", "phone_number",
    "email", "creation_date",
)  # fmt: skip
_ISO_SHAPE = "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
#: \p{Cc} would be tab and line ends too.
_CONTROL = "[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\ufffd]"
_ZIP = "^[0-9]{5}(?:-?[0-9]{4})?$"
_ATEXT = r"[a-z0-9!#$%&'*+/=?^_`{|}~\-]+"
_LABEL = r"[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?"
_EMAIL = rf"^(?i:{_ATEXT}(?:\.{_ATEXT})*@(?:{_LABEL}\.)+[a-z](?:[a-z0-9\-]{{0,61}}[a-z0-9]))$"


def _bare_rules() -> "dict[str, pl.Expr]":
    """Rule -> True where a record breaks it; the rules of contract member/1, under its names."""
    import polars as pl

    from healthingest.records.standardize import _GENDERS, _STATES, _area_codes

    col = pl.col
    phone = (
        rf"^(?:\+?1[ .\-]*)?\(?(?:{'|'.join(sorted(_area_codes()))})\)?[ .\-]*[2-9][0-9]{{2}}[ .\-]*[0-9]{{4}}"
        r"(?: ?(?i:x|ext\.?|extension|#) ?[0-9]{1,6})?$"
    )

    def no_date(column: str) -> pl.Expr:  # to_date alone takes +2020-1-1
        real = col(column).str.contains(_ISO_SHAPE) & col(column).str.to_date("%Y-%m-%d", strict=False).is_not_null()
        return ~real

    dob = col("dob").str.to_date("%Y-%m-%d", strict=False)
    rules = {f"{c}.required": col(c).is_null() for c in ("member_id", "first_name", "last_name", "dob")}
    rules |= {f"{c}.control_characters": col(c).str.contains(_CONTROL) for c in _COLUMNS}
    rules |= {f"{c}.date": no_date(c) for c in ("dob", "creation_date")}
    rules |= {
        "member_id.characters": ~col("member_id").str.contains("^[A-Za-z0-9._-]{1,64}$"),
        "first_name.length": col("first_name").str.len_chars() > 100,
        "last_name.length": col("last_name").str.len_chars() > 100,
        "dob.range": ~dob.is_between(date(1900, 1, 1), _DAY),
        "gender.gender": ~col("gender").str.to_uppercase().is_in(list(_GENDERS)),
        "address.length": col("address").str.len_chars() > 200,
        "city.length": col("city").str.len_chars() > 100,
        "state.us_state": ~col("state").str.to_uppercase().is_in([*_STATES, *_STATES.values()]),
        "zip.us_zip": ~col("zip").str.contains(_ZIP),
        "phone_number.phone": ~col("phone_number").str.contains(phone),
        "email.email": ~(
            col("email").str.contains(_EMAIL)
            & (col("email").str.len_bytes() <= 254)
            & (col("email").str.find("@", literal=True) <= 64)
        ),
    }
    return rules


def _run_bare(file: Path) -> dict[str, Any]:
    """`polars.read_csv`, one select of all rules, the reasons of the bad rows; all rows held."""
    import polars as pl

    rules, meter = _bare_rules(), _Meter()
    with meter("read"):
        frame = pl.read_csv(file, infer_schema=False, truncate_ragged_lines=True, glob=False)
    with meter("rules"):
        accepted, rejected = _bare_split(frame, rules)
    result = meter.result("read", "rules")
    pairs = rejected.select("_record_no", rule="reasons").explode("rule")
    return result | _outcome(accepted=accepted.height, rejected=rejected.height, checks=len(rules), pairs=pairs)


def _bare_split(frame: "pl.DataFrame", rules: "dict[str, pl.Expr]") -> "tuple[pl.DataFrame, pl.DataFrame]":
    """The good rows, and the bad ones with all `reasons`; both with cleaned values and record numbers."""
    import polars as pl

    trimmed = frame.select(pl.all().str.strip_chars())
    rows = trimmed.with_columns(pl.when(~pl.all().is_in(["", "NULL", "N/A"])).then(pl.all())).with_row_index(
        "_record_no", offset=1
    )
    broken = rows.select(pl.Expr.fill_null(broken, value=False).alias(rule) for rule, broken in rules.items())
    bad = broken.select(pl.any_horizontal(pl.all())).to_series()
    reasons = (
        broken.filter(bad)
        .with_row_index("row")
        .unpivot(index="row", variable_name="reasons")
        .filter("value")
        .group_by("row")
        .agg("reasons")
        .sort("row")["reasons"]
    )
    return rows.filter(~bad), rows.filter(bad).with_columns(reasons)


_SIDES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "bare": _run_bare, "ours": _run_ours, "reader": _run_reader, "stream": _run_stream,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
