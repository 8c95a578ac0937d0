"""What one snapshot of silver leads to for some deliveries of one client: compare, keep values, commit.

Several deliveries may share a commit: the history of a client then costs one commit per batch, not per file. Each is
still accounted for as if it had come after those before it in the batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import polars as pl

from healthingest import sentences
from healthingest.contracts.clients import Client
from healthingest.errors import AccountingError, PermanentError
from healthingest.lake.silver import APPLIED, CHANGED, GONE, HELD, NEW, Snapshot
from healthingest.model import Counts, Delivery, Outcome, Profile
from healthingest.platform import Platform
from healthingest.quality import Judgement
from healthingest.supersede import Slot, left_behind, silver_rows, takes_back_too_much

_NO_SIGHTINGS = pl.DataFrame(schema={"member_token": pl.String, "sequence": pl.String})
#: Times a named stage of the work.
Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A delivery that was read and checked, with what it says of its members."""

    outcome: Outcome
    client: Client
    #: As `members_of` gives them.
    members: pl.DataFrame
    judged: Judgement
    #: Columns of its header that the contract does not know.
    extra_columns: int

    @property
    def delivery(self) -> Delivery:
        """The delivery itself."""
        return self.outcome.delivery


@dataclass(frozen=True)
class Decision:
    """What silver's log says of a delivery: all that its audit row shows, so that the row can be made from it."""

    #: HELD or APPLIED.
    state: int
    counts: Counts
    profile: Profile
    message: str | None = None
    #: Silver's version that holds it.
    version: int | None = None

    def of(self, outcome: Outcome) -> Outcome:
        """The outcome as decided."""
        held = self.state == HELD
        return replace(
            outcome, status="held" if held else "succeeded", counts=self.counts, profile=self.profile,
            silver_version=self.version, error_kind="held" if held else None, message=self.message,
        )  # fmt: skip

    def as_dict(self) -> dict[str, object]:
        """Plain values for silver's log."""
        said = {"state": self.state, "counts": self.counts.as_dict(), "profile": self.profile.as_dict()}
        return said | ({"message": self.message} if self.message else {})


def decide(platform: Platform, batch: Sequence[Candidate], stage: Stage) -> dict[str, Decision]:
    """Compare deliveries of one client and contract with one snapshot of silver and commit against it: by file_id.

    A delivery that supersedes another, or is superseded, comes alone. To be tried again as a whole on conflict: then
    everything is read anew.

    Raises:
        CommitFailedError: another writer of the client was faster.
    """
    client, silver = batch[0].client, platform.lake.silver
    with stage("compare"):
        snapshot = silver.for_client(client.client_id, client.contract)
        known = {c.delivery.file_id for c in batch if snapshot.state(c.delivery.file_id)}
        decided = {file_id: recorded(platform, file_id) for file_id in known}  # another worker was faster
        undecided = [c for c in batch if c.delivery.file_id not in known]
        if not undecided:
            return decided
        # Others' sightings after silver's snapshot: the other order lets two workers each overlook the other.
        plan = _plan(platform, snapshot, undecided)
    with stage("vault"):
        _put_values(platform, client, snapshot.number + 1, plan.rows.filter(pl.col("_change") != GONE))
    with stage("silver"):
        said = {file_id: decision.as_dict() for file_id, decision in plan.decisions.items()}
        # If it fails, the parts stay for maintenance: a commit may have landed although its answer was lost.
        version = silver.commit(snapshot, said, silver_rows(plan.rows, client))
    return decided | {file_id: replace(d, version=version) for file_id, d in plan.decisions.items()}


def recorded(platform: Platform, file_id: str) -> Decision:
    """The decision that silver's log holds of a delivery.

    Raises:
        PermanentError: the log no longer goes back to it.
    """
    found = platform.lake.silver.decision(file_id)
    if found is None:
        raise PermanentError(
            "Silver's log no longer says how this delivery was decided; move silver away and run "
            "healthingest ingest --from-bronze."
        )
    profile = Profile.of(found["profile"])
    return Decision(found["state"], Counts(**found["counts"]), profile, found.get("message"), found["version"])


# --- compare ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Rows to commit (as `members_of`, with `_change`) and what becomes of each delivery."""

    rows: pl.DataFrame
    decisions: dict[str, Decision]


def _plan(platform: Platform, snapshot: Snapshot, batch: Sequence[Candidate]) -> _Plan:
    decisions: dict[str, Decision] = {}
    applied: list[tuple[Candidate, Slot]] = []
    for candidate in batch:
        slot = Slot(snapshot, platform.lake.bronze, candidate.delivery)
        takes_back = takes_back_too_much(platform, slot, candidate.members)
        if takes_back or candidate.judged.holds:
            decisions[candidate.delivery.file_id] = _held(candidate, takes_back=takes_back)
        else:
            applied.append((candidate, slot))
    known = _known(snapshot, [c for c, _ in applied])
    state, won = _state(platform, snapshot, [c for c, _ in applied], known), []
    left = pl.DataFrame(schema={"_change": pl.String})
    for candidate, slot in applied:
        current, counts = compared(candidate.members, candidate.outcome.counts, state, superseded=slot.superseded)
        won.append((candidate, current))
        if len(applied) > 1:
            state = after(state, current)
        if slot.earlier:
            left = left_behind(platform, slot, candidate.members, current)
        message = sentences.of_applied(candidate.judged, counts, candidate.extra_columns, left["_change"])
        decisions[candidate.delivery.file_id] = Decision(APPLIED, counts, candidate.outcome.profile, message)
    rows = _changed(won, known) if won else batch[0].members.clear()
    return _Plan(pl.concat([rows, left], how="diagonal"), decisions)


