"""One message to one place, as plain values: what every place turns into its own format. Never a member's value."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Severity = Literal["info", "warning", "error", "critical"]
#: From the mildest to the worst.
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error", "critical")
#: What a message says of its alerts; `flapping`: it comes and goes, and nothing more is said until it is steady.
Kind = Literal["firing", "reminder", "flapping", "acknowledged", "resolved", "test"]


@dataclass(frozen=True)
class Item:
    """What a message says of one alert."""

    #: 32 hex digits: the alert's, stable over its life, equal for the same environment, client and condition.
    key: str
    #: None: it concerns the whole installation.
    client_id: str | None
    #: One sentence, or a few.
    summary: str
    #: Label and text, in the order to be shown: file, counts, rules, run, error kind ...
    details: tuple[tuple[str, str], ...] = ()
    #: Where to look: a run, an asset or a report; empty where none is known.
    link: str = ""


@dataclass(frozen=True)
class Message:
    """What is told to one place at once: of one alert, or of many with one cause."""

    #: Equal for each attempt at the same message, so that who receives it twice can tell.
    message_id: str
    kind: Kind
    condition: str
    severity: Severity
    environment: str
    #: One line, for a subject or notification.
    title: str
    items: tuple[Item, ...]
    at: datetime
    #: Names the conversation: all messages on the same alerts, from firing to resolved, have the same one. It is the
    #: alert's key, or a digest for many alerts together.
    thread: str
    #: Whether nothing in this thread is left open.
    closes: bool = False
    #: What the place answered to the thread's first message, e.g. a Slack timestamp to reply to.
    reply_to: str | None = None
