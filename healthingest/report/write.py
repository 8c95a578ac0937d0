"""Keeps the reports: `output/reports/<client>/<file_id>.html` and `index.html`, made anew with each delivery.

A report is a projection of the audit table: it can be deleted and made again, and none decides anything.
"""

import os
from collections.abc import Collection
from pathlib import Path

import polars as pl

from healthingest.errors import UsageError
from healthingest.platform import Platform
from healthingest.records.validate import Validator
from healthingest.report.links import URL_VARIABLE
from healthingest.report.page import client_page, delivery_page
from healthingest.storage.files import put


def report_path(platform: Platform, client_id: str, file_id: str | None = None) -> Path:
    """Where the report of a delivery lies, or that of a client."""
    return platform.places.output / "reports" / client_id / f"{file_id or 'index'}.html"


def report_url(platform: Platform, path: Path) -> str | None:
    """The address of a report, where HEALTHINGEST_REPORTS_URL says that they are served."""
    base = os.environ.get(URL_VARIABLE)
    return f"{base.rstrip('/')}/{path.relative_to(platform.places.output / 'reports')}" if base else None


def write_report(platform: Platform, client_id: str, file_ids: Collection[str] | None = None) -> Path:
    """Write the reports of these deliveries, or of all, and the client's; returns the client's page.

    Raises:
        UsageError: nothing is known of that client or delivery.
    """
    history = platform.lake.audit.frame(None, pl.col("client_id") == client_id).to_dicts()
    wanted = [row for row in history if file_ids is None or row["file_id"] in file_ids]
    if not wanted:
        raise UsageError(f"Nothing has been delivered for {client_id}; there is nothing to report.")
    texts = _texts(platform, client_id)
    for row in wanted:
        write_page(report_path(platform, client_id, row["file_id"]), delivery_page(row, history, texts))
    links = {r["file_id"]: f"{r['file_id']}.html" for r in history}
    index = report_path(platform, client_id)
    write_page(index, client_page(client_id, history, texts, links))
    return index


def _texts(platform: Platform, client_id: str) -> dict[str, str]:
    client = platform.clients.clients.get(client_id)
    return Validator.of(client).texts if client else {}


def write_page(target: Path, page: str) -> None:
    """Put a page in its place, whole."""
    put(target, page.encode())
