"""The keyring's file: made once, loaded and checked, given a new client's keys; outside every data folder.

Losing the keyring loses the values; a new one made silently would split every member in two, so a data folder
remembers the id of its keyring and refuses any other, and a client that has data never gets a second set of keys.
"""

import base64
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from healthingest.errors import KeyringError, UsageError
from healthingest.places import Places
from healthingest.privacy.certificate import public_key
from healthingest.privacy.kek import kek_of
from healthingest.privacy.keyring import (
    CLIENT_PURPOSES,
    KEY_BYTES,
    LASTING_PURPOSES,
    SHARED,
    SHARED_PURPOSES,
    Keyring,
    Keys,
    vault_purpose,
)
from healthingest.privacy.known_answers import check_primitives
from healthingest.storage.files import put, put_new

#: File in the output folder that names the keyring its data was written with. Random, says nothing of the keys.
ID_FILE = "keyring.id"
#: File beside it with the latest generation of each client whose keys were rotated.
GENERATIONS_FILE = "keyring.generations"
#: Folders of the output that hold what only the right keyring can read or continue.
#: Alerts and locks are not among it: the watch may look at an installation before it has any keys.
_DATA = (
    "bronze", "quarantine", "silver", "vault", "checkpoint/audit", "checkpoint/certificates", "checkpoint/decisions",
    "checkpoint/erasures", "checkpoint/events", "checkpoint/holds", "checkpoint/sightings",
)  # fmt: skip
#: Folders of a client's own that hold, below the output folder, what only its keys can read or continue.
_DATA_OF_CLIENT = ("bronze/{}", "vault/client_id={}", "checkpoint/erasures/{}", "checkpoint/holds/{}")
_FORMAT = 2
_NONCE = 12


# --- making -------------------------------------------------------------------------------------------------------


def init_keyring(places: Places, kek: str | None = None) -> Path:
    """Make a new keyring, mode 0600, never over an existing one; locked by the key that `kek` names, if it is given.

    Raises:
        KeyringError: one exists, its place is inside a data folder, the output holds data of another keyring, or the
            key-encryption key cannot be used.
    """
    check_primitives()
    _refuse_data_folder(places)
    if places.keyring.exists():
        raise KeyringError(f"A keyring exists at {places.keyring}; it is left as it is.")
    if _remembered_id(places) is not None:
        raise KeyringError(_missing(places))
    keyring = Keyring(secrets.token_hex(8), _now(), {SHARED: _new_keys(SHARED_PURPOSES)})
    body = _own_body(places.keyring, keyring, kek)
    with _alone(places.keyring), _written_beside(places.keyring, body) as temporary:
        try:
            os.link(temporary, places.keyring)  # fails if it exists: two first starts cannot make two keyrings
        except FileExistsError:
            raise KeyringError(f"A keyring exists at {places.keyring}; it is left as it is.") from None
    return places.keyring


def give_keys(places: Places, keyring: Keyring, clients: Mapping[str, Iterable[str]]) -> Keyring:
    """The keyring with keys for each client and its column groups; what was missing is made, stored and said on stderr.

    What may be lost instead (the client has data that it would be for) is not made anew, nor for a client whose keys
    were destroyed, nor where the keyring cannot be written: whatever needs such a key says so. A role's keyring is
    never added to.
    """
    new = _lacking(places, keyring, clients) if keyring.role is None else {}
    if not new:
        return keyring
    first = not keyring.clients

    def add(now: Keyring) -> Keyring:
        keys = {scope: dict(held) for scope, held in now.keys.items()}
        for client, purposes in _lacking(places, now, clients).items():
            keys[client] = keys.get(client, {}) | _new_keys(purposes, max(now.latest(client), 1))
        return replace(now, keys=keys)

    try:
        changed = _change(places, add)
    except OSError as error:  # a key service's mount may be read-only
        if error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
            raise
        return keyring
    if not first:
        sys.stderr.write(
            f"healthingest: keys of {', '.join(new)} were added to {places.keyring}. Back it up again: without them "
            "their values cannot be read.\n"
        )
    return changed


def add_generation(places: Places, client: str) -> Keyring:
    """Give a client a further generation of all its keys that are ever rotated, and have the data remember it."""

    def add(now: Keyring) -> Keyring:
        new = _new_keys((p for p in now.keys[client] if p not in LASTING_PURPOSES), now.latest(client) + 1)
        held = {purpose: {**versions, **new.get(purpose, {})} for purpose, versions in now.keys[client].items()}
        return replace(now, keys={**now.keys, client: held})

    keyring = _change(places, add)
    remember_generation(places, keyring, client)
    return keyring


