"""The keyring: made once, never silently, locked at rest by a key service, and nothing of it is ever shown."""

import base64
import copy
import json
import os
import pickle
import re
import secrets
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from healthingest import read_silver
from healthingest.erase import Request, erase_member
from healthingest.errors import KeyringError
from healthingest.places import Places
from healthingest.platform import Platform
from healthingest.privacy import tokens
from healthingest.privacy.kek import kek_of
from healthingest.privacy.keyring import CLIENT_PURPOSES, SHARED, SHARED_PURPOSES, Keyring
from healthingest.privacy.keyring_file import (
    GENERATIONS_FILE,
    add_generation,
    destroy_keys,
    give_keys,
    init_keyring,
    keyring_status,
    load_keyring,
    open_keyring,
    relock,
    write_copy,
)
from healthingest_tests.conftest import configure, csv_of, deliver, env_of, install, line, places_in

CLIENTS = {"acme": ["identity", "contact"], "globex": ["identity"]}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_in(tmp_path)


@pytest.fixture
def keyring(places: Places) -> Keyring:
    return give_keys(places, open_keyring(places), CLIENTS)


def secrets_of(places: Places) -> dict[str, str]:
    """Scope and purpose -> key, as the file holds them."""
    held = json.loads(places.keyring.read_text())["keys"]
    return {f"{scope} {purpose}": keys["1"] for scope in held for purpose, keys in held[scope].items()}


