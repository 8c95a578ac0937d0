"""Erasing a member or a whole client: everywhere, for good, with a signed certificate.

Of a member: the ledger first, so that no file brings it back; then silver; then whatever holds its records is written
anew without them and what earlier versions needed is deleted. Of a client: its keys are destroyed, and what they opened
is deleted. Every step may be repeated; whoever died is finished by the same command.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.absence import Looked, Member, delivery_at, find_in_file, landed_of, look_for
from healthingest.bulk import ingest_undecided
from healthingest.errors import IncompleteError, KeyringError, UsageError
from healthingest.lake.delta import retry
from healthingest.lake.quarantine import ERASED, open_record
from healthingest.lake.rewrite import GONE
from healthingest.lake.silver import Snapshot
from healthingest.landing.names import parse_file_name
from healthingest.marts.membership import keep_up
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy.certificate import signed
from healthingest.privacy.keyring import SHARED
from healthingest.privacy.keyring_file import destroy_keys
from healthingest.privacy.roles import actor, reason_given
from healthingest.records.redact import hold_ids
from healthingest.silence import reading_client, take_out_of_bronze
from healthingest.storage.files import put, remove_tree
from healthingest.storage.objects import ObjectPath, place_of

#: How long the change data of the removal itself stays: it tells those who follow silver to remove the member too.
NOTICE = timedelta(days=7)
_LONGEST_REASON = 200
_MEMBER_PROMISE = (
    "The member's records were deleted, or written anew without them, wherever this installation keeps data. Backups "
    "and copies that were made before hold them until their own dates; deleted blocks of a disk were not overwritten."
)
_CLIENT_PROMISE = (
    "The client's keys were destroyed and its data deleted. Backups of the data cannot be read without a backup of "
    "the keyring; backups of the keyring that were made before hold the keys until their own dates."
)
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """How an erasure is to be done."""

    #: Seconds to wait for attempts that are at work on the client.
    wait: float = 600.0
    #: How long the change data of the removal stays.
    notice: timedelta = NOTICE
    #: Until when backups that were made before are kept, as whoever asks knows it.
    backups_until: str = "not stated"
    on_step: OnStep = lambda _: None


def member_of_token(platform: Platform, client_id: str, token: str) -> str:
    """The id of a member of silver, by its token.

    Raises:
        UsageError: silver has no such member.
    """
    snapshot = Snapshot(platform.lake.silver_of(client_id).snapshot(), client_id)
    mine = (pl.col("client_id") == client_id) & (pl.col("member_token") == token)
    row = pl.scan_delta(snapshot.table).filter(mine).select("member_token", "_file_id").collect()
    values = platform.lake.vault.values(client_id, row, ["member_id"]) if row.height else row
    if values.height != 1 or "member_id" not in values.columns:
        raise UsageError(f"Silver has no member of {client_id} with this token.")
    return str(values["member_id"][0])


def find_member(platform: Platform, client_id: str, member_id: str, on_step: OnStep) -> dict[str, Looked]:
    """Where a member stands, by place; changes nothing."""
    _member_may_be_erased(platform, client_id)
    platform = platform.current(client_id)
    return look_for(platform, Member.of(platform, client_id, member_id), on_step=on_step)


def was_erased(platform: Platform, client_id: str, member_id: str) -> bool:
    """Whether a member's erasure was begun before: whoever died may have left nothing but the certificate to do."""
    entry = platform.lake.erasures.entry(client_id, member_id)
    return platform.lake.erasures.note(client_id, entry) is not None


