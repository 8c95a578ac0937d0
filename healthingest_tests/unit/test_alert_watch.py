"""What a look finds in a real installation, whom it tells, and what the commands show: without keys, and once."""

import json
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from healthingest.alerting.book import Alert
from healthingest.alerting.conditions import CONDITIONS
from healthingest.alerting.settings import load_settings
from healthingest.alerting.watch import Watch
from healthingest.approve import reject
from healthingest.cli import app
from healthingest.errors import ConfigError
from healthingest.ingest import record_unroutable, register
from healthingest.platform import Platform
from healthingest.release import close_delivery
from healthingest_tests.conftest import CONTRACTS, HEADER, configure, csv_of, deliver, drop, install, line, places_in
from healthingest_tests.receiver import Receiver, receiving

HOUR = timedelta(hours=1)
BAD = [line(f"X{n}", zip="1") for n in range(4)]


@pytest.fixture
def hook(home: Platform, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A webhook that is told of everything at once."""
    with receiving() as receiver:
        monkeypatch.setenv("HOOK_URL", f"{receiver.url}/hook")
        monkeypatch.setenv("HOOK_SECRET", "whsec_" + "c2VjcmV0" * 4)
        monkeypatch.setenv("HEALTHINGEST_HOME", str(home.places.home))
        monkeypatch.setenv("HEALTHINGEST_KEYRING", str(home.places.keyring))
        monkeypatch.setattr("healthingest.alerting.watch._BETWEEN_SECONDS", 0.0)
        settings(home)
        yield receiver


def settings(home: Platform, **changes: Any) -> None:
    places = {"hook": {"kind": "webhook", "url": "env:HOOK_URL", "secret": "env:HOOK_SECRET"}}
    timing = {"group_wait_seconds": 0, "retry_first_seconds": 1}
    (home.places.configs / "alerts.yaml").write_text(yaml.safe_dump({"places": places, "timing": timing} | changes))


def look(home: Platform, later: timedelta = timedelta()) -> dict[tuple[str | None, str], Alert]:
    """The alerts after a look, by client and condition; only those that hold."""
    looked = Watch.over(home.places).look(datetime.now(UTC) + later)
    assert looked.problems == ()
    return {(a.client_id, a.condition): a for a in looked.book.alerts.values() if a.open}


def told(hook: Receiver) -> list[str]:
    """What was told, in order: kind, condition and clients."""
    return [
        " ".join([body["type"].removeprefix("alert."), body["data"]["condition"],
                  *sorted(str(alert["client_id"]) for alert in body["data"]["alerts"])])
        for body in hook.bodies("/hook")
    ]  # fmt: skip


def test_a_good_installation_is_told_of_to_nobody(home: Platform, hook: Receiver) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    assert look(home) == {}
    assert look(home) == {}
    assert told(hook) == []


def test_a_bad_file_is_told_with_its_counts_and_rules_once_and_a_good_one_ends_it(
    home: Platform, hook: Receiver
) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    alert = look(home)["acme", "invalid_ratio"]
    details = dict(alert.details)
    assert "80.0% of 5 records were rejected, over the limit of 5.0%" in alert.summary
    assert (details["file"], details["records"], details["rejected"]) == ("acme_20250106.csv", "5", "4")
    assert details["top failing rules"] == "zip.us_zip 4"
    deliver(home, "acme_20250107.csv", csv_of(line("M1"), *BAD))
    look(home)
    deliver(home, "acme_20250108.csv", csv_of(line("M1")))
    assert look(home) == {}
    assert told(hook) == ["firing invalid_ratio acme", "resolved invalid_ratio acme"]


def test_a_bad_file_is_told_although_a_good_one_followed_before_anybody_looked(home: Platform, hook: Receiver) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    deliver(home, "acme_20250107.csv", csv_of(line("M1")))
    assert look(home) == {}
    look(home)
    assert told(hook) == ["firing invalid_ratio acme", "resolved invalid_ratio acme"]


def test_a_first_look_at_a_long_history_tells_of_what_is_wrong_now_alone(home: Platform, hook: Receiver) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    deliver(home, "acme_20250107.csv", csv_of(line("M1")))
    assert look(home) == {}
    look(home)
    assert told(hook) == []


def test_a_failed_file_and_one_that_was_replaced_have_their_conditions(home: Platform, hook: Receiver) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", "no header\n")
    assert set(look(home)) == {("acme", "delivery_failed")}
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    assert set(look(home)) == {("acme", "changed_file")}
    deliver(home, "acme_20250107.csv", csv_of(line("M1")))
    assert look(home) == {}
    assert told(hook) == [
        "firing delivery_failed acme", "resolved delivery_failed acme", "firing changed_file acme",
        "resolved changed_file acme",
    ]  # fmt: skip


def test_a_held_delivery_is_told_until_somebody_releases_it_and_so_is_its_release(
    home: Platform, hook: Receiver
) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.3, on_breach: hold}\n")
    look(home)
    held = deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD)).delivery
    assert set(look(home)) == {("acme", "delivery_held")}
    close_delivery(home, held, "release", by="jane", reason="acme confirms")
    assert look(home) == {}
    assert told(hook) == ["firing delivery_held acme", "resolved delivery_held acme"]
    (ended,) = hook.bodies("/hook")[-1]["data"]["alerts"]
    assert "released by jane" in ended["summary"]


def test_columns_that_the_contract_does_not_know_and_too_few_records_are_told(home: Platform, hook: Receiver) -> None:
    home = configure(home, "client_id: acme\nquality: {min_records: 2}\n")
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",x", header=f"{HEADER},shoe_size"))
    alerts = look(home)
    assert set(alerts) == {("acme", "contract_drift"), ("acme", "file_rules")}
    assert "Approving acme.added.shoe_size would add column shoe_size and fill it from 1 records of 1 delivery" in (
        alerts["acme", "contract_drift"].summary
    )
    deliver(home, "acme_20250107.csv", csv_of(line("M1"), line("M2")))
    assert set(look(home)) == {("acme", "contract_drift")}  # the values wait in bronze
    reject(home, "acme.added.shoe_size", by="jane", reason="not for us")
    assert look(home) == {}


def test_a_client_that_falls_silent_or_never_spoke_is_late_and_in_time_again_with_its_next_file(
    home: Platform, hook: Receiver
) -> None:
    assert look(home) == {}
    assert look(home, 27 * HOUR) == {}
    never = look(home, 29 * HOUR)["acme", "data_delay"]
    assert "never delivered" in never.summary
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    assert look(home) == {}
    silent = look(home, 30 * HOUR)["acme", "data_delay"]
    assert "late by 2.0 h: its last file, acme_20250106.csv, was taken 30.0 h ago" in silent.summary
    assert told(hook) == ["firing data_delay acme", "resolved data_delay acme", "firing data_delay acme"]


def test_a_held_or_failed_file_is_no_delivery_in_time(home: Platform, hook: Receiver) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", "no header\n")
    assert ("acme", "data_delay") in look(home, 29 * HOUR)


def test_a_missing_date_is_told_where_every_working_day_counts(home: Platform, hook: Receiver) -> None:
    day = datetime.now(UTC).date()
    home = configure(home, "client_id: acme\nfreshness: {calendar: {every_date: true}}\n")
    for before in (4, 3, 1):
        deliver(home, f"acme_{day - before * timedelta(days=1):%Y%m%d}.csv", csv_of(line("M1")))
    alert = look(home)["acme", "data_delay"]
    assert f"No file for {day - 2 * timedelta(days=1)}." in alert.summary


def test_files_that_lead_nowhere_are_told_until_they_are_gone(home: Platform, hook: Receiver) -> None:
    look(home)
    path = drop(home, "nobody_20250106.csv", csv_of(line("M1")))
    with pytest.raises(Exception, match="client") as caught:
        home.route(path.name)
    record_unroutable(home, path, caught.value, run_id="")  # type: ignore[arg-type]
    assert set(look(home)) == {(None, "unroutable")}
    assert set(look(home)) == {(None, "unroutable")}
    path.unlink()
    assert look(home) == {}
    assert told(hook) == ["firing unroutable None", "resolved unroutable None"]


def test_a_broken_config_is_told_by_its_file_and_silences_nobody_else(home: Platform, hook: Receiver) -> None:
    broken = home.places.configs / "globex.yaml"
    broken.write_text("client_id: globex\nrulez: 1\n")
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    assert set(look(home)) == {(None, "config_broken:globex.yaml"), ("acme", "invalid_ratio")}
    broken.write_text("client_id: globex\n")
    assert set(look(home)) == {("acme", "invalid_ratio")}


def test_a_client_that_is_no_longer_active_has_no_open_alerts(home: Platform, hook: Receiver) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    look(home)
    assert look(configure(home, "client_id: acme\nactive: false\n")) == {}


def test_a_registered_delivery_that_nobody_decides_is_told(home: Platform, hook: Receiver) -> None:
    delivery = register(home, drop(home, "acme_20250106.csv", csv_of(line("M1"))))
    assert look(home) == {}
    left = look(home, HOUR)["acme", "undecided"]
    assert delivery.file_id in dict(left.details)["file ids"]


def test_a_disk_that_is_nearly_full_is_told(home: Platform, hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    home.places.output.mkdir(exist_ok=True)
    usage = SimpleNamespace(total=100 * 10**9, used=0, free=9 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)  # the machine's, not ours
    assert look(home)[None, "disk_nearly_full:output"].severity == "critical"
    usage.free = 11 * 10**9
    assert look(home) == {}


def test_keys_that_are_due_for_rotation_are_told_with_their_clients(home: Platform, hook: Receiver) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    assert (None, "keys_expiring") not in look(home)
    assert dict(look(home, 340 * 24 * HOUR)[None, "keys_expiring"].details)["clients"] == "acme"


def test_every_condition_has_a_severity_a_title_and_a_place_in_the_ui() -> None:
    from healthingest.orchestration.alerts import shown_conditions

    assert shown_conditions() == set(CONDITIONS)


def test_an_installation_that_is_watched_before_its_first_file_gets_its_keys_all_the_same(tmp_path: Path) -> None:
    places = places_in(tmp_path)
    shutil.copytree(CONTRACTS, places.configs / "contracts")
    (places.configs / "acme.yaml").write_text("client_id: acme\n")
    Watch.over(places).look()
    Watch.over(places).write_overview()
    assert Platform.open(places).keyring.clients == ["acme"]


# --- whom it tells ------------------------------------------------------------------------------------------------


def test_clients_and_severities_go_where_the_routes_say(home: Platform, hook: Receiver, monkeypatch: Any) -> None:
    monkeypatch.setenv("ACME_SLACK", f"{hook.url}/acme")
    hook.reply = b"ok"
    home = configure(home, "client_id: acme\nalerts: {slack: 'env:ACME_SLACK'}\n")
    (home.places.configs / "globex.yaml").write_text("client_id: globex\n")
    routes = [{"severity": ["error", "critical"], "to": ["hook"]}, {"clients": ["globex"], "to": ["mild"]},
              {"to": ["nobody"]}]  # fmt: skip
    extra = {"mild": {"kind": "slack", "url": "env:MILD"}, "nobody": {"kind": "slack", "url": "env:NOBODY"}}
    monkeypatch.setenv("MILD", f"{hook.url}/mild")
    monkeypatch.setenv("NOBODY", f"{hook.url}/nobody")
    ours = yaml.safe_load((home.places.configs / "alerts.yaml").read_text())["places"]
    settings(home, places=ours | extra, routes=routes)
    home = Platform.open(home.places)
    look(home)
    deliver(home, "acme_20250106.csv", "no header\n")
    deliver(home, "globex_20250106.csv", csv_of(line("M1"), *BAD))
    look(home)
    paths = sorted(request.path for request in hook.taken)
    assert paths == ["/acme", "/hook", "/mild"]


def test_a_place_that_is_down_gets_everything_in_order_afterwards_and_somebody_else_is_told_of_it(
    home: Platform, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving() as other:
        monkeypatch.setenv("OTHER", f"{other.url}/other")
        other.reply = b"ok"
        ours = yaml.safe_load((home.places.configs / "alerts.yaml").read_text())["places"]
        settings(home, places=ours | {"other": {"kind": "slack", "url": "env:OTHER"}})
        look(home)
        hook.status = 500
        deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
        for pause in (0.0, 1.1, 2.1, 0.0):
            time.sleep(pause)
            look(home)
        deliver(home, "acme_20250107.csv", csv_of(line("M1")))
        look(home)
        heads = [request.json["text"] for request in other.taken]
        assert [any(word in head for head in heads) for word in ("Too many records", "do not get through: hook")] == [
            True
        ] * 2
        hook.status = 200
        hook.wait_for(lambda: bool(look(home)) or len(told(hook)) >= 2, 20, "messages after the place came back")
        hook.wait_for(lambda: (look(home) or True) and len(told(hook)) >= 2, 20, "the end")
    assert told(hook) == ["firing invalid_ratio acme", "resolved invalid_ratio acme"]


def test_two_hundred_late_clients_are_one_message(tmp_path: Path, hook: Receiver) -> None:
    home = install(tmp_path / "many", {f"c{n:03}": f"client_id: c{n:03}\n" for n in range(200)})
    settings(home)
    look(home)
    start = time.monotonic()
    assert len(look(home, 29 * HOUR)) == 200
    assert time.monotonic() - start < 60
    (only,) = hook.bodies("/hook")
    assert (only["data"]["condition"], len(only["data"]["alerts"])) == ("data_delay", 200)
    look(home)
    assert len(hook.bodies("/hook")) == 1 or told(hook)[-1].startswith("resolved")


def test_a_source_that_fails_silences_no_other_and_is_told_itself(home: Platform, hook: Receiver) -> None:
    def broken(_: object) -> Any:
        raise ValueError("member Zqxlast")

    watch = Watch.over(home.places, {"broken": broken})
    watch.look()
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    looked = watch.look()
    holding = {a.condition for a in looked.book.alerts.values() if a.open}
    assert holding == {"watch_failing:broken", "invalid_ratio"}
    assert "ValueError" in looked.problems[0]
    assert "Zqx" not in f"{looked.problems} {[request.body for request in hook.taken]}"


def test_the_dead_mans_switch_is_called_after_every_good_look_and_after_no_other(
    home: Platform, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEAT", f"{hook.url}/beat")
    settings(home, heartbeat="env:BEAT")
    look(home)
    assert [request.path for request in hook.taken] == ["/beat"]
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    hook.status = 500
    looked = Watch.over(home.places).look()
    assert looked.failed == 1
    assert [request.path for request in hook.refused] == ["/hook"]


def test_settings_that_cannot_be_used_are_told_in_one_line_and_the_watch_goes_on(
    home: Platform, hook: Receiver
) -> None:
    (home.places.configs / "alerts.yaml").write_text("places: {ops: {kind: slack, url: 'https://h/SECRET'}}\n")
    with pytest.raises(ConfigError, match=r"alerts\.yaml:1, key 'places") as caught:
        load_settings(home.places.configs)
    assert "SECRET" not in str(caught.value)
    looked = Watch.over(home.places).look()
    assert {a.condition for a in looked.book.alerts.values() if a.open} == {"config_broken:alerts.yaml"}
    assert "alerts.yaml" in looked.problems[0]  # the dead man's switch is not told that all is well


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("routes: [{to: [ops]}]\n", "not among the places"),
        ("places: {ops: {kind: pigeon}}\n", "this is none of the kinds"),
        ("maintenance: [{begins: '2026-01-01', ends: '2026-01-02'}]\n", "with its zone"),
        ("maintenance: [{begins: '2026-01-02T00:00Z', ends: '2026-01-01T00:00Z'}]\n", "ends after it begins"),
        ("severities: {invalid_ratio: loud}\n", "Input should be"),
        ("timing: {remind_every: sometimes}\n", "write a duration"),
        ("severity: {}\n", "not known here"),
        ("severities: {delivery_faild: critical}\n", "no such condition"),
        (
            "places: {ops: {kind: slack, url: 'env:X'}}\nroutes: [{to: [ops], conditions: [late]}]\n",
            "no such condition",
        ),
        ("timing: {remind_every: 0m}\n", "greater than or equal"),
        ("timing: {flapping: {firings: 21}}\n", "less than or equal"),
        ("maintenance: [{begins: '2026-01-01T00:00Z', ends: '9999-12-31T23:59:59-05:00'}]\n", "in every zone"),
    ],
)
def test_a_mistake_in_the_settings_is_refused(home: Platform, text: str, said: str) -> None:
    (home.places.configs / "alerts.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_settings(home.places.configs)


_SECRETS = [
    "places: {mail: {kind: email, to: [a@b.example], sender: a@b.example, host: h, password: *R01secret}}\n",
    "places: {mail: {kind: email, to: [a@b.example], sender: a@b.example, host: h, password: !R01secret x}}\n",
    "places: {mail: {kind: email, to: [a@b.example], sender: a@b.example, host: h, password: 0123456}}\n",
    "places: {ops: {kind: 'https://hooks.example/R01secret'}}\n",
    "places: {'https://hooks.example/R01secret': {kind: slack, url: 'env:X'}}\n",
    "places: {ops: {kind: slack, url: 'https://hooks.example/R01secret'}}\n",
    "heartbeat: https://hooks.example/R01secret\n",
]


@pytest.mark.parametrize("text", _SECRETS)
def test_no_message_repeats_a_secret_that_was_written_where_none_belongs(home: Platform, text: str) -> None:
    (home.places.configs / "alerts.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(home.places.configs)
    assert not any(secret in str(caught.value) for secret in ("R01secret", "0123456"))


@pytest.mark.parametrize("value", ["*R01secret", "!R01secret x", "https://h/R01secret"])
def test_no_message_repeats_a_secret_of_a_clients_own_place(home: Platform, value: str) -> None:
    home = configure(home, f"client_id: acme\nalerts: {{pagerduty: {value}}}\n")
    (problem,) = home.clients.problems
    assert "R01secret" not in str(problem)


def test_settings_of_comments_alone_are_the_defaults(home: Platform) -> None:
    (home.places.configs / "alerts.yaml").write_text("# places: {}\n")
    assert load_settings(home.places.configs).places == {}


def test_a_mistake_in_the_settings_loses_nothing_and_those_that_were_good_go_on(home: Platform, hook: Receiver) -> None:
    settings(home, environment="prod")
    look(home)
    hook.status = 503
    deliver(home, "acme_20250106.csv", "no header\n")
    look(home)
    good = (home.places.configs / "alerts.yaml").read_text()
    hook.status = 200
    for broken in (f"{good}timming: {{}}\n", None):
        if broken is None:
            (home.places.configs / "alerts.yaml").unlink()  # for a moment: a deployment
        else:
            (home.places.configs / "alerts.yaml").write_text(broken)
        Watch.over(home.places).look(datetime.now(UTC) + timedelta(minutes=5))
    assert "firing delivery_failed acme" in told(hook)
    (home.places.configs / "alerts.yaml").write_text(good)
    deliver(home, "acme_20250107.csv", csv_of(line("M1")))
    look(home, timedelta(minutes=20))
    assert [said for said in told(hook) if "delivery_failed" in said] == [
        "firing delivery_failed acme", "resolved delivery_failed acme",
    ]  # fmt: skip


def test_a_clients_alerts_outlive_a_broken_config_and_a_folder_that_is_away(tmp_path: Path) -> None:
    home = install(tmp_path, {"customer-acme": "client_id: acme\n", "globex": "client_id: globex\n"})
    Watch.over(home.places).look()
    deliver(home, "acme_20250106.csv", "no header\n")
    file, configs = home.places.configs / "customer-acme.yaml", home.places.configs
    assert ("acme", "delivery_failed") in look(home)
    file.write_text("client_id: acme\nfoo: 1\n")
    assert ("acme", "delivery_failed") in look(home)
    configs.rename(tmp_path / "away")
    Watch.over(home.places).look()
    configs.mkdir()
    Watch.over(home.places).look()
    configs.rmdir()
    (tmp_path / "away").rename(configs)
    file.write_text("client_id: acme\n")
    assert ("acme", "delivery_failed") in look(home)
    file.unlink()  # for good
    assert look(home) == {}


def test_accepting_an_old_delivery_ends_its_own_alert_and_no_other(home: Platform, hook: Receiver) -> None:
    look(home)
    old = deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",x", *BAD, header=f"{HEADER},x")).delivery
    look(home)
    deliver(home, "acme_20250107.csv", csv_of(line("M1")))
    latest = deliver(home, "acme_20250108.csv", csv_of(line("M1"), *BAD)).delivery
    deliver(home, "acme_20250109.csv", "no header\n")
    before = look(home)
    close_delivery(home, old, "release", by="jane", reason="as agreed")
    wrong = {("acme", "invalid_ratio"), ("acme", "delivery_failed")}
    assert set(look(home)) == set(before) == wrong
    close_delivery(home, latest, "release", by="jane", reason="as agreed")
    assert set(look(home)) == wrong - {("acme", "invalid_ratio")}


def test_a_word_on_an_old_delivery_is_no_delivery_in_time(home: Platform, hook: Receiver) -> None:
    old = deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD)).delivery
    row = home.lake.audit.row(old.file_id)
    close_delivery(home, old, "release", by="jane", reason="as agreed")
    again = home.lake.audit.row(old.file_id)
    assert row
    assert again
    assert (again["decision"], again["ingestion_time"]) == ("accepted", row["ingestion_time"])
    assert ("acme", "invalid_ratio") not in look(home)


def test_held_deliveries_are_told_of_until_the_last_is_closed_and_replaced_ones_do_not_count(
    home: Platform, hook: Receiver
) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.3, on_breach: hold}\n")
    look(home)
    first, second, third = (
        deliver(home, f"acme_2025010{day}.csv", csv_of(line("M1"), *BAD)).delivery for day in (6, 7, 8)
    )
    look(home)
    close_delivery(home, first, "discard", by="jane", reason="a mistake")
    still = look(home)["acme", "delivery_held"]
    assert "Deliveries still held: 2." in still.summary
    deliver(home, second.file_name, csv_of(line("M1")))  # corrected
    assert "Deliveries still held: 1." in look(home)["acme", "delivery_held"].summary
    close_delivery(home, third, "discard", by="jane", reason="a mistake")
    assert ("acme", "delivery_held") not in look(home)


def test_what_stands_at_the_edge_of_what_is_looked_at_again_counts_once(home: Platform, hook: Receiver) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    deliver(home, "acme_20250107.csv", csv_of(line("M1")))
    table = home.lake.audit.snapshot()
    moment = datetime.now(UTC).replace(microsecond=700_000)
    for name, at in (("acme_20250106.csv", moment), ("acme_20250107.csv", moment + HOUR + timedelta(seconds=0.2))):
        table.update(new_values={"ingestion_time": at}, predicate=f"file_name = '{name}'")
        table = home.lake.audit.snapshot()
    for _ in range(3):
        look(home, 2 * HOUR)
    assert told(hook) == ["firing invalid_ratio acme", "resolved invalid_ratio acme"]


def test_a_history_is_no_news_although_the_first_look_could_not_read_it(home: Platform, hook: Receiver) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    deliver(home, "acme_20250107.csv", csv_of(line("M1")))

    def unreadable(_: object) -> Any:
        raise OSError

    Watch.over(home.places, {"deliveries": unreadable}).look()
    look(home)
    assert [said for said in told(hook) if "watch_failing" not in said] == []


def test_what_cannot_be_noted_is_not_sent(home: Platform, hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    settings(home, timing={"group_wait_seconds": 5})
    look(home)  # it is in the book, and waits for others

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("healthingest.alerting.store.write_deltalake", full)
        for minute in range(1, 4):
            with pytest.raises(OSError, match="No space"):
                Watch.over(home.places).look(datetime.now(UTC) + timedelta(minutes=minute))
    assert told(hook) == []
    look(home, timedelta(minutes=5))
    assert told(hook) == ["firing invalid_ratio acme"]


def test_a_place_whose_settings_make_no_message_keeps_no_other_from_hearing(
    home: Platform, hook: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = yaml.safe_load((home.places.configs / "alerts.yaml").read_text())["places"]
    mail = {"kind": "email", "to": ["a@plan.example"], "sender": "bot@\n", "host": "127.0.0.1", "port": 9}
    settings(home, places={"a-mail": mail} | ours)
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    looked = Watch.over(home.places).look()
    assert (looked.sent, looked.failed) == (1, 1)
    assert told(hook) == ["firing invalid_ratio acme"]


def test_settings_that_would_tell_nobody_are_told(home: Platform, hook: Receiver) -> None:
    home = configure(home, "client_id: acme\nalerts: {email: 'env:ACME_MAIL'}\n")
    settings(home, maintenance=[
        {"begins": "2026-01-01T00:00Z", "ends": "2026-01-02T00:00Z", "clients": ["acmee"]},
    ])  # fmt: skip
    said = look(home)[None, "config_broken:alerts.yaml"].summary
    assert "acmee" in said or "asks for mail" in said


def test_a_place_that_is_no_more_is_not_failing_and_one_that_works_again_is_well_at_once(
    home: Platform, hook: Receiver
) -> None:
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    hook.status = 403
    for minutes in range(0, 80, 10):
        Watch.over(home.places).look(datetime.now(UTC) + timedelta(minutes=minutes))
    assert (None, "place_failing:hook") in look(home, timedelta(minutes=81))
    hook.status = 200
    deliver(home, "acme_20250107.csv", "no header\n")
    look(home, timedelta(minutes=100))
    assert (None, "place_failing:hook") not in look(home, timedelta(minutes=101))
    settings(home, places={})
    assert (None, "place_failing:hook") not in look(home, timedelta(minutes=102))


# --- the commands -------------------------------------------------------------------------------------------------


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["alerts", *words])
    return done.exit_code, done.stdout, done.stderr


def test_an_alert_is_listed_taken_on_and_no_longer_reminded_of(home: Platform, hook: Receiver) -> None:
    assert run("list")[:2] == (0, "Nothing is wrong.\n")
    look(home)
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    assert run("watch")[0] == 0
    code, shown, _ = run("list", "--json")
    (alert,) = json.loads(shown)["alerts"]
    assert (code, alert["condition"], alert["state"], alert["notices"][0]["state"]) == (
        1,
        "invalid_ratio",
        "firing",
        "sent",
    )
    assert "hook: firing" in run("list")[1]
    assert run("ack", alert["id"][:8], "--reason", "asked acme")[0] == 0
    assert "acknowledged by" in run("list")[1]
    assert run("ack", "invalid_ratio")[0] == 2  # taken on already
    look(home, 49 * HOUR)
    assert [word for word in told(hook) if "invalid_ratio" in word] == [
        "firing invalid_ratio acme", "acknowledged invalid_ratio acme",
    ]  # fmt: skip


def test_a_muted_client_is_told_of_once_the_mute_is_over(home: Platform, hook: Receiver) -> None:
    look(home)
    assert run("mute", "2h", "--client", "acme", "--reason", "acme moves")[0] == 0
    deliver(home, "acme_20250106.csv", csv_of(line("M1"), *BAD))
    assert set(look(home)) == {("acme", "invalid_ratio")}
    assert told(hook) == []
    assert "acme moves" in run("list")[1]
    look(home, 3 * HOUR)
    assert told(hook) == ["firing invalid_ratio acme"]
    for wrong in (["mute", "2h"], ["mute", "soon", "--client", "acme"], ["mute", "2h", "--client", "nobody"],
                  ["mute", "2h", "--condition", "nothing"], ["ack", "nothing"]):  # fmt: skip
        code, _, said = run(*wrong)
        assert (code, said.count("\n")) == (2, 1)


def test_places_are_tried_by_a_test_message(home: Platform, hook: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("test")[0] == 0
    assert told(hook) == ["test test None"]
    hook.status = 403
    code, shown, _ = run("test", "hook", "--json")
    assert (code, json.loads(shown)["places"][0]["problem"]) == (1, "The webhook answered 403.")
    monkeypatch.delenv("HOOK_URL")
    assert "env:HOOK_URL is not there" in run("test")[1]
    assert run("test", "nowhere")[0] == 2
