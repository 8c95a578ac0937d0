"""New keys for a client while its files keep arriving: every step may die and be repeated, and nothing is unreadable.

New data is under the new keys at once. What lies under the old ones is sealed anew beside running ingests; tokens and
hashes change in one commit of silver, for which the client is alone for a moment. Then nothing needs the old keys, and
`revoke` may forget them. The key of the erasure ledger stays: the ids it was used on are gone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import polars as pl

from healthingest.errors import IncompleteError, KeyringError, UsageError
from healthingest.lake.lake import Lake
from healthingest.lake.sightings import SIGHTED
from healthingest.lake.silver import Snapshot
from healthingest.lake.vault import CONSOLIDATED
from healthingest.members import read_again
from healthingest.platform import Platform
from healthingest.privacy.keyring_file import add_generation, drop_generations, remember_generation
from healthingest.privacy.roles import actor
from healthingest.silence import reading_client

OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Rotated:
    """What a rotation came to."""

    client_id: str
    generation: int
    #: Rows, files or records that were put under the new keys by this call, per place.
    renewed: dict[str, int]
    silver_version: int | None


def rotate(platform: Platform, client_id: str, *, wait: float = 600.0, on_step: OnStep = lambda _: None) -> Rotated:
    """Give a client new keys and put everything it has under them; or finish a rotation that has begun.

    Raises:
        KeyringError: the keyring is a role's.
        BusyError: others are at work on the client for too long, or a maintenance runs.
        IncompleteError: something that must be there is not; the old keys stay in force.
    """
    _own_keyring(platform, client_id)
    exclusion = platform.lake.exclusion
    waiting = {"wait": wait, "on_wait": lambda: on_step("waiting for ingests that are at work")}
    with exclusion.maintenance():
        with exclusion.alone(client_id, **waiting):  # type: ignore[arg-type]
            now = _begun(platform.current(client_id), client_id)
        renewed = {"bronze": _reseal_bronze(now, client_id, on_step)}
        _sight_anew(now, client_id, on_step)
        with exclusion.alone(client_id, **waiting):  # type: ignore[arg-type]
            now = now.current(client_id)
            renewed["bronze"] += _reseal_bronze(now, client_id, on_step)
            renewed["sightings"] = _sight_anew(now, client_id, on_step)
            on_step("silver")
            renewed["silver"] = _put_in_force(now, client_id)
            now = now.current(client_id)
            on_step("what is under the old keys")
            renewed |= _clear_away(now, client_id)
        left = leftovers(now, client_id)
        if any(left.values()):
            raise IncompleteError(f"{_listed(left)} of {client_id} are still under old keys; run this again.")
        generation, version = now.keyring.latest(client_id), now.lake.silver_of(client_id).version()
        now.lake.events.append(client_id, "keys rotated", "", {"who": actor(), "generation": generation})
    return Rotated(client_id, generation, renewed, version)


def revoke(platform: Platform, client_id: str, *, wait: float = 600.0) -> int:
    """Forget the old keys of a client, which nothing needs any more; how many generations are gone.

    Raises:
        UsageError: something still needs them.
    """
    _own_keyring(platform, client_id)
    with platform.lake.exclusion.maintenance(), platform.lake.exclusion.alone(client_id, wait=wait):
        now = platform.current(client_id)
        left = leftovers(now, client_id)
        if any(left.values()):
            raise UsageError(f"{_listed(left)} of {client_id} need the old keys: run healthingest keys rotate first.")
        held = len(now.keyring.keys[client_id]["bronze"])
        if held > 1:
            drop_generations(now.places, client_id)
            now.lake.events.append(client_id, "old keys revoked", "", {"who": actor()})
    return held - 1


def leftovers(platform: Platform, client_id: str) -> dict[str, int]:
    """What of a client is still under other keys than its latest: place -> how many rows, files or records."""
    lake, latest = platform.lake, platform.keyring.latest(client_id)
    silver = lake.silver_of(client_id)
    snapshot = Snapshot(silver.snapshot(), client_id) if silver.exists() else None
    in_force = snapshot.generation if snapshot else None
    return {
        "bronze": lake.bronze.older(client_id) + len(lake.bronze.stray(client_id)),
        "quarantine": lake.quarantine.older(client_id, platform.keyring),
        "vault": len(lake.vault.older(client_id)),
        "sightings": lake.sightings.of_client(client_id, None, ["generation"], pl.col("generation") != latest).height,
        "silver": 0 if snapshot is None or in_force in {None, latest} else snapshot.rows or 1,
    }


# --- the steps -----------------------------------------------------------------------------------------------------


def _begun(platform: Platform, client_id: str) -> Platform:
    """With a further generation of keys, unless the latest is not yet everywhere."""
    if any(leftovers(platform, client_id).values()):
        remember_generation(platform.places, platform.keyring, client_id)
        return platform
    silver = platform.lake.silver_for(client_id)
    snapshot = Snapshot(silver.snapshot(), client_id)
    if snapshot.generation is None:  # so that it is known which are in force, once there are two
        silver.put_generation(snapshot, platform.keyring.latest(client_id))
    add_generation(platform.places, client_id)
    return platform.current(client_id)


def _reseal_bronze(platform: Platform, client_id: str, on_step: OnStep) -> int:
    done, bronze = 0, platform.lake.bronze
    for number, registered in enumerate(list(bronze.of_client(client_id)), 1):
        on_step(f"bronze: {number}")
        done += bronze.reseal(registered, reading_client(platform, registered.delivery))
    return done


def _sight_anew(platform: Platform, client_id: str, on_step: OnStep) -> int:
    """Write the sightings of every delivery under the latest keys, from bronze; how many deliveries."""
    latest, sightings = platform.keyring.latest(client_id), platform.lake.sightings
    columns = ["file_id", "generation"]
    seen = sightings.of_client(client_id, None, columns).unique()
    has = set(seen.filter(pl.col("generation") == latest)["file_id"])
    lacking = sorted(set(seen["file_id"]) - has)
    ahead = _ahead(platform, client_id)
    for number, file_id in enumerate(lacking, 1):
        on_step(f"sightings: {number} of {len(lacking)}")
        registered = platform.lake.bronze.find(client_id, file_id)
        if registered is None:
            raise IncompleteError(f"Delivery {file_id} of {client_id} is not in bronze; restore it from its backup.")
        sightings.put([(registered.delivery, read_again(ahead, registered.delivery).parts.select(SIGHTED))], latest)
    return len(lacking)


def _ahead(platform: Platform, client_id: str) -> Platform:
    """The platform as if the latest keys were in force already."""
    keyring = platform.keyring
    keyring = replace(keyring, in_force={**keyring.in_force, client_id: keyring.latest(client_id)})
    return replace(platform, keyring=keyring, lake=Lake.of(platform.places, keyring, platform.clients.layouts))


def _put_in_force(platform: Platform, client_id: str) -> int:
    """Commit silver with the tokens of the latest keys, its values beside it; how many rows."""
    lake, latest = platform.lake, platform.keyring.latest(client_id)
    silver = lake.silver_for(client_id)
    snapshot = Snapshot(silver.snapshot(), client_id)
    if snapshot.generation == latest:
        return 0
    before = lake.sightings.of_client(client_id, snapshot.generation, ["sequence"])
    after = lake.sightings.of_client(client_id, latest, ["sequence", "member_token", "content_hash"])
    if lost := before.join(after, on="sequence", how="anti").height:
        raise IncompleteError(f"Bronze of {client_id} no longer gives {lost} records that were sighted; restore it.")
    rows = pl.scan_delta(snapshot.table).filter(pl.col("client_id") == client_id).collect()
    named = rows.select("_sequence", "member_token", "_file_id").join(
        after.rename({"member_token": "token", "content_hash": "hash"}), left_on="_sequence", right_on="sequence"
    )
    values = lake.vault.rows(client_id, rows.select("member_token", "_file_id"))
    if named.height != rows.height or values.height != rows.height:
        raise IncompleteError(f"Silver has rows of {client_id} that were not sighted, or have no values in the vault.")
    if rows.is_empty():
        silver.put_generation(snapshot, latest)
        return 0
    renamed = values.join(named.select("member_token", "_file_id", "token"), on=["member_token", "_file_id"])
    renamed = renamed.with_columns(pl.col("token").alias("member_token")).drop("token")
    lake.vault.put_rows(client_id, CONSOLIDATED, snapshot.number + 1, renamed)
    new = rows.join(named.select("_sequence", "token", "hash"), on="_sequence").select(
        pl.col("token").alias(c) if c == "member_token" else pl.col("hash").alias(c) if c == "_content_hash" else c
        for c in rows.columns
    )
    silver.put_generation(snapshot, latest, new)
    return new.height


def _clear_away(platform: Platform, client_id: str) -> dict[str, int]:
    """Put or take away what is still under old keys, once the latest are in force."""
    lake, latest = platform.lake, platform.keyring.latest(client_id)
    for stray in lake.bronze.stray(client_id):
        stray.unlink()
    parts = lake.vault.older(client_id)
    for part in parts:
        part.unlink()
    records = lake.quarantine.reseal(client_id, platform.keyring)
    if lake.sightings.of_client(client_id, None, ["generation"], pl.col("generation") != latest).height:
        lake.sightings.snapshot().delete(f"client_id = '{client_id}' AND generation <> {latest}")
    for table in (lake.quarantine, lake.sightings):
        table.purge(client_id)
    return {"vault": len(parts), "quarantine": records}


def _own_keyring(platform: Platform, client_id: str) -> None:
    if platform.keyring.role is not None:
        raise KeyringError("This needs the installation's own keyring; a role's cannot be rotated.")
    if client_id not in platform.keyring.clients:
        raise UsageError(f"The keyring has no keys of {client_id}; it has those of {_clients(platform)}.")


def _clients(platform: Platform) -> str:
    return ", ".join(platform.keyring.clients) or "nobody"


def _listed(left: dict[str, int]) -> str:
    return ", ".join(_named(left))


def _named(left: dict[str, int]) -> Iterator[str]:
    for place, count in left.items():
        if count:
            yield f"{count} of {place}"
