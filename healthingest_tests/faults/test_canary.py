"""No value of a member anywhere but in the landing zone: not in tables, logs, Dagster's storage or Delta's log.

Members with unmistakable values go through success, rejection, whole-file failure, hold and an unroutable name, by the
Dagster CLI and by our own; then every byte that was left behind is searched, plain and encoded.
"""

import base64
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from healthingest_tests.receiver import receiving

REPO = Path(__file__).parents[2]
HEADER = "member_id,first_name,last_name,dob,gender,address,city,state,zip,phone_number,email,creation_date"
GOOD = (
    "ZQXID01,Zqxfirst,Zqxlast,1961-07-19,F,77 Zqxstreet Rd,Zqxville,MA,02139-7731,"
    "617-555-0177,zqxmail@example.com,2025-01-06"
)
#: Every value of every record below, as sent and as standardised, and the secrets of the places that alerts go to.
CANARIES = [
    "ZQXID", "Zqxfirst", "Zqxlast", "1961-07-19", "Zqxstreet", "Zqxville", "02139-7731", "617-555-0177", "6175550177",
    "zqxmail", "zqxbad", "zqxremark", "秘密", "Zqxtoken", "WnF4c2VjcmV0",
]  # fmt: skip
FILES = {
    # accepted, rule-rejected, malformed both ways, a control character, an embedded line end
    "acme_20250106.csv": [
        GOOD,
        GOOD.replace("ID01", "ID02").replace("1961-07-19", "zqxbad-1961"),
        GOOD.replace("ID01", "ID03") + ",zqxbad,zqxbad",
        "ZQXID04,Zqxfirst",
        GOOD.replace("ID01", "ID05").replace("Zqxlast", "Zqx\x01last"),
        GOOD.replace("ID01", "ID06").replace("77 Zqxstreet Rd", '"77 Zqxstreet\nRd"'),
    ],
    # a second delivery changes a member, so that the merge and the change feed see values
    "acme_20250107.csv": [GOOD.replace("F,77", "M,78")],
    # held: over its threshold
    "held_20250106.csv": [GOOD, GOOD.replace("ZQXID01", "")],
    # a file without a header: its first record stands where names are expected
    "acme_20250108.csv": None,
    # a client nobody knows
    "nobody_20250106.csv": [GOOD],
}


def encodings(value: str) -> Iterator[bytes]:
    raw = value.encode()
    yield raw
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    for shift in range(3):  # base64 of the value at any place in a longer text
        padded = base64.b64encode(b"\0" * shift + raw)
        yield padded[4 if shift else 0 : -4]
    yield value.encode("utf-16-le")


def found_in(text: bytes) -> set[str]:
    return {canary for canary in CANARIES for form in encodings(canary) if len(form) > 3 and form in text}


def decoded(path: Path) -> Iterator[bytes]:
    """The file's bytes, and what a reader without keys makes of them."""
    content = path.read_bytes()
    yield content
    if content.startswith(b"PAR1"):
        frame = pl.read_parquet(path, glob=False)
        yield "\n".join(str(row) for row in frame.rows()).encode()
        yield b"\n".join(v for c in frame.select(pl.col(pl.Binary)) for v in c if v is not None)
    elif content.startswith(b"SQLite format 3\0"):
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            yield "\n".join(db.iterdump()).encode()


