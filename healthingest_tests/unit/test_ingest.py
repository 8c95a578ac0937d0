"""One delivery's whole way: accounting, repeats, order, hold, failures, crashes and concurrency, on real tables."""

import gzip
import itertools
import multiprocessing as mp
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable, write_deltalake

from healthingest.doctor import examine
from healthingest.errors import IncompleteError, UnroutableError
from healthingest.export import export_frame
from healthingest.ingest import deliveries, ingest, record_unroutable, register
from healthingest.lake.audit import Audit
from healthingest.lake.quarantine import Quarantine, open_record
from healthingest.lake.sightings import Sightings
from healthingest.lake.silver import Silver
from healthingest.lake.vault import Vault
from healthingest.model import Counts, Outcome
from healthingest.places import Places
from healthingest.platform import Platform
from healthingest.storage.files import remove_tree
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, drop, install, line

HOLD = "client_id: acme\nquality: {max_invalid_ratio: 0.4, on_breach: hold}\n"


def accounted(outcome: Outcome) -> Counts:
    """The counts, once every equation of the design holds."""
    c = outcome.counts
    assert c.physical_lines == c.header_lines + c.record_lines + c.blank_lines + c.trailer_lines
    assert c.records == c.accepted + c.rejected
    if outcome.status == "succeeded":
        assert c.accepted == c.inserted + c.updated + c.unchanged + c.stale + c.suppressed + c.duplicates
    return c


def members(home: Platform) -> dict[tuple[str, str], str]:
    """(client, member) -> city: what an authorised person sees."""
    rows = export_frame(home)
    return {(row["client_id"], row["member_id"]): row["city"] for row in rows.to_dicts()}


def versions(home: Platform) -> dict[str, int | None]:
    lake = home.lake
    return {t.path.name: t.version() for t in (lake.silver, lake.quarantine, lake.sightings, lake.audit)}


def files(home: Platform) -> set[Path]:
    return {p for p in home.places.output.rglob("*") if p.is_file()}


def changes(home: Platform, since: int = 0) -> list[str]:
    """The kinds of change in silver's Change Data Feed from a version on."""
    table = DeltaTable(home.lake.silver.uri)
    if since > table.version():
        return []
    feed = table.load_cdf(starting_version=since).read_all()
    return sorted(pl.DataFrame(feed)["_change_type"]) if feed.num_rows else []


def run(home: Platform, name: str) -> Outcome:
    """Ingest a file that has landed."""
    return ingest(home, register(home, home.places.landing / name), run_id="r")


# --- accounting -----------------------------------------------------------------------------------------------


def test_a_first_delivery_is_accounted_for_and_comes_back_value_by_value(home: Platform) -> None:
    done = deliver(
        home, "acme_20250106.csv", csv_of(line("M1"), "", line("M2", zip="1"), "short", line("M3", phone_number=""))
    )
    assert done.status == "succeeded"
    assert done.fresh
    c = accounted(done)
    assert (c.records, c.accepted, c.rejected, c.malformed, c.inserted, c.blank_lines) == (4, 2, 2, 1, 2, 1)
    rows = export_frame(home).to_dicts()
    assert [row["member_id"] for row in rows] == ["M1", "M3"]
    assert rows[0] == {
        "client_id": "acme", "member_id": "M1", "first_name": "Ada", "last_name": "Lovelace", "dob": "1980-12-10",
        "gender": "F", "address": "12 Main St", "city": "Boston", "state": "MA", "zip": "02139",
        "phone_number": "+16172531000", "email": "ada@example.com", "birth_year": 1980, "zip3": "021",
        "creation_date": date(2025, 1, 6), "last_seen": date(2025, 1, 6),
    }  # fmt: skip
    row = home.lake.audit.row(done.delivery.file_id)
    assert row is not None
    assert (row["status"], row["silver_version"], row["invalid_ratio"]) == ("succeeded", done.silver_version, 0.5)
    assert Counts(**{name: row[name] for name in Counts.names()}) == c


def test_the_next_day_tells_new_changed_and_unchanged_members_apart(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(10))))
    version = home.lake.silver.version()
    assert version is not None
    text = csv_of(*(line(f"M{n}", city="Lynn" if n in (3, 4) else "Boston") for n in range(2, 12)))
    c = accounted(deliver(home, "acme_20250107.csv", text))
    assert (c.inserted, c.updated, c.unchanged, c.stale) == (2, 2, 6, 0)
    assert changes(home, version + 1) == ["insert"] * 2 + ["update_postimage"] * 2 + ["update_preimage"] * 2
    assert members(home)["acme", "M3"] == "Lynn"
    seen = {row["member_id"]: (row["creation_date"].day, row["last_seen"].day) for row in export_frame(home).to_dicts()}
    assert (seen["M0"], seen["M2"], seen["M3"]) == ((6, 6), (6, 7), (7, 7))


