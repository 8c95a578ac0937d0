"""What Dagster's own records say of runs, sensors, schedules and daemons, as the watch over alerts takes it.

Texts of errors may hold values; what is told is their class, and the one sentence that this package gives a failure.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.scheduler.instigation import InstigatorState, InstigatorTick, TickStatus

from healthingest.alerting.book import Alert
from healthingest.alerting.conditions import Observation
from healthingest.alerting.scene import Found, Scene
from healthingest.alerting.store import Seen
from healthingest.alerting.watch import Source
from healthingest.orchestration.events import DECIDED

_OVERLAP = timedelta(minutes=10)
#: How far a first look goes back, and how many stuck runs a look goes through.
_FIRST = timedelta(hours=1)
_RUNS = 500
_EXCERPT = 5
_CLIENT = "dagster/partition/client"
#: What a tick fails with that found no code server.
_CUT_OFF = DagsterUserCodeUnreachableError.__name__
_ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]
_WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


class Ticking(NamedTuple):
    """A sensor or schedule that must tick, and how often."""

    name: str
    every: timedelta


#: What must tick, and how often at least.
TICKING = (
    Ticking("landing_zone", timedelta(seconds=30)),
    Ticking("alert_watch", timedelta(seconds=30)),
    Ticking("delivery_watch_every_4_hours", timedelta(hours=4)),
    Ticking("schema_reconciliation_hourly", timedelta(hours=1)),
    Ticking("maintenance_daily", timedelta(hours=24)),
)


def sources(instance: dg.DagsterInstance, ticking: Sequence[Ticking] = TICKING) -> Mapping[str, Source]:
    """The sources of evidence that an instance adds to the watch."""
    return {
        "runs": lambda scene: of_runs(scene, instance),
        "stuck runs": lambda scene: of_stuck_runs(scene, instance),
        "ticks": lambda scene: of_ticks(scene, instance, ticking),
        "daemons": lambda scene: of_daemons(scene, instance),
    }


def sources_at_home() -> Mapping[str, Source]:
    """Those of the instance that DAGSTER_HOME names, opened for each look: it may be down, and come back."""

    def asked(name: str) -> Source:
        def source(scene: Scene) -> Found:
            with dg.DagsterInstance.get() as instance:
                return sources(instance)[name](scene)

        return source

    return {name: asked(name) for name in ("runs", "stuck runs", "ticks", "daemons")}


# --- runs ---------------------------------------------------------------------------------------------------------


def of_runs(scene: Scene, instance: dg.DagsterInstance) -> Found:
    """Runs that ended since the last look; those that failed for a delivery's sake are told by its audit row."""
    mark = scene.loaded.watermark("runs")
    since = mark - _OVERLAP if mark.timestamp() > 0 else scene.now - _FIRST
    records = instance.get_run_records(dg.RunsFilter(statuses=_ENDED, updated_after=since))
    found: list[Observation] = []
    seen: dict[str, int] = {}
    latest = mark
    for record in sorted(records, key=lambda r: r.update_timestamp):
        run, at = record.dagster_run, record.update_timestamp.replace(tzinfo=UTC)
        latest = max(latest, at)
        if not scene.loaded.rank(f"run/{run.run_id}"):
            seen[f"run/{run.run_id}"] = 1
            found += _of_run(scene, instance, run, at)
    return found, Seen(seen, {"runs": latest} if records else {})


