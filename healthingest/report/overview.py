"""The page for people who do not use Dagster: every client, who is late or red, and what is being alerted.

A static file, `output/reports/overview.html`, made anew by the watch; no keys are needed for it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from healthingest.ageing import CLASSES, Waiting, ageing
from healthingest.alerting.book import Alert
from healthingest.contracts.clients import ClientSet
from healthingest.places import Places
from healthingest.report.charts import sparkline
from healthingest.report.health import ClientHealth, health_of
from healthingest.report.page import render
from healthingest.report.write import write_page

_TREND = 30
_ORDER = ["bad", "late", "never", "fine"]


def overview_page(
    clients: Sequence[ClientHealth], problems: Sequence[str], alerts: Sequence[Alert], now: datetime,
    links: Mapping[str, str], waiting: Sequence[Waiting] = (),
) -> str:  # fmt: skip
    """The page; `problems`: what is wrong with configs; `links`: client -> its own page, relative to this one."""
    open_now = sorted((a for a in alerts if a.state != "resolved"), key=lambda a: a.since)
    over = sorted((a for a in alerts if a.resolved_at), key=lambda a: a.resolved_at or now, reverse=True)
    ordered = sorted(clients, key=lambda c: (_ORDER.index(c.state), c.client_id))
    return render(
        "overview.html",
        rows=[_row(c, sum(a.client_id == c.client_id for a in open_now), now, links) for c in ordered],
        counts={state: sum(c.state == state for c in clients) for state in _ORDER},
        problems=[said for said in problems if said not in {a.summary for a in open_now}],
        open=[_alert(a, now) for a in open_now],
        waiting=[_waiting(one, max(w.records for w in waiting)) for one in waiting],
        classes=[name for _, name in CLASSES],
        over=[_alert(a, now) for a in over if a.resolved_at and now - a.resolved_at < timedelta(days=7)],
    )


def _row(client: ClientHealth, alerts: int, now: datetime, links: Mapping[str, str]) -> dict[str, object]:
    last = client.last
    shown = client.history[-_TREND:]
    ratios = [(row["file_name"], row["invalid_ratio"] or 0.0) for row in shown]
    records = [(row["file_name"], float(row["records"] or 0)) for row in shown]
    return {
        "client_id": client.client_id,
        "link": links.get(client.client_id),
        "state": client.state,
        "file": last["file_name"] if last else None,
        "status": last["status"] if last else None,
        "taken": age(now - client.taken_at) if client.taken_at else None,
        "ratio": last["invalid_ratio"] or 0.0 if last else 0.0,
        "limit": last["max_invalid_ratio"] or 0.0 if last else 0.0,
        "late": age(client.late) if client.late else None,
        "held": client.held,
        "alerts": alerts,
        "recent": client.recent,
        "ratio_trend": sparkline(ratios, percent=True),
        "records_trend": sparkline(records),
    }


def _waiting(one: Waiting, most: int) -> dict[str, object]:
    shares = [round(100 * count / most, 1) for count in one.classes]
    return {
        "client_id": one.client_id, "records": one.records, "oldest": age(one.oldest),
        "classes": list(zip(one.classes, shares, strict=True)),
    }  # fmt: skip


def _alert(alert: Alert, now: datetime) -> dict[str, object]:
    ended = alert.resolved_at
    return vars(alert) | {"age": age(now - alert.since), "ended": age(now - ended) if ended else None}


def age(duration: timedelta) -> str:
    """A duration as people say it: 3 min, 5 h, 2 d."""
    minutes = int(duration.total_seconds() // 60)
    for size, name in ((2 * 24 * 60, "d"), (2 * 60, "h")):
        if minutes >= size:
            return f"{minutes // (size // 2)} {name}"
    return f"{max(minutes, 0)} min"


def overview_path(places: Places) -> Path:
    """Where the page lies."""
    return places.output / "reports" / "overview.html"


def write_overview(places: Places, clients: ClientSet, alerts: Sequence[Alert]) -> Path:
    """Draw the page of an installation anew."""
    now = datetime.now(UTC)
    links = {c: f"{c}/index.html" for c in clients.active if (places.output / "reports" / c / "index.html").exists()}
    problems = [str(problem) for problem in clients.problems]
    waiting = sorted(ageing(places.output, now).values(), key=lambda one: one.oldest, reverse=True)
    target = overview_path(places)
    write_page(target, overview_page(health_of(places, clients, now), problems, alerts, now, links, waiting))
    return target