def test_dev_makes_a_private_keyring_once_and_says_so_once(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    first = open_keyring(places)
    notice = capsys.readouterr().err
    assert str(places.keyring) in notice
    assert notice.count("\n") == 1
    assert not any(secret in notice for secret in secrets_of(places).values())
    assert stat.S_IMODE(places.keyring.stat().st_mode) == 0o600
    assert stat.S_IMODE(places.keyring.parent.stat().st_mode) == 0o700
    assert open_keyring(places) == first
    assert capsys.readouterr() == ("", "")
    assert [p.name for p in places.keyring.parent.iterdir()] == [places.keyring.name]


def test_prod_makes_no_keyring(tmp_path: Path) -> None:
    places = places_in(tmp_path, HEALTHINGEST_ENV="prod")
    with pytest.raises(KeyringError, match="keys init"):
        open_keyring(places)
    assert not places.keyring.exists()
    assert not places.output.exists()
    init_keyring(places)
    assert open_keyring(places).keyring_id


def test_a_keyring_is_never_made_over_another(places: Places) -> None:
    init_keyring(places)
    before = places.keyring.read_bytes()
    with pytest.raises(KeyringError, match="exists"):
        init_keyring(places)
    assert places.keyring.read_bytes() == before


@pytest.mark.parametrize("folder", ["output", "input/raw", "client_configs"])
def test_a_keyring_in_a_data_folder_is_refused(tmp_path: Path, folder: str) -> None:
    inside = places_in(tmp_path, HEALTHINGEST_KEYRING=tmp_path / "home" / folder / "deep" / "keyring.json")
    with pytest.raises(KeyringError, match="data folder"):
        open_keyring(inside)
    assert not inside.keyring.exists()
    init_keyring(good := places_in(tmp_path))
    inside.keyring.parent.mkdir(parents=True)
    shutil.copy(good.keyring, inside.keyring)
    with pytest.raises(KeyringError, match="data folder"):
        load_keyring(inside)


def test_a_link_out_of_a_data_folder_into_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home" / "output").mkdir(parents=True)
    (tmp_path / "keys").symlink_to(tmp_path / "home" / "output")
    with pytest.raises(KeyringError, match="data folder"):
        open_keyring(places_in(tmp_path))


def test_another_keyring_than_the_datas_is_refused(places: Places, tmp_path: Path) -> None:
    open_keyring(places)
    other = places_in(
        tmp_path, HEALTHINGEST_KEYRING=tmp_path / "other" / "keyring.json", HEALTHINGEST_OUTPUT=tmp_path / "o2"
    )
    open_keyring(other)
    shutil.copy(other.keyring, places.keyring)
    with pytest.raises(KeyringError, match="was written with keyring"):
        open_keyring(places)
    with pytest.raises(KeyringError, match="was written with keyring"):
        load_keyring(places)


def test_a_lost_keyring_with_data_is_an_error_and_never_a_new_key(places: Places) -> None:
    open_keyring(places)
    places.keyring.unlink()
    with pytest.raises(KeyringError, match=r"[Rr]estore"):
        open_keyring(places)
    with pytest.raises(KeyringError, match=r"[Rr]estore"):
        init_keyring(places)
    assert not places.keyring.exists()


@pytest.mark.parametrize("data", ["silver", "vault", "bronze", "quarantine"])
def test_data_whose_note_is_lost_gets_no_new_key_either(places: Places, data: str) -> None:
    (places.output / data).mkdir(parents=True)
    with pytest.raises(KeyringError):
        open_keyring(places)
    assert not places.keyring.exists()


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_keyring_open_to_others_is_refused(places: Places, mode: int) -> None:
    open_keyring(places)
    places.keyring.chmod(mode)
    with pytest.raises(KeyringError, match="chmod 600"):
        open_keyring(places)


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: "",
        lambda body: "[]",
        lambda body: json.dumps(body)[:-20],
        lambda body: json.dumps(body | {"keys": {}}).replace("keyring_id", "id"),
        lambda body: json.dumps(body | {"keys": body["keys"] | {SHARED: {"file": {"1": "00"}}}}),
        lambda body: json.dumps(body | {"keys": body["keys"] | {SHARED: {"file": {"1": "zz" * 32}}}}),
        lambda body: json.dumps(body | {"keys": body["keys"] | {"acme": {"bronze": body["keys"][SHARED]["file"]}}}),
        lambda body: json.dumps(body | {"keys": {SHARED: {"file": {}}}}),
        lambda body: json.dumps(body | {"format": 1}),
    ],
    ids=["empty", "list", "cut", "no id", "short", "no hex", "same key twice", "no version", "older"],
)
def test_a_damaged_keyring_is_refused_without_showing_it(places: Places, damage: object) -> None:
    open_keyring(places)
    body = json.loads(places.keyring.read_text())
    del body["check"]  # so that each is told by itself
    places.keyring.write_text(damage(body))  # type: ignore[operator]
    with pytest.raises(KeyringError, match="keyring") as caught:
        open_keyring(places)
    assert not any(keys["1"] in str(caught.value) for keys in body["keys"][SHARED].values())
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_keyring_with_any_digit_changed_is_refused(keyring: Keyring, places: Places) -> None:
    text = places.keyring.read_text()
    for found in re.finditer(r'"([0-9a-f]{64})"', text):
        at = found.start(1) + 7
        places.keyring.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])
        with pytest.raises(KeyringError, match="damaged keys; restore it"):
            load_keyring(places)
    places.keyring.write_text(text)
    assert load_keyring(places) == keyring
    body = json.loads(text)
    del body["keys"]["acme"]["erasure"]
    places.keyring.write_text(json.dumps(body))
    with pytest.raises(KeyringError, match="damaged keys; restore it"):
        load_keyring(places)


def test_the_keyring_does_not_leave_the_process(keyring: Keyring, places: Places) -> None:
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="pickled"):
            way(keyring)
    shown = repr(keyring) + str(keyring) + f"{keyring}" + json.dumps(keyring_status(places))
    assert keyring.keyring_id in shown
    for purpose, secret in secrets_of(places).items():
        raw = bytes.fromhex(secret)
        assert secret not in shown
        assert repr(raw)[2:-1] not in shown, purpose


