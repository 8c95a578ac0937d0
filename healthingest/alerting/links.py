"""Addresses that messages show: the quality report where reports are served, else Dagster's page, else none."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from healthingest.report.links import URL_VARIABLE


@dataclass(frozen=True)
class Links:
    """Addresses on one installation's servers."""

    #: Base of Dagster's pages; None: not known.
    dagster_url: str | None
    env: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def delivery(self, row: Mapping[str, Any]) -> str:
        """A delivery's quality report, or its partition of silver."""
        if not row["client_id"]:
            return ""
        if base := self.env.get(URL_VARIABLE):
            return f"{base.rstrip('/')}/{row['client_id']}/{row['file_id']}.html"
        partition = quote(f"{row['client_id']}|{row['creation_date']}")
        return self._dagster(f"assets/silver?view=partitions&partition={partition}")

    def run(self, run_id: str) -> str:
        """A run's page."""
        return self._dagster(f"runs/{run_id}")

    def _dagster(self, path: str) -> str:
        return f"{self.dagster_url.rstrip('/')}/{path}" if self.dagster_url else ""
