"""Another number of buckets: silver is as if it had been so from the start, and no reader notices the change."""

import json
import os
import random
import shutil
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.doctor import examine
from healthingest.erase import Request, erase_member
from healthingest.errors import UsageError
from healthingest.explain import explain
from healthingest.ingest import ingest, register
from healthingest.lake import relayout as writing
from healthingest.lake.relayout import OnGroup
from healthingest.lake.rewrite import files_in
from healthingest.maintain import maintain
from healthingest.model import Outcome
from healthingest.platform import Platform
from healthingest.reading import Reader
from healthingest.relayout import REBUCKETED, Relaid, buckets, plan_relayout, relayout
from healthingest.rotate import revoke, rotate
from healthingest.status import current
from healthingest_tests.conftest import configure, csv_of, deliver, drop, install, line
from healthingest_tests.histories import CONFIGS, change_feed_is_real, expected, found, history_of

ACME = "client_id: acme\n"
SIXTEEN = f"{ACME}silver: {{buckets: 16}}\n"


def rebucket(home: Platform, client_id: str, number: int, on_group: OnGroup = lambda *_: None) -> Relaid:
    return relayout(home, client_id, buckets(client_id, number), on_group=on_group)


def first(home: Platform, members: int = 40) -> None:
    deliver(home, "acme_20250106.csv", csv_of(*(line(f"M{n}") for n in range(members))))


def buckets_of(home: Platform, client_id: str = "acme") -> set[int]:
    """Buckets that the client's rows are in, each in the one that its token says."""
    silver = home.lake.silver_of(client_id)
    rows = silver.frame(["client_id", "member_token", "_bucket"], pl.col("client_id") == client_id)
    many = json.loads((home.places.output / "checkpoint" / "destinations" / f"{client_id}.json").read_text())["buckets"]
    assert all(int(row["member_token"][:8], 16) % many == row["_bucket"] for row in rows.to_dicts())
    return set(rows["_bucket"])


def content(home: Platform) -> pl.DataFrame:
    """Silver without what only says when a row was written."""
    return home.lake.silver_of("acme").frame().drop("_ingested_at").sort("member_token")


def as_if_from_the_start(home: Platform, other: Platform) -> None:
    assert content(home).equals(content(other))
    assert content(home).height


def test_after_it_silver_is_as_if_it_had_had_these_buckets_from_the_start(tmp_path: Path) -> None:
    home = install(tmp_path / "a", {"acme": ACME, "globex": "client_id: globex\n"})
    shutil.copytree(tmp_path / "a" / "keys", tmp_path / "b" / "keys")
    twin = install(tmp_path / "b", {"acme": SIXTEEN, "globex": "client_id: globex\n"})
    both = [home, twin]
    for one in both:
        first(one)
        deliver(one, "globex_20250106.csv", csv_of(line("G1")))
    opened_before = Platform.open(home.places)
    done = rebucket(home, "acme", 16)
    assert (done.was.buckets, done.shall.buckets, done.rows, done.version is not None) == (1, 16, 40, True)
    as_if_from_the_start(home, twin)

    def everywhere(name: str, *lines: str) -> None:
        for one in both:
            deliver(one, name, csv_of(*lines))
        as_if_from_the_start(home, twin)
        change_feed_is_real(home)

    everywhere("acme_20250107.csv", *(line(f"M{n}", city="Salem") for n in range(0, 50, 3)))
    everywhere("acme_20250107.csv", *(line(f"M{n}", city="Lynn") for n in range(0, 50, 6)), line("M9", city="Lynn"))
    ingest(opened_before, register(opened_before, drop(home, "acme_20250108.csv", csv_of(line("M1", city="Lynn")))),
           run_id="a process that was there before")  # fmt: skip
    deliver(twin, "acme_20250108.csv", csv_of(line("M1", city="Lynn")))
    as_if_from_the_start(home, twin)
    for one in both:
        certificate = erase_member(one, "acme", "M3", Request())
        assert certificate["looked_through"]["silver"]["found"] == 0
    as_if_from_the_start(home, twin)
    readers = [Reader.of(one, "operations", "operations") for one in both]
    told = [explain(o, "acme", "M9", r, lambda _: None) for o, r in zip(both, readers, strict=True)]
    assert [m.changed for m in told[0].mentions] == [m.changed for m in told[1].mentions]
    rotate(home, "acme")
    assert revoke(Platform.open(home.places), "acme") == 1
    home = Platform.open(home.places)
    assert len(buckets_of(home)) > 8
    deliver(home, "acme_20250109.csv", csv_of(line("M5", city="Lynn"), line("N1")))
    shown = export_of(home)

    home = configure(home, SIXTEEN)
    for place in ("silver", "vault", "checkpoint/sightings", "checkpoint/audit", "checkpoint/destinations"):
        shutil.rmtree(home.places.output / place)
    run(home, "ingest", "--from-bronze")
    home = Platform.open(home.places)
    assert export_of(home) == shown
    assert len(buckets_of(home)) > 8


