"""Erasure: a member or a client is gone from everything, others are as they were, and no file brings it back."""

import gzip
import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from healthingest import read_silver
from healthingest.absence import Member, look_for
from healthingest.bulk import ingest_bronze
from healthingest.cli import app
from healthingest.erase import Request, erase_client, erase_member, release_hold, set_hold
from healthingest.errors import BusyError, IncompleteError, KeyringError, UsageError
from healthingest.ingest import ingest, register
from healthingest.lake.quarantine import open_record
from healthingest.maintain import maintain
from healthingest.planning import plan_paths
from healthingest.platform import Platform
from healthingest.privacy.certificate import faults, public_key
from healthingest.privacy.keyring_file import keyring_status
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, drop, install, line

NOW = Request(wait=0)
GONE = "M2"


@pytest.fixture(autouse=True)
def _named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTHINGEST_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HEALTHINGEST_KEYRING", str(tmp_path / "keys" / "keyring.json"))


def found_of(home: Platform, member_id: str = GONE, client_id: str = "acme") -> dict[str, int]:
    return {place: said.found for place, said in look_for(home, Member.of(home, client_id, member_id)).items()}


def shown(home: Platform) -> pl.DataFrame:
    return read_silver(role="operations", places=home.places).collect().sort("client_id", "member_id")


def with_history(tmp_path: Path) -> Platform:
    """Three clients with three days each, M2 among them: changed, re-sent, rejected, malformed, compressed, held."""
    names = ("acme", "globex", "initech")
    home = install(tmp_path, {name: f"client_id: {name}\nquality: {{max_invalid_ratio: 1.0}}\n" for name in names})
    for name in names:
        for day in range(1, 4):
            rows = [line(f"M{n}", city=f"City {day}", address="2 Main St") for n in range(5)]
            deliver(home, f"{name}_2025010{day}.csv", csv_of(*rows, line(GONE, zip="12"), f"{GONE},too,few"))
        deliver(home, f"{name}_20250103.csv", csv_of(line("M1"), line(GONE, city="Re-sent"), line("M7"), line("M8")))
        deliver(home, f"{name}_20250104.csv.gz", gzip.compress(csv_of(line("M1"), line(GONE, city="Packed")).encode()))
        deliver(home, f"{name}_20250105.csv", "no header\n" + line(GONE) + "\n")  # fails as a whole
    return home


def test_a_member_is_gone_everywhere_and_nothing_else_is(tmp_path: Path) -> None:
    home = with_history(tmp_path)
    before, others = shown(home), found_of(home, client_id="globex")
    stood = found_of(home)
    assert all(stood[place] for place in ("bronze", "quarantine", "vault", "silver", "sightings", "landing")), stood
    certificate = erase_member(home, "acme", GONE, NOW)
    assert [said["found"] for said in certificate["looked_through"].values()] == [0] * 6
    assert found_of(home) == dict.fromkeys(stood, 0) | {"silver": 1}  # the feed still tells of the removal
    mine = (pl.col("client_id") == "acme") & (pl.col("member_id") == GONE)
    assert shown(home).equals(before.filter(~mine))
    assert found_of(home, client_id="globex") == others
    assert "(erased)" in CliRunner().invoke(app, ["quarantine", "show", "acme_20250101.csv", "--values"]).output


