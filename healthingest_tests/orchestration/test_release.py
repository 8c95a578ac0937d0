"""A held delivery, closed from Dagster: by its jobs, which turn the partition's checks green and say who decided."""

import dagster as dg
import pytest

from healthingest.orchestration.build import build_defs
from healthingest.orchestration.report import report
from healthingest.platform import Platform
from healthingest_tests.conftest import configure, csv_of, deliver, line


@pytest.mark.parametrize(("wish", "status"), [("release", "succeeded"), ("discard", "discarded")])
def test_a_held_delivery_is_closed_by_its_job_and_its_partitions_check_turns_green(
    home: Platform, wish: str, status: str
) -> None:
    home = configure(home, "client_id: acme\nquality: {max_invalid_ratio: 0.3, on_breach: hold}\n")
    held = deliver(home, "acme_20250106.csv", csv_of(line("M1"), *(line(f"X{n}", zip="1") for n in range(4))))
    key = dg.AssetCheckKey(dg.AssetKey("silver"), "invalid_ratio")
    with dg.DagsterInstance.ephemeral() as instance:

        def checked() -> tuple[bool, str]:
            record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
            assert record.event is not None
            assert record.event.dagster_event is not None
            said = record.event.dagster_event.asset_check_evaluation_data
            return said.passed, said.description or ""

        report(instance, home, [held])
        assert not checked()[0]
        config = {"file_id": held.delivery.file_id, "reason": "acme confirms", "by": "jane"}
        job = build_defs(home.places).resolve_job_def(f"{wish}_delivery")
        done = job.execute_in_process({"ops": {wish: {"config": config}}}, instance=instance)
        assert done.success
        passed, said = checked()
        assert (passed, "by jane" in said) == (True, True)
    assert (home.lake.audit.row(held.delivery.file_id) or {})["status"] == status


def test_a_delivery_is_taken_back_and_given_again_by_its_job(home: Platform) -> None:
    deliver(home, "acme_20250105.csv", csv_of(line("M1", city="Salem")))
    taken = deliver(home, "acme_20250106.csv", csv_of(line("M1"), line("M2"), line("X", zip="1"))).delivery
    job = build_defs(home.places).resolve_job_def("revert_delivery")
    with dg.DagsterInstance.ephemeral() as instance:

        def asked(*, undo: bool) -> dict[str, object]:
            config = {"file_id": taken.file_id, "reason": "acme says so", "by": "jane", "undo": undo}
            done = job.execute_in_process({"ops": {"take_back": {"config": config}}}, instance=instance)
            (output,) = [e for e in done.all_events if e.event_type_value == "STEP_OUTPUT"]
            return {name: value.value for name, value in output.event_specific_data.metadata.items()}

        said = asked(undo=False)
        assert (said["members removed"], said["members changed"]) == (1, 1)
        assert home.lake.silver.frame(["member_token"]).height == 1
        row = home.lake.audit.row(taken.file_id) or {}
        assert (row["status"], row["decided_by"]) == ("reverted", "jane")
        assert asked(undo=True)["members added"] == 1
        assert (home.lake.audit.row(taken.file_id) or {})["status"] == "succeeded"
