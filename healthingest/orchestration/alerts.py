"""The watch inside Dagster: the sensor that looks and sends, and the checks where people see what is wrong now.

A check of a partition says how that delivery was; these say how a client, or the installation, is: they go red with an
alert and green again with its end. Every condition has its place (`alerting.conditions`).
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import dagster as dg

from healthingest.alerting.book import Alert, Book
from healthingest.alerting.conditions import CONDITIONS, condition_of
from healthingest.alerting.message import SEVERITIES
from healthingest.alerting.store import AlertStore
from healthingest.alerting.watch import Looked, Watch
from healthingest.contracts.clients import ClientSet
from healthingest.errors import BusyError, ContentionError
from healthingest.lake.audit import Audit
from healthingest.orchestration.checks import DELIVERY_EXPECTED, store_check
from healthingest.orchestration.dagster_evidence import sources
from healthingest.orchestration.events import feed_key, readable_errors
from healthingest.orchestration.metadata import health_table, page_at
from healthingest.places import Places
from healthingest.report.health import health_of
from healthingest.report.links import URL_VARIABLE

INSTALLATION = dg.AssetKey("installation")
_INTERVAL_SECONDS = 8
#: The overview is drawn when something changes, and so often besides: it says how long ago things were.
_REDRAWN_SECONDS = 300.0
#: Each client's checks take 50 ms of Dagster's database; a tick must end in time.
_CLIENTS_PER_TICK = 40
#: Checks of every client's feed, and of the installation, in the order of their conditions.
_OF_CLIENT = ("current_quality", "files_as_agreed", "open_records", "pipeline")
_OF_INSTALLATION = ("configs", "landing_zone", "ticking", "schema_in_sync", "machine", "alerting", "pipeline")
_SAYS = {
    "current_quality": "The client's latest delivery was taken, within its limits.",
    "files_as_agreed": "The client's latest file came once, and no change of its files waits for approval.",
    "open_records": "No rejected record waits longer than the client's quality.max_open_age.",
    "pipeline": "No run failed, crashed or hangs, and nothing registered was left undecided.",
    "configs": "Every config can be used.",
    "landing_zone": "Every landed file leads to a client.",
    "ticking": "Sensors, schedules and daemons are alive.",
    "schema_in_sync": "The tables are as the registry says, or only lag behind it.",
    "machine": "Disks have room, and keys are not due for rotation.",
    "alerting": "The watch sees everything, and its messages get through.",
}


def installation_asset() -> dg.AssetSpec:
    """Stands for what concerns no single client: machine, daemons, configs, landing zone, alerting itself."""
    return dg.AssetSpec(
        INSTALLATION,
        group_name="operations",
        description="The installation itself; its checks are red while an alert on it holds.",
        kinds={"healthingest"},
    )


def state_checks(places: Places, clients: ClientSet) -> dg.AssetChecksDefinition:
    """The checks of the present state, which the sensor reports and anybody may run by hand."""
    specs = [
        dg.AssetCheckSpec(name, asset=key, description=_SAYS[name])
        for key, names in [(INSTALLATION, _OF_INSTALLATION), *((feed_key(c), _OF_CLIENT) for c in clients.active)]
        for name in names
    ]

    @dg.multi_asset_check(name="present_state", specs=specs, can_subset=True)
    def present_state(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        with readable_errors():
            book = AlertStore.at(places.output).load().book
            wanted = {(key.asset_key, key.name) for key in context.selected_asset_check_keys}
            found = [r for r in results(book, [None, *clients.active]) if (r.asset_key, r.check_name) in wanted]
        yield from found

    return present_state


def results(book: Book, clients: Sequence[str | None]) -> Iterator[dg.AssetCheckResult]:
    """What the checks of some clients (None: the installation) say now."""
    by_client: dict[str | None, list[Alert]] = {client_id: [] for client_id in clients}
    for alert in book.alerts.values():
        if alert.open and alert.client_id in by_client:
            by_client[alert.client_id].append(alert)
    for client_id, alerts in by_client.items():
        for name in _OF_INSTALLATION if client_id is None else _OF_CLIENT:
            holding = [a for a in alerts if condition_of(a.condition).check == name]
            yield _result(client_id, name, holding)


def _result(client_id: str | None, name: str, holding: Sequence[Alert]) -> dg.AssetCheckResult:
    worst = max((SEVERITIES.index(a.severity) for a in holding), default=0)
    severe = worst >= SEVERITIES.index("error")
    return dg.AssetCheckResult(
        asset_key=INSTALLATION if client_id is None else feed_key(client_id),
        check_name=name,
        passed=not holding,
        severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
        description=" ".join(a.summary for a in holding) or _SAYS[name],
        metadata=_metadata(holding),
    )


def _metadata(holding: Sequence[Alert]) -> Mapping[str, dg.MetadataValue]:
    shown: dict[str, dg.MetadataValue] = {}
    for alert in holding:
        said = "\n".join(
            [f"{label}: {text}" for label, text in alert.details] + [f"since {alert.since:%Y-%m-%d %H:%M} UTC"]
        )
        shown[alert.condition] = dg.MetadataValue.text(said)
        if alert.link:
            shown[f"{alert.condition} link"] = dg.MetadataValue.url(alert.link)
    return shown


# --- the sensor ---------------------------------------------------------------------------------------------------


def alert_sensor(places: Places) -> dg.SensorDefinition:
    """The sensor that looks at everything every few seconds and sends what is due."""
    lasting = Watch.over(places)  # it remembers the configs, and what it has seen, from tick to tick
    drawn: dict[str, float] = {}

    def look(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        # The instance is the tick's own.
        watch = replace(lasting, sources={**lasting.sources, **sources(context.instance)})
        try:
            looked = watch.look()
        except (BusyError, ContentionError) as error:
            return dg.SkipReason(str(error))
        known = _fingerprints(context.cursor)
        context.update_cursor(json.dumps(_show(context.instance, looked, known)))
        for problem in looked.problems:
            context.log.warning(problem)
        state = _state_of(places, looked)
        if time.monotonic() - drawn.get(state, -_REDRAWN_SECONDS) >= _REDRAWN_SECONDS:
            drawn.clear()
            drawn[state] = time.monotonic()
            _publish(context.instance, watch, looked)
        return dg.SkipReason(_said(looked))

    @dg.sensor(
        name="alert_watch",
        minimum_interval_seconds=_INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks for what is wrong, tells whom it concerns, and keeps the checks of the present state.",
    )
    def alert_watch(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        with readable_errors():
            return look(context)

    return alert_watch


def _said(looked: Looked) -> str:
    holding = [a for a in looked.book.alerts.values() if a.open]
    said = [f"{len(holding)} open alert(s)."]
    if looked.sent:
        said.append(f"{looked.sent} message(s) sent.")
    if looked.failed:
        said.append(f"{looked.failed} message(s) did not get through and are tried again.")
    return " ".join([*said, *looked.problems])


def _state_of(places: Places, looked: Looked) -> str:
    """Tells one state that the overview shows from the next."""
    version = Audit.at(places.output).version()
    alerts = sorted(f"{a.key} {a.state} {a.episode}" for a in looked.book.alerts.values())
    return f"{version} {hashlib.sha256(' '.join(alerts).encode()).hexdigest()}"


def _publish(instance: dg.DagsterInstance, watch: Watch, looked: Looked) -> None:
    """Draw the overview page, and show the same on the audit asset."""
    page = watch.write_overview(looked.book, looked.clients)
    base = os.environ.get(URL_VARIABLE)
    link = page_at(page, f"{base.rstrip('/')}/{page.name}" if base else None)
    table = health_table(health_of(watch.places, looked.clients, datetime.now(UTC)))
    told = {"clients": table, "overview": link}
    instance.report_runless_asset_event(dg.AssetObservation("audit", description="All clients.", metadata=told))


def _fingerprints(cursor: str | None) -> dict[str, str]:
    """Client (empty: the installation) -> what its checks last said; a cursor that cannot be read is an empty one."""
    try:
        return {str(name): str(what) for name, what in json.loads(cursor or "{}").items()}
    except (ValueError, AttributeError):
        return {}


def _show(instance: dg.DagsterInstance, looked: Looked, known: Mapping[str, str]) -> dict[str, str]:
    """Store the checks of those whose state has changed, or who delivered since; the new fingerprints.

    What was evaluated before an asset's latest materialization, the UI calls not evaluated.
    """
    fed = _fed(instance, looked.clients.active)
    now = {
        client_id or "": f"{_fingerprint(looked.book, client_id)}{fed.get(client_id or '', '')}"
        for client_id in [None, *looked.clients.active]
    }
    changed = [name for name, what in now.items() if known.get(name) != what][:_CLIENTS_PER_TICK]
    run_id = str(uuid.uuid4())  # one for all: each costs a database file of its own
    for result in results(looked.book, [name or None for name in changed]):
        store_check(instance, result, None, run_id)
    for name in changed:
        delays = [a for a in looked.book.alerts.values() if a.client_id == name and a.condition == "data_delay"]
        for alert in delays:
            store_check(instance, _delay(alert), None, run_id)
    return {name: what for name, what in known.items() if name in now} | {name: now[name] for name in changed}


def _fed(instance: dg.DagsterInstance, clients: Sequence[str]) -> dict[str, str]:
    """Client -> what tells its feed's latest materialization from the next."""
    keys = {feed_key(client_id): client_id for client_id in clients}
    entries = [record.asset_entry for record in instance.get_asset_records(list(keys))]
    return {
        keys[e.asset_key]: f" {e.last_materialization_storage_id}" for e in entries if e.last_materialization_record
    }


def _delay(alert: Alert) -> dg.AssetCheckResult:
    """The schedule's check of a client's delay, as the watch sees it between two of its runs."""
    return dg.AssetCheckResult(
        asset_key=feed_key(alert.client_id or ""),
        check_name=DELIVERY_EXPECTED,
        passed=not alert.open,
        description=alert.summary,
        metadata=_metadata([alert] if alert.open else []),
    )


def _fingerprint(book: Book, client_id: str | None) -> str:
    holding = sorted(
        f"{a.condition} {a.episode} {a.severity}" for a in book.alerts.values() if a.open and a.client_id == client_id
    )
    return hashlib.sha256("\x1f".join(holding).encode()).hexdigest()[:12] if holding else "well"


def shown_conditions() -> set[str]:
    """Conditions that some check shows."""
    return {
        name for name, kind in CONDITIONS.items() if kind.check in {*_OF_CLIENT, *_OF_INSTALLATION, DELIVERY_EXPECTED}
    }