def erase_member(platform: Platform, client_id: str, member_id: str, request: Request) -> dict[str, Any]:
    """Erase a member by its id in the standard form; returns the certificate, which is also kept.

    Raises:
        UsageError: there is a legal hold, or no config that tells how the client's files are read.
        BusyError: others are at work on the client, or a maintenance runs.
        IncompleteError: the member was found again afterwards, or the keyring lacks a key that this needs.
    """
    _member_may_be_erased(platform, client_id)
    entry = platform.lake.erasures.entry(client_id, member_id)
    if platform.lake.holds.note(client_id, entry):
        raise UsageError("There is a legal hold on this member: healthingest erase release takes it off.")
    with _alone(platform, client_id, request):
        platform = platform.current(client_id)
        lake, member = platform.lake, Member.of(platform, client_id, member_id)
        noted = lake.erasures.note(client_id, entry) or {"at": _now(), "notices": []}
        lake.erasures.put(client_id, entry, noted)
        removed = _remove(platform, member, request)
        output = platform.places.output
        notices = [p for p in _noticed(output, noted) if p.exists()] + removed.notices
        until = datetime.now(UTC) + request.notice
        if "notice_until" in noted and not removed.notices:
            until = datetime.fromisoformat(noted["notice_until"])
        kept = notices if request.notice else []
        lake.erasures.put(
            client_id,
            entry,
            noted | {"notices": [p.relative_to(output).as_posix() for p in kept], "notice_until": until.isoformat()},
        )
        keep_up(lake, platform.places.output)  # its feed is about to be cut off
        request.on_step("deleting what earlier versions needed")
        tables = (*lake.silvers(), lake.quarantine, lake.sightings)  # the client's rows may have been moved
        files = {t.path.name: t.purge(client_id, kept) for t in tables}
        left = look_for(platform, member, but=kept, on_step=request.on_step)
        certificate = _certificate(platform, client_id, "member", request, {
            "erased": {**removed.counts, "old_files": files},
            "change_feed": {
                "silver_from_version": removed.version,
                "removal_stays_until": until.isoformat() if kept else None,
            },
            "looked_through": {place: looked.as_dict() for place, looked in left.items()},
            "promise": _MEMBER_PROMISE,
        })  # fmt: skip
        if sum(looked.found for place, looked in left.items() if place != "landing"):
            raise IncompleteError("The member was found again after its erasure; run the command again and report it.")
        _publish(platform, client_id, certificate)
    # Their landed files may be gone now, so that nobody else would come back to them.
    for _ in ingest_undecided(platform, [client_id], run_id="erasure"):
        request.on_step("deciding what others had left undecided")
    return certificate