def test_of_several_records_of_a_member_the_last_valid_one_wins(home: Platform) -> None:
    lines = [
        line("M1", city="First"),
        line("M2"),
        line("M1", city="Last"),
        line("M1", city="Bad", zip="x"),
        line(" M1 ", city="Very last"),
    ]
    c = accounted(deliver(home, "acme_20250106.csv", csv_of(*lines)))
    assert (c.duplicates, c.inserted, c.rejected) == (2, 2, 1)
    assert members(home) == {("acme", "M1"): "Very last", ("acme", "M2"): "Boston"}


def test_formatting_alone_is_no_change(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    same = line(
        " M1",
        state="massachusetts",
        gender="Female",
        phone_number="+1 (617) 253-1000",
        email="ADA@example.com",
        city=" Boston ",
    )
    assert accounted(deliver(home, "acme_20250107.csv", csv_of(same))).unchanged == 1


def test_a_value_that_disappears_is_a_change(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    assert accounted(deliver(home, "acme_20250107.csv", csv_of(line("M1", email="")))).updated == 1
    assert export_frame(home)["email"].to_list() == [None]


def test_equal_ids_of_two_clients_are_two_members(tmp_path: Path) -> None:
    home = install(tmp_path, {name: f"client_id: {name}\n" for name in ("acme", "globex")})
    deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Lynn")))
    deliver(home, "globex_20250107.csv", csv_of(line("M1", city="Salem")))
    assert members(home) == {("acme", "M1"): "Lynn", ("globex", "M1"): "Salem"}
    assert home.lake.silver.frame()["member_token"].n_unique() == 2


@pytest.mark.parametrize("text", [HEADER, HEADER + "\n", csv_of("x", "y")])
def test_a_delivery_without_an_accepted_record_succeeds_and_is_recorded(home: Platform, text: str) -> None:
    done = deliver(home, "acme_20250106.csv", text)
    assert (done.status, accounted(done).accepted) == ("succeeded", 0)
    assert done.message
    assert not run(home, "acme_20250106.csv").fresh


def test_two_clients_on_different_contracts_share_silver(tmp_path: Path) -> None:
    home = install(tmp_path, {"acme": "client_id: acme\n", "globex": "client_id: globex\ncontract: member/2\n"})
    folder = home.places.configs / "contracts" / "member"
    text = (folder / "1.yaml").read_text().replace("version: 1\n", "version: 2\n").replace("on: 1,", "on: 2,")
    extra = "  - {name: plan, type: text, policy: {keep: true}}\nrules:\n"
    (folder / "2.yaml").write_text(text.replace("rules:\n", extra))
    home = Platform.open(home.places)
    for day in (6, 7):  # the second day merges, in both directions
        deliver(home, f"acme_2025010{day}.csv", csv_of(line("M1", state="MA" if day == 6 else "NH"), line("M2")))
        text = csv_of(line("M1") + f",gold{day}", line(f"N{day}") + ",", header=HEADER + ",plan")
        assert deliver(home, f"globex_2025010{day}.csv", text).status == "succeeded"
    silver = home.lake.silver.frame().sort("client_id", "birth_year")
    assert silver.filter(pl.col("plan").is_not_null())["plan"].to_list() == ["gold7"]
    assert silver["client_id"].to_list() == ["acme"] * 2 + ["globex"] * 3


# --- repeats --------------------------------------------------------------------------------------------------


def test_a_repeat_changes_nothing_and_reports_the_same(home: Platform) -> None:
    texts = {
        "acme_20250106.csv": csv_of(line("M1"), "x"),
        "acme_20250107.csv": csv_of(line("M1", city="Lynn"), line("M2")),
    }
    first = {name: deliver(home, name, text) for name, text in texts.items()}
    before, seen, feed = versions(home), files(home), changes(home)
    for name, text in texts.items():
        again = deliver(home, name, text)
        assert not again.fresh
        assert (again.status, again.counts, again.silver_version, again.profile.rules) == (
            first[name].status, first[name].counts, first[name].silver_version, first[name].profile.rules,
        )  # fmt: skip
    assert versions(home) == before
    assert files(home) == seen
    assert changes(home) == feed


def test_the_same_content_under_another_name_is_another_delivery_without_changes(home: Platform) -> None:
    text = csv_of(line("M1"), line("M2"))
    one = deliver(home, "acme_20250106.csv", text)
    version = home.lake.silver.version()
    assert version is not None
    two = deliver(home, "acme_20250107_1.csv", text)
    assert (one.delivery.file_id == two.delivery.file_id, one.delivery.content_hmac == two.delivery.content_hmac) == (
        False,
        True,
    )
    assert accounted(two).unchanged == 2
    assert changes(home, version + 1) == []


def test_a_name_that_comes_again_with_other_bytes_is_the_slots_next_delivery_and_wins(home: Platform) -> None:
    one = deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Lynn")))
    two = deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Salem")))
    assert (one.delivery.delivery_no, two.delivery.delivery_no) == (1, 2)
    assert members(home) == {("acme", "M1"): "Salem"}
    assert [d.file_id for d in deliveries(home, "acme", date(2025, 1, 6))] == [
        one.delivery.file_id,
        two.delivery.file_id,
    ]
    with home.lake.bronze.open(one.delivery) as source:
        assert b"Lynn" in source.read()


# --- order ----------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, str]] = {
    "seen again unchanged after a late change": {
        "acme_20250101.csv": csv_of(line("M", city="A")),
        "acme_20250103.csv": csv_of(line("M", city="A")),
        "acme_20250102.csv": csv_of(line("M", city="B")),
    },
    "suffixes and names of one day": {
        "acme_20250101.csv": csv_of(line("M", city="A"), line("N", city="A")),
        "acme_20250101_1.csv": csv_of(line("M", city="B"), line("O", city="B")),
        "acme_20250101_2.csv": csv_of(line("M", city="C"), line("N", city="A")),
        "acme_2025-01-01_2.csv": csv_of(line("O", city="D")),
    },
    "back and forth, rejects and duplicates": {
        "acme_20250101.csv": csv_of(line("M", city="A"), line("N", city="A"), "x"),
        "acme_20250102.csv": csv_of(line("M", city="B"), line("N", city="B", zip="bad"), line("M", city="A")),
        "acme_20250103.csv": csv_of(line("N", city="B"), line("M", city="A", state="zz")),
        "acme_20250104.csv": csv_of(line("N", city="A")),
    },
}


def state(home: Platform) -> list[tuple[object, ...]]:
    rows = export_frame(home)
    return rows.drop("creation_date").rows()  # it names the record that last changed the member, which order may choose


@pytest.mark.parametrize("case", CASES)
def test_the_result_does_not_depend_on_the_order_of_arrival(tmp_path: Path, case: str) -> None:
    deliveries_of = CASES[case]
    results = {}
    for number, order in enumerate(itertools.permutations(deliveries_of)):
        if number % 3 and len(deliveries_of) > 3:  # eight of 24 orders, spread
            continue
        home = install(tmp_path / str(number))
        for name in order:
            accounted(deliver(home, name, deliveries_of[name]))
        results[order] = state(home)
    expected = (
        results[tuple(sorted(deliveries_of))]
        if tuple(sorted(deliveries_of)) in results
        else next(iter(results.values()))
    )
    assert {order: result for order, result in results.items() if result != expected} == {}
    assert expected


def test_the_known_counterexample_ends_with_the_latest_sighting(home: Platform) -> None:
    for name, text in CASES["seen again unchanged after a late change"].items():
        last = deliver(home, name, text)
    assert last.counts.stale == 1
    assert members(home) == {("acme", "M"): "A"}


def test_record_dates_of_a_backfill_decide_over_file_names(home: Platform) -> None:
    home = configure(home, "client_id: acme\nsource: {creation_date: {from: column, column: creation_date}}\n")
    header = HEADER + ",creation_date"
    deliver(
        home,
        "acme_20250106.csv",
        csv_of(line("M", city="New") + ",2024-12-01", line("N", city="Old") + ",2023-01-01", header=header),
    )
    c = accounted(
        deliver(
            home,
            "acme_20250107.csv",
            csv_of(line("M", city="Old") + ",2024-11-01", line("N", city="New") + ",2024-01-01", header=header),
        )
    )
    assert (c.stale, c.updated) == (1, 1)
    assert members(home) == {("acme", "M"): "New", ("acme", "N"): "New"}
    assert sorted(home.lake.silver.frame()["creation_date"]) == [date(2024, 1, 1), date(2024, 12, 1)]


# --- hold, alert, failure -------------------------------------------------------------------------------------


def test_a_held_delivery_leaves_silver_and_stays_held(home: Platform) -> None:
    home = configure(home, HOLD)
    deliver(home, "acme_20250105.csv", csv_of(line("M1", city="Lynn")))
    held = deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Salem"), "x", line("M2", zip="1")))
    assert (held.status, held.error_kind, held.breached) == ("held", "held", True)
    assert "held" in str(held.message)
    assert members(home) == {("acme", "M1"): "Lynn"}
    assert home.lake.quarantine.frame()["record_no"].sort().to_list() == [2, 3]
    row = home.lake.audit.row(held.delivery.file_id)
    assert row is not None
    assert (row["status"], row["rejected"], row["accepted"]) == ("held", 2, 1)
    before = versions(home)
    again = run(home, "acme_20250106.csv")
    assert (again.status, again.fresh, again.counts) == ("held", False, held.counts)
    assert versions(home) == before


def test_a_held_delivery_makes_no_record_stale(home: Platform) -> None:
    home = configure(home, HOLD)
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Held"), "x", "y"))
    assert accounted(deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Lynn")))).inserted == 1
    assert members(home) == {("acme", "M1"): "Lynn"}


def test_a_held_delivery_is_held_by_the_config_it_came_under(home: Platform) -> None:
    home = configure(home, HOLD)
    delivery = register(home, drop(home, "acme_20250106.csv", csv_of(line("M1"), "x")))
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 1.0}\n")
    assert ingest(home, delivery, run_id="r").status == "held"


def test_an_alert_takes_the_accepted_records(home: Platform) -> None:
    done = deliver(home, "acme_20250106.csv", csv_of(line("M1"), "x", "y"))
    assert (done.status, done.breached) == ("succeeded", True)
    assert "2 of 3 records were rejected (66.7%" in str(done.message)
    assert [(r.rule, r.records) for r in done.profile.rules] == [("too_few_fields", 2)]
    assert len(members(home)) == 1


@pytest.mark.parametrize("ratio", [0.5, 0.6])
def test_a_ratio_at_the_limit_is_within_it(home: Platform, ratio: float) -> None:
    home = configure(home, f"client_id: acme\nquality: {{max_invalid_ratio: {ratio}, on_breach: hold}}\n")
    assert deliver(home, "acme_20250106.csv", csv_of(line("M1"), "x")).status == "succeeded"


GZ = gzip.compress(csv_of(line("M1")).encode(), mtime=0)  # workers of a test run must name its tests alike


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("acme_20250107.csv", "", "empty_file"), ("acme_20250107.csv", "\n\n", "empty_file"),
        ("acme_20250107.csv.gz", GZ[:-9], "damaged_gzip"), ("acme_20250107.csv", b"PK\x03\x04" + b"\x00" * 99,
        "not_text"),
        ("acme_20250107.csv", csv_of(line("M1")).replace(",", ";"), "missing_column"),
        ("acme_20250107.csv", line("M1") + "\n", "missing_column"),
        ("acme_20250107.csv", csv_of(line("M1"), header=HEADER.replace("city", "zip")), "duplicate_column"),
        ("acme_20250107.csv", csv_of(line("M1"), "TRAILER,2"), "trailer"),
            ("acme_20250107.csv", csv_of(line("M1"), line("M2")), "trailer"),
    ],
)  # fmt: skip
def test_a_delivery_that_fails_as_a_whole_merges_nothing_and_is_recorded(
    home: Platform, name: str, data: str | bytes, kind: str
) -> None:
    home = configure(home, "client_id: acme\nsource: {trailer: {starts_with: TRAILER, count_field: 2}}\n")
    assert deliver(home, "acme_20250106.csv", csv_of(line("M9"), "TRAILER,1")).status == "succeeded"
    before = versions(home)
    failed = deliver(home, name, data)
    assert (failed.status, failed.error_kind, failed.fresh) == ("failed", kind, True)
    assert failed.message
    assert "Lovelace" not in failed.message
    after = versions(home)
    assert {t for t in after if after[t] != before[t]} == {"audit"}
    assert (home.places.landing / name).exists()
    row = home.lake.audit.row(failed.delivery.file_id)
    assert row is not None
    assert (row["status"], row["error_kind"]) == ("failed", kind)
    again = run(home, name)
    assert (again.status, again.fresh) == ("failed", False)
    assert versions(home) == after


