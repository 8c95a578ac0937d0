"""Which notices go out next, as one message where they have one cause, and what an attempt leaves behind.

Pure functions of the book. A notice waits behind those of the same alert to the same place, so that nobody hears of an
end before the beginning. A message's id depends on its notices alone: an attempt that is repeated has the same id.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from healthingest.alerting.book import OPENING, SAYS_OPEN, Alert, Book, Notice
from healthingest.alerting.conditions import condition_of, kind_of
from healthingest.alerting.message import SEVERITIES, Item, Message
from healthingest.alerting.settings import Settings, Timing

#: No place is left alone for longer, whatever it asks for.
_LONGEST_WAIT = 3600.0
#: How long a message is tried that its place refuses for good: time to mend a revoked key.
_REFUSED_FOR = timedelta(hours=1)
#: Clients that a title names.
_NAMED = 3


@dataclass(frozen=True)
class Parcel:
    """A message, the place it is for, and the notices (alert key -> number) that it is made of."""

    place: str
    message: Message
    notices: Mapping[str, int]

    def holds(self, key: str, notice: Notice) -> bool:
        """Whether a notice of an alert is part of it."""
        return self.notices.get(key) == notice.no


def parcels(book: Book, settings: Settings, threaded: frozenset[str], now: datetime) -> list[Parcel]:
    """What is to be sent now, the oldest first.

    `threaded`: places that join what is said later to what was said first, and so need a message for each thread.
    """
    blocked = {
        n.place for alert in book.alerts.values() for n in alert.notices if n.state == "waiting" and n.due_at > now
    }
    groups: dict[tuple[str, ...], list[tuple[Alert, Notice]]] = defaultdict(list)
    for alert, notice in _next(book):
        if notice.place not in blocked:
            thread = _thread_of(alert, notice) if notice.place in threaded and notice.kind not in OPENING else ""
            cause = kind_of(alert.condition)
            # What was tried once is tried again as it was: who got it after all can tell by the message's id.
            groups[notice.place, cause, notice.kind, thread, notice.tried_as or ""].append((alert, notice))
    wait = timedelta(seconds=settings.timing.group_wait_seconds)
    due = [group for group in groups.values() if min(n.made_at for _, n in group) + wait <= now]
    # What is over first: whoever reads along should not count it among what is new.
    due.sort(key=lambda group: (min(n.made_at for _, n in group), group[0][1].kind != "resolved"))
    return [_parcel(book, group) for group in due]


def _next(book: Book) -> Iterator[tuple[Alert, Notice]]:
    """The first waiting notice of each alert and place."""
    for alert in book.alerts.values():
        seen: set[str] = set()
        for notice in alert.notices:
            if notice.state == "waiting" and notice.place not in seen:
                seen.add(notice.place)
                yield alert, notice


def _thread_of(alert: Alert, notice: Notice) -> str:
    """The thread in which the place was told of this firing; the alert's own key before that."""
    said = _opening_of(alert, notice)
    return (said.thread if said else None) or alert.key


def _opening_of(alert: Alert, notice: Notice) -> Notice | None:
    """The notice that opened the conversation on this firing at a place, if it was sent."""
    mine = [n for n in alert.notices if n.place == notice.place and n.episode == notice.episode and n.state == "sent"]
    return next((n for n in mine if n.kind in OPENING), None)


def _parcel(book: Book, group: Sequence[tuple[Alert, Notice]]) -> Parcel:
    group = sorted(group, key=lambda pair: (pair[0].client_id or "", pair[0].condition))
    first, notice = group[0]
    threads = {_thread_of(alert, n) for alert, n in group}
    ids = {alert.key: n.no for alert, n in group}
    digest = hashlib.sha256("\x1f".join(f"{notice.place} {key} {no}" for key, no in ids.items()).encode()).hexdigest()
    if notice.kind in OPENING:
        thread = first.key if len(group) == 1 else digest[:32]
    else:
        thread = threads.pop() if len(threads) == 1 else digest[:32]
    opening = _opening_of(first, notice)
    return Parcel(notice.place, Message(
        message_id=digest[:32],
        kind=notice.kind,
        condition=kind_of(first.condition),
        severity=max((n.severity for _, n in group), key=SEVERITIES.index),
        environment=first.environment,
        title=_title(group),
        items=tuple(Item(alert.key, alert.client_id, n.summary, n.details, n.link) for alert, n in group),
        at=min(n.made_at for _, n in group),
        thread=thread,
        closes=notice.kind in _LEFT and not _LEFT[notice.kind](book, thread, notice.place, ids),
        reply_to=opening.reply_to if opening and notice.kind not in OPENING else None,
    ), ids)  # fmt: skip


def _title(group: Sequence[tuple[Alert, Notice]]) -> str:
    kind = condition_of(group[0][0].condition).title
    who = [a.client_id or a.condition.partition(":")[2] for a, _ in group]
    named = ", ".join(name for name in who[:_NAMED] if name)
    more = f" and {len(who) - _NAMED} more" if len(who) > _NAMED else ""
    return f"{kind}{f': {named}{more}' if named else ''}"


def _left_unacknowledged(book: Book, thread: str, place: str, but: Container[str]) -> bool:
    """Whether nobody has taken on another alert that was told of in this thread and holds."""
    return any(
        alert.state == "firing" and any(n.place == place and n.thread == thread for n in alert.told_open)
        for key, alert in book.alerts.items() if key not in but
    )  # fmt: skip


