"""Bronze: every delivery's bytes as received, immutable, compressed and sealed, with a manifest beside them.

`bronze/<client>/<file_id>.sealed` and `<file_id>.json`; the manifest is written last and makes the delivery exist.
A slot's delivery numbers are reserved by creating `slots/<file_name>/<n>` exclusively, so no two deliveries share one,
and under the slot's lock while the landed file still is the one that was read: so they follow the order of arrival.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import pyarrow as pa

from healthingest.contracts.clients import Client
from healthingest.errors import HealthingestError, UnroutableError
from healthingest.landing.names import FileName
from healthingest.landing.preflight import Facts, Preflight
from healthingest.model import Delivery
from healthingest.privacy import tokens
from healthingest.privacy.keyring import Keyring
from healthingest.privacy.seal import SealedReader, SealedWriter
from healthingest.storage import lease
from healthingest.storage.files import new_file, put, put_new
from healthingest.storage.objects import ObjectPath

_BLOCK = 4 * 1024 * 1024
_SEALED = ".sealed"
#: Beside a sealed copy that is not registered yet: the delivery whose bytes they are.
_ORIGIN = ".origin"
#: The same of one with mended records: who mended them.
_REPAIR = ".repair"
_CHANGED = "The file changed while it was read; it is taken once it is complete."
_UNREADABLE = "The file cannot be opened; check that it still exists and its permissions."


@dataclass(frozen=True)
class Registered:
    """A delivery in bronze, with what the pre-flight found in its bytes."""

    delivery: Delivery
    facts: Facts


class Bronze:
    """The folder of sealed originals."""

    def __init__(self, root: Path, keyring: Keyring) -> None:
        """Bind the folder `root` and the keyring that seals it."""
        self.root, self._keyring = root, keyring

    def add(self, path: Path, name: FileName, client: Client) -> Registered:
        """Copy one landed file in; the same name and bytes again give the delivery that is there.

        Raises:
            UnroutableError: the file vanished or changed while it was read.
        """
        folder = self.root / client.client_id
        slot = folder / "slots" / name.name
        if slot.is_dir():  # a name that was seen before is mostly the same file again; that need not be copied
            known = self.find(client.client_id, tokens.file_id(self._keyring, name.name, self.digest(path)))
            if known:
                return known
        slot.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            read = self._copy(path, temporary, client)
            file_id = tokens.file_id(self._keyring, name.name, read.sha256)
            with _locked(slot):
                if _stamp(path) != read.stamp:
                    raise UnroutableError(_CHANGED)
                self._admit(name, client, file_id, temporary, read)
        finally:
            temporary.unlink(missing_ok=True)
        return cast("Registered", self.find(client.client_id, file_id))

    def again(self, registered: Registered, client: Client) -> Registered:
        """The latest delivery of a name once more, as the client's present config reads it; itself if that read it.

        It is a delivery of its own, the next of its name, and so replaces the one before as a whole.
        """
        before = registered.delivery
        if before.config_hash == client.config_hash:
            return registered
        folder = self.root / before.client_id
        name = FileName(before.file_name, before.client_id, before.creation_date, before.suffix)
        file_id = tokens.reread_id(self._keyring, before.origin, client.config_hash, before.file_id)
        slot, temporary = folder / "slots" / name.name, folder / f".{secrets.token_hex(8)}.tmp"
        try:
            with self.open(before) as source:
                read = self._seal(iter(lambda: source.read(_BLOCK), b""), temporary, client)
            with _locked(slot):
                self._admit(name, client, file_id, temporary, read, origin=before.origin)
        finally:
            temporary.unlink(missing_ok=True)
        return cast("Registered", self.find(before.client_id, file_id))

    def mend(
        self, registered: Registered, client: Client, chunks: Iterable[bytes], repair: Mapping[str, Any]
    ) -> Registered:
        """A delivery with mended records in the place of rejected ones, as the next of its name: see `again`.

        `repair` is kept with it: who mended which records of which delivery.
        """
        before = registered.delivery
        folder = self.root / before.client_id
        name = FileName(before.file_name, before.client_id, before.creation_date, before.suffix)
        slot, temporary = folder / "slots" / name.name, folder / f".{secrets.token_hex(8)}.tmp"
        try:
            read = self._seal(chunks, temporary, client)
            file_id = tokens.repair_id(self._keyring, before.file_id, read.sha256)
            with _locked(slot):
                (folder / f"{file_id}{_REPAIR}").write_text(json.dumps(dict(repair)))
                self._admit(name, client, file_id, temporary, read, origin=before.origin)
        finally:
            temporary.unlink(missing_ok=True)
        return cast("Registered", self.find(before.client_id, file_id))

    def repair_of(self, delivery: Delivery) -> dict[str, Any] | None:
        """Who mended which records to make a delivery; None: it was not made so."""
        manifest = json.loads(self._manifest(delivery).read_text())
        return cast("dict[str, Any] | None", manifest.get("repair"))

    def _admit(
        self, name: FileName, client: Client, file_id: str, sealed: Path, read: "_Read", origin: str | None = None
    ) -> None:
        """Number and register a sealed copy unless it is, with its slot's lock held; `origin`: what it reads again."""
        folder, slot = self.root / client.client_id, self.root / client.client_id / "slots" / name.name
        self._finish(name, client, but=file_id)
        if not self.find(client.client_id, file_id):
            sealed.rename(folder / f"{file_id}{_SEALED}")
            if origin is not None:
                (folder / f"{file_id}{_ORIGIN}").write_text(origin)
            generation = self._keyring.generation("bronze", client.client_id)
            self._write_manifest(name, client, file_id, _reserve(slot, file_id), read, generation=generation)

    def latest(self, client_id: str) -> Iterator[Registered]:
        """The latest registered delivery of each file name, in no particular order."""
        slots = self.root / client_id / "slots"
        for place in slots.iterdir() if slots.is_dir() else ():
            found = [self.find(client_id, file_id) for file_id in self.slot(client_id, place.name).values()]
            known = [registered for registered in found if registered]
            if known:
                yield max(known, key=lambda r: r.delivery.delivery_no)

    def find(self, client_id: str, file_id: str) -> Registered | None:
        """The registered delivery, or None."""
        try:
            return _read_manifest(self.root / client_id / f"{file_id}.json")
        except FileNotFoundError:
            return None

    def slot(self, client_id: str, file_name: str) -> dict[int, str]:
        """What was delivered under one file name: delivery number -> file_id."""
        return _taken(self.root / client_id / "slots" / file_name)

    def readings(self, delivery: Delivery) -> list[Registered]:
        """The deliveries of the same received bytes, this one among them, in the order of their numbers."""
        slot = sorted(self.slot(delivery.client_id, delivery.file_name).items())
        found = [self.find(delivery.client_id, file_id) for _, file_id in slot]
        return [one for one in found if one and one.delivery.origin == delivery.origin]

    def clients(self) -> list[str]:
        """Clients that ever delivered."""
        return sorted(p.name for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []

    def all(self) -> Iterator[str]:
        """File ids of all registered deliveries, in no particular order."""
        return (manifest.stem for client_id in self.clients() for manifest in (self.root / client_id).glob("*.json"))

    def of_client(self, client_id: str, day: date | None = None) -> Iterator[Registered]:
        """Registered deliveries of one client, in no particular order; only those of one date, if it is given."""
        if day is None:
            manifests: Iterable[Path] = (self.root / client_id).glob("*.json")
        else:  # by file names, so that a run need not read the manifests of years
            slots = self.root / client_id / "slots"
            dates = (f"{day:%Y%m%d}", day.isoformat())
            names = [p.name for p in slots.iterdir() if any(d in p.name for d in dates)] if slots.is_dir() else []
            ids = [file_id for name in names for file_id in self.slot(client_id, name).values()]
            manifests = [p for p in (self.root / client_id / f"{file_id}.json" for file_id in ids) if p.exists()]
        for registered in map(_read_manifest, manifests):
            if day in {None, registered.delivery.creation_date}:
                yield registered

    def pinned_config(self, delivery: Delivery) -> dict[str, Any]:
        """The client's config as it was when the delivery was registered (`Client.pin`)."""
        manifest = json.loads(self._manifest(delivery).read_text())
        return cast("dict[str, Any]", manifest["config"])

    def open(self, delivery: Delivery) -> IO[bytes]:
        """The delivery's bytes as they were received, as a stream."""
        return self._sealed(delivery.client_id, delivery.file_id)

    def _sealed(self, client_id: str, file_id: str) -> IO[bytes]:
        """The plain bytes of a sealed copy. A copy may be replaced by another at any time, and be gone when opened."""
        try:
            file = self._copy_of(client_id, file_id).open("rb")
        except FileNotFoundError:
            file = self._copy_of(client_id, file_id).open("rb")
        keys = self._keyring.derive_all("bronze", client_id)
        sealed = io.BufferedReader(SealedReader(file, keys), _BLOCK)
        return cast("IO[bytes]", pa.CompressedInputStream(pa.PythonFile(sealed, mode="r"), "zstd"))

    def _copy_of(self, client_id: str, file_id: str) -> Path:
        """Where the sealed copy lies: what has replaced the first one is named by the manifest."""
        manifest, name = self.root / client_id / f"{file_id}.json", f"{file_id}{_SEALED}"
        return manifest.with_name(json.loads(manifest.read_text()).get("sealed", name) if manifest.exists() else name)

    def is_whole(self, client_id: str, file_id: str) -> bool:
        """Whether the sealed copy gives back the very bytes that were registered, or those left of them by erasures."""
        registered = self.find(client_id, file_id)
        if registered is None:
            return False
        digest = hashlib.sha256()
        try:
            with self.open(registered.delivery) as source:
                while chunk := source.read(_BLOCK):
                    digest.update(chunk)
        except (OSError, HealthingestError):
            return False
        left = json.loads(self._manifest(registered.delivery).read_text()).get("left_hmac")
        return tokens.content_hmac(self._keyring, digest.digest()) == (left or registered.delivery.content_hmac)

    def replace(
        self, registered: Registered, client: Client, chunks: Iterable[bytes], erased: Collection[int] = ()
    ) -> None:
        """Seal other bytes in the place of a delivery's, those of its records `erased` being gone from them.

        Under the latest key. The manifest is replaced last, and decides: whoever dies before leaves the copy as it was.
        """
        delivery = registered.delivery
        manifest, before = self._manifest(delivery), self._copy_of(delivery.client_id, delivery.file_id)
        new = manifest.with_name(f"{delivery.file_id}.{secrets.token_hex(4)}{_SEALED}")
        read = self._seal(chunks, new, client)
        erased = sorted({*registered.facts.erased_records, *erased})
        generation = self._keyring.generation("bronze", delivery.client_id)
        body = json.loads(manifest.read_text()) | {"sealed": new.name, "generation": generation}
        if erased:
            body["left_hmac"] = tokens.content_hmac(self._keyring, read.sha256)
            body["facts"] = read.facts.model_copy(update={"erased_records": tuple(erased)}).model_dump()
        self._write(manifest, body)
        before.unlink()

    def reseal(self, registered: Registered, client: Client) -> bool:
        """Seal a delivery under the latest key, if it is not; whether that was needed."""
        delivery = registered.delivery
        manifest = json.loads(self._manifest(delivery).read_text())
        if manifest["generation"] == self._keyring.generation("bronze", delivery.client_id):
            return False
        with self.open(delivery) as source:
            self.replace(registered, client, iter(lambda: source.read(_BLOCK), b""))
        return True

    def older(self, client_id: str) -> int:
        """How many deliveries are sealed under another key than the client's latest."""
        latest = self._keyring.generation("bronze", client_id)
        manifests = (self.root / client_id).glob("*.json")
        return sum(json.loads(manifest.read_text())["generation"] != latest for manifest in manifests)

    def stray(self, client_id: str) -> list[Path]:
        """Sealed copies that no manifest names any more: left by whoever died while it replaced one."""
        named = {self._copy_of(client_id, p.stem).name for p in (self.root / client_id).glob("*.json")}
        copies = (self.root / client_id).glob(f"*{_SEALED}")
        return [p for p in copies if p.name not in named and self._known(client_id, p.name.partition(".")[0])]

    def digest(self, path: Path) -> bytes:
        """SHA-256 of a landed file, without registering it.

        Raises:
            UnroutableError: it cannot be read.
        """
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            raise UnroutableError(_UNREADABLE) from None

    def facts_of(self, path: Path, client: Client) -> Facts:
        """What the pre-flight finds in a file, without registering it."""
        preflight = Preflight.of(client.config.source)
        with path.open("rb") as file:
            while chunk := file.read(_BLOCK):
                preflight.feed(chunk)
        return preflight.facts()

    def facts_again(self, registered: Registered, client: Client) -> Facts:
        """What the pre-flight finds in a delivery's bytes by the client's present config."""
        preflight = Preflight.of(client.config.source)
        with self.open(registered.delivery) as source:
            while chunk := source.read(_BLOCK):
                preflight.feed(chunk)
        return preflight.facts().model_copy(update={"erased_records": registered.facts.erased_records})

    def finish(self, name: FileName, client: Client) -> int:
        """Register what a process that died had sealed and numbered under a name, but not registered; how many."""
        with _locked(self.root / client.client_id / "slots" / name.name):
            return self._finish(name, client)

    def unfinished(self, client_id: str) -> list[str]:
        """File names under which something is numbered that is not registered."""
        slots = self.root / client_id / "slots"
        names = sorted(p.name for p in slots.iterdir() if p.is_dir()) if slots.is_dir() else []
        return [n for n in names if not all(self._known(client_id, f) for f in self.slot(client_id, n).values())]

    def _finish(self, name: FileName, client: Client, but: str = "") -> int:
        waiting = [
            (number, file_id) for number, file_id in self.slot(client.client_id, name.name).items()
            if file_id != but and not self._known(client.client_id, file_id)
        ]  # fmt: skip
        for number, file_id in waiting:
            with self._sealed(client.client_id, file_id) as source:
                digest, preflight, size = hashlib.sha256(), Preflight.of(client.config.source), 0
                while chunk := source.read(_BLOCK):
                    digest.update(chunk)
                    preflight.feed(chunk)
                    size += len(chunk)
            read = _Read(digest.digest(), size, preflight.facts(), (0, 0, 0, 0))
            self._write_manifest(name, client, file_id, number, read, generation=0)  # whoever sealed it is gone
        return len(waiting)

    def _known(self, client_id: str, file_id: str) -> bool:
        return (self.root / client_id / f"{file_id}.json").exists()

    def _copy(self, path: Path, target: Path, client: Client) -> "_Read":
        try:
            landed = path.open("rb")
        except OSError:
            raise UnroutableError(_UNREADABLE) from None
        with landed:
            before = _stamp_open(landed, path)
            read = self._seal(iter(lambda: landed.read(_BLOCK), b""), target, client)
            after = _stamp_open(landed, path)
        if before != after:
            raise UnroutableError(_CHANGED)
        return replace(read, stamp=after)

    def _seal(self, chunks: Iterable[bytes], target: Path, client: Client) -> "_Read":
        """Write bytes compressed and sealed to a new file, on disk for good, and look at them on the way."""
        preflight, digest, size = Preflight.of(client.config.source), hashlib.sha256(), 0

        def look(chunk: bytes) -> None:
            digest.update(chunk)
            preflight.feed(chunk)

        with new_file(target) as file, ThreadPoolExecutor(1, "healthingest-look") as beside:
            writer = SealedWriter(cast("BinaryIO", file), self._keyring.derive("bronze", client.client_id))
            with pa.CompressedOutputStream(pa.PythonFile(writer, mode="w"), "zstd") as compressed:
                for chunk in chunks:
                    looked = beside.submit(look, chunk)
                    compressed.write(chunk)
                    size += len(chunk)
                    looked.result()
            if not writer.finished:
                writer.finish()
        return _Read(digest.digest(), size, preflight.facts(), (0, 0, 0, 0))

    def _write_manifest(
        self, name: FileName, client: Client, file_id: str, number: int, read: "_Read", *, generation: int
    ) -> None:
        """The last step: it makes the delivery exist, pinned to the client's config of this moment."""
        delivery = Delivery(
            file_id=file_id,
            client_id=client.client_id,
            file_name=name.name,
            creation_date=name.creation_date,
            suffix=name.suffix,
            delivery_no=number,
            content_hmac=tokens.content_hmac(self._keyring, read.sha256),
            file_bytes=read.size,
            contract=client.contract.name,
            config_hash=client.config_hash,
            registered_at=datetime.now(UTC),
            reread_of=self._origin(client.client_id, file_id),
        )
        if delivery.reread_of and (origin := self.find(delivery.client_id, delivery.reread_of)):
            # What was erased of it is gone from the bytes; the other records keep their numbers.
            read = replace(read, facts=read.facts.model_copy(update={"erased_records": origin.facts.erased_records}))
        body = {
            "delivery": asdict(delivery)
            | {
                "creation_date": delivery.creation_date.isoformat(),
                "registered_at": delivery.registered_at.isoformat(),
            },
            "facts": read.facts.model_dump(),
            "config": client.pin,
            "generation": generation,
        }
        notes = [self.root / client.client_id / f"{file_id}{kind}" for kind in (_REPAIR, _ORIGIN)]
        if notes[0].exists():
            body["repair"] = json.loads(notes[0].read_text())
        self._write(self._manifest(delivery), body)
        for note in notes:
            note.unlink(missing_ok=True)

    def _origin(self, client_id: str, file_id: str) -> str | None:
        """What a delivery that is about to be registered reads once more."""
        note = self.root / client_id / f"{file_id}{_ORIGIN}"
        return note.read_text() if note.exists() else None

    def _write(self, manifest: Path, body: Mapping[str, Any]) -> None:
        put(manifest, json.dumps(body, indent=1).encode())

    def _manifest(self, delivery: Delivery) -> Path:
        return self.root / delivery.client_id / f"{delivery.file_id}.json"


@dataclass(frozen=True)
class _Read:
    """What copying a landed file found."""

    sha256: bytes
    size: int
    facts: Facts
    stamp: "_Stamp"


#: Tells one content of a path from the next: device, inode, size, and change time, which nobody can set.
_Stamp = tuple[int, int, int, int]


def _stamp_of(info: os.stat_result) -> _Stamp:
    return info.st_dev, info.st_ino, info.st_size, info.st_ctime_ns


def _stamp_open(file: IO[bytes], path: Path) -> _Stamp:
    """That of an open file; of an object, which is read in one version only, that of the name."""
    return _stamp_of(path.stat() if isinstance(path, ObjectPath) else os.fstat(file.fileno()))


def _stamp(path: Path) -> _Stamp | None:
    try:
        return _stamp_of(path.stat())
    except OSError:
        return None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock; a process that dies lets go of it."""
    if isinstance(folder, ObjectPath):
        with lease.holding(folder.parent.parent / "locks" / folder.name):
            yield
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _reserve(slot: Path, file_id: str) -> int:
    """The delivery's number in its slot: the next one, or the one that an attempt which died has taken for it."""
    taken = _taken(slot)
    for number, owner in taken.items():
        if owner == file_id:
            return number
    number = max(taken, default=0) + 1
    if not put_new(slot / str(number), file_id.encode()):
        raise FileExistsError(f"{number} of {slot.name}")
    return number


def _taken(slot: Path) -> dict[int, str]:
    """Number -> file_id of each delivery of a slot."""
    try:
        return {int(place.name): place.read_text() for place in slot.iterdir() if not place.name.startswith(".")}
    except FileNotFoundError:
        return {}


def _read_manifest(path: Path) -> Registered:
    body = json.loads(path.read_text())
    fields = body["delivery"]
    fields["creation_date"] = date.fromisoformat(fields["creation_date"])
    fields["registered_at"] = datetime.fromisoformat(fields["registered_at"])
    return Registered(Delivery(**fields), Facts.model_validate(body["facts"]))
