"""The state of alerts: told once, reminded, taken on, damped, silenced, resolved; grouped by cause; never lost."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthingest.alerting.book import Alert, Book, Desk, Mute, acknowledge, key_of, observe
from healthingest.alerting.conditions import CONDITIONS, Observation
from healthingest.alerting.outbox import Parcel, begun, drop_unknown, parcels, refused, sent
from healthingest.alerting.settings import Settings

NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
PLAIN = Settings()


def desk(now: datetime, places: Iterable[str] = ("ops",), configured: Settings = PLAIN) -> Desk:
    return Desk(configured, "test", lambda _: list(places), now)


def seen(*, firing: bool, at: datetime, client: str | None = "acme", condition: str = "invalid_ratio") -> Observation:
    word = "bad" if firing else "good"
    return Observation(condition, client, firing, at, f"{client}'s file is {word}.", evidence=f"file/{client}{at}")


def bad(at: datetime, client: str | None = "acme", condition: str = "invalid_ratio") -> Observation:
    return seen(firing=True, at=at, client=client, condition=condition)


def good(at: datetime, client: str | None = "acme", condition: str = "invalid_ratio") -> Observation:
    return seen(firing=False, at=at, client=client, condition=condition)


def after(*story: Observation, configured: Settings = PLAIN, book: Book | None = None) -> Book:
    """The book after each observation was made when it came about."""
    book = book or Book()
    for observation in story:
        book = observe(book, [observation], desk(observation.at, configured=configured))
    return book


def only(book: Book) -> Alert:
    (alert,) = book.alerts.values()
    return alert


def kinds(book: Book) -> list[str]:
    return [notice.kind for notice in only(book).notices]


def all_sent(
    book: Book, now: datetime, configured: Settings = PLAIN, threaded: Iterable[str] = ()
) -> tuple[Book, list[Parcel]]:
    """Everything that is due is sent, until nothing is."""
    out: list[Parcel] = []
    while due := parcels(book, configured, frozenset(threaded), now):
        for parcel in due:
            book = sent(book, parcel, f"ts-{parcel.message.message_id[:4]}", now)
        out += due
    return book, out


def test_a_bad_file_is_told_once_however_often_it_comes_and_its_end_is_told() -> None:
    book = after(
        bad(NOON), bad(NOON + MINUTE), bad(NOON + 2 * MINUTE), good(NOON + 3 * MINUTE), good(NOON + 4 * MINUTE)
    )
    assert kinds(book) == ["firing", "resolved"]
    assert (only(book).state, only(book).count, only(book).episode) == ("resolved", 3, 1)


def test_a_good_file_of_a_client_that_was_never_bad_is_no_alert() -> None:
    assert after(good(NOON)).alerts == {}


def test_what_comes_again_after_its_end_is_told_again_with_the_same_key() -> None:
    book = after(bad(NOON), good(NOON + MINUTE), bad(NOON + 2 * MINUTE))
    assert kinds(book) == ["firing", "resolved", "firing"]
    assert (only(book).episode, only(book).key) == (2, key_of("test", "acme", "invalid_ratio"))


def test_who_has_not_acknowledged_is_reminded_at_the_interval_and_who_has_is_not() -> None:
    book = after(bad(NOON))
    assert kinds(observe(book, [], desk(NOON + 23 * HOUR))) == ["firing"]
    reminded = observe(book, [], desk(NOON + 24 * HOUR))
    assert kinds(observe(reminded, [], desk(NOON + 47 * HOUR))) == ["firing", "reminder"]
    assert kinds(observe(reminded, [], desk(NOON + 48 * HOUR))) == ["firing", "reminder", "reminder"]
    taken = acknowledge(book, only(book).key, "jane", "asked for a new file", desk(NOON + HOUR))
    assert (only(taken).state, only(taken).acknowledged_by) == ("acknowledged", "jane")
    later = observe(taken, [], desk(NOON + 72 * HOUR))
    assert kinds(later) == ["firing", "acknowledged"]
    assert kinds(after(good(NOON + 73 * HOUR), book=later)) == ["firing", "acknowledged", "resolved"]


def test_an_alert_that_comes_and_goes_is_damped_until_it_is_steady() -> None:
    story = [f(NOON + n * MINUTE) for n, f in enumerate([bad, good] * 8)]
    book = after(*story)
    assert kinds(book) == ["firing", "resolved"] * 3 + ["flapping"]
    assert only(book).flapping
    steady = observe(book, [], desk(NOON + 46 * MINUTE))
    assert kinds(steady)[-1] == "resolved"
    assert not only(steady).flapping


def test_a_flapping_alert_that_ends_up_firing_stays_open_and_its_end_is_told() -> None:
    story = [f(NOON + n * MINUTE) for n, f in enumerate([bad, good, bad, good, bad, good, bad])]
    book = observe(after(*story), [], desk(NOON + 40 * MINUTE))
    assert (kinds(book)[-1], only(book).state, only(book).flapping) == ("reminder", "firing", False)
    assert kinds(after(good(NOON + 41 * MINUTE), book=book))[-1] == "resolved"


@pytest.mark.parametrize(
    "mute",
    [
        Mute("acme", None, NOON + HOUR, "jane", ""),
        Mute(None, "invalid_ratio", NOON + HOUR, "jane", ""),
        Mute("acme", "invalid_ratio", NOON + HOUR, "jane", ""),
    ],
)
def test_a_muted_alert_is_kept_and_told_at_the_end_of_the_mute_if_it_still_holds(mute: Mute) -> None:
    book = after(bad(NOON), book=Book({}, (mute,)))
    assert (kinds(book), only(book).state) == ([], "firing")
    over = observe(book, [], desk(NOON + HOUR))
    assert (kinds(over), over.mutes) == (["firing"], ())
    healed = after(good(NOON + 2 * MINUTE), book=book)
    assert kinds(observe(healed, [], desk(NOON + HOUR))) == []


def test_a_mute_of_one_client_lets_others_be_heard() -> None:
    book = after(bad(NOON, "globex"), book=Book({}, (Mute("acme", None, NOON + HOUR, "jane", ""),)))
    assert kinds(book) == ["firing"]


def test_a_maintenance_window_silences_as_a_mute_does() -> None:
    window = {"begins": "2026-01-05T11:00:00Z", "ends": "2026-01-05T13:00:00Z", "clients": ["acme"]}
    quiet = Settings.model_validate({"maintenance": [window]})
    book = after(bad(NOON), configured=quiet)
    assert kinds(book) == []
    assert kinds(observe(book, [], desk(NOON + HOUR, configured=quiet))) == ["firing"]


def test_severities_come_from_the_settings_where_they_say_so() -> None:
    configured = Settings.model_validate({"severities": {"invalid_ratio": "critical"}})
    assert only(after(bad(NOON), configured=configured)).severity == "critical"
    assert only(after(bad(NOON))).severity == CONDITIONS["invalid_ratio"].severity


def test_two_hundred_clients_with_one_cause_are_one_message_to_each_place() -> None:
    story = [bad(NOON, f"client{n}") for n in range(200)]
    book = observe(Book(), story, desk(NOON, ["ops", "pager"]))
    assert parcels(book, PLAIN, frozenset(), NOON) == []  # it waits for others with the same cause
    book, out = all_sent(book, NOON + timedelta(seconds=15), threaded=["pager"])
    assert [(p.place, len(p.message.items)) for p in out] == [("ops", 200), ("pager", 200)]
    assert "197 more" in out[0].message.title
    half = observe(book, [good(NOON + HOUR, f"client{n}") for n in range(100)], desk(NOON + HOUR, ["ops", "pager"]))
    half, out = all_sent(half, NOON + HOUR + MINUTE, threaded=["pager"])
    assert [(p.place, len(p.message.items), p.message.closes) for p in out] == [
        ("ops", 100, False),
        ("pager", 100, False),
    ]
    rest = observe(
        half, [good(NOON + 2 * HOUR, f"client{n}") for n in range(200)], desk(NOON + 2 * HOUR, ["ops", "pager"])
    )
    _, last = all_sent(rest, NOON + 2 * HOUR + MINUTE, threaded=["pager"])
    assert [(p.place, len(p.message.items), p.message.closes) for p in last] == [
        ("ops", 100, True),
        ("pager", 100, True),
    ]
    assert last[1].message.thread == out[1].message.thread


def test_different_causes_are_different_messages() -> None:
    book = observe(Book(), [bad(NOON), bad(NOON, condition="data_delay")], desk(NOON))
    _, out = all_sent(book, NOON + MINUTE)
    assert [p.message.condition for p in out] == ["invalid_ratio", "data_delay"]


def test_the_end_of_an_alert_is_said_in_the_thread_of_its_beginning() -> None:
    book, opened = all_sent(after(bad(NOON)), NOON + MINUTE, threaded=["ops"])
    book, closed = all_sent(after(good(NOON + HOUR), book=book), NOON + 2 * HOUR, threaded=["ops"])
    assert opened[0].message.thread == closed[0].message.thread == only(book).key
    assert (opened[0].message.reply_to, closed[0].message.reply_to) == (None, f"ts-{opened[0].message.message_id[:4]}")
    assert closed[0].message.closes


def down(book: Book, now: datetime, retry_after: float | None = None, *, permanent: bool = False) -> Book:
    for parcel in parcels(book, PLAIN, frozenset(), now):
        book = refused(book, parcel, "It is down.", PLAIN.timing, now, retry_after=retry_after, permanent=permanent)
    return book


def test_a_place_that_is_down_is_tried_ever_less_often_and_hears_all_in_order_afterwards() -> None:
    book, now, tries = after(bad(NOON)), NOON, []
    for second in range(3600):
        now = NOON + timedelta(seconds=second)
        if second == 120:
            book = observe(book, [good(now)], desk(now))
        if parcels(book, PLAIN, frozenset(), now):
            tries.append(second)
            book = down(book, now)
    assert tries[:6] == [15, 30, 60, 120, 240, 480]
    assert max(b - a for a, b in pairwise(tries)) <= 600
    assert all(notice.problem == "It is down." for notice in only(book).notices[:1])
    _, out = all_sent(book, now + HOUR)
    assert [p.message.kind for p in out] == ["firing", "resolved"]


def test_a_place_that_says_when_to_come_back_is_left_alone_until_then() -> None:
    book = down(after(bad(NOON)), NOON + MINUTE, retry_after=90)
    book = observe(book, [bad(NOON + MINUTE, "globex")], desk(NOON + MINUTE))
    assert parcels(book, PLAIN, frozenset(), NOON + MINUTE + timedelta(seconds=89)) == []
    assert parcels(book, PLAIN, frozenset(), NOON + MINUTE + timedelta(seconds=90)) != []


def test_what_was_tried_is_tried_again_with_the_same_id_though_more_has_come() -> None:
    book = after(bad(NOON))
    (first,) = parcels(book, PLAIN, frozenset(), NOON + MINUTE)
    book = observe(down(book, NOON + MINUTE), [bad(NOON + MINUTE, "globex")], desk(NOON + MINUTE))
    again, other = parcels(book, PLAIN, frozenset(), NOON + HOUR)
    assert (again.message.message_id, other.message.items[0].client_id) == (first.message.message_id, "globex")


def test_a_message_that_is_refused_for_good_is_given_up_after_an_hour_and_others_after_days() -> None:
    book = down(after(bad(NOON)), NOON + MINUTE, permanent=True)
    assert only(book).notices[0].state == "waiting"
    assert only(down(book, NOON + 2 * HOUR, permanent=True)).notices[0].state == "given_up"
    slow = after(bad(NOON))
    for hour in range(1, 73):
        slow = down(slow, NOON + hour * HOUR)
        assert only(slow).notices[0].state == "waiting"
    assert only(down(slow, NOON + 74 * HOUR)).notices[0].state == "given_up"


def test_notices_for_a_place_that_is_no_more_wait_for_its_return_and_are_given_up_in_the_end() -> None:
    book = after(bad(NOON))
    assert drop_unknown(book, ["another"], PLAIN.timing, NOON + 71 * HOUR) is book
    given_up = drop_unknown(book, ["another"], PLAIN.timing, NOON + 73 * HOUR)
    assert [n.state for n in only(given_up).notices] == ["given_up"]


def test_what_a_place_refused_for_good_is_told_once_it_takes_messages_again_and_no_end_without_a_beginning() -> None:
    lost = after(bad(NOON))
    for minute in range(0, 72, 10):
        lost = down(lost, NOON + (20 + minute) * MINUTE, permanent=True)
    assert [n.state for n in only(lost).notices] == ["given_up"]
    ended, out = all_sent(after(good(NOON + 2 * HOUR), book=lost), NOON + 3 * HOUR)
    assert (out, only(ended).state) == ([], "resolved")
    both = observe(lost, [bad(NOON + 2 * HOUR, "globex")], desk(NOON + 2 * HOUR))
    both, out = all_sent(both, NOON + 3 * HOUR)
    both, more = all_sent(both, NOON + 3 * HOUR + MINUTE)
    out += more
    assert sorted(item.client_id or "" for p in out for item in p.message.items) == ["acme", "globex"]
    _, out = all_sent(observe(both, [good(NOON + 4 * HOUR)], desk(NOON + 4 * HOUR)), NOON + 5 * HOUR)
    assert [p.message.kind for p in out] == ["resolved"]


def test_a_refusal_after_hours_of_outage_is_given_the_time_to_be_mended() -> None:
    book = after(bad(NOON))
    for minute in range(0, 120, 10):
        book = down(book, NOON + (20 + minute) * MINUTE)
    book = down(book, NOON + 150 * MINUTE, permanent=True)
    assert [n.state for n in only(book).notices] == ["waiting"]


def test_an_end_behind_a_beginning_that_is_given_up_goes_with_it() -> None:
    book = after(bad(NOON), good(NOON + MINUTE))
    for minute in range(0, 80, 10):
        book = down(book, NOON + (20 + minute) * MINUTE, permanent=True)
    assert [(n.kind, n.state) for n in only(book).notices] == [("firing", "given_up"), ("resolved", "given_up")]


def test_no_place_is_left_alone_for_longer_than_an_hour_whatever_it_asks_for() -> None:
    book = after(bad(NOON))
    (parcel,) = parcels(book, PLAIN, frozenset(), NOON + MINUTE)
    book = refused(book, parcel, "no", PLAIN.timing, NOON + MINUTE, retry_after=1e9, permanent=False)
    assert only(book).notices[0].due_at == NOON + 61 * MINUTE


def test_whoever_dies_in_an_attempt_leaves_a_message_that_others_do_not_join() -> None:
    book = after(bad(NOON))
    (parcel,) = parcels(book, PLAIN, frozenset(), NOON + MINUTE)
    book = observe(begun(book, parcel), [bad(NOON + MINUTE, "globex")], desk(NOON + MINUTE))
    again, other = parcels(book, PLAIN, frozenset(), NOON + 2 * MINUTE)
    assert (again.message.message_id, again.message.thread) == (parcel.message.message_id, parcel.message.thread)
    assert [item.client_id for item in other.message.items] == ["globex"]


def test_what_comes_and_goes_and_then_stays_is_told_to_have_stayed() -> None:
    book = after(*(f(NOON + n * MINUTE) for n, f in enumerate([bad, good, bad, good, bad, good, bad])))
    steady = observe(book, [], desk(NOON + 40 * MINUTE))
    assert kinds(steady)[-2:] == ["flapping", "reminder"]
    assert "It has stayed" in only(steady).notices[-1].summary
    assert kinds(observe(steady, [], desk(NOON + 2 * HOUR))) == kinds(steady)


def test_a_new_failure_long_after_the_damping_is_told_although_nobody_looked_in_between() -> None:
    book = after(*(f(NOON + n * MINUTE) for n, f in enumerate([bad, good] * 4)))
    assert kinds(book)[-1] == "flapping"
    later = NOON + 5 * HOUR
    assert kinds(observe(book, [bad(later)], desk(later)))[-3:] == ["flapping", "resolved", "firing"]


def test_the_first_message_of_a_conversation_is_kept_however_long_it_lasts() -> None:
    hourly = Settings.model_validate({"timing": {"remind_every": "1h"}})
    book = observe(Book(), [bad(NOON), bad(NOON, "globex")], desk(NOON, ["a", "b", "c"], hourly))
    for hour in range(1, 40):
        book, _ = all_sent(book, NOON + hour * HOUR - MINUTE, hourly, ["a"])
        book = observe(book, [], desk(NOON + hour * HOUR, ["a", "b", "c"], hourly))
    ends = [good(NOON + 40 * HOUR), good(NOON + 40 * HOUR, "globex")]
    book, out = all_sent(observe(book, ends, desk(NOON + 40 * HOUR)), NOON + 41 * HOUR, hourly, ["a"])
    threads = {p.message.thread for p in out if p.place == "a"}
    (resolved,) = [p.message for p in out if p.place == "a" and p.message.kind == "resolved"]
    assert (len(threads), resolved.closes) == (1, True)


def test_a_group_is_over_although_the_place_never_took_the_end_of_one() -> None:
    book = observe(Book(), [bad(NOON), bad(NOON, "globex")], desk(NOON))
    book, _ = all_sent(book, NOON + MINUTE)
    book = after(good(NOON + 2 * MINUTE), book=book)
    for minute in range(0, 80, 10):
        book = down(book, NOON + (20 + minute) * MINUTE, permanent=True)
    _, out = all_sent(after(good(NOON + 3 * HOUR, "globex"), book=book), NOON + 4 * HOUR)
    assert [(p.message.kind, p.message.closes) for p in out] == [("resolved", True)]


def test_taking_on_one_of_a_group_takes_on_the_group_only_with_the_last() -> None:
    book = observe(Book(), [bad(NOON), bad(NOON, "globex")], desk(NOON))
    book, _ = all_sent(book, NOON + MINUTE)
    closes = []
    for hour, client in enumerate(("acme", "globex"), 1):
        key = key_of("test", client, "invalid_ratio")
        book, out = all_sent(acknowledge(book, key, "jane", "", desk(NOON + hour * HOUR)), NOON + (hour + 1) * HOUR)
        closes += [p.message.closes for p in out]
    assert closes == [False, True]


def test_alerts_go_along_when_the_installation_is_given_another_name() -> None:
    book, _ = all_sent(after(bad(NOON)), NOON + MINUTE)
    renamed = replace(desk(NOON + HOUR), environment="prod")
    book = observe(book, [good(NOON + HOUR)], renamed)
    assert (only(book).environment, only(book).state, kinds(book)) == ("prod", "resolved", ["firing", "resolved"])
    _, out = all_sent(book, NOON + 2 * HOUR)
    assert [p.message.thread for p in out] == [key_of("test", "acme", "invalid_ratio")]


_STEP = st.tuples(
    st.sampled_from(["bad", "good", "nothing", "ack", "mute", "send", "refuse"]),
    st.sampled_from(["acme", "globex"]),
    st.integers(1, 90),
)


@given(st.lists(_STEP, max_size=40))
@settings(max_examples=300, deadline=None)
def test_whatever_happens_every_place_hears_of_each_beginning_before_its_end_and_of_nothing_twice(
    steps: list[tuple[str, str, int]],
) -> None:
    book, now, told = Book(), NOON, []
    doing: dict[str, Callable[[datetime, str], Observation]] = {"bad": bad, "good": good}
    for what, client, minutes in steps:
        now += minutes * MINUTE
        book = observe(book, [doing[what](now, client)] if what in doing else [], desk(now))
        key = key_of("test", client, "invalid_ratio")
        if what == "ack" and key in book.alerts and book.alerts[key].state == "firing":
            book = acknowledge(book, key, "jane", "", desk(now))
        if what == "mute":
            book = replace(book, mutes=(Mute(client, None, now + HOUR, "jane", ""),))
        if what == "refuse":
            book = down(book, now)
        if what == "send":
            book, out = all_sent(book, now + MINUTE)
            told += out
    book = observe(book, [], desk(now + 3 * HOUR))
    book, out = all_sent(book, now + 4 * HOUR)
    told += out
    for key, alert in book.alerts.items():
        heard = [(p.message.kind, number) for p in told for k, number in p.notices.items() if k == key]
        assert len({number for _, number in heard}) == len(heard)
        open_now = False
        for kind in (kind for kind, _ in heard):
            assert open_now == (kind in {"resolved", "acknowledged", "reminder"}) or kind == "flapping"
            open_now = kind != "resolved"
        assert not (open_now and alert.state == "resolved"), heard
        muted = any(mute.covers(alert, now + 3 * HOUR) for mute in book.mutes)
        assert open_now or alert.state != "firing" or muted  # somebody took it on, or it is over, before it was told
