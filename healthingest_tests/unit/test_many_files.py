"""Many files in one go: few commits, the same result, and one bad file keeps no other out."""

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from healthingest import members
from healthingest.bulk import Problem, ingest_paths
from healthingest.ingest import ingest_many, register
from healthingest.landing.discovery import QUIET_SECONDS
from healthingest.model import Counts, Delivery
from healthingest.platform import Platform
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import configure, csv_of, deliver, drop, env_of, install, line
from healthingest_tests.histories import change_feed_is_real

_MAIN = [sys.executable, "-c", "from healthingest.cli import main; main()"]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("healthingest.landing.discovery.QUIET_SECONDS", 0.0)
    assert QUIET_SECONDS > 0


def run(*arguments: str, **env: str) -> tuple[int, Any, str]:
    done = subprocess.run([*_MAIN, *arguments, "--json"], env=os.environ | env, capture_output=True, text=True)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def landed(home: Platform, number: int, client: str = "acme") -> list[Delivery]:
    """So many daily files of the same thirty members, of whom one moves each day."""
    names = []
    for day in range(1, number + 1):
        rows = [line(f"M{n}", city="Salem" if n == day else "Boston") for n in range(30)]
        date = dt.date(2025, 1, 1) + dt.timedelta(days=day - 1)
        names.append(drop(home, f"{client}_{date:%Y%m%d}.csv", csv_of(*rows, line("X", zip="12"))))
    return [register(home, path) for path in names]


def versions(home: Platform) -> list[int | None]:
    return [t.version() for t in (home.lake.silver, home.lake.quarantine, home.lake.sightings, home.lake.audit)]


def test_deliveries_of_one_client_share_one_commit_of_each_table(home: Platform, tmp_path: Path) -> None:
    outcomes = ingest_many(home, landed(home, 9), run_id="r")
    # Silver: made, columns added, one commit.
    assert versions(home) == [2, 1, 1, 1]
    assert [o.counts.inserted for o in outcomes] == [30] + [0] * 8
    assert [o.counts.updated for o in outcomes] == [0] + [2] * 8  # one moves, another moves back
    one_by_one = install(tmp_path / "alone")
    alone = [ingest_many(one_by_one, [d], run_id="r")[0] for d in landed(one_by_one, 9)]
    assert [o.counts for o in alone] == [o.counts for o in outcomes]
    change_feed_is_real(home)


