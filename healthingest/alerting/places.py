"""Sends one message to one place: Slack, PagerDuty, mail, a signed webhook, Teams, each by its usual library.

One attempt a call: the outbox decides when to try again, so the libraries' own retries are off. An error is one
sentence without the secret, the address or the message. Documented limits of the services are named where they bind.
"""

import logging
import os
import re
import smtplib
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Never
from urllib.parse import quote

from healthingest.alerting.http import TIMEOUT_SECONDS, UnreachableError, request
from healthingest.alerting.message import Message
from healthingest.alerting.render import clipped, footer, headline, more, parts, plain, title
from healthingest.alerting.settings import Email, PagerDuty, Place, Slack, SlackBot, Teams, Webhook
from healthingest.contracts.secret import SecretError, secret
from healthingest.errors import HealthingestError

_TOO_MANY = 429
#: Answers that the same message will get again: a revoked key, a channel that is gone, a payload that is refused.
_REFUSALS = frozenset({400, 401, 403, 404, 405, 410, 413, 415, 422})
#: Slack's errors that go by themselves (https://docs.slack.dev/reference/methods/chat.postMessage, "Errors").
_SLACK_PASSING = frozenset(
    {"internal_error", "fatal_error", "service_unavailable", "request_timeout", "team_added_to_org"}
)
_ICONS = {"firing": "🔴", "reminder": "🔴", "flapping": "🟠", "acknowledged": "👀", "resolved": "✅", "test": "🔧"}
_MILD = "🟡"
Env = Mapping[str, str]


class SendError(HealthingestError):
    """A place did not take a message."""

    kind = "alert_place"

    def __init__(self, message: str, *, retry_after: float | None = None, permanent: bool = False) -> None:
        """`retry_after`: seconds that the place asked for; `permanent`: it refuses until somebody mends something."""
        self.retry_after, self.permanent = retry_after, permanent
        super().__init__(message)


class PartlySentError(SendError):
    """A place took a message, though not for everybody whom it was for."""


def send(place: Place, message: Message, env: Env = os.environ) -> str | None:
    """Send it, once; returns what later messages of its thread refer to, where the place has such a thing.

    Raises:
        SendError: the place did not take it.
        PartlySentError: it did, and not for all; sending it again would double it for the others.
    """
    try:
        return _SENDERS[type(place)](place, message, env)
    except SecretError as error:
        raise SendError(str(error)) from None
    except SendError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever its settings or a library made of them; one place, not all
        said = (
            f"No message could be made for a place of kind {place.kind} ({type(error).__name__}); look at its settings"
        )
        raise SendError(f"{said}.", permanent=True) from None


# --- Slack: https://docs.slack.dev/reference/block-kit/blocks (header 150, section 3,000 characters, 50 blocks)

_HEADER, _SECTION, _FALLBACK = 150, 3000, 3000


def _slack(place: Slack, message: Message, env: Env) -> None:
    from slack_sdk.webhook import WebhookClient

    client = WebhookClient(secret(place.url, env), timeout=TIMEOUT_SECONDS, logger=_quiet(), retry_handlers=[])
    with _readable("Slack"):
        answer = client.send(text=_fallback(message), blocks=_blocks(message), unfurl_links=False)
    if answer.status_code != 200 or answer.body != "ok":  # noqa: PLR2004 - HTTP's word for taken
        _refuse("Slack", answer.status_code, answer.headers)


def _slack_bot(place: SlackBot, message: Message, env: Env) -> str | None:
    from slack_sdk import WebClient
    from slack_sdk.errors import SlackApiError

    client = WebClient(
        secret(place.token, env), base_url=place.base_url, timeout=TIMEOUT_SECONDS, logger=_quiet(), retry_handlers=[]
    )
    try:
        with _readable("Slack", SlackApiError):
            answer = client.chat_postMessage(
                channel=place.channel, text=_fallback(message), blocks=_blocks(message), unfurl_links=False,
                thread_ts=message.reply_to,
            )  # fmt: skip
    except SlackApiError as error:
        status, headers = error.response.status_code, error.response.headers
        said = str(error.response.get("error", "")) if isinstance(error.response.data, dict) else ""
        if said in {"ratelimited", "rate_limited"} or not re.fullmatch("[a-z_]{1,60}", said):
            _refuse("Slack", _TOO_MANY if said else status, headers)
        raise SendError(f"Slack refused the message: {said}.", permanent=said not in _SLACK_PASSING) from None
    return str(answer["ts"]) if answer.get("ts") else None


def _blocks(message: Message) -> list[dict[str, Any]]:
    """A header, a section for each alert while they fit, and a line about the rest."""
    sections = [_section(part.text, part.details, part.link) for part in parts(message)]
    if rest := more(message):
        sections.append({"type": "section", "text": {"type": "mrkdwn", "text": _escaped(rest)}})
    return [
        {"type": "header", "text": {"type": "plain_text", "text": _title(message, _HEADER), "emoji": True}},
        *sections,
        {"type": "context", "elements": [{"type": "plain_text", "text": footer(message)}]},
    ]


