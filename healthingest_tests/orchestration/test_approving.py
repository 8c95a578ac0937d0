"""Changes of files, approved and rejected from Dagster's launchpad."""

from pathlib import Path

import dagster as dg
import pytest

from healthingest.orchestration.build import build_defs
from healthingest.platform import Platform
from healthingest_tests.conftest import HEADER, csv_of, deliver, line
from healthingest_tests.unit.test_schema_stories import opened, silver


def test_a_proposal_is_approved_from_the_launchpad_and_its_deliveries_are_shown(home: Platform, tmp_path: Path) -> None:
    deliver(home, "acme_20250106.csv", csv_of(line("M1") + ",gold,x", header=f"{HEADER},Plan,Note"))
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:
        defs = build_defs(home.places)
        words = {"proposal": "acme.added.plan", "reason": "acme asked", "policy": {"keep": True}, "type": "text"}
        job = defs.resolve_job_def("approve_proposal")
        assert job.execute_in_process({"ops": {"approve": {"config": words}}}, instance=instance).success
        assert silver(home)[0]["plan"] == "gold"
        made = instance.get_materialized_partitions(dg.AssetKey("silver"))
        assert {frozenset(key.split("|")) for key in made} == {frozenset({"acme", "2025-01-06"})}
        with pytest.raises(dg.Failure, match="no proposal"):
            job.execute_in_process(
                {"ops": {"approve": {"config": words | {"proposal": "acme.added.x"}}}}, instance=instance
            )
        no = {"proposal": "acme.added.note", "reason": "not for us"}
        assert defs.resolve_job_def("reject_proposal").execute_in_process(
            {"ops": {"reject": {"config": no}}}, instance=instance
        ).success  # fmt: skip
    assert not opened(home)
