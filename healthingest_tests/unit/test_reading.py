"""Roles and exports: nobody reads what the role does not grant, and every reading is written down."""

import json
import os
import pwd
import re
import stat
import subprocess
import sys
from datetime import date
from pathlib import Path

import polars as pl
import pytest

import healthingest
from healthingest.errors import ConfigError, IncompleteError, KeyringError, UsageError
from healthingest.export import export_members
from healthingest.ingest import ingest, register
from healthingest.lake.events import Head, anchor_of, write_anchor
from healthingest.places import Places, today
from healthingest.platform import Platform
from healthingest.privacy.generalize import zip3_allow_list
from healthingest.privacy.keyring import SHARED
from healthingest.privacy.keyring_file import write_copy
from healthingest.privacy.roles import issue, role_of
from healthingest.reading import Reader
from healthingest_tests.conftest import DATA, csv_of, deliver, install, line, places_in
from healthingest_tests.unit.test_cli import Shell

ROLES = """roles:
  operations: {groups: "*", rejected: true, purposes: [enrolment, support]}
  outreach: {groups: [contact], purposes: [outreach]}
  acme_desk: {groups: [identity], clients: [acme], purposes: [support]}
  analyst: {purposes: [analysis]}
"""
VALUES = {"member_id", "first_name", "last_name", "dob", "address", "city", "zip", "phone_number", "email"}
CONTACT = {"address", "city", "zip", "phone_number", "email"}


@pytest.fixture
def home(tmp_path: Path) -> Platform:
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": "client_id: globex\n"})
    (home.places.configs / "roles.yaml").write_text(ROLES)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2", city="Salem"), line("M3", zip="12")))
    deliver(home, "globex_20250106.csv", csv_of(line("G1")))
    return home


def read(home: Platform, role: str, purpose: str | None = None, places: Places | None = None) -> pl.DataFrame:
    return healthingest.read_silver(role=role, purpose=purpose, places=places or home.places).collect()


def events(home: Platform, client: str = "acme") -> list[dict[str, object]]:
    return home.lake.events.read(client)


def issued(home: Platform, role: str, root: Path) -> Places:
    """The installation as a person of the role opens it: with a keyring of its own."""
    target = root / f"{role}.json"
    write_copy(issue(home.keyring, role, role_of(home.places.configs, role)), target, None)
    return places_in(home.places.home.parent, HEALTHINGEST_KEYRING=target)


# --- roles ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "purpose", "clients", "seen"),
    [
        ("operations", "enrolment", {"acme", "globex"}, VALUES),
        ("outreach", None, {"acme", "globex"}, CONTACT),
        ("acme_desk", None, {"acme"}, VALUES - CONTACT),
        ("analyst", None, {"acme", "globex"}, set()),
    ],
)
@pytest.mark.parametrize("own_keyring", [False, True])
def test_a_role_reads_what_it_grants_and_null_for_the_rest(
    home: Platform, tmp_path: Path, role: str, purpose: str | None, clients: set[str], seen: set[str], own_keyring: bool
) -> None:
    got = read(home, role, purpose, issued(home, role, tmp_path) if own_keyring else None)
    assert set(got["client_id"]) == clients
    assert {c for c in VALUES if got[c].null_count() == 0} == seen
    assert {c for c in VALUES if got[c].null_count() == got.height} == VALUES - seen
    assert set(got["birth_year"]) == {1980}
    assert set(got["zip3"]) == {"021"}


def test_a_roles_keyring_opens_no_more_under_another_roles_name(home: Platform, tmp_path: Path) -> None:
    places = issued(home, "outreach", tmp_path)
    with pytest.raises(Exception, match="holds no key for audit"):  # it cannot even sign as another
        read(home, "operations", "support", places)
    held = json.loads((tmp_path / "outreach.json").read_text())["keys"]
    assert set(held["acme"]) == {"vault/footer", "vault/contact"}
    assert set(held["*"]) == {"audit/outreach"}


