"""Where alerts rest: the Delta tables `checkpoint/alerts` and `checkpoint/alert_mutes`, beside the audit.

One row per alert, with the notices to and from its outbox in it, so that a change of state and what is to be told of it
are one commit. The same commit notes which events were seen, as Delta application transactions, so that none counts
twice. No keys are needed to read or write them, and they hold no value of a member.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
from deltalake import DeltaTable, write_deltalake

from healthingest.alerting.book import Alert, Book, Mute, Notice
from healthingest.errors import BusyError
from healthingest.lake.delta import ZSTD, Table, commit, retry
from healthingest.lake.exclusion import Exclusion

_TIME = pl.Datetime("us", "UTC")
_DETAILS = pl.List(pl.Struct({"label": pl.String, "text": pl.String}))
_NOTICE = pl.Struct(
    {
        "no": pl.Int32, "kind": pl.String, "place": pl.String, "episode": pl.Int32, "severity": pl.String,
        "summary": pl.String, "details": _DETAILS, "link": pl.String, "made_at": _TIME, "due_at": _TIME,
        "state": pl.String, "attempts": pl.Int32, "sent_at": _TIME, "problem": pl.String, "refused_since": _TIME,
        "tried_as": pl.String, "thread": pl.String, "reply_to": pl.String,
    }
)  # fmt: skip
SCHEMA = pl.Schema(
    {
        "environment": pl.String(), "client_id": pl.String(), "condition": pl.String(), "alert_key": pl.String(),
        "severity": pl.String(), "state": pl.String(), "summary": pl.String(), "details": _DETAILS,
        "link": pl.String(), "since": _TIME, "seen_at": _TIME, "changed_at": _TIME, "resolved_at": _TIME,
        "acknowledged_by": pl.String(), "acknowledged_reason": pl.String(), "episode": pl.Int32(),
        "count": pl.Int64(), "firings": pl.List(_TIME), "flapping": pl.Boolean(), "notices": pl.List(_NOTICE),
    }
)  # fmt: skip
_MUTES = pl.Schema(
    {
        "client_id": pl.String(), "condition": pl.String(), "until": _TIME, "by": pl.String(), "reason": pl.String(),
    }
)  # fmt: skip
_COMMENTS = {
    "client_id": "null: it concerns the installation",
    "condition": "what is wrong; docs/operating.md says what to do",
    "since": "when the latest firing began, UTC",
    "seen_at": "when it was last seen to hold, or not to hold, UTC",
    "episode": "counts the firings",
    "count": "events seen during the latest firing",
    "notices": "what each place is to be told (state waiting), or was told (sent), or never will be (given_up)",
}


@dataclass(frozen=True)
class Loaded:
    """The book as one version of the tables has it, and which events that version has seen."""

    book: Book
    table: DeltaTable
    #: Ranks that were looked up before: a look-up takes 0.4 ms.
    known: dict[str, int]

    def rank(self, evidence: str) -> int:
        """With which rank an event was seen; 0: never."""
        if evidence not in self.known:
            rank = int(self.table.transaction_version(f"seen/{evidence}") or 0)
            if not rank:
                return 0
            self.known[evidence] = rank
        return self.known[evidence]

    def watermark(self, source: str) -> datetime:
        """The time of the latest event of a source that was seen; the beginning of time before the first."""
        return datetime.fromtimestamp(int(self.table.transaction_version(f"watermark/{source}") or 0), UTC)


@dataclass(frozen=True)
class Seen:
    """What a change notes beside the alerts: events with their ranks, and how far each source was read."""

    events: Mapping[str, int] = field(default_factory=dict)
    watermarks: Mapping[str, datetime] = field(default_factory=dict)

    def transactions(self, before: Loaded) -> dict[str, int]:
        """The application transactions that note it, as far as it is new."""
        marks = {s: t for s, t in self.watermarks.items() if t.replace(microsecond=0) > before.watermark(s)}
        events = {f"seen/{evidence}": rank for evidence, rank in self.events.items()}
        return events | {f"watermark/{source}": int(at.timestamp()) for source, at in marks.items()}


#: Makes the next book of what was loaded, and says what it has seen.
Change = Callable[[Loaded], tuple[Book, Seen]]


@dataclass(frozen=True)
class AlertStore:
    """The tables of alerts and mutes of one installation."""

    alerts: Table
    mutes: Table
    exclusion: Exclusion
    _known: dict[str, int] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def at(cls, output: Path) -> "AlertStore":
        """The tables below an output folder; nothing is created yet."""
        root = output / "checkpoint"
        return cls(
            Table(root / "alerts", SCHEMA, description="Every alert, and what was told of it.", comments=_COMMENTS),
            Table(root / "alert_mutes", _MUTES, description="Whom nobody is to be told of for a while."),
            Exclusion(root / "locks"),
        )

    def load(self) -> Loaded:
        """The present state, creating empty tables where none are."""
        table = self.alerts.snapshot()
        rows = pl.scan_delta(table).collect().to_dicts()
        alerts = [_alert(row) for row in rows]
        mutes = tuple(Mute(**row) for row in self.mutes.frame().to_dicts())
        return Loaded(Book({alert.key: alert for alert in alerts}, mutes), table, self._known)

    def change(self, change: Change, wait: float = 60.0) -> Book:
        """Replace the book by what `change` makes of it, one process at a time, and note what it has seen.

        Where nothing changed and nothing was seen, nothing is written.

        Raises:
            BusyError: another process held the lock for longer than `wait` seconds.
            ContentionError: another machine was faster every time.
        """
        with self.exclusion.only("alerts", wait=wait):
            return retry(lambda: self._changed(change))

    def _changed(self, change: Change) -> Book:
        before = self.load()
        after, seen = change(before)
        noted = seen.transactions(before)
        if after.alerts != before.book.alerts or noted:
            number = int(before.table.transaction_version("alerts") or 0) + 1
            rows = pl.DataFrame([_row(alert) for alert in after.alerts.values()], schema=SCHEMA)
            write_deltalake(
                before.table, rows.sort("client_id", "condition", nulls_last=False), mode="overwrite",
                writer_properties=ZSTD, commit_properties=commit({"alerts": number, **noted}),
            )  # fmt: skip
        if after.mutes != before.book.mutes:
            mutes = pl.DataFrame([asdict(mute) for mute in after.mutes], schema=_MUTES)
            write_deltalake(self.mutes.snapshot(), mutes, mode="overwrite", writer_properties=ZSTD)
        return after

    @contextlib.contextmanager
    def sending(self) -> Iterator[bool]:
        """Be the only one that sends; False where another process does, which then sends what is due."""
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self.exclusion.only("messages", wait=0.0))
            except BusyError:
                mine = False
            else:
                mine = True
            yield mine


def _row(alert: Alert) -> dict[str, Any]:
    row = {f.name: getattr(alert, f.name) for f in fields(alert)}
    notices = [
        {f.name: getattr(n, f.name) for f in fields(n)} | {"details": _structs(n.details)} for n in alert.notices
    ]
    return row | {
        "alert_key": alert.key, "details": _structs(alert.details), "firings": list(alert.firings), "notices": notices,
    }  # fmt: skip


def _structs(details: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"label": label, "text": text} for label, text in details]


def _alert(row: Mapping[str, Any]) -> Alert:
    values = {name: value for name, value in row.items() if name != "alert_key"}
    notices = tuple(Notice(**(notice | {"details": _pairs(notice["details"])})) for notice in row["notices"] or ())
    return Alert(**values | {
        "details": _pairs(row["details"]), "firings": tuple(row["firings"] or ()), "notices": notices,
    })  # fmt: skip


def _pairs(structs: Iterable[Mapping[str, str]] | None) -> tuple[tuple[str, str], ...]:
    return tuple((pair["label"], pair["text"]) for pair in structs or ())