def _held(candidate: Candidate, *, takes_back: bool) -> Decision:
    counts = candidate.outcome.counts
    message = sentences.of_held(candidate.judged, counts, candidate.extra_columns, takes_back=takes_back)
    return Decision(HELD, counts, candidate.outcome.profile, message)


def _known(snapshot: Snapshot, batch: Sequence[Candidate]) -> pl.DataFrame:
    """What silver says of the batch's members: member_token, __hash."""
    known = snapshot.hashes().rename({"_content_hash": "__hash"})
    tokens = [c.members.select("member_token") for c in batch]
    return known.join(pl.concat(tokens), on="member_token", how="semi") if tokens else known.clear()


def _state(platform: Platform, snapshot: Snapshot, batch: Sequence[Candidate], known: pl.DataFrame) -> pl.DataFrame:
    """Before the batch: member_token, __hash of silver's row, __latest active sighting by others where it matters."""
    new = [c.delivery for c in batch]
    own = pl.concat([_NO_SIGHTINGS, *(c.members.select(_NO_SIGHTINGS.columns) for c in batch)])
    latest = platform.lake.sightings.latest_of_others(
        snapshot.client_id, {d.file_id for d in new}, own,
        lambda deliveries: snapshot.active(deliveries, platform.lake.bronze, applying=new),
    )  # fmt: skip
    return known.join(latest.rename({"latest": "__latest"}), on="member_token", how="full", coalesce=True)


def compared(
    members: pl.DataFrame, counts: Counts, state: pl.DataFrame, *, superseded: bool = False
) -> tuple[pl.DataFrame, Counts]:
    """What a delivery says that counts (member_token, sequence, _content_hash), and its whole accounting.

    `state`: member_token, __hash of silver's row, __latest active sighting by others; whom it lacks is new.
    """
    own = members.select("member_token", "sequence", "_content_hash")
    if superseded:
        current = own.clear().with_columns(__hash=pl.lit(None, pl.String))
    else:
        current = own.join(state, on="member_token", how="left", maintain_order="left").filter(
            pl.col("__latest").is_null() | (pl.col("__latest") < pl.col("sequence"))
        )
    inserted = int(current["__hash"].is_null().sum())
    unchanged = int((current["__hash"] == current["_content_hash"]).sum())
    full = replace(
        counts,
        duplicates=counts.accepted - members.height,
        stale=members.height - current.height,
        unchanged=unchanged,
        inserted=inserted,
        updated=current.height - inserted - unchanged,
    )
    parts = full.duplicates + full.stale + full.suppressed + full.unchanged + full.inserted + full.updated
    if parts != full.accepted:
        raise AccountingError(f"{full.accepted} records were accepted, but {parts} accounted for in silver.")
    return current.select("member_token", "sequence", "_content_hash"), full


def after(state: pl.DataFrame, current: pl.DataFrame) -> pl.DataFrame:
    """The state once a delivery of the batch was taken in."""
    taken = current.select("member_token", __hash="_content_hash", __latest="sequence")
    return pl.concat([state.join(taken, on="member_token", how="anti"), taken])


def _changed(won: Sequence[tuple[Candidate, pl.DataFrame]], known: pl.DataFrame) -> pl.DataFrame:
    """The rows that differ from silver's, each from the delivery that wins its member, with `_change`."""
    winners = [current.with_columns(__by=pl.lit(number, pl.Int32)) for number, (_, current) in enumerate(won)]
    best = winners[0]
    if len(winners) > 1:
        best = pl.concat(winners).sort("sequence").unique("member_token", keep="last")
    best = best.join(known, on="member_token", how="left", maintain_order="left").filter(
        pl.col("__hash").is_null() | (pl.col("__hash") != pl.col("_content_hash"))
    )
    change = pl.when(pl.col("__hash").is_null()).then(pl.lit(NEW)).otherwise(pl.lit(CHANGED)).alias("_change")
    best = best.select("member_token", "__by", change)
    return pl.concat(
        candidate.members.join(
            best.filter(pl.col("__by") == number).drop("__by"), on="member_token", maintain_order="left"
        )
        for number, (candidate, _) in enumerate(won)
    )


def _put_values(platform: Platform, client: Client, number: int, rows: pl.DataFrame) -> None:
    """One vault part per delivery that the rows come from: mostly one, more where members fall back."""
    groups = client.contract.vaulted
    for part in rows.select("member_token", "_file_id", *groups).partition_by("_file_id"):
        platform.lake.vault.put(client.client_id, part["_file_id"][0], number, part, groups)
