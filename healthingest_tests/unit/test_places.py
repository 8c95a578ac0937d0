"""Messages at real endpoints: in each service's documented format, within its limits, signed, and without a secret.

Formats: docs.slack.dev/reference/block-kit/blocks; developer.pagerduty.com/docs/events-api-v2/trigger-events;
www.standardwebhooks.com; adaptivecards.io/explorer; RFC 5322, RFC 9110 section 10.2.3.
"""

import base64
import datetime as dt
import email
import email.policy
import ipaddress
import logging
import ssl
import time
from collections.abc import Iterator
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from standardwebhooks.webhooks import Webhook as Verifier
from standardwebhooks.webhooks import WebhookVerificationError

from healthingest.alerting.message import Item, Kind, Message
from healthingest.alerting.places import PartlySentError, SendError, send
from healthingest.alerting.settings import Email, PagerDuty, Place, Slack, SlackBot, Teams, Webhook
from healthingest_tests.receiver import Receiver, receiving
from healthingest_tests.servers import free_port

SECRET = "Zqxsecret" * 4
SIGNING = "whsec_" + base64.b64encode(b"Zqx" * 10).decode()
HOSTILE = "<!channel> & <@U1> *[click](http://evil.example)*\r\nBcc: x@evil.example \x07"
KINDS: list[Kind] = ["firing", "reminder", "flapping", "acknowledged", "resolved", "test"]
HTTP = ["slack", "slack_bot", "pagerduty", "webhook", "teams"]


def message(
    number: int = 1, kind: Kind = "firing", text: str = "3 of 4 records were rejected", **changes: Any
) -> Message:
    items = tuple(
        Item(f"{n:032x}", f"client{n}", text, (("file", f"client{n}_20250106.csv"), ("top failing rules", text)),
             f"https://dagster.example.org/runs/{n}")
        for n in range(number)
    )  # fmt: skip
    values: dict[str, Any] = {
        "message_id": "ab" * 16, "kind": kind, "condition": "invalid_ratio", "severity": "error",
        "environment": "prod", "title": f"Too many records rejected: {text}", "items": items,
        "at": dt.datetime(2026, 1, 5, 12, tzinfo=dt.UTC), "thread": "cd" * 16,
        "closes": kind in {"resolved", "acknowledged"},
    }  # fmt: skip
    return Message(**values | changes)


@pytest.fixture
def at(certificate: tuple[Path, Path]) -> Iterator[Receiver]:
    with receiving(certificate) as receiver:
        receiver.reply = b"ok"
        yield receiver


def place(kind: str, at: Receiver) -> tuple[Place, dict[str, str]]:
    """A place of each kind at the receiver, and the environment with its secrets."""
    env = {"URL": f"{at.url}/{SECRET}", "KEY": SECRET, "SIGN": SIGNING}
    made: dict[str, Place] = {
        "slack": Slack(kind="slack", url="env:URL"),
        "slack_bot": SlackBot(kind="slack_bot", token="env:KEY", channel="#files", base_url=f"{at.url}/api/"),
        "pagerduty": PagerDuty(kind="pagerduty", key="env:KEY", url=at.secure_url, ca_file=at.ca_file),
        "webhook": Webhook(kind="webhook", url="env:URL", secret="env:SIGN"),
        "teams": Teams(kind="teams", url="env:URL"),
    }
    answers = {"slack": b"ok", "slack_bot": b'{"ok": true, "ts": "1700000000.000100"}'}
    at.reply = answers.get(kind, b'{"status": "success", "dedup_key": "x"}')
    return made[kind], env


def sent(kind: str, at: Receiver, what: Message) -> dict[str, Any]:
    where, env = place(kind, at)
    send(where, what, env)
    return at.taken[-1].json


# --- formats ------------------------------------------------------------------------------------------------------


