"""One look: gather what every source says, change the book, send what is due, and tell the dead man's switch.

The sensor of the Dagster daemon does it, and `healthingest alerts watch` beside it, which notices a dead daemon. Both
may run at once: the book is changed under a lock, and one of them sends. A source that fails silences no other.
"""

import logging
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from healthingest.alerting import deliveries, states
from healthingest.alerting.book import Alert, Book, Desk, observe
from healthingest.alerting.conditions import Observation, kind_of
from healthingest.alerting.heartbeat import call
from healthingest.alerting.links import Links
from healthingest.alerting.message import Item, Message
from healthingest.alerting.outbox import Parcel, begun, drop_unknown, parcels, refused, sent
from healthingest.alerting.places import PartlySentError, SendError, send
from healthingest.alerting.scene import Found, Scene
from healthingest.alerting.settings import Place, Settings, doubts, load_settings, settings_or_last
from healthingest.alerting.store import AlertStore, Loaded, Seen
from healthingest.contracts.clients import ClientSet, fingerprint
from healthingest.contracts.secret import secret
from healthingest.errors import HealthingestError, UsageError, scrubbed, unexpected
from healthingest.lake.registrations import known_clients
from healthingest.lake.whereabouts import require_here
from healthingest.places import Places

log = logging.getLogger(__name__)
Source = Callable[[Scene], Found]
#: What every look asks; Dagster's own sources are added by who has an instance.
SOURCES: Mapping[str, Source] = {
    "deliveries": deliveries.of_deliveries,
    "delays": states.of_delays,
    "landing": states.of_landing,
    "configs": states.of_configs,
    "machine": states.of_machine,
    "undecided": states.of_undecided,
    "places": states.of_places,
    "proposals": states.of_proposals,
    "schema": states.of_schema,
    "waiting": states.of_waiting,
}
#: Services take about one message a second.
_BETWEEN_SECONDS = 1.1
#: A sensor's tick has 60 s for all it does.
_SENDING_SECONDS = 30.0
#: What was sent and is not noted is sent again: that is worth waiting for.
_MARKING_SECONDS = 600.0
_FORGOTTEN = timedelta(days=1)
_THREADED = frozenset({"pagerduty", "slack_bot"})


@dataclass(frozen=True)
class Looked:
    """What a look came to."""

    book: Book
    #: Messages sent, and attempts that failed.
    sent: int
    failed: int
    #: What could not be looked at, in sentences.
    problems: tuple[str, ...]
    clients: ClientSet


