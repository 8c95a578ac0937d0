"""What a person sees and does in the web UI, in a real browser against real Dagster processes.

Screenshots are left in HEALTHINGEST_SCREENSHOTS, where set, for people to look at.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from healthingest.platform import Platform
from healthingest.release import close_delivery, find_delivery
from healthingest_tests.conftest import csv_of, drop, install, line
from healthingest_tests.servers import BIN, REPO, environment, free_port, running, wait_for_http, wait_for_status

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed")
_SLOW = 60_000  # ms; a page waits for Dagster, which waits for the machine


@dataclass
class Site:
    home: Platform
    page: Page
    url: str
    reports: str

    def open(self, path: str) -> None:
        self.page.goto(self.url + path)

    def picture(self, name: str) -> None:
        folder = os.environ.get("HEALTHINGEST_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The system with its sensor stopped, so that what happens is what the person does."""
    root = tmp_path_factory.mktemp("ui")
    home = install(root, {
        "acme": "client_id: acme\n",
        "holdco": "client_id: holdco\nquality: {on_breach: hold}\n",
        "slowco": "client_id: slowco\nfreshness: {expect_every: 1m, grace: 0m}\n",
    })  # fmt: skip
    env = environment(home, root / "dagster")
    workspace = str(REPO / "workspace.yaml")
    subprocess.run(
        [BIN / "dagster", "sensor", "stop", "landing_zone", "-w", workspace, "-l", "healthingest"],
        env=env, cwd=root, check=True, capture_output=True,
    )  # fmt: skip
    port, reports_port = free_port(), free_port()
    reports = home.places.output / "reports"
    reports.mkdir(parents=True)
    env["HEALTHINGEST_REPORTS_URL"] = f"http://127.0.0.1:{reports_port}"
    served = ["python", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(reports), str(reports_port)]
    dev = ["dagster", "dev", "-w", workspace, "-h", "127.0.0.1", "-p", str(port)]
    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with running(dev, served, env=env, cwd=root), sync_playwright() as playwright:
        wait_for_http(port)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(_SLOW)
        yield Site(home, page, f"http://127.0.0.1:{port}", env["HEALTHINGEST_REPORTS_URL"])
        browser.close()


def materialize(site: Site, partition: str) -> None:
    """Open the partition's page, press Materialize, confirm."""
    site.open(f"/assets/silver?view=partitions&partition={partition.replace('|', '%7C')}")
    site.page.get_by_role("button", name="Materialize").first.click()
    dialogs = site.page.get_by_role("dialog")  # two of them while the first fades out
    # Dagster points out that bronze_files was not materialized; here it need not be.
    dialogs.get_by_role("button", name="Confirm").click()
    expect(dialogs.get_by_text("1 partition", exact=True)).to_be_visible(timeout=_SLOW)
    site.picture("materialize")
    dialogs.get_by_role("button", name="Launch 1 run").click()
    expect(dialogs).to_have_count(0, timeout=_SLOW)


def test_a_partition_materialized_by_hand_is_ingested_and_its_page_shows_the_quality_table(site: Site) -> None:
    records = [line(f"M{i}") for i in range(40)]
    drop(site.home, "acme_20250106_1.csv", csv_of(*records, line("M41", zip="12")))

    materialize(site, "acme|2025-01-06")

    assert wait_for_status(site.home, "acme_20250106_1.csv", 90)[0] == "succeeded"
    site.open("/assets/silver?view=partitions&partition=acme%7C2025-01-06")
    row = site.page.locator("tr").filter(has_text="acme_20250106_1.csv").last  # the table lies in a table
    expect(row).to_be_visible(timeout=_SLOW)
    assert [cell.strip() for cell in row.locator("td").all_inner_texts()][:6] == [
        "acme_20250106_1.csv",
        "succeeded",
        "41",
        "40",
        "1",
        "40",
    ]
    expect(site.page.get_by_text("zip.us_zip").first).to_be_visible(timeout=_SLOW)
    site.picture("partition")
    link = site.page.get_by_role("link", name="127.0.0.1").filter(has_text="/acme/").first
    site.page.goto(str(link.get_attribute("href")))
    expect(site.page.get_by_role("heading", name="acme_20250106_1.csv")).to_be_visible(timeout=_SLOW)
    expect(site.page.get_by_text("must be a valid ZIP code")).to_be_visible()
    site.picture("report")


