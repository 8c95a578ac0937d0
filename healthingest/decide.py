"""What one snapshot of silver leads to for some deliveries of one client: compare, keep values, commit.

Several deliveries may share a commit: the history of a client then costs one commit per batch, not per file. Each is
still accounted for as if it had come after those before it in the batch.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import polars as pl

from healthingest import sentences
from healthingest.contracts.clients import Client
from healthingest.engines.choice import merging
from healthingest.errors import AccountingError, KeyringError, PermanentError
from healthingest.fallback import rows_of, silver_rows
from healthingest.lake.reverts import is_odd
from healthingest.lake.rewrite import CHANGED, GONE, NEW, Changes
from healthingest.lake.silver import APPLIED, DISCARDED, HELD, Snapshot
from healthingest.leavers import ABSENT, Leavers, leavers, watch
from healthingest.members import Members
from healthingest.model import Counts, Delivery, Outcome, Profile, Status, Verdict
from healthingest.platform import Platform
from healthingest.privacy.tokens import compact
from healthingest.quality import Judgement
from healthingest.supersede import Slot, left_behind, takes_back_too_much
from healthingest.volume import note_breach

#: What each state in silver's log is called.
STATUS: dict[int, Status] = {HELD: "held", APPLIED: "succeeded", DISCARDED: "discarded"}
#: Times a named stage of the work.
Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A delivery that was read and checked, with what it says of its members."""

    outcome: Outcome
    client: Client
    members: Members
    judged: Judgement
    #: Columns of its header that the contract does not know.
    extra_columns: int

    @property
    def verdict(self) -> Verdict | None:
        """What a person decided about it."""
        return self.outcome.verdict

    @property
    def delivery(self) -> Delivery:
        """The delivery itself."""
        return self.outcome.delivery


@dataclass(frozen=True)
class Decision:
    """What silver's log says of a delivery: all that its audit row shows, so that the row can be made from it."""

    #: HELD, APPLIED or DISCARDED.
    state: int
    counts: Counts
    profile: Profile
    message: str | None = None
    extra_columns: int = 0
    #: Silver's version that holds it.
    version: int | None = None

    def of(self, outcome: Outcome) -> Outcome:
        """The outcome as decided."""
        status = STATUS[self.state]
        return replace(
            outcome, status=status, counts=self.counts, profile=self.profile,
            silver_version=self.version, error_kind=status if status != "succeeded" else None, message=self.message,
            extra_columns=self.extra_columns,
        )  # fmt: skip

    def as_dict(self) -> dict[str, object]:
        """Plain values for silver's log."""
        said = {"state": self.state, "counts": self.counts.as_dict(), "profile": self.profile.as_dict()}
        extra = {"extra_columns": self.extra_columns} if self.extra_columns else {}
        return said | extra | ({"message": self.message} if self.message else {})


def decide(
    platform: Platform, batch: Sequence[Candidate], stage: Stage, sighted: Callable[[], None]
) -> dict[str, Decision]:
    """Compare deliveries of one client and contract with one snapshot of silver and commit against it: by file_id.

    A delivery that supersedes another, or is superseded, comes alone. To be tried again as a whole on conflict: then
    everything is read anew. `sighted` returns once the batch's own sightings are stored; nothing is committed before.

    Raises:
        CommitFailedError: another writer of the client was faster.
        KeyringError: the tokens are not of the keys in force.
    """
    client, silver = batch[0].client, platform.lake.silver_for(batch[0].client.client_id)
    with stage("compare"):
        snapshot = silver.for_client(client.client_id, client.contract)
        if snapshot.generation not in {None, platform.keyring.generation("member_token", client.client_id)}:
            raise KeyringError(f"The keys of {client.client_id} were rotated meanwhile; run this again.")
        known = {c.delivery.file_id for c in batch if is_settled(snapshot.state(c.delivery.file_id), c.verdict)}
        decided = {
            file_id: recorded(platform, client.client_id, file_id) for file_id in known
        }  # another worker was faster
        undecided = [c for c in batch if c.delivery.file_id not in known]
        if not undecided:
            return decided
        if watch(platform, client):  # who is absent shows from the batch's own facts too
            sighted()
        # Others' sightings after silver's snapshot: the other order lets two workers each overlook the other.
        plan = _plan(platform, snapshot, undecided)
        for candidate in undecided:
            candidate.members.let_go()
    with merging(platform, silver, snapshot, [c.delivery for c in undecided]) as change:
        with stage("vault"):
            put_rows(platform, snapshot.number + 1, plan.rows, change)
        sighted()
        with stage("silver"):
            said = {file_id: decision.as_dict() for file_id, decision in plan.decisions.items()}
            # If it fails, the vault's parts stay for maintenance.
            version = silver.commit(snapshot, said, change, plan.toggled)
    return decided | {file_id: replace(d, version=version) for file_id, d in plan.decisions.items()}