def test_a_file_that_leads_nowhere_gets_one_row(home: Platform) -> None:
    path = drop(home, "globex_20250106.csv", csv_of(line("M1")))
    with pytest.raises(UnroutableError) as caught:
        register(home, path)
    assert record_unroutable(home, path, caught.value, run_id="r")
    assert not record_unroutable(home, path, caught.value, run_id="r")
    (row,) = home.lake.audit.frame().to_dicts()
    assert (row["status"], row["file_name"], row["client_id"]) == ("unroutable", "globex_20250106.csv", None)


# --- quarantine -----------------------------------------------------------------------------------------------


def test_a_sealed_record_opens_to_exactly_what_was_rejected(home: Platform) -> None:
    bad = [
        line("M1", zip="x", address='"12 ""Main"" St, Apt 3"', city=""),
        "M2,short",
        line("M3", first_name="Zo\u00eb", state="??") + ",too,long",
        line("M4", first_name="\x07bell"),
        line("M5", dob="31/12/1980", email=" spaced@ "),
    ]  # fmt: skip
    data = csv_of(*bad, line("M6")).encode() + b"M7,\xff\xfe\n"
    done = deliver(home, "acme_20250106.csv", data)
    rows = home.lake.quarantine.frame().sort("record_no").to_dicts()
    assert [row["record_no"] for row in rows] == [1, 2, 3, 4, 5, 7]
    opened = [open_record(home.keyring, "acme", row["file_id"], row["record_no"], row["sealed_record"]) for row in rows]
    assert opened == [*(text.encode() for text in bad), b"M7,\xff\xfe"]
    assert {row["file_id"] for row in rows} == {done.delivery.file_id}
    assert all(row["state"] == "open" for row in rows)
    assert all(row["expected_fields"] == 11 for row in rows if row["record_no"] in (2, 3, 7))


