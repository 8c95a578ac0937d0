"""Members with their values, for those who hold the keys: silver joined with the vault.

Silver is loaded first, then the vault: a vault row without its silver row says nothing, the other way round loses one.
"""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from healthingest.contracts.contract import Contract, load_contract
from healthingest.errors import IncompleteError, UsageError
from healthingest.lake.silver import Snapshot
from healthingest.places import Places
from healthingest.platform import Platform

PROFILES = ("operations",)


def export_frame(
    platform: Platform, *, profile: str = "operations", clients: Sequence[str] | None = None
) -> pl.DataFrame:
    """Current members as one frame, sorted by client_id and member_id.

    Columns of `operations`: client_id, the contract's columns in their standard form (String), derived columns,
    creation_date (Date, of the record that last changed the member), last_seen (Date, of the last that named it).

    Raises:
        UsageError: no such profile or client.
        KeyringError: the keyring cannot open the vault.
        IncompleteError: parts of the vault are gone.
    """
    if profile not in PROFILES:
        raise UsageError(f"There is no profile {profile}; there is {', '.join(PROFILES)}.")
    silver = platform.lake.silver
    if not silver.exists():
        return _nobody(platform)
    table = silver.snapshot()
    rows = pl.scan_delta(table).collect()
    present = rows["client_id"].unique().sort().to_list()
    unknown = sorted(set(clients or ()) - set(present) - set(platform.clients.clients))
    if unknown:
        raise UsageError(f"There is no client {unknown[0]}; there is {', '.join(platform.clients.clients)}.")
    wanted = [client_id for client_id in present if clients is None or client_id in clients]
    parts = [
        _operations(platform, Snapshot(table, client_id), part)
        for client_id in wanted
        for part in rows.filter(pl.col("client_id") == client_id).partition_by("_contract")
    ]
    if not parts:
        return _nobody(platform)
    return pl.concat(parts, how="diagonal").sort("client_id", "member_id")


def _operations(platform: Platform, snapshot: Snapshot, rows: pl.DataFrame) -> pl.DataFrame:
    contract = load_contract(platform.places.configs, rows["_contract"][0])
    values = platform.lake.vault.values(snapshot.client_id, rows.select("member_token", "_file_id"))
    lost = rows.join(values, on=["member_token", "_file_id"], how="anti")
    if lost.height and contract.vaulted:
        raise IncompleteError(
            f"The vault has no values for {lost.height} members of {snapshot.client_id}, from "
            f"{lost['_file_id'].n_unique()} deliveries; restore {platform.lake.vault.root} from its backup."
        )
    seen = platform.lake.sightings.last_seen(
        snapshot.client_id, lambda deliveries: snapshot.active(deliveries, platform.lake.bronze)
    )
    joined = rows.join(values, on=["member_token", "_file_id"], how="left").join(seen, on="member_token", how="left")
    # A keyring without a group's key opens the vault without that group's columns.
    shown = [column for column in _value_columns(contract) if column in joined.columns]
    return joined.select("client_id", *shown, "creation_date", "last_seen")


def _nobody(platform: Platform) -> pl.DataFrame:
    """No members, under the header that members would have."""
    contracts = [client.contract for client in platform.clients.clients.values()]
    columns = dict.fromkeys(column for contract in contracts for column in _value_columns(contract))
    schema = {"client_id": pl.String()} | {c: pl.String() for c in columns or ("member_id",)}
    return pl.DataFrame(schema=pl.Schema(schema | {"creation_date": pl.Date(), "last_seen": pl.Date()}))


def _value_columns(contract: Contract) -> list[str]:
    shown = [c.name for c in contract.columns if c.policy.keep or c.policy.vault]
    return [*shown, *contract.derived]


def check_target(places: Places, target: Path) -> None:
    """Refuse to write an export where it cannot be, or must not lie.

    Raises:
        UsageError: its suffix is not one of the formats, its folder does not exist, or it is the output folder.
    """
    if target.suffix not in {".csv", ".parquet"}:
        raise UsageError("--out must end in .csv or .parquet.")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise UsageError(f"--out {target} is a folder, or lies in one that does not exist.")
    if target.resolve().is_relative_to(places.output):
        raise UsageError(f"--out must not lie in {places.output}: that is not for people's files.")


def write_private(frame: pl.DataFrame, target: Path) -> None:
    """Write an export as CSV or Parquet, by its suffix: readable by its owner only, and never half-written."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            if target.suffix == ".csv":
                frame.write_csv(file)
            else:
                frame.write_parquet(file)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
