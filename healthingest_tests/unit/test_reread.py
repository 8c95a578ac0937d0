"""Deliveries read again after a config or contract was mended: silver is as if it had been so from the start."""

import copy
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from healthingest.alerting.watch import Watch
from healthingest.cli import app
from healthingest.export import export_frame
from healthingest.ingest import landed_before, register, replaces
from healthingest.platform import Platform
from healthingest.reread import foretell, read_again, stale
from healthingest.revert import revert
from healthingest_tests.conftest import CONTRACTS, HEADER, configure, csv_of, deliver, env_of, install, line
from healthingest_tests.unit.test_revert import rebuilt, shown

MEMBER: dict[str, Any] = yaml.safe_load((CONTRACTS / "member" / "1.yaml").read_text())
LOOSE = "client_id: acme\nrules: [{id: city.length, column: city, max_length: 500}]\n"
LONG = "Llanfair" * 20
FILES = {
    "acme_20250106.csv": csv_of(line("M1", city=LONG), line("M2"), line("M3", city=LONG)),
    "acme_20250107.csv": csv_of(line("M2", city="Lynn"), line("M3", city="Salem")),
    "acme_20250108.csv": csv_of(line("M4", city=LONG), line("M5", zip="1")),
}


def silver(home: Platform) -> list[dict[str, object]]:
    """Everything that silver says of the members, but which of equal records says it."""
    frame = export_frame(Platform.open(home.places))
    return frame.drop([c for c in frame.columns if c.startswith("_")]).sort("member_id").to_dicts()


def as_if(tmp_path: Path, config: str, files: dict[str, str], change: Any = None) -> list[dict[str, object]]:
    """Silver of an installation that had this config from the start."""
    other = install(tmp_path / "other", {"acme": config})
    if change:
        change(other)
        other = Platform.open(other.places)
    for name, text in files.items():
        deliver(other, name, text)
    return silver(other)


def again(home: Platform, *names: str) -> list[str]:
    platform = Platform.open(home.places)
    groups = list(read_again(platform, stale(platform, "acme", names), run_id="again"))
    return [f"{o.delivery.file_name} {o.delivery.delivery_no} {o.status}" for group in groups for o in group]


