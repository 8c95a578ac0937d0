"""Keys, tokens, seals and encrypted Parquet: known answers, and everything that must not open."""

import copy
import hashlib
import hmac
import io
import json
import pickle
import shutil
import stat
from pathlib import Path

import polars as pl
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from healthingest.errors import KeyringError
from healthingest.places import Places
from healthingest.privacy import seal, tokens
from healthingest.privacy.generalize import generalize, zip3_allow_list
from healthingest.privacy.keyring import PURPOSES, Keyring, init_keyring, keyring_status, load_keyring, open_keyring
from healthingest.privacy.vault_file import scan_encrypted, write_encrypted
from healthingest_tests.conftest import places_in

# --- keyring --------------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_in(tmp_path)


@pytest.fixture
def keyring(places: Places) -> Keyring:
    return open_keyring(places)


def secrets_of(places: Places) -> dict[str, str]:
    return {purpose: keys["1"] for purpose, keys in json.loads(places.keyring.read_text())["keys"].items()}


def without(keyring: Keyring, *purposes: str) -> Keyring:
    """The keyring as a person gets it who may not open everything."""
    return Keyring(keyring.keyring_id, "", {p: k for p, k in keyring._keys.items() if p not in purposes})


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
        lambda body: json.dumps(body | {"keys": body["keys"] | {"file": {"1": "00"}}}),
        lambda body: json.dumps(body | {"keys": body["keys"] | {"file": {"1": "zz" * 32}}}),
        lambda body: json.dumps(body | {"keys": body["keys"] | {"file": body["keys"]["bronze"]}}),
    ],
    ids=["empty", "list", "cut", "no id", "short", "no hex", "same key twice"],
)
def test_a_damaged_keyring_is_refused_without_showing_it(places: Places, damage: object) -> None:
    open_keyring(places)
    body = json.loads(places.keyring.read_text())
    places.keyring.write_text(damage(body))  # type: ignore[operator]
    with pytest.raises(KeyringError, match="keyring") as caught:
        open_keyring(places)
    assert not any(keys["1"] in str(caught.value) for keys in body["keys"].values())
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


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


def test_every_purpose_and_context_has_its_own_key_by_hkdf(keyring: Keyring, places: Places) -> None:
    made = [keyring.derive(p, *context) for p in PURPOSES for context in ((), ("a",), ("b",), ("a", "b"))]
    assert len(set(made)) == len(made)
    info = b"healthingest/1\x1ffile\x1facme"
    secret = bytes.fromhex(secrets_of(places)["file"])
    assert keyring.derive("file", "acme") == HKDF(SHA256(), 32, None, info).derive(secret)


def test_a_purpose_that_is_not_held_is_said_and_not_derived(keyring: Keyring) -> None:
    less = without(keyring, "vault/identity")
    assert less.holds("vault/contact")
    assert not less.holds("vault/identity")
    with pytest.raises(KeyringError, match="vault/identity"):
        less.derive("vault/identity")


# --- tokens ---------------------------------------------------------------------------------------------------


def by_stdlib(keyring: Keyring, purpose: str, client: str, text: str) -> str:
    key = keyring.derive(purpose, client).hex().encode()
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]


def test_a_token_is_the_hmac_of_client_and_id(keyring: Keyring) -> None:
    ids = ["M1", "É", "x" * 64, ""]
    got = tokens.member_token(keyring, "acme", pl.Series("member_id", ids)).to_list()
    assert got == [by_stdlib(keyring, "member_token", "acme", f"mt1\x1facme\x1f{one}") for one in ids]
    assert len(set(got)) == len(ids)


def test_a_token_depends_on_client_and_keyring(keyring: Keyring, tmp_path: Path) -> None:
    other = open_keyring(places_in(tmp_path / "other"))
    one = pl.Series(["M1"])
    made = [tokens.member_token(k, c, one).item() for k in (keyring, other) for c in ("acme", "globex")]
    assert len(set(made)) == 4
    assert tokens.member_token(keyring, "acme", one).item() == made[0]


def frame(**columns: object) -> pl.DataFrame:
    return pl.DataFrame({"member_token": ["t1"]} | {name: [value] for name, value in columns.items()},
                        schema_overrides=dict.fromkeys(columns, pl.String))  # fmt: skip


def hash_of(keyring: Keyring, row: pl.DataFrame, client: str = "acme") -> str:
    return tokens.content_hash(keyring, client, row, row.columns[1:]).item()


def test_equal_records_of_two_members_or_clients_differ_in_their_hash(keyring: Keyring) -> None:
    two = pl.DataFrame({"member_token": ["t1", "t2"], "city": ["Boston", "Boston"]})
    assert tokens.content_hash(keyring, "acme", two, ["city"]).n_unique() == 2
    assert hash_of(keyring, frame(city="Boston")) != hash_of(keyring, frame(city="Boston"), "globex")


