"""The page of all clients: who is bad, late or fine, what is alerted; for two hundred clients and for none."""

from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from healthingest.alerting.book import Alert
from healthingest.alerting.watch import Watch
from healthingest.lake.audit import Audit
from healthingest.orchestration.metadata import health_table
from healthingest.platform import Platform
from healthingest.report.health import COLUMNS, health
from healthingest.report.overview import age, overview_page
from healthingest_tests.conftest import csv_of, deliver, install, line

BAD = [line(f"X{n}", zip="1") for n in range(4)]
NOW = datetime.now(UTC)


class Page(HTMLParser):
    """The page's text, cell by cell, and what it loads or links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"} and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row and row[0] == first)


def _drawn(watch: Watch, later: timedelta) -> str:
    looked = watch.look(NOW + later)
    return watch.write_overview(looked.book, looked.clients).read_text()


def drawn(home: Platform, later: timedelta = timedelta()) -> Page:
    watch = Watch.over(home.places)
    return Page(_drawn(watch, later))


def test_every_client_stands_there_as_it_is_the_bad_ones_first(tmp_path: Path) -> None:
    held = "client_id: holdco\nquality: {on_breach: hold}\n"
    home = install(tmp_path, {"acme": "client_id: acme\n", "newco": "client_id: newco\n", "holdco": held})
    deliver(home, "acme_20250106.csv", csv_of(line("M1")))
    deliver(home, "holdco_20250106.csv", csv_of(line("M1"), *BAD))
    page = drawn(home)
    clients = [row[:3] for row in page.rows if len(row) == 9]
    assert clients[1:] == [
        ["holdco", "bad", "holdco_20250106.csv held 1 held"], ["newco", "never", "none yet"],
        ["acme", "fine", "acme_20250106.csv succeeded"],
    ]  # fmt: skip
    assert page.row("holdco")[4] == "80.0\u2009% of 5\u2009%"
    assert page.row("delivery_held")[1:3] == ["holdco", "error"]
    assert set(page.links) == {"acme/index.html", "holdco/index.html"}
    assert not page.tags & {"script", "link", "img", "iframe"}


def test_it_needs_no_keys_and_shows_what_is_wrong_with_a_config(home: Platform) -> None:
    home.places.keyring.unlink()
    (home.places.configs / "globex.yaml").write_text("client_id: globex\nrulez: 1\n")
    page = drawn(home)
    assert "globex.yaml:2" in page.row("config_broken:globex.yaml")[-1]


def test_no_text_of_a_sender_becomes_a_tag() -> None:
    hostile = Alert(
        "test", None, "unroutable", "warning", "firing", "<script>alert(1)</script>.csv leads nowhere", (), "",
        since=NOW, seen_at=NOW, changed_at=NOW,
    )  # fmt: skip
    text = overview_page([], ["<b>broken</b>"], [hostile], NOW, {})
    assert "<script>" not in text
    assert "<b>broken" not in text
    assert "&lt;script&gt;" in text


def test_two_hundred_clients_and_none_are_drawn(tmp_path: Path) -> None:
    home = install(tmp_path, {f"c{n:03}": f"client_id: c{n:03}\n" for n in range(200)})
    rows = Audit.at(home.places.output).frame(COLUMNS).to_dicts()
    clients = health(rows, dict(home.clients.clients), NOW)
    assert len([row for row in Page(overview_page(clients, [], [], NOW, {})).rows if len(row) == 9]) == 201
    assert len(health_table(clients).records) == 200
    assert "No client is configured yet." in overview_page([], [], [], NOW, {})
    assert health_table([]).records == []


@pytest.mark.parametrize(
    ("minutes", "said"), [(-1, "0 min"), (0, "0 min"), (119, "119 min"), (120, "2 h"), (2880, "2 d")]
)
def test_ages_are_said_as_people_say_them(minutes: int, said: str) -> None:
    assert age(timedelta(minutes=minutes)) == said
