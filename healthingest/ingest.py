"""One delivery's whole way, readable top to bottom: register, check, quarantine, sight, compare, vault, silver, audit.

Every step may be repeated or die at any point: each writes once, silver's commit decides, and the audit row is a
projection of that commit. The order of steps was found by breaking every other one.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.closed import settle_records
from healthingest.decide import STATUS, Candidate, Decision, decide, is_settled, recorded
from healthingest.drift import notice
from healthingest.errors import ConfigError, PermanentError, UnroutableError
from healthingest.lake.delta import retry
from healthingest.lake.sightings import SIGHTED
from healthingest.lake.silver import HELD, Snapshot
from healthingest.landing.names import printable
from healthingest.leavers import watch
from healthingest.members import Members, check_delivery, read_again
from healthingest.model import Counts, Delivery, Outcome, Profile, Status, Verdict
from healthingest.platform import Platform
from healthingest.propose import write_proposals
from healthingest.quality import Judgement, judge_quality
from healthingest.report.write import write_report
from healthingest.revert import follow, is_behind, tell_reverts
from healthingest.silence import silence, take_out_of_bronze
from healthingest.volume import as_noted, gated
from healthingest.widen import widen

log = logging.getLogger(__name__)
OnStage = Callable[[str], None]
#: At most so much shares one commit: it bounds memory, and what a crash repeats.
_BATCH_FILES = 64
_BATCH_BYTES = 32 * 1024 * 1024


def register(platform: Platform, path: Path) -> Delivery:
    """Take a landed file into bronze, or find the delivery that it already is.

    Raises:
        UnroutableError: its name leads nowhere, or it cannot be read.
        ConfigError: the client's YAML or contract was changed a moment ago, and cannot be used.
    """
    name = platform.route(path.name)
    widen(platform, path, name.client_id)
    with platform.lake.exclusion.shared(name.client_id):
        client = platform.present_client(name.client_id)
        now = platform.current(name.client_id)
        platform.publish(client)
        return now.lake.bronze.add(path, name, client).delivery


def deliveries(platform: Platform, client_id: str, creation_date: date) -> list[Delivery]:
    """Deliveries of one partition that are in bronze, in the order of the sequence."""
    found = [r.delivery for r in platform.lake.bronze.of_client(client_id, creation_date)]
    return sorted(found, key=lambda d: (d.suffix, d.file_name, d.delivery_no))


def undecided(platform: Platform, client_id: str) -> list[Delivery]:
    """Deliveries that came to no end: who had registered them died, and their landed files may be gone since."""
    found = {r.delivery.file_id: r.delivery for r in platform.lake.bronze.of_client(client_id)}
    ended = _ended(platform, [(client_id, file_id) for file_id in found])
    return [d for file_id, d in found.items() if file_id not in ended]


def _ended(platform: Platform, ids: Sequence[tuple[str, str]]) -> set[str]:
    """Which deliveries (client, file_id) are in their end state: what is held and a person has decided on is not."""
    decided = platform.lake.audit.decided([file_id for _, file_id in ids])
    open_still = {f for c, f in ids if decided.get(f) == "held" and platform.lake.decisions.of(c, f)}
    return set(decided) - open_still


def landed_before(platform: Platform, delivery: Delivery) -> str | None:
    """What to say where the bytes of an earlier delivery of a name lie in the landing zone again; else None."""
    bronze = platform.lake.bronze
    slot = bronze.slot(delivery.client_id, delivery.file_name).items()
    later = [bronze.find(delivery.client_id, file_id) for number, file_id in slot if number > delivery.delivery_no]
    latest = max((f.delivery.delivery_no for f in later if f and f.delivery.origin != delivery.file_id), default=0)
    if not latest:
        return None
    return (
        f"These are the bytes of delivery {delivery.delivery_no} of this name, which delivery {latest} has replaced; "
        "nothing was done. If they are to count again, send them under a name of their own."
    )


def replaces(platform: Platform, delivery: Delivery) -> str | None:
    """What to say of a delivery whose name had brought another file into silver before; else None."""
    silver = platform.lake.silver_of(delivery.client_id)
    if delivery.delivery_no == 1 or delivery.reread_of or not silver.exists():
        return None
    snapshot = Snapshot(silver.snapshot(), delivery.client_id)
    applied = snapshot.applied_of(platform.lake.bronze.slot(delivery.client_id, delivery.file_name))
    earlier = max((number for number in applied if number < delivery.delivery_no), default=None)
    if earlier is None:
        return None
    what = "replaces" if delivery.delivery_no in applied else "was meant to replace"
    return f"A landed file has changed: delivery {delivery.delivery_no} of this name {what} delivery {earlier}."


def record_unroutable(platform: Platform, path: Path, error: UnroutableError, *, run_id: str) -> bool:
    """Give a file that leads nowhere its audit row, once per file; False if it has one."""
    file_id = platform.file_id(path)
    return platform.lake.audit.put_unroutable(
        file_id=file_id,
        file_name=printable(path.name),
        file_bytes=path.stat().st_size,
        message=str(error),
        run_id=run_id,
    )


def ingest(platform: Platform, delivery: Delivery, *, run_id: str, on_stage: OnStage | None = None) -> Outcome:
    """Bring a registered delivery to its end state, or report the one it has; `ingest_many` of one."""
    return ingest_many(platform, [delivery], run_id=run_id, on_stage=on_stage)[0]


def ingest_many(
    platform: Platform, deliveries: Sequence[Delivery], *, run_id: str, on_stage: OnStage | None = None
) -> list[Outcome]:
    """Bring registered deliveries to their end states, or report those they have, in the order given.

    Deliveries of one client that follow each other share commits; a name that comes several times keeps its order.
    Bad data never raises: the outcome says succeeded, held or failed. Raises KeyringError, ContentionError and
    OSError, after which the same call may be made again.
    """
    outcomes: dict[str, Outcome] = {}
    work = [*_undecided_of_slots(platform, deliveries), *deliveries]
    # What is compared with the deliveries before it must see them in silver.
    alone = {d.file_id for d in work if _comes_alone(platform, d)}
    for batch in _batches(_in_slot_order(work), alone):
        with platform.lake.exclusion.shared(batch[0].client_id):
            now = platform.current(batch[0].client_id)
            outcomes |= {o.delivery.file_id: o for o in _ingest_batch(now, batch, run_id, on_stage)}
    return [outcomes[d.file_id] for d in deliveries]


def _in_slot_order(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """The deliveries as given, but of each name the earlier ones first."""
    slots: dict[tuple[str, str], list[Delivery]] = defaultdict(list)
    for delivery in sorted(dict.fromkeys(deliveries), key=lambda d: -d.delivery_no):
        slots[delivery.client_id, delivery.file_name].append(delivery)
    return [slots[d.client_id, d.file_name].pop() for d in dict.fromkeys(deliveries)]


def _undecided_of_slots(platform: Platform, deliveries: Sequence[Delivery]) -> list[Delivery]:
    """Other deliveries of the same names that have not ended: the earlier are decided first, and none is left.

    So whether a re-sent file is held depends on its name's deliveries alone, not on the order of the work; and what
    a process had registered when it died is finished even if other bytes lie in its file's place by now.
    """
    bronze, given = platform.lake.bronze, {d.file_id for d in deliveries}
    others = [
        (d.client_id, file_id)
        for d in deliveries
        for file_id in bronze.slot(d.client_id, d.file_name).values() if file_id not in given
    ]  # fmt: skip
    if not others:
        return []
    ended = _ended(platform, others)
    found = [bronze.find(client_id, file_id) for client_id, file_id in others if file_id not in ended]
    return [registered.delivery for registered in found if registered]


def _comes_alone(platform: Platform, delivery: Delivery) -> bool:
    """Whether what becomes of a delivery depends on the one before it, or on all of its client's."""
    try:
        client = platform.pinned_client(delivery)
    except ConfigError:  # it will fail by itself
        return True
    return client.config.quality.volume is not None or watch(platform, client)


