"""Dagster tests wait for no file to come to rest longer than they must."""

import pytest

from healthingest.landing import discovery


@pytest.fixture(autouse=True)
def _short_quiet_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "QUIET_SECONDS", 0.05)
