"""`healthingest doctor` says what is wider than needed, and how to close it; the tokens it guards cannot be guessed."""

import hashlib
import hmac
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from healthingest.doctor import Finding, examine
from healthingest.hardening import harden
from healthingest.platform import Platform
from healthingest.privacy import tokens
from healthingest_tests.conftest import configure, csv_of, deliver, env_of, install, line, places_in


def found(home: Platform, **changes: object) -> list[Finding]:
    places = places_in(home.places.home.parent, **changes) if changes else home.places
    return [f for f in examine(places) if f.subject == "permissions"]


@pytest.fixture
def closed(home: Platform, monkeypatch: pytest.MonkeyPatch) -> Platform:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2", zip="1")))
    subprocess.run(["chmod", "-R", "go=", str(home.places.home)], check=True)
    return home


def test_what_is_closed_is_said_to_be(closed: Platform) -> None:
    assert found(closed) == [Finding("ok", "permissions", "nothing is wider than needed")]


@pytest.mark.parametrize(
    ("place", "mode", "state", "said"),
    [
        ("keys", 0o755, "fail", "keyring's folder"),
        ("home/client_configs/acme.yaml", 0o602, "fail", "Everybody can change"),
        ("home/input/raw", 0o701, "warn", "Everybody on this machine"),
        ("home/output/checkpoint/audit/_delta_log", 0o705, "fail", "1 files or folders below"),
        ("home/output/bronze/acme", 0o750, "warn", "open to a group"),
        ("home/output/silver/_delta_log", 0o750, "ok", "nothing is wider"),
        ("home/output", 0o710, "ok", "nothing is wider"),
        ("home", 0o707, "fail", "in the place of"),
        ("home", 0o1707, "ok", "nothing is wider"),
        ("home/output", 0o730, "fail", "can be changed by a group"),
        ("home/output/silver/_delta_log", 0o770, "fail", "can be changed by a group"),
        ("home/output/keyring.id", 0o660, "fail", "can be changed by a group"),
        ("home/output/keyring.id", 0o640, "ok", "nothing is wider"),
    ],
)
def test_what_is_open_is_told_with_the_command_that_closes_it(
    closed: Platform, place: str, mode: int, state: str, said: str
) -> None:
    path = closed.places.home.parent / place
    path.chmod(mode)
    (finding,) = found(closed)
    assert finding.state == state
    assert said in finding.text
    if state != "ok":
        command = finding.text.split("run: ")[1].split()
        assert command[0] == "chmod"
        subprocess.run(command, check=True)
        assert found(closed)[0].state == "ok"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a file away")
def test_what_belongs_to_another_user_is_told_but_for_the_chains_of_those_who_read(closed: Platform) -> None:
    events = closed.places.output / "checkpoint" / "events"
    closed.lake.events.append("acme", "read", "analyst", {})
    os.chown(events / "acme.jsonl", 65534, 65534)
    assert found(closed)[0].state == "ok"
    os.chown(closed.places.output / "silver", 65534, 65534)
    (finding,) = found(closed)
    assert (finding.state, "belong to another user" in finding.text) == ("fail", True)
    subprocess.run(finding.text.split("run: ")[1].split(), check=True)
    assert found(closed)[0].state == "ok"


def test_a_link_in_the_output_folder_is_told(closed: Platform) -> None:
    silver, elsewhere = closed.places.output / "silver", closed.places.home.parent / "elsewhere"
    silver.rename(elsewhere)
    silver.symlink_to(elsewhere)
    (finding,) = found(closed)
    assert (finding.state, "are links" in finding.text) == ("warn", True)


def test_in_production_a_keyring_without_a_lock_and_a_process_of_root_are_findings(closed: Platform) -> None:
    texts = [f.text for f in found(closed, HEALTHINGEST_ENV="prod")]
    assert any("keys lock" in text for text in texts)


def test_a_process_that_is_hardened_leaves_nothing_open(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        harden()
        home = install(tmp_path)
        deliver(configure(home, "client_id: acme\n"), "acme_20250101.csv", csv_of(line("M1"), line("M2", zip="1")))
        (home.places.landing.chmod(0o700), home.places.keyring.parent.chmod(0o700))
        open_ = [p for p in home.places.output.rglob("*") if p.stat().st_mode & 0o077]
        assert open_ == []
    finally:
        os.umask(before)


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
@pytest.mark.parametrize(
    "start",
    [
        "from healthingest.definitions import defs; defs()",
        "sys.argv[1:] = ['keys', 'status']\nfrom healthingest.cli import main\ntry: main()\nexcept SystemExit: pass",
    ],
    ids=["what Dagster loads", "the command"],
)
def test_every_way_in_closes_its_process_before_it_reads(home: Platform, start: str) -> None:
    asked = "os.umask(0o77), resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)"
    code = f"import ctypes, os, resource, sys\nos.umask(0o22)\n{start}\nprint({asked})"
    env = env_of(home.places)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{0o77} (0, 0) 0"  # umask, size of a core dump, dumpable


def test_trying_every_social_security_number_without_the_key_finds_nobody(tmp_path: Path) -> None:
    """A million of the nine-digit numbers, as ids, by whoever has the code, silver and a keyring of their own."""
    home = install(tmp_path / "ours", {name: f"client_id: {name}\n" for name in ("acme", "globex")})
    thief = install(tmp_path / "theirs", {"acme": "client_id: acme\n"})
    ids = pl.Series([f"{number:09d}" for number in range(219_000_000, 220_000_000)])
    member = pl.Series(["219099998"])
    token = tokens.member_token(home.keyring, "acme", member)[0]
    assert not tokens.member_token(thief.keyring, "acme", ids).eq(token).any()
    assert tokens.member_token(home.keyring, "globex", member)[0] != token  # another client: another token
    assert tokens.member_token(home.keyring, "acme", ids).eq(token).sum() == 1  # the key finds it, of course
    text = f"mt1\x1facme\x1f{member[0]}".encode()
    unkeyed = [hashlib.sha256(text), hashlib.sha256(member[0].encode()), hmac.new(b"", text, hashlib.sha256)]
    keyed = [hmac.new(key, text, hashlib.sha256) for key in (b"acme", home.keyring.keyring_id.encode())]
    assert token not in {digest.hexdigest()[:32] for digest in (*unkeyed, *keyed)}
