"""The gold asset in Dagster: kept up where silver has changed, with its numbers to look at."""

import dagster as dg

from healthingest.orchestration.build import build_defs
from healthingest.platform import Platform
from healthingest_tests.conftest import csv_of, deliver, line


def test_gold_is_materialized_where_silver_has_changed_and_only_then(home: Platform) -> None:
    deliver(home, "acme_20250101.csv", csv_of(line("M1"), line("M2")))
    defs = build_defs(home.places)
    schedule = defs.resolve_schedule_def("membership_every_quarter")
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_schedule_context(instance)
        assert len(schedule.evaluate_tick(context).run_requests or ()) == 1
        done = defs.resolve_job_def("membership").execute_in_process(instance=instance)
        (event,) = done.asset_materializations_for_node("membership_by_month")
        assert event.metadata["members"].value == 2
        assert "| acme |" in str(event.metadata["months"].value)
        assert schedule.evaluate_tick(context).skip_message == "Silver has not changed since."