def drop_generations(places: Places, client: str) -> Keyring:
    """Forget all generations of a client's keys but the latest, for good."""

    def drop(now: Keyring) -> Keyring:
        held = {
            purpose: versions if purpose in LASTING_PURPOSES else {max(versions): versions[max(versions)]}
            for purpose, versions in now.keys[client].items()
        }
        return replace(now, keys={**now.keys, client: held})

    return _change(places, drop)


def remember_generation(places: Places, keyring: Keyring, client: str) -> None:
    """Have the data folder refuse, from now on, copies of the keyring that lack a client's latest keys."""
    noted = _remembered_generations(places) | {client: keyring.latest(client)}
    put(places.output / GENERATIONS_FILE, json.dumps(noted).encode())


def stamp(places: Places) -> tuple[int, int, int]:
    """Tells one content of the keyring's file from the next; zeros where there is none."""
    try:
        info = places.keyring.stat()
    except FileNotFoundError:
        return 0, 0, 0
    return info.st_ino, info.st_mtime_ns, info.st_size


def destroy_keys(places: Places, client: str) -> Keyring:
    """Forget a client's keys for good, and that they were there; a client whose keys are gone never gets others."""

    def forget(now: Keyring) -> Keyring:
        keys = {scope: held for scope, held in now.keys.items() if scope != client}
        return replace(now, keys=keys, destroyed={**now.destroyed, client: now.destroyed.get(client, _now()[:10])})

    return _change(places, forget)