def check_slack(body: dict[str, Any]) -> None:
    assert 0 < len(body["text"]) <= 3000
    assert 0 < len(body["blocks"]) <= 50
    for block in body["blocks"]:
        if block["type"] == "header":
            assert block["text"]["type"] == "plain_text"
            assert 0 < len(block["text"]["text"]) <= 150
        elif block["type"] == "section":
            assert 0 < len(block["text"]["text"]) <= 3000
        else:
            assert block["type"] == "context"
            assert all(len(element["text"]) > 0 for element in block["elements"])


def check_pagerduty(body: dict[str, Any]) -> None:
    assert body["event_action"] in {"trigger", "acknowledge", "resolve"}
    assert body["routing_key"] == SECRET
    assert 0 < len(body["dedup_key"]) <= 255
    if body["event_action"] == "trigger":
        assert 0 < len(body["payload"]["summary"]) <= 1024
        assert body["payload"]["severity"] in {"critical", "error", "warning", "info"}
        assert body["payload"]["source"]
        dt.datetime.fromisoformat(body["payload"]["timestamp"])
        assert all(set(link) == {"href", "text"} for link in body["links"])


def check_teams(body: dict[str, Any]) -> None:
    (attachment,) = body["attachments"]
    card = attachment["content"]
    assert (body["type"], attachment["contentType"]) == ("message", "application/vnd.microsoft.card.adaptive")
    assert (card["type"], card["version"]) == ("AdaptiveCard", "1.4")
    assert all(block["type"] == "RichTextBlock" for block in card["body"])  # text that is no Markdown
    assert all(run["type"] == "TextRun" and run["text"] for block in card["body"] for run in block["inlines"])


CHECKS = {"slack": check_slack, "slack_bot": check_slack, "pagerduty": check_pagerduty, "teams": check_teams}


@pytest.mark.parametrize("number", [1, 200])
@pytest.mark.parametrize("text", ["3 of 4 records were rejected", HOSTILE, "x" * 20_000, "&<>" * 5000])
@pytest.mark.parametrize("kind", KINDS)
def test_every_message_is_within_the_documented_format_of_each_service(
    at: Receiver, kind: Kind, text: str, number: int
) -> None:
    for service, check in CHECKS.items():
        check(sent(service, at, message(number, kind, text)))
        limit = {"teams": 28_000, "pagerduty": 512_000}.get(service, 200_000)
        assert len(at.taken[-1].body) <= limit, service


def test_slack_shows_what_is_wrong_and_no_text_of_a_sender_calls_or_links_anybody(at: Receiver) -> None:
    body = sent("slack", at, message(text=HOSTILE))
    shown = str([block for block in body["blocks"] if block["type"] == "section"]) + body["text"]
    assert "<!channel>" not in shown
    assert "<@U1>" not in shown
    assert "&lt;!channel&gt; &amp; &lt;@U1&gt;" in shown
    assert "<https://dagster.example.org/runs/0|look>" in shown
    assert "client0_20250106.csv" in shown


def test_two_hundred_alerts_are_one_message_that_says_how_many(at: Receiver) -> None:
    for service in HTTP:
        sent(service, at, message(200))
    assert len(at.taken) == len(HTTP)
    assert all("180 more" in str(request.json) for request in at.taken if "alerts" not in request.json.get("data", {}))
    (webhook,) = [request.json for request in at.taken if "data" in request.json]
    assert len(webhook["data"]["alerts"]) == 200


def test_what_slack_is_told_later_is_a_reply(at: Receiver) -> None:
    where, env = place("slack_bot", at)
    first = send(where, message(), env)
    send(where, message(kind="resolved", reply_to=first), env)
    opened, closed = [request.json for request in at.taken]
    assert first == "1700000000.000100"
    assert (opened.get("thread_ts"), closed["thread_ts"]) == (None, first)
    assert opened["channel"] == "#files"
    assert at.taken[0].headers["Authorization"] == f"Bearer {SECRET}"


