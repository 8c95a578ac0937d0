"""What every test shares: a whole installation in a temporary folder, and a way to land files in it.

`home` is a real `Platform` (real keyring, real Delta tables) with one client, `acme`, on the shipped member contract.
Everything that changes configs returns a freshly opened Platform, since an open one does not reload them.
"""

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from healthingest.contracts.clients import Client, load_client
from healthingest.ingest import ingest, register
from healthingest.model import Outcome
from healthingest.places import Places
from healthingest.platform import Platform

REPO = Path(__file__).resolve().parent.parent
#: The member contract that ships; tests use it as clients do.
CONTRACTS = REPO / "client_configs" / "contracts"
#: Test data beside the repository; a test that needs it skips where it is absent.
DATA = REPO.parent / "shared" / "data"

HEADER = "member_id,first_name,last_name,dob,gender,address,city,state,zip,phone_number,email"
_runs = itertools.count(1)


def examples(number: int) -> int:
    """How many inputs a property test tries: fifty times as many with `scripts/lint_and_test.sh --nightly`."""
    return number * 50 if os.environ.get("HEALTHINGEST_NIGHTLY") else number


def line(member_id: str, **values: str) -> str:
    """One CSV record of HEADER that passes the member contract; `values` replaces single fields, as raw CSV."""
    fields = {
        "member_id": member_id, "first_name": "Ada", "last_name": "Lovelace", "dob": "1980-12-10", "gender": "F",
        "address": "12 Main St", "city": "Boston", "state": "MA", "zip": "02139", "phone_number": "617-253-1000",
        "email": "ada@example.com",
    } | values  # fmt: skip
    return ",".join(fields.values())


def csv_of(*lines: str, header: str = HEADER, end: str = "\n") -> str:
    """A file's text: the header and these lines, each with its end."""
    return "".join(part + end for part in (header, *lines))


def env_in(root: Path) -> dict[str, str]:
    """What names an installation below `root`, its keyring beside (never in) the data folders.

    With HEALTHINGEST_TEST_STORE, the URI of a bucket, landing zone and output are there: so any test runs on it.
    """
    env = {"HEALTHINGEST_HOME": str(root / "home"), "HEALTHINGEST_KEYRING": str(root / "keys" / "keyring.json")}
    return env | stored(root)


def stored(root: Path) -> dict[str, str]:
    """What puts landing zone and output into the store of HEALTHINGEST_TEST_STORE, if there is one."""
    store = os.environ.get("HEALTHINGEST_TEST_STORE")
    if not store:
        return {}
    own = f"{store}/{hashlib.sha256(str(root).encode()).hexdigest()[:16]}"
    return {"HEALTHINGEST_INPUT": f"{own}/input/raw", "HEALTHINGEST_OUTPUT": f"{own}/output"}


def env_of(places: Places) -> dict[str, str]:
    """The environment in which a process finds an installation."""
    return os.environ | {
        "HEALTHINGEST_HOME": str(places.home), "HEALTHINGEST_KEYRING": str(places.keyring),
        "HEALTHINGEST_INPUT": str(places.landing), "HEALTHINGEST_OUTPUT": str(places.output),
    }  # fmt: skip


def places_in(root: Path, **changes: object) -> Places:
    """The places of an installation below `root`."""
    return Places.from_env(env_in(root) | {name: str(value) for name, value in changes.items()})


def install(root: Path, configs: Mapping[str, str] | None = None) -> Platform:
    """Make an installation below `root` with these client configs (file stem -> YAML) and open it."""
    places = places_in(root)
    shutil.copytree(CONTRACTS, places.configs / "contracts", dirs_exist_ok=True)
    places.landing.mkdir(parents=True, exist_ok=True)
    for stem, text in (configs or {"acme": "client_id: acme\n"}).items():
        (places.configs / f"{stem}.yaml").write_text(text)
    return Platform.open(places)


def configure(home: Platform, text: str, stem: str = "acme") -> Platform:
    """Write one client's YAML and open the installation anew."""
    (home.places.configs / f"{stem}.yaml").write_text(text)
    return Platform.open(home.places)


def drop(home: Platform, name: str, text: str | bytes) -> Path:
    """Land one complete file."""
    path = home.places.landing / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def deliver(home: Platform, name: str, text: str | bytes) -> Outcome:
    """Land one file and take it its whole way."""
    return ingest(home, register(home, drop(home, name, text)), run_id=f"test-{next(_runs)}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """An installation with the client `acme`; the environment names it too."""
    for name, value in env_in(tmp_path).items():
        monkeypatch.setenv(name, value)
    return install(tmp_path)


@pytest.fixture
def client_of(tmp_path: Path) -> Callable[[str], Client]:
    """A client from its YAML (without client_id), on the shipped contract."""
    configs = tmp_path / "client_configs"

    def load(text: str = "") -> Client:
        shutil.copytree(CONTRACTS, configs / "contracts", dirs_exist_ok=True)
        file = configs / "acme.yaml"
        file.write_text(f"client_id: acme\n{text}")
        return load_client(file, configs)

    return load
