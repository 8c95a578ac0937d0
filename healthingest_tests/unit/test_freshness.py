"""When a client is late: by the clock alone, or by the working days of its calendar, over clock changes too."""

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from healthingest.contracts.freshness import Calendar, Freshness

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WORKDAYS = {"weekdays": ["mon", "tue", "wed", "thu", "fri"]}
MOMENTS = st.datetimes(  # hypothesis wants them naive
    datetime(2025, 1, 1),  # noqa: DTZ001
    datetime(2026, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)


def of(**calendar: object) -> Freshness:
    return Freshness.model_validate({"calendar": calendar} if calendar else {})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


@given(MOMENTS, st.timedeltas(timedelta(), 10 * DAY))
def test_without_a_calendar_late_is_what_is_over_the_allowed_time(last: datetime, age: timedelta) -> None:
    over = age - 28 * HOUR
    assert of().late(last, last + age) == (over if over > timedelta() else None)


@given(MOMENTS, st.timedeltas(timedelta(), 20 * DAY), st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]))
def test_days_off_never_make_anybody_later_and_waiting_longer_never_makes_anybody_earlier(
    last: datetime, age: timedelta, zone: str
) -> None:
    calendar = of(timezone=zone, holidays=["2025-07-04", "2025-12-25"], **WORKDAYS)
    late = calendar.late(last, last + age) or timedelta()
    assert late <= (of().late(last, last + age) or timedelta())
    assert (calendar.late(last, last + age + HOUR) or timedelta()) >= late
    if age > calendar.longest_gap + HOUR:  # a day off may have 25 hours
        assert late > timedelta()


def test_fridays_file_is_not_late_on_monday_before_the_working_time_is_over() -> None:
    workdays, friday = of(**WORKDAYS), at("2026-01-09T18:00:00+00:00")
    assert workdays.late(friday, at("2026-01-12T21:59:00+00:00")) is None  # 6 h of Friday and 22 h of Monday
    assert workdays.late(friday, at("2026-01-12T22:30:00+00:00")) == HOUR / 2
    assert of().late(friday, at("2026-01-12T21:59:00+00:00")) is not None


def test_a_holiday_is_a_day_off_in_the_clients_own_time_zone() -> None:
    york = of(timezone="America/New_York", holidays=["2026-07-03"], **WORKDAYS)
    thursday = at("2026-07-02T20:00:00-04:00")
    assert york.late(thursday, at("2026-07-06T23:59:00-04:00")) is None
    assert york.late(thursday, at("2026-07-07T00:01:00-04:00")) == timedelta(minutes=1)


def test_the_day_on_which_clocks_change_has_the_hours_it_has() -> None:
    every_day = of(timezone="America/New_York")
    before = at("2026-03-08T00:00:00-05:00")  # a day of 23 hours
    assert every_day.late(before, at("2026-03-09T05:00:00-04:00")) is None
    assert every_day.late(before, at("2026-03-09T05:01:00-04:00")) == timedelta(minutes=1)


def test_every_working_days_file_is_missed_once_it_is_overdue() -> None:
    strict = of(timezone="America/New_York", every_date=True, due="18:00", holidays=["2026-01-01"], **WORKDAYS)
    delivered, first = {date(2025, 12, 29), date(2025, 12, 31)}, date(2025, 12, 29)
    now = at("2026-01-02T21:59:00-05:00")  # due at 18:00, and 4 h of grace
    assert strict.missing_dates(delivered, first, now) == [date(2025, 12, 30)]
    assert strict.missing_dates(delivered, first, now + HOUR) == [date(2025, 12, 30), date(2026, 1, 2)]
    assert strict.missing_dates({date(2025, 12, 30), date(2026, 1, 2)} | delivered, first, now + HOUR) == []
    assert of(**WORKDAYS).missing_dates(set(), first, now) == []


def test_the_longest_gap_spans_the_longest_rest() -> None:
    assert of().longest_gap == 28 * HOUR
    assert of(**WORKDAYS).longest_gap == 28 * HOUR + 2 * DAY
    assert of(holidays=["2026-12-25", "2026-12-28"], **WORKDAYS).longest_gap == 28 * HOUR + 4 * DAY


@pytest.mark.parametrize(
    ("calendar", "said"),
    [
        ({"timezone": "Mars/Base"}, "no such time zone"),
        ({"timezone": ""}, "no such time zone"),
        ({"weekdays": ["mon", "mon"]}, "stands here twice"),
        ({"weekdays": []}, "at least 1"),
        ({"weekdays": ["monday"]}, "mon"),
        ({"holidays": ["12/25/2026"]}, "a date like"),
        ({"due": "25:00"}, "time of day"),
    ],
)
def test_a_calendar_that_makes_no_sense_is_refused_when_it_is_loaded(calendar: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Calendar.model_validate(calendar)


def test_a_calendar_without_a_working_day_for_a_year_is_refused() -> None:
    holidays = [str(date(2026, 1, 1) + number * DAY) for number in range(500)]
    with pytest.raises(ValidationError, match="without a working day"):
        of(holidays=holidays)