def _batches(deliveries: Sequence[Delivery], by_themselves: Collection[str]) -> Iterator[list[Delivery]]:
    """Consecutive deliveries that may share a commit: one client and contract, each of another name, none re-sent.

    Those `by_themselves` (file ids) share none.
    """
    batch: list[Delivery] = []
    for delivery in deliveries:
        size = sum(d.file_bytes for d in batch) + delivery.file_bytes
        alike = batch and (batch[0].client_id, batch[0].contract) == (delivery.client_id, delivery.contract)
        alone = delivery.delivery_no > 1 or any(d.delivery_no > 1 or d.file_name == delivery.file_name for d in batch)
        alone |= delivery.file_id in by_themselves or any(d.file_id in by_themselves for d in batch)
        if batch and (not alike or alone or size > _BATCH_BYTES or len(batch) >= _BATCH_FILES):
            yield batch
            batch = []
        batch.append(delivery)
    if batch:
        yield batch


def _ingest_batch(
    platform: Platform, batch: Sequence[Delivery], run_id: str, on_stage: OnStage | None
) -> list[Outcome]:
    started, stages, lake = datetime.now(UTC), Stages(on_stage), platform.lake
    if is_behind(platform, batch[0].client_id):  # whoever took a delivery back died before silver followed
        follow(platform, batch[0].client_id)
    states = _states(platform, batch)
    verdicts = {d.file_id: lake.decisions.of(d.client_id, d.file_id) for d in batch}
    settled = [d for d in batch if is_settled(states[d.file_id], verdicts[d.file_id])]
    rows = lake.audit.rows([d.file_id for d in settled])
    ended = [
        _recorded(platform, d, states[d.file_id] or HELD, verdicts[d.file_id], rows.get(d.file_id), run_id=run_id,
                  started_at=started)
        for d in settled
    ]  # fmt: skip
    undecided = [d for d in batch if d not in settled]
    ended = [_as_reverted(platform, o) for o in ended]
    if not undecided:
        return ended
    silenced: set[str] = set()
    outcomes = _attempt(platform, undecided, run_id, stages, silenced)
    outcomes = [_as_old(platform, _with_noted(platform, o)) for o in outcomes]
    with stages("audit"):
        written = lake.audit.put(outcomes, run_id=run_id, started_at=started)
    for o in outcomes:
        if o.delivery.file_id in silenced:
            take_out_of_bronze(platform, o.delivery)
        _close_records(platform, o.delivery, o.status)
    with stages("report"):
        _report(platform, [o.delivery for o in outcomes])
        _notice(platform, outcomes)
    seconds = {stage: total / len(outcomes) for stage, total in stages.seconds.items()}
    for o in outcomes:
        log.info("%s %s: %s of %s records accepted, %.1f s", o.delivery.file_name, o.status, o.counts.accepted,
                 o.counts.records, sum(seconds.values()))  # fmt: skip
    outcomes = [replace(o, fresh=o.delivery.file_id in written, stages=dict(seconds)) for o in outcomes]
    return ended + [_as_reverted(platform, o) for o in outcomes]