def _lacking(places: Places, keyring: Keyring, clients: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Client -> the purposes that it needs keys for and may get them."""
    wanted = {
        client: [p for p in (*CLIENT_PURPOSES, *sorted(map(vault_purpose, groups))) if not keyring.holds(p, client)]
        for client, groups in clients.items()
    }
    may_get = {
        client: [p for p in purposes if _is_new(places, keyring, client, p)]
        for client, purposes in wanted.items() if purposes and client not in keyring.destroyed
    }  # fmt: skip
    return {client: purposes for client, purposes in may_get.items() if purposes}


def _is_new(places: Places, keyring: Keyring, client: str, purpose: str) -> bool:
    """Whether nothing of a client can be under a key that is not held: it was never made, and is not lost."""
    if not any((places.output / folder.format(client)).exists() for folder in _DATA_OF_CLIENT):
        return True
    return (
        client in keyring.keys
        and purpose not in CLIENT_PURPOSES
        and not _vault_may_hold(places, keyring, client, purpose)
    )


def _vault_may_hold(places: Places, keyring: Keyring, client: str, purpose: str) -> bool:
    """Whether a client's vault has values of a column group, or cannot be looked at."""
    from polars.exceptions import PolarsError  # here: it takes long to load, and keys are seldom new

    from healthingest.privacy.vault_file import groups_of

    parts = (places.output / "vault" / f"client_id={client}").glob("*.parquet")
    try:
        return any(purpose in map(vault_purpose, groups_of(p, keyring, client, name=p.name)) for p in parts)
    except (KeyringError, OSError, PolarsError):
        return True


# --- opening ------------------------------------------------------------------------------------------------------


def open_keyring(places: Places) -> Keyring:
    """Load the keyring; in dev, make one on the very first use and say so once on stderr.

    Raises:
        KeyringError: it is missing (prod, or data exists), unreadable, readable by others, or another data's keyring.
    """
    if not places.keyring.exists():
        if places.env == "prod":
            raise KeyringError(_missing(places))
        with contextlib.suppress(FileExistsError):
            try:
                init_keyring(places)
            except KeyringError:
                if not places.keyring.exists():
                    raise
            else:
                sys.stderr.write(
                    f"healthingest: a development keyring was made at {places.keyring}. "
                    "Back it up: without it the protected values cannot be read.\n"
                )
    keyring = load_keyring(places)
    _remember(places, keyring)
    return keyring


def load_keyring(places: Places) -> Keyring:
    """Read and check the keyring file, changing nothing.

    Raises:
        KeyringError: as `open_keyring`.
    """
    check_primitives()
    _refuse_data_folder(places)
    if not places.keyring.exists():
        raise KeyringError(_missing(places))
    keyring = _parse(places.keyring, _read(places.keyring))
    remembered = _remembered_id(places)
    if remembered not in (None, keyring.keyring_id):
        raise KeyringError(
            f"{places.output} was written with keyring {remembered}, but {places.keyring} is {keyring.keyring_id}; "
            "set HEALTHINGEST_KEYRING to the right one."
        )
    for client, generation in _remembered_generations(places).items():
        if 0 < keyring.latest(client) < generation:
            raise KeyringError(
                f"{places.keyring} lacks the latest keys of {client}, which were rotated since; restore the latest "
                "backup, or have the role's keyring issued anew."
            )
    return keyring


def keyring_status(places: Places) -> dict[str, Any]:
    """What a person may know of the keyring: place, id, age, lock, purposes, public key; never a secret one.

    Raises:
        KeyringError: as `load_keyring`.
    """
    keyring = load_keyring(places)
    missing = [p for p in SHARED_PURPOSES if not keyring.holds(p)]
    missing += [f"{c}: {p}" for c in keyring.clients for p in CLIENT_PURPOSES if not keyring.holds(p, c)]
    return {
        "path": str(places.keyring),
        "keyring_id": keyring.keyring_id,
        "role": keyring.role,
        "created_at": keyring.created_at,
        "locked_by": _read(places.keyring).get("kek"),
        "clients": keyring.clients,
        "generations": [f"{c}: {_generations_of(keyring, c)}" for c in keyring.clients],
        "destroyed": sorted(keyring.destroyed),
        "purposes": sorted({purpose for held in keyring.keys.values() for purpose in held}),
        "missing": missing if keyring.role is None else [],  # a role's is to lack most
        "mode": oct(places.keyring.stat().st_mode & 0o777),
        "certificate_key": public_key(keyring) if keyring.holds("certificate") else None,
        "output_bound": _remembered_id(places) == keyring.keyring_id,
    }


def _generations_of(keyring: Keyring, client: str) -> str:
    held = {g for p, versions in keyring.keys[client].items() if p not in LASTING_PURPOSES for g in versions}
    return " and ".join(map(str, sorted(held)))


# --- copies -------------------------------------------------------------------------------------------------------


def check_copy(places: Places, target: Path) -> None:
    """Refuse to write a copy of keys where each copy of the data would hold it too.

    Raises:
        UsageError: the target lies in a data folder.
    """
    if folder := _data_folder_of(places, target.resolve()):
        raise UsageError(f"A copy of keys must not lie in the data folder {folder}; keep it apart from the data.")


def write_copy(keyring: Keyring, target: Path, kek: str | None) -> None:
    """Write a keyring (a role's, a backup) to a new file, mode 0600.

    Raises:
        KeyringError: something lies there already.
    """
    with _written_beside(target, _body(keyring, kek)) as temporary:
        try:
            os.link(temporary, target)
        except FileExistsError:
            raise KeyringError(f"{target} exists; it is left as it is.") from None


def relock(places: Places, kek: str | None) -> Keyring:
    """Lock the keyring by another key-encryption key, or (None) by none.

    Raises:
        KeyringError: the old or the new key cannot be used, or only to lock; the keyring is as it was.
    """
    return _change(places, lambda keyring: keyring, kek=kek)


# --- the file -----------------------------------------------------------------------------------------------------

_UNCHANGED = object()


def _change(places: Places, change: Callable[[Keyring], Keyring], kek: object = _UNCHANGED) -> Keyring:
    """Replace the keyring by what `change` makes of its present content, one process at a time."""
    with _alone(places.keyring):
        body = _read(places.keyring)
        changed = change(_parse(places.keyring, body))
        locked_by = body.get("kek") if kek is _UNCHANGED else kek
        new = _own_body(places.keyring, changed, locked_by)  # type: ignore[arg-type]
        with _written_beside(places.keyring, new) as temporary:
            temporary.replace(places.keyring)
    return changed


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Be the only one that writes a keyring; what writers that were killed left of it, with its keys, goes."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        for left in path.parent.glob(f".{path.name}.{'[0-9a-f]' * 8}"):
            left.unlink()
        yield
    finally:
        os.close(folder)


def _own_body(path: Path, keyring: Keyring, kek: str | None) -> dict[str, Any]:
    """The body of the installation's own keyring: not to be written if its lock closes but does not open again."""
    body = _body(keyring, kek)
    _parse(path, body)
    return body


def _body(keyring: Keyring, kek: str | None) -> dict[str, Any]:
    head = {
        "format": _FORMAT,
        "keyring_id": keyring.keyring_id,
        "role": keyring.role,
        "created_at": keyring.created_at,
        "destroyed": dict(keyring.destroyed),
    }
    keys = {
        scope: {p: {str(g): key.hex() for g, key in versions.items()} for p, versions in held.items()}
        for scope, held in keyring.keys.items()
    }
    if kek is None:
        return head | {"check": _check_of(head, keys), "keys": keys}
    data_key, nonce = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(_NONCE)
    sealed = nonce + AESGCM(data_key).encrypt(nonce, json.dumps(keys).encode(), _bound_to(head))
    wrapped = kek_of(kek).wrap(data_key)
    return head | {"kek": kek, "wrapped": _text(wrapped), "sealed": _text(sealed)}


def _parse(path: Path, body: Mapping[str, Any]) -> Keyring:
    if body.get("format") == 1:
        raise KeyringError(f"The keyring at {path} is of an older format; this version cannot use it or its data.")
    try:
        plain = body["keys"] if "sealed" not in body else _unsealed(path, body)
        sound = "check" not in body or body["check"] == _check_of(body, plain)
        keys: Keys = {
            scope: {p: {int(g): bytes.fromhex(key) for g, key in versions.items()} for p, versions in held.items()}
            for scope, held in plain.items()
        }
        keyring = Keyring(str(body["keyring_id"]), str(body["created_at"]), keys, body["role"], dict(body["destroyed"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KeyringError(f"The keyring at {path} cannot be read; restore it from its backup.") from None
    every = [key for held in keys.values() for versions in held.values() for key in versions.values()]
    hollow = any(not versions for held in keys.values() for versions in held.values())
    if not sound or hollow or any(len(key) != KEY_BYTES for key in every) or len(set(every)) != len(every):
        raise KeyringError(f"The keyring at {path} holds damaged keys; restore it from its backup.")
    return keyring


def _unsealed(path: Path, body: Mapping[str, Any]) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    data_key = kek_of(body["kek"]).unwrap(base64.b64decode(body["wrapped"]))
    sealed = base64.b64decode(body["sealed"])
    try:
        plain = AESGCM(data_key).decrypt(sealed[:_NONCE], sealed[_NONCE:], _bound_to(body))
    except InvalidTag:
        raise KeyringError(f"The keyring at {path} was changed; restore it from its backup.") from None
    return cast("Mapping[str, Mapping[str, Mapping[str, str]]]", json.loads(plain))


def _check_of(head: Mapping[str, Any], keys: object) -> str:
    """Tells a keyring without lock of which a digit has changed: another key would make other tokens, unnoticed."""
    return hashlib.sha256(_bound_to(head) + json.dumps(keys, sort_keys=True).encode()).hexdigest()


def _bound_to(body: Mapping[str, Any]) -> bytes:
    return json.dumps([body[k] for k in ("format", "keyring_id", "role", "created_at", "destroyed")]).encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        mode = path.stat().st_mode & 0o777
        body = json.loads(path.read_text())
    except (OSError, ValueError):
        body, mode = None, 0
    if not isinstance(body, dict):
        raise KeyringError(f"The keyring at {path} cannot be read; restore it from its backup.")
    if mode & 0o077:
        raise KeyringError(f"The keyring at {path} is open to others; run: chmod 600 {path}")
    return body


@contextlib.contextmanager
def _written_beside(target: Path, body: Mapping[str, Any]) -> Iterator[Path]:
    """A temporary file with the body, on disk for good; it is gone afterwards unless it was moved."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(body, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync(target.parent)  # its new name too, before anything is put under keys that only it holds
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _new_keys(purposes: Iterable[str], generation: int = 1) -> dict[str, dict[int, bytes]]:
    return {
        purpose: {1 if purpose in LASTING_PURPOSES else generation: secrets.token_bytes(KEY_BYTES)}
        for purpose in purposes
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


# --- the data's note ----------------------------------------------------------------------------------------------


def _missing(places: Places) -> str:
    remembered = _remembered_id(places)
    if remembered is None:
        return f"There is no keyring at {places.keyring}; make it once: healthingest keys init"
    return (
        f"There is no keyring at {places.keyring}, but {places.output} holds data written with keyring {remembered}; "
        "restore it from its backup, a new one could not read the data."
    )


def _refuse_data_folder(places: Places) -> None:
    if folder := _data_folder_of(places, places.keyring):
        raise KeyringError(f"The keyring must not lie in the data folder {folder}; set HEALTHINGEST_KEYRING.")


def _data_folder_of(places: Places, path: Path) -> Path | None:
    return next((f for f in (places.output, places.landing, places.configs) if path.is_relative_to(f)), None)


def _remembered_id(places: Places) -> str | None:
    try:
        return (places.output / ID_FILE).read_text().strip()
    except FileNotFoundError:
        # Data without the note (a copy, a lost file) is not a fresh start: fail closed.
        return "unknown" if any((places.output / folder).exists() for folder in _DATA) else None


def _remembered_generations(places: Places) -> dict[str, int]:
    note = places.output / GENERATIONS_FILE
    try:
        return {str(client): int(g) for client, g in json.loads(note.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise KeyringError(
            f"{note}, by which old copies of the keyring are told, cannot be read; restore it from its backup, or "
            f"delete it if {places.keyring} is sure to be the latest."
        ) from None


def _remember(places: Places, keyring: Keyring) -> None:
    note = places.output / ID_FILE
    if note.exists():
        return
    places.output.mkdir(parents=True, exist_ok=True, mode=0o700)
    put_new(note, f"{keyring.keyring_id}\n".encode())
