"""One delivery's whole way, readable top to bottom: register, check, quarantine, sight, compare, vault, silver, audit.

Every step may be repeated or die at any point: each writes once, silver's commit decides, and the audit row is a
projection of that commit. The order of steps was found by breaking every other one.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import polars as pl
from deltalake.exceptions import CommitFailedError

from healthingest.contracts.clients import Client
from healthingest.errors import AccountingError, ConfigError, PermanentError, UnroutableError
from healthingest.lake.delta import retry
from healthingest.lake.quarantine import rule_counts
from healthingest.lake.sightings import sequence
from healthingest.lake.silver import APPLIED, HELD, Snapshot, readable_columns
from healthingest.landing.names import printable
from healthingest.model import Counts, Delivery, Outcome, Status
from healthingest.platform import Platform
from healthingest.privacy import tokens
from healthingest.privacy.generalize import generalize
from healthingest.records.check import Checked, check_records
from healthingest.records.damage import RECORD_NO
from healthingest.records.read import RecordReader

log = logging.getLogger(__name__)
OnStage = Callable[[str], None]


def register(platform: Platform, path: Path, on_bytes: Callable[[int], None] | None = None) -> Delivery:
    """Take a landed file into bronze, or find the delivery that it already is.

    Raises:
        UnroutableError: its name leads nowhere, or it cannot be read.
    """
    name = platform.route(path.name)
    return platform.lake.bronze.add(path, name, platform.clients.clients[name.client_id], on_bytes).delivery


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
    outcome = replace(outcome, fresh=fresh, stages=dict(stages.seconds))
    log.info("%s %s: %s of %s records accepted, %.1f s", delivery.file_name, outcome.status, outcome.counts.accepted,
             outcome.counts.records, sum(outcome.stages.values()))  # fmt: skip
    return outcome


def _attempt(platform: Platform, delivery: Delivery, run_id: str, stages: "Stages") -> Outcome:
    lake = platform.lake
    client = Client.from_pin(lake.bronze.pinned_config(delivery), platform.places.configs)
    checked = _check(platform, delivery, client, stages)
    outcome = Outcome(
        delivery, "succeeded", fresh=True, counts=checked.counts,
        max_invalid_ratio=client.config.quality.max_invalid_ratio, top_rules=rule_counts(checked.rejected["reasons"]),
    )  # fmt: skip
    with stages("quarantine"):
        lake.quarantine.put(delivery, checked.rejected, platform.keyring, run_id)
    with stages("tokenise"):
        members = _members(platform, delivery, client, checked)
    with stages("sight"):
        seen = members.select("member_token", "sequence", content_hash="_content_hash")
        lake.sightings.put(delivery, seen)
    hold = outcome.breached and client.config.quality.on_breach == "hold"
    counts, version = retry(lambda: _decide(platform, delivery, client, outcome, members, stages, hold=hold))
    return replace(
        outcome, status="held" if hold else "succeeded", counts=counts, silver_version=version,
        error_kind="held" if hold else None, message=_message(outcome, checked, hold=hold),
    )  # fmt: skip


def _check(platform: Platform, delivery: Delivery, client: Client, stages: "Stages") -> Checked:
    registered = platform.lake.bronze.find(delivery.client_id, delivery.file_id)
    if registered is None:
        raise PermanentError("The delivery is not in bronze; drop the file into the landing zone again.")
    with platform.lake.bronze.open(delivery) as source:
        reader = RecordReader(source, registered.facts, client)
        checked = check_records(reader, client, delivery.creation_date, stages.add)
    counts = checked.counts
    if counts.records != counts.accepted + counts.rejected:
        raise AccountingError(
            f"{counts.records} records were read, but {counts.accepted} accepted and {counts.rejected} rejected."
        )
    return checked


def _members(platform: Platform, delivery: Delivery, client: Client, checked: Checked) -> pl.DataFrame:
    """One row per member of the delivery, its last record: silver's columns, the vault's, and `sequence`."""
    contract, keyring = client.contract, platform.keyring
    date_from = client.config.source.creation_date
    record_date = (
        pl.col(date_from.column).str.to_date("%Y-%m-%d")
        if date_from.from_ == "column"
        else pl.lit(delivery.creation_date)
    )
    derived = {target: generalize(pl.col(column), how) for target, (column, how) in contract.derived.items()}
    rows = checked.accepted.with_columns(
        tokens.member_token(keyring, client.client_id, checked.accepted["member_id"]),
        sequence(delivery, record_date, pl.col(RECORD_NO)).alias("sequence"),
        record_date.alias("__record_date"),
        **derived,
    )
    if rows["member_token"].n_unique() < rows.height:  # mostly not; and both steps are dear on a large file
        rows = rows.sort("sequence").unique("member_token", keep="last", maintain_order=True)
    hashed = [*derived, *(c.name for c in contract.columns if not c.policy.drop)]
    return rows.with_columns(
        tokens.content_hash(keyring, client.client_id, rows, hashed),
        creation_date=pl.col("__record_date"),
        _file_id=pl.lit(delivery.file_id),
    ).drop("__record_date")


def _decide(
    platform: Platform, delivery: Delivery, client: Client, outcome: Outcome, members: pl.DataFrame,
    stages: "Stages", *, hold: bool,
) -> tuple[Counts, int]:  # fmt: skip
    """Compare with one snapshot of silver and commit against it; on conflict everything is read again."""
    lake = platform.lake
    with stages("compare"):
        snapshot = lake.silver.for_client(client.client_id, client.contract)
        if snapshot.state(delivery.file_id):  # another worker was faster: its commit holds the truth
            decision = lake.silver.decision(delivery.file_id)
            if decision is None:
                raise PermanentError("Silver's log does not say how this delivery was decided; run it again.")
            return Counts(**decision["counts"]), decision["version"]
        # Others' sightings after silver's snapshot: the other order lets two workers each overlook the other.
        changed, counts = _compare(platform, delivery, snapshot, members, outcome.counts, hold=hold)
    with stages("vault"):
        part = None
        if changed.height:
            groups = client.contract.vaulted
            rows = changed.select("member_token", "_file_id", *groups)
            part = lake.vault.put(client.client_id, delivery.file_id, snapshot.number + 1, rows, groups)
    with stages("silver"):
        rows = _silver_rows(changed, client, datetime.now(UTC))
        recorded = {"counts": counts.as_dict(), "state": HELD if hold else APPLIED}
        try:
            version = lake.silver.commit(snapshot, delivery, HELD if hold else APPLIED, rows, recorded)
        except CommitFailedError:
            if part:
                part.unlink()  # no commit names it
            raise
    return counts, version


def _compare(
    platform: Platform,
    delivery: Delivery,
    snapshot: Snapshot,
    members: pl.DataFrame,
    counts: Counts,
    *,
    hold: bool,
) -> tuple[pl.DataFrame, Counts]:
    """The members that are new or changed, with `_is_new`, and the whole accounting."""
    if hold:
        return members.clear().with_columns(_is_new=pl.lit(None, pl.Boolean)), counts
    stale = platform.lake.sightings.later_than(
        delivery, members.select("member_token", "sequence"),
        lambda others: snapshot.active(others, applying=delivery),
    )  # fmt: skip
    current = members.join(stale, on="member_token", how="anti")
    known = snapshot.hashes().rename({"_content_hash": "__known"})
    current = current.join(known, on="member_token", how="left")
    changed = current.filter(pl.col("__known").is_null() | (pl.col("__known") != pl.col("_content_hash")))
    changed = changed.with_columns(_is_new=pl.col("__known").is_null()).drop("__known")
    inserted = int(changed["_is_new"].sum())
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


def _silver_rows(changed: pl.DataFrame, client: Client, now: datetime) -> pl.DataFrame:
    return changed.select(
        "_is_new",
        "member_token",
        *readable_columns(client.contract),
        "creation_date",
        "_content_hash",
        "_file_id",
        client_id=pl.lit(client.client_id),
        _sequence=pl.col("sequence"),
        _record_no=pl.col(RECORD_NO),
        _contract=pl.lit(client.contract.name),
        _ingested_at=pl.lit(now).cast(pl.Datetime("us", "UTC")),
        _bucket=pl.lit(0, pl.Int32),
    )


def _recorded(platform: Platform, delivery: Delivery, state: int, *, run_id: str, started_at: datetime) -> Outcome:
    """The outcome of a delivery that an earlier attempt decided; its audit row is written if that attempt died."""
    client = Client.from_pin(platform.lake.bronze.pinned_config(delivery), platform.places.configs)
    status: Status = "held" if state == HELD else "succeeded"
    outcome = Outcome(
        delivery,
        status,
        fresh=False,
        max_invalid_ratio=client.config.quality.max_invalid_ratio,
        top_rules=platform.lake.quarantine.top_rules(delivery),
        error_kind="held" if state == HELD else None,
    )
    row = platform.lake.audit.row(delivery.file_id)
    if row and row["status"] == status:
        counts = Counts(**{name: row[name] for name in Counts.names()})
        return replace(outcome, counts=counts, silver_version=row["silver_version"], message=row["message"])
    decision = platform.lake.silver.decision(delivery.file_id)
    if decision is None:
        raise PermanentError("Silver's log no longer says how this delivery was decided; rebuild it from bronze.")
    outcome = replace(outcome, counts=Counts(**decision["counts"]), silver_version=decision["version"])
    outcome = replace(outcome, message=_ratio_sentence(outcome, hold=state == HELD))
    platform.lake.audit.put(outcome, run_id=run_id, started_at=started_at)
    return outcome


def _message(outcome: Outcome, checked: Checked, *, hold: bool) -> str | None:
    sentences = [_ratio_sentence(outcome, hold=hold)]
    if not outcome.counts.records:
        sentences.append("The file has a header but no records.")
    if checked.extra_columns:
        count = len(checked.extra_columns)
        sentences.append(f"The header has {count} column(s) that the contract does not know; they stay in bronze.")
    return " ".join(sentence for sentence in sentences if sentence) or None


def _ratio_sentence(outcome: Outcome, *, hold: bool) -> str | None:
    if not outcome.breached:
        return None
    counts, limit = outcome.counts, outcome.max_invalid_ratio
    share = f"{counts.invalid_ratio:.1%}, over the limit of {limit:.1%}"
    text = f"{counts.rejected} of {counts.records} records were rejected ({share})"
    if hold:
        return f"{text}; the delivery is held and silver is unchanged. Send a corrected file."
    return f"{text}; the accepted records are in silver."


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