def _states(platform: Platform, batch: Sequence[Delivery]) -> dict[str, int | None]:
    """What silver's log says of each delivery; None: nothing."""
    silver = platform.lake.silver_of(batch[0].client_id)
    if not silver.exists():
        return dict.fromkeys((d.file_id for d in batch), None)
    snapshot = Snapshot(silver.snapshot(), batch[0].client_id)
    return {d.file_id: snapshot.state(d.file_id) for d in batch}


def _report(platform: Platform, deliveries: Sequence[Delivery]) -> None:
    """Draw the deliveries' pages; they decide nothing, so that nothing about them may fail a delivery."""
    try:
        write_report(platform, deliveries[0].client_id, [d.file_id for d in deliveries])
    except Exception as error:  # noqa: BLE001 - whatever a disk or a template may raise
        log.warning("%s: no report was written (%s); make it with healthingest report.", deliveries[0].client_id,
                    type(error).__name__)  # fmt: skip


def _notice(platform: Platform, outcomes: Sequence[Outcome]) -> None:
    """Note how the deliveries differ from their contract; it decides nothing, so that it may fail no delivery."""
    try:
        if notice(platform, outcomes):
            write_proposals(platform, outcomes[0].delivery.client_id)
    except Exception as error:  # noqa: BLE001 - whatever a disk or an odd file may raise
        log.warning("%s: its columns were not compared (%s); run healthingest schema propose.",
                    outcomes[0].delivery.client_id, type(error).__name__)  # fmt: skip