# --- crashes --------------------------------------------------------------------------------------------------

BOUNDARIES: list[tuple[type, str]] = [
    (Quarantine, "put"), (Sightings, "put"), (Vault, "put"), (Silver, "commit"), (Audit, "put"),
]  # fmt: skip


class Crash(BaseException):
    """The process dies here; nothing may catch it."""


@pytest.mark.parametrize(("owner", "step"), BOUNDARIES, ids=lambda x: getattr(x, "__name__", x))
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("hold", [False, True], ids=["apply", "hold"])
def test_a_crash_at_any_step_is_healed_by_the_next_call(
    home: Platform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, owner: type, step: str, before: bool, hold: bool
) -> None:
    home = configure(home, HOLD) if hold else home
    deliver(home, "acme_20250105.csv", csv_of(line("M1"), line("M2"), line("M4")))
    text = csv_of(line("M1"), line("M2", city="Lynn"), line("M3"), "x", *(["y"] * 3 if hold else []))
    delivery = register(home, drop(home, "acme_20250106.csv", text))
    real: Callable[..., object] = getattr(owner, step)

    def dies(*args: object, **kwargs: object) -> object:
        if not before:
            real(*args, **kwargs)
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(owner, step, dies)
        if hold and owner is Vault:
            assert ingest(home, delivery, run_id="dies").status == "held"  # nothing to write there
        else:
            with pytest.raises(Crash):
                ingest(home, delivery, run_id="dies")
    healed = ingest(home, delivery, run_id="heals")
    c = accounted(healed)
    assert healed.status == ("held" if hold else "succeeded")
    expected = (0, 0, 0) if hold else (1, 1, 1)
    assert (c.inserted, c.updated, c.unchanged) == expected
    assert members(home)["acme", "M2"] == ("Boston" if hold else "Lynn")
    assert len(members(home)) == (3 if hold else 4)
    assert home.lake.audit.frame().filter(file_id=delivery.file_id)["status"].to_list() == [healed.status]
    assert home.lake.quarantine.frame().height == c.rejected
    row = home.lake.audit.row(delivery.file_id)
    assert row is not None
    assert Counts(**{name: row[name] for name in Counts.names()}) == c
    assert not ingest(home, delivery, run_id="again").fresh


