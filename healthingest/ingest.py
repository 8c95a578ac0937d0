"""One delivery's whole way, readable top to bottom: register, check, quarantine, sight, compare, vault, silver, audit.

Every step may be repeated or die at any point: each writes once, silver's commit decides, and the audit row is a
projection of that commit. The order of steps was found by breaking every other one.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
from deltalake.exceptions import CommitFailedError

from healthingest.contracts.clients import Client
from healthingest.errors import AccountingError, ConfigError, PermanentError, UnroutableError
from healthingest.lake.delta import retry
from healthingest.lake.silver import APPLIED, CHANGED, GONE, HELD, NEW, Snapshot
from healthingest.landing.names import printable
from healthingest.members import check_delivery, members_of
from healthingest.model import Counts, Delivery, Outcome, Profile, Status
from healthingest.platform import Platform
from healthingest.quality import Judgement, judge_quality
from healthingest.records.check import Checked
from healthingest.report.write import write_report
from healthingest.supersede import Slot, left_behind, silver_rows

log = logging.getLogger(__name__)
OnStage = Callable[[str], None]


def register(platform: Platform, path: Path) -> Delivery:
    """Take a landed file into bronze, or find the delivery that it already is.

    Raises:
        UnroutableError: its name leads nowhere, or it cannot be read.
    """
    name = platform.route(path.name)
    return platform.lake.bronze.add(path, name, platform.clients.clients[name.client_id]).delivery


def deliveries(platform: Platform, client_id: str, creation_date: date) -> list[Delivery]:
    """Deliveries of one partition that are in bronze, in the order of the sequence."""
    found = (r.delivery for r in platform.lake.bronze.of_client(client_id))
    mine = [d for d in found if d.creation_date == creation_date]
    return sorted(mine, key=lambda d: (d.suffix, d.file_name, d.delivery_no))


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
    """Bring a registered delivery to its end state, or report the one it has.

    Bad data never raises: the outcome says succeeded, held or failed. Raises KeyringError, ContentionError and
    OSError, after which the same call may be made again.
    """
    started, stages = datetime.now(UTC), Stages(on_stage)
    lake = platform.lake
    decided = lake.silver.exists() and Snapshot(lake.silver.snapshot(), delivery.client_id).state(delivery.file_id)
    if decided:
        return _recorded(platform, delivery, decided, run_id=run_id, started_at=started)
    try:
        outcome = _attempt(platform, delivery, run_id, stages)
    except (PermanentError, ConfigError) as error:
        outcome = Outcome(delivery, "failed", fresh=True, error_kind=error.kind, message=str(error))
    with stages("audit"):
        fresh = lake.audit.put(outcome, run_id=run_id, started_at=started)
    with stages("report"):
        _report(platform, delivery)
    outcome = replace(outcome, fresh=fresh, stages=dict(stages.seconds))
    log.info("%s %s: %s of %s records accepted, %.1f s", delivery.file_name, outcome.status, outcome.counts.accepted,
             outcome.counts.records, sum(outcome.stages.values()))  # fmt: skip
    return outcome


def _report(platform: Platform, delivery: Delivery) -> None:
    """Draw the delivery's page; it decides nothing, so that nothing about it may fail the delivery."""
    try:
        write_report(platform, delivery.client_id, delivery.file_id)
    except Exception as error:  # noqa: BLE001 - whatever a disk or a template may raise
        log.warning("%s: no report was written (%s); make it with healthingest report.", delivery.file_name,
                    type(error).__name__)  # fmt: skip


