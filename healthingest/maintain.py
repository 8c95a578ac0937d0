"""Keeps an installation fast and small: compaction, vacuum, logs, the vault's parts, the landing zone.

One at a time, by a lock; beside running ingests. Nothing that a reader, a writer or a change feed of the last `keep`
may need is deleted, and no part of the vault without proof that silver finds its values elsewhere.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from healthingest.alerting.store import AlertStore
from healthingest.clean_source import clean_landing
from healthingest.consolidate import consolidate, drop_replaced
from healthingest.engines.exchange import jobs_of
from healthingest.erase import drop_notices
from healthingest.errors import UsageError
from healthingest.lake.delta import Table
from healthingest.lake.proposals import Drifts
from healthingest.lake.silver import Silver
from healthingest.landing.names import printable
from healthingest.marts.membership import Membership, keep_up
from healthingest.platform import Platform
from healthingest.privacy.spool import sweep
from healthingest.revert import follow, is_behind
from healthingest.silence import late_records
from healthingest.storage.jobs import sweep_jobs

#: What is kept unless told otherwise; Delta's own default for its log.
KEEP = timedelta(days=30)
#: Less is refused: a reader, a writer or a consumer of the change feed may be that slow. Delta's own limit.
LEAST = timedelta(days=7)
#: How long a vault part that was replaced stays for readers that loaded silver before.
GRACE = timedelta(days=1)
#: Age of a temporary file that nobody can still be writing.
_ABANDONED = timedelta(days=1)


@dataclass(frozen=True)
class Step:
    """What one step of maintenance did."""

    name: str
    #: How many files, or whatever the text says, it took away.
    removed: int
    text: str


def maintain(
    platform: Platform,
    *,
    keep: timedelta = KEEP,
    grace: timedelta = GRACE,
    on_step: Callable[[str], None] | None = None,
) -> list[Step]:
    """Run every step.

    Raises:
        UsageError: `keep` is so short that someone could still need what it deletes.
        BusyError: another maintenance, erasure or rotation is running.
        IncompleteError, AccountingError: something is gone or wrong; nothing more was deleted.
    """
    if keep < LEAST:
        raise UsageError(f"Keep at least {LEAST.days} days: readers and the change feed may need what is younger.")
    lake = platform.lake
    steps: list[Step] = []
    tables: dict[str, Table] = {
        **{silver.path.name: silver for silver in lake.silvers()},
        "quarantine": lake.quarantine, "sightings": lake.sightings, "audit": lake.audit,
        "alerts": AlertStore.at(platform.places.output).alerts, "drift": Drifts.at(platform.places.output),
        "gold": Membership.at(platform.places.output),
    }  # fmt: skip
    with lake.exclusion.maintenance():
        _tell(on_step, "gold")
        keep_up(lake, platform.places.output)  # before the change feed is cut off
        for name, table in tables.items():
            if table.exists():
                _tell(on_step, name)
                steps += _table(platform, name, table, keep)
        for client_id in platform.lake.bronze.clients():
            if not lake.silver_of(client_id).exists():
                continue
            _tell(on_step, f"vault of {client_id}")
            steps += _vault(platform, client_id, grace)
        _tell(on_step, "reverts")
        steps += _reverts(platform)
        _tell(on_step, "bronze")
        steps += _unfinished(platform)
        _tell(on_step, "erasures")
        steps += _erasures(platform)
        _tell(on_step, "temporary files")
        steps.append(_abandoned(platform))
        _tell(on_step, "landing zone")
        steps += [Step("landing zone", 1, said) for said in clean_landing(platform)]
    return steps


def _tell(on_step: Callable[[str], None] | None, what: str) -> None:
    if on_step:
        on_step(what)


# --- tables -------------------------------------------------------------------------------------------------------


def _table(platform: Platform, name: str, table: Table, keep: timedelta) -> Iterator[Step]:
    fewer = table.compact()
    yield Step(f"{name}: compact", fewer, f"{fewer} fewer files")
    gone = table.vacuum(keep)
    yield Step(f"{name}: vacuum", gone, f"{gone} files deleted that nothing of the last {keep.days} days needs")
    waiting = _without_audit(platform) if isinstance(table, Silver) else 0
    if waiting:  # silver's log is where their audit rows come from
        yield Step(
            f"{name}: log", 0, f"kept: {waiting} deliveries have no audit row yet; run healthingest ingest --all"
        )
    else:
        shorter = table.shorten_log(keep)
        yield Step(f"{name}: log", shorter, f"checkpoint written, {shorter} files of the log deleted")


def _without_audit(platform: Platform) -> int:
    known = set(platform.lake.audit.frame(["file_id"])["file_id"])
    return sum(file_id not in known for file_id in platform.lake.bronze.all())


def _reverts(platform: Platform) -> Iterator[Step]:
    """Finish what whoever took a delivery back, or gave it again, died before."""
    for client_id in platform.lake.bronze.clients():
        if platform.lake.reverts.numbers(client_id) and client_id in platform.clients.clients:
            with platform.lake.exclusion.shared(client_id):
                now = platform.current(client_id)
                behind = is_behind(now, client_id)
                follow(now, client_id)
            if behind:
                yield Step("reverts", 1, f"{client_id}: silver follows what was reverted")


def _vault(platform: Platform, client_id: str, grace: timedelta) -> Iterator[Step]:
    dropped = drop_replaced(platform, client_id, grace)
    if dropped:
        yield Step(f"vault of {client_id}: drop", dropped, f"{dropped} parts deleted that were replaced before")
    together = consolidate(platform, client_id)
    if together:
        yield Step(
            f"vault of {client_id}: consolidate", 0, f"{together} parts put together; they go after {grace.days} d"
        )


def _erasures(platform: Platform) -> Iterator[Step]:
    """What late files brought of erased members, should whoever took them in have died before; notices in time."""
    gone = drop_notices(platform)
    if gone:
        yield Step("erasures: change feed", gone, f"{gone} files of the change feed deleted that told of removals")
    records = late_records(platform)
    if records:
        yield Step("erasures: bronze", 0, f"{records} records of erased members taken out of sealed copies")


def _abandoned(platform: Platform) -> Step:
    """Temporary files of processes that died."""
    removed, oldest, lake = 0, time.time() - _ABANDONED.total_seconds(), platform.lake
    logs = [table.path / "_delta_log" for table in (*lake.silvers(), lake.sightings)]
    output = platform.places.output
    folders = (lake.bronze.root, lake.vault.root, output / "reports", output / "checkpoint" / "destinations")
    for root in (*folders, *logs):
        for path in root.rglob(".*.tmp") if root.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # its writer, alive, has just given it its name
                if path.stat().st_mtime < oldest:
                    path.unlink()
                    removed += 1
    removed += sweep(lake.spool, _ABANDONED) + sweep_jobs(jobs_of(output))
    return Step("temporary files", removed, f"{removed} left behind by processes that died, deleted")


def _unfinished(platform: Platform) -> Iterator[Step]:
    """Deliveries whose registration died between its last two steps, if their file has left the landing zone since."""
    for client_id in platform.clients.active:
        for name in platform.lake.bronze.unfinished(client_id):
            platform.lake.bronze.finish(platform.route(name), platform.clients.clients[client_id])
            text = f"{printable(name)} was sealed, but not registered until now; run healthingest ingest --from-bronze"
            yield Step("bronze", 0, text)
