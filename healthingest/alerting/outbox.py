"""Which notices go out next, as one message where they have one cause, and what an attempt leaves behind.

Pure functions of the book. A notice waits behind those of the same alert to the same place, so that nobody hears of an
end before the beginning. A message's id depends on its notices alone: an attempt that is repeated has the same id.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from healthingest.alerting.book import Alert, Book, Notice
from healthingest.alerting.conditions import condition_of, kind_of
from healthingest.alerting.message import SEVERITIES, Item, Message
from healthingest.alerting.settings import Settings, Timing

#: Kinds that begin a thread.
_OPENING = frozenset({"firing", "flapping"})
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
            thread = _thread_of(alert, notice) if notice.place in threaded and notice.kind not in _OPENING else ""
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
    return next((n for n in mine if n.kind in _OPENING), None)


def _parcel(book: Book, group: Sequence[tuple[Alert, Notice]]) -> Parcel:
    group = sorted(group, key=lambda pair: (pair[0].client_id or "", pair[0].condition))
    first, notice = group[0]
    threads = {_thread_of(alert, n) for alert, n in group}
    ids = {alert.key: n.no for alert, n in group}
    digest = hashlib.sha256("\x1f".join(f"{notice.place} {key} {no}" for key, no in ids.items()).encode()).hexdigest()
    if notice.kind in _OPENING:
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
        closes=notice.kind == "resolved" and not _left_open(book, thread, notice.place, ids),
        reply_to=opening.reply_to if opening and notice.kind not in _OPENING else None,
    ), ids)  # fmt: skip


def _title(group: Sequence[tuple[Alert, Notice]]) -> str:
    kind = condition_of(group[0][0].condition).title
    who = [a.client_id or a.condition.partition(":")[2] for a, _ in group]
    named = ", ".join(name for name in who[:_NAMED] if name)
    more = f" and {len(who) - _NAMED} more" if len(who) > _NAMED else ""
    return f"{kind}{f': {named}{more}' if named else ''}"


def _left_open(book: Book, thread: str, place: str, but: Container[str]) -> bool:
    """Whether another alert that was told of in this thread still holds, or its end is yet to be told."""
    for key, alert in book.alerts.items():
        if key in but:
            continue
        opened = [n for n in alert.told if n.place == place and n.thread == thread and n.kind in _OPENING]
        told_end = any(n.place == place and n.kind == "resolved" and n.state == "sent" for n in alert.told)
        if opened and not told_end:
            return True
    return False


# --- after an attempt ---------------------------------------------------------------------------------------------


def sent(book: Book, parcel: Parcel, reply_to: str | None, now: datetime) -> Book:
    """The book once a parcel has arrived."""

    def mark(notice: Notice) -> Notice:
        return replace(
            notice, state="sent", attempts=notice.attempts + 1, sent_at=now, problem=None,
            thread=parcel.message.thread, reply_to=reply_to or parcel.message.reply_to,
        )  # fmt: skip

    return _changed(book, parcel.holds, mark)


def refused(
    book: Book, parcel: Parcel, problem: str, timing: Timing, now: datetime, *, retry_after: float | None,
    permanent: bool,
) -> Book:  # fmt: skip
    """The book after an attempt that failed: all for that place waits with it, the longer the more often it failed.

    `permanent`: the place refused it, and will until somebody mends the place or the message.
    """
    longest, patience = timing.retry_longest_seconds, _REFUSED_FOR if permanent else timing.give_up_after

    def mark(notice: Notice) -> Notice:
        pause = longest if permanent else min(timing.retry_first_seconds * 2**notice.attempts, longest)
        return replace(
            notice, state="given_up" if now - notice.made_at > patience else "waiting", attempts=notice.attempts + 1,
            problem=problem, due_at=now + timedelta(seconds=retry_after or pause), tried_as=parcel.message.message_id,
        )  # fmt: skip

    return _changed(book, parcel.holds, mark)


def drop_unknown(book: Book, known: Container[str]) -> Book:
    """The book without hope for notices to places that are no longer in the settings."""

    def hopeless(_: str, notice: Notice) -> bool:
        return notice.state == "waiting" and notice.place not in known

    said = "There is no such place any more."
    return _changed(book, hopeless, lambda notice: replace(notice, state="given_up", problem=said))


def _changed(book: Book, which: Callable[[str, Notice], bool], change: Callable[[Notice], Notice]) -> Book:
    """The book with some notices changed; itself if there are none. `which` is told the alert's key as well."""
    changed = {
        key: replace(alert, notices=tuple(change(n) if which(key, n) else n for n in alert.notices))
        for key, alert in book.alerts.items() if any(which(key, n) for n in alert.notices)
    }  # fmt: skip
    return replace(book, alerts={**book.alerts, **changed}) if changed else book