def _attempt(platform: Platform, delivery: Delivery, run_id: str, stages: "Stages") -> Outcome:
    lake = platform.lake
    client = platform.pinned_client(delivery)
    checked = check_delivery(platform, delivery, client, stages.add)
    quality = client.config.quality
    judged = judge_quality(quality, checked.counts, delivery, lake.audit)
    outcome = Outcome(
        delivery, "succeeded", fresh=True, counts=checked.counts, max_invalid_ratio=quality.max_invalid_ratio,
        profile=checked.profile, file_breaches=judged.file,
    )  # fmt: skip
    with stages("quarantine"):
        lake.quarantine.put(delivery, checked.rejected, platform.keyring, run_id)
    with stages("tokenise"):
        members = members_of(platform, delivery, client, checked)
    with stages("sight"):
        seen = members.select("member_token", "sequence", content_hash="_content_hash")
        lake.sightings.put(delivery, seen)
    decided = retry(lambda: _decide(platform, delivery, client, outcome, members, stages, hold=judged.holds))
    return replace(
        outcome, status="held" if decided.held else "succeeded", counts=decided.counts, silver_version=decided.version,
        error_kind="held" if decided.held else None, message=_message(judged, checked, decided),
    )  # fmt: skip


@dataclass(frozen=True)
class Decision:
    """What one snapshot of silver led to."""

    counts: Counts
    version: int
    held: bool
    #: Members that only the superseded delivery named: those that fell back to another one, and those without one.
    fell_back: int = 0
    gone: int = 0


def _decide(
    platform: Platform, delivery: Delivery, client: Client, outcome: Outcome, members: pl.DataFrame,
    stages: "Stages", *, hold: bool,
) -> Decision:  # fmt: skip
    """Compare with one snapshot of silver and commit against it; on conflict everything is read again."""
    lake = platform.lake
    with stages("compare"):
        snapshot = lake.silver.for_client(client.client_id, client.contract)
        if snapshot.state(delivery.file_id):  # another worker was faster: its commit holds the truth
            decision = lake.silver.decision(delivery.file_id)
            if decision is None:
                raise PermanentError("Silver's log does not say how this delivery was decided; run it again.")
            return Decision(Counts(**decision["counts"]), decision["version"], decision["state"] == HELD)
        slot = Slot(snapshot, lake.bronze, delivery)
        # Others' sightings after silver's snapshot: the other order lets two workers each overlook the other.
        changed, counts = _compare(platform, slot, members, outcome.counts)
        left = left_behind(platform, slot, members)
        # A file that takes back more than it brings is mostly a truncated one; a person should look first.
        hold = hold or left.height > members.height
        if hold:
            changed, counts, left = changed.clear(), outcome.counts, left.clear()
    everyone = pl.concat([changed, left], how="diagonal")
    with stages("vault"):
        valued = everyone.filter(pl.col("_change") != GONE)
        parts = _put_values(platform, client, snapshot.number + 1, valued)
    with stages("silver"):
        state, rows = HELD if hold else APPLIED, silver_rows(everyone, client)
        said = {"counts": counts.as_dict(), "state": state, "profile": outcome.profile.as_dict()}
        try:
            version = lake.silver.commit(snapshot, delivery, state, rows, said)
        except CommitFailedError:
            for part in parts:
                part.unlink()  # no commit names it
            raise
    gone = left.filter(pl.col("_change") == GONE).height
    return Decision(counts, version, hold, fell_back=left.height - gone, gone=gone)


def _put_values(platform: Platform, client: Client, number: int, rows: pl.DataFrame) -> list[Path]:
    """One vault part per delivery that the rows come from: mostly one, more where members fall back."""
    groups = client.contract.vaulted
    return [
        platform.lake.vault.put(client.client_id, part["_file_id"][0], number, part, groups)
        for part in rows.select("member_token", "_file_id", *groups).partition_by("_file_id")
    ]


