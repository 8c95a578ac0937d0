"""Tokens, seals and encrypted Parquet: known answers, and everything that must not open."""

import hashlib
import hmac
import io
from pathlib import Path

import polars as pl
import pytest

from healthingest.errors import KeyringError
from healthingest.places import Places
from healthingest.privacy import seal, tokens
from healthingest.privacy.generalize import generalize, zip3_allow_list
from healthingest.privacy.keyring import Keyring
from healthingest.privacy.keyring_file import give_keys, open_keyring
from healthingest.privacy.vault_file import scan_encrypted, write_encrypted
from healthingest_tests.conftest import places_in

CLIENTS = {"acme": ["identity", "contact"], "globex": ["identity", "contact"], "a": ["identity", "contact"]}


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_in(tmp_path)


@pytest.fixture
def keyring(places: Places) -> Keyring:
    return give_keys(places, open_keyring(places), CLIENTS)


def without(keyring: Keyring, *purposes: str) -> Keyring:
    """The keyring as a person gets it who may not open everything."""
    held = {purpose for keys in keyring.keys.values() for purpose in keys}
    return keyring.narrowed(held.difference(purposes))


def another(root: Path) -> Keyring:
    places = places_in(root)
    return give_keys(places, open_keyring(places), CLIENTS)


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
    other = another(tmp_path / "other")
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
    assert seal.open_value([KEY], one, b"a") == b"record"
    assert seal.open_value([OTHER, KEY], one, b"a") == b"record"  # made under an earlier key
    flipped = one[:-1] + bytes([one[-1] ^ 1])
    bad = [(OTHER, one, b"a"), (KEY, one, b"b"), (KEY, two, b"a"), (KEY, flipped, b"a"), (KEY, one + b"x", b"a")]
    bad += [(KEY, one[:cut], b"a") for cut in range(len(one))]
    for key, value, context in bad:
        with pytest.raises(KeyringError):
            seal.open_value([key], value, context)


def sealed_file(plain: bytes, key: bytes = KEY) -> bytes:
    target = io.BytesIO()
    writer = seal.SealedWriter(target, key)
    for start in range(0, len(plain), 7):
        writer.write(plain[start : start + 7])
    writer.finish()
    return target.getvalue()


def opened(sealed: bytes, key: bytes = KEY) -> bytes:
    return io.BufferedReader(seal.SealedReader(io.BytesIO(sealed), [OTHER, key] if key == KEY else [key])).read()


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

ROWS = pl.DataFrame(
    {
        "member_token": ["token-of-one", "token-of-two"],
        "_file_id": ["f", "f"],
        "identity/last_name": ["SECRETNAME", None],
        "contact/email": [None, "secret@example.org"],
    }
)


@pytest.fixture
def part(tmp_path: Path, keyring: Keyring) -> Path:
    path = tmp_path / "part.parquet"
    write_encrypted(ROWS, path, keyring, "acme", name="part.parquet")
    return path


def scan(path: Path, keyring: Keyring, client: str = "acme", name: str = "part.parquet") -> pl.DataFrame:
    return scan_encrypted(path, keyring, client, name=name).collect()


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
        write_encrypted(ROWS.with_columns(ssn=pl.lit("1")), path, keyring, "acme", name="p.parquet")
    assert not path.exists()


@pytest.mark.parametrize(("missing", "left"), [("identity", "contact/email"), ("contact", "identity/last_name")])
def test_a_missing_group_key_leaves_the_other_columns(part: Path, keyring: Keyring, missing: str, left: str) -> None:
    less = without(keyring, f"vault/{missing}")
    assert scan(part, less).equals(ROWS.select("member_token", "_file_id", left))
    with pytest.raises(KeyringError):
        write_encrypted(ROWS, part, less, "acme", name="part.parquet")


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
    other = another(tmp_path / "other")
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
