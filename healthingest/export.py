"""Exports: members as a file for people or other systems, in one of the profiles, as far as a role may see them.

`operations`: all that the role opens. `limited_data_set` (45 CFR 164.514(e)): towns, states, ZIPs and dates, nothing
that names a person; still PHI, under a data use agreement. `safe_harbor` (164.514(b)(2)): none of the 18 identifiers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

import polars as pl

from healthingest.contracts.contract import Column, Contract
from healthingest.errors import UsageError
from healthingest.lake.silver import Snapshot, readable_columns
from healthingest.places import today
from healthingest.platform import Platform
from healthingest.privacy.generalize import OLDEST, ZIP3_VERSION
from healthingest.reading import Reader, of_two_types

PROFILES = ("operations", "limited_data_set", "safe_harbor")
#: Types whose values a limited data set may hold as they are.
_LIMITED_TYPES = frozenset({"date", "us_state", "us_zip", "gender"})
#: Columns of free text that it may hold: towns are no street addresses.
_LIMITED_TEXT = frozenset({"city", "town"})
#: Ways of generalising that leave nothing of the 18 identifiers.
_SAFE = frozenset({"year", "zip3"})
#: Types whose values are among the 18 identifiers, whatever a contract says of their class.
_NEVER_SAFE = frozenset({"name", "date", "us_zip", "phone", "email", "ssn", "mbi"})


@dataclass(frozen=True)
class Exported:
    """What goes into the file, and what must be told with it."""

    frame: pl.DataFrame
    #: Name -> value: the tables and dates used, and how many members were left out.
    notes: dict[str, str | int] = field(default_factory=dict)


def export_frame(
    platform: Platform, *, profile: str = "operations", clients: Sequence[str] | None = None
) -> pl.DataFrame:
    """The frame of `export_members`, for the role `operations`."""
    return export_members(platform, profile=profile, clients=clients).frame


def export_members(
    platform: Platform,
    *,
    profile: str = "operations",
    role: str | None = None,
    purpose: str | None = None,
    clients: Sequence[str] | None = None,
    as_of: date | None = None,
    k: int = 1,
) -> Exported:
    """Current members as one frame; an event per client says who took it, as which role and for what.

    Columns of `operations`: client_id, the contract's columns in their standard form (String; without those that the
    role may not open), derived columns, age bands as of `as_of`, creation_date (Date, of the record that last changed
    the member), last_seen (Date, of the last that named it); sorted by client and member. `limited_data_set`: of these
    gender, town, state, ZIP, dates and codes. `safe_harbor`: codes, state, years below 90 years of age (as of `as_of`,
    but never before today: what was 89 then is not now), zip3; no client, no order; groups of fewer than `k` members
    with equal values are left out and counted.

    Raises:
        UsageError: no such profile, role or client, or the role is for other purposes.
        KeyringError: the keyring lacks what it must hold.
        IncompleteError: parts of the vault are gone.
    """
    if profile not in PROFILES:
        raise UsageError(f"There is no profile {profile}; there is {', '.join(PROFILES)}.")
    reader, when = Reader.of(platform, role, purpose), as_of or today()
    columns = _columns(reader.contracts, profile)
    parts = [_of_client(reader, snapshot, profile, columns, when) for snapshot in reader.snapshots(clients)]
    parts = [part for part in parts if part.height]
    frame = pl.concat(parts, how="diagonal") if parts else _nobody(profile, columns)
    if profile == "safe_harbor":
        return _safe_harbor(frame, reader.contracts, max(when, today()), k)
    keys = [c for c in ("client_id", "member_id") if c in frame.columns]
    return Exported(frame.sort(keys, maintain_order=True) if keys else frame, {"as_of": when.isoformat()})


def _columns(contracts: Sequence[Contract], profile: str) -> dict[str, pl.DataType]:
    """The contracts' columns that a profile shows."""
    found: dict[str, pl.DataType] = {}
    for contract in contracts:
        found |= _columns_of(contract, profile)
    mixed = of_two_types(contracts)
    if profile == "operations":
        return found | dict.fromkeys(mixed & found.keys(), pl.String())
    # Tables have one column of a name: what is a code in one contract may be an address in another.
    unfit = {c for contract in contracts for c in _read_of(contract, profile) - set(_columns_of(contract, profile))}
    unfit |= mixed  # the same name, but not the same thing
    return {name: dtype for name, dtype in found.items() if name not in unfit}