def _left_open(book: Book, thread: str, place: str, but: Container[str]) -> bool:
    """Whether another alert that was told of in this thread still holds, or its end is yet to be told."""
    for key, alert in book.alerts.items():
        if key in but:
            continue
        opened = [n for n in alert.told if n.place == place and n.thread == thread and n.kind in OPENING]
        told_end = any(n.place == place and n.kind == "resolved" and n.state != "waiting" for n in alert.told)
        if opened and not told_end:
            return True
    return False


#: Kind that ends something -> whether others of its thread are left in that state.
_LEFT: Mapping[str, Callable[[Book, str, str, Container[str]], bool]] = {
    "resolved": _left_open, "acknowledged": _left_unacknowledged,
}  # fmt: skip


# --- before and after an attempt --------------------------------------------------------------------------------------


def begun(book: Book, parcel: Parcel) -> Book:
    """The book before an attempt: whoever dies in it leaves a message that is tried again as it was, by its id."""
    return _changed(book, parcel.holds, lambda notice: replace(notice, tried_as=parcel.message.message_id))


def sent(book: Book, parcel: Parcel, reply_to: str | None, now: datetime, problem: str | None = None) -> Book:
    """The book once a parcel has arrived; `problem`: not with everybody whom it was for.

    Of what still holds and the place never took, it is told now that it takes messages again.
    """

    def mark(notice: Notice) -> Notice:
        return replace(
            notice, state="sent", attempts=notice.attempts + 1, sent_at=now, problem=problem, refused_since=None,
            thread=parcel.message.thread, reply_to=reply_to or parcel.message.reply_to,
        )  # fmt: skip

    book = _changed(book, parcel.holds, mark)
    missed = [alert for alert in book.alerts.values() if alert.state == "firing" and _missed(alert, parcel.place)]
    return replace(book, alerts={**book.alerts, **{a.key: _told_again(a, parcel.place, now) for a in missed}})


def _missed(alert: Alert, place: str) -> bool:
    """Whether a place was to be told that an alert holds, and nothing of that arrived or is on its way."""
    states = {n.state for n in alert.told_open if n.place == place}
    return states == {"given_up"}


def _told_again(alert: Alert, place: str, now: datetime) -> Alert:
    lost = next(n for n in reversed(alert.told_open) if n.place == place)
    again = Notice(
        max(n.no for n in alert.notices) + 1, "firing", place, alert.episode, alert.severity, alert.summary,
        alert.details, alert.link or lost.link, made_at=now, due_at=now,
    )  # fmt: skip
    return replace(alert, notices=(*alert.notices, again))


def refused(
    book: Book, parcel: Parcel, problem: str, timing: Timing, now: datetime, *, retry_after: float | None,
    permanent: bool,
) -> Book:  # fmt: skip
    """The book after an attempt that failed: all for that place waits with it, the longer the more often it failed.

    `permanent`: the place refused it, and will until somebody mends the place or the message.
    """
    longest = timing.retry_longest_seconds

    def mark(notice: Notice) -> Notice:
        refused_since = (notice.refused_since or now) if permanent else None
        lost = now - notice.made_at > timing.give_up_after
        lost = lost or (refused_since is not None and now - refused_since > _REFUSED_FOR)
        pause = longest if permanent else min(timing.retry_first_seconds * 2 ** min(notice.attempts, 20), longest)
        pause = min(retry_after or pause, _LONGEST_WAIT)
        return replace(
            notice, state="given_up" if lost else "waiting", attempts=notice.attempts + 1, problem=problem,
            due_at=now + timedelta(seconds=pause), tried_as=parcel.message.message_id, refused_since=refused_since,
        )  # fmt: skip

    return _without_pointless(_changed(book, parcel.holds, mark), parcel)


def _without_pointless(book: Book, parcel: Parcel) -> Book:
    """Nobody is told of the end of what he was never told of."""
    said = "The place did not take what this belongs to."

    def pointless(key: str, notice: Notice) -> bool:
        if key not in parcel.notices or notice.place != parcel.place or notice.state != "waiting":
            return False
        mine = [n for n in book.alerts[key].notices if n.place == parcel.place and n.episode == notice.episode]
        heard = any(n.kind in SAYS_OPEN and n.state != "given_up" for n in mine)
        return notice.kind not in SAYS_OPEN and not heard

    return _changed(book, pointless, lambda notice: replace(notice, state="given_up", problem=said))


def drop_unknown(book: Book, known: Container[str], timing: Timing, now: datetime) -> Book:
    """The book without hope for old notices to places that are not in the settings; they may come back until then."""

    def hopeless(_: str, notice: Notice) -> bool:
        old = now - notice.made_at > timing.give_up_after
        return notice.state == "waiting" and notice.place not in known and old

    said = "There is no such place any more."
    return _changed(book, hopeless, lambda notice: replace(notice, state="given_up", problem=said))


def _changed(book: Book, which: Callable[[str, Notice], bool], change: Callable[[Notice], Notice]) -> Book:
    """The book with some notices changed; itself if there are none. `which` is told the alert's key as well."""
    changed = {
        key: replace(alert, notices=tuple(change(n) if which(key, n) else n for n in alert.notices))
        for key, alert in book.alerts.items() if any(which(key, n) for n in alert.notices)
    }  # fmt: skip
    return replace(book, alerts={**book.alerts, **changed}) if changed else book
