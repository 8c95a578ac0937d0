"""What places say of a message, as plain lines: bounded, one line each, without any place's own markup."""

from dataclasses import dataclass

from healthingest.alerting.message import Item, Message

_WORDS = {
    "firing": "ALERT", "reminder": "STILL", "flapping": "COMES AND GOES", "acknowledged": "TAKEN ON",
    "resolved": "RESOLVED", "test": "TEST",
}  # fmt: skip
#: One place shows so many alerts of a group; the rest is a number.
SHOWN = 20
#: Of so few alerts the details are shown too.
_DETAILED = 3
_LONGEST = 600
_NEXT = "\n"


@dataclass(frozen=True)
class Part:
    """One alert of a message: what is wrong, details (label, text), and where to look."""

    text: str
    details: tuple[tuple[str, str], ...]
    link: str


def headline(message: Message, longest: int) -> str:
    """One line for a subject: what it is, where, and whom it concerns."""
    return clipped(f"[{message.environment}] {_WORDS[message.kind]} {one_line(message.title)}", longest)


def title(message: Message) -> str:
    """The message's title with a word for its kind, for places that keep no kind of their own."""
    return message.title if message.kind == "firing" else f"{_WORDS[message.kind].lower()}: {message.title}"


def parts(message: Message) -> list[Part]:
    """The first alerts of the message."""
    detailed = len(message.items) <= _DETAILED
    return [
        Part(
            clipped(one_line(_text(item, message)), _LONGEST),
            tuple((label, clipped(_lines(text), _LONGEST)) for label, text in item.details) if detailed else (),
            item.link,
        )
        for item in message.items[:SHOWN]
    ]


def more(message: Message) -> str:
    """What is said of those that are not shown; empty if all are."""
    left = message.items[SHOWN:]
    return f"... and {len(left)} more: healthingest alerts list shows all." if left else ""


def _text(item: Item, message: Message) -> str:
    who = item.client_id or "installation"
    return item.summary if message.kind == "test" else f"{who}: {item.summary}"


def footer(message: Message) -> str:
    """Severity, environment and time."""
    return f"{message.severity} · {message.environment} · {message.at:%Y-%m-%d %H:%M} UTC"


def plain(message: Message) -> str:
    """The whole message as plain text, for a mail."""
    lines: list[str] = []
    for part in parts(message):
        details = [f"    {label}: {text.replace(_NEXT, _NEXT + ' ' * 8)}" for label, text in part.details]
        lines += [part.text, *details]
        lines += [f"    {part.link}"] if part.link else []
    return "\n".join([*lines, *([more(message)] if more(message) else []), "", footer(message), ""])


def _lines(text: str) -> str:
    """A text of several lines, each a plain one."""
    return _NEXT.join(one_line(line) for line in text.splitlines())


def one_line(text: str) -> str:
    """The text with every run of white space and control characters as one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def clipped(text: str, longest: int) -> str:
    """The text, cut with an ellipsis if it is longer."""
    return text if len(text) <= longest else text[: longest - 1] + "…"