def _of_run(scene: Scene, instance: dg.DagsterInstance, run: dg.DagsterRun, at: datetime) -> Iterator[Observation]:
    client_id, suffix = _whose(run, scene)
    link, evidence = scene.links.run(run.run_id), f"run/{run.run_id}"

    def told(condition: str, text: str, details: tuple[tuple[str, str], ...] = (), *, firing: bool) -> Observation:
        return Observation(condition + suffix, client_id, firing, at, text, details, link, evidence)

    if run.status == dg.DagsterRunStatus.SUCCESS:
        text = f"A later run of {run.job_name} succeeded."
        if client_id is not None:
            yield told("pipeline_failure", text, firing=False)
            yield told("run_crashed", text, firing=False)
        for alert in _of_no_client(scene, run):
            yield Observation(alert.condition, None, firing=False, at=at, summary=text, link=link, evidence=evidence)
        return
    failure = _failure(instance, run)
    if failure.decided:
        return
    named = run.tags.get(_CLIENT, "")
    details = (
        *((("client", named),) if named and client_id is None else ()),
        ("run", run.run_id), ("job", run.job_name), ("error kind", failure.kind), *failure.excerpt,
    )  # fmt: skip
    if run.tags.get("dagster/will_retry") == "true":
        text = f"A run of {run.job_name} failed and is tried again. {failure.sentence}"
        yield told("run_crashed", text, details, firing=True)
        return
    tried = int(run.tags.get("dagster/retry_number", "0"))
    again = f" It was tried again {tried} time(s), in vain." if tried else ""
    yield told("pipeline_failure", f"A run of {run.job_name} failed. {failure.sentence}{again}", details, firing=True)


def _whose(run: dg.DagsterRun, scene: Scene) -> tuple[str | None, str]:
    """The client that a run is for, or what to add to the condition's name: the job."""
    client_id = run.tags.get(_CLIENT) or run.tags.get("client")
    return (client_id, "") if client_id in scene.clients.clients else (None, f":{run.job_name}")


def _of_no_client(scene: Scene, run: dg.DagsterRun) -> list[Alert]:
    """Alerts on runs of the same job for no client, or for this run's from when its config could not be read."""
    named = (scene.alert(None, f"{kind}:{run.job_name}") for kind in ("pipeline_failure", "run_crashed"))
    return [alert for alert in named if alert and dict(alert.details).get("client") == run.tags.get(_CLIENT)]


class _Failure(NamedTuple):
    #: Whether a delivery's end state says it all.
    decided: bool
    kind: str
    sentence: str
    excerpt: tuple[tuple[str, str], ...]


def _failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> _Failure:
    """Why a run failed, without any text that we have not written ourselves."""
    records = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE).records
    for record in records:
        event = record.event_log_entry.dagster_event
        data = event.step_failure_data if event else None
        ours = data.user_failure_data if data else None
        if ours is not None:
            facts = {name: str(value.value) for name, value in ours.metadata.items()}
            kind = facts.get("error kind", "failure")
            decided = facts.get(DECIDED) == "true"
            return _Failure(decided, kind, ours.description or "", _excerpt(instance, run))
        error = data.error if data else None
        kind = (error.cls_name or "error") if error else "error"
        said = f"An error of the kind {kind} rose in {event.step_key if event else 'a step'}."
        return _Failure(kind == "DagsterAssetCheckFailedError", kind, said, _excerpt(instance, run))
    return _Failure(
        decided=False, kind="crash", sentence="Its process died or never came up", excerpt=_excerpt(instance, run)
    )