def _columns_of(contract: Contract, profile: str) -> dict[str, pl.DataType]:
    shown: dict[str, pl.DataType] = {c.name: pl.String() for c in contract.columns if _shows(profile, c)}
    if profile == "safe_harbor":
        safe = {target for target, (_, how) in contract.derived.items() if how in _SAFE}
        return shown | {n: t for n, t in readable_columns(contract).items() if n in safe}
    made = readable_columns(contract) if profile == "operations" else {}
    return shown | made | dict.fromkeys(contract.age_bands, pl.String())


def _read_of(contract: Contract, profile: str) -> set[str]:
    """Columns of a contract whose values come before a profile's: `safe_harbor` is made of silver alone."""
    if profile == "safe_harbor":
        return set(readable_columns(contract))
    return {*contract.kept, *contract.vaulted}


def _shows(profile: str, column: Column) -> bool:
    """Whether a profile shows a column's values as they are."""
    policy = column.policy
    if profile == "operations":
        return bool(policy.keep or policy.vault)
    if profile == "safe_harbor":
        free = column.kind_of_value == "free" and column.type not in _NEVER_SAFE
        return policy.keep and (column.type == "us_state" or free)
    if not (policy.keep or policy.vault):
        return False
    return column.type in _LIMITED_TYPES or column.name in _LIMITED_TEXT or column.kind_of_value == "free"


def _of_client(
    reader: Reader, snapshot: Snapshot, profile: str, columns: dict[str, pl.DataType], when: date
) -> pl.DataFrame:
    wanted = [] if profile == "safe_harbor" else list(columns)
    opened = reader.opened(snapshot.client_id, wanted)
    rows = reader.rows(snapshot, wanted, when)
    present = [pl.col(c).cast(dtype) for c, dtype in columns.items() if c in rows.columns]
    around = {"safe_harbor": [], "limited_data_set": ["creation_date"], "operations": ["creation_date", "last_seen"]}
    if profile == "operations":
        bronze, sightings = reader.platform.lake.bronze, reader.platform.lake.sightings
        seen = sightings.last_seen(snapshot.client_id, snapshot.generation, lambda some: snapshot.active(some, bronze))
        rows = rows.join(seen, on="member_token", how="left")
    first = ["client_id"] if profile == "operations" else []
    reader.record(snapshot.client_id, f"export {profile}", opened, rows.height)
    return rows.select(*first, *present, *around[profile])


def _safe_harbor(frame: pl.DataFrame, contracts: Sequence[Contract], when: date, k: int) -> Exported:
    """Years of birth of 90 years and more are gone, the order says nothing, and small groups are left out."""
    made = {target: how for contract in contracts for target, (_, how) in contract.derived.items()}
    for year in [c for c in frame.columns if made.get(c) == "year"]:
        old = (pl.lit(when.year) - pl.col(year) >= OLDEST).fill_null(value=False)
        frame = frame.with_columns(pl.when(~old).then(pl.col(year)).alias(year), old.alias(f"{year}_90_plus"))
    groups = frame.group_by(frame.columns).agg(pl.len().alias("__members")) if frame.columns else frame
    kept = frame.filter(pl.len().over(frame.columns) >= k) if k > 1 and frame.height else frame
    smallest = groups.filter(pl.col("__members") >= k)["__members"].min() if frame.height else None
    notes: dict[str, str | int] = {
        "as_of": when.isoformat(), "zip3_table": ZIP3_VERSION, "k": k, "suppressed": frame.height - kept.height,
        "smallest_group": int(smallest) if isinstance(smallest, int) else 0,
    }  # fmt: skip
    return Exported(kept.sort(kept.columns), notes)


def _nobody(profile: str, columns: dict[str, pl.DataType]) -> pl.DataFrame:
    """No members, under the header that members would have."""
    after: dict[str, pl.DataType] = {"creation_date": pl.Date()} if profile != "safe_harbor" else {}
    if profile == "operations":
        columns = {"client_id": pl.String()} | (columns or {"member_id": pl.String()})
        after |= {"last_seen": pl.Date()}
    return pl.DataFrame(schema=pl.Schema(columns | after))