def _section(text: str, details: tuple[tuple[str, str], ...], link: str) -> dict[str, Any]:
    lines = [_escaped(text), *(f"• {_escaped(label)}: {_escaped(said)}" for label, said in details)]
    shown = "\n".join(lines)
    tail = f"\n<{quote(link, safe=':/?&=%#@+,;~')}|look>" if link else ""
    room = _SECTION - len(tail)
    # Cut between lines: within one, an escape might be torn.
    while len(shown) > room and "\n" in shown:
        shown = shown.rpartition("\n")[0]
    return {"type": "section", "text": {"type": "mrkdwn", "text": (shown if len(shown) <= room else "…") + tail}}


def _fallback(message: Message) -> str:
    return clipped(_escaped(_title(message, _HEADER)), _FALLBACK)


def _title(message: Message, longest: int) -> str:
    mild = message.kind in {"firing", "reminder"} and message.severity in {"info", "warning"}
    return f"{_MILD if mild else _ICONS[message.kind]} {headline(message, longest - 2)}"


def _escaped(text: str) -> str:
    """Slack's three control characters, so that no text mentions, links or calls anybody."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


# --- PagerDuty: https://developer.pagerduty.com/docs/events-api-v2/trigger-events (summary 1,024, dedup_key 255)

_SUMMARY = 1024


def _pagerduty(place: PagerDuty, message: Message, env: Env) -> None:
    from pagerduty import Error, EventsApiV2Client

    key = secret(place.key, env)
    with _readable("PagerDuty"):
        trusted = ssl.create_default_context(cafile=place.ca_file)
        client = EventsApiV2Client(key, base_url=place.url, verify=trusted)
    client.timeout, client.max_network_attempts = TIMEOUT_SECONDS, 0
    client.retry, client.max_http_attempts = {_TOO_MANY: 1}, -1  # it would else wait for ever where it is told to wait
    client.log = _quiet()
    try:
        with _readable("PagerDuty", Error), client:
            _tell_pagerduty(client, message)
    except Error as error:
        answer = getattr(error, "response", None)
        if answer is None:
            raise SendError("PagerDuty could not be reached.") from None
        _refuse("PagerDuty", answer.status_code, answer.headers)


def _tell_pagerduty(client: Any, message: Message) -> None:  # noqa: ANN401 - the library is loaded where it is used
    if message.kind == "resolved" and message.closes:
        client.resolve(message.thread)
        return
    if message.kind == "acknowledged" and message.closes:
        client.acknowledge(message.thread)
        return
    # A word on one alert of a group that leaves others as they are is told to the same incident, which goes on.
    details = {f"{n}. {p.text}": "; ".join(f"{k}: {v}" for k, v in p.details) for n, p in enumerate(parts(message), 1)}
    links = list(dict.fromkeys(p.link for p in parts(message) if p.link))[:5]
    client.trigger(
        headline(message, _SUMMARY), f"healthingest {message.environment}", dedup_key=message.thread,
        severity=message.severity, custom_details=details | ({"more": more(message)} if more(message) else {}),
        links=[{"href": link, "text": "look"} for link in links],
        payload={"class": message.condition, "timestamp": message.at.isoformat(), "group": message.environment},
    )  # fmt: skip
    if message.kind == "test":
        client.resolve(message.thread)


# --- mail -------------------------------------------------------------------------------------------------------------

_SUBJECT = 200


def _email(place: Email, message: Message, env: Env) -> None:
    to = place.to if isinstance(place.to, list) else re.split(r"[,;\s]+", secret(place.to, env).strip(" ,;"))
    domain = place.sender.rpartition("@")[2].strip("<> ") or "healthingest"
    mail = EmailMessage()
    mail["Subject"], mail["From"], mail["To"] = headline(message, _SUBJECT), place.sender, ", ".join(to)
    mail["Date"] = format_datetime(datetime.now(UTC))
    mail["Message-ID"] = f"<{message.message_id}@{domain}>"
    mail["References"] = f"<{message.thread}@{domain}>"
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Priority"] = "1" if message.severity in {"error", "critical"} and message.kind == "firing" else "3"
    mail.set_content(plain(message))
    password = secret(place.password, env) if place.password else None
    with _readable("The mail server", smtplib.SMTPException):
        try:
            with _connected(place) as server:
                if place.user and password:
                    server.login(place.user, password)
                refused = server.send_message(mail)
        except smtplib.SMTPException as error:
            raise _of_smtp(error) from None
    if refused:
        raise PartlySentError(f"The mail server refused {len(refused)} of {len(to)} recipients.")


@contextmanager
def _connected(place: Email) -> Iterator[smtplib.SMTP]:
    trusted = ssl.create_default_context(cafile=place.ca_file)
    if place.security == "tls":
        with smtplib.SMTP_SSL(place.host, place.port, timeout=TIMEOUT_SECONDS, context=trusted) as server:
            yield server
        return
    with smtplib.SMTP(place.host, place.port, timeout=TIMEOUT_SECONDS) as server:
        if place.security == "starttls":
            server.starttls(context=trusted)
        yield server


def _of_smtp(error: smtplib.SMTPException) -> SendError:
    code = getattr(error, "smtp_code", None)
    refused = isinstance(error, smtplib.SMTPRecipientsRefused)
    if refused and isinstance(error, smtplib.SMTPRecipientsRefused):
        code = max(code for code, _ in error.recipients.values())
    lasting = isinstance(code, int) and 500 <= code < 600  # noqa: PLR2004 - RFC 5321: 5yz refuses for good
    said = f" ({code})" if code else ""
    return SendError(f"The mail server did not take the message{said}: {type(error).__name__}.", permanent=lasting)


# --- any endpoint: https://www.standardwebhooks.com ; Teams: adaptive cards up to 28 KB ------------------------------


def _webhook(place: Webhook, message: Message, env: Env) -> None:
    import binascii
    import json

    from standardwebhooks.webhooks import Webhook as Signer

    now = datetime.now(UTC)
    body = json.dumps(_plain(message), ensure_ascii=False)
    try:
        signature = Signer(secret(place.secret, env)).sign(message.message_id, now, body)
    except (binascii.Error, ValueError, RuntimeError):
        raise SendError(
            f"The secret {place.secret} is no webhook secret; write whsec_ and base64.", permanent=True
        ) from None
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "webhook-id": message.message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    _post("The webhook", secret(place.url, env), body.encode(), headers)


def _plain(message: Message) -> dict[str, Any]:
    """The message as JSON values, all of its alerts."""
    return {
        "type": f"alert.{message.kind}",
        "timestamp": message.at.isoformat(),
        "data": {
            "environment": message.environment,
            "condition": message.condition,
            "severity": message.severity,
            "title": title(message),
            "thread": message.thread,
            "closes": message.closes,
            "alerts": [
                {
                    "id": i.key,
                    "client_id": i.client_id,
                    "summary": i.summary,
                    "details": dict(i.details),
                    "link": i.link,
                }
                for i in message.items
            ],
        },
    }


def _teams(place: Teams, message: Message, env: Env) -> None:
    import json

    def text(said: str, **style: object) -> dict[str, Any]:
        """Text that is no Markdown: a file's name must not become a link."""
        return {"type": "RichTextBlock", "inlines": [{"type": "TextRun", "text": said, **style}]}

    body = [text(_title(message, 300), weight="Bolder", size="Medium")]
    for part in parts(message):
        body.append(text(part.text))
        body += [text(f"{label}: {said}", isSubtle=True) for label, said in part.details]
    body += [text(more(message))] if more(message) else []
    body.append(text(footer(message), isSubtle=True, size="Small"))
    links = list(dict.fromkeys(p.link for p in parts(message) if p.link))[:3]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard", "version": "1.4",
        "body": body, "actions": [{"type": "Action.OpenUrl", "title": "Look", "url": link} for link in links],
    }  # fmt: skip
    content = {"contentType": "application/vnd.microsoft.card.adaptive", "contentUrl": None, "content": card}
    payload = json.dumps({"type": "message", "attachments": [content]})
    _post("Teams", secret(place.url, env), payload.encode(), {"Content-Type": "application/json"})