def test_the_hash_is_not_moved_by_what_stands_beside_it(keyring: Keyring) -> None:
    records = [
        frame(a="x", b="y", c="z"), frame(a="xy", b="", c="z"), frame(a="", b="xy", c="z"),
        frame(a=None, b="xy", c="z"),
        frame(a="xy", b=None, c="z"), frame(a="x", b="z", c=None), frame(a="x", b=None, c="z"),
        frame(a="y", b="x", c="z"),
        frame(a=None, b=None, c=None), frame(a=None, b="x", c=None), frame(a=None, b=None, c="x"),
    ]  # fmt: skip
    hashes = [hash_of(keyring, record) for record in records]
    assert len(set(hashes)) == len(records)
    assert hashes[0] == hash_of(keyring, frame(a="x", b="y", c="z"))


def test_an_empty_column_appended_to_the_contract_changes_no_hash(keyring: Keyring) -> None:
    before = frame(a="x", b=None)
    assert hash_of(keyring, before) == hash_of(keyring, before.with_columns(added=pl.lit(None, pl.String)))
    assert hash_of(keyring, before) != hash_of(keyring, before.with_columns(added=pl.lit("v")))


def test_ids_of_deliveries_are_keyed_and_depend_on_name_and_content(keyring: Keyring) -> None:
    a, b = hashlib.sha256(b"a").digest(), hashlib.sha256(b"b").digest()
    made = [tokens.file_id(keyring, name, digest) for name in ("x.csv", "y.csv") for digest in (a, b)]
    made += [tokens.content_hmac(keyring, a), tokens.content_hmac(keyring, b)]
    assert len(set(made)) == 6
    assert all(len(one) == 32 and int(one, 16) for one in made)
    assert tokens.file_id(keyring, "x.csv", a) == made[0]
    assert made[0] != hashlib.sha256(b"x.csv\0" + a).hexdigest()[:32]


def test_the_known_answer_test_refuses_a_library_that_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        """A polars-hash that ignores its key."""

        def __init__(self, name: str) -> None:
            self.chash, self.name = self, name

        def hmac_sha256(self, *, key: str) -> pl.Expr:
            return pl.col(self.name)

    tokens._known_answer_test.cache_clear()
    monkeypatch.setattr(tokens.plh, "col", Wrong)
    with pytest.raises(KeyringError, match="HMAC"):
        tokens._known_answer_test()
    tokens._known_answer_test.cache_clear()


# --- seal -----------------------------------------------------------------------------------------------------

KEY, OTHER = b"k" * 32, b"o" * 32


def test_a_sealed_value_opens_in_its_place_with_its_key_only() -> None:
    one, two = seal.seal_values(KEY, [b"record", b"record"], [b"a", b"b"])
    assert one != two
    assert b"record" not in one
    assert seal.open_value(KEY, one, b"a") == b"record"
    flipped = one[:-1] + bytes([one[-1] ^ 1])
    bad = [(OTHER, one, b"a"), (KEY, one, b"b"), (KEY, two, b"a"), (KEY, flipped, b"a"), (KEY, one + b"x", b"a")]
    bad += [(KEY, one[:cut], b"a") for cut in range(len(one))]
    for key, value, context in bad:
        with pytest.raises(KeyringError):
            seal.open_value(key, value, context)


def sealed_file(plain: bytes, key: bytes = KEY) -> bytes:
    target = io.BytesIO()
    writer = seal.SealedWriter(target, key)
    for start in range(0, len(plain), 7):
        writer.write(plain[start : start + 7])
    writer.finish()
    return target.getvalue()


