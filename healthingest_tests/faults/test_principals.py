"""Least privilege on one machine, with real users: what each principal can do, and what it is refused.

Users and groups are made for the test by Debian's own tools, and removed; it needs root and the package acl.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from healthingest.doctor import examine
from healthingest.platform import Platform
from healthingest.privacy.keyring_file import write_copy
from healthingest.privacy.roles import issue, role_of
from healthingest_tests.conftest import REPO, csv_of, deliver, install, line

INGESTION, STEWARD, ANALYST = "hi-test-ingest", "hi-test-steward", "hi-test-analyst"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("setfacl") or not shutil.which("useradd"),
    reason="needs root, useradd and setfacl (apt-get install acl)",
)
#: Becomes another user once everything was used before: that user may not be able to read the code's own files.
_AS = """
import os, pwd, sys, tempfile
from pathlib import Path
import healthingest.alerting.watch
from healthingest.hardening import harden
from healthingest.platform import Platform
from healthingest.reading import read_silver
from healthingest_tests.conftest import csv_of, deliver, install, line
harden()
with tempfile.TemporaryDirectory() as folder:
    used = install(Path(folder))
    deliver(used, "acme_20250101.csv", csv_of(line("M1"), line("M2", zip="12")))
    deliver(used, "acme_20250102.csv", csv_of(line("M1", city="New"), line("M3")))
    read_silver(role="operations", places=used.places).collect()
    used.lake.quarantine.frame(["reasons"])
user = pwd.getpwnam(sys.argv[1])
os.initgroups(user.pw_name, user.pw_gid)
os.setgid(user.pw_gid)
os.setuid(user.pw_uid)
exec(sys.argv[2])
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that all users can pass through, as pytest's own is not, with the three users made for it."""
    folder = Path("/tmp") / f"hi-principals-{os.getpid()}"
    folder.mkdir(mode=0o711)
    folder.chmod(0o711)
    for name in (INGESTION, STEWARD, ANALYST):
        subprocess.run(["useradd", "--system", "--user-group", "--no-create-home", name], check=True)
    try:
        yield folder
    finally:
        for name in (INGESTION, STEWARD, ANALYST):
            subprocess.run(["userdel", name], check=False)
        shutil.rmtree(folder)


def as_user(name: str, home: Platform, keyring: Path, code: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(keyring)}
    return subprocess.run([sys.executable, "-c", _AS, name, code], env=env, capture_output=True, text=True, cwd=REPO)


def refused(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode != 0 and ("PermissionError" in done.stderr or "Permission denied" in done.stderr)


def test_each_principal_can_do_its_work_and_no_more(root: Path) -> None:
    home = install(root, {"acme": "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n"})
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2", zip="12")))
    keys = {name: root / f"{name}.json" for name in (INGESTION, STEWARD, ANALYST)}
    shutil.copy(home.places.keyring, keys[INGESTION])
    (home.places.configs / "roles.yaml").write_text(
        "roles:\n  desk: {groups: [identity, contact], rejected: true, purposes: [support]}\n"
        "  analyst: {groups: [], purposes: [analytics]}\n"
    )
    for name, role in ((STEWARD, "desk"), (ANALYST, "analyst")):
        write_copy(issue(home.keyring, role, role_of(home.places.configs, role)), keys[name], None)
    script = REPO / "deploy" / "posix" / "setup.sh"
    subprocess.run([script, home.places.home, INGESTION, STEWARD, ANALYST], check=True, capture_output=True)
    for name, file in keys.items():
        shutil.chown(file, name)
    (home.places.landing / "acme_20250102.csv").write_text(csv_of(line("M1", city="New"), line("M3")))

    ingest = """
from healthingest.ingest import ingest, register
from healthingest.alerting.watch import Watch
p = Platform.open(); o = ingest(p, register(p, p.places.landing / "acme_20250102.csv"), run_id="x"); print(o.status)
Watch.over(p.places).look()
"""
    done = as_user(INGESTION, home, keys[INGESTION], ingest)
    assert done.stdout == "succeeded\n", done.stderr
    read = """
from healthingest.reading import read_silver
f = read_silver(role="{role}", purpose="{purpose}").collect().sort("zip3", "city", nulls_last=True)
print(f.height, f["city"].to_list(), f["first_name"].to_list(), f["state"].to_list())
"""
    done = as_user(STEWARD, home, keys[STEWARD], read.format(role="desk", purpose="support"))
    assert done.stdout == "2 ['Boston', 'New'] ['Ada', 'Ada'] ['MA', 'MA']\n", done.stderr
    done = as_user(ANALYST, home, keys[ANALYST], read.format(role="analyst", purpose="analytics"))
    assert done.stdout == "2 [None, None] [None, None] ['MA', 'MA']\n", done.stderr
    rejected = "import polars as pl; p = Platform.open(); print(p.lake.quarantine.frame(['reasons']).height)"
    assert as_user(STEWARD, home, keys[STEWARD], rejected).stdout == "1\n"

    alerts = """
from healthingest.alerting.store import AlertStore
print(len(AlertStore.at(Platform.open().places.output).load().book.alerts))
"""
    assert as_user(STEWARD, home, keys[STEWARD], alerts).stdout == "0\n"

    places = home.places
    for name, code in {
        ANALYST: [
            rejected,
            alerts,
            f"print(open('{keys[INGESTION]}').read())",
            f"import os; os.listdir('{places.landing}')",
            f"import os; os.listdir('{places.output}')",
            f"import os; os.listdir('{places.output}/bronze/acme')",
            f"open('{places.output}/silver/x', 'w')",
            f"open('{places.configs}/acme.yaml', 'a')",
        ],
        STEWARD: [
            f"print(open('{keys[INGESTION]}').read())",
            f"import os; os.listdir('{places.output}/bronze/acme')",
            f"open('{places.output}/quarantine/x', 'w')",
            f"import os; os.listdir('{places.landing}')",
        ],
        "nobody": [f"import os; os.listdir('{places.home}')", f"open('{places.output}/keyring.id').read()"],
    }.items():  # fmt: skip
        for attempt in code:
            done = as_user(name, home, keys.get(name, keys[ANALYST]), attempt)
            assert refused(done), (name, attempt, done.stdout, done.stderr)
    events = as_user(INGESTION, home, keys[INGESTION], "print(Platform.open().lake.events.faults())")
    assert events.stdout == "[]\n", events.stderr
    kinds = [(e["role"], e["who"]) for e in Platform.open(places).lake.events.read("acme")]
    assert kinds == [("desk", STEWARD), ("analyst", ANALYST)]
    wide = [f.text for f in examine(places) if f.subject == "permissions" and f.state != "ok"]
    assert [text for text in wide if "output" in text] == []