def test_a_crash_between_bronze_and_its_manifest_gives_the_same_delivery(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(home, "acme_20250106.csv", csv_of(line("M1")))

    def dies(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(type(home.lake.bronze), "_write_manifest", dies)
        with pytest.raises(Crash):
            register(home, path)
    assert register(home, path).delivery_no == 1
    assert not list((home.places.output / "bronze").rglob("*.tmp"))


def test_what_a_process_sealed_and_numbered_before_it_died_is_registered_though_its_file_was_overwritten(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(type(home.lake.bronze), "_write_manifest", dies)
        with pytest.raises(Crash):
            register(home, drop(home, "acme_20250106.csv", csv_of(line("M1"), line("M2"))))
    assert deliver(home, "acme_20250106.csv", csv_of(line("M1", city="Salem"))).delivery.delivery_no == 2
    audit = home.lake.audit.frame(["delivery_no", "status", "inserted"]).sort("delivery_no")
    assert audit.rows() == [(1, "succeeded", 2), (2, "succeeded", 0)]
    assert list(home.lake.bronze.unfinished("acme")) == []


def test_a_file_that_was_overtaken_while_it_was_read_takes_no_number(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = drop(home, "acme_20250106.csv", csv_of(line("M1")))
    real = type(home.lake.bronze)._copy

    def overtaken(*args: object) -> object:
        """The file was read; before it has a number the next one lands and is registered."""
        read = real(*args)
        if list(home.lake.bronze.all()) == []:
            with monkeypatch.context() as patched:
                patched.setattr(type(home.lake.bronze), "_copy", real)
                newer = path.with_name(".newer")
                newer.write_text(csv_of(line("M1", city="Salem")))
                newer.rename(path)
                assert register(home, path).delivery_no == 1
        return read

    monkeypatch.setattr(type(home.lake.bronze), "_copy", overtaken)
    with pytest.raises(UnroutableError, match="changed while it was read"):
        register(home, path)
    assert len(list(home.lake.bronze.all())) == 1


def test_a_member_whom_a_resend_dates_back_falls_to_what_another_file_says(home: Platform) -> None:
    config = "client_id: acme\nsource: {creation_date: {from: column, column: creation_date}}\n"
    home = configure(home, config)

    def dated(city: str, day: int) -> str:
        return csv_of(f"{line('M', city=city)},2025-01-0{day}", header=f"{HEADER},creation_date")

    deliver(home, "acme_20250106.csv", dated("Boston", 3))
    deliver(home, "acme_20250107.csv", dated("Salem", 2))
    deliver(home, "acme_20250106.csv", dated("Lowell", 1))
    assert members_of_silver(home) == [("M", "Salem")]


@pytest.mark.parametrize("given", ["x", line("L")], ids=["nothing", "somebody else"])
def test_a_member_who_would_fall_back_to_what_bronze_no_longer_gives_fails_the_resend_in_words(
    home: Platform, given: str
) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("K"), line("L"), line("M")))
    other = deliver(home, "acme_20250105.csv", csv_of(given)).delivery
    seen = home.lake.sightings.frame(None, pl.col("sequence").str.contains(" 0000000003 "))
    told = {"file_id": other.file_id, "file_name": other.file_name, "content_hash": "0" * 32}
    seen = seen.with_columns(**{column: pl.lit(value) for column, value in told.items()})
    write_deltalake(home.lake.sightings.uri, seen, mode="append")
    failed = deliver(home, "acme_20250106.csv", csv_of(line("K"), line("L")))
    assert failed.status == "failed"
    assert "no longer gives what was sighted" in str(failed.message)


# --- concurrency ----------------------------------------------------------------------------------------------


def _work(places: Places, names: Sequence[str], barrier: "mp.synchronize.Barrier", queue: "mp.Queue[object]") -> None:
    try:
        home = Platform.open(places)
        barrier.wait(60)
        queue.put([run(home, name).status for name in names])
    except BaseException as error:  # noqa: BLE001 - the parent must see it
        queue.put(repr(error))


def at_once(home: Platform, *work: Sequence[str]) -> list[object]:
    """Run each list of file names in a process of its own, all starting together."""
    spawn = mp.get_context("spawn")
    barrier, queue = spawn.Barrier(len(work)), spawn.Queue()
    workers = [spawn.Process(target=_work, args=(home.places, names, barrier, queue)) for names in work]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=90) for _ in workers]
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    return results