def test_no_byte_of_the_installation_holds_the_member_once_it_is_opened(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n"})
    canary = line("Z9canary", last_name="Zcanaryname", email="zcanary@example.com")
    bad = line("Z9canary", last_name="Zcanaryname", zip="12")
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), canary, bad, '"multi\nline",' + "Z9canary", line("M3")))
    erase_member(home, "acme", "Z9canary", Request(wait=0, notice=NOW.notice * 0))
    bronze = [r.delivery for r in home.lake.bronze.of_client("acme")]
    left = b"".join(home.lake.bronze.open(delivery).read() for delivery in bronze)
    assert left.decode() == csv_of(line("M1"), "erased", "erased", '"erased\n"', line("M3"))
    token = Member.of(home, "acme", "Z9canary").token
    files = [path for path in home.places.home.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        raw = path.read_bytes()
        assert b"canary" not in raw.lower(), path
        assert token.encode() not in raw, path
        if path.suffix == ".parquet" and "vault" not in path.parts:
            assert token not in str(pl.read_parquet(path, hive_partitioning=False).to_dicts()), path


def opened(home: Platform, client_id: str = "acme") -> bytes:
    """All that bronze and sealed records hold of a client, once it is opened."""
    bronze = [home.lake.bronze.open(r.delivery).read() for r in home.lake.bronze.of_client(client_id)]
    rows = home.lake.quarantine.frame(None, pl.col("sealed_record").is_not_null())
    named = rows.filter(pl.col("client_id") == client_id).select("file_id", "record_no", "sealed_record")
    return b"\n".join([*bronze, *(open_record(home.keyring, client_id, *row) for row in named.iter_rows())])


@pytest.mark.parametrize(
    "raw",
    ["\u00a0Z2", "Z2\u00a0", '"\u2003Z2 "', "\u200bZ2", f"{' ' * 200}Z2", "#z2#"],
    ids=["no-break", "no-break after", "em space", "zero width", "wide", "as the client writes it"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_rejected_and_malformed_records_are_found_however_their_id_is_written(
    tmp_path: Path, raw: str, encoding: str
) -> None:
    config = "quality: {max_invalid_ratio: 1.0}\ncolumns: {member_id: {to: member_id, strip: '#', case: upper}}\n"
    home = install(tmp_path, {"acme": f"client_id: acme\nsource: {{encoding: {encoding}}}\n{config}"})
    gone = {"last_name": "Zgone"}
    text = csv_of(line("M1"), line(raw, **gone), line(raw, **gone, zip="1"), f"{raw},Zgone", line(raw, **gone) + ",x")
    sent = text.encode(encoding, "ignore")
    deliver(home, "acme_20250101.csv", sent)
    erase_member(home, "acme", "Z2", NOW)
    assert b"Zgone" not in opened(home)
    deliver(home, "acme_20250102.csv", sent)
    assert b"Zgone" not in opened(home)
    assert b"M1" in opened(home)


@pytest.mark.parametrize("other", ["|", ";", "\t"])
def test_a_file_and_a_record_with_a_wrong_delimiter_are_looked_through(tmp_path: Path, other: str) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n"})
    gone = line("Z2", last_name="Zgone")
    whole = csv_of(line("M1"), gone, line("M3")).replace(",", other)
    assert deliver(home, "acme_20250101.csv", whole).status == "failed"
    deliver(home, "acme_20250102.csv", csv_of(line("M1"), gone.replace(",", other), line("M3").replace(",", other)))
    erase_member(home, "acme", "Z2", NOW)
    assert b"Zgone" not in opened(home)
    assert opened(home).count(b"M3") == 3  # others' stay
    assert not list(home.places.landing.iterdir())


def test_a_rejected_record_is_found_where_a_transform_makes_the_id(tmp_path: Path) -> None:
    made = "transform: [{concat: [group, number], separator: '-', to: member_id}]\n"
    home = install(tmp_path, {"acme": f"client_id: acme\nquality: {{max_invalid_ratio: 1.0}}\n{made}"})
    header = "group," + HEADER.replace("member_id", "number")
    bad = "G1," + line("2", last_name="Zgone", zip="1")
    others = "G1," + line("3", zip="1")
    deliver(home, "acme_20250101.csv", csv_of("G1," + line("1"), "G1," + line("2"), bad, others, header=header))
    certificate = erase_member(home, "acme", "G1-2", NOW)
    assert certificate["erased"]["rejected_records"] == 1
    deliver(home, "acme_20250102.csv", csv_of("G1," + line("1"), bad, others, header=header))
    assert b"Zgone" not in opened(home)
    assert sorted(home.lake.quarantine.frame()["state"]) == ["erased", "erased", "open", "open"]


def test_a_late_file_does_not_bring_an_erased_member_back_and_is_accounted_for(tmp_path: Path) -> None:
    home = with_history(tmp_path)
    erase_member(home, "acme", GONE, NOW)
    late = csv_of(line("M1", city="Late"), line(GONE), line(GONE, city="Twice"), line(GONE, zip="1"), f"{GONE},x")
    counts = deliver(home, "acme_20250109.csv", late).counts
    assert (counts.records, counts.accepted, counts.rejected) == (5, 3, 2)
    assert (counts.duplicates, counts.suppressed, counts.updated) == (1, 1, 1)
    again = deliver(home, "acme_20250109_1.csv", csv_of(line("M1", city="Late"), line(GONE)))
    assert (again.counts.suppressed, again.counts.unchanged) == (1, 1)
    (home.places.landing / "acme_20250109.csv").unlink()
    (home.places.landing / "acme_20250109_1.csv").unlink()
    look = look_for(
        home, Member.of(home, "acme", GONE), but=set((home.lake.silver.path / "_change_data").rglob("*.parquet"))
    )
    assert {place: said.found for place, said in look.items() if said.found} == {}
    # Of another client it is another member.
    assert deliver(home, "globex_20250109.csv", csv_of(line(GONE, city="New"))).counts.updated == 1


def test_the_file_that_was_ingested_before_lands_again_and_does_nothing(home: Platform) -> None:
    text = csv_of(line("M1"), line(GONE))
    deliver(home, "acme_20250101.csv", text)
    erase_member(home, "acme", GONE, NOW)
    assert not (home.places.landing / "acme_20250101.csv").exists()
    again = deliver(home, "acme_20250101.csv", text)
    assert (again.fresh, again.delivery.delivery_no) == (False, 1)
    assert shown(home)["member_id"].to_list() == ["M1"]


def test_readers_and_the_change_feed_go_on(tmp_path: Path) -> None:
    home = with_history(tmp_path)
    seen, frame = home.lake.silver.version(), read_silver(role="operations", places=home.places)
    certificate = erase_member(home, "acme", GONE, NOW)
    deliver(home, "acme_20250109.csv", csv_of(line("M1", city="Later"), line("M9")))
    first = certificate["change_feed"]["silver_from_version"]
    assert first == seen + 1
    table = DeltaTable(home.lake.silver.uri)
    feed = pl.DataFrame(table.load_cdf(starting_version=first).read_all())
    removed = feed.filter(pl.col("_change_type") == "delete")
    assert removed["member_token"].to_list() == [Member.of(home, "acme", GONE).token]
    assert feed.filter(pl.col("_commit_version") > first)["_change_type"].sort().to_list() == [
        "insert", "update_postimage", "update_preimage",
    ]  # fmt: skip
    # A frame that was made before, and is read now: its version is gone, the reader takes the one that is there.
    late = frame.filter(pl.col("client_id") == "acme").collect()
    assert GONE not in late["member_id"].to_list()
    assert late.height == shown(home).filter(pl.col("client_id") == "acme").height


def test_the_feed_tells_of_the_removal_for_a_while_and_then_no_more(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    erase_member(home, "acme", GONE, Request(wait=0))
    told = list((home.lake.silver.path / "_change_data").rglob("*.parquet"))
    assert len(told) == 1
    maintain(home)
    assert told[0].exists()
    (note,) = home.lake.erasures.root.rglob("*.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"notice_until": "2026-01-01T00:00:00+00:00"}))
    assert "erasures: change feed" in {step.name for step in maintain(home)}
    assert not told[0].exists()


def test_a_second_certificate_tells_of_the_change_data_that_the_first_left(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    first, second = (erase_member(home, "acme", GONE, NOW)["change_feed"]["removal_stays_until"] for _ in range(2))
    assert first == second is not None
    last = erase_member(home, "acme", GONE, Request(wait=0, notice=NOW.notice * 0))
    assert last["change_feed"]["removal_stays_until"] is None
    assert not list((home.lake.silver.path / "_change_data").rglob("*.parquet"))


def test_an_erasure_that_died_before_its_certificate_gets_it_from_the_same_command(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))

    def die(step: str) -> None:
        if step == "looking through landing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        erase_member(home, "acme", GONE, Request(wait=0, notice=NOW.notice * 0, on_step=die))
    again = CliRunner().invoke(app, ["erase", "member", "--client", "acme", "--json"], input=f"{GONE}\n")
    assert again.exit_code == 0, again.output
    assert json.loads(again.output)["kind"] == "member"


@pytest.mark.parametrize("place", ["silver", "checkpoint/sightings", "vault", "quarantine", "bronze/acme"])
def test_what_comes_back_into_any_place_is_found_and_no_certificate_is_given(
    home: Platform, tmp_path: Path, place: str
) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE), line(GONE, zip="12")))
    shutil.copytree(home.places.output / place, tmp_path / "before")

    def plant(step: str) -> None:
        if step == "looking through landing":
            shutil.copytree(tmp_path / "before", home.places.output / place, dirs_exist_ok=True)

    with pytest.raises(IncompleteError, match="found again"):
        erase_member(home, "acme", GONE, Request(wait=0, on_step=plant))
    assert not list((home.places.output / "checkpoint").glob("certificates/*"))


def test_tables_built_again_from_bronze_do_not_have_the_member(tmp_path: Path) -> None:
    home = with_history(tmp_path)
    erase_member(home, "acme", GONE, NOW)
    before = shown(home).drop("creation_date")
    for folder in ("silver", "vault", "quarantine", "checkpoint/sightings", "checkpoint/audit"):
        remove_tree(home.places.output / folder)
    again = Platform.open(home.places, whole=False)
    outcomes = [o for group in ingest_bronze(again, run_id="again") for o in group]
    assert {o.status for o in outcomes} == {"succeeded", "failed"}
    assert shown(again).drop("creation_date").equals(before)


def test_a_certificate_names_nobody_and_can_be_checked(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("Zmember7")))
    token = Member.of(home, "acme", "Zmember7").token
    entry = home.lake.erasures.entry("acme", "Zmember7")
    out = tmp_path / "certificate.json"
    args = ["erase", "member", "--client", "acme", "--out", str(out), "--backups-until", "2027-01-31", "--json"]
    said = CliRunner().invoke(app, args, input="Zmember7\n")
    assert said.exit_code == 0, said.output
    text = out.read_text()
    assert not {"Zmember7", token, entry} & set(text.replace('"', " ").split())
    assert not any(secret in text for secret in ("Zmember7", token, entry))
    assert json.loads(text)["backups"]["until"] == "2027-01-31"
    assert CliRunner().invoke(app, ["erase", "verify", str(out)]).exit_code == 0
    assert faults(out, keyring_status(home.places)["certificate_key"]) == []
    body = json.loads(text)
    body["erased"]["silver"] = 7
    out.write_text(json.dumps(body))
    assert CliRunner().invoke(app, ["erase", "verify", str(out)]).exit_code == 1
    other = install(tmp_path / "other")
    assert faults(out, public_key(other.keyring)) == ["It was signed by another key."]
    assert [e["kind"] for e in home.lake.events.read("acme")].count("erased") == 1
    assert "Zmember7" not in (home.lake.events.root / "acme.jsonl").read_text()


def test_the_command_finds_nobody_by_a_wrong_id_and_erases_nobody_in_a_dry_run(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    run = CliRunner().invoke
    assert run(app, ["erase", "member", "--client", "acme"], input="M3\n").exit_code == 2
    assert home.lake.erasures.entries("acme") == frozenset()
    dry = json.loads(run(app, ["erase", "member", "--client", "acme", "--dry-run", "--json"], input="M2\n").output)
    assert dry["places"]["silver"]["found"] == 1
    assert shown(home).height == 2
    assert run(app, ["erase", "member", "--client", "acme", "--unseen"], input="M3\n").exit_code == 0
    assert deliver(home, "acme_20250102.csv", csv_of(line("M3"))).counts.suppressed == 1


def test_a_member_is_erased_by_its_token_without_the_id_being_known(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    token = Member.of(home, "acme", GONE).token
    done = CliRunner().invoke(app, ["erase", "member", "--client", "acme", "--token", token])
    assert done.exit_code == 0, done.output
    assert shown(home)["member_id"].to_list() == ["M1"]


@pytest.mark.parametrize("reason", ["", "case 7\nand more", "case \udcff", "\x1b[31mcase 7", "x" * 201])
def test_the_reason_of_a_hold_is_a_short_line_or_nothing_is_done(home: Platform, reason: str) -> None:
    with pytest.raises(UsageError, match="one line of text"):
        set_hold(home, "acme", GONE, reason)
    assert home.lake.holds.entries("acme") == frozenset()
    assert home.lake.events.read("acme") == []


def test_a_legal_hold_keeps_a_member_and_a_client(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    set_hold(home, "acme", GONE, "case 7")
    for attempt in (lambda: erase_member(home, "acme", GONE, NOW), lambda: erase_client(home, "acme", NOW)):
        with pytest.raises(UsageError, match="legal hold"):
            attempt()
    assert found_of(home)["silver"] == 1
    release_hold(home, "acme", GONE)
    (home.places.configs / "acme.yaml").write_text("client_id: acme\nlegal_hold: case 8\n")
    held = Platform.open(home.places)
    for attempt in (lambda: erase_member(held, "acme", GONE, NOW), lambda: erase_client(held, "acme", NOW)):
        with pytest.raises(UsageError, match="case 8"):
            attempt()
    assert found_of(home)["silver"] == 1
    erase_member(home, "acme", GONE, NOW)


def test_a_hold_on_an_id_that_silver_does_not_have_says_so(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    hold, said = ["erase", "hold", "--client", "acme", "--reason", "case 7"], {}
    for given in (GONE, GONE.lower()):
        said[given] = CliRunner().invoke(app, hold, input=f"{given}\n").output
    assert said[GONE] == "The member is held.\n"
    assert "check the id" in said[GONE.lower()]


def test_nothing_is_erased_while_a_config_that_may_hold_a_legal_hold_cannot_be_read(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    (home.places.configs / "acme.yaml").write_text("client_id: acme\nlegal_hold: case 8\nqualty: {}\n")
    run = CliRunner().invoke
    for words in (["member", "--client", "acme", "--dry-run"], ["member", "--client", "acme"], ["client", "acme"]):
        said = run(app, ["erase", *words], input=f"{GONE}\n")
        assert (said.exit_code, "acme.yaml cannot be used" in said.output) == (2, True), said.output
    (home.places.configs / "acme.yaml").write_text("client_id: acme\n")
    assert found_of(Platform.open(home.places))["silver"] == 1


def test_a_client_without_a_config_is_erased_with_what_landed_and_its_members_wait_for_the_config(
    home: Platform,
) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    (home.places.configs / "acme.yaml").unlink()
    run = CliRunner().invoke
    said = run(app, ["erase", "member", "--client", "acme"], input=f"{GONE}\n")
    assert (said.exit_code, "put its YAML back" in said.output) == (2, True), said.output
    for name in ("acme_20250102.csv", "acme_20990101.csv", "acme_b_20250101.csv"):
        drop(home, name, csv_of(line(GONE)))
    said = run(app, ["erase", "client", "acme", "--json"])
    assert json.loads(said.output)["erased"]["landing"] == 3
    assert [path.name for path in home.places.landing.iterdir()] == ["acme_b_20250101.csv"]


def test_a_member_of_a_client_that_is_not_active_any_more_is_erased_from_what_landed_too(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    idle = configure(home, "client_id: acme\nactive: false\n")
    assert erase_member(idle, "acme", GONE, NOW)["erased"]["landed_files"] == 1
    assert found_of(idle) == dict.fromkeys(found_of(idle), 0) | {"silver": 1}


def test_an_erasure_waits_for_attempts_and_gives_up_having_done_nothing(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    with home.lake.exclusion.shared("acme"), pytest.raises(BusyError):
        erase_member(home, "acme", GONE, NOW)
    with home.lake.exclusion.maintenance(), pytest.raises(BusyError):
        erase_member(home, "acme", GONE, NOW)
    assert home.lake.erasures.entries("acme") == frozenset()
    with home.lake.exclusion.shared("globex"):
        erase_member(home, "acme", GONE, NOW)


def test_a_client_is_erased_with_its_keys_and_others_go_on(tmp_path: Path) -> None:
    home = with_history(tmp_path)
    before = shown(home).filter(pl.col("client_id") != "acme")
    certificate = erase_client(home, "acme", NOW)
    assert certificate["erased"]["silver"] == 7
    assert certificate["keys_destroyed"]
    again = Platform.open(home.places)
    assert not again.keyring.holds("bronze", "acme")
    assert shown(again).equals(before)
    assert not [p for p in home.places.output.rglob("*") if "client_id=acme" in str(p) and p.is_file()]
    assert not list(home.places.landing.glob("acme*"))
    with pytest.raises(KeyringError, match="destroyed"):
        register(again, drop(again, "acme_20250110.csv", csv_of(line("M1"))))
    assert deliver(again, "globex_20250110.csv", csv_of(line("M1", city="On"))).counts.updated == 1
    assert erase_client(again, "acme", NOW)["kind"] == "client"  # once more does no harm


@pytest.mark.parametrize("seed", range(6))
def test_erasures_anywhere_in_a_random_history_leave_what_the_others_said(tmp_path: Path, seed: int) -> None:
    """Silver without the member is what it would have been had no file ever named it, but for holds and ratios."""
    chance = random.Random(seed)
    files: list[tuple[str, str]] = []
    for day in range(1, 6):
        for _ in range(chance.choice([1, 1, 2])):
            rows = [line(f"M{n}", city=chance.choice(["Lynn", "Salem"])) for n in range(6) if chance.random() < 0.7]
            rows += [line(chance.choice(["M1", GONE]), zip="1")] * chance.randint(0, 2)
            chance.shuffle(rows)
            files.append((f"acme_2025010{day}.csv", csv_of(*rows)))
    config = {"acme": "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n"}
    home, plain = install(tmp_path / "a", config), install(tmp_path / "b", config)
    at = chance.sample(range(len(files)), 2)
    for number, (name, text) in enumerate(files):
        if number in at:
            erase_member(home, "acme", GONE, NOW)
        ingest(home, register(home, drop(home, name, text)), run_id="r")
        kept = [row for row in text.splitlines()[1:] if not row.startswith(f"{GONE},")]
        ingest(plain, register(plain, drop(plain, name, csv_of(*kept, header=HEADER))), run_id="r")
    columns = ["member_id", "city", "zip"]
    now, then = shown(home), shown(plain)
    assert now.select(columns).equals(then.select(columns))
    look = look_for(
        home, Member.of(home, "acme", GONE), but=set((home.lake.silver.path / "_change_data").rglob("*.parquet"))
    )
    assert {place: said.found for place, said in look.items() if said.found and place != "landing"} == {}


def test_a_plan_foretells_what_becomes_of_a_late_file(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line(GONE)))
    erase_member(home, "acme", GONE, NOW)
    path = drop(home, "acme_20250109.csv", csv_of(line("M1", city="Late"), line(GONE), line(GONE, city="Twice")))
    (planned,) = plan_paths(home, [path])
    done = ingest(home, register(home, path), run_id="r").counts
    assert planned.counts == done
    assert (done.suppressed, done.duplicates, done.updated) == (1, 1, 1)


def test_what_was_registered_and_never_decided_is_decided_once_its_landed_file_is_gone(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line(GONE), line("M1")))
    register(home, drop(home, "acme_20250102.csv", csv_of(line(GONE), line("M1", city="Salem"), line("M3"))))
    erase_member(home, "acme", GONE, NOW)  # removes the landed file, which speaks of the member
    assert not list(home.places.landing.iterdir())
    assert shown(home)["member_id", "city"].rows() == [("M1", "Salem"), ("M3", "Boston")]
    assert home.lake.audit.frame(["file_name", "status", "suppressed"]).sort("file_name").rows()[-1] == (
        "acme_20250102.csv", "succeeded", 1,
    )  # fmt: skip