def test_what_comes_and_goes_within_a_group_leaves_no_change_but_is_counted(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M", city="A")))
    before = home.lake.silver.version()
    paths = [drop(home, f"acme_2025010{day}.csv", csv_of(line("M", city=city))) for day, city in ((2, "B"), (3, "A"))]
    outcomes = ingest_many(home, [register(home, path) for path in paths], run_id="r")
    assert [o.counts.updated for o in outcomes] == [1, 1]
    rows = home.lake.silver.snapshot().load_cdf(starting_version=(before or 0) + 1, allow_out_of_range=True)
    assert sum(len(batch) for batch in rows) == 0


def test_clients_and_names_that_come_again_have_commits_of_their_own(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": "client_id: globex\n"})
    work = [*landed(home, 2), *landed(home, 2, "globex")]
    work.append(register(home, drop(home, "acme_20250101.csv", csv_of(*(line(f"M{n}") for n in range(29))))))
    assert {o.status for o in ingest_many(home, work, run_id="r")} == {"succeeded"}
    history = home.lake.silver.snapshot().history()
    groups = [len(json.loads(e["healthingest"])["deliveries"]) for e in history if "healthingest" in e]
    assert sorted(groups) == [1, 2, 2]


def test_one_bad_file_of_a_group_keeps_no_other_out(home: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.5, on_breach: hold}\n")
    landed(home, 4)
    drop(home, "acme_20250110.csv", "what,is,this\n1,2,3\n")
    drop(home, "acme_20250111.csv", csv_of(line("M1", zip="12")))
    drop(home, "acme_20250112.csv", csv_of(line("Boom")))
    drop(home, "nobody_20250101.csv", csv_of(line("M1")))
    real = members.check_bytes

    def fails(open_bytes: Any, facts: Any, delivery: Delivery, *rest: Any) -> Any:
        if delivery.file_name == "acme_20250112.csv":
            raise ValueError("Zqxlast is what the record says")
        return real(open_bytes, facts, delivery, *rest)

    monkeypatch.setattr(members, "check_bytes", fails)
    done = [d for group in ingest_paths(home, sorted(home.places.landing.iterdir()), run_id="r") for d in group]
    told = {d.file: (d.status, d.message) for d in done if isinstance(d, Problem)}
    assert told["nobody_20250101.csv"][0] == "unroutable"
    assert told["acme_20250112.csv"][0] == "error"
    assert "ValueError" in told["acme_20250112.csv"][1]
    assert "Zqxlast" not in str(told)
    ended = {d.delivery.file_name: d.status for d in done if not isinstance(d, Problem)}
    assert ended == {f"acme_2025010{n}.csv": "succeeded" for n in range(1, 5)} | {
        "acme_20250110.csv": "failed", "acme_20250111.csv": "held",
    }  # fmt: skip
    assert home.lake.silver.frame(["member_token"]).height == 30


def test_a_change_of_volume_is_judged_against_the_delivery_before_it_in_the_group(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {max_volume_change: 0.5}\n")
    sizes = {"01": 10, "02": 10, "03": 3}
    work = [
        register(home, drop(home, f"acme_202501{day}.csv", csv_of(*(line(f"M{n}") for n in range(size)))))
        for day, size in sizes.items()
    ]
    outcomes = ingest_many(home, work, run_id="r")
    assert [bool(o.file_breaches) for o in outcomes] == [False, False, True]
    assert "against the 10" in outcomes[2].file_breaches[0]


# --- the command ------------------------------------------------------------------------------------------------


def test_a_plan_says_what_an_ingest_then_does_and_changes_nothing(home: Platform) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.5, on_breach: hold}\n")
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2")))
    landed(home, 4)
    drop(home, "acme_20250110.csv", "what,is,this\n1,2,3\n")
    drop(home, "acme_20250111.csv", csv_of(line("M1", zip="12")))
    drop(home, "nobody_20250101.csv", csv_of(line("M1")))
    before = versions(home)
    code, plan, _ = run("ingest", "--all", "--plan")
    assert (code, versions(home)) == (1, before)
    planned = {f["file"]: f for f in plan["files"]}
    code, done, _ = run("ingest", "--all")
    assert code == 1
    for file in done["files"]:
        expected = planned[file["file"]]
        assert file["status"] == expected["status"], file["file"]
        if file["status"] == "succeeded" and file["file"] != "acme_20250101.csv":
            assert {n: file[n] for n in Counts.names()} == {n: expected[n] for n in Counts.names()}, file["file"]
    _, again, _ = run("ingest", "--all", "--plan")
    assert {f["status"] for f in again["files"]} == {"done", "failed", "unroutable"}
    assert sum(c["files"] for c in again["clients"]) == len(again["files"])


@pytest.mark.parametrize("wrong", [[], ["--all", "x.csv"], ["--all", "--from-bronze"], ["--from-bronze", "--plan"]])
def test_options_that_do_not_go_together_are_wrong_usage(home: Platform, wrong: list[str]) -> None:
    assert run("ingest", *wrong)[0] == 2


def test_replaced_bytes_that_land_again_are_told_of_and_change_nothing(home: Platform) -> None:
    name, first = "acme_20250106.csv", csv_of(line("M1"))
    deliver(home, name, first)
    deliver(home, name, csv_of(line("M1", city="Salem")))
    drop(home, name, first)
    before = versions(home)
    code, done, _ = run("ingest", "--all")
    assert (code, versions(home)) == (1, before)
    (told,) = done["files"]
    assert told["status"] == "superseded"
    assert "delivery 2 has replaced" in told["message"]


def test_a_delivery_whose_process_died_is_finished_although_its_bytes_were_replaced_by_earlier_ones(
    home: Platform,
) -> None:
    name, first = "acme_20250106.csv", csv_of(line("M1"))
    deliver(home, name, first)
    register(home, drop(home, name, csv_of(line("M1", city="Salem"), line("M2"))))  # and there it died
    drop(home, name, first)
    run("ingest", "--all")
    rows = home.lake.audit.frame(["delivery_no", "status"]).sort("delivery_no").rows()
    assert rows == [(1, "succeeded"), (2, "succeeded")]
    assert home.lake.silver.frame(["member_token"]).height == 2


def test_a_lost_table_is_built_again_by_the_command_that_the_error_names(home: Platform) -> None:

    ingest_many(home, landed(home, 3), run_id="r")
    members_before = home.lake.silver.frame(["member_token", "_content_hash"]).sort("member_token")
    remove_tree(home.places.output / "silver")
    code, told, _ = run("ingest", "--all")
    assert code == 1
    assert "ingest --from-bronze" in told["message"]
    assert run("ingest", "--from-bronze")[0] == 0
    assert home.lake.silver.frame(["member_token", "_content_hash"]).sort("member_token").equals(members_before)


def test_dagster_is_told_of_each_partition_once_and_later_of_what_it_was_never_told(
    home: Platform, tmp_path: Path
) -> None:
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    deliveries = landed(home, 70)  # more than a group: told by a process of its own
    ingest_many(home, deliveries[:3], run_id="untold")  # as a process that died before it told
    for _ in range(2):
        code, _, said = run("ingest", "--all", DAGSTER_HOME=str(tmp_path / "dagster"))
        assert (code, said) == (0, "")
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        for asset in ("bronze_files", "quarantine", "silver", "audit"):
            made = instance.fetch_materializations(dg.AssetKey(asset), limit=500).records
            keys = [record.partition_key for record in made]
            assert len(keys) == len(set(keys)) == 70, asset


def test_everything_that_landed_includes_what_somebody_registered_before_its_file_went(
    home: Platform, tmp_path: Path
) -> None:
    path = drop(home, "acme_20250101.csv", csv_of(line("M1"), line("M2")))
    register(home, path)
    path.unlink()
    env = env_of(home.places)
    code, said, _ = run("ingest", "--all", **env)
    assert (code, [(f["file"], f["status"], f["inserted"]) for f in said["files"]]) == (
        0, [("acme_20250101.csv", "succeeded", 2)],
    )  # fmt: skip
    assert run("ingest", "--all", **env)[1] == {"files": []}
