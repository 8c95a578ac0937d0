"""Termination by absence: which members leave silver because full files no longer name them.

A function of the deliveries that are active and of what people accepted, whatever the order: of the client's full
files in the order of the sequence, a member leaves when at least `absence.after` of those that came after the last
delivery that names it count. A full file counts unless it lacks more of the members of the full file before than its
caps allow, and nobody has accepted it. Whom a file names only in a record that was rejected is not absent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from healthingest.contracts.clients import Absence, Client
from healthingest.fallback import Active
from healthingest.lake.quarantine import open_record
from healthingest.lake.silver import Snapshot
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy.tokens import compact, member_token
from healthingest.records.frame import Grammar
from healthingest.records.standardize import standardize

#: Sorts after every sequence: whoever is absent has no record that could be later.
ABSENT = "\x7f"


@dataclass(frozen=True)
class Leavers:
    """Who is absent (token), and which full files make nobody leave (file_id -> why)."""

    tokens: pl.DataFrame
    over: dict[str, str]


@dataclass(frozen=True)
class _Full:
    delivery: Delivery
    absence: Absence
    accepted: bool


def watch(platform: Platform, client: Client) -> bool:
    """Whether the client's members may leave by absence; noted with its first full file that says so."""
    mark, membership = _mark(platform, client.client_id), client.config.membership
    if membership and membership.absence and not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mark.touch()
    return mark.exists()


def leavers(platform: Platform, snapshot: Snapshot, sightings: pl.DataFrame, active: Active) -> Leavers:
    """Who leaves where such deliveries count; `sightings` has file_id, file_name and token (Int128)."""
    none = Leavers(pl.DataFrame(schema={"token": pl.Int128}), {})
    deliveries = sightings.select("file_id", "file_name").unique()
    ids = deliveries.filter(active(deliveries))["file_id"]
    found = [platform.lake.bronze.find(snapshot.client_id, file_id) for file_id in ids]
    known = sorted((one.delivery for one in found if one), key=lambda d: d.rank)
    full = [one for delivery in known if (one := _full(platform, delivery))]
    if not full:
        return none
    named = _named(platform, sightings, known, full)
    counting, over = _counting(named, full)
    last = named.group_by("token").agg(pl.col("after").max())
    # Of full files that came after the last naming one, how many count.
    left = [sum(counting[place:]) for place in range(len(full) + 1)]
    misses = pl.col("after").replace_strict(dict(enumerate(left)), return_dtype=pl.Int64)
    return Leavers(last.filter(misses >= full[-1].absence.after).select("token"), over)


def _named(
    platform: Platform, sightings: pl.DataFrame, known: Sequence[Delivery], full: Sequence[_Full]
) -> pl.DataFrame:
    """token, at (place among the full files; null: another file), after (full files up to that delivery)."""
    places = {one.delivery.file_id: place for place, one in enumerate(full)}
    upto = {d.file_id: sum(one.delivery.rank <= d.rank for one in full) for d in known}
    members = sightings.select("token").unique()
    rejected = [_rejected(platform, one.delivery).join(members, on="token", how="semi") for one in full]
    mentions = pl.concat([sightings.select("file_id", "token"), *rejected])
    schema = {"file_id": pl.String, "after": pl.Int64}
    ids = pl.DataFrame({"file_id": list(upto), "after": list(upto.values())}, schema=schema)
    ids = ids.with_columns(at=pl.col("file_id").replace_strict(places, default=None, return_dtype=pl.Int64))
    return mentions.join(ids, on="file_id").select("token", "at", "after").unique()


def _counting(named: pl.DataFrame, full: Sequence[_Full]) -> tuple[list[bool], dict[str, str]]:
    """Which full files count, and why others do not."""
    counting, over = [], {}
    for place, one in enumerate(full):
        own = named.filter(pl.col("at") == place).select("token").unique()
        # Before the first full file is whoever any file named.
        before = named.filter(pl.col("at") == place - 1 if place else pl.col("after") == 0).select("token").unique()
        missing = before.join(own, on="token", how="anti").height
        said = _over(one, full[place - 1].delivery.file_name if place else None, missing, before.height)
        counting.append(said is None or one.accepted)
        if said:
            over[one.delivery.file_id] = said
    return counting, over


def _over(one: _Full, before: str | None, missing: int, members: int) -> str | None:
    most, share = one.absence.max_members, one.absence.max_share
    too_many = most is not None and missing > most
    too_much = share is not None and members > 0 and missing / members > share
    if not too_many and not too_much:
        return None
    limits = [*([f"{most:,}"] if most is not None else []), *([f"{share:.1%}"] if share is not None else [])]
    return (
        f"The full file lacks {missing:,} of the {members:,} members of {before or 'the files before it'} "
        f"({missing / members if members else 0:.1%}; at most {' and '.join(limits)}); none of them leaves by it "
        "until somebody accepts it with healthingest release."
    )


def _rejected(platform: Platform, delivery: Delivery) -> pl.DataFrame:
    """file_id and token of every member that a rejected record of a delivery may be of: each of its fields is tried."""
    mine = (pl.col("client_id") == delivery.client_id) & (pl.col("file_id") == delivery.file_id)
    rows = platform.lake.quarantine.frame(["record_no", "sealed_record"], mine & pl.col("sealed_record").is_not_null())
    client = platform.pinned_client(delivery)
    grammar = Grammar(client.config.source.delimiter, client.config.source.quote)
    texts = {
        field.decode("utf-8", "replace").strip()
        for number, sealed in rows.iter_rows()
        for field in grammar.fields(open_record(platform.keyring, delivery.client_id, delivery.file_id, number, sealed))
    }
    given = pl.DataFrame({"member_id": sorted(texts)}, schema={"member_id": pl.String})
    standard = standardize(given, client).select(client.contract.standard_of("member_id").alias("member_id"))
    ids = pl.concat([given, standard]).drop_nulls().unique()["member_id"]
    token = member_token(platform.keyring, delivery.client_id, ids)
    return token.to_frame("member_token").select(file_id=pl.lit(delivery.file_id), token=compact("member_token"))


def _full(platform: Platform, delivery: Delivery) -> _Full | None:
    membership = platform.pinned_client(delivery).config.membership
    if membership is None or membership.absence is None:
        return None
    verdict = platform.lake.decisions.of(delivery.client_id, delivery.file_id)
    return _Full(delivery, membership.absence, verdict is not None and verdict.decision in {"accepted", "released"})


def _mark(platform: Platform, client_id: str) -> Path:
    return platform.places.output / "checkpoint" / "absences" / client_id