def _compare(platform: Platform, slot: Slot, members: pl.DataFrame, counts: Counts) -> tuple[pl.DataFrame, Counts]:
    """The members that are new or changed, with `_change`, and the whole accounting."""
    delivery = slot.delivery
    if slot.superseded:
        stale = members.select("member_token")
    else:
        own = members.select("member_token", "sequence")
        stale = platform.lake.sightings.later_than(delivery, own, slot.active)
    current = members.join(stale, on="member_token", how="anti")
    known = slot.snapshot.hashes().rename({"_content_hash": "__known"})
    current = current.join(known, on="member_token", how="left")
    changed = current.filter(pl.col("__known").is_null() | (pl.col("__known") != pl.col("_content_hash")))
    change = pl.when(pl.col("__known").is_null()).then(pl.lit(NEW)).otherwise(pl.lit(CHANGED)).alias("_change")
    changed = changed.with_columns(change).drop("__known")
    inserted = changed.filter(pl.col("_change") == NEW).height
    full = replace(
        counts,
        duplicates=counts.accepted - members.height,
        stale=stale.height,
        unchanged=current.height - changed.height,
        inserted=inserted,
        updated=changed.height - inserted,
    )
    parts = full.duplicates + full.stale + full.suppressed + full.unchanged + full.inserted + full.updated
    if parts != full.accepted:
        raise AccountingError(f"{full.accepted} records were accepted, but {parts} accounted for in silver.")
    return changed, full


def _recorded(platform: Platform, delivery: Delivery, state: int, *, run_id: str, started_at: datetime) -> Outcome:
    """The outcome of a delivery that an earlier attempt decided; its audit row is written if that attempt died."""
    quality = platform.pinned_client(delivery).config.quality
    status: Status = "held" if state == HELD else "succeeded"
    outcome = Outcome(
        delivery,
        status,
        fresh=False,
        max_invalid_ratio=quality.max_invalid_ratio,
        error_kind="held" if state == HELD else None,
    )
    row = platform.lake.audit.row(delivery.file_id)
    if row and row["status"] == status:
        counts = Counts(**{name: row[name] or 0 for name in Counts.names()})
        judged = judge_quality(quality, counts, delivery, platform.lake.audit)
        return replace(
            outcome, counts=counts, profile=Profile.of(row), file_breaches=judged.file,
            silver_version=row["silver_version"], message=row["message"],
        )  # fmt: skip
    decision = platform.lake.silver.decision(delivery.file_id)
    if decision is None:
        raise PermanentError("Silver's log no longer says how this delivery was decided; rebuild it from bronze.")
    counts = Counts(**decision["counts"])
    judged = judge_quality(quality, counts, delivery, platform.lake.audit)
    outcome = replace(
        outcome, counts=counts, profile=Profile.of(decision.get("profile", {})), file_breaches=judged.file,
        silver_version=decision["version"], message=" ".join(_quality_sentences(judged, held=state == HELD)) or None,
    )  # fmt: skip
    platform.lake.audit.put(outcome, run_id=run_id, started_at=started_at)
    return outcome


def _message(judged: Judgement, checked: Checked, decided: Decision) -> str | None:
    sentences = _quality_sentences(judged, held=decided.held)
    if decided.held and not judged.holds:
        sentences.append(
            "The file would take back more members than it brings, against the earlier delivery of this name; it is "
            "held and silver is unchanged. Send the whole file."
        )
    if decided.fell_back or decided.gone:
        sentences.append(
            f"Members that only the earlier delivery of this name had: {decided.gone} were removed, "
            f"{decided.fell_back} fell back to what other deliveries say."
        )
    if not checked.counts.records:
        sentences.append("The file has a header but no records.")
    if checked.counts.warned:
        sentences.append(f"Accepted records with warnings: {checked.counts.warned}.")
    if checked.extra_columns:
        count = len(checked.extra_columns)
        sentences.append(f"The header has {count} column(s) that the contract does not know; they stay in bronze.")
    return " ".join(sentences) or None


def _quality_sentences(judged: Judgement, *, held: bool) -> list[str]:
    said = [*([judged.ratio] if judged.ratio else []), *judged.file]
    if held and judged.holds:
        return [*said, "The delivery is held and silver is unchanged; send a corrected file."]
    return [*said, "The accepted records are in silver."] if said else []


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
