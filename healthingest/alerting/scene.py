"""What one look at the installation works on, and how what it finds is put down."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import polars as pl

from healthingest.alerting.book import Alert, Book
from healthingest.alerting.conditions import Observation, kind_of
from healthingest.alerting.links import Links
from healthingest.alerting.settings import Settings
from healthingest.alerting.store import Loaded, Seen
from healthingest.contracts.clients import ClientSet
from healthingest.errors import ConfigError
from healthingest.lake.audit import Audit
from healthingest.places import Places

#: A row of the audit table, column -> value.
Row = Mapping[str, Any]
#: What one source of evidence found, and what of it shall be noted as seen.
Found = tuple[list[Observation], Seen]


@dataclass(frozen=True)
class Scene:
    """Everything that a source of evidence may look at; no keys are among it."""

    places: Places
    clients: ClientSet
    settings: Settings
    loaded: Loaded
    now: datetime
    links: Links
    #: Names of the places that there are now.
    known_places: frozenset[str] = frozenset()
    #: What in alerts.yaml can be read and would tell nobody.
    doubts: tuple[ConfigError, ...] = ()

    @property
    def book(self) -> Book:
        """The alerts as they stand."""
        return self.loaded.book

    @property
    def audit(self) -> Audit:
        """The audit table."""
        return Audit.at(self.places.output)

    @cached_property
    def deliveries(self) -> pl.DataFrame:
        """What became of every file, in the order they were decided: read once for all sources of a look."""
        columns = ["client_id", "file_id", "file_name", "creation_date", "delivery_no", "status", "ingestion_time"]
        return self.audit.frame(columns).sort("ingestion_time")

    def alert(self, client_id: str | None, condition: str) -> Alert | None:
        """The alert on a condition of a client, if it holds."""
        mine = (a for a in self.book.alerts.values() if (a.client_id, a.condition) == (client_id, condition))
        return next((alert for alert in mine if alert.open), None)

    def state(
        self, condition: str, text: str, *, firing: bool, client_id: str | None = None,
        details: tuple[tuple[str, str], ...] = (), link: str = "",
    ) -> Observation:  # fmt: skip
        """A state that holds now, or does not."""
        return Observation(condition, client_id, firing, self.now, text, details, link)

    def over(self, kind: str, holding: Iterable[Observation], text: str) -> list[Observation]:
        """That open alerts of one kind are over, but for those that hold."""
        hold = {(seen.client_id, seen.condition) for seen in holding}
        return [
            self.state(a.condition, text, firing=False, client_id=a.client_id)
            for a in self.book.alerts.values()
            if a.open and kind_of(a.condition) == kind and (a.client_id, a.condition) not in hold
        ]
