"""The command as people and scripts use it: the real console script, in its own process, on a real installation."""

import json
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from healthingest_tests.conftest import CONTRACTS, REPO, csv_of, line

COMMAND = str(Path(sys.executable).parent / "healthingest")
GOOD = csv_of(line("M1"), line("M2"), line("M3"))
COMMANDS = [["ingest"], ["status"], ["export"], ["keys", "init"], ["keys", "status"], ["doctor"]]
#: A client that the shipped contract serves as it is, with room for bad records.
ACME = "client_id: acme\nquality: {max_invalid_ratio: 0.5}\n"


@dataclass(frozen=True)
class Said:
    """What one call of the command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Shell:
    """An installation below `root`, and a terminal whose environment names it."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def landing(self) -> Path:
        return self.root / "home" / "input" / "raw"

    @property
    def keyring(self) -> Path:
        return self.root / "keys" / "keyring.json"

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        outside = {k: v for k, v in os.environ.items() if not k.startswith(("HEALTHINGEST_", "DAGSTER_"))}
        own = {"HEALTHINGEST_HOME": str(self.root / "home"), "HEALTHINGEST_KEYRING": str(self.keyring)}
        return outside | {"PYTHONIOENCODING": "utf-8:strict"} | own | self.env | dict(more or {})

    def run(self, *words: str | Path, env: Mapping[str, str] | None = None) -> Said:
        done = subprocess.run(
            [COMMAND, *map(str, words)], env=self.environment(env), cwd=self.root, capture_output=True, timeout=120
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def drop(self, name: str | bytes, text: str = GOOD) -> Path:
        """Land a file that has been quiet for long enough; its ctime cannot be set, so the command waits ~2 s."""
        path = Path(os.fsdecode(os.fsencode(self.landing) + b"/" + os.fsencode(name)))
        path.write_text(text)
        return path

    def configure(self, stem: str, text: str) -> None:
        (self.root / "home" / "client_configs" / f"{stem}.yaml").write_text(text)


def shell_in(root: Path, **configs: str) -> Shell:
    shell = Shell(root)
    shutil.copytree(CONTRACTS, root / "home" / "client_configs" / "contracts")
    shell.landing.mkdir(parents=True)
    for stem, text in (configs or {"acme": ACME}).items():
        shell.configure(stem, text)
    return shell


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return shell_in(tmp_path)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The sample files that ship, ingested; for tests that only look."""
    shell = Shell(tmp_path_factory.mktemp("used"))
    for folder in ("client_configs", "input"):
        shutil.copytree(REPO / folder, shell.root / "home" / folder)
    said = shell.run("ingest", "--all")
    assert said.code == 0, said
    (shell.root / "ingest.out").write_text(said.out)
    return shell


def one_line(said: Said) -> str:
    """The error, which is one readable sentence and no traceback."""
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("healthingest: ")
    assert "Traceback" not in said.err + said.out
    return lines[0]


# --- help and usage ----------------------------------------------------------------------------------------------


def test_help_answers_at_once_because_it_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['healthingest', '--help']; from healthingest.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code)\n"
        "heavy = {'polars', 'dagster', 'pyarrow', 'deltalake', 'pandera', 'cryptography', 'pydantic'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("0\nheavy: []\n"), done.stdout


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_an_example_and_a_json_option(shell: Shell, words: list[str]) -> None:
    said = shell.run(*words, "--help")
    assert said.code == 0
    assert f"healthingest {' '.join(words)}" in said.out.split("Example:")[1]
    assert "--json" in said.out


@pytest.mark.parametrize(
    "words",
    [
        ["ingest"],
        ["ingest", "--all", "a.csv"],
        ["ingest", "absent.csv"],
        ["ingest", "--no-such-option"],
        ["no-such-command"],
        ["export", "--profile", "operations"],
        ["export", "--profile", "everything", "--out", "x.csv"],
        ["export", "--out", "x.xlsx"],
        ["status", "--wait", "soon"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2_with_one_sentence(shell: Shell, words: list[str]) -> None:
    shell.run("keys", "init")  # so that the notice of a new keyring is not among the lines
    said = shell.run(*words)
    assert said.code == 2
    assert said.out == ""
    one_line(said)


def test_a_setting_that_is_not_allowed_is_wrong_usage(shell: Shell) -> None:
    said = shell.run("status", env={"HEALTHINGEST_ENV": "staging"})
    assert said.code == 2
    assert "HEALTHINGEST_ENV" in one_line(said)


# --- ingest ------------------------------------------------------------------------------------------------------


def test_the_samples_that_ship_go_in_with_some_records_rejected(used: Shell) -> None:
    table = (used.root / "ingest.out").read_text()
    files = used.run("ingest", "--all", "--json").json["files"]
    assert {f["client_id"] for f in files} == {"acme", "globex"}
    for file in files:
        assert file["file"] in table
        assert file["records"] in range(30, 121)
        assert file["status"] == "succeeded"
        assert file["records"] == file["accepted"] + file["rejected"]
        parts = ("inserted", "updated", "unchanged", "stale", "suppressed", "duplicates")
        assert file["accepted"] == sum(file[part] for part in parts)
    assert sum(f["rejected"] for f in files) > 0
    for column in ("records", "accepted", "rejected", "inserted", "updated", "unchanged", "status"):
        assert column in table


def test_a_second_time_changes_no_table_and_says_so(used: Shell) -> None:
    before = sorted(str(p) for p in (used.root / "home" / "output").rglob("*"))
    said = used.run("ingest", "--all")
    assert said.code == 0
    assert "nothing was changed" in said.out
    assert sorted(str(p) for p in (used.root / "home" / "output").rglob("*")) == before


def test_files_are_taken_in_order_of_client_date_and_suffix(tmp_path: Path) -> None:
    shell = shell_in(tmp_path, acme=ACME, beta=ACME.replace("acme", "beta"))
    names = [
        "acme_20250106.csv",
        "acme_2025-01-06_1.csv",
        "acme_20250106_2.csv",
        "acme_20250107.csv",
        "beta_20250101.csv",
    ]
    for name in reversed(names):
        shell.drop(name)
    assert [f["file"] for f in shell.run("ingest", *reversed(names), "--json").json["files"]] == names


def test_a_file_is_named_by_its_path_or_by_its_name_in_the_landing_zone(shell: Shell) -> None:
    elsewhere = shell.root / "elsewhere"
    elsewhere.mkdir()
    shell.drop("acme_20250106.csv").rename(elsewhere / "acme_20250106.csv")
    shell.drop("acme_20250107.csv")
    said = shell.run("ingest", elsewhere / "acme_20250106.csv", "acme_20250107.csv", "--json")
    assert [(f["file"], f["status"]) for f in said.json["files"]] == [
        ("acme_20250106.csv", "succeeded"),
        ("acme_20250107.csv", "succeeded"),
    ]


def test_json_is_one_document_and_nothing_else_even_at_a_terminal(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    shell.run("keys", "init")
    screen, terminal = pty.openpty()
    process = subprocess.Popen(
        [COMMAND, "ingest", "--all", "--json"], env=shell.environment(), stdout=subprocess.PIPE, stderr=terminal
    )
    os.close(terminal)
    seen = drain(screen)
    assert process.stdout is not None
    assert len(json.loads(process.stdout.read())["files"]) == 1
    assert process.wait() == 0
    assert b"acme_20250106.csv" in seen, "a person who watches sees how far it is"


def drain(screen: int) -> bytes:
    seen = b""
    while select.select([screen], [], [], 60)[0]:
        try:
            part = os.read(screen, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(screen)
    return seen


def test_an_unroutable_file_gets_its_audit_row_once_and_the_others_go_on(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    shell.drop("nobody_20250106.csv")
    said = shell.run("ingest", "--all")
    assert said.code == 1
    assert "nobody_20250106.csv: No active client" in said.out
    shell.run("ingest", "--all")
    rows = audit(shell)
    assert sorted(rows["status"]) == ["succeeded", "unroutable"]


def audit(shell: Shell) -> pl.DataFrame:
    return pl.read_delta(str(shell.root / "home" / "output" / "checkpoint" / "audit"))


@pytest.mark.parametrize("words", [["ingest", "--all"], ["status"]], ids=" ".join)
def test_hostile_file_names_cannot_break_or_steer_the_terminal(shell: Shell, words: list[str]) -> None:
    shell.drop("acme_20250106.csv")
    for name in (b"\xff_20250106.csv", b"esc\x1b[2J_20250106.csv", b"two\nlines_20250106.csv", b"[red]_20250106.csv"):
        shell.drop(name)
    said = shell.run(*words)
    assert said.code == (1 if words == ["ingest", "--all"] else 0), said.err
    assert "\x1b[2J" not in said.out
    assert said.out.count("[red]_20250106.csv") == 2, "a name is text, not markup, in the table and in its sentence"
    assert r"\x1b[2J" in said.out
    assert "acme_20250106.csv" in said.out
    assert shell.run(*words, "--json").json


@pytest.mark.parametrize(("on_breach", "code", "status"), [("alert", 0, "succeeded"), ("hold", 1, "held")])
def test_a_file_over_its_threshold_is_told_in_one_sentence(
    tmp_path: Path, on_breach: str, code: int, status: str
) -> None:
    shell = shell_in(tmp_path, acme=f"client_id: acme\nquality: {{max_invalid_ratio: 0.1, on_breach: {on_breach}}}\n")
    shell.drop("acme_20250106.csv", csv_of(line("M1"), line("M2", dob="never"), line("M3")))
    said = shell.run("ingest", "--all")
    assert said.code == code
    assert status in said.out
    assert re.search(r"acme_20250106\.csv: 1 of 3 records were rejected \(33\.3%, over the limit of 10\.0%\)", said.out)


def test_a_delivery_that_fails_as_a_whole_exits_1_and_says_what_to_do(shell: Shell) -> None:
    shell.drop("acme_20250106.csv", "member_id,first_name\nM1,Zqxname\n")
    said = shell.run("ingest", "--all")
    assert said.code == 1
    assert "failed" in said.out
    assert "Zqxname" not in said.out + said.err


def test_the_files_of_a_client_with_a_broken_config_wait_and_the_others_go_on(tmp_path: Path) -> None:
    shell = shell_in(tmp_path, acme=ACME, beta="client_id: beta\nbogus: 1\n")
    shell.drop("acme_20250106.csv")
    shell.drop("beta_20250106.csv")
    said = shell.run("ingest", "--all", "--json")
    assert said.code == 1
    assert {f["file"]: f["status"] for f in said.json["files"]} == {
        "acme_20250106.csv": "succeeded",
        "beta_20250106.csv": "waiting",
    }
    assert audit(shell)["status"].to_list() == ["succeeded"], "the file is not at fault: no unroutable row"
    assert "beta.yaml:2, key 'bogus'" in shell.run("ingest", "--all").out
    shell.configure("beta", ACME.replace("acme", "beta"))
    assert shell.run("ingest", "--all").code == 0


def test_the_files_of_a_client_whose_engine_is_away_wait_and_the_others_go_on(tmp_path: Path) -> None:
    away = 'client_id: beta\nengine: {kind: spark, remote: "sc://127.0.0.1:9", above: 2KB}\n'
    shell = shell_in(tmp_path, acme=ACME, beta=away)
    large = csv_of(*(line(f"M{n}") for n in range(50)))
    for name, text in {"acme_20250106": None, "beta_20250106": large, "beta_20250107": None}.items():
        shell.drop(f"{name}.csv", *([text] if text else []))
    said = shell.run("ingest", "--all", "--json")
    assert said.code == 1
    assert [(f["file"], f["status"]) for f in said.json["files"]] == [
        ("acme_20250106.csv", "succeeded"), ("beta_20250107.csv", "succeeded"), ("beta_20250106.csv", "waiting"),
    ]  # fmt: skip
    assert "Spark" in said.json["files"][2]["message"]
    assert set(audit(shell)["status"]) == {"succeeded"}, "the file is not at fault: no failed row"
    assert {f["state"] for f in shell.run("status", "--json").json["landing"]} == {"succeeded", "waiting"}
    again = shell.run("ingest", "--all", "--json")
    assert sorted(f["status"] for f in again.json["files"]) == ["succeeded", "succeeded", "waiting"], "tried once a run"
    shell.configure("beta", ACME.replace("acme", "beta"))
    assert shell.run("ingest", "--all").code == 0


def test_a_file_that_is_still_being_written_waits(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    with shell.drop("acme_20250107.csv").open("a"):
        said = shell.run("ingest", "--all", "--json")
    assert said.code == 1
    assert [f["status"] for f in said.json["files"]] == ["succeeded", "waiting"]


def test_an_empty_landing_zone_is_a_success(shell: Shell) -> None:
    said = shell.run("ingest", "--all")
    assert said.code == 0
    assert "Nothing has landed" in said.out


def test_a_broken_dagster_instance_costs_one_warning_line_and_not_the_ingest(shell: Shell) -> None:
    home = shell.root / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text("run_storage: [this is no storage]\n")
    shell.drop("acme_20250106.csv")
    shell.run("keys", "init")
    said = shell.run("ingest", "--all", "--json", env={"DAGSTER_HOME": str(home)})
    assert said.code == 0
    assert said.json["files"][0]["status"] == "succeeded"
    assert "DAGSTER_HOME" in one_line(said)


def test_what_was_ingested_by_hand_shows_in_dagster(shell: Shell) -> None:
    home = shell.root / "dagster"
    home.mkdir()
    shutil.copy(REPO / "deploy" / "dagster.yaml", home / "dagster.yaml")
    shell.drop("acme_20250106.csv")
    assert shell.run("ingest", "--all", env={"DAGSTER_HOME": str(home)}).code == 0
    import dagster as dg

    with dg.DagsterInstance.from_config(str(home)) as instance:
        for asset in ("bronze_files", "quarantine", "silver", "audit"):
            assert instance.get_materialized_partitions(dg.AssetKey(asset)) == {"acme|2025-01-06"}, asset


# --- status ------------------------------------------------------------------------------------------------------


def test_status_shows_files_clients_and_broken_configs(tmp_path: Path) -> None:
    shell = shell_in(tmp_path, acme=ACME, late="client_id: late\n", broken="client_id: broken\nbogus: 1\n")
    shell.drop("acme_20250106.csv")
    assert shell.run("ingest", "acme_20250106.csv").code == 0
    shell.drop("acme_20250107.csv")
    shell.drop("nobody_20250107.csv")
    said = shell.run("status", "--json")
    assert said.code == 1, "a broken config is a finding"
    assert {f["file"]: f["state"] for f in said.json["landing"]} == {
        "acme_20250106.csv": "succeeded",
        "acme_20250107.csv": "waiting",
        "nobody_20250107.csv": "unroutable",
    }
    assert {c["client_id"]: c["last_file"] for c in said.json["clients"]} == {"acme": "acme_20250106.csv", "late": None}
    assert said.json["problems"][0].startswith("broken.yaml:2, key 'bogus'")


def test_status_waits_until_everything_is_decided(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    shell.run("keys", "init")
    later = threading.Timer(1.0, lambda: shell.run("ingest", "--all"))
    later.start()
    said = shell.run("status", "--wait", "60")
    later.join()
    assert said.code == 0
    assert "succeeded" in said.out


def test_status_gives_up_waiting_with_1(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    shell.run("keys", "init")
    start = time.monotonic()
    said = shell.run("status", "--wait", "1")
    assert said.code == 1
    assert "within 1 s" in one_line(said)
    assert time.monotonic() - start < 20


# --- export ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_export_writes_values_that_only_the_owner_reads(used: Shell, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"members.{suffix}"
    out.write_text("an older export, open to all")
    out.chmod(0o644)
    said = used.run("export", "--profile", "operations", "--out", out, "--json")
    assert said.code == 0, said.err
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [out], "nothing half-written stays"
    frame = pl.read_csv(out, infer_schema=False) if suffix == "csv" else pl.read_parquet(out)
    assert frame.height == said.json["members"] > 0
    assert set(frame["client_id"]) == {"acme", "globex"}
    assert frame["phone_number"].drop_nulls().str.contains(r"^\+1[0-9]{3}55501[0-9]{2}$").all()
    assert frame.columns == said.json["columns"]


def test_export_of_one_client_holds_that_client_only(used: Shell, tmp_path: Path) -> None:
    out = tmp_path / "globex.csv"
    assert used.run("export", "--out", out, "--client", "globex").code == 0
    assert set(pl.read_csv(out)["client_id"]) == {"globex"}
    said = used.run("export", "--out", out, "--client", "nobody")
    assert said.code == 2
    assert "nobody" in one_line(said)


@pytest.mark.parametrize("place", ["input/raw", "input/archive", "client_configs", "output"])
@pytest.mark.parametrize("words", [["export"], ["quarantine", "export", "--values"]], ids=["export", "quarantine"])
def test_no_export_lands_in_the_folders_of_the_installation(used: Shell, place: str, words: list[str]) -> None:
    folder = used.root / "home" / place
    folder.mkdir(exist_ok=True)
    said = used.run(*words, "--out", folder / "acme_20250101.csv")
    assert (said.code, not (folder / "acme_20250101.csv").exists()) == (2, True), said.out
    assert "not for people's files" in one_line(said)


def test_export_to_a_place_that_does_not_exist_is_one_sentence(used: Shell, tmp_path: Path) -> None:
    said = used.run("export", "--out", tmp_path / "absent" / "members.csv")
    assert said.code == 2
    assert "absent" in one_line(said)


# --- keys --------------------------------------------------------------------------------------------------------


def test_the_keyring_is_made_once_and_its_keys_are_never_shown(shell: Shell) -> None:
    made = shell.run("keys", "init", "--json")
    assert made.code == 0
    assert made.json == {"path": str(shell.keyring), "locked_by": None}
    assert stat.S_IMODE(shell.keyring.stat().st_mode) == 0o600
    again = shell.run("keys", "init")
    assert again.code == 1
    assert "left as it is" in one_line(again)
    shown = [shell.run("keys", "status"), shell.run("keys", "status", "--json"), shell.run("doctor")]
    secrets = re.findall(r"[0-9a-f]{64}", shell.keyring.read_text())
    assert secrets
    assert [said.code for said in shown] == [0, 0, 0]
    assert not [secret for secret in secrets for said in shown if secret in said.out + said.err]


def test_without_a_keyring_prod_refuses_and_makes_none(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    for words in (["ingest", "--all"], ["status"], ["keys", "status"], ["export", "--out", "x.csv"]):
        said = shell.run(*words, env={"HEALTHINGEST_ENV": "prod"})
        assert said.code == 1
        assert "keyring" in one_line(said)
    assert not shell.keyring.exists()


def test_the_first_use_in_dev_makes_a_keyring_with_one_notice(shell: Shell) -> None:
    assert "keyring was made at" in one_line(shell.run("ingest", "--all"))
    assert shell.run("ingest", "--all").err == ""


def test_a_keyring_inside_a_data_folder_is_refused(shell: Shell) -> None:
    inside = shell.root / "home" / "output" / "keyring.json"
    said = shell.run("keys", "init", env={"HEALTHINGEST_KEYRING": str(inside)})
    assert said.code == 1
    assert "data folder" in one_line(said)
    assert not inside.exists()


# --- doctor ------------------------------------------------------------------------------------------------------


def findings(said: Said) -> dict[str, tuple[str, str]]:
    return {f["subject"]: (f["state"], f["text"]) for f in said.json["findings"]}


def test_doctor_finds_a_used_installation_well(used: Shell) -> None:
    said = used.run("doctor", "--json")
    assert said.code == 0
    found = findings(said)
    assert {state for state, _ in found.values()} <= {"ok", "warn"}
    for subject in ("python", "deltalake", "dagster", "keyring", "table silver", "table audit", "validation"):
        assert found[subject][0] == "ok", subject
    assert found["DAGSTER_HOME"][0] == "warn"


def test_doctor_changes_nothing_on_a_fresh_installation(shell: Shell) -> None:
    before = sorted(shell.root.rglob("*"))
    assert shell.run("doctor").code == 0
    assert sorted(shell.root.rglob("*")) == before


def test_doctor_names_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    shell = shell_in(tmp_path, acme=ACME, broken="client_id: broken\nbogus: 1\n")
    shell.run("keys", "init")
    shell.keyring.chmod(0o644)
    said = shell.run("doctor", "--json", env={"PANDERA_USE_NARWHALS_BACKEND": "True"})
    assert said.code == 1
    found = findings(said)
    assert "chmod 600" in found["keyring"][1]
    assert found["client config"][1].startswith("broken.yaml:2, key 'bogus'")
    assert found["active clients"] == ("ok", "acme")


def test_doctor_says_which_role_names_what_there_is_not_and_that_a_broken_file_lets_nobody_read(shell: Shell) -> None:
    shell.configure("roles", "roles: {desk: {groups: [contact, kontact], clients: [acme, acmee], purposes: [x]}}\n")
    said = [f for f in shell.run("doctor", "--json").json["findings"] if f["subject"] == "roles"]
    assert [(f["state"], re.findall("group kontact|client acmee", f["text"])) for f in said] == [
        ("warn", ["group kontact"]), ("warn", ["client acmee"]),
    ]  # fmt: skip
    shell.configure("roles", "roles: {desk: {groups: [contact], clients: [acme], purposes: [x]}}\n")
    assert findings(shell.run("doctor", "--json"))["roles"] == ("ok", "desk")
    shell.configure("roles", "roles: {desk: {}}\n")
    broken = shell.run("doctor", "--json")
    assert broken.code == 1
    assert findings(broken)["roles"][0] == "fail"
    assert findings(broken)["roles"][1].startswith("roles.yaml:1")


def test_doctor_finds_a_damaged_table_and_still_looks_at_the_rest(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    shell.run("ingest", "--all")
    damage(shell)
    said = shell.run("doctor", "--json")
    assert said.code == 1
    assert findings(said)["validation"][0] == "ok"
    assert "fail" in {state for state, _ in findings(said).values()}


# --- what must never happen --------------------------------------------------------------------------------------


def damage(shell: Shell) -> None:
    """Put a member's value where silver's log is read, so that a parser's message could quote it."""
    for entry in (shell.root / "home" / "output" / "silver" / "_delta_log").glob("*.json"):
        entry.write_text('{"Zqxsecret": Zqxsecret\n')


def test_an_unexpected_error_is_one_line_that_quotes_nothing(shell: Shell) -> None:
    shell.drop("acme_20250106.csv")
    shell.run("ingest", "--all")
    damage(shell)
    shell.drop("acme_20250107.csv")
    ingest = shell.run("ingest", "acme_20250107.csv")
    told = [text for text in ingest.out.splitlines() if text.startswith("acme_20250107.csv: ")]
    assert len(told) == 1, "an error with one file is that file's sentence, so that the others still go in"
    assert "An unexpected" in told[0]
    others = [shell.run("status"), shell.run("export", "--out", "x.csv")]
    assert all("An unexpected" in one_line(said) for said in others)
    for said in (ingest, *others):
        assert said.code == 1
        assert "Zqxsecret" not in said.out + said.err
        assert "Traceback" not in said.out + said.err


def test_nothing_that_is_written_is_open_to_other_users(used: Shell) -> None:
    written = [p for top in ("home/output", "keys") for p in (used.root / top).rglob("*")]
    assert len(written) > 20
    assert [p for p in written if p.stat().st_mode & 0o077] == []


def test_the_process_leaves_no_core_dump() -> None:
    code = (
        "import resource, sys; sys.argv = ['healthingest', '--help']; from healthingest.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('core:', resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("core: (0, 0)\n")


# --- the scripts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script", ["scripts/setup.sh", "scripts/run_pipeline.sh", "scripts/lint_and_test.sh", ".ci/run"]
)
def test_a_script_is_executable_strict_and_knows_no_place_or_host_of_one_machine(script: str) -> None:
    path = REPO / script
    text = path.read_text()
    assert os.access(path, os.X_OK)
    assert subprocess.run(["bash", "-n", path]).returncode == 0
    assert "set -euo pipefail" in text
    places = "|".join(f"/{folder}/" for folder in ("work", "root", "home"))
    assert not re.search(rf"{places}|https?://(?!127\.0\.0\.1)", text)


def test_whatever_run_pipeline_serves_is_served_on_loopback() -> None:
    lines = (REPO / "scripts" / "run_pipeline.sh").read_text().splitlines()
    served = [text for text in lines if re.search(r"dagster dev|http\.server", text) and not text.startswith("#")]
    assert len(served) == 2
    assert all(re.search(r" (-h|--bind) 127\.0\.0\.1 ", text) for text in served)


def test_run_pipeline_refuses_an_option_it_does_not_know(shell: Shell) -> None:
    done = subprocess.run(
        [REPO / "scripts" / "run_pipeline.sh", "--twice"], env=shell.environment(), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "--once" in done.stderr


def test_an_error_with_json_is_one_document_too(shell: Shell) -> None:
    said = shell.run("export", "--out", "x.txt", "--json")
    assert said.code == 2
    assert json.loads(said.out)["error"] == "usage"
    assert one_line(said)


def test_an_export_into_the_data_folder_is_refused(used: Shell) -> None:
    said = used.run("export", "--out", used.root / "home" / "output" / "m.csv")
    assert said.code in {1, 2}
    assert "output" in one_line(said)


def test_a_mistyped_home_is_no_new_installation(shell: Shell, tmp_path: Path) -> None:
    said = shell.run("ingest", "--all", env={"HEALTHINGEST_HOME": str(tmp_path / "typo")})
    assert said.code == 2
    assert not (tmp_path / "typo").exists()


def test_an_object_store_that_is_away_is_one_sentence_and_makes_no_folder(shell: Shell) -> None:
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true"}
    keys = {"AWS_ACCESS_KEY_ID": "canary-key-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
    said = shell.run("status", env={"HEALTHINGEST_OUTPUT": "s3://bucket/prefix"} | away | keys)
    assert said.code == 1
    assert "s3://bucket/prefix" in one_line(said)
    assert "canary" not in said.out + said.err
    assert not [path for path in shell.root.rglob("*") if "bucket" in path.name or path.name.startswith("s3")]


def test_an_address_that_is_no_store_we_know_is_refused_and_makes_no_folder(shell: Shell) -> None:
    said = shell.run("status", env={"HEALTHINGEST_OUTPUT": "ftp://bucket/prefix"})
    assert said.code == 2
    assert "HEALTHINGEST_OUTPUT" in one_line(said)
    assert not [path for path in shell.root.rglob("*") if "bucket" in path.name or path.name.startswith("ftp")]