@dataclass(frozen=True)
class Watch:
    """The watch over one installation; it needs no keys."""

    places: Places
    store: AlertStore
    sources: Mapping[str, Source] = field(default_factory=lambda: SOURCES)
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    #: Fingerprint of the configs -> the clients read from them.
    _read: dict[str, ClientSet] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def over(cls, places: Places, more: Mapping[str, Source] | None = None) -> "Watch":
        """A watch with these sources besides the usual ones."""
        return cls(places, AlertStore.at(places.output), {**SOURCES, **(more or {})})

    def look(self, now: datetime | None = None) -> Looked:
        """Look once, and send what is due.

        Raises:
            BusyError, ContentionError: others are at work on the alerts for too long; nothing is lost.
            StorageError: the installation has moved, and is watched where it is.
        """
        require_here(self.places.output)
        now = now or datetime.now(UTC)
        clients = self._clients()
        settings, problem = settings_or_last(self.places.configs, _last_settings(self.places))
        if problem:
            clients = ClientSet(clients.clients, (*clients.problems, problem))
        known_all = not clients.problems
        unsure = doubts(self.places.configs, settings, clients.clients, all_known=known_all)
        known = settings.all_places(clients.clients.values())
        problems: list[str] = []
        links = Links(settings.dagster_url, self.env)

        def change(loaded: Loaded) -> tuple[Book, Seen]:
            problems.clear()
            scene = Scene(self.places, clients, settings, loaded, now, links, frozenset(known), tuple(unsure))
            observations, seen = self._gather(scene, problems)
            desk = desk_of(self.places, settings, clients, now)
            return drop_unknown(observe(loaded.book, observations, desk), known, settings.timing, now), seen

        book = self.store.change(change)
        sent_now, failed = self.dispatch(settings, known, now)
        if problem:
            problems.append(str(problem))
        if not problems and not failed:
            problems += self._beat(settings)
        return Looked(book, sent_now, failed, tuple(problems), clients)

    def _gather(self, scene: Scene, problems: list[str]) -> tuple[list[Observation], Seen]:
        observations: list[Observation] = []
        events: dict[str, int] = {}
        marks: dict[str, datetime] = {}
        for name, source in self.sources.items():
            failing = f"watch_failing:{name}"
            try:
                found, seen = source(scene)
            except BaseException as error:
                if not unexpected(error):
                    raise
                said = str(error) if isinstance(error, HealthingestError) else scrubbed(error)
                problems.append(f"{name}: {said}")
                observations.append(scene.state(failing, said, firing=True))
                continue
            observations += [*found, scene.state(failing, "It can be looked at again.", firing=False)]
            events |= seen.events
            marks |= seen.watermarks
        return [*observations, *self._forgotten(scene)], Seen(events, marks)

    def _forgotten(self, scene: Scene) -> list[Observation]:
        """The end of alerts on sources that nobody has asked for a day; another watch may still ask them until then."""
        asked = {f"watch_failing:{name}" for name in self.sources}
        return [
            scene.state(alert.condition, "It is no longer looked at.", firing=False)
            for alert in scene.book.alerts.values()
            if alert.open and kind_of(alert.condition) == "watch_failing" and alert.condition not in asked
            and scene.now - alert.seen_at > _FORGOTTEN
        ]  # fmt: skip

    def write_overview(self, book: Book | None = None, clients: ClientSet | None = None) -> Path:
        """Draw the overview page of what a look came to, or of what the last one left."""
        from healthingest.report.overview import write_overview

        book = book or self.store.load().book
        return write_overview(self.places, clients or self._clients(), list(book.alerts.values()))

    def desk(self, now: datetime) -> Desk:
        """What a change by hand depends on."""
        settings, _ = settings_or_last(self.places.configs, _last_settings(self.places))
        return desk_of(self.places, settings, self._clients(), now)

    def try_places(self, names: Sequence[str]) -> dict[str, str | None]:
        """Send a test message to the named places, or to all: place -> why it was not taken, None if it was.

        Raises:
            UsageError: there is no place of such a name.
            ConfigError: alerts.yaml cannot be used.
        """
        settings = load_settings(self.places.configs)
        known = settings.all_places(self._clients().clients.values())
        if unknown := [name for name in names if name not in known]:
            raise UsageError(f"There is no place {unknown[0]!r}; there is {', '.join(known) or 'none'}.")
        return {name: self._try(name, known[name], settings) for name in names or known}

    def _try(self, name: str, place: Place, settings: Settings) -> str | None:
        now, environment = datetime.now(UTC), settings.environment or self.places.env
        message_id = secrets.token_hex(16)
        said = "This is a test of the way from healthingest to this place; nothing is wrong."
        message = Message(
            message_id, "test", "test", "info", environment, name, (Item(message_id, None, said),), now,
            message_id, closes=True,
        )  # fmt: skip
        try:
            send(place, message, self.env)
        except SendError as error:
            return str(error)
        return None

    def _clients(self) -> ClientSet:
        """All clients; read again only when a file of theirs has changed: 200 of them take seconds."""
        found = fingerprint(self.places.configs)
        if found not in self._read:
            self._read.clear()
            self._read[found] = known_clients(self.places)
        return self._read[found]

    def dispatch(self, settings: Settings, known: Mapping[str, Place], now: datetime) -> tuple[int, int]:
        """Send what is due; how many messages went out, and how many attempts failed."""
        counts = {True: 0, False: 0}
        began = time.monotonic()
        with self.store.sending() as mine:
            if not mine:
                return 0, 0
            until = time.monotonic() + _SENDING_SECONDS
            busy: set[str] = set()
            last: dict[str, float] = {}
            threaded = frozenset(name for name, place in known.items() if place.kind in _THREADED)
            for parcel in parcels(self.store.load().book, settings, threaded, now):
                place = known.get(parcel.place)  # one that is no more is dropped by the next look
                if place is None or parcel.place in busy or time.monotonic() > until:
                    continue
                time.sleep(max(0.0, last.get(parcel.place, 0.0) + _BETWEEN_SECONDS - time.monotonic()))
                self._note(parcel)
                done = self._send(parcel, place, settings, lambda: now + timedelta(seconds=time.monotonic() - began))
                last[parcel.place] = time.monotonic()
                counts[done] += 1
                if not done:
                    busy.add(parcel.place)
        return counts[True], counts[False]

    def _note(self, parcel: Parcel) -> None:
        """Keep that an attempt begins: what cannot be noted is not sent."""
        self.store.change(lambda loaded: (begun(loaded.book, parcel), Seen()))

    def _send(self, parcel: Parcel, place: Place, settings: Settings, clock: Callable[[], datetime]) -> bool:
        reply_to, problem = None, None
        try:
            reply_to = send(place, parcel.message, self.env)
        except PartlySentError as error:
            problem = str(error)
            log.warning("%s: %s", parcel.place, problem)
        except SendError as error:
            problem, after, permanent = str(error), error.retry_after, error.permanent
            log.warning("%s: %s", parcel.place, problem)
            self.store.change(lambda loaded: (
                refused(loaded.book, parcel, problem, settings.timing, clock(), retry_after=after,
                        permanent=permanent),
                Seen(),
            ), wait=_MARKING_SECONDS)  # fmt: skip
            return False
        self.store.change(
            lambda loaded: (sent(loaded.book, parcel, reply_to, clock(), problem), Seen()), wait=_MARKING_SECONDS
        )
        return True

    def _beat(self, settings: Settings) -> list[str]:
        """Tell the dead man's switch that all is looked at; whoever gets no call for a while raises the alarm."""
        if settings.heartbeat is None:
            return []
        try:
            call(secret(settings.heartbeat, self.env))
        except HealthingestError as error:
            return [f"heartbeat: {error}"]
        return []


def _last_settings(places: Places) -> Path:
    """Where the settings that could be read last are kept."""
    return places.output / "checkpoint" / "alerts.last.yaml"


def desk_of(places: Places, settings: Settings, clients: ClientSet, now: datetime) -> Desk:
    """What a change of the book depends on besides it."""

    def places_for(alert: Alert) -> Sequence[str]:
        client = clients.clients.get(alert.client_id or "")
        kind, _, thing = alert.condition.partition(":")
        found = settings.places_for(alert.condition, client, alert.client_id, alert.severity)
        return [name for name, _ in found if not (kind == "place_failing" and name == thing)]

    return Desk(settings, settings.environment or places.env, places_for, now)
