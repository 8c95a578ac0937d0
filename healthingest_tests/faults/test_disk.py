"""A full or read-only disk: one readable sentence, nothing half-written, and the next run finishes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from healthingest.platform import Platform
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import csv_of, drop, env_of, install, line
from healthingest_tests.histories import change_feed_is_real

_HEALTHINGEST = f"{sys.executable} -c 'from healthingest.cli import main; main()'"


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    return (
        subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
    )


pytestmark = pytest.mark.skipif(not can_mount(), reason="no permission to mount a small tmpfs here")


@pytest.fixture
def home(tmp_path: Path) -> Platform:
    """Two days of one client, landed; the output folder will be a small disk."""
    made = install(tmp_path)
    for day in (6, 7):
        rows = [line(f"M{n}", city=f"City {n} {day if n % 7 == 0 else 0}") for n in range(3000)]
        drop(made, f"acme_2025010{day}.csv", csv_of(*rows, *[line(f"B{n}", zip="12") for n in range(100)]))
    return made


def run(home: Platform, *script: str) -> str:
    """Run shell lines where the output folder can be a mount of its own; what they printed."""
    env = env_of(home.places) | {"OUT": str(home.places.output), "KEEP": str(home.places.home / "kept"),
    }  # fmt: skip
    home.places.output.mkdir(exist_ok=True)
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", "\n".join(script)], env=env, capture_output=True, text=True, timeout=180
    )
    assert "Traceback" not in done.stderr
    return done.stdout


def whole(home: Platform) -> None:
    """Both deliveries are in silver as if nothing had happened."""
    audit = home.lake.audit.frame(["file_name", "status", "accepted", "inserted", "updated", "rejected"]).sort(
        "file_name"
    )
    assert audit.rows() == [
        ("acme_20250106.csv", "succeeded", 3000, 3000, 0, 100), ("acme_20250107.csv", "succeeded", 3000, 0, 429, 100),
    ]  # fmt: skip
    assert home.lake.silver.frame(["member_token"]).n_unique() == 3000
    assert home.lake.quarantine.frame(["record_no"]).height == 200
    change_feed_is_real(home)


@pytest.mark.parametrize("kilobytes", [40, 150, 300, 450, 600, 800, 1000, 1300])
def test_a_disk_that_fills_up_gives_a_sentence_and_the_next_run_finishes(home: Platform, kilobytes: int) -> None:
    said = run(
        home,
        "mount -t tmpfs -o mode=700 tmpfs $OUT",
        f"{_HEALTHINGEST} doctor >/dev/null 2>&1",  # what must be there before: the keyring's mark
        f"mount -o remount,size={kilobytes}k $OUT",
        f"{_HEALTHINGEST} ingest --all --json >$OUT/../first.json 2>$OUT/../first.err; echo first $?",
        "mount -o remount,size=500m $OUT",
        f"{_HEALTHINGEST} ingest --all >/dev/null 2>$OUT/../second.err; echo second $?",
        "cp -r $OUT $KEEP",
    )
    ended = dict(line.split() for line in said.splitlines())
    assert ended["second"] == "0", (home.places.home / "second.err").read_text()
    if ended["first"] != "0":
        told = json.loads((home.places.home / "first.json").read_text())
        messages = [f["message"] for f in told.get("files", []) if f["status"] == "error"] or [told.get("message")]
        assert all("No space left" in str(message) and len(str(message)) < 300 for message in messages), messages
    remove_tree(home.places.output)  # what the small disk hid
    (home.places.home / "kept").rename(home.places.output)
    whole(Platform.open(home.places))


def test_a_read_only_disk_gives_a_sentence_and_the_next_run_finishes(home: Platform) -> None:
    said = run(
        home,
        "mount -t tmpfs -o mode=700 tmpfs $OUT",
        f"{_HEALTHINGEST} ingest acme_20250106.csv >/dev/null 2>&1",
        "mount -o remount,ro $OUT",
        f"{_HEALTHINGEST} ingest acme_20250107.csv --json; echo; echo first $?",
        "mount -o remount,rw $OUT",
        f"{_HEALTHINGEST} ingest --all >/dev/null 2>&1; echo second $?",
        "cp -r $OUT $KEEP",
    )
    assert "Read-only file system" in said
    assert said.splitlines()[-1] == "second 0"
    remove_tree(home.places.output)  # what the small disk hid
    (home.places.home / "kept").rename(home.places.output)
    whole(Platform.open(home.places))


def test_a_read_only_keyring_lets_clients_go_on_that_have_keys_and_says_which_has_none(home: Platform) -> None:
    (home.places.configs / "globex.yaml").write_text("client_id: globex\n")
    drop(home, "globex_20250106.csv", csv_of(line("G1")))
    said = run(
        home,
        'KEYS=$(dirname "$HEALTHINGEST_KEYRING"); mount --bind $KEYS $KEYS; mount -o remount,ro,bind $KEYS',
        f"{_HEALTHINGEST} ingest --all 2>&1; echo; echo first $?",
        f"{_HEALTHINGEST} keys rotate acme 2>&1",
    )
    assert "This keyring holds no key for bronze of globex" in said
    assert said.splitlines()[-1].startswith("healthingest: Read-only file system")
    whole(home)
