"""The page on reading silver and gold: its Python, run as it stands."""

import re
from typing import Any

import pytest

from healthingest.marts.membership import update
from healthingest.platform import Platform
from healthingest_tests.conftest import REPO, csv_of, deliver, line
from healthingest_tests.unit.test_revert import take_back


def test_each_example_reads_what_there_is(home: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2", state="NY"), line("M3")))
    take_back(home, deliver(home, "acme_20250102.csv", csv_of(line("M1", city="Lynn"), line("M4"))).delivery)
    update(home.lake, home.places.output)
    names: dict[str, Any] = {"output": str(home.places.output)}
    for block in re.findall(r"```python\n(.*?)```", (REPO / "docs" / "consuming.md").read_text(), re.DOTALL):
        exec(block, names)
    assert sorted(names["members"]["member_id"]) == ["M1", "M3"]
    assert names["with_pandas"].shape == (3, 3)
    assert names["by_state"] == [("acme", "MA", 2), ("acme", "NY", 1)]
    assert (names["came"], names["went"]) == (4, 1)
    assert [left for _, left in names["leavers"]] == [1]