def test_what_a_role_may_not_open_is_not_in_its_keys_whoever_s_keyring_it_is(home: Platform) -> None:
    role = role_of(home.places.configs, "acme_desk")
    for keyring in (issue(home.keyring, "acme_desk", role), Reader.of(home, "acme_desk", None).keyring):
        held = {client: set(keyring.keys[client]) for client in keyring.clients if keyring.keys[client]}
        assert held == {"acme": {"vault/footer", "vault/identity"}}
        assert not set(keyring.keys[SHARED]) - {"audit/acme_desk"}


def test_rejected_records_open_for_those_alone_who_may(home: Platform, tmp_path: Path) -> None:
    shell = Shell(home.places.home.parent)
    opened = {}
    for role in ("operations", "outreach"):
        keyring = str(issued(home, role, tmp_path).keyring)
        env = {"HEALTHINGEST_KEYRING": keyring}
        purpose = ["--purpose", "support"] if role == "operations" else []
        said = shell.run("quarantine", "show", "acme_20250106.csv", "--values", *purpose, "--json", env=env)
        opened[role] = said.code, "12 Main St" in said.out
    assert opened == {"operations": (0, True), "outreach": (1, False)}
    (event,) = events(home)
    assert (event["kind"], event["role"], event["members"]) == ("rejected records", "operations", 1)


