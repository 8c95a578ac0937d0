"""What Dagster's own records lead to: failed, crashed and stuck runs, ticks that fail or stay out, dead daemons."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.types import DaemonHeartbeat
from dagster_shared.error import SerializableErrorInfo

from healthingest.alerting.book import Alert
from healthingest.alerting.watch import Watch
from healthingest.orchestration.dagster_evidence import sources
from healthingest.platform import Platform

HOUR = timedelta(hours=1)
ORIGIN = RemoteInstigatorOrigin(
    RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("here"), "__repository__"), "landing_zone"
)
SELECTOR = ORIGIN.get_selector().get_id()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        yield made


def look(home: Platform, instance: dg.DagsterInstance, now: datetime | None = None) -> dict[str, Alert]:
    """What holds after a look: client (if any) and condition -> alert."""
    looked = Watch.over(home.places, sources(instance)).look(now)
    assert looked.problems == ()
    holding = [alert for alert in looked.book.alerts.values() if alert.open]
    return {" ".join(filter(None, [alert.client_id, alert.condition])): alert for alert in holding}


def run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> dg.DagsterRun:
    """A run for acme in some state."""
    tags = {"dagster/partition/client": "acme"} | {name.replace("__", "/"): value for name, value in tags.items()}
    return create_run_for_test(instance, job_name="ingest", status=status, tags=tags)


def fails(instance: dg.DagsterInstance, made: dg.DagsterRun) -> dg.DagsterRun:
    """Its process dies without a word; the daemon notices."""
    instance.report_run_failed(made, "The run worker was not found. SSN 123-45-6789")
    return made


# --- runs ---------------------------------------------------------------------------------------------------------


def test_a_crash_that_is_tried_again_is_a_warning_and_the_success_ends_it(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    fails(instance, run(instance, dg.DagsterRunStatus.STARTED, dagster__will_retry="true"))
    holding = look(home, instance)
    assert set(holding) == {"acme run_crashed"}
    assert holding["acme run_crashed"].severity == "warning"
    assert "tried again" in holding["acme run_crashed"].summary
    again = run(instance, dg.DagsterRunStatus.STARTED, dagster__retry_number="1")
    succeeds(instance, again)
    assert look(home, instance) == {}


def succeeds(instance: dg.DagsterInstance, made: dg.DagsterRun) -> None:
    """A run ends well."""
    event = dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, made.job_name, message="done")
    instance.report_dagster_event(event, made.run_id)


def test_the_last_retry_in_vain_says_how_often_it_was_tried(home: Platform, instance: dg.DagsterInstance) -> None:
    fails(instance, run(instance, dg.DagsterRunStatus.STARTED, dagster__will_retry="true"))
    look(home, instance)
    last = fails(instance, run(instance, dg.DagsterRunStatus.STARTED, dagster__retry_number="2"))
    holding = look(home, instance)
    assert set(holding) == {"acme run_crashed", "acme pipeline_failure"}
    alert = holding["acme pipeline_failure"]
    assert alert.severity == "error"
    assert "tried again 2 time(s), in vain" in alert.summary
    assert dict(alert.details)["run"] == last.run_id
    assert dict(alert.details)["error kind"] == "crash"
    assert "RUN_FAILURE" in dict(alert.details)["log"]
    assert "6789" not in str(alert)


def test_a_run_counts_once_however_often_it_is_looked_at(home: Platform, instance: dg.DagsterInstance) -> None:
    fails(instance, run(instance, dg.DagsterRunStatus.STARTED))
    for _ in range(3):
        alert = look(home, instance)["acme pipeline_failure"]
    assert (alert.count, alert.episode) == (1, 1)


def test_a_run_that_concerns_no_client_is_told_by_its_job(home: Platform, instance: dg.DagsterInstance) -> None:
    fails(instance, run(instance, dg.DagsterRunStatus.STARTED, dagster__partition__client="nobody"))
    assert set(look(home, instance)) == {"pipeline_failure:ingest"}


def test_a_failure_from_when_a_config_was_broken_ends_with_that_clients_next_good_run(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    config = home.places.configs / "acme.yaml"
    good = config.read_text()
    config.write_text("client_id: [\n")
    fails(instance, run(instance, dg.DagsterRunStatus.STARTED))
    assert "pipeline_failure:ingest" in look(home, instance)
    config.write_text(good)
    succeeds(instance, run(instance, dg.DagsterRunStatus.STARTED, dagster__partition__client="globex"))
    assert set(look(home, instance)) == {"pipeline_failure:ingest"}
    succeeds(instance, run(instance, dg.DagsterRunStatus.STARTED))
    assert look(home, instance) == {}


def test_no_run_is_overlooked_however_many_ended_since(home: Platform, instance: dg.DagsterInstance) -> None:
    look(home, instance)
    fails(instance, run(instance, dg.DagsterRunStatus.STARTED))
    for _ in range(501):
        run(instance, dg.DagsterRunStatus.SUCCESS, dagster__partition__client="globex")
    assert set(look(home, instance)) == {"acme pipeline_failure"}


@pytest.mark.parametrize(
    ("status", "hours", "doing"),
    [
        (dg.DagsterRunStatus.NOT_STARTED, 1, "waits"),
        (dg.DagsterRunStatus.STARTED, 2, "is at work"),
        (dg.DagsterRunStatus.CANCELING, 2, "is at work"),
    ],
)
def test_a_run_that_hangs_is_told_until_it_ends(
    home: Platform, instance: dg.DagsterInstance, status: dg.DagsterRunStatus, hours: int, doing: str
) -> None:
    made = run(instance, status)
    assert look(home, instance) == {}
    later = datetime.now(UTC) + hours * HOUR
    holding = look(home, instance, later)
    assert set(holding) == {"acme run_stuck"}
    assert f"{doing} since" in holding["acme run_stuck"].summary
    succeeds(instance, made)
    assert look(home, instance, later) == {}


# --- ticks --------------------------------------------------------------------------------------------------------


def switched(instance: dg.DagsterInstance, status: InstigatorStatus, started: float) -> None:
    """The landing sensor is on or off since a moment."""
    data = SensorInstigatorData(min_interval=5, last_sensor_start_timestamp=started)
    state = InstigatorState(ORIGIN, InstigatorType.SENSOR, status, data)
    known = instance.get_instigator_state(ORIGIN.get_id(), SELECTOR)
    instance.update_instigator_state(state) if known else instance.add_instigator_state(state)


def ticks(instance: dg.DagsterInstance, status: TickStatus, error: str | None = None) -> None:
    """The landing sensor ticks now."""
    failed = SerializableErrorInfo("SSN 123-45-6789", [], error) if error else None
    tick = TickData(
        ORIGIN.get_id(), "landing_zone", InstigatorType.SENSOR, status, time.time(), selector_id=SELECTOR, error=failed
    )
    instance.create_tick(tick)


def test_a_sensor_whose_code_raises_is_told_at_once_by_the_class_of_its_error(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    switched(instance, InstigatorStatus.RUNNING, time.time())
    ticks(instance, TickStatus.SKIPPED)
    assert look(home, instance) == {}
    ticks(instance, TickStatus.FAILURE, "SensorExecutionError")
    ticks(instance, TickStatus.STARTED)  # at work on the next
    alert = look(home, instance)["sensor_failing:landing_zone"]
    assert alert.severity == "critical"
    assert "SensorExecutionError" in alert.summary
    assert "6789" not in str(alert)
    ticks(instance, TickStatus.SKIPPED)
    assert look(home, instance) == {}


def test_a_tick_that_a_restart_cut_off_is_no_alert_and_a_code_server_that_stays_away_is(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    switched(instance, InstigatorStatus.RUNNING, time.time())
    ticks(instance, TickStatus.SKIPPED)
    ticks(instance, TickStatus.FAILURE, "DagsterUserCodeUnreachableError")
    assert look(home, instance) == {}
    ticks(instance, TickStatus.FAILURE, "DagsterUserCodeUnreachableError")
    assert set(look(home, instance)) == {"sensor_failing:landing_zone"}
    ticks(instance, TickStatus.SKIPPED)
    assert look(home, instance) == {}


def test_a_failure_before_a_restart_still_holds_after_the_tick_that_it_cut_off(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    switched(instance, InstigatorStatus.RUNNING, time.time())
    ticks(instance, TickStatus.FAILURE, "SensorExecutionError")
    ticks(instance, TickStatus.FAILURE, "DagsterUserCodeUnreachableError")
    assert set(look(home, instance)) == {"sensor_failing:landing_zone"}


def test_a_sensor_that_stays_out_or_was_switched_off_is_told(home: Platform, instance: dg.DagsterInstance) -> None:
    switched(instance, InstigatorStatus.RUNNING, time.time())
    soon, late = datetime.now(UTC) + timedelta(minutes=5), datetime.now(UTC) + timedelta(minutes=6)
    assert look(home, instance, soon) == {}  # it has not ticked yet, and was started just now
    assert set(look(home, instance, late)) == {"not_ticking:landing_zone"}
    ticks(instance, TickStatus.SKIPPED)
    assert look(home, instance) == {}
    switched(instance, InstigatorStatus.STOPPED, time.time())
    assert "switched off" in look(home, instance)["not_ticking:landing_zone"].summary


# --- daemons ------------------------------------------------------------------------------------------------------


def test_a_daemon_that_has_beaten_and_stops_is_told_and_one_that_this_instance_does_not_need_is_not(
    home: Platform, instance: dg.DagsterInstance
) -> None:
    (home.places.configs / "alerts.yaml").write_text(yaml.safe_dump({"limits": {"silent_for": "2m"}}))
    for kind in ("SENSOR", "NO_LONGER_NEEDED"):
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), kind, "one", []))
    assert look(home, instance) == {}
    later = datetime.now(UTC) + timedelta(minutes=3)
    assert set(look(home, instance, later)) == {"daemon_down:SENSOR"}
    instance.add_daemon_heartbeat(DaemonHeartbeat(later.timestamp(), "SENSOR", "two", []))
    assert look(home, instance, later) == {}
