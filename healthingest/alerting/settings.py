"""`client_configs/alerts.yaml`: the places that messages go to, who gets what, and how patient the watch is.

Secrets stand only as `env:VARIABLE` or `file:PATH`; they are read when a message is sent, and never kept. Without the
file there are no places but those that clients name themselves; alerts are kept and shown all the same.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StrictInt, StrictStr, field_validator, model_validator

from healthingest.alerting.conditions import CONDITIONS, kind_of
from healthingest.alerting.message import SEVERITIES, Severity
from healthingest.contracts import strict_yaml
from healthingest.contracts.clients import Client
from healthingest.contracts.duration import Duration
from healthingest.contracts.rules import Strict
from healthingest.contracts.secret import SecretRef
from healthingest.errors import ConfigError
from healthingest.storage.files import put

FILE = "alerts.yaml"


Name = Annotated[StrictStr, Field(pattern=r"^[a-z][a-z0-9_-]{0,40}$")]


# --- places -------------------------------------------------------------------------------------------------------


class _Place(Strict):
    #: Milder messages are not sent here.
    min_severity: Severity = "info"


class Slack(_Place):
    """An incoming webhook of Slack."""

    kind: Literal["slack"]
    url: SecretRef


class SlackBot(_Place):
    """A Slack app with the scope chat:write: what is said later of an alert is a reply in its thread."""

    kind: Literal["slack_bot"]
    token: SecretRef
    channel: StrictStr
    #: Another server of the same interface, e.g. a proxy.
    base_url: StrictStr = "https://slack.com/api/"


class PagerDuty(_Place):
    """A service's integration key for PagerDuty's Events API v2."""

    kind: Literal["pagerduty"]
    key: SecretRef
    url: StrictStr = "https://events.pagerduty.com"
    #: Certificates of an own authority, e.g. a proxy's, to trust instead of the system's.
    ca_file: StrictStr | None = None


class Email(_Place):
    """A mailbox or several, by a mail server."""

    kind: Literal["email"]
    #: Addresses, or one reference to a secret that holds them, separated by commas.
    to: list[StrictStr] | SecretRef
    sender: StrictStr
    host: StrictStr
    port: StrictInt = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    user: StrictStr | None = None
    password: SecretRef | None = None
    #: Certificates of an own authority to trust instead of the system's.
    ca_file: StrictStr | None = None


class Webhook(_Place):
    """Any HTTP endpoint; messages are signed as Standard Webhooks (standardwebhooks.com) asks."""

    kind: Literal["webhook"]
    url: SecretRef
    #: Names a secret like whsec_ and base64.
    secret: SecretRef


class Teams(_Place):
    """A Microsoft Teams workflow "when a webhook request is received": it is sent an adaptive card."""

    kind: Literal["teams"]
    url: SecretRef


Place = Annotated[Slack | SlackBot | PagerDuty | Email | Webhook | Teams, Field(discriminator="kind")]


# --- who gets what, when ------------------------------------------------------------------------------------------


def _condition(value: str) -> str:
    if kind_of(value) not in CONDITIONS:
        raise ValueError(f"there is no such condition; there is {', '.join(CONDITIONS)}")
    return value


ConditionName = Annotated[StrictStr, AfterValidator(_condition)]


class Route(Strict):
    """Which messages go to which places; what is left out asks for all."""

    to: list[Name] = Field(min_length=1)
    severity: list[Severity] = Field(default_factory=list)
    clients: list[StrictStr] = Field(default_factory=list)
    conditions: list[ConditionName] = Field(default_factory=list)

    def takes(self, condition: str, client_id: str | None, severity: Severity) -> bool:
        """Whether an alert goes this way."""
        return (
            (not self.severity or severity in self.severity)
            and (not self.clients or client_id in self.clients)
            and (not self.conditions or bool({condition, kind_of(condition)} & {*self.conditions}))
        )


class Flapping(Strict):
    """When an alert that comes and goes is damped."""

    #: So many firings within `within` are one too many.
    firings: StrictInt = Field(default=4, ge=2, le=20)
    within: Duration = timedelta(hours=1)
    #: So long it must be steady before anything more is said of it.
    steady: Duration = timedelta(minutes=30)


class Timing(Strict):
    """How patient the watch is."""

    #: After so long what still fires, and nobody has acknowledged, is told again.
    remind_every: Duration = Field(default=timedelta(hours=24), ge=timedelta(minutes=1))
    #: So long a message waits for others with the same cause.
    group_wait_seconds: StrictInt = Field(default=15, ge=0, le=60)
    flapping: Flapping = Field(default_factory=Flapping)
    #: First and longest wait before a message that could not be sent is tried again.
    retry_first_seconds: StrictInt = Field(default=15, ge=1)
    retry_longest_seconds: StrictInt = Field(default=600, ge=1)
    #: After so long a message is given up; the alert itself stays.
    give_up_after: Duration = timedelta(days=3)


class Limits(Strict):
    """From when on something is worth an alert."""

    #: Share of a disk that must be free.
    disk_free: float = Field(default=0.10, gt=0, lt=1)
    queued_for: Duration = timedelta(minutes=30)
    running_for: Duration = timedelta(hours=1)
    #: A sensor, schedule or daemon that was not heard of for so long, above what its own interval explains.
    silent_for: Duration = timedelta(minutes=5)
    #: Keys older than this are due for rotation; a warning comes `keys_warn_before` that.
    keys_older_than: Duration = timedelta(days=365)
    keys_warn_before: Duration = timedelta(days=30)


class Window(Strict):
    """A maintenance window: state is kept, nothing is sent; what still fires at its end is told then."""

    begins: datetime
    ends: datetime
    clients: list[StrictStr] = Field(default_factory=list)
    reason: StrictStr = ""

    @field_validator("begins", "ends", mode="before")
    @classmethod
    def _with_zone(cls, value: object) -> object:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(moment, datetime) or moment.tzinfo is None:
            raise ValueError("write a time with its zone, like 2026-12-24T18:00:00-05:00")
        try:
            return moment.astimezone(UTC)
        except OverflowError:
            raise ValueError("write a time that a calendar has in every zone, like 2099-12-31T00:00:00+00:00") from None

    @model_validator(mode="after")
    def _forward(self) -> "Window":
        if self.ends <= self.begins:
            raise ValueError("a window ends after it begins")
        return self

    def covers(self, client_id: str | None, now: datetime) -> bool:
        """Whether it silences a client (None: the installation) now."""
        return self.begins <= now < self.ends and (not self.clients or client_id in self.clients)


class Settings(Strict):
    """The whole file; every key has a default."""

    #: Names the installation in messages; by default HEALTHINGEST_ENV.
    environment: StrictStr | None = None
    #: Base of links to runs and assets, like https://dagster.example.org.
    dagster_url: StrictStr | None = None
    places: dict[Name, Place] = Field(default_factory=dict)
    routes: list[Route] = Field(default_factory=list)
    #: Condition -> severity, instead of the condition's own.
    severities: dict[ConditionName, Severity] = Field(default_factory=dict)
    timing: Timing = Field(default_factory=Timing)
    limits: Limits = Field(default_factory=Limits)
    maintenance: list[Window] = Field(default_factory=list)
    #: Address (healthchecks.io, Dead Man's Snitch ...) that is called after every good look: it alarms on silence.
    heartbeat: SecretRef | None = None

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> "Settings":
        for route in self.routes:
            if unknown := [name for name in route.to if name not in self.places]:
                raise ValueError(f"a route leads to {unknown[0]}, which is not among the places")
        return self

    def places_for(
        self, condition: str, client: Client | None, client_id: str | None, severity: Severity
    ) -> Iterator[tuple[str, Place]]:
        """The places, by name, that are told of an alert: those of the first route that takes it, and the client's own.

        Without any route, all of `places`.
        """
        first = next((route.to for route in self.routes if route.takes(condition, client_id, severity)), None)
        names = first if first is not None else ([] if self.routes else list(self.places))
        found: dict[str, Place] = {name: self.places[name] for name in names}
        for name, place in {**found, **(places_of(client, self) if client else {})}.items():
            if SEVERITIES.index(severity) >= SEVERITIES.index(place.min_severity):
                yield name, place

    def all_places(self, clients: Iterable[Client]) -> dict[str, Place]:
        """Every place by its name: those of the file, and the clients' own (`acme/slack`)."""
        own = [place for client in clients for place in places_of(client, self).items()]
        return dict([*self.places.items(), *own])