def leaks(root: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        hits = found_in(str(path.relative_to(root)).encode()).union(*(found_in(part) for part in decoded(path)))
        if hits:
            found[str(path.relative_to(root))] = hits
    return found


#: Stands in every secret of a place; whoever reads what lies about must not find it.
SECRET = "Zqxtoken"
ALERTS = """
places:
  hook: {kind: webhook, url: "env:HOOK_URL", secret: "env:HOOK_SECRET"}
  slack: {kind: slack, url: "env:SLACK_URL"}
  down: {kind: slack, url: "file:/nowhere/Zq"}
timing: {group_wait_seconds: 0}
"""
CONDITIONS = {"delivery_failed", "delivery_held", "unroutable"}


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the system has run; captured output lies in it too."""
    root = tmp_path_factory.mktemp("canary")
    home = root / "home"
    (home / "client_configs").mkdir(parents=True)
    (home / "client_configs" / "contracts").symlink_to(REPO / "client_configs" / "contracts")
    (home / "client_configs" / "acme.yaml").write_text("client_id: acme\nquality: {max_invalid_ratio: 1.0}\n")
    (home / "client_configs" / "held.yaml").write_text("client_id: held\nquality: {on_breach: hold}\n")
    landing = home / "input" / "raw"
    landing.mkdir(parents=True)
    for name, records in FILES.items():
        lines = [HEADER, *records] if records is not None else [GOOD, GOOD]
        (landing / name).write_bytes(("\n".join(lines) + "\n").encode())
    (landing / "acme_20250109.csv").write_bytes(f"{HEADER}\n{GOOD}\n".encode() + GOOD.encode() + b",\xff\n")
    # columns that nobody knows, and one that has another name: they are looked at once more, and proposed
    more = f"{HEADER.replace('dob', 'Birth Date')},Remark,Nick\n{GOOD},zqxremark,秘密\n"
    (landing / "acme_20250110.csv").write_text(more)
    (root / "dagster").mkdir()
    (root / "dagster" / "dagster.yaml").write_text((REPO / "deploy" / "dagster.yaml").read_text())
    (home / "client_configs" / "alerts.yaml").write_text(ALERTS)
    env = os.environ | {
        "HEALTHINGEST_HOME": str(home),
        "HEALTHINGEST_KEYRING": str(root.parent / "canary-keys" / "k.json"),
        "DAGSTER_HOME": str(root / "dagster"),
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "HOOK_SECRET": "whsec_" + "WnF4c2VjcmV0" * 4,
    }
    with receiving() as receiver:
        env |= {"HOOK_URL": f"{receiver.url}/hook/{SECRET}", "SLACK_URL": f"{receiver.url}/slack/{SECRET}"}
        receiver.reply = b"ok"
        use(root, home, env)
        told = [request for request in receiver.taken if request.path.startswith("/hook")]
        assert {json.loads(r.body)["data"]["condition"] for r in told} >= CONDITIONS
        assert any(request.path.startswith("/slack") for request in receiver.taken)
        # What was told, without the addresses, which are secrets and stand in no message.
        (root / "alerts.txt").write_bytes(b"\n".join(request.body for request in receiver.taken))
    return root


def use(root: Path, home: Path, env: dict[str, str]) -> None:
    """Run whatever people and schedules run."""
    bin_ = Path(sys.executable).parent
    materialize = [
        str(bin_ / "dagster"), "asset", "materialize", "-m", "healthingest.definitions",
        "--select", "bronze_files,quarantine,silver,audit", "--partition",
    ]  # fmt: skip
    commands = [[*materialize, p] for p in ("acme|2025-01-06", "held|2025-01-06", "acme|2025-01-08")]
    taken = root.parent / "canary-taken"  # what people took away, rightly
    taken.mkdir()
    words = [
        ["ingest", "--all"], ["status"], ["doctor"], ["quarantine", "list"],
        ["quarantine", "show", "acme_20250106.csv"],
        ["export", "--out", str(taken / "members.csv")],
        ["export", "--profile", "safe_harbor", "--out", str(taken / "safe.csv")],
        ["quarantine", "export", "--values", "--out", str(taken / "rejected.csv")],
        ["keys", "role", "analyst", "--out", str(root.parent / "canary-keys" / "analyst.json")],
        ["audit", "show", "acme"], ["audit", "verify"], ["keys", "status"], ["maintain"], ["report"],
        ["alerts", "watch"], ["alerts", "ack", "delivery_held", "--reason", "asked"], ["alerts", "test"],
        ["release", "held_20250106.csv", "--reason", "confirmed"], ["alerts", "watch"],
        ["schema", "list"], ["schema", "list", "acme.added.remark"], ["schema", "propose"], ["schema", "reconcile"],
        ["schema", "reject", "acme.added.nick", "--reason", "not asked for"],
        ["revert", "acme_20250107.csv", "--reason", "wrong", "--yes"],
        ["revert", "acme_20250107.csv", "--undo", "--reason", "right", "--yes"],
        ["quarantine", "export", "--client", "acme", "--repair", "--out", str(taken / "repair.csv")],
        ["quarantine", "replay", str(taken / "repair.csv"), "--plan"],
        ["quarantine", "feedback", "--client", "acme", "--out", str(root / "letter.md")],
        ["quarantine", "discard", "acme_20250106.csv", "--record", "4", "--reason", "a test", "--yes"],
        ["quarantine", "ageing"], ["marts", "update"], ["marts", "show", "--cells"],
        ["keys", "rotate"], ["keys", "revoke"], ["ingest", "--from-bronze"],
        ["export", "--profile", "qa", "--out", str(root / "qa")],
    ]  # fmt: skip
    commands += [[str(bin_ / "healthingest"), *line] for line in words]
    first = subprocess.run([str(bin_ / "healthingest"), "alerts", "watch"], env=env, cwd=root, capture_output=True)
    (root / "first.out").write_bytes(first.stdout + b"\n" + first.stderr)
    assert first.returncode == 0
    exits = []
    for number, command in enumerate(commands):
        done = subprocess.run(command, env=env, cwd=root, capture_output=True)
        (root / f"{number}.out").write_bytes(done.stdout + b"\n" + done.stderr)
        exits.append(done.returncode)
    assert exits[:3] == [0, 1, 1], "the good partition succeeds, the held and the failed one do not"
    assert exits[3] == 1, "a held, a failed and an unroutable file are findings"
    # One of the places has no secret: a finding, until it is left alone for a while.
    findings = {words.index(["alerts", "watch"]), words.index(["alerts", "test"])}
    findings |= {n for n, line in enumerate(words) if line[:2] == ["quarantine", "replay"]}  # nothing was mended
    again = [number for number, line in enumerate(words) if line == ["alerts", "watch"]][1]  # on a slow machine, too
    expected = [int(number in findings) for number in range(3, len(words) - 2)]
    expected[again - 3] = exits[again + 3]
    assert exits[6:-2] == expected
    assert exits[-2:] == [1, 0], "the failed file is a finding again"


def test_no_value_of_any_member_is_left_behind(used: Path) -> None:
    assert (used / "home" / "output" / "silver" / "_delta_log").is_dir()
    assert len(list((used / "dagster").rglob("*.db"))) >= 3
    (used / "home" / "input").rename(used.parent / "canary-input")  # the landing zone holds them, of course
    assert found_in((used.parent / "canary-input" / "raw" / "acme_20250106.csv").read_bytes()) >= {"Zqxfirst", "zqxbad"}

    assert leaks(used) == {}
    assert (used / "alerts.txt").stat().st_size > 0
    proposals = {p.stem for p in (used / "home" / "output" / "proposals").iterdir()}
    assert proposals == {"acme.added.remark", "acme.added.nick", "acme.renamed.dob"}


def test_who_holds_the_keys_reads_the_values_and_who_exports_without_identifiers_does_not(used: Path) -> None:
    taken = used.parent / "canary-taken"
    assert found_in((taken / "members.csv").read_bytes()) >= {"ZQXID", "Zqxfirst", "Zqxlast", "Zqxville", "6175550177"}
    assert found_in((taken / "rejected.csv").read_bytes()) >= {"ZQXID", "zqxbad"}
    assert found_in((taken / "safe.csv").read_bytes()) == set()


def test_every_file_got_its_audit_row(used: Path) -> None:
    # The table as it stands: the files of earlier versions still hold the row that the release replaced.
    rows = pl.read_delta(str(used / "home" / "output" / "checkpoint" / "audit")).select("file_name", "status")
    assert rows["file_name"].is_unique().all()
    assert dict(rows.rows()) == {
        "acme_20250106.csv": "succeeded",
        "acme_20250107.csv": "succeeded",
        "acme_20250108.csv": "failed",
        "acme_20250109.csv": "succeeded",
        "acme_20250110.csv": "failed",
        "held_20250106.csv": "succeeded",
        "nobody_20250106.csv": "unroutable",
    }


#: Breaks one step of a delivery's way and then runs a program: with an error that quotes a record, or by a kill.
_BROKEN = """
import os, runpy, signal, sys
import healthingest.ingest as ingest
import healthingest.orchestration.events as events

how, at, record, *sys.argv = sys.argv[1:]
whole = ingest.Stages.__call__

def broken(self, stage):
    if stage == at:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError(f"cannot parse {record}")
    return whole(self, stage)

def timed(self, stage, seconds):
    broken(self, stage)

ingest.Stages.__call__, ingest.Stages.add = broken, timed
if at == "results":  # what Dagster is told after the last step
    events.results = lambda *_: broken(None, at)
program = sys.argv[0]
runpy.run_module(program, run_name="__main__")
"""
STEPS = ["read", "standardize", "validate", "tokenise", "quarantine", "sight", "compare", "vault", "silver", "audit"]


def test_no_value_is_left_behind_by_an_error_or_a_kill_at_any_step_or_by_a_backfill(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    root, keys = tmp_path_factory.mktemp("broken"), tmp_path_factory.mktemp("broken-keys")
    home, landing = root / "home", keys / "landing"
    (home / "client_configs").mkdir(parents=True)
    landing.mkdir()
    (home / "client_configs" / "contracts").symlink_to(REPO / "client_configs" / "contracts")
    (home / "client_configs" / "acme.yaml").write_text("client_id: acme\nquality: {max_invalid_ratio: 1.0}\n")
    (root / "dagster").mkdir()
    (root / "dagster" / "dagster.yaml").write_text((REPO / "deploy" / "dagster.yaml").read_text())
    env = os.environ | {
        "HEALTHINGEST_HOME": str(home), "HEALTHINGEST_INPUT": str(landing), "DAGSTER_HOME": str(root / "dagster"),
        "HEALTHINGEST_KEYRING": str(keys / "k.json"), "DAGSTER_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    materialize = ["asset", "materialize", "-m", "healthingest.definitions", "--select",
                   "bronze_files,quarantine,silver,audit"]  # fmt: skip
    exits: dict[tuple[str, str], list[int]] = {}
    for day, step in enumerate(STEPS, 10):
        records = [GOOD, GOOD.replace("ID01", f"ID{day}"), GOOD.replace("1961-07-19", "zqxbad-1961")]
        (landing / f"acme_202501{day}.csv").write_text("\n".join([HEADER, *records]) + "\n")
        ways = [("kill", "healthingest", ["ingest", "--all"]), ("error", "healthingest", ["ingest", "--all", "--json"])]
        if step in {"read", "quarantine", "silver"}:
            ways.append(("error", "dagster", [*materialize, "--partition", f"acme|2025-01-{day}"]))
        for how, program, words in ways:
            command = [sys.executable, "-c", _BROKEN, how, step, GOOD, program, *words]
            done = subprocess.run(command, env=env, cwd=keys, capture_output=True)
            (root / f"{step}-{how}-{program}.out").write_bytes(done.stdout + b"\n" + done.stderr)
            exits.setdefault((how, program), []).append(done.returncode)
    told = [sys.executable, "-c", _BROKEN, "error", "results", GOOD, "dagster", *materialize, "--partition",
            "acme|2025-01-10"]  # fmt: skip
    done = subprocess.run(told, env=env, cwd=keys, capture_output=True)
    (root / "results.out").write_bytes(done.stdout + b"\n" + done.stderr)
    exits["error", "dagster"].append(done.returncode)
    assert set(exits["kill", "healthingest"]) == {-9}
    # Whoever was killed before the audit row had decided the delivery: there is no step left to fail.
    assert exits["error", "healthingest"] == [1] * (len(STEPS) - 1) + [0]
    assert set(exits["error", "dagster"]) == {1}
    backfill = [sys.executable, "-m", "dagster", *materialize, "--partition-range", "acme|2025-01-10...acme|2025-01-19"]
    for number, command in enumerate([backfill, [sys.executable, "-m", "healthingest", "ingest", "--all"]]):
        done = subprocess.run(command, env=env, cwd=keys, capture_output=True)
        (root / f"end-{number}.out").write_bytes(done.stdout + b"\n" + done.stderr)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert b"10" in (root / "end-1.out").read_bytes()
    assert leaks(root) == {}


@pytest.mark.parametrize("how", ["plain", "base64", "hex", "parquet", "sqlite", "file name"])
def test_the_search_finds_a_planted_leak(tmp_path: Path, how: str) -> None:
    text = "member Zqxlast failed"
    if how == "plain":
        (tmp_path / "run.log").write_text(text)
    elif how == "base64":
        (tmp_path / "run.log").write_bytes(b"x " + base64.b64encode(text.encode()))
    elif how == "hex":
        (tmp_path / "run.log").write_text(text.encode().hex())
    elif how == "parquet":
        pl.DataFrame({"v": [text] * 3}).write_parquet(tmp_path / "part.parquet", compression="zstd")
    elif how == "sqlite":
        with sqlite3.connect(tmp_path / "runs.db") as db:
            db.execute("create table t (v blob)")
            db.execute("insert into t values (?)", (text.encode(),))
    else:
        (tmp_path / "Zqxlast.csv").touch()
    assert list(leaks(tmp_path).values()) == [{"Zqxlast"}]