def export_of(home: Platform) -> list[tuple[str, ...]]:
    from healthingest.export import export_frame

    return export_frame(Platform.open(home.places)).select("client_id", "member_id", "city").sort(pl.all()).rows()


def run(home: Platform, *words: str, code: int = 0) -> str:
    env = {"HEALTHINGEST_HOME": str(home.places.home), "HEALTHINGEST_KEYRING": str(home.places.keyring)}
    done = CliRunner().invoke(app, list(words), env=env)
    assert done.exit_code == code, done.output
    return done.output


def test_no_reader_notices(home: Platform) -> None:
    first(home)
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem")))
    table = home.lake.silver.handle()
    before, said = pl.scan_delta(table).collect().drop("_bucket"), table.metadata()
    done = rebucket(home, "acme", 4)
    now = home.lake.silver.handle()
    assert (now.metadata().id, now.metadata().partition_columns) == (said.id, said.partition_columns)
    assert (now.metadata().name, now.metadata().configuration) == (said.name, said.configuration)
    assert now.schema().to_json() == table.schema().to_json()
    assert pl.DataFrame(now.load_cdf(starting_version=done.version)).is_empty()
    assert pl.scan_delta(table).collect().drop("_bucket").sort("member_token").equals(before.sort("member_token"))
    same = pl.scan_delta(now).collect().drop("_bucket").sort("member_token")
    assert same.equals(before.sort("member_token"))
    maintain(home)
    change_feed_is_real(home)
    assert "REBUCKET" in [entry["operation"] for entry in now.history()]
    assert [event["to"] for event in home.lake.events.read("acme") if event["kind"] == REBUCKETED] == [4]


@pytest.mark.skipif(not os.environ.get("HEALTHINGEST_NIGHTLY"), reason="for the night; the kills have one in CI")
@pytest.mark.parametrize("seed", range(20))
def test_random_histories_end_as_they_must_with_other_buckets_at_any_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(writing, "GROUP_ROWS", 3)
    monkeypatch.setattr(writing, "FILE_ROWS", 2)
    home, files = install(tmp_path, CONFIGS), history_of(chance)
    for name, text in files:
        ingest(home, register(home, drop(home, name, text)), run_id="any")
        client_id = name.split("_")[0]
        if chance.random() < 0.7 and home.lake.silver_of(client_id).exists():
            before, number = export_of(home), chance.choice([1, 2, 3, 4, 6, 16, 256])
            rebucket(home, client_id, number)
            assert export_of(home) == before
            assert buckets_of(home, client_id) <= set(range(number))
    assert found(home) == expected(files)
    change_feed_is_real(home)


def test_a_config_that_wants_other_buckets_is_told_and_its_files_go_on(home: Platform) -> None:
    first(home)
    home = configure(home, SIXTEEN)
    assert not home.clients.problems
    assert deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem"))).counts.updated == 1
    assert buckets_of(home) == {0}
    (wish,) = current(home)["wishes"]
    assert "wants its rows in output/silver in 16 buckets and has them in output/silver" in wish
    assert [f.text for f in examine(home.places) if f.subject == "layout of silver"] == [wish]
    assert "healthingest silver rebucket --client acme" in run(home, "status")
    planned = run(home, "silver", "rebucket", "--client", "acme", "--plan")
    assert "40 rows in 1 files" in planned
    assert "from output/silver to output/silver in 16 buckets" in planned
    assert buckets_of(home) == {0}
    assert "from output/silver to output/silver in 16 buckets, in version" in run(
        home, "silver", "rebucket", "--client", "acme"
    )
    assert len(buckets_of(home)) > 8
    assert "nothing to do" in run(home, "silver", "rebucket", "--client", "acme")
    assert not current(Platform.open(home.places))["wishes"]
    said = json.loads(run(home, "silver", "rebucket", "--client", "acme", "--buckets", "2", "--json"))
    assert (said["was"]["buckets"], said["shall"]["buckets"], said["rows"]) == (16, 2, 40)
    assert "Its YAML says otherwise; write silver: {buckets: 2}" in run(
        home, "silver", "rebucket", "--client", "acme", "--buckets", "2"
    )


