"""The main job on real input: Synthea members, and 27 labelled files in any order.

The expected values are standardised here by plain Python, not by the code under test.
"""

import csv
import random
import re
import subprocess
import sys
import unicodedata
from collections import defaultdict
from pathlib import Path

import polars as pl
import pytest

from healthingest.export import export_frame
from healthingest.ingest import ingest, register
from healthingest.places import Places
from healthingest.platform import Platform
from healthingest_tests.conftest import env_of, examples, stored

REPO = Path(__file__).parents[2]
DATA = REPO.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not beside this checkout")

#: The labels of the truth files -> our rule ids.
LABELS = {
    "missing_member_id": "member_id.required",
    "bad_dob": "dob.date",
    "future_dob": "dob.range",
    "bad_phone": "phone_number.phone",
    "bad_email": "email.email",
    "bad_zip": "zip.us_zip",
    "bad_gender": "gender.gender",
    "ragged_short": "too_few_fields",
    "ragged_long": "too_many_fields",
    "bad_encoding": "encoding",
}


def open_platform(home: Path, clients: list[str]) -> Platform:
    (home / "client_configs").mkdir(parents=True)
    (home / "client_configs" / "contracts").symlink_to(REPO / "client_configs" / "contracts")
    for client in clients:
        (home / "client_configs" / f"{client}.yaml").write_text(f"client_id: {client}\n")
    env = {"HEALTHINGEST_HOME": str(home), "HEALTHINGEST_KEYRING": str(home.parent / f"{home.name}.keys" / "k.json")}
    return Platform.open(Places.from_env(env | stored(home)))


def text(value: str) -> str | None:
    collapsed = " ".join(unicodedata.normalize("NFC", value).split())
    return collapsed or None


def phone(value: str) -> str | None:
    digits = re.sub("[^0-9]", "", value)
    return "+1" + digits[-10:] if digits else None


STANDARD = {
    "first_name": text, "last_name": text, "dob": text, "gender": text, "address": text, "city": text,
    "state": text, "zip": text, "phone_number": phone, "email": lambda v: text(v.lower()),
}  # fmt: skip


def standardised(row: dict[str, str | None]) -> dict[str, str | None]:
    return {column: how(row[column] or "") for column, how in STANDARD.items()}


@pytest.mark.parametrize(("name", "records"), [("SYN1_20250106.csv", 1171), ("SYN2_20250106.csv", 1174)])
def test_every_synthea_record_comes_back_value_by_value(tmp_path: Path, name: str, records: int) -> None:
    platform = open_platform(tmp_path / "home", ["SYN1", "SYN2"])
    source = DATA / "synthea" / name

    outcome = ingest(platform, register(platform, source), run_id="test")

    assert (outcome.status, outcome.counts.records, outcome.counts.accepted) == ("succeeded", records, records)
    with source.open(newline="", encoding="utf-8") as file:
        sent = {row["member_id"]: standardised(row) for row in csv.DictReader(file)}
    back = {row["member_id"]: {c: row[c] for c in STANDARD} for row in export_frame(platform).to_dicts()}
    assert len(sent) == records
    assert back == sent


@pytest.fixture(scope="module", params=["sorted", "order 7", "order 19"])
def labelled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Platform:
    platform = open_platform(tmp_path_factory.mktemp("labelled") / "home", ["acme", "globex", "north_star"])
    files = sorted((DATA / "labelled" / "raw").iterdir())
    if request.param != "sorted":
        random.Random(request.param).shuffle(files)
    for file in files:
        outcome = ingest(platform, register(platform, file), run_id="test")
        assert outcome.status == "succeeded"
    return platform


def test_silver_is_the_expected_state_in_any_order(labelled: Platform) -> None:
    holds_the_expected_members(labelled)


_SHUFFLED = """
import random, sys
from pathlib import Path
from healthingest.ingest import ingest, register
from healthingest.platform import Platform
platform, files = Platform.open(), [Path(name) for name in sys.argv[2:]]
random.Random(sys.argv[1]).shuffle(files)
for file in files:
    assert ingest(platform, register(platform, file), run_id="worker").status == "succeeded"
"""