def _attempt(
    platform: Platform, batch: Sequence[Delivery], run_id: str, stages: "Stages", silenced: set[str]
) -> list[Outcome]:
    """Check each delivery, then quarantine, sight and decide those that can be read, together.

    `silenced` is told the file ids of those that speak of erased members.
    """
    lake, failed = platform.lake, {}
    candidates: list[Candidate] = []
    rejected: list[tuple[Delivery, pl.DataFrame]] = []
    for delivery in batch:
        try:
            candidate, refused, erased = _check(platform, delivery, candidates, stages)
        except (PermanentError, ConfigError) as error:
            failed[delivery.file_id] = _failed(delivery, error)
        else:
            candidates.append(candidate)
            rejected.append((delivery, refused))
            silenced |= {delivery.file_id} if erased else set()
    generation = platform.keyring.generation("member_token", batch[0].client_id)
    seen = [(c.delivery, c.members.parts.select(SIGHTED)) for c in candidates]

    def put_facts() -> None:
        with stages("quarantine"):
            lake.quarantine.put(rejected, platform.keyring, run_id)
        with stages("sight"):
            lake.sightings.put(seen, generation)
            seen.clear()

    decisions: dict[str, Decision] = {}
    with ThreadPoolExecutor(1, "healthingest-facts") as thread:
        facts = thread.submit(put_facts)
        try:
            # Beside the comparison: nothing but silver's commit needs them.
            decisions = retry(lambda: decide(platform, candidates, stages, facts.result)) if candidates else {}
        except (PermanentError, ConfigError) as error:
            failed |= {c.delivery.file_id: _failed(c.delivery, error) for c in candidates}
        facts.result()
    ended = {c.delivery.file_id: decisions[c.delivery.file_id].of(c.outcome) for c in candidates if decisions}
    return [(ended | failed)[d.file_id] for d in batch]


def _check(
    platform: Platform, delivery: Delivery, before: Sequence[Candidate], stages: "Stages"
) -> tuple[Candidate, pl.DataFrame, bool]:
    """A delivery as silver can compare it, its rejected records, and whether it speaks of erased members."""
    client = platform.pinned_client(delivery)
    checked = check_delivery(platform, delivery, client, stages.add)
    quality = client.config.quality
    alongside = [(c.delivery, c.outcome.counts.records) for c in before]
    judged = judge_quality(quality, checked.counts, delivery, platform.lake.audit, alongside)
    with stages("tokenise"):
        checked, erased = silence(platform, delivery, client, checked)
        members = Members.of(checked, lambda: read_again(platform, delivery))
    judged = gated(platform, delivery, client, members, judged)
    verdict = platform.lake.decisions.of(delivery.client_id, delivery.file_id)
    outcome = Outcome(
        delivery, "succeeded", fresh=True, counts=checked.counts, max_invalid_ratio=quality.max_invalid_ratio,
        profile=checked.profile, file_breaches=judged.file, verdict=verdict,
    )  # fmt: skip
    return Candidate(outcome, client, members, judged, len(checked.extra_columns)), checked.rejected, erased


