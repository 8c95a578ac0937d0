"""Discovery by S3's notifications in SQS (moto's server): messages doubled, reordered, lost, foreign; dying ticks."""

import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.sensor_definition import SensorExecutionData

from healthingest.doctor import examine
from healthingest.errors import ConfigError
from healthingest.landing import notified
from healthingest.landing.notified import objects_in
from healthingest.orchestration import finding, seen, sensors
from healthingest.orchestration.finding import find, owe
from healthingest.orchestration.seen import SUBMITTED, Seen
from healthingest.platform import Platform
from healthingest.storage.options import load_stores
from healthingest_tests.conftest import CONTRACTS, csv_of, env_in, examples, line, places_in
from healthingest_tests.orchestration.test_sensor import names, tick
from healthingest_tests.stores import Notifying, free_ports, moto


@pytest.fixture(scope="module")
def aws() -> Iterator[dict[str, str]]:
    with moto() as environment:
        yield environment


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notified, "_WAIT", 0)  # moto has one server, and asks all of it


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


@pytest.fixture
def bucket(aws: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Notifying:
    for name, value in (aws | env_in(tmp_path)).items():
        monkeypatch.setenv(name, value)
    return Notifying(tmp_path.name.replace("_", "-")[-40:].strip("-"), hidden=1)


@pytest.fixture
def home(bucket: Notifying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Platform:
    """An installation whose landing zone is in the bucket, and which hears of it from the queue."""
    landing = f"s3://{bucket.bucket}/input/raw"
    monkeypatch.setenv("HEALTHINGEST_INPUT", landing)
    places = places_in(tmp_path, HEALTHINGEST_INPUT=landing)
    shutil.copytree(CONTRACTS, places.configs / "contracts")
    (places.configs / "acme.yaml").write_text("client_id: acme\n")
    (places.configs / "storage.yaml").write_text(settings(bucket.queue))
    return Platform.open(places)


def settings(*queues: str, more: str = "") -> str:
    lines = "".join(f"    - {{queue: '{url}', region: us-east-1, allow_http: true{more}}}\n" for url in queues)
    return f"discovery:\n  full_listing_every: 6h\n  sqs:\n{lines}"


def listed(home: Platform, instance: dg.DagsterInstance) -> str:
    """The cursor after a first tick, which lists the landing zone; and the next hears of the test event."""
    first = tick(home, instance)
    second = tick(home, instance, first.cursor)
    assert names(first) == names(second) == []
    return second.cursor or ""


def hours_later(cursor: str | None, hours: float = 7) -> str:
    """A cursor as it would look had its last full listing been so long ago."""
    said = json.loads(cursor or "")
    said["told"]["listed"] -= hours * 3600
    return json.dumps(said)


def reason(data: SensorExecutionData) -> str:
    return data.skip_message or ""


def test_a_file_is_heard_of_without_a_listing_and_its_message_is_deleted_one_tick_late(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = listed(home, instance)
    bucket.put("acme_20250106.csv", csv_of(line("M1")))
    bucket.put_in_parts("acme_20250107.csv", csv_of(line("M2")))
    assert bucket.count() == 4, "the test event, one for the first file, two for the second"

    first = tick(home, instance, cursor)
    assert sorted(names(first)) == ["acme_20250106.csv", "acme_20250107.csv"]
    assert bucket.count() == 3, "nothing that this tick received"

    second = tick(home, instance, first.cursor)
    assert (names(second), reason(second)) == ([], "Nothing new in the landing zone.")
    assert bucket.count() == 0
    assert names(tick(home, instance, hours_later(second.cursor))) == [], "a listing knows them as they were heard of"


def test_messages_doubled_and_in_any_order_give_each_file_one_run(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = listed(home, instance)
    days = [f"acme_202501{day:02}.csv" for day in range(1, 6)]
    for name in days:
        bucket.put(name, csv_of(line("M1")))
    bodies = bucket.take_all() * 3
    random.Random(1).shuffle(bodies)
    asked = []
    for at in range(0, len(bodies), 5):
        bucket.send(*bodies[at : at + 5])
        data = tick(home, instance, cursor)
        asked, cursor = asked + names(data), data.cursor
    assert sorted(asked) == days
    tick(home, instance, cursor)
    assert bucket.count() == 0


def test_what_no_message_told_of_is_found_by_the_next_full_listing(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    bucket.put("acme_20250105.csv", csv_of(line("M1")))
    first = tick(home, instance)
    assert names(first) == ["acme_20250105.csv"], "the first tick lists: it may be there since before the queue"
    bucket.be_silent()
    bucket.put("acme_20250106.csv", csv_of(line("M1")))
    second = tick(home, instance, first.cursor)
    third = tick(home, instance, hours_later(second.cursor, 5))
    assert names(second) == names(third) == []
    assert names(tick(home, instance, hours_later(third.cursor))) == ["acme_20250106.csv"]


def test_a_tick_that_dies_deletes_nothing_and_the_queue_tells_again(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = tick(home, instance, listed(home, instance)).cursor
    bucket.put("acme_20250106.csv", csv_of(line("M1")))
    died = tick(home, instance, cursor)
    meanwhile = tick(home, instance, cursor)
    time.sleep(1.2)  # the queue's visibility timeout
    again = tick(home, instance, meanwhile.cursor)
    assert names(died) == names(again) == ["acme_20250106.csv"]
    assert [r.run_key for r in died.run_requests or []] == [r.run_key for r in again.run_requests or []]
    time.sleep(1.2)  # so late that the queue gives it once more, although its receipt is in the cursor
    late = tick(home, instance, again.cursor)
    tick(home, instance, late.cursor)
    assert (names(late), bucket.count()) == ([], 0)


def test_names_come_as_they_are_however_s3_writes_them(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = listed(home, instance)
    odd = ["Müller & Söhne +1.csv", "a%20b.csv", "who #1?.csv", "a+b c.csv", "..csv"]
    for name in odd:
        bucket.put(name, "a,b\n")
    data = tick(home, instance, cursor)
    assert sorted(home.lake.audit.frame(["file_name"])["file_name"]) == sorted(odd[:-1]), "hidden ones are set aside"
    assert reason(tick(home, instance, data.cursor)) == "Nothing new in the landing zone."


def test_what_is_none_of_s3s_on_this_bucket_stays_and_is_told_without_its_content(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    other = Notifying(f"{bucket.bucket}-other")
    other.put("acme_20250109.csv", csv_of(line("M1")))
    cursor = listed(home, instance)
    strange = [body for body in other.take_all() if "Records" in body]
    bucket.send(*strange, "Zqx no JSON", "[]", '{"Records": 3}', '{"a":' * 5_000, '{"Records": [{"s3": "Zqx"}]}')
    data = tick(home, instance, cursor)
    assert names(data) == []
    assert "6 messages of the queue" in reason(data)
    assert "Zqx" not in reason(data)
    tick(home, instance, data.cursor)
    assert bucket.count() == 6


def test_messages_on_other_places_of_the_bucket_are_deleted_and_the_prefix_is_told(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = listed(home, instance)
    bucket.notify("")
    for key in ("output/silver/x.parquet", "input/raw/old/acme_20250106.csv", "input/raw/", "input/raws/a.csv"):
        bucket.s3.put_object(Bucket=bucket.bucket, Key=key, Body=b"x")
    bucket.put("acme_20250106.csv", csv_of(line("M1")))
    bodies = bucket.take_all()
    bucket.send(*(body for body in bodies if "0106.csv" not in body or "old" in body))
    data = tick(home, instance, cursor)
    assert "4 messages of the queue" in reason(data)
    assert "the prefix input/raw/." in reason(data)
    bucket.send(*bodies)
    data = tick(home, instance, data.cursor)
    assert names(data) == ["acme_20250106.csv"]
    tick(home, instance, data.cursor)
    assert bucket.count() == 0


def test_an_object_that_is_gone_before_the_tick_changes_nothing(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = listed(home, instance)
    bucket.put("acme_20250106.csv", csv_of(line("M1")))
    bucket.s3.delete_object(Bucket=bucket.bucket, Key="input/raw/acme_20250106.csv")
    for name in ("x\n.csv", "\ud800.csv", "%00"):
        bucket.send(json.dumps(event(bucket.bucket, f"input/raw/{name}")))
    data = tick(home, instance, cursor)
    assert (names(data), reason(data)) == ([], "Nothing new in the landing zone.")
    bucket.send(json.dumps(event(bucket.bucket, f"input/raw/{'a' * 2_000}")))
    data = tick(home, instance, data.cursor)
    assert "1 messages of the queue" in reason(data), "S3 has no such keys"
    tick(home, instance, data.cursor)
    assert bucket.count() == 0


def event(bucket: str, key: str, name: str = "ObjectCreated:Put") -> dict[str, object]:
    """A message as S3 sends it."""
    return {"Records": [{"eventName": name, "s3": {"bucket": {"name": bucket}, "object": {"key": key}}}]}


def test_a_file_that_led_nowhere_comes_without_a_message_once_it_would_lead_somewhere(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = listed(home, instance)
    bucket.put("acme_20140106.csv", csv_of(line("M1")))
    nowhere = tick(home, instance, cursor)
    assert "before 2015-01-01, the first day" in reason(nowhere)
    later = Platform.open(replace(home.places, first_date=date(2014, 1, 1)))
    assert names(tick(later, instance, nowhere.cursor)) == ["acme_20140106.csv"]


def test_while_the_queue_is_away_every_tick_lists_and_says_so(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    storage = home.places.configs / "storage.yaml"
    (port,) = free_ports(1)
    storage.write_text(settings(f"http://127.0.0.1:{port}/123456789012/landing"))
    cursor = tick(home, instance).cursor
    away = tick(home, instance, cursor)
    assert "The queue landing cannot be asked (EndpointConnectionError)" in reason(away)
    bucket.put("acme_20250106.csv", csv_of(line("M1")))
    found = tick(home, instance, away.cursor)
    assert names(found) == ["acme_20250106.csv"]
    storage.write_text(settings(bucket.queue, more=", access_key_id: 'env:NOWHERE'"))
    cursor = tick(home, instance, found.cursor).cursor
    assert "The secret env:NOWHERE is not there" in reason(tick(home, instance, cursor))
    storage.write_text(settings(bucket.queue))
    back = tick(home, instance, found.cursor)
    heard = tick(home, instance, back.cursor)
    assert names(back) == names(heard) == []
    tick(home, instance, heard.cursor)
    assert bucket.count() == 0, "what was told meanwhile is known"
    storage.write_text(settings(bucket.queue + "x"))
    wrong = tick(home, instance, tick(home, instance, heard.cursor).cursor)
    assert "x cannot be asked (" in reason(wrong)
    assert "NonExistentQueue" in reason(wrong) or "QueueDoesNotExist" in reason(wrong)


def test_what_a_tick_has_no_time_for_is_owed_in_the_cursor_and_not_left_to_the_queue(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_RUNS_PER_TICK", 2)
    cursor = listed(home, instance)
    days = [f"acme_2025010{day}.csv" for day in range(1, 6)]
    for name in days:
        bucket.put(name, csv_of(line("M1")))
    first = tick(home, instance, cursor)
    second = tick(home, instance, first.cursor)
    assert bucket.count() == 0, "the cursor holds them by now"
    third = tick(home, instance, second.cursor)
    assert [len(names(data)) for data in (first, second, third)] == [2, 2, 1]
    assert sorted(name for data in (first, second, third) for name in names(data)) == days
    assert json.loads(third.cursor or "")["told"]["owed"] == []


def test_more_than_a_cursor_shall_owe_is_left_to_a_listing(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "_RUNS_PER_TICK", 2)
    monkeypatch.setattr(finding, "_MOST_OWED", 1)
    cursor = listed(home, instance)
    for day in range(1, 6):
        bucket.put(f"acme_2025010{day}.csv", csv_of(line("M1")))
    asked = []
    for _ in range(3):
        data = tick(home, instance, cursor)
        asked, cursor = asked + names(data), data.cursor
    assert len(set(asked)) == len(asked) == 5


def test_a_file_that_waits_for_its_clients_config_comes_when_that_is_mended(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    cursor = listed(home, instance)
    (home.places.configs / "globex.yaml").write_text("client_id: globex\nrulez: 1\n")
    cursor = tick(home, instance, cursor).cursor
    bucket.put("globex_20250106.csv", csv_of(line("M1")))
    bucket.put("newco_20250106.csv", csv_of(line("M1")))
    waits = tick(home, instance, cursor)
    assert "globex_20250106.csv waits for its client's config" in reason(waits)
    cursor = tick(home, instance, waits.cursor).cursor
    assert bucket.count() == 0
    for client in ("globex", "newco"):
        (home.places.configs / f"{client}.yaml").write_text(f"client_id: {client}\n")
    assert sorted(names(tick(home, instance, cursor))) == ["globex_20250106.csv", "newco_20250106.csv"]


def test_a_queue_of_one_client_tells_of_its_files_and_the_listing_of_the_others(
    home: Platform, bucket: Notifying, instance: dg.DagsterInstance
) -> None:
    (home.places.configs / "globex.yaml").write_text("client_id: globex\n")
    (home.places.configs / "storage.yaml").write_text(settings(bucket.queue, more=", client: acme"))
    cursor = listed(home, instance)
    bucket.put("acme_20250106.csv", csv_of(line("M1")))
    bucket.put("globex_20250106.csv", csv_of(line("M1")))
    first = tick(home, instance, cursor)
    assert names(first) == ["acme_20250106.csv"]
    assert names(tick(home, instance, hours_later(first.cursor))) == ["globex_20250106.csv"]


def test_a_cursor_stays_small_and_the_listing_knows_what_was_heard_of(
    home: Platform, bucket: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "_FOLD", 3)
    cursor, given = None, []
    for number in range(16):
        bucket.put(f"f{number:02}", "x")
        cursor, fresh = look_once(home, cursor)
        given += fresh
    assert sorted(given) == [f"f{number:02}" for number in range(16)]
    assert len(json.loads(cursor)["recent"]) <= 5
    assert len(list((home.places.output / "checkpoint" / "landing").iterdir())) <= 2
    assert look_once(home, hours_later(cursor))[1] == []


def look_once(home: Platform, cursor: str | None, runs: int = 3) -> tuple[str, list[str]]:
    """What the sensor does, but for the run requests: the cursor to store, and the names that get a run."""
    now = Seen.load(cursor, home.places.output / "checkpoint" / "landing")
    found, _ = find(home, now, "configs", runs)
    for landed in found[:runs]:
        now.put(landed, SUBMITTED)
    owe(now, found, waiting=())
    return now.cursor(), [landed.name for landed in found[:runs]]


@pytest.mark.parametrize("seed", range(examples(2)))
def test_in_any_history_of_messages_and_dying_ticks_each_file_gets_its_run_once(
    home: Platform, bucket: Notifying, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seen, "_FOLD", 3)
    chance, cursor, told, stored = random.Random(seed), None, [""], []
    for number in range(15):
        put = chance.choice([bucket.put, bucket.put_in_parts])
        put(f"f{number:02}", "x")
        told += bucket.take_all()
        bucket.send(*chance.sample(told[1:], min(len(told) - 1, chance.randrange(4))))
        after, fresh = look_once(home, cursor)
        if chance.random() < 0.6:  # else the tick dies: neither its requests nor its cursor count
            cursor, stored = after, stored + fresh
    for _ in range(8):
        cursor, fresh = look_once(home, hours_later(cursor))
        stored += fresh
    assert sorted(stored) == [f"f{number:02}" for number in range(15)]


@pytest.mark.parametrize(
    ("body", "objects"),
    [
        ({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "b"}, []),
        (event("b", "a+%2B", "ObjectCreated:Copy"), [("b", "a +")]),
        (event("b", "k", "s3:ObjectCreated:Put"), [("b", "k")]),
        ({"Records": [{"eventName": "ObjectRemoved:Delete", "s3": {}}]}, []),
        ({"source": "aws.s3", "detail-type": "Object Created",
          "detail": {"bucket": {"name": "b"}, "object": {"key": "a+b c"}}}, [("b", "a+b c")]),
        ({"source": "aws.s3", "detail-type": "Object Deleted", "detail": {}}, []),
        ({"Type": "Notification", "Message": json.dumps({"Event": "s3:TestEvent"})}, []),
        ({"Type": "Notification", "Message": "hello"}, None),
        ({"Records": None}, None),
        ([], None),
        (7, None),
    ],
)  # fmt: skip
def test_a_message_is_read_in_each_of_its_shapes(body: object, objects: list[tuple[str, str]] | None) -> None:
    assert objects_in(json.dumps(body)) == objects


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("discovery: {sqs: [{quue: x}]}\n", "this key is"),
        ("discovery: {sqs: [{queue: landing}]}\n", "write the queue's URL"),
        ("discovery: {sqs: [{queue: 'http://h/1/q'}]}\n", "plain HTTP"),
        ("discovery: {sqs: [{queue: 'https://h/1/q', secret_access_key: abc}]}\n", "never write it here"),
        ("discovery: {sqs: [{queue: 'https://h/1/q'}, {queue: 'https://h/1/q'}]}\n", "twice"),
        ("discovery: {full_listing_every: 0m}\n", "at least 1m"),
        ("discovery: {full_listing_every: often}\n", "a duration"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "storage.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told) as caught:
        load_stores(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_queues_region_is_that_of_its_url(tmp_path: Path) -> None:
    hosts = [
        "sqs.eu-central-1.amazonaws.com",
        "us-gov-west-1.queue.amazonaws.com",
        "vpce-1.sqs.us-east-2.vpce.amazonaws.com",
    ]
    lines = "".join(f"  - {{queue: 'https://{host}/123456789012/landing'}}\n" for host in hosts)
    (tmp_path / "storage.yaml").write_text(f"discovery:\n  sqs:\n{lines}")
    found = [queue.plain()["aws_region"] for queue in load_stores(tmp_path).discovery.sqs]
    assert found == ["eu-central-1", "us-gov-west-1", "us-east-2"]


def test_doctor_tells_what_waits_and_what_is_missing(
    home: Platform, bucket: Notifying, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = bucket.sqs.create_queue(QueueName=f"{bucket.bucket}-plain", Attributes={"VisibilityTimeout": "120"})
    (port,) = free_ports(1)
    away = f"http://127.0.0.1:{port}/123456789012/away"
    (home.places.configs / "storage.yaml").write_text(settings(bucket.queue, plain["QueueUrl"], away))
    found = [(f.state, f.subject, f.text) for f in examine(home.places) if f.subject.startswith("queue")]
    assert [(state, subject.removeprefix(f"queue {bucket.bucket}")) for state, subject, _ in found] == [
        ("ok", ""), ("warn", ""), ("ok", "-plain"), ("warn", "-plain"), ("fail", "queue away"),
    ]  # fmt: skip
    assert found[0][2].startswith("about 1 messages wait")
    monkeypatch.setattr(notified, "find_spec", lambda _: None)
    text = [f.text for f in examine(home.places) if f.subject == "queue away"]
    assert text == ["Queues are asked by boto3, which is not installed; run: pip install healthingest[aws]"]
