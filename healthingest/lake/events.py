"""What people did to values, told without values: an append-only chain of events per client, with a keyed MAC.

`checkpoint/events/<client>.jsonl`; each line's MAC covers the line and the MAC before it, so that whoever lacks the
key can neither change nor remove an event in the middle. Removing the last ones shows against an anchor: the heads of
all chains, kept elsewhere.
"""

import contextlib
import errno
import fcntl
import hashlib
import hmac
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from healthingest.errors import IncompleteError, UsageError
from healthingest.privacy.keyring import Keyring
from healthingest.storage.objects import ObjectPath

#: Chain of what concerns no single client.
INSTALLATION = "_installation"
_START = "0" * 64
#: Bytes to read of a chain's end first: they hold the last event, but for a very long one.
_END = 64 * 1024


@dataclass(frozen=True)
class Head:
    """How far a chain goes: the number of its events and the MAC of the last."""

    events: int
    mac: str


class Events:
    """All chains of one installation."""

    def __init__(self, root: Path, keyring: Keyring) -> None:
        """Bind the folder `root` and the keyring whose audit key signs and checks."""
        self.root, self._keyring = root, keyring

    def append(self, client_id: str, kind: str, role: str, details: Mapping[str, Any]) -> None:
        """Add one event to a client's chain, for good; `details` hold names and counts, never a value.

        Raises:
            IncompleteError: the chain's last line is damaged, or it is no plain file; nothing is added.
            KeyringError: the keyring has no key for the role's entries.
        """
        self._keyring.audit_key(role)  # before a file is made that no event would go into
        said = {"kind": kind, "role": role, **details}
        if isinstance(self.root, ObjectPath):
            self._append_to_object(self.root / f"{client_id}.jsonl", client_id, said)
            return
        with self._open(client_id) as file:
            line = self._next(client_id, _last(_end_of(file), client_id), said)
            while line:  # of what a disk has no room for it takes the beginning, and refuses the rest only then
                line = line[os.write(file, line) :]
            os.fsync(file)

    def _next(self, client_id: str, last: Head, said: Mapping[str, Any]) -> bytes:
        """The line of the event that follows `last`."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        body = {"no": last.events + 1, "at": at, **said}
        return _line_of(body, self._mac(client_id, str(said["role"]), last.mac, body)) + b"\n"

    def _append_to_object(self, place: ObjectPath, client_id: str, said: Mapping[str, Any]) -> None:
        """Objects cannot grow: the chain is written anew, unless somebody else was faster."""
        while True:
            content, tag = place.read_tagged() or (b"", "")
            line = self._next(client_id, _last(content, client_id), said)
            if place.replace_tagged(content + line, tag) if tag else place.put_new(line):
                return
            if line in ((place.read_tagged() or (b"", ""))[0]):
                return  # it was written, and the answer was lost

    def read(self, client_id: str) -> list[dict[str, Any]]:
        """A client's events, the oldest first.

        Raises:
            IncompleteError: one cannot be read.
        """
        try:
            return [dict(json.loads(line)) for line in self._lines(client_id)]
        except (ValueError, TypeError):
            raise IncompleteError(
                f"An event of {client_id} is damaged; healthingest audit verify says which."
            ) from None

    def clients(self) -> list[str]:
        """Chains that there are."""
        return sorted(path.stem for path in self.root.glob("*.jsonl"))

    def heads(self) -> dict[str, Head]:
        """Where each chain ends: what an anchor keeps."""
        return {c: _last(self._content(c), c) for c in self.clients()}

    def faults(self, anchor: Mapping[str, Head] | None = None) -> list[str]:
        """What is wrong with the chains, a sentence each: changed, missing or foreign events; against an anchor too."""
        found = [fault for client_id in self.clients() for fault in self._faults_of(client_id)]
        for client_id, head in (anchor or {}).items():
            if not head.events or any(f"of {client_id} " in fault for fault in found):
                continue
            events = self.read(client_id)
            if not events:
                found.append(f"The chain of {client_id} is gone; the anchor saw {head.events} events.")
            elif len(events) < head.events or events[head.events - 1].get("mac") != head.mac:
                found.append(f"The chain of {client_id} is not the one that the anchor was taken from.")
        return found

    def _faults_of(self, client_id: str) -> Iterator[str]:
        before = _START
        try:
            lines = self._lines(client_id)
        except IncompleteError as error:
            yield str(error)
            return
        for number, line in enumerate(lines, 1):
            try:
                body = json.loads(line)
                mac, role = body.pop("mac"), body["role"]
                right = hmac.compare_digest(mac, self._mac(client_id, role, before, body)) and body["no"] == number
                # JSON has many ways to say the same, and some (a key twice) that other programs read otherwise.
                right = right and line == _line_of(body, mac)
            except (ValueError, KeyError, TypeError, AttributeError):
                right, mac = False, ""
            if not right:
                yield f"Event {number} of {client_id} was changed, or one before it is missing."
                return
            before = mac

    def _mac(self, client_id: str, role: str, before: str, body: Mapping[str, Any]) -> str:
        said = json.dumps([client_id, before, body], sort_keys=True, ensure_ascii=False).encode()
        return hmac.new(self._keyring.audit_key(role), said, hashlib.sha256).hexdigest()

    def _lines(self, client_id: str) -> list[bytes]:
        return self._content(client_id).split(b"\n")[:-1]

    def _content(self, client_id: str) -> bytes:
        """A chain's whole lines; what a writer that died left without its line's end is no event."""
        if isinstance(self.root, ObjectPath):
            return ((self.root / f"{client_id}.jsonl").read_tagged() or (b"", ""))[0]
        try:
            fd = _open_plain(self.root / f"{client_id}.jsonl", os.O_RDONLY)
        except FileNotFoundError:
            return b""
        with os.fdopen(fd, "rb") as file:
            content = file.read()
        return content[: content.rfind(b"\n") + 1]

    @contextlib.contextmanager
    def _open(self, client_id: str) -> Iterator[int]:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = 0o660 if _shared(self.root) else 0o600
        fd = _open_plain(self.root / f"{client_id}.jsonl", os.O_RDWR | os.O_APPEND | os.O_CREAT, mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)


def _line_of(body: Mapping[str, Any], mac: str) -> bytes:
    return json.dumps({**body, "mac": mac}, ensure_ascii=False).encode()


def _open_plain(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a chain, never through a link: who may only add events could have us change what only we may change.

    Raises:
        IncompleteError: something else than a plain file lies there.
    """
    odd = IncompleteError(
        f"The chain of {path.stem} is no plain file; look at who made {path}, and restore it from its backup."
    )
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.EISDIR, errno.ENXIO}:
            raise odd from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise odd
    return fd