def _as_old(platform: Platform, outcome: Outcome) -> Outcome:
    """What is read once more, or discarded, did not come in later: nobody may take it for a client's latest."""
    old = outcome.delivery.reread_of is not None or outcome.status == "discarded"
    row = platform.lake.audit.row(outcome.delivery.origin) if old else None
    return replace(outcome, ingested_at=row["ingestion_time"]) if row else outcome


def _with_noted(platform: Platform, outcome: Outcome) -> Outcome:
    """With what was noted of a delivery while it was decided."""
    judged = as_noted(platform, outcome.delivery, Judgement(None, outcome.file_breaches, holds=False))
    return replace(outcome, file_breaches=judged.file)


def _as_reverted(platform: Platform, outcome: Outcome) -> Outcome:
    """What somebody took back is reverted, whatever its commit said."""
    delivery = outcome.delivery
    if outcome.status != "succeeded" or not platform.lake.reverts.number(delivery.client_id, delivery.file_id):
        return outcome
    tell_reverts(platform, delivery)
    row = platform.lake.audit.row(delivery.file_id) or {}
    return replace(outcome, status=row.get("status", outcome.status), message=row.get("message", outcome.message))


def _close_records(platform: Platform, delivery: Delivery, status: Status) -> None:
    """Close the rejected records that nobody need do anything about any more."""
    given_up = platform.lake.discards.of(delivery.client_id, delivery.origin)
    if status == "discarded" or (status in {"succeeded", "held"} and (delivery.reread_of or given_up)):
        settle_records(platform, delivery)


def _failed(delivery: Delivery, error: PermanentError | ConfigError) -> Outcome:
    return Outcome(delivery, "failed", fresh=True, error_kind=error.kind, message=str(error))


def _recorded(
    platform: Platform, delivery: Delivery, state: int, verdict: Verdict | None, row: Mapping[str, Any] | None, *,
    run_id: str, started_at: datetime,
) -> Outcome:  # fmt: skip
    """The outcome of a delivery that an earlier attempt decided; its audit row is written if that attempt died.

    It is written anew where a person has accepted since what was taken.
    """
    quality, status = platform.pinned_client(delivery).config.quality, STATUS[state]
    outcome = Outcome(
        delivery, status, fresh=False, max_invalid_ratio=quality.max_invalid_ratio,
        error_kind=status if status != "succeeded" else None, verdict=verdict,
    )  # fmt: skip
    _close_records(platform, delivery, status)  # its attempt may have died before it did
    told = row and row["status"] == status and row["decision"] == (verdict.decision if verdict else None)
    if row and (told or row["status"] == "reverted"):
        counts = Counts(**{name: row[name] or 0 for name in Counts.names()})
        judged = as_noted(platform, delivery, judge_quality(quality, counts, delivery, platform.lake.audit))
        return replace(
            outcome, counts=counts, profile=Profile.of(row), file_breaches=judged.file,
            silver_version=row["silver_version"], message=row["message"], extra_columns=row["extra_columns"] or 0,
        )  # fmt: skip
    decision = recorded(platform, delivery.client_id, delivery.file_id)
    judged = as_noted(platform, delivery, judge_quality(quality, decision.counts, delivery, platform.lake.audit))
    # What a person says of it later makes it no later: the client has not delivered since.
    since = row["ingestion_time"] if row and row["status"] == status else None
    outcome = decision.of(replace(outcome, file_breaches=judged.file, ingested_at=since))
    written = platform.lake.audit.put([outcome], run_id=run_id, started_at=started_at)
    return replace(outcome, fresh=bool(written) and verdict is not None)


class Stages:
    """Seconds per stage of one delivery, in the order they ran."""

    def __init__(self, on_stage: OnStage | None) -> None:
        """`on_stage` is told each stage as it starts."""
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._on_stage = on_stage

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time one stage."""
        if self._on_stage:
            self._on_stage(stage)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def add(self, stage: str, seconds: float) -> None:
        """Add to a stage that runs in pieces."""
        if self._on_stage and stage not in self.seconds:
            self._on_stage(stage)
        self.seconds[stage] += seconds
