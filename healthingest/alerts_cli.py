"""`healthingest alerts`: what is wrong, taking it on, silencing it, trying the places, and the watch beside Dagster."""

import os
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from healthingest.command import Json, command_of
from healthingest.errors import HealthingestError, UsageError, system_sentence
from healthingest.show import print_json, print_table

if TYPE_CHECKING:
    from healthingest.alerting.book import Alert, Book
    from healthingest.alerting.watch import Looked, Watch

alerts_app = typer.Typer(help="Alerts: see them, take them on, silence them, try the places.", no_args_is_help=True)
command = command_of(alerts_app)
_REASON = 500

OfClient = Annotated[str | None, typer.Option("--client", help="Only this client.")]
OfCondition = Annotated[str | None, typer.Option("--condition", help="Only this condition, e.g. data_delay.")]


@command("list")
def list_command(
    client: OfClient = None,
    condition: OfCondition = None,
    all_: Annotated[bool, typer.Option("--all", help="Resolved ones too.")] = False,
    as_json: Json = False,
) -> int:
    """What is wrong now, since when, who has taken it on, and whether everybody was told. 1 if anything is.

    Example: healthingest alerts list --client acme
    """
    watch = _watch()
    _known(watch, client, condition)
    book = watch.store.load().book
    found = [a for a in _sorted(book) if _is(a, client, condition) and (all_ or a.open)]
    if as_json:
        print_json({"alerts": [_plain(alert) for alert in found], "mutes": [vars(mute) for mute in book.mutes]})
    else:
        _print(found, book)
    return 1 if any(alert.open for alert in found) else 0


@command("ack")
def ack_command(
    alert: Annotated[list[str], typer.Argument(help="Ids of alerts, six digits or more, or conditions.")],
    client: OfClient = None,
    reason: Annotated[str, typer.Option(help="What is done about it; goes to all who were told.")] = "",
    as_json: Json = False,
) -> int:
    """Take alerts on: nobody is reminded of them any more; their end is told all the same.

    Example: healthingest alerts ack delivery_held --client acme --reason "asked acme for a new file"
    """
    from healthingest.alerting.book import acknowledge
    from healthingest.alerting.store import Loaded, Seen
    from healthingest.privacy.roles import actor, reason_given

    watch, by = _watch(), actor()
    text = reason_given(reason, _REASON, needed=False)
    taken: list[str] = []

    def change(loaded: Loaded) -> "tuple[Book, Seen]":
        taken.clear()
        book, desk = loaded.book, watch.desk(datetime.now(UTC))
        for wanted in alert:
            chosen = [a for a in book.alerts.values() if a.state == "firing" and _named(a, wanted) and _is(a, client)]
            if not chosen:
                raise UsageError(f"No firing alert is called {wanted!r}; healthingest alerts list shows them.")
            for one in chosen:
                book = acknowledge(book, one.key, by, text, desk)
                taken.append(one.key)
        return book, Seen()

    book = watch.store.change(change)
    if as_json:
        print_json({"acknowledged": [_plain(book.alerts[key]) for key in taken]})
    else:
        typer.echo(f"{len(taken)} alert(s) taken on by {by}.")
    return 0


@command("mute")
def mute_command(
    duration: Annotated[str, typer.Argument(help="For how long: 30m, 4h or 7d; 0h ends it.")],
    client: OfClient = None,
    condition: OfCondition = None,
    reason: Annotated[str, typer.Option(help="Why; is shown with the mute.")] = "",
    as_json: Json = False,
) -> int:
    """Tell nobody of a client, a condition, or both, for a while. What still holds at the end is told then.

    Example: healthingest alerts mute 4h --client acme --reason "acme moves its servers"
    """
    from dataclasses import replace

    from healthingest.alerting.book import Mute
    from healthingest.alerting.store import Loaded, Seen
    from healthingest.privacy.roles import actor, reason_given

    if client is None and condition is None:
        raise UsageError("Name a client, a condition, or both; to silence everything, write a window in alerts.yaml.")
    watch = _watch()
    _known(watch, client, condition)
    mute = Mute(
        client, condition, datetime.now(UTC) + _duration(duration), actor(), reason_given(reason, _REASON, needed=False)
    )

    def change(loaded: Loaded) -> "tuple[Book, Seen]":
        others = [m for m in loaded.book.mutes if (m.client_id, m.condition) != (client, condition)]
        kept = [mute] if mute.until > datetime.now(UTC) + timedelta(seconds=1) else []
        return replace(loaded.book, mutes=(*others, *kept)), Seen()

    watch.store.change(change)
    what = " of ".join(name for name in (condition, client) if name)
    if as_json:
        print_json({"mute": vars(mute)})
    else:
        typer.echo(f"Nobody is told of {what} until {mute.until:%Y-%m-%d %H:%M} UTC.")
    return 0


@command("test")
def try_command(
    place: Annotated[list[str] | None, typer.Argument(help="Names of places; none: all.")] = None,
    as_json: Json = False,
) -> int:
    """Send a test message to each place, and say what came of it. 1 if one does not take it.

    Example: healthingest alerts test ops-slack
    """
    done = _watch().try_places(place or [])
    if as_json:
        print_json({"places": [{"place": name, "problem": problem} for name, problem in done.items()]})
    elif not done:
        typer.echo("There are no places; write some into client_configs/alerts.yaml.")
    else:
        print_table("", ["place", ""], [[name, problem or "ok"] for name, problem in done.items()])
    return 1 if any(done.values()) else 0