def _end_of(fd: int) -> bytes:
    """At least the last event; what a writer that died left without its line's end was never acknowledged and goes."""
    size, wanted = os.fstat(fd).st_size, _END
    while True:
        start = max(0, size - wanted)
        content = os.pread(fd, size - start, start)
        whole = content.rfind(b"\n") + 1
        if not start or b"\n" in content[: max(whole - 1, 0)]:
            break
        wanted *= 2
    if whole < len(content):
        os.ftruncate(fd, start + whole)
    return content[:whole]


def _last(content: bytes, client_id: str) -> Head:
    if not content:
        return Head(0, _START)
    try:
        body = json.loads(content.split(b"\n")[-2])
        return Head(int(body["no"]), str(body["mac"]))
    except (ValueError, KeyError, TypeError):
        raise IncompleteError(
            f"The last event of {client_id} is damaged; look at it with healthingest audit verify."
        ) from None


def _shared(folder: Path) -> bool:
    """Whether a folder's access control list (deploy/posix/setup.sh) says who gets at its new files."""
    return hasattr(os, "listxattr") and "system.posix_acl_default" in os.listxattr(folder)


def write_anchor(heads: Mapping[str, Head], target: Path) -> None:
    """Write heads to a new file.

    Raises:
        UsageError: something lies there already.
    """
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{target} exists; it is left as it is.") from None
    with os.fdopen(fd, "w") as file:
        json.dump({client_id: asdict(head) for client_id, head in heads.items()}, file, indent=1)


def anchor_of(path: Path) -> dict[str, Head]:
    """Read what `write_anchor` wrote.

    Raises:
        UsageError: it is no anchor.
    """
    try:
        said = json.loads(path.read_text())
        return {client_id: Head(int(head["events"]), str(head["mac"])) for client_id, head in said.items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        raise UsageError(f"{path} is no anchor as healthingest audit anchor writes it.") from None
