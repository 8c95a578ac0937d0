"""How often a client's deliveries are expected, how late they may be, and on which days nobody delivers.

With a calendar, time on days off does not count: a file of Friday is not late on Monday morning. Pure arithmetic.
"""

from collections.abc import Collection
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import Field, StrictBool, StrictStr, field_validator, model_validator

from healthingest.contracts.duration import Duration
from healthingest.contracts.rules import Strict

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_WEEK: tuple[Weekday, ...] = get_args(Weekday)
_DAY = timedelta(days=1)
#: How far back missing dates are looked for.
_LOOK_BACK = 14
#: Years that a holiday may be of; there are days before and after each of them.
_YEARS = range(1900, 2200)
#: No client rests for longer; bounds every walk over days.
_LONGEST_REST = 400


class Calendar(Strict):
    """On which days a client delivers."""

    weekdays: list[Weekday] = Field(default_factory=lambda: list(_WEEK), min_length=1)
    #: ISO dates on which nobody delivers, whatever weekday.
    holidays: list[StrictStr] = Field(default_factory=list)
    timezone: StrictStr = "UTC"
    #: Whether there must be a file for every working day.
    every_date: StrictBool = False
    #: Local time by which the file of a day is due; 24:00 is the day's end.
    due: StrictStr = "24:00"

    @field_validator("weekdays")
    @classmethod
    def _each_once(cls, value: list[Weekday]) -> list[Weekday]:
        if len(set(value)) != len(value):
            raise ValueError("a weekday stands here twice")
        return value

    @field_validator("holidays")
    @classmethod
    def _dates(cls, value: list[str]) -> list[str]:
        for day in value:
            try:
                year = date.fromisoformat(day).year
            except ValueError:
                year = 0
            if year not in _YEARS:
                raise ValueError("a holiday is a date like 2026-12-25")
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError):  # KeyError: unknown; the others: no name at all
            raise ValueError("there is no such time zone; write one like America/New_York") from None
        return value

    @field_validator("due")
    @classmethod
    def _time(cls, value: str) -> str:
        if value != "24:00":
            try:
                time.fromisoformat(value)
            except ValueError:
                raise ValueError("write a time of day like 18:00, or 24:00") from None
        return value

    @cached_property
    def _off(self) -> frozenset[date]:
        return frozenset(map(date.fromisoformat, self.holidays))

    @cached_property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.timezone)

    def works(self, day: date) -> bool:
        """Whether a delivery may be expected on a day."""
        return _WEEK[day.weekday()] in self.weekdays and day not in self._off

    def local(self, moment: datetime) -> date:
        """The day that it is for the client."""
        return moment.astimezone(self._zone).date()

    def begins(self, day: date) -> datetime:
        """When a day begins for the client, in UTC."""
        return datetime.combine(day, time(), self._zone).astimezone(UTC)

    def due_at(self, day: date) -> datetime:
        """When the file of a day is due, in UTC."""
        if self.due == "24:00":
            return self.begins(day + _DAY)
        return datetime.combine(day, time.fromisoformat(self.due), self._zone).astimezone(UTC)


class Freshness(Strict):
    """How often a delivery is expected, and how late it may be."""

    expect_every: Duration = timedelta(hours=24)
    grace: Duration = timedelta(hours=4)
    calendar: Calendar | None = None

    @property
    def allowed(self) -> timedelta:
        """The longest working time without a delivery that is not late."""
        return self.expect_every + self.grace

    @field_validator("expect_every")
    @classmethod
    def _not_zero(cls, value: timedelta) -> timedelta:
        if not value:
            raise ValueError("a delivery cannot be expected every 0 minutes")
        return value

    @model_validator(mode="after")
    def _somebody_works(self) -> "Freshness":
        if self.calendar and self._rest >= _LONGEST_REST * _DAY:
            raise ValueError("the calendar has more than a year without a working day")
        return self

    def late(self, last: datetime, now: datetime) -> timedelta | None:
        """By how much working time a delivery is late, the last one having been taken at `last`; None: in time."""
        over = self._working_time(last, now) - self.allowed
        return over if over > timedelta() else None

    def missing_dates(self, delivered: Collection[date], first: date, now: datetime) -> list[date]:
        """Working days from `first` on, of the last two weeks, whose file is overdue; none unless every date counts."""
        calendar = self.calendar
        if calendar is None or not calendar.every_date:
            return []
        today = calendar.local(now)
        days = [today - number * _DAY for number in range(_LOOK_BACK, -1, -1)]
        return [
            day for day in days
            if day >= first and calendar.works(day) and day not in delivered and now > calendar.due_at(day) + self.grace
        ]  # fmt: skip

    @property
    def longest_gap(self) -> timedelta:
        """The longest time by the clock without a delivery that may still be in time: for watches without calendars."""
        return self.allowed + self._rest

    def _working_time(self, start: datetime, end: datetime) -> timedelta:
        if end <= start or self.calendar is None:
            return end - start
        calendar, total, day = self.calendar, timedelta(), self.calendar.local(start)
        last = calendar.local(end)
        while day <= last:
            if calendar.works(day):
                begins, ends = calendar.begins(day), calendar.begins(day + _DAY)
                total += max(timedelta(), min(ends, end) - max(begins, start))
            day += _DAY
        return total

    @cached_property
    def _rest(self) -> timedelta:
        """The longest run of days off, between two working days: of any week, and around each holiday."""
        if self.calendar is None:
            return timedelta()
        plain = date(2024, 1, 1)  # a Monday; weeks without holidays are as good anywhere
        around = [plain, *map(date.fromisoformat, self.calendar.holidays)]
        return max(self._run_around(day + shift * _DAY) for day in around for shift in range(-1, 8)) * _DAY

    def _run_around(self, day: date) -> int:
        """How many days off in a row a day is part of."""
        if self.calendar is None or self.calendar.works(day):
            return 0
        length = 1
        for step in (-_DAY, _DAY):
            at = day + step
            while not self.calendar.works(at) and length < _LONGEST_REST:
                length, at = length + 1, at + step
        return length