def _excerpt(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[tuple[str, str], ...]:
    """The last events of a run by kind and step; their texts stay in Dagster."""
    lines = []
    for record in instance.get_records_for_run(run.run_id, limit=_EXCERPT * 4, ascending=False).records:
        event = record.event_log_entry.dagster_event
        if event is not None:
            at = datetime.fromtimestamp(record.event_log_entry.timestamp, UTC).strftime("%H:%M:%S")
            lines.append(f"{at} {event.event_type.name}{f' {event.step_key}' if event.step_key else ''}")
    return (("log", "\n".join(reversed(lines[:_EXCERPT]))),) if lines else ()


def of_stuck_runs(scene: Scene, instance: dg.DagsterInstance) -> Found:
    """Runs that wait, or are at work, for longer than is usual."""
    limits, stuck = scene.settings.limits, {}
    for statuses, allowed, doing in (
        (_WAITING, limits.queued_for, "waits"), (_AT_WORK, limits.running_for, "is at work"),
    ):  # fmt: skip
        for record in instance.get_run_records(dg.RunsFilter(statuses=statuses), limit=_RUNS):
            began = (
                datetime.fromtimestamp(record.start_time, UTC)
                if record.start_time
                else record.create_timestamp.replace(tzinfo=UTC)
            )
            if scene.now - began > allowed:
                whose = _whose(record.dagster_run, scene)
                minutes = int((scene.now - began).total_seconds() // 60)
                text = f"A run of {record.dagster_run.job_name} {doing} since {minutes} minutes."
                stuck[whose] = scene.state(
                    f"run_stuck{whose[1]}", text, firing=True, client_id=whose[0],
                    details=(("run", record.dagster_run.run_id),), link=scene.links.run(record.dagster_run.run_id),
                )  # fmt: skip
    return [*stuck.values(), *scene.over("run_stuck", stuck.values(), "No such run is stuck any more.")], Seen()


# --- sensors, schedules, daemons ----------------------------------------------------------------------------------


class _Ticked(NamedTuple):
    """A sensor or schedule, as one code location has it."""

    state: InstigatorState
    #: Its latest tick that has ended and tells of the code; None: there is none.
    tick: InstigatorTick | None
    #: When it last ticked, in seconds since the epoch; when it was started, before its first tick; else 0.
    last: float


def of_ticks(scene: Scene, instance: dg.DagsterInstance, ticking: Sequence[Ticking]) -> Found:
    """Sensors and schedules that fail, do not tick, or were switched off."""
    wanted = {name for name, _ in ticking}
    ticked = [_ticked(instance, s) for s in instance.all_instigator_state() if s.instigator_name in wanted]
    # Another code location may have had one of the name: the one that ticked last counts.
    latest = {one.state.instigator_name: one for one in sorted(ticked, key=lambda one: one.last)}
    found: list[Observation] = []
    for name, every in ticking:
        if name in latest:  # the daemon makes its state when it first sees it
            found += _of_instigator(scene, latest[name], name, every)
    return found, Seen()


def _of_instigator(scene: Scene, ticked: _Ticked, name: str, every: timedelta) -> Iterator[Observation]:
    if ticked.tick is not None:
        failing = ticked.tick.status == TickStatus.FAILURE
        kind = (ticked.tick.error.cls_name if ticked.tick.error else None) or "an error"
        text = f"The last tick of {name} failed with {kind}." if failing else f"{name} ticks well."
        yield scene.state(f"sensor_failing:{name}", text, firing=failing)
    if not ticked.state.is_running:
        yield scene.state(f"not_ticking:{name}", f"{name} is switched off.", firing=True)
    elif ticked.last > 0:
        silence = scene.now - datetime.fromtimestamp(ticked.last, UTC)
        silent = silence > every + scene.settings.limits.silent_for
        minutes = int(silence.total_seconds() // 60)
        text = f"{name} last ticked {minutes} minutes ago." if silent else f"{name} ticks."
        yield scene.state(f"not_ticking:{name}", text, firing=silent)


def _ticked(instance: dg.DagsterInstance, state: InstigatorState) -> _Ticked:
    data = state.instigator_data
    started = getattr(data, "last_sensor_start_timestamp", None) or getattr(data, "start_timestamp", None) or 0.0
    ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=3)
    times = [float(started), getattr(data, "last_tick_start_timestamp", None) or 0.0, *(t.timestamp for t in ticks)]
    ended = [tick for tick in ticks if tick.status != TickStatus.STARTED]
    # Whoever stops or reloads the code server cuts a tick off; a server that stays away fails the next one too.
    cut_off = bool(ended and ended[0].error and ended[0].error.cls_name == _CUT_OFF)
    return _Ticked(state, next(iter(ended[cut_off:]), None), max(times))


def of_daemons(scene: Scene, instance: dg.DagsterInstance) -> Found:
    """Daemons that have beaten once, and not for a while."""
    found = []
    needed: Collection[str] = set(instance.get_required_daemon_types())
    for kind, beat in instance.get_daemon_heartbeats().items():
        if kind in needed:
            silence = scene.now - datetime.fromtimestamp(beat.timestamp, UTC)
            down = silence > scene.settings.limits.silent_for
            minutes = int(silence.total_seconds() // 60)
            text = f"The daemon {kind} was last heard of {minutes} minutes ago." if down else f"{kind} is heard of."
            found.append(scene.state(f"daemon_down:{kind}", text, firing=down))
    return found, Seen()
