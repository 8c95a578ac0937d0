"""The keyring: one secret per purpose, in a file outside every data folder, and the keys derived from them.

What belongs here: making, loading and checking the keyring, and HKDF derivation. What does not: using the keys
(`tokens`, `seal`, `vault_file`). Losing the keyring loses the values; a new one made silently would split every
member in two, so a data folder remembers the id of its keyring and refuses any other.
"""

import contextlib
import json
import os
import secrets
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from healthingest.errors import KeyringError
from healthingest.places import Places

#: What each key is for; one never serves two purposes.
PURPOSES = (
    "member_token", "content_hash", "file", "rejected", "bronze", "vault/footer", "vault/identity", "vault/contact",
)  # fmt: skip
#: File in the output folder that names the keyring its data was written with. Random, says nothing of the keys.
ID_FILE = "keyring.id"
#: Folders of the output that hold what only the right keyring can read or continue.
_DATA = ("bronze", "checkpoint", "quarantine", "silver", "vault")
_FORMAT = 1
_KEY_BYTES = 32


@dataclass(frozen=True)
class Keyring:
    """Loaded keys; never printed, pickled or logged."""

    keyring_id: str
    created_at: str
    _keys: dict[str, bytes] = field(repr=False)

    def derive(self, purpose: str, *context: str) -> bytes:
        """32 bytes for one purpose and context (client, file, ...), by HKDF-SHA256 (RFC 5869).

        Raises:
            KeyringError: this keyring holds no key of that purpose.
        """
        key = self._keys.get(purpose)
        if key is None:
            raise KeyringError(f"This keyring holds no key for {purpose}; use a keyring that may open it.")
        info = "\x1f".join(("healthingest/1", purpose, *context)).encode()
        return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(key)

    def holds(self, purpose: str) -> bool:
        """Whether values of that purpose can be opened."""
        return purpose in self._keys

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse to be pickled: a pickle would carry the keys to disk."""
        raise TypeError("a keyring cannot be pickled")


def init_keyring(places: Places) -> Path:
    """Make a new keyring, mode 0600, never over an existing one.

    Raises:
        KeyringError: one exists, its place is inside a data folder, or the output holds data of another keyring.
    """
    _refuse_data_folder(places)
    if places.keyring.exists():
        raise KeyringError(f"A keyring exists at {places.keyring}; it is left as it is.")
    remembered = _remembered_id(places)
    if remembered is not None:
        raise KeyringError(_missing(places))
    body = {
        "format": _FORMAT,
        "keyring_id": secrets.token_hex(8),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "keys": {purpose: {"1": secrets.token_hex(_KEY_BYTES)} for purpose in PURPOSES},
    }
    places.keyring.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = places.keyring.with_name(f".{places.keyring.name}.{secrets.token_hex(4)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "w") as file:
            json.dump(body, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, places.keyring)  # fails if it exists: two first starts cannot make two keyrings
    except FileExistsError:
        raise KeyringError(f"A keyring exists at {places.keyring}; it is left as it is.") from None
    finally:
        temporary.unlink()
    return places.keyring


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
    _refuse_data_folder(places)
    if not places.keyring.exists():
        raise KeyringError(_missing(places))
    try:
        mode = places.keyring.stat().st_mode & 0o777
        body = json.loads(places.keyring.read_text())
        keys = {purpose: bytes.fromhex(versions["1"]) for purpose, versions in body["keys"].items()}
        keyring = Keyring(str(body["keyring_id"]), str(body["created_at"]), keys)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise KeyringError(f"The keyring at {places.keyring} cannot be read; restore it from its backup.") from None
    if mode & 0o077:
        raise KeyringError(f"The keyring at {places.keyring} is open to others; run: chmod 600 {places.keyring}")
    if any(len(key) != _KEY_BYTES for key in keys.values()) or len(set(keys.values())) != len(keys):
        raise KeyringError(f"The keyring at {places.keyring} holds damaged keys; restore it from its backup.")
    remembered = _remembered_id(places)
    if remembered not in (None, keyring.keyring_id):
        raise KeyringError(
            f"{places.output} was written with keyring {remembered}, but {places.keyring} is {keyring.keyring_id}; "
            "set HEALTHINGEST_KEYRING to the right one."
        )
    return keyring


def _missing(places: Places) -> str:
    remembered = _remembered_id(places)
    if remembered is None:
        return f"There is no keyring at {places.keyring}; make it once: healthingest keys init"
    return (
        f"There is no keyring at {places.keyring}, but {places.output} holds data written with keyring {remembered}; "
        "restore it from its backup, a new one could not read the data."
    )


def keyring_status(places: Places) -> dict[str, Any]:
    """What a person may know of the keyring: place, id, age and purposes; never key material.

    Raises:
        KeyringError: as `load_keyring`.
    """
    keyring = load_keyring(places)
    return {
        "path": str(places.keyring),
        "keyring_id": keyring.keyring_id,
        "created_at": keyring.created_at,
        "purposes": sorted(p for p in PURPOSES if keyring.holds(p)),
        "missing": sorted(p for p in PURPOSES if not keyring.holds(p)),
        "mode": oct(places.keyring.stat().st_mode & 0o777),
        "output_bound": _remembered_id(places) == keyring.keyring_id,
    }


def _refuse_data_folder(places: Places) -> None:
    for folder in (places.output, places.landing, places.configs):
        if places.keyring.is_relative_to(folder):
            raise KeyringError(f"The keyring must not lie in the data folder {folder}; set HEALTHINGEST_KEYRING.")


def _remembered_id(places: Places) -> str | None:
    try:
        return (places.output / ID_FILE).read_text().strip()
    except FileNotFoundError:
        # Data without the note (a copy, a lost file) is not a fresh start: fail closed.
        return "unknown" if any((places.output / folder).exists() for folder in _DATA) else None


def _remember(places: Places, keyring: Keyring) -> None:
    note = places.output / ID_FILE
    if note.exists():
        return
    places.output.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = note.with_name(f".{ID_FILE}.{secrets.token_hex(4)}")
    temporary.write_text(keyring.keyring_id + "\n")
    with contextlib.suppress(FileExistsError):
        os.link(temporary, note)  # appears whole or not at all: another first start may be reading it
    temporary.unlink()