def recorded(platform: Platform, client_id: str, file_id: str) -> Decision:
    """The decision that silver's log holds of a delivery.

    Raises:
        PermanentError: the log no longer goes back to it.
    """
    found = platform.lake.silver_of(client_id).decision(file_id)
    if found is None:
        raise PermanentError(
            "Silver's log no longer says how this delivery was decided; move silver away and run "
            "healthingest ingest --from-bronze."
        )
    profile = Profile.of(found["profile"])
    said, extra = found.get("message"), found.get("extra_columns", 0)
    return Decision(found["state"], Counts(**found["counts"]), profile, said, extra, found["version"])


# --- compare ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Rows to commit, to be gone through once, and what becomes of each delivery."""

    #: As in `Members`, with `_change`, each part with the client whose contract they meet.
    rows: Iterable[tuple[Client, pl.DataFrame]]
    decisions: dict[str, Decision]
    #: Deliveries that somebody took back before, and how often: silver is being built again.
    toggled: dict[str, int]


def _plan(platform: Platform, snapshot: Snapshot, batch: Sequence[Candidate]) -> _Plan:
    decisions: dict[str, Decision] = {}
    applied: list[tuple[Candidate, Slot]] = []
    for candidate in batch:
        slot = Slot(platform, snapshot, candidate.delivery)
        # Of what is read again, a person has seen before what it takes back.
        suspicious = candidate.delivery.reread_of is None and slot.held_against is not None
        takes_back = suspicious and takes_back_too_much(platform, slot, candidate.members.keys)
        if candidate.verdict and candidate.verdict.decision == "discarded":
            decisions[candidate.delivery.file_id] = _discarded(candidate)
        elif (takes_back or candidate.judged.holds) and not candidate.verdict:
            decisions[candidate.delivery.file_id] = _held(candidate, takes_back=takes_back)
        else:
            applied.append((candidate, slot))
    if not applied:
        return _Plan([], decisions, {})
    state, won = _state(platform, snapshot, applied), []
    known = state.drop("__latest")
    left = pl.DataFrame(schema={"_change": pl.String})
    together = len(applied) > 1
    for candidate, slot in applied:
        gone = _absent(platform, snapshot, slot)
        if gone:
            state = _without(state, gone.tokens, candidate.members.keys)
        counts = candidate.outcome.counts
        current, counts = compared(candidate.members, counts, state, superseded=slot.superseded, ordered=together)
        won.append((candidate, current))
        if together:
            state = after(state, current)
        if slot.earlier or gone:
            left = left_behind(platform, slot, current, gone.tokens if gone else None)
        message = sentences.of_applied(candidate.judged, counts, candidate.extra_columns, left["_change"],
                                       full_files=_over(platform, slot, gone) if gone else None)  # fmt: skip
        message = sentences.with_verdict(message, candidate.verdict)
        decisions[candidate.delivery.file_id] = Decision(
            APPLIED, counts, candidate.outcome.profile, message, candidate.extra_columns
        )
    client, toggled = batch[0].client, {c.delivery.file_id: slot.reverts for c, slot in applied if slot.reverts}
    rows = ((client, part) for part in _changed(won, known))
    fall_back = rows_of(platform, client, left) if left.height else ()
    return _Plan(itertools.chain(rows, fall_back), decisions, toggled)


def _absent(platform: Platform, snapshot: Snapshot, slot: Slot) -> Leavers | None:
    """Who is absent from full files once a delivery is applied; None where members cannot leave so."""
    if not watch(platform, platform.pinned_client(slot.delivery)):
        return None
    columns = ["file_id", "file_name", "member_token"]
    seen = platform.lake.sightings.of_client(snapshot.client_id, snapshot.generation, columns)
    seen = seen.with_columns(token=compact("member_token"))
    return leavers(platform, snapshot, seen, slot.active)