def test_what_counts_in_the_place_of_a_reverted_delivery_is_read_again(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", city=LONG), line("M2")))
    second = deliver(home, "acme_20250106.csv", csv_of(line("M3"))).delivery
    revert(home, second, by="jane", reason="the wrong file", wait=0)
    home = configure(home, LOOSE)
    assert again(home) == ["acme_20250106.csv 3 succeeded"]
    assert shown(home).keys() == {"M1", "M2"}
    assert shown(rebuilt(home)).keys() == {"M1", "M2"}


def test_a_reading_that_was_taken_back_is_not_made_again_by_the_same_config(home: Platform) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1", city=LONG), line("M2")))
    home = configure(home, LOOSE)
    again(home)
    (latest,) = home.lake.bronze.latest("acme")
    revert(home, latest.delivery, by="jane", reason="the rule was right", wait=0)
    assert stale(home, "acme") == []
    assert shown(home).keys() == {"M2"}


def test_a_rule_that_is_eased_releases_what_it_kept_out_and_later_files_still_win(
    home: Platform, tmp_path: Path
) -> None:
    for name, text in FILES.items():
        deliver(home, name, text)
    home = configure(home, LOOSE)
    found = stale(home, "acme")
    plan = list(foretell(home, found))
    assert [(one.released, one.refused, one.after.rejected) for one in plan] == [(2, 0, 0), (0, 0, 0), (1, 0, 1)]
    assert again(home) == [f"{name} 2 succeeded" for name in FILES]
    assert silver(home) == as_if(tmp_path, LOOSE, FILES)
    states = home.lake.quarantine.frame(["file_name", "state"]).sort("file_name", "state").rows()
    assert states == [
        ("acme_20250106.csv", "released"), ("acme_20250106.csv", "released"), ("acme_20250108.csv", "open"),
        ("acme_20250108.csv", "released"), ("acme_20250108.csv", "released"),
    ]  # fmt: skip


def test_it_is_done_once_and_what_is_built_from_bronze_is_the_same(home: Platform) -> None:
    for name, text in FILES.items():
        deliver(home, name, text)
    home = configure(home, LOOSE)
    again(home)
    before = silver(home)
    assert again(home) == []
    for folder in ("silver", "vault", "quarantine", "checkpoint/sightings", "checkpoint/audit"):
        (home.places.output / folder).rename(home.places.output / f"{folder.replace('/', '-')}.away")
    done = CliRunner().invoke(
        app, ["ingest", "--from-bronze", "--json"],
        env=env_of(home.places),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert silver(home) == before


def test_a_stricter_config_takes_out_what_it_refuses_and_others_take_its_place(home: Platform, tmp_path: Path) -> None:
    for name, text in FILES.items():
        deliver(home, name, text)
    strict = "client_id: acme\nrules: [{id: salem, column: city, not_in: [Salem, Lynn, Boston]}]\n"
    home = configure(home, strict + "quality: {max_invalid_ratio: 1.0}\n")
    assert [one.refused for one in foretell(home, stale(home, "acme"))] == [1, 2, 0]
    again(home, "acme_20250107.csv")
    rest = {name: text for name, text in FILES.items() if name != "acme_20250107.csv"}
    assert silver(home) == as_if(tmp_path, "client_id: acme\n", rest)


def test_a_config_that_is_taken_back_takes_back_what_it_did(home: Platform) -> None:
    for name, text in FILES.items():
        deliver(home, name, text)
    before = silver(home)
    again(configure(home, LOOSE))
    assert silver(home) != before
    assert again(configure(home, "client_id: acme\n")) == [f"{name} 3 succeeded" for name in FILES]
    assert silver(home) == before


def test_a_column_that_was_not_known_is_filled_as_if_it_had_been_from_the_start(home: Platform, tmp_path: Path) -> None:
    files = {
        f"acme_2025010{day}.csv": csv_of(*(f"{line(f'M{n}')},Mid{n}{day}" for n in range(day)), header=f"{HEADER},mid")
        for day in (6, 7, 8)
    }
    for name, text in files.items():
        deliver(home, name, text)
    wider = copy.deepcopy(MEMBER) | {"version": 2}
    wider["columns"].append({"name": "middle_name", "type": "name", "policy": {"vault": "identity"}})
    config = "client_id: acme\ncontract: member/2\ncolumns: {mid: middle_name}\n"

    def publish(at: Platform) -> None:
        (at.places.configs / "contracts" / "member" / "2.yaml").write_text(yaml.safe_dump(wider, sort_keys=False))

    publish(home)
    again(configure(home, config))
    assert {row["middle_name"] for row in silver(home)} == {f"Mid{n}8" for n in range(8)}
    assert silver(home) == as_if(tmp_path, config, files, publish)


def test_a_file_that_could_not_be_read_at_all_can_be_once_its_config_fits(home: Platform) -> None:
    assert deliver(home, "acme_20250106.csv", csv_of(line("M1")).replace(",", "|")).status == "failed"
    home = configure(home, "client_id: acme\nsource: {delimiter: '|'}\n")
    (one,) = foretell(home, stale(home, "acme"))
    assert (one.status, one.released) == ("failed", 1)
    assert again(home) == ["acme_20250106.csv 2 succeeded"]
    assert len(silver(home)) == 1


def test_what_is_read_again_is_no_new_delivery_and_its_landed_file_is_no_changed_one(home: Platform) -> None:
    for name, text in FILES.items():
        deliver(home, name, text)
    Watch.over(home.places).look()
    home = configure(home, LOOSE)
    again(home)
    audit = home.lake.audit.frame().filter(file_name="acme_20250106.csv").sort("delivery_no")
    assert audit["reread_of"].to_list() == [None, audit["file_id"][0]]
    assert audit["ingestion_time"].n_unique() == 1
    landed = register(home, home.places.landing / "acme_20250106.csv")
    assert (landed.delivery_no, landed_before(home, landed)) == (1, None)
    newest = home.lake.bronze.find("acme", audit["file_id"][1])
    assert newest
    assert replaces(home, newest.delivery) is None
    looked = Watch.over(home.places).look()
    assert {a.condition for a in looked.book.alerts.values() if a.open} == {"invalid_ratio"}  # the last file, still


def test_whoever_dies_between_the_number_and_the_manifest_leaves_what_the_next_finishes(
    home: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in FILES.items():
        deliver(home, name, text)
    home = configure(home, LOOSE)

    def dies(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("healthingest.lake.bronze.Bronze._write_manifest", dies)
        with pytest.raises(KeyboardInterrupt):
            again(home)
    assert again(home)[0] == "acme_20250106.csv 2 succeeded"
    rows = home.lake.audit.frame().filter(pl.col("reread_of").is_not_null())
    assert rows.height == len(FILES)
    assert list(home.places.output.rglob("*.origin")) == []


def test_people_are_shown_what_it_would_do_and_asked(home: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEALTHINGEST_HOME", str(home.places.home))
    monkeypatch.setenv("HEALTHINGEST_KEYRING", str(home.places.keyring))
    for name, text in FILES.items():
        deliver(home, name, text)
    configure(home, LOOSE)

    def run(*words: str, said: str = "") -> tuple[int, str]:
        done = CliRunner().invoke(app, ["quarantine", "release", *words], input=said)
        return done.exit_code, done.output

    before = silver(home)
    assert run("--client", "acme", "--plan")[0] == 0
    code, said = run("--client", "acme", said="n\n")
    assert (code, "Would release 3 rejected record(s) of 2 deliveries." in said) == (1, True)
    assert silver(home) == before
    assert run("--client", "acme", "--yes")[0] == 0
    assert silver(home) != before
    assert "nothing to read again" in run("--client", "acme", "--yes")[1]
    assert run("--client", "nobody", "--plan")[0] == 2
    assert run("--client", "acme", "acme_19990101.csv")[0] == 2