@pytest.mark.parametrize(
    ("role", "purpose", "clients", "said"),
    [
        ("nobody", None, None, "no role nobody; there is operations, outreach"),
        ("operations", None, None, "is for enrolment, support; say which"),
        ("operations", "marketing", None, "is for enrolment, support"),
        ("acme_desk", None, ["globex"], "no right to globex"),
        ("operations", "support", ["initech"], "no client initech"),
    ],
)
def test_what_a_role_is_not_for_is_refused(
    home: Platform, role: str, purpose: str | None, clients: list[str] | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        healthingest.read_silver(role=role, purpose=purpose, clients=clients, places=home.places)
    assert events(home) == []


@pytest.mark.parametrize(
    "text",
    ["roles: {}", "roles: {a: {}}", "roles: {a: {purposes: []}}", "roles: {A b: {purposes: [x]}}", "x: 1", "roles: [a"],
)
def test_a_broken_roles_file_lets_nobody_read(home: Platform, text: str) -> None:
    (home.places.configs / "roles.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"roles\.yaml"):
        read(home, "operations", "support")
    with pytest.raises(ConfigError, match=r"roles\.yaml"):
        export_members(home)


def test_without_a_roles_file_operations_and_analyst_are_built_in(home: Platform) -> None:
    (home.places.configs / "roles.yaml").unlink()
    assert read(home, "operations")["last_name"].null_count() == 0
    assert read(home, "analyst")["last_name"].null_count() == 3
    with pytest.raises(UsageError, match="no role outreach; there is operations, analyst"):
        read(home, "outreach")


def test_the_installations_keyring_without_a_key_that_it_must_hold_is_an_error_and_no_null(home: Platform) -> None:
    body = json.loads(home.places.keyring.read_text())
    del body["check"], body["keys"]["acme"]["vault/identity"]
    home.places.keyring.write_text(json.dumps(body))
    with pytest.raises(KeyringError, match="no key for vault/identity of acme"):
        read(home, "operations", "support")
    with pytest.raises(KeyringError, match="no key for vault/identity of acme"):
        export_members(Platform.open(home.places), purpose="support")
    assert read(home, "outreach")["email"].null_count() == 0


def test_the_lazy_frame_opens_only_what_the_query_needs_and_carries_no_key(home: Platform) -> None:
    lazy = healthingest.read_silver(role="operations", purpose="support", places=home.places)
    assert lazy.filter(pl.col("city") == "Salem").select("member_id").collect().rows() == [("M2",)]
    assert [e["columns"] for e in events(home)] == [["city", "member_id"]]
    assert lazy.select(pl.len()).collect().item() == 3
    assert events(home)[-1]["columns"] == []
    with pytest.raises(Exception, match=r"."):
        lazy.serialize()
    assert lazy.head(1).collect().height == 1


# --- events ---------------------------------------------------------------------------------------------------


def test_every_reading_is_an_event_without_a_value(home: Platform) -> None:
    read(home, "outreach")
    export_members(home, purpose="support", clients=["acme"])
    (first, second), (other,) = events(home), events(home, "globex")
    shown = ("no", "kind", "role", "purpose", "columns", "members")
    assert [first[k] for k in shown] == [1, "read", "outreach", "outreach", sorted(CONTACT), 2]
    assert [second[k] for k in shown] == [2, "export operations", "operations", "support", sorted(VALUES), 2]
    assert (other["no"], other["members"], bool(other["who"])) == (1, 1, True)
    text = (home.lake.events.root / "acme.jsonl").read_text()
    assert not [v for v in ("Lovelace", "M1", "Salem", "ada@", "02139") if v in text]
    assert stat.S_IMODE((home.lake.events.root / "acme.jsonl").stat().st_mode) == 0o600
    assert home.lake.events.faults() == []


def test_a_query_that_fails_on_the_values_it_was_given_is_a_reading_of_them_all(home: Platform) -> None:
    lazy = healthingest.read_silver(role="operations", purpose="support", clients=["acme"], places=home.places)
    with pytest.raises(pl.exceptions.PolarsError, match="Lovelace"):  # polars shows what it could not convert
        lazy.filter(pl.col("last_name").cast(pl.Int64) > 1).select("last_name").collect()
    assert [(e["columns"], e["members"]) for e in events(home)] == [(["last_name"], 2)]


def test_a_frame_that_is_never_collected_is_no_reading(home: Platform) -> None:
    lazy = healthingest.read_silver(role="operations", purpose="support", places=home.places)
    lazy.select("last_name").filter(pl.col("last_name") == "Lovelace").explain()
    assert lazy.collect_schema().len() == 16
    assert lazy.head(0).collect().height == 0
    assert events(home) == []


@pytest.mark.parametrize("role", ["outreach", "analyst"])
def test_who_reads_is_the_systems_user_whatever_the_environment_says(
    home: Platform, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody_else")
    read(home, role)
    assert events(home)[0]["who"] == pwd.getpwuid(os.getuid()).pw_name != "somebody_else"


def test_who_cannot_write_the_event_reads_nothing(home: Platform) -> None:
    home.lake.events.root.mkdir(parents=True)
    (home.lake.events.root / "acme.jsonl").write_text("torn\n")
    with pytest.raises((IncompleteError, pl.exceptions.ComputeError), match="damaged"):
        read(home, "outreach")


def test_what_a_killed_writer_left_is_cut_off_and_the_chain_goes_on(home: Platform) -> None:
    read(home, "outreach")
    path = home.lake.events.root / "acme.jsonl"
    path.write_bytes(path.read_bytes() + b'{"no": 2, "at": "20')
    read(home, "outreach")
    assert [e["no"] for e in events(home)] == [1, 2]
    assert home.lake.events.faults() == []


@pytest.mark.parametrize("how", ["change", "remove one", "swap", "insert", "other client", "forge"])
def test_a_chain_that_was_touched_does_not_verify(home: Platform, how: str) -> None:
    for _ in range(4):
        read(home, "analyst")
    path = home.lake.events.root / "acme.jsonl"
    lines = path.read_text().splitlines()
    match how:
        case "change":
            lines[1] = lines[1].replace('"members": 2', '"members": 1')
        case "remove one":
            del lines[1]
        case "swap":
            lines[1], lines[2] = lines[2], lines[1]
        case "insert":
            lines.insert(2, lines[1])
        case "other client":
            lines = (home.lake.events.root / "globex.jsonl").read_text().splitlines()
        case _:
            lines[1] = json.dumps(json.loads(lines[1]) | {"role": "operations"})
    path.write_text("\n".join(lines) + "\n")
    assert len(home.lake.events.faults()) == 1
    assert "of acme" in home.lake.events.faults()[0]


@pytest.mark.parametrize("how", ["key twice", "spaces", "line ends"])
def test_an_event_that_only_says_the_same_to_some_does_not_verify(home: Platform, how: str) -> None:
    for _ in range(2):
        read(home, "analyst")
    path = home.lake.events.root / "acme.jsonl"
    text = path.read_text()
    match how:
        case "key twice":  # Python takes the last one, others the first
            text = text.replace('{"no": 1,', '{"members": 0, "no": 1,')
        case "spaces":
            text = text.replace('"members": 2', '"members":  2', 1)
        case _:
            text = text.replace("\n", "\r\n")
    path.write_bytes(text.encode())
    assert home.lake.events.faults() == ["Event 1 of acme was changed, or one before it is missing."]


def test_what_a_killed_writer_left_is_no_fault_and_hinders_nobody(home: Platform) -> None:
    read(home, "analyst")
    path = home.lake.events.root / "acme.jsonl"
    whole = home.lake.events.heads()
    path.write_bytes(path.read_bytes() + b'{"no": 2, "at": "20')
    assert home.lake.events.faults(whole) == []
    assert home.lake.events.heads() == whole
    assert [e["no"] for e in events(home)] == [1]


def test_a_damaged_event_is_told_in_a_sentence(home: Platform) -> None:
    read(home, "analyst")
    path = home.lake.events.root / "acme.jsonl"
    path.write_bytes(b"[1]\n" + path.read_bytes())
    shown = Shell(home.places.home.parent).run("audit", "show", "acme")
    assert (shown.code, shown.err) == (
        1,
        "healthingest: An event of acme is damaged; healthingest audit verify says which.\n",
    )


def test_the_event_of_a_very_long_reason_does_not_end_the_chain(home: Platform) -> None:
    home.lake.events.append("acme", "legal hold", "", {"purpose": "x" * 200_000})
    read(home, "analyst")
    assert [e["no"] for e in events(home)] == [1, 2]
    assert home.lake.events.faults() == []


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_whoever_may_add_events_cannot_have_others_change_another_file(
    home: Platform, tmp_path: Path, what: str
) -> None:
    """Analysts write the folder of events; ingestion's own appends must not end up in its keyring."""
    keyring = home.places.keyring.read_bytes()
    path = home.lake.events.root / "acme.jsonl"
    path.parent.mkdir(parents=True)
    match what:
        case "link":
            path.symlink_to(home.places.keyring)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.mkdir()
    with pytest.raises((IncompleteError, pl.exceptions.ComputeError), match="no plain file"):
        read(home, "analyst")
    assert home.places.keyring.read_bytes() == keyring
    assert [fault for fault in home.lake.events.faults() if "acme is no plain file" in fault]
    with pytest.raises(IncompleteError, match="no plain file"):
        home.lake.events.heads()


def test_a_reading_whose_event_finds_only_half_its_room_on_the_disk_is_refused(home: Platform) -> None:
    read(home, "analyst")
    path = home.lake.events.root / "acme.jsonl"
    limited = (
        "import resource, sys\n"
        "from healthingest.platform import Platform\n"
        "events = Platform.open().lake.events\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({path.stat().st_size + 40},) * 2)\n"
        "events.append('acme', 'read', 'analyst', {'who': 'x'})\n"
        "print('handed over')\n"
    )
    env = os.environ | Shell(home.places.home.parent).environment()
    done = subprocess.run([sys.executable, "-c", limited], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "File too large" in done.stderr
    assert [e["no"] for e in events(home)] == [1]
    read(home, "analyst")
    assert home.lake.events.faults() == []


def test_a_role_that_cannot_sign_leaves_no_chain_and_an_empty_one_is_no_fault(home: Platform, tmp_path: Path) -> None:
    outreach = Platform.open(issued(home, "outreach", tmp_path))
    with pytest.raises(KeyringError):
        outreach.lake.events.append("acme", "read", "operations", {})
    assert home.lake.events.clients() == []
    path = home.lake.events.root / "acme.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    empty = home.lake.events.heads()
    assert home.lake.events.faults(empty) == []
    read(home, "analyst")
    assert home.lake.events.faults(empty) == []


@pytest.mark.parametrize(
    "text", ["", "[]", '{"acme": {}}', '{"acme": {"events": "x", "mac": ""}}', '{"acme": {"events": [3], "mac": ""}}']
)
def test_what_is_no_anchor_is_refused(home: Platform, tmp_path: Path, text: str) -> None:
    (tmp_path / "anchor.json").write_text(text)
    with pytest.raises(UsageError, match="is no anchor"):
        anchor_of(tmp_path / "anchor.json")


def test_an_anchor_among_the_chains_and_the_events_of_nobody_are_refused(home: Platform) -> None:
    shell, anchor = Shell(home.places.home.parent), home.lake.events.root / "anchor.jsonl"
    read(home, "analyst")
    said = shell.run("audit", "anchor", "--out", str(anchor))
    assert (said.code, "must not lie in" in said.err, anchor.exists()) == (2, True, False)
    for client in ("initech", "../events/acme"):
        said = shell.run("audit", "show", client)
        assert (said.code, said.err) == (
            2,
            f"healthingest: There is no client {client}; there are events of acme, globex.\n",
        )


def test_without_an_anchor_verify_says_what_it_cannot_see(home: Platform, tmp_path: Path) -> None:
    shell, anchor = Shell(home.places.home.parent), tmp_path / "anchor.json"
    read(home, "analyst")
    assert shell.run("audit", "anchor", "--out", str(anchor)).code == 0
    (home.lake.events.root / "acme.jsonl").unlink()
    alone, anchored = shell.run("audit", "verify"), shell.run("audit", "verify", "--anchor", str(anchor))
    assert (alone.code, "only --anchor shows" in alone.out) == (0, True)
    assert (anchored.code, anchored.out) == (1, "The chain of acme is gone; the anchor saw 1 events.\n")


def test_events_removed_at_the_end_show_against_an_anchor(home: Platform, tmp_path: Path) -> None:
    for _ in range(3):
        read(home, "analyst")
    anchor = tmp_path / "anchor.json"
    write_anchor(home.lake.events.heads(), anchor)
    read(home, "analyst")
    assert home.lake.events.faults(anchor_of(anchor)) == []
    path = home.lake.events.root / "acme.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    assert home.lake.events.faults() == [], "a chain alone cannot tell"
    assert home.lake.events.faults(anchor_of(anchor)) == [
        "The chain of acme is not the one that the anchor was taken from."
    ]
    path.unlink()
    assert "is gone; the anchor saw 3 events" in home.lake.events.faults(anchor_of(anchor))[0]
    assert anchor_of(anchor)["acme"] == Head(3, anchor_of(anchor)["acme"].mac)


# --- exports --------------------------------------------------------------------------------------------------


def test_a_limited_data_set_names_nobody_and_keeps_towns_and_dates(home: Platform) -> None:
    frame = export_members(home, profile="limited_data_set", purpose="support").frame
    assert frame.columns == ["dob", "gender", "city", "state", "zip", "creation_date"]
    assert frame.height == 3


def test_safe_harbor_of_people_of_every_age_and_prefix(tmp_path: Path) -> None:
    home = install(tmp_path)
    small = ["202", "204", "205", "369", "753", "772", "036", "059", "821", "893"]
    years = [1900, 1969, 1970, 1971, 1980, 2024]
    records = [
        line(f"M{zip3}{year}", zip=f"{zip3}01", dob=f"{year}-06-15")
        for zip3 in [*small, "021", "606"] for year in years
    ]  # fmt: skip
    deliver(home, "acme_20250106.csv", csv_of(*records))
    done = export_members(home, profile="safe_harbor", as_of=date(2060, 1, 1))
    frame = done.frame
    assert frame.columns == ["gender", "state", "birth_year", "zip3", "birth_year_90_plus"]
    assert set(frame["zip3"]) == {"000", "021", "606"}
    assert set(frame["birth_year"]) == {None, 1971, 1980, 2024}
    assert frame.filter(pl.col("birth_year_90_plus"))["birth_year"].null_count() == 36
    assert frame.filter(~pl.col("birth_year_90_plus")).height == 36
    assert (done.notes["zip3_table"], done.notes["as_of"], done.notes["suppressed"]) == ("census-2020", "2060-01-01", 0)


def test_safe_harbor_as_of_an_earlier_day_shows_no_year_of_who_is_ninety_by_now(home: Platform) -> None:
    old = today().year - 90
    deliver(home, "acme_20250107.csv", csv_of(line("M8", dob=f"{old}-12-31"), line("M9", dob=f"{old + 1}-01-01")))
    done = export_members(home, profile="safe_harbor", purpose="support", as_of=date(1990, 1, 1))
    assert set(done.frame["birth_year"]) == {None, old + 1, 1980}
    assert done.notes["as_of"] == today().isoformat()


CARDS = """contract: cards
version: 1
columns:
  - {name: member_id, type: identifier, required: true, policy: {token: true, vault: identity}}
  - {name: city, type: text, class: free, policy: {keep: true}}
  - {name: plan, type: text, class: free, policy: {keep: true}}
  - {name: gender, type: gender, policy: {vault: identity}}
  - {name: since, type: date, class: free, policy: {keep: true}}
  - {name: area, type: us_zip, class: free, policy: {keep: true}}
  - {name: phone_number, type: phone, policy: {vault: contact, mask: {zip3: last4}}}
"""


def test_what_is_a_code_in_one_contract_and_more_in_another_is_in_no_narrow_profile(home: Platform) -> None:
    (home.places.configs / "contracts" / "cards").mkdir()
    (home.places.configs / "contracts" / "cards" / "1.yaml").write_text(CARDS)
    (home.places.configs / "initech.yaml").write_text("client_id: initech\ncontract: cards/1\n")
    home = Platform.open(home.places)
    header, record = "member_id,city,plan,gender,since,area,phone_number", "I1,C7,gold,M,2020-02-03,02139,617-253-1999"
    assert deliver(home, "initech_20250106.csv", csv_of(record, header=header)).status == "succeeded"
    shown = export_members(home, profile="safe_harbor", purpose="support").frame
    # acme's city is in the vault, so silver's is initech's codes alone; a gender that is vaulted stays there.
    assert set(shown.columns) == {"gender", "state", "birth_year", "birth_year_90_plus", "city", "plan"}
    assert (set(shown["city"]), set(shown["gender"])) == ({None, "C7"}, {"F", None})
    assert events(home, "initech")[-1]["columns"] == []
    limited = export_members(home, profile="limited_data_set", purpose="support").frame
    assert {"city", "plan", "dob", "zip"} <= set(limited.columns)


def test_groups_below_k_are_left_out_and_counted(tmp_path: Path) -> None:
    home = install(tmp_path)
    records = [
        line(f"M{n}", gender="F" if n < 5 else "M", dob=f"{1980 if n < 7 else 1990 + n}-01-01") for n in range(10)
    ]
    deliver(home, "acme_20250106.csv", csv_of(*records))
    done = export_members(home, profile="safe_harbor", k=3)
    assert (done.frame.height, done.notes["suppressed"], done.notes["smallest_group"]) == (5, 5, 5)
    assert set(done.frame["gender"]) == {"F"}
    assert export_members(home, profile="safe_harbor", k=5).frame.height == 5
    assert export_members(home, profile="safe_harbor", k=6).frame.height == 0
    none = export_members(home, profile="safe_harbor", k=11)
    assert (none.frame.height, none.notes["suppressed"], none.notes["smallest_group"]) == (0, 10, 0)


def test_the_order_of_a_safe_harbor_export_is_that_of_its_values(tmp_path: Path) -> None:
    home = install(tmp_path)
    records = [line(f"M{n:02}", gender="FMU"[n % 3], dob=f"{1999 - n * 7 % 30}-01-01") for n in range(30)]
    deliver(home, "acme_20250106.csv", csv_of(*records))
    frame = export_members(home, profile="safe_harbor").frame
    assert frame.rows() == sorted(frame.rows())


def test_safe_harbor_needs_no_key_that_opens_a_value(home: Platform, tmp_path: Path) -> None:
    analyst = Platform.open(issued(home, "analyst", tmp_path))
    shown = export_members(analyst, profile="safe_harbor").frame
    assert shown.equals(export_members(home, profile="safe_harbor", purpose="support").frame)


def test_none_of_the_eighteen_identifiers_of_real_looking_members_is_in_a_safe_harbor_export(tmp_path: Path) -> None:
    source = DATA / "synthea"
    if not source.is_dir():
        pytest.skip("../shared/data/synthea is not here")
    home = install(tmp_path, {"SYN1": "client_id: SYN1\n"})
    ingest(home, register(home, source / "SYN1_20250106.csv"), run_id="r")
    everything = export_members(home).frame
    shown = export_members(home, profile="safe_harbor", as_of=date(2026, 1, 1)).frame
    assert shown.height == everything.height > 1000
    assert set(shown.columns) <= {"gender", "state", "birth_year", "birth_year_90_plus", "zip3"}
    assert set(shown["zip3"].drop_nulls()) <= zip3_allow_list() | {"000"}
    assert shown["birth_year"].min() > 2026 - 90  # type: ignore[operator]
    cells = {str(cell) for row in shown.rows() for cell in row if cell is not None}
    for column in ("member_id", "first_name", "last_name", "dob", "address", "city", "zip", "phone_number", "email"):
        assert not cells & set(everything[column].drop_nulls()), column


def test_an_export_as_csv_runs_no_formula_and_leaves_telephones_alone(home: Platform, tmp_path: Path) -> None:
    deliver(
        home, "acme_20250107.csv", csv_of(line("M9", address="=1+1", city="@home", first_name="-x", last_name="＝1"))
    )
    shell, out = Shell(home.places.home.parent), tmp_path / "out.csv"
    assert shell.run("export", "--purpose", "support", "--out", str(out)).code == 0
    (row,) = pl.read_csv(out, infer_schema=False).filter(pl.col("member_id") == "M9").to_dicts()
    assert (row["address"], row["city"], row["first_name"]) == ("'=1+1", "'@home", "'-x")
    assert row["last_name"] == "'＝1"
    assert row["phone_number"] == "+16172531000"


# --- commands -------------------------------------------------------------------------------------------------


def test_a_role_is_given_its_keyring_and_works_with_it_alone(home: Platform, tmp_path: Path) -> None:
    shell, keyring, out = Shell(home.places.home.parent), tmp_path / "outreach.json", tmp_path / "out.parquet"
    assert (
        "opens vault/contact, vault/footer of acme, globex"
        in shell.run("keys", "role", "outreach", "--out", str(keyring)).out
    )
    done = shell.run("export", "--out", str(out), "--json", env={"HEALTHINGEST_KEYRING": str(keyring)})
    assert done.code == 0
    shown = pl.read_parquet(out)
    assert "last_name" not in shown.columns
    assert shown["email"].null_count() == 0
    state = shell.run("keys", "status", "--json", env={"HEALTHINGEST_KEYRING": str(keyring)})
    assert (state.code, state.json["role"], state.json["missing"]) == (0, "outreach", [])
    doctor = shell.run("doctor", "--json", env={"HEALTHINGEST_KEYRING": str(keyring)}).json["findings"]
    assert [f["state"] for f in doctor if f["subject"] == "keyring"] == ["ok"]
    for words in (("rotate", "acme"), ("revoke", "acme")):
        refused = shell.run("keys", *words, env={"HEALTHINGEST_KEYRING": str(keyring)})
        assert (refused.code, "a role's cannot be rotated" in refused.err) == (1, True)
    assert shell.run("audit", "verify").out.startswith("3 chains are whole. ")
    assert "outreach" in shell.run("audit", "show", "acme").out
    assert shell.run("keys", "role", "outreach", "--out", str(keyring)).code == 1


@pytest.mark.parametrize("folder", ["output", "output/checkpoint", "input/raw", "client_configs"])
@pytest.mark.parametrize("words", [["backup"], ["role", "outreach"]])
def test_a_copy_of_keys_is_not_written_into_a_data_folder(home: Platform, folder: str, words: list[str]) -> None:
    out = home.places.home / folder / "copy.json"
    refused = Shell(home.places.home.parent).run("keys", *words, "--out", str(out))
    assert refused.code == 2
    assert "must not lie in the data folder" in refused.err
    assert not out.exists()
    assert home.lake.events.read("_installation") == []


def test_a_backup_is_tried_and_restored(home: Platform, tmp_path: Path) -> None:
    shell, backup = Shell(home.places.home.parent), tmp_path / "safe.json"
    assert shell.run("keys", "backup", "--out", str(backup)).code == 0
    tried = shell.run("keys", "check", str(backup), "--json")
    assert tried.code == 0
    assert {r["what"].split()[0] for r in tried.json["results"] if r["client_id"] == "acme"} == {
        "bronze,",
        "vault",
        "rejected",
    }
    home.places.keyring.unlink()
    assert "restore it from its backup" in shell.run("export", "--purpose", "support", "--out", "x.csv").err
    backup.rename(home.places.keyring)
    assert shell.run("export", "--purpose", "support", "--out", str(tmp_path / "x.csv")).code == 0


def test_a_backup_that_lacks_a_client_is_found_out(home: Platform, tmp_path: Path) -> None:
    shell, backup = Shell(home.places.home.parent), tmp_path / "old.json"
    body = json.loads(home.places.keyring.read_text())
    del body["check"], body["keys"]["globex"]
    backup.write_text(json.dumps(body))
    backup.chmod(0o600)
    tried = shell.run("keys", "check", str(backup), "--json")
    assert tried.code == 1
    assert {r["client_id"] for r in tried.json["results"] if not r["opens"]} == {"globex"}


@pytest.mark.parametrize("purpose", ["member_token", "content_hash", "erasure", "file", "audit", "certificate"])
def test_a_backup_that_lacks_a_key_by_which_nothing_is_opened_is_found_out_too(
    home: Platform, tmp_path: Path, purpose: str
) -> None:
    shell, backup = Shell(home.places.home.parent), tmp_path / "old.json"
    body = json.loads(home.places.keyring.read_text())
    del body["check"], body["keys"]["*" if purpose in body["keys"]["*"] else "acme"][purpose]
    backup.write_text(json.dumps(body))
    backup.chmod(0o600)
    tried = shell.run("keys", "check", str(backup))
    assert tried.code == 1
    assert re.search(rf"FAILS +(acme|the installation) +key for {purpose}\n", tried.out)
    assert "Traceback" not in tried.err


def test_the_keyring_is_locked_and_unlocked_by_command(home: Platform, tmp_path: Path) -> None:
    kek = tmp_path / "kek"
    kek.write_text("ab" * 32)
    kek.chmod(0o600)
    shell = Shell(home.places.home.parent)
    assert shell.run("keys", "lock", "--kek", f"file:{kek}").code == 0
    assert f"file:{kek}" in shell.run("keys", "status").out
    assert shell.run("ingest", "--all").code == 0
    kek.write_text("cd" * 32)
    refused = shell.run("status")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    kek.write_text("ab" * 32)
    assert shell.run("keys", "lock").code == 0
    with pytest.raises(KeyringError):
        Platform.open(places_in(tmp_path / "elsewhere", HEALTHINGEST_KEYRING=kek))