def test_two_processes_with_one_delivery_do_it_once(home: Platform) -> None:
    text = csv_of(*(line(f"M{n}") for n in range(50)), "x")
    drop(home, "acme_20250106.csv", text)
    names = ["acme_20250106.csv"]
    assert at_once(home, names, names) == [["succeeded"], ["succeeded"]]
    assert len(members(home)) == 50
    assert changes(home) == ["insert"] * 50
    assert home.lake.audit.frame()["inserted"].to_list() == [50]
    assert home.lake.quarantine.frame().height == 1
    assert home.lake.sightings.frame().height == 50
    assert deciding_commits(home, run(home, "acme_20250106.csv")) == 1


def deciding_commits(home: Platform, outcome: Outcome) -> int:
    """How many of silver's commits carry this delivery."""
    return sum(
        outcome.delivery.file_id in str(e.get("healthingest")) for e in DeltaTable(home.lake.silver.uri).history()
    )


def test_a_worker_that_is_overtaken_on_its_own_delivery_reports_the_others_decision(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery = register(home, drop(home, "acme_20250106.csv", csv_of(line("M1"), line("M2"), "x")))
    real, others = Silver.commit, []

    def overtaken(self: Silver, *args: object) -> int:
        """Before this worker's first commit another one does the whole delivery."""
        if not others:
            others.append(None)
            others[0] = ingest(home, delivery, run_id="faster")
        return real(self, *args)

    monkeypatch.setattr(Silver, "commit", overtaken)
    slower = ingest(home, delivery, run_id="slower")
    assert (slower.status, slower.fresh, others[0].fresh) == ("succeeded", False, True)
    assert slower.counts == others[0].counts
    assert (slower.silver_version, deciding_commits(home, slower)) == (others[0].silver_version, 1)
    assert len(export_frame(home)) == 2, "the part that no commit names does no harm"


def test_processes_with_different_deliveries_of_one_client_end_as_one_after_the_other(
    home: Platform, tmp_path: Path
) -> None:
    texts = {
        f"acme_2025010{day}.csv": csv_of(*(line(f"M{n}", city="AB"[n % day == 0]) for n in range(day, 30 + day)), "x")
        for day in range(1, 7)
    }
    alone = install(tmp_path / "alone")
    for name, text in texts.items():
        drop(home, name, text)
        deliver(alone, name, text)
    names = sorted(texts)
    assert (
        at_once(
            home,
            names[1::2],
            names[-2::-2],
        )
        == [["succeeded"] * 3] * 2
    )
    assert state(home) == state(alone)
    audit = home.lake.audit.frame()
    assert audit.height == audit["file_id"].n_unique() == 6
    parts = audit.select(
        pl.sum_horizontal("inserted", "updated", "unchanged", "stale", "duplicates") == pl.col("accepted")
    )
    assert parts.to_series().all()
    assert home.lake.silver.frame().select("client_id", "member_token").is_unique().all()


def test_a_rejected_record_is_sealed_with_all_its_fields_in_the_files_order(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", "note,last_name,first_name,member_id,dob\nhello,LAST,FIRST,M1,1980-99-01\n")
    row = home.lake.quarantine.frame().to_dicts()[0]
    opened = open_record(home.keyring, "acme", row["file_id"], row["record_no"], row["sealed_record"])
    assert opened == b"hello,LAST,FIRST,M1,1980-99-01"


@pytest.mark.parametrize("lost", ["silver", "checkpoint/sightings"])
def test_a_lost_table_is_an_error_and_not_a_new_one(home: Platform, lost: str) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    remove_tree(home.places.output / lost)
    with pytest.raises(IncompleteError, match="restore it from its backup"):
        Platform.open(home.places)
    assert any(f.state == "fail" and "restore" in f.text for f in examine(home.places))


def test_an_export_refuses_members_whose_values_are_gone(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2")))
    deliver(home, "acme_20250107.csv", csv_of(line("M2", city="Salem")))
    next((home.places.output / "vault" / "client_id=acme").glob("*-2-*.parquet")).unlink()
    with pytest.raises(IncompleteError, match="no values for 1 members of acme"):
        export_frame(home)


def test_a_date_that_is_a_members_value_cannot_order_records(home: Platform) -> None:
    text = "client_id: acme\nsource: {creation_date: {from: column, column: dob}}\n"
    problem = configure(home, text).clients.problems[0]
    assert "policy drop" in str(problem)
    assert problem.key == "source.creation_date.column"


def test_an_empty_export_has_the_header_that_members_would_have(home: Platform) -> None:
    empty = export_frame(home).columns
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    assert empty == export_frame(home).columns


def members_of_silver(home: Platform) -> list[tuple[str, str]]:
    return export_frame(home).select("member_id", "city").sort("member_id").rows()


#: A slot that is sent twice, the second time without M, and an older file of another slot that names M.
RESENT = [
    ("acme_20250106.csv", csv_of(line("M", city="Boston"), line("K"), line("L"))),
    ("acme_20250106.csv", csv_of(line("K", city="Salem"), line("L"))),
    ("acme_20250105.csv", csv_of(line("M", city="Lynn"))),
]


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (2, 0, 1)])
def test_a_resent_file_replaces_the_earlier_one_as_a_whole_whatever_the_order(
    home: Platform, order: tuple[int, ...]
) -> None:
    for number in order:
        assert deliver(home, *RESENT[number]).status == "succeeded"
    assert members_of_silver(home) == [("K", "Salem"), ("L", "Boston"), ("M", "Lynn")]
    seen = dict(export_frame(home).select("member_id", "last_seen").rows())
    assert str(seen["M"]) == "2025-01-05"


def test_a_member_that_no_other_delivery_names_leaves_silver_with_the_superseded_file(home: Platform) -> None:
    deliver(home, *RESENT[0])
    outcome = deliver(home, *RESENT[1])
    assert members_of_silver(home) == [("K", "Salem"), ("L", "Boston")]
    assert "1 were removed, 0 fell back" in (outcome.message or "")
    changes = pl.DataFrame(home.lake.silver.snapshot().load_cdf(starting_version=outcome.silver_version or 0))
    assert sorted(changes["_change_type"]) == ["delete", "update_postimage", "update_preimage"]


def test_an_earlier_delivery_of_a_name_that_died_is_decided_before_the_next_one(home: Platform) -> None:
    first = register(home, drop(home, *RESENT[0]))
    outcome = deliver(home, *RESENT[1])
    assert (outcome.counts.updated, outcome.counts.unchanged) == (1, 1)
    audit = home.lake.audit.frame(["delivery_no", "status", "inserted"]).sort("delivery_no")
    assert audit.rows() == [(1, "succeeded", 3), (2, "succeeded", 0)]
    assert not ingest(home, first, run_id="again").fresh


def test_whether_a_resend_is_held_does_not_depend_on_the_order_of_other_names(home: Platform, tmp_path: Path) -> None:
    whole = ("acme_20250106.csv", csv_of(*(line(f"M{i}") for i in range(4))))
    cut = ("acme_20250106.csv", csv_of(line("M0")))
    older = ("acme_20250105.csv", csv_of(*(line(f"M{i}") for i in range(1, 4))))  # what would be lost has a fallback
    ends = []
    for number, order in enumerate(([whole, cut, older], [older, whole, cut], [whole, older, cut])):
        there = install(tmp_path / str(number))
        ends.append((sorted(deliver(there, *file).status for file in order), members_of_silver(there)))
    assert ends[0] == ends[1] == ends[2]
    assert ends[0][0] == ["held", "succeeded", "succeeded"]


def test_a_superseded_delivery_that_is_decided_late_changes_nothing(home: Platform) -> None:
    first = register(home, drop(home, *RESENT[0]))
    failed = Outcome(first, "failed", fresh=True, error_kind="config", message="Its contract was away.")
    home.lake.audit.put([failed], run_id="r", started_at=datetime.now(UTC))
    deliver(home, *RESENT[1])
    late = ingest(home, first, run_id="late")
    assert (late.status, late.counts.stale) == ("succeeded", 3)
    assert members_of_silver(home) == [("K", "Salem"), ("L", "Boston")]


def test_a_truncated_resend_is_held_instead_of_emptying_silver(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{i}") for i in range(9))))
    outcome = deliver(home, "acme_20250106.csv", csv_of(line("M0", city="Salem")))
    assert outcome.status == "held"
    assert "take back more members than it brings" in (outcome.message or "")
    assert deliver(home, "acme_20250106.csv", csv_of()).status == "held"
    assert [city for _, city in members_of_silver(home)] == ["Boston"] * 9


def test_the_third_delivery_of_a_slot_brings_back_what_the_second_took(home: Platform) -> None:
    for number in (0, 1):
        deliver(home, *RESENT[number])
    third = RESENT[0][1].replace("Boston", "Lowell", 1)
    assert deliver(home, "acme_20250106.csv", third).status == "succeeded"
    assert members_of_silver(home) == [("K", "Boston"), ("L", "Boston"), ("M", "Lowell")]