def places_of(client: Client, settings: Settings) -> dict[str, Place]:
    """A client's own places, from `alerts` of its config: `acme/slack` and so on.

    An `email` among them uses the mail server of the first e-mail place of alerts.yaml.
    """
    return {
        f"{client.client_id}/{kind}": place
        for kind, reference in client.config.alerts.items()
        if (place := _own_place(kind, reference, settings)) is not None
    }


def _own_place(kind: str, reference: str, settings: Settings) -> Place | None:
    if kind == "slack":
        return Slack(kind="slack", url=reference)
    if kind == "teams":
        return Teams(kind="teams", url=reference)
    if kind == "pagerduty":
        return PagerDuty(kind="pagerduty", key=reference)
    mail = next((place for place in settings.places.values() if isinstance(place, Email)), None)
    return mail.model_copy(update={"to": reference, "min_severity": "info"}) if kind == "email" and mail else None


def doubts(configs: Path, settings: Settings, clients: Mapping[str, Client], *, all_known: bool) -> list[ConfigError]:
    """What can be read, and would silently tell nobody.

    `all_known`: every client's config could be read, so that a name that is not among them is nobody's.
    """
    found = [
        ConfigError(
            f"{client.client_id} asks for mail, and no place of kind email in alerts.yaml names a mail server.",
            file=configs / FILE, key="places",
        )
        for client in clients.values()
        if "email" in client.config.alerts and f"{client.client_id}/email" not in places_of(client, settings)
    ]  # fmt: skip
    named = [
        *(("routes", r.clients) for r in settings.routes),
        *(("maintenance", w.clients) for w in settings.maintenance),
    ]
    for key, names in named:
        if all_known and (unknown := [name for name in names if name not in clients]):
            found.append(ConfigError(f"there is no client {unknown[0]}.", file=configs / FILE, key=key))
    return found