def _without(state: pl.DataFrame, absent: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """The state with what a delivery says of absent members being stale."""
    mine = absent.join(own, on="token", how="semi")
    known = mine.join(state.select("token", "__hash"), on="token", how="left").with_columns(__latest=pl.lit(ABSENT))
    return pl.concat([state.join(mine, on="token", how="anti"), known])


def _over(platform: Platform, slot: Slot, gone: Leavers) -> str:
    """What to say of a full file that makes nobody leave, noted with it; empty if it does."""
    said = gone.over.get(slot.delivery.file_id, "")
    if said:
        note_breach(platform, slot.delivery, said)
    return said


def is_settled(state: int | None, verdict: Verdict | None) -> bool:
    """Whether silver's log has a delivery in its end state: what is held waits for a person's word."""
    return state is not None and not (state == HELD and verdict)


def _discarded(candidate: Candidate) -> Decision:
    counts, outcome = candidate.outcome.counts, candidate.outcome
    message = sentences.with_verdict("Silver is unchanged.", candidate.verdict)
    return Decision(DISCARDED, counts, outcome.profile, message, candidate.extra_columns)


def _held(candidate: Candidate, *, takes_back: bool) -> Decision:
    counts = candidate.outcome.counts
    message = sentences.of_held(candidate.judged, counts, candidate.extra_columns, takes_back=takes_back)
    return Decision(HELD, counts, candidate.outcome.profile, message, candidate.extra_columns)


def _state(platform: Platform, snapshot: Snapshot, applied: Sequence[tuple[Candidate, Slot]]) -> pl.DataFrame:
    """Before the batch: token, __hash of silver's row, __latest active sighting by others where it matters.

    Of the batch's members, and maybe of others.
    """
    batch = [c for c, _ in applied]
    new = [c.delivery for c, slot in applied if not is_odd(slot.reverts)]
    own = pl.concat([c.members.keys.select("token") for c in batch])
    known = snapshot.hashes(own).rename({"hash": "__hash"})
    latest = platform.lake.sightings.latest_of_others(
        snapshot.client_id, snapshot.generation, {c.delivery.file_id for c in batch},
        min((low for c in batch if (low := c.members.lowest())), default=None),
        lambda deliveries: snapshot.active(deliveries, platform.lake.bronze, applying=new),
    )  # fmt: skip
    if latest.is_empty():
        return known.with_columns(__latest=pl.lit(None, pl.String))
    latest = latest.select(token=compact("member_token"), __latest="latest").join(own, on="token", how="semi")
    return known.join(latest, on="token", how="full", coalesce=True)


def compared(
    members: Members, counts: Counts, state: pl.DataFrame, *, superseded: bool = False, ordered: bool = False
) -> tuple[pl.DataFrame, Counts]:
    """What a delivery says that counts, and its whole accounting.

    `state`: token, __hash of silver's row, __latest active sighting by others; whom it lacks is new. Of each member
    that is not stale: token, hash, __hash, __row, its place in `members`, and, if `ordered`, sequence.
    """
    late = state["__latest"].null_count() < state.height
    own, height = members.keys, members.keys.height
    if late or ordered:
        own = own.with_columns(members.parts.column("sequence"))
    if superseded:
        own = own.clear()
    if state.is_empty():
        current = own.with_columns(__hash=pl.lit(None, pl.Int128))
    else:
        current = own.join(state, on="token", how="left", maintain_order="left")
        if late:
            current = current.filter(pl.col("__latest").is_null() | (pl.col("__latest") < pl.col("sequence")))
        current = current.drop("__latest")
    inserted = current["__hash"].null_count()
    unchanged = int((current["__hash"] == current["hash"]).sum())
    full = replace(
        counts,
        duplicates=counts.accepted - counts.suppressed - height,
        stale=height - current.height,
        unchanged=unchanged,
        inserted=inserted,
        updated=current.height - inserted - unchanged,
    )
    parts = full.duplicates + full.stale + full.suppressed + full.unchanged + full.inserted + full.updated
    if parts != full.accepted:
        raise AccountingError(f"{full.accepted} records were accepted, but {parts} accounted for in silver.")
    return current, full


def after(state: pl.DataFrame, current: pl.DataFrame) -> pl.DataFrame:
    """The state once a delivery of the batch was taken in; `current` is `ordered`."""
    taken = current.select("token", __hash="hash", __latest="sequence")
    return pl.concat([state.join(taken, on="token", how="anti"), taken])


def _changed(won: Sequence[tuple[Candidate, pl.DataFrame]], known: pl.DataFrame) -> Iterable[pl.DataFrame]:
    """The rows that differ from silver's, each from the delivery that wins its member, with `_change`."""
    if len(won) == 1:
        best = won[0][1].with_columns(__by=pl.lit(0, pl.Int32))
    else:
        winners = [current.with_columns(__by=pl.lit(by, pl.Int32)) for by, (_, current) in enumerate(won)]
        best = pl.concat(winners).sort("sequence").unique("token", keep="last").drop("__hash")
        best = best.join(known, on="token", how="left")  # against silver, not the delivery before it
    best = best.filter(pl.col("__hash").is_null() | (pl.col("__hash") != pl.col("hash")))
    change = pl.when(pl.col("__hash").is_null()).then(pl.lit(NEW)).otherwise(pl.lit(CHANGED))
    best = best.select("__by", "__row", _change=change).sort("__row")
    parts = [best.filter(pl.col("__by") == by).drop("__by") for by in range(len(won))]
    return itertools.chain(*[candidate.members.picked(part) for (candidate, _), part in zip(won, parts, strict=True)])


def put_rows(platform: Platform, number: int, parts: Iterable[tuple[Client, pl.DataFrame]], change: Changes) -> None:
    """Values into the vault, the rest towards silver; nothing of the frames is kept here for the commit."""
    for client, rows in parts:
        staying = rows.filter(pl.col("_change") != GONE) if (rows["_change"] == GONE).any() else rows
        if staying.height:
            _put_values(platform, client, number, staying)
        change.add(silver_rows(rows, client))


def _put_values(platform: Platform, client: Client, number: int, rows: pl.DataFrame) -> None:
    """One vault part per delivery that the rows come from: mostly one, more where members fall back."""
    groups = client.contract.vaulted
    rows = rows.select("member_token", "_file_id", *groups)
    for part in [rows] if rows["_file_id"].n_unique() == 1 else rows.partition_by("_file_id"):  # which copies
        platform.lake.vault.put(client.client_id, part["_file_id"][0], number, part, groups)