def test_pagerduty_is_told_of_beginning_and_end_under_one_key(at: Receiver) -> None:
    bodies = [sent("pagerduty", at, message(kind=kind)) for kind in ("firing", "acknowledged", "resolved")]
    assert [body["event_action"] for body in bodies] == ["trigger", "acknowledge", "resolve"]
    assert {body["dedup_key"] for body in bodies} == {"cd" * 16}


def test_an_end_that_leaves_others_open_does_not_end_pagerdutys_incident(at: Receiver) -> None:
    assert sent("pagerduty", at, message(kind="resolved", closes=False))["event_action"] == "trigger"


def test_a_webhook_is_signed_so_that_nobody_can_change_or_forge_it(at: Receiver) -> None:
    where, env = place("webhook", at)
    send(where, message(text="Bürger & Söhne"), env)
    request = at.taken[-1]
    said = Verifier(SIGNING).verify(request.body, dict(request.headers))
    assert (said["type"], said["data"]["alerts"][0]["summary"]) == ("alert.firing", "Bürger & Söhne")
    assert {name.lower(): value for name, value in request.headers.items()}["webhook-id"] == "ab" * 16
    with pytest.raises(WebhookVerificationError):
        Verifier(SIGNING).verify(request.body.replace(b"client0", b"client9"), dict(request.headers))
    with pytest.raises(WebhookVerificationError):
        Verifier("whsec_" + base64.b64encode(b"other").decode()).verify(request.body, dict(request.headers))


# --- refusals -----------------------------------------------------------------------------------------------------


def refused(where: Place, env: dict[str, str], what: Message | None = None) -> SendError:
    with pytest.raises(SendError) as caught:
        send(where, what or message(), env)
    error = caught.value
    assert error.__cause__ is None
    assert error.__suppress_context__
    for secret in (SECRET, SIGNING, "Zqx", "127.0.0.1"):
        assert secret not in f"{error} {error!r}"
    assert str(error).count("\n") == 0
    return error


@pytest.mark.parametrize("service", HTTP)
def test_a_place_that_says_when_to_come_back_is_understood(at: Receiver, service: str) -> None:
    where, env = place(service, at)
    at.status, at.headers = 429, {"Retry-After": "17"}
    start = time.monotonic()
    error = refused(where, env)
    assert (error.retry_after, error.permanent, len(at.refused)) == (17.0, False, 1)
    assert time.monotonic() - start < 5  # the library did not wait by itself
    at.headers = {"Retry-After": format_datetime(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60), usegmt=True)}
    assert 55 <= (refused(where, env).retry_after or 0) <= 60


@pytest.mark.parametrize("service", HTTP)
@pytest.mark.parametrize(("status", "permanent"), [(400, True), (403, True), (404, True), (500, False), (503, False)])
def test_a_refusal_is_told_from_a_failure_that_may_pass(
    at: Receiver, service: str, status: int, permanent: bool
) -> None:
    where, env = place(service, at)
    at.status = status
    assert (refused(where, env).permanent, len(at.refused)) == (permanent, 1)


@pytest.mark.parametrize("service", HTTP)
def test_a_redirect_is_not_followed_and_the_message_is_not_taken_for_sent(at: Receiver, service: str) -> None:
    where, env = place(service, at)
    with receiving() as elsewhere:
        elsewhere.reply = b"<html>log in</html>"
        at.status, at.headers = 302, {"Location": f"{elsewhere.url}/login"}
        refused(where, env)
        assert not any(SECRET.encode() in request.body for request in elsewhere.taken)


@pytest.mark.parametrize("service", HTTP)
def test_a_place_that_nobody_answers_at_is_a_failure_that_may_pass(at: Receiver, service: str) -> None:
    where, env = place(service, at)
    gone = "http://127.0.0.1:9"
    if isinstance(where, PagerDuty):
        where = where.model_copy(update={"url": "https://127.0.0.1:9"})
    elif isinstance(where, SlackBot):
        where = where.model_copy(update={"base_url": f"{gone}/"})
    assert not refused(where, env | {"URL": f"{gone}/{SECRET}"}).permanent