def load_settings(configs: Path) -> Settings:
    """Read alerts.yaml; without it, the defaults.

    Raises:
        ConfigError: it cannot be used; with file, line and key.
    """
    return _parsed(configs / FILE, _text(configs / FILE))


def _text(file: Path) -> str:
    return strict_yaml.text_of(file) if file.exists() else ""


def _parsed(file: Path, text: str) -> Settings:
    return strict_yaml.document_of(file, text, empty=True).parse(Settings)


def settings_or_last(configs: Path, last: Path) -> tuple[Settings, ConfigError | None]:
    """The settings, or those that could be read last, and what is wrong: a mistake here must not silence the watch.

    `last` is where they are kept; they hold references to secrets, and no secret.
    """
    try:
        if not configs.is_dir():
            raise ConfigError("the folder of configs is not there.", file=configs)
        text = _text(configs / FILE)
        settings = _parsed(configs / FILE, text)
    except ConfigError as error:
        try:
            return _parsed(last, strict_yaml.text_of(last)), error
        except ConfigError:
            return Settings(), error
    with contextlib.suppress(OSError, UnicodeDecodeError):  # a full disk must not silence the watch either
        _keep(text, last)
    return settings, None


def _keep(text: str, last: Path) -> None:
    if not last.exists() or last.read_text(encoding="utf-8") != text:
        last.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        put(last, text.encode())
