"""The state of all alerts as pure functions: what was seen leads to firing, acknowledged, resolved, and to notices.

One alert per (environment, client, condition). A notice is what one place is to be told of one alert; it is made with
the change of state that it tells of and stored with it, before anything is sent (`outbox` says what is sent when).
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Literal

from healthingest.alerting.conditions import Observation, condition_of, kind_of
from healthingest.alerting.message import Kind, Severity
from healthingest.alerting.settings import Settings

State = Literal["firing", "acknowledged", "resolved"]
#: Kinds that tell a place that something holds, and those of them that begin a conversation.
SAYS_OPEN = frozenset({"firing", "flapping", "reminder"})
OPENING = frozenset({"firing", "flapping"})
NoticeState = Literal["waiting", "sent", "given_up"]
#: So long what was last said of a state that still holds is good enough.
_STATE_STANDS = timedelta(hours=1)
#: Sent notices of an alert that are kept, to show what was told.
_KEPT = 30
_FIRINGS_KEPT = 20


@dataclass(frozen=True)
class Notice:
    """What one place is to be told, or was told, of one alert."""

    #: Counts an alert's notices from 1.
    no: int
    kind: Kind
    place: str
    #: Which firing of the alert it belongs to.
    episode: int
    severity: Severity
    summary: str
    details: tuple[tuple[str, str], ...]
    link: str
    made_at: datetime
    #: Nothing more is sent to the place before.
    due_at: datetime
    state: NoticeState = "waiting"
    attempts: int = 0
    sent_at: datetime | None = None
    #: Why the last attempt failed.
    problem: str | None = None
    #: Since when the place refuses it, in words that will not change by themselves.
    refused_since: datetime | None = None
    #: Id of the message that it is part of, once that was tried.
    tried_as: str | None = None
    #: The conversation it was said in, and what the place answered to that conversation's first message.
    thread: str | None = None
    reply_to: str | None = None


@dataclass(frozen=True)
class Alert:
    """One condition of one client, or of the installation, over all the times that it held."""

    environment: str
    client_id: str | None
    condition: str
    severity: Severity
    state: State
    summary: str
    details: tuple[tuple[str, str], ...]
    link: str
    #: When the latest firing began, and when it was last seen to hold or not to hold.
    since: datetime
    seen_at: datetime
    #: When the state last changed.
    changed_at: datetime
    resolved_at: datetime | None = None
    acknowledged_by: str | None = None
    acknowledged_reason: str | None = None
    #: Counts the firings, and what was seen during the latest.
    episode: int = 1
    count: int = 1
    #: Starts of the latest firings.
    firings: tuple[datetime, ...] = ()
    flapping: bool = False
    notices: tuple[Notice, ...] = ()

    @property
    def key(self) -> str:
        """32 hex digits that stay the same over all firings; the id in places that join messages by one."""
        return key_of(self.environment, self.client_id, self.condition)

    @property
    def open(self) -> bool:
        """Whether it holds."""
        return self.state != "resolved"

    @property
    def told(self) -> list[Notice]:
        """Notices of the latest firing."""
        return [n for n in self.notices if n.episode == self.episode]

    @property
    def told_open(self) -> list[Notice]:
        """Those of them that say that it holds."""
        return [n for n in self.told if n.kind in SAYS_OPEN]


def key_of(environment: str, client_id: str | None, condition: str) -> str:
    """The key of an alert."""
    return hashlib.sha256(f"{environment}\x1f{client_id or ''}\x1f{condition}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Mute:
    """Whom nobody is to be told of for a while; what still holds at its end is told then."""

    client_id: str | None
    condition: str | None
    until: datetime
    by: str
    reason: str

    def covers(self, alert: Alert, now: datetime) -> bool:
        """Whether it silences an alert now."""
        return (
            now < self.until
            and self.client_id in {None, alert.client_id}
            and self.condition in {None, alert.condition, kind_of(alert.condition)}
        )


@dataclass(frozen=True)
class Book:
    """All alerts by key, and the mutes."""

    alerts: Mapping[str, Alert] = field(default_factory=dict)
    mutes: tuple[Mute, ...] = ()

    def with_alert(self, alert: Alert) -> "Book":
        """The book with one alert as given."""
        return replace(self, alerts={**self.alerts, alert.key: alert})


#: Names of the places that are told of an alert.
PlacesFor = Callable[[Alert], Sequence[str]]


@dataclass(frozen=True)
class Desk:
    """What the transitions depend on besides the book."""

    settings: Settings
    environment: str
    places_for: PlacesFor
    now: datetime


def observe(book: Book, observations: Iterable[Observation], desk: Desk) -> Book:
    """The book after some observations, in their order, and after the time that has passed."""
    alerts = _renamed(book, desk)
    for seen in observations:
        key = key_of(desk.environment, seen.client_id, seen.condition)
        before = _steady(alerts[key], desk) if key in alerts else None
        if after := _seen(before, seen, desk, _muted(book, before or _new(seen, desk), desk)):
            alerts[key] = after
    alerts = {key: _passed(alert, desk, muted=_muted(book, alert, desk)) for key, alert in alerts.items()}
    kept = tuple(mute for mute in book.mutes if desk.now < mute.until)
    return Book(alerts, kept)


def acknowledge(book: Book, key: str, by: str, reason: str, desk: Desk) -> Book:
    """The book once somebody has taken an alert on: no reminders of this firing, and its places are told."""
    alert = book.alerts[key]
    taken = replace(
        alert, state="acknowledged", acknowledged_by=by, acknowledged_reason=reason or None, changed_at=desk.now,
    )  # fmt: skip
    text = f"{by} has taken this on{f': {reason}' if reason else ''}."
    return book.with_alert(_notify(taken, "acknowledged", desk, summary=text, places=_places_told(alert)))


def _renamed(book: Book, desk: Desk) -> dict[str, Alert]:
    """The alerts by key; those that hold go along where the installation has got another name."""
    stay = {key: alert for key, alert in book.alerts.items() if alert.environment == desk.environment or not alert.open}
    moved = [replace(alert, environment=desk.environment) for key, alert in book.alerts.items() if key not in stay]
    return {alert.key: alert for alert in moved} | stay


# --- one observation ----------------------------------------------------------------------------------------------


def _seen(alert: Alert | None, seen: Observation, desk: Desk, muted: bool) -> Alert | None:  # noqa: FBT001
    if alert is None:
        return _fired(_new(seen, desk), desk, muted=muted) if seen.firing else None
    if seen.firing and alert.open:
        if not seen.evidence and seen.at - alert.seen_at < _STATE_STANDS:
            return alert
        again = replace(alert, seen_at=seen.at, summary=seen.summary, details=seen.details, link=seen.link)
        return replace(again, count=alert.count + 1) if seen.evidence else again
    if seen.firing:
        return _fired(_again(alert, seen, desk), desk, muted=muted)
    return _resolved(alert, seen, desk) if alert.open else alert


def _new(seen: Observation, desk: Desk) -> Alert:
    severity = desk.settings.severities.get(kind_of(seen.condition), condition_of(seen.condition).severity)
    return Alert(
        desk.environment, seen.client_id, seen.condition, severity, "firing", seen.summary, seen.details, seen.link,
        since=seen.at, seen_at=seen.at, changed_at=desk.now, firings=(seen.at,),
    )  # fmt: skip


def _again(alert: Alert, seen: Observation, desk: Desk) -> Alert:
    fresh = _new(seen, desk)
    return replace(
        fresh, episode=alert.episode + (not alert.flapping), firings=(*alert.firings, seen.at)[-_FIRINGS_KEPT:],
        flapping=alert.flapping, notices=alert.notices,
    )  # fmt: skip


def _fired(alert: Alert, desk: Desk, *, muted: bool) -> Alert:
    flapping = desk.settings.timing.flapping
    recent = [at for at in alert.firings if at > alert.firings[-1] - flapping.within]
    if alert.flapping:
        return alert
    if len(recent) >= flapping.firings:
        told = f"It has come {len(recent)} times within {_text(flapping.within)} and is told once it is steady. "
        alert = replace(alert, flapping=True)
        return alert if muted else _notify(alert, "flapping", desk, summary=told + alert.summary)
    return alert if muted else _notify(alert, "firing", desk)


def _resolved(alert: Alert, seen: Observation, desk: Desk) -> Alert:
    ended = replace(
        alert, state="resolved", seen_at=seen.at, resolved_at=seen.at, changed_at=desk.now, summary=seen.summary,
        details=seen.details, link=seen.link or alert.link,
    )  # fmt: skip
    return ended if alert.flapping else _tell_resolved(ended, desk)


def _tell_resolved(alert: Alert, desk: Desk) -> Alert:
    """Tell those who were told of this firing, muted or not: an incident that nobody ends would stay open for ever."""
    return _notify(alert, "resolved", desk, places=_places_told(alert))


def _places_told(alert: Alert) -> list[str]:
    """Places that were told, or are to be told, of the latest firing; not those that never took it."""
    return list(dict.fromkeys(n.place for n in alert.told_open if n.state != "given_up"))


def _notify(
    alert: Alert, kind: Kind, desk: Desk, *, summary: str | None = None, places: Sequence[str] | None = None
) -> Alert:
    number = max((n.no for n in alert.notices), default=0)
    made = [
        Notice(
            number + place_no, kind, place, alert.episode, alert.severity, summary or alert.summary, alert.details,
            alert.link, made_at=desk.now, due_at=desk.now,
        )
        for place_no, place in enumerate(desk.places_for(alert) if places is None else places, 1)
    ]  # fmt: skip
    return replace(alert, notices=(*_trimmed(alert), *made))


def _trimmed(alert: Alert) -> list[Notice]:
    """Its latest notices, and those that opened the conversations that go on."""
    done = [n.no for n in alert.notices if n.state != "waiting"]
    old = set(done[: max(0, len(done) - _KEPT)])
    old -= {n.no for n in alert.told if n.kind in OPENING}
    return [n for n in alert.notices if n.no not in old]


# --- time passes --------------------------------------------------------------------------------------------------


def _steady(alert: Alert, desk: Desk) -> Alert:
    """An alert that came and went, once it has stayed as it is for long enough."""
    if not alert.flapping or desk.now - alert.changed_at < desk.settings.timing.flapping.steady:
        return alert
    alert = replace(alert, flapping=False)
    return alert if alert.open else _tell_resolved(alert, desk)


def _passed(alert: Alert, desk: Desk, *, muted: bool) -> Alert:
    """What is due by the clock: the end of flapping, of a mute, and reminders."""
    was_flapping, alert = alert.flapping, _steady(alert, desk)
    if was_flapping and not alert.flapping and alert.state == "firing" and alert.told_open and not muted:
        return _notify(alert, "reminder", desk, summary=f"It has stayed. {alert.summary}")
    if muted or alert.state != "firing" or alert.flapping:
        return alert
    if not alert.told_open:  # it began while it was muted, or no place was known then
        return _notify(alert, "firing", desk)
    last = max(n.made_at for n in alert.told_open)
    if desk.now - last >= desk.settings.timing.remind_every:
        return _notify(alert, "reminder", desk)
    return alert


def _muted(book: Book, alert: Alert, desk: Desk) -> bool:
    windows = any(window.covers(alert.client_id, desk.now) for window in desk.settings.maintenance)
    return windows or any(mute.covers(alert, desk.now) for mute in book.mutes)


def _text(duration: timedelta) -> str:
    hours, minutes = divmod(int(duration.total_seconds()) // 60, 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "") if hours else f"{minutes} min"