def test_every_purpose_client_and_context_has_its_own_key_by_hkdf(keyring: Keyring, places: Places) -> None:
    made = [
        keyring.derive(p, SHARED, *context) for p in SHARED_PURPOSES for context in ((), ("a",), ("b",), ("a", "b"))
    ]
    made += [
        keyring.derive(p, client, *context)
        for p in CLIENT_PURPOSES for client in CLIENTS for context in ((), ("a",), ("b",))
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    info = b"healthingest/2\x1fbronze\x1facme\x1fx"
    secret = bytes.fromhex(secrets_of(places)["acme bronze"])
    assert keyring.derive("bronze", "acme", "x") == HKDF(SHA256(), 32, None, info).derive(secret)


def test_a_key_that_is_not_held_is_said_and_not_derived(keyring: Keyring) -> None:
    for purpose, client in (("vault/contact", "globex"), ("bronze", "initech"), ("bronze", SHARED)):
        assert not keyring.holds(purpose, client)
        with pytest.raises(KeyringError, match=f"no key for {purpose}"):
            keyring.derive(purpose, client)


def test_a_keyring_can_only_be_narrowed(keyring: Keyring) -> None:
    less = keyring.narrowed({"vault/footer", "vault/contact"}, {"acme"})
    assert less.clients == ["acme"]
    assert less.derive("vault/contact", "acme") == keyring.derive("vault/contact", "acme")
    again = less.narrowed({"vault/footer", "vault/identity", "file"}, {"acme", "globex"})
    assert [p for held in again.keys.values() for p in held] == ["vault/footer"]


# --- clients --------------------------------------------------------------------------------------------------


def test_a_new_client_gets_keys_of_its_own_and_it_is_said(
    keyring: Keyring, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    more = give_keys(places, keyring, CLIENTS | {"initech": ["identity"]})
    said = capsys.readouterr().err
    assert "keys of initech were added" in said
    assert said.count("\n") == 1
    assert more.keys["acme"] == keyring.keys["acme"]
    assert load_keyring(places) == more
    assert give_keys(places, more, CLIENTS) == more
    assert capsys.readouterr().err == ""


def test_a_new_column_group_gets_a_key_and_the_others_keep_theirs(keyring: Keyring, places: Places) -> None:
    more = give_keys(places, keyring, {"globex": ["identity", "clinical"]})
    assert more.holds("vault/clinical", "globex")
    assert not more.holds("vault/clinical", "acme")
    assert {p: k for p, k in more.keys["globex"].items() if p != "vault/clinical"} == keyring.keys["globex"]


def test_clients_that_come_at_once_all_get_keys_and_one_set_each(keyring: Keyring, places: Places) -> None:
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda n: give_keys(places, keyring, {f"c{n % 4}": ["identity"]}), range(8)))
    final = load_keyring(places)
    assert final.clients == ["acme", "c0", "c1", "c2", "c3", "globex"]
    for number, one in enumerate(got):
        assert one.keys[f"c{number % 4}"] == final.keys[f"c{number % 4}"]