@pytest.mark.parametrize(
    ("said", "permanent"), [("channel_not_found", True), ("restricted_action", True), ("internal_error", False)]
)
def test_slacks_own_word_for_a_refusal_is_told(at: Receiver, said: str, permanent: bool) -> None:
    where, env = place("slack_bot", at)
    at.reply = f'{{"ok": false, "error": "{said}"}}'.encode()
    error = refused(where, env)
    assert (error.permanent, said in str(error)) == (permanent, True)


@pytest.mark.parametrize("said", ["²", "99999999999999999999", "Fri, 31 Dec 99999 23:59:59 GMT", "soon", ""])
@pytest.mark.parametrize("service", HTTP)
def test_a_time_to_come_back_that_is_none_is_left_out(at: Receiver, service: str, said: str) -> None:
    where, env = place(service, at)
    at.status, at.headers = 429, {"Retry-After": said.encode("utf-8").decode("latin-1")}
    assert refused(where, env).retry_after is None


def test_a_test_opens_no_incident_that_stays(at: Receiver) -> None:
    where, env = place("pagerduty", at)
    send(where, message(kind="test"), env)
    assert [request.json["event_action"] for request in at.taken] == ["trigger", "resolve"]


def test_taking_on_one_alert_of_many_does_not_take_on_their_incident(at: Receiver) -> None:
    assert sent("pagerduty", at, message(kind="acknowledged", closes=False))["event_action"] == "trigger"
    assert sent("pagerduty", at, message(kind="acknowledged", closes=True))["event_action"] == "acknowledge"


@pytest.mark.parametrize("service", HTTP)
def test_a_secret_that_is_not_there_is_a_sentence_that_names_the_reference(at: Receiver, service: str) -> None:
    where, _ = place(service, at)
    error = refused(where, {})
    assert not error.permanent
    assert "is not there" in str(error)
    assert "env:" in str(error)


def test_a_signing_secret_that_is_none_is_a_refusal(at: Receiver) -> None:
    where, env = place("webhook", at)
    assert "no webhook secret" in str(refused(where, env | {"SIGN": "whsec_é"}))


def test_no_library_logs_a_secret_an_address_or_a_message(at: Receiver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for service in HTTP:
        for status in (200, 500):
            where, env = place(service, at)
            at.status = status
            try:
                send(where, message(text="Zqxtext"), env)
            except SendError:
                assert status == 500
    assert "Zqx" not in caplog.text


# --- mail ---------------------------------------------------------------------------------------------------------


class Mailbox:
    """Takes mails, or refuses them with `answer`."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.answer = "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, _server: object, _session: object, envelope: Any, address: str, _options: object
    ) -> str:
        if address.startswith("gone"):
            return "550 no such mailbox"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802
        if self.answer.startswith("2"):
            mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
            assert isinstance(mail, EmailMessage)
            self.mails.append(mail)
        return self.answer


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that its own key has signed: (certificate, key)."""
    folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]), dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = (
        builder.not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = builder.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def served(request: pytest.FixtureRequest, certificate: tuple[Path, Path]) -> Iterator[tuple[Mailbox, dict[str, Any]]]:
    """A mail server of the kind asked for: its mailbox, and how to reach it."""
    security, box = request.param, Mailbox()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)

    def authenticator(_server: object, _session: object, _envelope: object, _mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"bot", SECRET.encode()), handled=False)

    options: dict[str, Any] = {"port": free_port(), "hostname": "127.0.0.1"}
    if security == "starttls":
        options |= {"tls_context": context, "authenticator": authenticator, "auth_required": True}
    if security == "tls":
        options |= {"ssl_context": context}
    controller = Controller(box, **options)
    controller.start()
    try:
        reach = {"kind": "email", "host": "127.0.0.1", "port": options["port"], "security": security}
        yield box, reach | {"sender": "hi@plan.example", "to": ["ops@plan.example"]}
    finally:
        controller.stop()


PLAIN = pytest.mark.parametrize("served", ["none"], indirect=True)


