"""The quality reports: counts and charts, self-contained, and no value of a record."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from healthingest.platform import Platform
from healthingest.report.charts import Bar, bars_over_time
from healthingest.report.page import client_page, delivery_page
from healthingest.report.write import report_path, report_url
from healthingest_tests.conftest import HEADER, configure, csv_of, deliver, line

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Holds a page to what a browser without a network can show, and collects its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe", "img", "object"}
        for name, value in attrs:
            assert not name.startswith("on")
            assert name != "src"
            assert "//" not in (value or "")
            assert "url(" not in (value or "")
            if name == "href":
                self.links.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def row(**changes: Any) -> dict[str, Any]:
    """One delivery's row of the audit table."""
    return {
        "file_id": "f" * 32, "client_id": "acme", "file_name": "acme_20250106.csv", "creation_date": "2025-01-06",
        "file_suffix": "", "delivery_no": 1, "status": "succeeded", "contract": "member/1", "message": None,
        "physical_lines": 11, "header_lines": 1, "record_lines": 10, "blank_lines": 0, "trailer_lines": 0,
        "records": 10, "accepted": 8, "rejected": 2, "malformed": 0, "inserted": 8, "updated": 0, "unchanged": 0,
        "stale": 0, "suppressed": 0, "duplicates": 0, "warned": 0, "invalid_ratio": 0.2, "max_invalid_ratio": 0.05,
        "rules": [{"column": "zip", "rule": "zip.us_zip", "kind": "us_zip", "records": 2, "severity": "error"}],
        "pairs": [{"first": "email.email", "second": "zip.us_zip", "records": 7}],
        "filled": [{"column": "zip", "header": "Post Code", "records": 9},
                   {"column": "email", "header": None, "records": 0}],
    } | changes  # fmt: skip


def test_a_deliverys_page_shows_its_accounting_rules_pairs_and_fill_rates() -> None:
    words = Page(delivery_page(row(), [row()], {"zip.us_zip": "must be a ZIP"})).words
    for said in ("acme_20250106.csv", "11 physical lines", "10 records", "20.00%", "5.00%", "must be a ZIP",
                 "Post Code", "90.0%", "not in the file", "email.email", "7", "no value of a record"):  # fmt: skip
        assert said in words, said


def test_a_column_that_is_suddenly_empty_stands_out() -> None:
    before = row(file_id="a" * 32, file_name="acme_20250105.csv", creation_date="2025-01-05")
    empty = row(filled=[{"column": "zip", "header": "zip", "records": 2}])
    page = delivery_page(empty, [before, empty], {})
    assert 'class="fell"' in page
    assert "▼" in page
    assert 'class="fell"' not in delivery_page(row(), [before, row()], {})


def test_a_clients_page_lists_all_deliveries_and_links_them() -> None:
    rows = [
        row(file_id=f"{n:032x}", creation_date=f"2025-01-{n + 1:02d}", file_name=f"acme_202501{n + 1:02d}.csv")
        for n in range(30)
    ]
    page = Page(client_page("acme", rows, {}, {r["file_id"]: f"{r['file_id']}.html" for r in rows}))
    assert page.links == [f"{n:032x}.html" for n in reversed(range(30))]
    assert "30 deliveries" in page.words
    assert "acme_20250130.csv" in page.words


@pytest.mark.parametrize("count", [0, 1, 2, 200])
def test_charts_stand_any_number_of_deliveries(count: int) -> None:
    rows = [row(file_id=f"{n:032x}", creation_date="2025-01-06", delivery_no=n) for n in range(count)]
    assert Page(client_page("acme", rows, {}, {})).words


def test_a_failed_delivery_has_a_page_too() -> None:
    nothing = dict.fromkeys(["records", "accepted", "rejected", "physical_lines", "header_lines", "record_lines"], 0)
    failed = row(status="failed", message="The header lacks dob.", rules=None, pairs=[], filled=None,
                 invalid_ratio=None, max_invalid_ratio=None, **nothing)  # fmt: skip
    words = Page(delivery_page(failed, [failed], {})).words
    assert "The header lacks dob." in words
    assert "No records were read." in words


def test_hostile_names_are_text() -> None:
    name = "<script>alert(1)</script>\"x' onload=y"
    page = Page(delivery_page(row(file_name=name, message=name), [row(file_name=name)], {"zip.us_zip": name}))
    assert "<script>alert(1)</script>" in page.words


def test_a_bar_is_as_tall_as_its_value() -> None:
    drawn = bars_over_time([Bar("a", "t", [("accepted", 50), ("rejected", 50)]), Bar("b", "t", [("accepted", 100)])])
    assert drawn.count('height="100.0"') == 2
    assert drawn.count('height="200.0"') == 3  # the whole bar, and the field over each


def test_each_ingest_draws_the_pages_and_they_hold_no_value(home: Platform) -> None:
    home = configure(home, "client_id: acme\ncolumns: {Nr: member_id}\n")
    text = csv_of(line("SECRET1"), line("SECRET2", zip="SECRETZ"), "SECRET3", header=HEADER.replace("member_id", "Nr"))
    outcome = deliver(home, "acme_20250106.csv", text)
    page = report_path(home, "acme", outcome.delivery.file_id).read_text()
    index = report_path(home, "acme").read_text()
    assert "3 records" in Page(page).words
    assert f"{outcome.delivery.file_id}.html" in Page(index).links
    assert "must be a valid ZIP code" in Page(page).words
    assert "SECRET" not in page + index


def test_a_report_that_cannot_be_written_fails_no_delivery(home: Platform) -> None:
    (home.places.output / "reports").parent.mkdir(parents=True, exist_ok=True)
    (home.places.output / "reports").write_text("in the way")
    assert deliver(home, "acme_20250106.csv", csv_of(line("M1"))).status == "succeeded"


def test_a_report_has_an_address_where_reports_are_served(home: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    path: Path = report_path(home, "acme", "f" * 32)
    assert report_url(home, path) is None
    monkeypatch.setenv("HEALTHINGEST_REPORTS_URL", "http://127.0.0.1:3001/")
    assert report_url(home, path) == f"http://127.0.0.1:3001/acme/{'f' * 32}.html"