class Died(BaseException):
    """As if the process had been killed."""


def dies(_done: int, _of: int, *, after: int) -> None:
    if _done == after:
        raise Died


def test_what_was_cut_off_goes_on_behind_the_last_group_unless_the_rows_have_changed(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 10)
    first(home)

    def cut_off(after: int) -> None:
        with pytest.raises(Died):
            rebucket(home, "acme", 16, on_group=lambda done, of: dies(done, of, after=after))

    cut_off(2)
    assert [f.state for f in examine(home.places) if f.subject == "relayout"] == ["warn"]
    assert (
        plan_relayout(home, "acme", buckets("acme", 16)).groups_done,
        plan_relayout(home, "acme", buckets("acme", 16)).groups,
    ) == (2, 4)
    begun: list[int] = []
    cut = pytest.raises(Died)
    with cut:
        rebucket(home, "acme", 16, on_group=lambda done, of: (begun.append(done), dies(done, of, after=3)))
    assert begun == [2, 3]
    deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem")))
    assert plan_relayout(home, "acme", buckets("acme", 16)).groups_done == 0
    cut_off(1)
    erase_member(home, "acme", "M99", Request())  # of whom silver has nothing, but whatever no version needs goes
    begun.clear()
    rebucket(home, "acme", 16, on_group=lambda done, _of: begun.append(done))
    assert begun == [0, 1, 2, 3, 4]
    silver = home.lake.silver
    live = {silver.path / file.path for file in files_in(silver.snapshot(), {"client_id": "acme"})}
    marks = {path.name.split("-", 2)[2] for path in live}
    assert (len(marks), len(live)) == (1, len(buckets_of(home)))
    assert export_of(home)[1][2] == "Salem"


def test_a_plan_for_another_number_is_forgotten_with_its_files(home: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "GROUP_ROWS", 10)
    first(home)
    before = home.lake.silver.files_of("acme")
    with pytest.raises(Died):
        rebucket(home, "acme", 16, on_group=lambda done, of: dies(done, of, after=2))
    assert home.lake.silver.files_of("acme") > before
    assert rebucket(home, "acme", 1).version is None
    assert home.lake.silver.files_of("acme") == before
    assert not [f for f in examine(home.places) if f.subject == "relayout"]


def test_who_has_no_rows_or_no_buckets_is_told_so(tmp_path: Path) -> None:
    dated = "silver: {table: special, partition_by: [client_id, creation_date]}\n"
    home = install(tmp_path, {"acme": ACME, "globex": f"client_id: globex\n{dated}"})
    with pytest.raises(UsageError, match="no rows in silver yet"):
        rebucket(home, "acme", 16)
    deliver(home, "globex_20250106.csv", csv_of(line("G1")))
    with pytest.raises(UsageError, match="partitioned by date"):
        rebucket(home, "globex", 16)
    assert "healthingest:" in run(home, "silver", "rebucket", "--client", "nobody", "--buckets", "4", code=2)


def test_the_log_tells_how_many_buckets_there_are_where_the_note_is_gone(home: Platform) -> None:
    first(home)
    rebucket(home, "acme", 4)
    (home.places.output / "checkpoint" / "destinations" / "acme.json").unlink()
    home = Platform.open(home.places)
    assert not home.clients.problems
    assert deliver(home, "acme_20250107.csv", csv_of(line("M1", city="Salem"), line("N1"))).counts.updated == 1
    rows = home.lake.silver.frame(["member_token", "_bucket"])
    assert all(int(row["member_token"][:8], 16) % 4 == row["_bucket"] for row in rows.to_dicts())


def test_files_that_arrive_meanwhile_wait(home: Platform) -> None:
    first(home)
    delivery = register(home, drop(home, "acme_20250107.csv", csv_of(line("M1", city="Salem"))))
    with ThreadPoolExecutor(1) as others:
        late: list[Future[Outcome]] = []

        def arrives(done: int, _of: int) -> None:
            if done == 0:
                late.append(others.submit(ingest, home, delivery, run_id="late"))
            assert not wait(late, timeout=0.2).done

        version = rebucket(home, "acme", 4, on_group=arrives).version
        outcome = late[0].result(60)
    assert outcome.counts.updated == 1
    assert outcome.silver_version == (version or 0) + 1
    assert len(buckets_of(home)) == 4