def opened(sealed: bytes, key: bytes = KEY) -> bytes:
    return io.BufferedReader(seal.SealedReader(io.BytesIO(sealed), key)).read()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 10 bytes, so that a short file has several."""
    monkeypatch.setattr(seal, "CHUNK", 10)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 20, 21, 95])
def test_a_sealed_file_of_any_size_opens_as_it_was(size: int) -> None:
    plain = bytes(range(size))
    assert opened(sealed_file(plain)) == plain


def parts_of(sealed: bytes) -> tuple[bytes, list[bytes]]:
    head, rest, chunks = sealed[:15], sealed[15:], []
    while rest:
        size = 4 + int.from_bytes(rest[:4], "little")
        chunks.append(rest[:size])
        rest = rest[size:]
    return head, chunks


@pytest.mark.usefixtures("small_chunks")
def test_a_sealed_file_that_was_changed_in_any_way_does_not_open() -> None:
    plain = bytes(range(35))
    whole, twin = sealed_file(plain), sealed_file(plain)
    head, chunks = parts_of(whole)
    assert len(chunks) == 4
    changed = [whole[:cut] for cut in range(len(whole))]
    changed += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    changed += [
        head + b"".join(chunks[:-1]),
        head + b"".join([chunks[1], chunks[0], *chunks[2:]]),
        head + b"".join([*chunks, chunks[-1]]),
        head + b"".join([chunks[0], *chunks]),
        head + b"".join([parts_of(twin)[1][0], *chunks[1:]]),
        head + chunks[-1],
        whole + b"x",
    ]
    for sealed in changed:
        with pytest.raises(KeyringError):
            opened(sealed)
    with pytest.raises(KeyringError):
        opened(whole, OTHER)


# --- vault files ----------------------------------------------------------------------------------------------

GROUPS = {"last_name": "identity", "email": "contact"}
ROWS = pl.DataFrame(
    {
        "member_token": ["token-of-one", "token-of-two"],
        "_file_id": ["f", "f"],
        "last_name": ["SECRETNAME", None],
        "email": [None, "secret@example.org"],
    }
)


@pytest.fixture
def part(tmp_path: Path, keyring: Keyring) -> Path:
    path = tmp_path / "part.parquet"
    write_encrypted(ROWS, path, keyring, "acme", GROUPS, name="part.parquet")
    return path


def scan(path: Path, keyring: Keyring, client: str = "acme", name: str = "part.parquet") -> pl.DataFrame:
    return scan_encrypted(path, keyring, client, GROUPS, name=name).collect()


def test_a_vault_file_opens_with_all_keys_and_shows_nothing_without(part: Path, keyring: Keyring) -> None:
    assert scan(part, keyring).equals(ROWS)
    raw = part.read_bytes()
    for text in (b"SECRETNAME", b"secret@example.org", b"last_name", b"email", b"token-of-one"):
        assert text not in raw
    with pytest.raises(Exception, match=r"."):
        pl.read_parquet(part)


def test_a_column_without_a_group_is_refused_and_nothing_written(tmp_path: Path, keyring: Keyring) -> None:
    path = tmp_path / "p.parquet"
    with pytest.raises(KeyringError, match="ssn"):
        write_encrypted(ROWS.with_columns(ssn=pl.lit("1")), path, keyring, "acme", GROUPS, name="p.parquet")
    assert not path.exists()


@pytest.mark.parametrize(("missing", "left"), [("identity", "email"), ("contact", "last_name")])
def test_a_missing_group_key_leaves_the_other_columns(part: Path, keyring: Keyring, missing: str, left: str) -> None:
    less = without(keyring, f"vault/{missing}")
    assert scan(part, less).equals(ROWS.select("member_token", "_file_id", left))
    with pytest.raises(KeyringError):
        write_encrypted(ROWS, part, less, "acme", GROUPS, name="part.parquet")


def test_without_the_footer_key_nothing_opens(part: Path, keyring: Keyring) -> None:
    with pytest.raises(KeyringError):
        scan(part, without(keyring, "vault/footer"))


def test_a_plain_parquet_in_its_place_is_refused(part: Path, keyring: Keyring) -> None:
    ROWS.write_parquet(part)
    with pytest.raises(KeyringError, match="not encrypted"):
        scan(part, keyring)


@pytest.mark.parametrize("content", [b"", b"PAR", b"PARE", b"PAREPAR1"])
def test_a_torn_vault_file_is_refused_in_words(part: Path, keyring: Keyring, content: bytes) -> None:
    part.write_bytes(content)
    with pytest.raises(KeyringError):
        scan(part, keyring)


def test_a_vault_file_under_another_name_or_client_or_keyring_does_not_open(
    part: Path, keyring: Keyring, tmp_path: Path
) -> None:
    other = open_keyring(places_in(tmp_path / "other"))
    for change in ({"name": "other.parquet"}, {"client": "globex"}):
        with pytest.raises(Exception, match=r"."):
            scan(part, keyring, **change)
    with pytest.raises(Exception, match=r"."):
        scan(part, other)


def test_a_flipped_byte_anywhere_never_gives_other_values(part: Path, keyring: Keyring) -> None:
    raw = part.read_bytes()
    for at in range(4, len(raw) - 4, 3):
        part.write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
        try:
            got = scan(part, keyring)
        except BaseException as error:  # noqa: BLE001 - polars may panic, which is no Exception
            assert not isinstance(error, KeyboardInterrupt)  # noqa: PT017
        else:
            assert got.equals(ROWS)


# --- generalisation -------------------------------------------------------------------------------------------

SMALL = [
    "036",
    "059",
    "102",
    "202",
    "203",
    "204",
    "205",
    "369",
    "556",
    "692",
    "753",
    "772",
    "821",
    "823",
    "878",
    "879",
    "884",
    "893",
]


def test_the_small_zip_prefixes_are_not_shown() -> None:
    assert not zip3_allow_list() & set(SMALL)
    frame = pl.DataFrame({"zip": [f"{prefix}01" for prefix in SMALL] + ["02139", "90210-1234", None]})
    shown = frame.select(generalize(pl.col("zip"), "zip3")).to_series().to_list()
    assert shown == ["000"] * len(SMALL) + ["021", "902", None]


def test_prefixes_that_no_one_lives_in_are_not_shown() -> None:
    allowed = zip3_allow_list()
    assert all(len(prefix) == 3 and prefix.isdigit() for prefix in allowed)
    assert not allowed & {"000", "001", "002", "003", "004", "099", "213", "269", "343", "345", "348", "353"}
    assert allowed >= {"021", "100", "606", "902", "006", "995", "967"}


def test_a_birth_year_is_the_year() -> None:
    frame = pl.DataFrame({"dob": ["1980-12-10", None]})
    assert frame.select(generalize(pl.col("dob"), "year")).to_series().to_list() == [1980, None]