def _post(who: str, url: str, body: bytes, headers: Mapping[str, str]) -> None:
    try:
        status, answered = request("POST", url, body, headers)
    except UnreachableError as error:
        raise SendError(f"{who} does not answer. {error}") from None
    if not 200 <= status < 300:  # noqa: PLR2004 - HTTP's range for taken
        _refuse(who, status, answered)


# --- all ----------------------------------------------------------------------------------------------------------


def _refuse(who: str, status: int, headers: Mapping[str, Any]) -> Never:
    found = {str(name).lower(): value for name, value in headers.items()}.get("retry-after")
    after = _seconds(str(found)) if found is not None else None
    raise SendError(f"{who} answered {status}.", retry_after=after, permanent=status in _REFUSALS) from None


def _seconds(value: str) -> float | None:
    """Retry-After, as seconds or as a date (RFC 9110, section 10.2.3)."""
    if re.fullmatch("[0-9]{1,9}", value.strip()):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


@contextmanager
def _readable(who: str, *known: type[Exception]) -> Iterator[None]:
    """Turn what no library names into a sentence: its own text may hold the address, and that is the secret."""
    try:
        yield
    except Exception as error:  # whatever sockets, TLS and parsers raise
        if isinstance(error, (SendError, *known)):
            raise
        raise SendError(f"{who} could not be reached ({type(error).__name__}).") from None


def _quiet() -> logging.Logger:
    """A logger for libraries that would log addresses and bodies."""
    logger = logging.getLogger("healthingest.alerting.libraries")
    logger.setLevel(logging.CRITICAL)
    return logger


_SENDERS: Mapping[type, Callable[[Any, Message, Env], str | None]] = {
    Slack: _slack, SlackBot: _slack_bot, PagerDuty: _pagerduty, Email: _email, Webhook: _webhook, Teams: _teams,
}  # fmt: skip