@pytest.mark.parametrize("order", range(20 if examples(1) > 1 else 1))
def test_four_processes_with_all_files_in_orders_of_their_own_end_in_the_expected_state(
    tmp_path: Path, order: int
) -> None:
    platform = open_platform(tmp_path / "home", ["acme", "globex", "north_star"])
    places = platform.places
    env = env_of(places)
    files = [str(file) for file in sorted((DATA / "labelled" / "raw").iterdir())]
    command = [sys.executable, "-c", _SHUFFLED]
    workers = [subprocess.Popen([*command, f"{order} {n}", *files], env=env, cwd=REPO) for n in range(4)]
    assert [worker.wait(300) for worker in workers] == [0] * 4
    holds_the_expected_members(platform)
    audit = platform.lake.audit.frame(["file_id"])
    assert (audit.height, audit["file_id"].n_unique()) == (27, 27)


def holds_the_expected_members(platform: Platform) -> None:
    expected = {
        (row["client_id"], row["member_id"]): standardised(row) | {"last_seen": str(row["creation_date"])[:10]}
        for row in pl.read_parquet(DATA / "labelled" / "expected_silver.parquet").to_dicts()
    }
    got = {
        (row["client_id"], row["member_id"]): {c: row[c] for c in STANDARD} | {"last_seen": str(row["last_seen"])}
        for row in export_frame(platform).to_dicts()
    }
    assert len(got) == 11_835
    assert got == expected


def test_each_rejection_is_the_labelled_one_reason_by_reason(labelled: Platform) -> None:
    truth: dict[tuple[str, int, int], set[str]] = {}
    for file in (DATA / "labelled" / "truth").iterdir():
        for row in csv.DictReader(file.open(newline="", encoding="utf-8")):
            reasons = {LABELS[r] for r in row["reasons"].split("|") if r and r != "dup_member_id"}
            if reasons:
                truth[row["file"], int(row["record_no"]), int(row["line_no"])] = reasons
    got: dict[tuple[str, int, int], set[str]] = defaultdict(set)
    rows = labelled.lake.quarantine.frame(["file_name", "record_no", "line_no", "reasons"])
    for name, number, line_no, reasons in rows.iter_rows():
        got[name, number, line_no] |= {reason["rule"] for reason in reasons}
    assert len(truth) > 1000
    assert dict(got) == truth


def test_repeating_all_files_changes_no_table_and_makes_no_change_rows(labelled: Platform) -> None:
    lake = labelled.lake
    before = [table.version() for table in (lake.silver, lake.quarantine, lake.sightings, lake.audit)]

    outcomes = [
        ingest(labelled, register(labelled, file), run_id="again")
        for file in sorted((DATA / "labelled" / "raw").iterdir())
    ]

    assert {outcome.status for outcome in outcomes} == {"succeeded"}
    assert not any(outcome.fresh for outcome in outcomes)
    assert before == [table.version() for table in (lake.silver, lake.quarantine, lake.sightings, lake.audit)]
    assert sum(outcome.counts.records for outcome in outcomes) == 37_800


def test_the_change_feed_replayed_from_the_start_is_silver(labelled: Platform) -> None:
    changes = pl.DataFrame(labelled.lake.silver.snapshot().load_cdf(starting_version=0))
    last = (
        changes.filter(pl.col("_change_type").is_in(["insert", "update_postimage"]))
        .sort("_commit_version")
        .unique(["client_id", "member_token"], keep="last")
    )
    columns = ["client_id", "member_token", "_content_hash", "_file_id", "_record_no"]
    silver = labelled.lake.silver.frame(columns)
    assert last.select(columns).sort(columns).equals(silver.sort(columns))
    assert set(changes["_change_type"].unique()) == {"insert", "update_preimage", "update_postimage"}
    rewritten = changes.filter(pl.col("_change_type") != "insert").group_by(
        "_commit_version", "member_token", "client_id"
    )
    assert (
        rewritten.agg(pl.col("_content_hash").n_unique())["_content_hash"].min() == 2
    )  # each update changed something
