"""The tutorial for stewards, run as it stands: every command, and every line that it promises.

With HEALTHINGEST_SCREENSHOTS its pictures are drawn there anew.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from healthingest_tests.conftest import REPO
from healthingest_tests.servers import BIN

PAGE = REPO / "docs" / "tutorial.md"
CHROMIUM = shutil.which("chromium")


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of the page's console blocks, with the lines that it must print."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = part.strip().splitlines()
            yield command, lines


def promised(line: str) -> re.Pattern[str]:
    """A line of the page as it may be printed: any white space, and anything for `...`."""
    words = [re.escape(word) for word in line.split()]
    return re.compile(r"\s*".join(word.replace(re.escape("..."), ".*") for word in words))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    setup = re.search(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert setup
    home = tmp_path / "morning"
    home.mkdir()
    copying, exporting = setup[1].strip().splitlines()
    subprocess.run(["bash", "-c", copying], cwd=home, env=os.environ | {"REPO": str(REPO)}, check=True)
    for given in re.findall(r"(\w+)=(\S+)", exporting):
        monkeypatch.setenv(given[0], given[1].replace("$PWD", str(home)))
    monkeypatch.setenv("PATH", f"{BIN}:{os.environ['PATH']}")
    return home


def test_the_tutorial_is_what_happens(folder: Path) -> None:
    ran = 0
    for command, lines in commands(PAGE.read_text()):
        done = subprocess.run(
            ["bash", "-c", command], cwd=folder, env=os.environ, capture_output=True, text=True, check=False
        )
        assert done.returncode in {0, 1}, (command, done.stderr)
        printed = done.stdout.splitlines()
        assert "healthingest:" not in done.stderr.replace("healthingest: a development keyring", ""), done.stderr
        for line in lines:
            assert any(promised(line).search(said) for said in printed), (command, line, done.stdout)
        ran += 1
    assert ran > 10
    _pictures(folder)


def _pictures(folder: Path) -> None:
    where = os.environ.get("HEALTHINGEST_SCREENSHOTS")
    if not where or CHROMIUM is None:
        return
    reports = folder / "output" / "reports"
    refused = next(p for p in sorted(reports.rglob("*.html")) if "<h1>acme_20250106_1" in p.read_text())
    pages = {"tutorial-overview": (reports / "overview.html", 400), "tutorial-report": (refused, 800)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, (file, height) in pages.items():
            page = browser.new_page(viewport={"width": 1200, "height": height})
            page.goto(file.as_uri())
            page.screenshot(path=str(Path(where) / f"{name}.png"))
        browser.close()