@command("watch")
def watch_command(
    every: Annotated[
        float, typer.Option(min=0, help="Look again every so many seconds, until stopped; 0: look once.")
    ] = 0,
    as_json: Json = False,
) -> int:
    """Look for what is wrong and send what is due, without the Dagster daemon, so that its death is noticed too.

    Run it by a timer of the system, beside the daemon, which does the same; no message is sent twice. It draws the
    overview page anew. With DAGSTER_HOME it looks at runs, sensors and daemons as well. 1 if something could not be
    looked at or sent.

    Example: healthingest alerts watch --every 60
    """
    watch = _watch(with_dagster=True)
    while every:  # it outlives a look that fails: it is there to notice what has died
        try:
            _look(watch, as_json=as_json)
        except (HealthingestError, OSError) as error:
            said = str(error) if isinstance(error, HealthingestError) else system_sentence(error)
            typer.echo(f"healthingest: {said}", err=True)
        time.sleep(every)
    looked = _look(watch, as_json=as_json)
    return 1 if looked.problems or looked.failed else 0


def _look(watch: "Watch", *, as_json: bool) -> "Looked":
    looked = watch.look()
    if as_json:
        print_json(_looked(looked))
    else:
        _say(looked)
    watch.write_overview(looked.book, looked.clients)
    return looked


# --- shown --------------------------------------------------------------------------------------------------------


def _print(alerts: "list[Alert]", book: "Book") -> None:
    if alerts:
        header = ["id", "severity", "state", "client", "condition", "since (UTC)", "what", "told"]
        print_table("", header, [
            [a.key[:8], a.severity, _state(a), a.client_id or "-", a.condition, f"{a.since:%m-%d %H:%M}", a.summary,
             _told(a)]
            for a in alerts
        ])  # fmt: skip
    else:
        typer.echo("Nothing is wrong.")
    for mute in book.mutes:
        what = " of ".join(name for name in (mute.condition, mute.client_id) if name)
        typer.echo(f"Muted until {mute.until:%Y-%m-%d %H:%M} UTC by {mute.by}: {what}. {mute.reason}")


def _state(alert: "Alert") -> str:
    by = f" by {alert.acknowledged_by}" if alert.state == "acknowledged" else ""
    return f"{alert.state}{by}{', flapping' if alert.flapping else ''}"


def _told(alert: "Alert") -> str:
    """Whom the latest notices reached, and what keeps others from it."""
    latest = {n.place: n for n in alert.told}
    return "; ".join(
        f"{n.place}: {n.kind}" if n.state == "sent" else f"{n.place}: {n.kind} {n.state.replace('_', ' ')}"
        f"{f' after {n.attempts} attempts, {n.problem}' if n.problem else ''}"
        for n in latest.values()
    )  # fmt: skip


def _plain(alert: "Alert") -> dict[str, Any]:
    from dataclasses import asdict

    return {"id": alert.key} | asdict(alert)


def _looked(looked: "Looked") -> dict[str, Any]:
    open_alerts = sum(alert.open for alert in looked.book.alerts.values())
    return {"open": open_alerts, "sent": looked.sent, "failed": looked.failed, "problems": list(looked.problems)}


def _say(looked: "Looked") -> None:
    said = _looked(looked)
    typer.echo(f"{said['open']} open alert(s), {said['sent']} message(s) sent, {said['failed']} not.")
    for problem in looked.problems:
        typer.echo(f"healthingest: {problem}", err=True)


# --- asked --------------------------------------------------------------------------------------------------------


def _watch(*, with_dagster: bool = False) -> "Watch":
    from healthingest.alerting.watch import Watch
    from healthingest.places import Places

    places = Places.from_env()
    if not with_dagster or not os.environ.get("DAGSTER_HOME"):
        return Watch.over(places)
    os.environ.setdefault("DAGSTER_DISABLE_TELEMETRY", "1")
    from healthingest.orchestration.dagster_evidence import sources_at_home

    return Watch.over(places, sources_at_home())


def _sorted(book: "Book") -> "list[Alert]":
    from healthingest.alerting.message import SEVERITIES

    def rank(alert: "Alert") -> tuple[bool, int, str, str]:
        return not alert.open, -SEVERITIES.index(alert.severity), alert.client_id or "", alert.condition

    return sorted(book.alerts.values(), key=rank)


def _is(alert: "Alert", client: str | None, condition: str | None = None) -> bool:
    from healthingest.alerting.conditions import kind_of

    return client in {None, alert.client_id} and condition in {None, alert.condition, kind_of(alert.condition)}


def _named(alert: "Alert", wanted: str) -> bool:
    shortest = 6
    return (len(wanted) >= shortest and alert.key.startswith(wanted)) or _is(alert, None, wanted)


def _known(watch: "Watch", client: str | None, condition: str | None) -> None:
    from healthingest.alerting.conditions import CONDITIONS, kind_of
    from healthingest.contracts.clients import load_clients

    if condition is not None and kind_of(condition) not in CONDITIONS:
        raise UsageError(f"There is no condition {condition!r}; there is {', '.join(CONDITIONS)}.")
    clients = load_clients(watch.places)
    told_of = {alert.client_id for alert in watch.store.load().book.alerts.values() if alert.client_id}
    known = sorted({*clients.clients, *(problem.file.stem for problem in clients.problems), *told_of})
    if client is not None and client not in known:
        raise UsageError(f"There is no client {client!r}; there is {', '.join(known) or 'none'}.")


def _duration(text: str) -> timedelta:
    from pydantic import TypeAdapter, ValidationError

    from healthingest.contracts.duration import Duration

    try:
        duration: timedelta = TypeAdapter(Duration).validate_python(text)
    except ValidationError:
        raise UsageError("Write a duration like 30m, 4h or 7d.") from None
    return duration