def test_a_file_over_its_limit_shows_a_failed_check_and_a_failed_run(site: Site) -> None:
    drop(site.home, "holdco_20250106.csv", csv_of(line("M1"), line("M2", dob="not a date")))

    materialize(site, "holdco|2025-01-06")

    assert wait_for_status(site.home, "holdco_20250106.csv", 90)[0] == "held"
    site.open("/assets/silver?view=checks&checkDetail=invalid_ratio")
    expect(site.page.get_by_text("the delivery is held and silver is unchanged").first).to_be_visible(timeout=_SLOW)
    expect(site.page.get_by_text("Failed", exact=True).first).to_be_visible(timeout=_SLOW)
    site.picture("failed-check")
    site.open("/runs")
    expect(site.page.get_by_text("Failure").first).to_be_visible(timeout=_SLOW)
    site.picture("runs")


def shows(site: Site, client: str, check: str, word: str, said: str) -> None:
    """Open a check of a client's feed until it says so: the watch looks every few seconds, the page by itself."""
    site.open(f"/assets/client_feed/{client}?view=checks&checkDetail={check}")
    expect(site.page.get_by_text(said).first).to_be_visible(timeout=2 * _SLOW)
    expect(site.page.get_by_text(word, exact=True).first).to_be_visible(timeout=_SLOW)


def test_a_clients_present_state_is_red_until_what_is_held_is_closed(site: Site) -> None:
    shows(site, "holdco", "current_quality", "Failed", "holdco_20250106.csv is held")
    site.picture("client-red")
    drop(site.home, "holdco_20250107.csv", csv_of(line("M1"), line("M2")))
    materialize(site, "holdco|2025-01-07")
    assert wait_for_status(site.home, "holdco_20250107.csv", 90)[0] == "succeeded"
    shows(site, "holdco", "current_quality", "Failed", "Deliveries still held: 1")
    held = find_delivery(site.home, "holdco_20250106.csv")
    close_delivery(site.home, held, "discard", by="jane", reason="sent by mistake")
    shows(site, "holdco", "current_quality", "Passed", "latest delivery was taken, within its limits")
    site.picture("client-green")


def test_a_late_client_is_red_on_its_page_and_green_again_once_it_delivers(site: Site) -> None:
    shows(site, "slowco", "delivery_expected", "Failed", "slowco is late by")
    site.picture("late-red")
    drop(site.home, "slowco_20250106.csv", csv_of(line("M1")))
    materialize(site, "slowco|2025-01-06")
    shows(site, "slowco", "delivery_expected", "Passed", "slowco is in time")
    site.picture("late-green")


def test_the_overview_and_the_audit_asset_show_every_client(site: Site) -> None:
    site.page.goto(f"{site.reports}/overview.html")
    expect(site.page.locator("table.clients tr").filter(has_text="holdco_20250107.csv")).to_have_count(1)
    expect(site.page.get_by_text("switched off").first).to_be_visible()  # the landing zone's sensor, in this test
    site.picture("overview")
    site.open("/assets/audit?view=events")
    expect(site.page.get_by_text("All clients.").first).to_be_visible(timeout=_SLOW)
    site.picture("audit-events")


def test_the_lineage_shows_the_way_of_a_file(site: Site) -> None:
    site.open("/assets/bronze_files?view=lineage")
    for node in ("bronze_files", "silver", "quarantine", "audit"):
        expect(site.page.get_by_text(node, exact=True).first).to_be_visible(timeout=_SLOW)
    site.picture("lineage")


def test_silvers_page_documents_its_columns(site: Site) -> None:
    site.open("/assets/silver")
    expect(site.page.get_by_text("keyed pseudonym of the member id").first).to_be_visible(timeout=_SLOW)
    site.picture("silver")