@PLAIN
def test_mails_of_one_alert_are_one_conversation_and_a_repeated_one_is_the_same(
    served: tuple[Mailbox, dict[str, Any]],
) -> None:
    box, reach = served
    where = Email.model_validate(reach)
    for what in (message(), message(), message(kind="resolved", message_id="ef" * 16)):
        send(where, what, {})
    first, again, closed = box.mails
    assert first["Message-ID"] == again["Message-ID"] != closed["Message-ID"]
    assert first["References"] == closed["References"]
    assert first["Auto-Submitted"] == "auto-generated"
    assert first["Subject"] == "[prod] ALERT Too many records rejected: 3 of 4 records were rejected"
    assert closed["Subject"].strip().startswith("[prod] RESOLVED")  # it is folded
    text = first.get_content()
    assert "client0: 3 of 4 records were rejected" in text
    assert "file: client0_20250106.csv" in text
    assert "https://dagster.example.org/runs/0" in text


@PLAIN
def test_no_text_of_a_sender_becomes_a_header_or_a_line_of_its_own(served: tuple[Mailbox, dict[str, Any]]) -> None:
    box, reach = served
    send(Email.model_validate(reach), message(text=HOSTILE), {})
    mail = box.mails[0]
    assert (mail["Bcc"], mail["To"]) == (None, "ops@plan.example")
    assert not any(row.startswith("Bcc:") for row in mail.get_content().splitlines())


@PLAIN
def test_addresses_may_be_a_secret_and_two_hundred_alerts_are_one_mail(served: tuple[Mailbox, dict[str, Any]]) -> None:
    box, reach = served
    where = Email.model_validate(reach | {"to": "env:TO"})
    send(where, message(200), {"TO": "a@plan.example\nb@plan.example;"})
    assert box.mails[0]["To"] == "a@plan.example, b@plan.example"
    assert "180 more" in box.mails[0].get_content()


@PLAIN
def test_a_mail_server_that_will_never_take_it_is_told_from_one_that_is_busy(
    served: tuple[Mailbox, dict[str, Any]],
) -> None:
    box, reach = served
    where = Email.model_validate(reach)
    box.answer = "550 no such mailbox"
    assert refused(where, {}).permanent
    box.answer = "451 try later"
    assert not refused(where, {}).permanent


@PLAIN
def test_a_recipient_that_the_server_refuses_is_told_and_the_others_have_it(
    served: tuple[Mailbox, dict[str, Any]],
) -> None:
    box, reach = served
    with pytest.raises(PartlySentError, match="refused 1 of 2"):
        send(Email.model_validate(reach | {"to": ["ops@plan.example", "gone@plan.example"]}), message(), {})
    assert len(box.mails) == 1


@PLAIN
@pytest.mark.parametrize("change", [{"sender": "bot@\n"}, {"sender": "bot@"}, {"to": ["a@["]}])
def test_addresses_that_make_no_mail_are_a_refusal_in_one_sentence(
    served: tuple[Mailbox, dict[str, Any]], change: dict[str, Any]
) -> None:
    _, reach = served
    error = refused(Email.model_validate(reach | change), {})
    assert error.permanent
    assert "\n" not in str(error)


@pytest.mark.parametrize("served", ["starttls", "tls"], indirect=True)
def test_mail_is_encrypted_to_a_server_that_proves_who_it_is(
    served: tuple[Mailbox, dict[str, Any]], certificate: tuple[Path, Path]
) -> None:
    box, reach = served
    if reach["security"] == "starttls":
        reach |= {"user": "bot", "password": "env:KEY"}
    env = {"KEY": SECRET}
    assert not refused(Email.model_validate(reach), env).permanent  # nobody vouches for it
    assert box.mails == []
    where = Email.model_validate(reach | {"ca_file": str(certificate[0])})
    send(where, message(), env)
    assert len(box.mails) == 1
    if reach["security"] == "starttls":
        assert refused(where, {"KEY": "wrong"}).permanent