def test_a_client_with_data_whose_keys_are_gone_gets_no_new_ones_and_others_go_on(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\n"})
    backup = home.places.keyring.read_bytes()
    (home.places.configs / "globex.yaml").write_text("client_id: globex\n")
    home = Platform.open(home.places)
    assert deliver(home, "globex_20250106.csv", csv_of(line("M1"))).status == "succeeded"
    home.places.keyring.write_bytes(backup)
    home = Platform.open(home.places)
    with pytest.raises(KeyringError, match=r"of globex; .*restore its latest backup"):
        deliver(home, "globex_20250107.csv", csv_of(line("M1")))
    assert deliver(home, "acme_20250107.csv", csv_of(line("M1"))).status == "succeeded"
    assert home.places.keyring.read_bytes() == backup


@pytest.mark.parametrize("purpose", [*CLIENT_PURPOSES, "vault/identity"])
def test_a_key_that_a_client_with_data_has_lost_is_said_and_not_made_anew(
    home: Platform, purpose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    body = json.loads(home.places.keyring.read_text())
    del body["check"], body["keys"]["acme"][purpose]
    home.places.keyring.write_text(json.dumps(body))
    capsys.readouterr()
    assert not Platform.open(home.places).keyring.holds(purpose, "acme")
    assert capsys.readouterr().err == ""
    assert json.loads(home.places.keyring.read_text()) == body
    assert keyring_status(home.places)["missing"] or purpose == "vault/identity"


def test_a_backup_from_before_a_column_group_had_values_does_not_get_another_key_for_it(home: Platform) -> None:
    backup = home.places.keyring.read_bytes()
    home = configure(home, "client_id: acme\npolicies: {phone_number: {vault: phones}}\n")
    assert deliver(home, "acme_20250106.csv", csv_of(line("M1"))).status == "succeeded"
    home.places.keyring.write_bytes(backup)
    with pytest.raises(KeyringError, match=r"no key for vault/phones of acme; .*restore its latest backup"):
        read_silver(role="operations", places=home.places).collect()
    assert home.places.keyring.read_bytes() == backup


def test_a_client_of_whom_somebody_was_erased_never_gets_a_second_key_for_the_ledger(home: Platform) -> None:
    backup = home.places.keyring.read_bytes()
    (home.places.configs / "globex.yaml").write_text("client_id: globex\n")
    erase_member(Platform.open(home.places), "globex", "M1", Request(wait=0))
    home.places.keyring.write_bytes(backup)
    with pytest.raises(KeyringError, match=r"no key for .* of globex"):
        deliver(Platform.open(home.places), "globex_20250106.csv", csv_of(line("M1"), line("M2")))
    assert home.places.keyring.read_bytes() == backup


def test_the_keyring_of_a_role_is_never_added_to(keyring: Keyring, places: Places) -> None:
    role = Keyring(keyring.keyring_id, keyring.created_at, {"acme": keyring.keys["acme"]}, role="analyst")
    assert give_keys(places, role, CLIENTS) == role
    assert load_keyring(places) == keyring


# --- at rest --------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def openbao() -> Iterator[str]:
    """A real OpenBao in its development mode, with the transit engine; gives its address."""
    binary = shutil.which("bao", path=str(Path(os.sys.executable).parent))  # type: ignore[attr-defined]
    assert binary, "install the development requirements: they bring OpenBao"
    address = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        [binary, "server", "-dev", "-dev-root-token-id=root", f"-dev-listen-address={address}", "-dev-no-store-token"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"HOME": "/nonexistent"},
    )  # fmt: skip
    try:
        import hvac

        client = hvac.Client(url=f"http://{address}", token="root")
        for _ in range(200):
            try:
                if client.sys.is_initialized():
                    break
            except Exception:  # noqa: BLE001 - it is starting
                time.sleep(0.1)
        client.sys.enable_secrets_engine("transit")
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def transit(openbao: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a new key of the transit engine."""
    import hvac

    monkeypatch.setenv("VAULT_ADDR", openbao)
    monkeypatch.setenv("VAULT_TOKEN", "root")
    name = f"k{secrets.token_hex(4)}"
    hvac.Client().secrets.transit.create_key(name)
    return f"vault-transit:{name}"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a key of moto's KMS, a real HTTP server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL_KMS": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    yield f"aws-kms:{boto3.client('kms').create_key()['KeyMetadata']['KeyId']}"
    server.stop()


@pytest.fixture(params=["env", "file", "aws", "transit"])
def kek(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param in {"aws", "transit"}:
        return str(request.getfixturevalue(request.param))
    if request.param == "env":
        monkeypatch.setenv("TEST_KEK", "ab" * 32)
        return "env:TEST_KEK"
    file = tmp_path / "kek"
    file.write_text("cd" * 32 + "\n")
    file.chmod(0o600)
    return f"file:{file}"


def test_a_locked_keyring_opens_with_its_lock_and_shows_no_key(places: Places, kek: str) -> None:
    init_keyring(places, kek)
    keyring = give_keys(places, open_keyring(places), CLIENTS)
    text = places.keyring.read_text()
    for held in keyring.keys.values():
        for versions in held.values():
            assert versions[1].hex() not in text
            assert base64.b64encode(versions[1]).decode() not in text
    assert load_keyring(places) == keyring
    assert keyring_status(places)["locked_by"] == kek


@pytest.mark.parametrize("text", ["", "[]", "{", '{"acme": "x"}', '{"acme": 1', "\xff"])
def test_a_damaged_note_of_generations_is_said_and_how_to_mend_it(home: Platform, text: str) -> None:
    note = home.places.output / GENERATIONS_FILE
    note.write_text(text, encoding="latin-1")
    with pytest.raises(KeyringError, match=r"keyring\.generations.* cannot be read") as caught:
        load_keyring(home.places)
    assert caught.value.__suppress_context__


def test_another_lock_can_be_put_on_and_taken_off(places: Places, keyring: Keyring, kek: str) -> None:
    relock(places, kek)
    assert "sealed" in json.loads(places.keyring.read_text())
    assert load_keyring(places) == keyring
    relock(places, None)
    assert load_keyring(places) == keyring
    assert "keys" in json.loads(places.keyring.read_text())


def test_a_locked_keyring_that_was_changed_does_not_open(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEK", "ab" * 32)
    init_keyring(places, "env:TEST_KEK")
    body = json.loads(places.keyring.read_text())
    for key, value in {
        "role": "analyst", "keyring_id": "0" * 16, "destroyed": {"acme": "2026-01-01"}, "sealed": body["sealed"][::-1],
        "wrapped": body["wrapped"][::-1], "created_at": "x",
    }.items():  # fmt: skip
        places.keyring.write_text(json.dumps(body | {key: value}))
        with pytest.raises(KeyringError, match=r"changed|cannot be read|not the one"):
            load_keyring(places)


def test_a_lock_that_is_gone_or_another_is_said_without_a_key(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEK", "ab" * 32)
    init_keyring(places, "env:TEST_KEK")
    monkeypatch.setenv("TEST_KEK", "ac" * 32)
    with pytest.raises(KeyringError, match="TEST_KEK is not the one"):
        open_keyring(places)
    for wrong in ("", "ab", "zz" * 32):
        monkeypatch.setenv("TEST_KEK", wrong)
        with pytest.raises(KeyringError, match="missing or not 64 hex"):
            open_keyring(places)
    open_to_all = tmp_path / "kek"
    open_to_all.write_text("ab" * 32)
    open_to_all.chmod(0o644)
    with pytest.raises(KeyringError, match="chmod 600"):
        kek_of(f"file:{open_to_all}")


@pytest.mark.parametrize("uri", ["azure-kv:x", "gcp-kms:x", "env:", "secret", "abcdef" * 10])
def test_a_place_for_the_lock_that_does_not_exist_is_refused_and_no_keyring_made(places: Places, uri: str) -> None:
    with pytest.raises(KeyringError, match="no place for a key-encryption key") as caught:
        init_keyring(places, uri)
    assert "abcdef" not in str(caught.value), "the key itself, given by mistake"
    assert not places.keyring.exists()


def test_a_key_revoked_in_the_key_service_closes_the_keyring(places: Places, transit: str) -> None:
    import hvac

    init_keyring(places, transit)
    keyring = give_keys(places, open_keyring(places), CLIENTS)
    engine, name = hvac.Client().secrets.transit, transit.partition(":")[2]
    engine.rotate_key(name)
    assert load_keyring(places) == keyring  # wrapped under the version before
    engine.update_key_configuration(name, min_decryption_version=2)
    with pytest.raises(KeyringError, match="transit engine does not"):
        load_keyring(places)
    engine.update_key_configuration(name, min_decryption_version=1, deletion_allowed=True)
    assert load_keyring(places) == keyring
    engine.delete_key(name)
    with pytest.raises(KeyringError, match="transit engine does not"):
        load_keyring(places)


def test_a_lock_that_could_not_be_opened_again_is_not_put_on(
    places: Places, keyring: Keyring, transit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hvac

    name = transit.partition(":")[2]
    server = hvac.Client()
    server.sys.create_or_update_policy(name, f'path "transit/encrypt/{name}" {{ capabilities = ["update"] }}')
    token = server.auth.token.create(policies=[name])["auth"]["client_token"]
    before = places.keyring.read_bytes()
    monkeypatch.setenv("VAULT_TOKEN", token)
    with pytest.raises(KeyringError, match="transit engine does not"):
        relock(places, transit)
    assert places.keyring.read_bytes() == before
    fresh = replace(places, keyring=places.keyring.with_name("new.json"), output=places.output.with_name("none"))
    with pytest.raises(KeyringError, match="transit engine does not"):
        init_keyring(fresh, transit)
    assert not fresh.keyring.exists()
    write_copy(keyring, fresh.keyring, transit)  # for somebody else, who may open it


def test_a_key_service_that_does_not_answer_or_refuses_is_told_without_its_token(
    places: Places, transit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    init_keyring(places, transit)
    monkeypatch.setenv("VAULT_TOKEN", "another-token")
    with pytest.raises(KeyringError, match="Forbidden") as refused:
        load_keyring(places)
    assert "another-token" not in str(refused.value)
    monkeypatch.setenv("VAULT_ADDR", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(KeyringError, match="check that it answers"):
        load_keyring(places)


_KILLED_WHILE_IT_WRITES = """
import os, signal
from healthingest.places import Places
from healthingest.privacy.keyring_file import relock
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
relock(Places.from_env(), None)
"""


def test_what_a_killed_writer_left_of_the_keys_is_gone_with_the_next_change(
    places: Places, keyring: Keyring, capsys: pytest.CaptureFixture[str]
) -> None:
    env = env_of(places)
    done = subprocess.run([os.sys.executable, "-c", _KILLED_WHILE_IT_WRITES], env=env)  # type: ignore[attr-defined]
    assert done.returncode < 0
    assert len(list(places.keyring.parent.iterdir())) == 2
    assert load_keyring(places) == keyring
    destroy_keys(places, "acme")  # a certificate will say so
    assert [p.name for p in places.keyring.parent.iterdir()] == [places.keyring.name]
    assert load_keyring(places).clients == ["globex"]


def test_a_change_of_the_keyring_is_on_disk_for_good_before_anything_is_under_the_new_keys(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = [], os.fsync

    def noted(fd: int) -> None:
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        synced.append((path, '"2"' in home.places.keyring.read_text()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    add_generation(home.places, "acme")
    assert (str(home.places.keyring.parent), True) in synced, "the folder, once the new file has its name"
    monkeypatch.undo()
    assert load_keyring(home.places).latest("acme") == 2


def test_a_copy_is_private_and_never_over_a_file(keyring: Keyring, tmp_path: Path) -> None:
    target = tmp_path / "backup.json"
    write_copy(keyring, target, None)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(KeyringError, match="exists"):
        write_copy(keyring, target, None)
    assert load_keyring(places_in(tmp_path / "new", HEALTHINGEST_KEYRING=target)) == keyring


# --- known answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("library", "name"), [("HKDF", "HKDF-SHA256"), ("AESGCM", "AES-256-GCM"), ("hmac", "HMAC-SHA256")]
)
def test_a_library_that_errs_is_refused_before_a_key_is_used(
    places: Places, monkeypatch: pytest.MonkeyPatch, library: str, name: str
) -> None:
    from healthingest.privacy import known_answers

    class Wrong:
        """Answers the same to whatever it is asked."""

        def __init__(self, *_: object) -> None:
            pass

        def derive(self, *_: object) -> bytes:
            return bytes(42)

        encrypt = digest = derive

    known_answers.check_primitives.cache_clear()
    monkeypatch.setattr(known_answers, library, Wrong())
    if library != "hmac":
        monkeypatch.setattr(known_answers, library, Wrong)
    with pytest.raises(KeyringError, match=name):
        open_keyring(places)
    assert not places.keyring.exists()
    monkeypatch.undo()
    assert open_keyring(places).keyring_id


def test_fixed_keys_give_the_tokens_hashes_and_ids_that_they_always_gave() -> None:
    fixed = Keyring("id", "", {
        SHARED: {"file": {1: bytes(range(32))}},
        "acme": {"member_token": {1: bytes(range(1, 33))}, "content_hash": {1: bytes(range(2, 34))}},
    })  # fmt: skip
    frame = pl.DataFrame({"member_token": ["t"], "city": ["Boston"]})
    assert {
        "token": tokens.member_token(fixed, "acme", pl.Series(["M1"])).item(),
        "hash": tokens.content_hash(fixed, "acme", frame, ["city"]).item(),
        "file": tokens.file_id(fixed, "acme_20250106.csv", bytes(32)),
        "content": tokens.content_hmac(fixed, bytes(32)),
    } == {
        "token": "f2a9c02539d65a3aed1cd24c215c0de2",
        "hash": "e46ebfb15d02b4c96ffdfd33146ea656",
        "file": "f6a8f329ff7e4e7e5ba32bf9a632515c",
        "content": "e7c9019d3dffd822435b96915ead3afd",
    }