def erase_client(platform: Platform, client_id: str, request: Request) -> dict[str, Any]:
    """Destroy a client's keys and delete what they opened; returns the certificate, which is also kept.

    Raises:
        UsageError: there is a legal hold, on the client or on one of its members.
        BusyError: others are at work on the client, or a maintenance runs.
    """
    if client_id not in platform.keyring.destroyed:
        _may_be_erased(platform, client_id)
    lake = platform.lake
    if lake.holds.entries(client_id):
        raise UsageError(f"There is a legal hold on members of {client_id}: healthingest erase release takes it off.")
    with _alone(platform, client_id, request):
        request.on_step("landing zone")
        landed = landed_of(platform, client_id)
        for path, _ in landed:
            path.unlink(missing_ok=True)
        destroy_keys(platform.places, client_id)
        counts: dict[str, Any] = {"landing": len(landed)}
        tables = (*lake.silvers(), lake.quarantine, lake.sightings)
        for table in tables:
            request.on_step(table.path.name)
            counts[table.path.name] = table.drop_client(client_id)
        folders = {
            "bronze": lake.bronze.root / client_id,
            "vault": lake.vault.root / f"client_id={client_id}",
            "reports": platform.places.output / "reports" / client_id,
            "ledger": lake.erasures.root / client_id,
        }
        for name, folder in folders.items():
            request.on_step(name)
            counts[name] = sum(1 for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
            remove_tree(folder)
        left = sum(1 for folder in folders.values() if folder.exists())
        left += sum(len(t.files_of(client_id)) for t in tables)
        if left:
            raise IncompleteError(f"{left} files or folders of {client_id} could not be deleted; run this again.")
        certificate = _certificate(platform, client_id, "client", request, {
            "erased": counts, "keys_destroyed": True, "left": left, "promise": _CLIENT_PROMISE,
        })  # fmt: skip
        _publish(platform, client_id, certificate)
    return certificate


def set_hold(platform: Platform, client_id: str, member_id: str, reason: str) -> bool:
    """Put a legal hold on a member: nobody can erase it until it is released. Whether silver has that member.

    Raises:
        UsageError: the reason, which the chain of events keeps for good, is not one short line of text.
    """
    reason = reason_given(reason, _LONGEST_REASON)
    _keyring_of_all(platform, client_id)
    entry = platform.lake.holds.entry(client_id, member_id)
    platform.lake.holds.put(client_id, entry, {"at": _now(), "by": actor(), "reason": reason})
    platform.lake.events.append(client_id, "legal hold", "", {"who": actor(), "purpose": reason})
    platform = platform.current(client_id)
    token = Member.of(platform, client_id, member_id).token
    return bool(platform.lake.silver_of(client_id).frame(["member_token"], pl.col("member_token") == token).height)


def release_hold(platform: Platform, client_id: str, member_id: str) -> None:
    """Take the legal hold off a member.

    Raises:
        UsageError: there is none.
    """
    _keyring_of_all(platform, client_id)
    entry = platform.lake.holds.entry(client_id, member_id)
    if platform.lake.holds.note(client_id, entry) is None:
        raise UsageError("There is no legal hold on this member.")
    platform.lake.holds.take_back(client_id, entry)
    platform.lake.events.append(client_id, "legal hold released", "", {"who": actor()})


def _noticed(output: Path, note: Mapping[str, Any]) -> list[Path]:
    """The change data that an erasure left for a while, wherever the installation is now."""
    return [place_of(text) if "://" in text else output / text for text in note["notices"]]


def drop_notices(platform: Platform) -> int:
    """Delete the change data of removals whose time is over; returns how many files. For maintenance."""
    dropped, ledger = 0, platform.lake.erasures
    for client_id in sorted(p.name for p in ledger.root.iterdir() if p.is_dir()) if ledger.root.is_dir() else ():
        for entry in ledger.entries(client_id):
            note = ledger.note(client_id, entry) or {}
            if note.get("notices") and datetime.fromisoformat(note["notice_until"]) <= datetime.now(UTC):
                for path in _noticed(platform.places.output, note):
                    dropped += path.exists()
                    path.unlink(missing_ok=True)
                ledger.put(client_id, entry, note | {"notices": []})
    return dropped


# --- a member ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Removed:
    """What was removed where, silver's version after it, and the change data that says so."""

    counts: Mapping[str, int]
    version: int | None
    notices: list[Path]


def _remove(platform: Platform, member: Member, request: Request) -> _Removed:
    tell, lake, client_id = request.on_step, platform.lake, member.client_id
    tell("silver")
    table = lake.silver_of(client_id)
    before = table.files_of(client_id)
    silver, version = _from_silver(platform, member)
    notices = [p for p in table.files_of(client_id) - before if "_change_data" in p.parts]
    tell("bronze")
    deliveries = records = 0
    landed = [(path, delivery_at(platform, client_id, path, name)) for path, name in landed_of(platform, client_id)]
    for name in lake.bronze.unfinished(client_id):
        sent = parse_file_name(name, [client_id], first_date=date.min, today=date.max)
        lake.bronze.finish(sent, platform.clients.clients[client_id])
    for registered in list(lake.bronze.of_client(client_id)):
        found = take_out_of_bronze(platform, registered.delivery, member.names)
        if found.lines:
            deliveries, records = deliveries + 1, records + len(found.lines)
    for stray in lake.bronze.stray(client_id):
        stray.unlink()
    tell("quarantine")
    sealed = _from_quarantine(platform, member)
    tell("vault")
    values = lake.vault.take_out(client_id, member.token)
    tell("sightings")
    seen = lake.sightings.frame(["member_token"], _mine(member)).height
    row = pl.DataFrame({"client_id": [client_id], "member_token": [member.token]})
    if seen:
        lake.sightings.update_client(client_id, ["member_token"], row, delete=True)
    tell("landing zone")
    gone = _from_landing(platform, member, landed)
    counts = {"silver": silver, "deliveries": deliveries, "records": records, "rejected_records": sealed,
              "vault_rows": values, "sightings": seen, "landed_files": gone}  # fmt: skip
    return _Removed(counts, version, notices)


def _mine(member: Member) -> pl.Expr:
    return (pl.col("client_id") == member.client_id) & (pl.col("member_token") == member.token)


def _from_silver(platform: Platform, member: Member) -> tuple[int, int | None]:
    """Remove the member's row; even without one there is a commit, so that no attempt begun before can commit."""
    silver = platform.lake.silver_for(member.client_id)
    if not silver.exists():
        return 0, None

    def attempt() -> tuple[int, int]:
        snapshot = Snapshot(silver.snapshot(), member.client_id)
        empty = pl.scan_delta(snapshot.table).head(0).collect()
        there = pl.scan_delta(snapshot.table).filter(_mine(member)).select(pl.len()).collect().item()
        row = {"client_id": member.client_id, "member_token": member.token, "_change": GONE}
        rows = [empty.with_columns(_change=pl.lit("")), *([pl.DataFrame([row])] if there else [])]
        return there, silver.commit(snapshot, {}, pl.concat(rows, how="diagonal_relaxed"))

    return retry(attempt)


def _from_quarantine(platform: Platform, member: Member) -> int:
    table, client_id = platform.lake.quarantine, member.client_id
    rows = table.frame(None, (pl.col("client_id") == client_id) & pl.col("sealed_record").is_not_null())
    hit: list[pl.DataFrame] = []
    for (file_id,), part in rows.group_by("file_id"):
        registered = platform.lake.bronze.find(client_id, str(file_id))
        if registered is None:
            continue
        sealed = zip(part["record_no"], part["sealed_record"], strict=True)
        raw = [open_record(platform.keyring, client_id, str(file_id), number, record) for number, record in sealed]
        held = hold_ids(raw, reading_client(platform, registered.delivery), member.names)
        # An id that a transform makes stands in no field: bronze, which was read with it, has told the record's number.
        told = part["record_no"].is_in(registered.facts.erased_records)
        hit.append(part.filter(pl.Series(held, dtype=pl.Boolean) | told))
    erased = pl.concat([rows.clear(), *hit])
    emptied = erased.with_columns(sealed_record=pl.lit(None, pl.Binary), state=pl.lit(ERASED))
    table.update_client(client_id, ["file_id", "record_no"], emptied)
    return erased.height


def _from_landing(platform: Platform, member: Member, landed: list[tuple[Path, Delivery | None]]) -> int:
    """Delete landed files that speak of the member, if bronze has what is left of them; others will be silenced."""
    client = platform.clients.clients.get(member.client_id)
    known = [path for path, delivery in landed if delivery and path.exists()] if client else []
    gone = [path for path in known if client and find_in_file(platform, path, client, member.names).lines]
    for path in gone:
        path.unlink()
    return len(gone)


# --- both ----------------------------------------------------------------------------------------------------------


@contextmanager
def _alone(platform: Platform, client_id: str, request: Request) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(platform.lake.exclusion.maintenance())
        waiting = stack.enter_context(
            platform.lake.exclusion.alone(
                client_id, wait=request.wait, on_wait=lambda: request.on_step("waiting for ingests that are at work")
            )
        )
        yield waiting


def _may_be_erased(platform: Platform, client_id: str) -> None:
    _keyring_of_all(platform, client_id)
    client = platform.clients.clients.get(client_id)
    if client is None and platform.clients.problems:  # one of them may be its own, whatever the file is called
        broken = ", ".join(sorted({problem.file.name for problem in platform.clients.problems}))
        raise UsageError(
            f"There is no telling whether there is a legal hold on {client_id} while {broken} cannot be used; mend it."
        )
    if client and client.config.legal_hold:
        raise UsageError(f"There is a legal hold on {client_id}: {client.config.legal_hold}.")


def _member_may_be_erased(platform: Platform, client_id: str) -> None:
    _may_be_erased(platform, client_id)
    if client_id not in platform.clients.clients:
        raise UsageError(
            f"There is no config of {client_id}, which tells how its files are read; put its YAML back, with "
            '"active: false" if it sends no more.'
        )


def _keyring_of_all(platform: Platform, client_id: str) -> None:
    if platform.keyring.role is not None:
        raise KeyringError("This needs the installation's own keyring; a role's does not open everything.")
    if client_id not in platform.clients.clients and client_id not in platform.lake.bronze.clients():
        known = ", ".join(sorted({*platform.clients.clients, *platform.lake.bronze.clients()}))
        raise UsageError(f"There is no client {client_id}; there is {known}.")


def _certificate(
    platform: Platform, client_id: str, kind: str, request: Request, said: Mapping[str, Any]
) -> dict[str, Any]:
    lake = platform.lake
    tables = {"silver": lake.silver_of(client_id), "quarantine": lake.quarantine, "sightings": lake.sightings}
    head = {
        "certificate": "erasure/1",
        "id": secrets.token_hex(8),
        "client_id": client_id,
        "kind": kind,
        "finished_at": _now(),
        "by": actor(),
        "software": f"healthingest {version('healthingest')}",
        "keyring_id": platform.keyring.keyring_id,
        "table_versions": {name: table.version() for name, table in tables.items()},
        "backups": {"until": request.backups_until, "object_versions": _versions_kept(platform)},
    }
    return signed(platform.keyring.narrowed(["certificate"], [SHARED]), head | dict(said))


def _versions_kept(platform: Platform) -> str:
    if isinstance(platform.places.output, ObjectPath):
        return "not known here: if the bucket keeps versions or snapshots, its lifecycle rules must end those too"
    return "none: the tables lie on a file system"


def _publish(platform: Platform, client_id: str, certificate: Mapping[str, Any]) -> None:
    folder = platform.places.output / "checkpoint" / "certificates"
    put(folder / f"{certificate['id']}.json", json.dumps(certificate, indent=1).encode())
    details = {"who": actor(), "certificate": certificate["id"], "what": certificate["kind"]}
    platform.lake.events.append(client_id, "erased", "", details)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
