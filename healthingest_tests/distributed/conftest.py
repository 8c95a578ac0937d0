"""These tests start databases, brokers and clusters: HEALTHINGEST_DISTRIBUTED=1 runs them; CI has no time for them."""

import os
from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("HEALTHINGEST_DISTRIBUTED") == "1":
        return
    skip = pytest.mark.skip(reason="starts servers of its own; HEALTHINGEST_DISTRIBUTED=1 runs it")
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(skip)
