"""A place in an object store, in the shape of `pathlib.Path`: what reads and writes folders works on buckets too.

Folders are not things there, only beginnings of names: `mkdir` does nothing, and a folder is there as long as anything
lies below it. A write is whole or not there; a rename copies and deletes. What has no meaning there fails: a place has
no `__fspath__`, so that nothing of `os` takes it for a local path.
"""

import errno
import fnmatch
import io
import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import PosixPath, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self, cast
from zlib import crc32

from healthingest.errors import StorageError
from healthingest.storage.options import SCHEMES, options_for

if TYPE_CHECKING:
    from datetime import datetime

    from obstore import ObjectMeta
    from obstore.store import ObjectStore

#: Parts of a bucket's own path: scheme and name.
_BUCKET = 2
#: Bytes that are fetched at a time where a file is read from its beginning to its end.
_BLOCK = 8 * 1024 * 1024
#: S3 and its likes copy objects up to this size in one request.
_MOST_COPIED = 5 * 1024**3


class ObjectPath(PosixPath):
    """`s3://bucket/key`, `az://container/name` or `gs://bucket/name`."""

    __slots__ = ()

    def __str__(self) -> str:
        """The URI."""
        return "/".join((f"{self.parts[0]}/", *self.parts[1:]))

    def __repr__(self) -> str:
        """The same, with its kind."""
        return f"ObjectPath({str(self)!r})"

    def __fspath__(self) -> NoReturn:
        """There is no local path."""
        raise TypeError(f"{self} is in an object store, not a local file.")

    # --- the store, and the name in it

    @property
    def store(self) -> "ObjectStore":
        """The bucket."""
        if len(self.parts) < _BUCKET:
            raise StorageError(f"{self} names no bucket.")
        scheme = self.parts[0].removesuffix(":")
        return _store(scheme, self.parts[1], tuple(sorted(options_for(scheme).items())))

    @property
    def key(self) -> str:
        """The name within the bucket."""
        return "/".join(self.parts[2:])

    @property
    def options(self) -> dict[str, str]:
        """What delta-rs and polars must be told to reach it."""
        return options_for(self.parts[0].removesuffix(":"))

    # --- looking

    def head(self) -> "ObjectMeta":
        """Size, time and ETag.

        Raises:
            FileNotFoundError: nothing is there.
            PermissionError: it may not be looked at.
        """
        import obstore
        from obstore.exceptions import PermissionDeniedError

        try:
            return obstore.head(self.store, self.key)
        except PermissionDeniedError:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self)) from None

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:  # noqa: ARG002
        """Size and times; the inode is made of the ETag, so that other content gives another one."""
        meta = self.head()
        return _stat(meta["size"], meta["last_modified"], meta["e_tag"])

    lstat = stat

    def exists(self) -> bool:
        """Whether an object or a folder is there."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether an object is there."""
        try:
            self.head()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether anything lies below; a bucket is a folder as soon as it can be listed."""
        import obstore

        with self._listing():
            some = next(iter(obstore.list(self.store, self.key, chunk_size=1)), None)
        return bool(some) or len(self.parts) == _BUCKET

    def is_symlink(self) -> bool:
        """Never."""
        return False

    def iterdir(self) -> Generator[Self, None, None]:
        """What lies right below.

        Raises:
            FileNotFoundError: nothing does.
        """
        import obstore

        with self._listing():
            found = obstore.list_with_delimiter(self.store, self.key)
        names = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        if not names and len(self.parts) > _BUCKET:
            raise FileNotFoundError(str(self))
        yield from (self / name.rpartition("/")[2] for name in names)

    def entries(self, after: str = "") -> Iterator[tuple[str, os.stat_result]]:
        """Name and stat of each object right below, in the order of names, a page at a time; those behind a name."""
        import obstore

        prefix = f"{self.key}/" if self.key else ""
        with self._listing():
            for page in obstore.list(self.store, self.key, offset=f"{prefix}{after}" if after else None):
                for meta in page:
                    name = meta["path"][len(prefix) :]
                    if "/" not in name:
                        yield name, _stat(meta["size"], meta["last_modified"], meta["e_tag"])

    @contextmanager
    def _listing(self) -> Iterator[None]:
        """Say in a sentence why nothing here can be listed.

        Raises:
            StorageError: a name holds a control character; no library here lists what is beside it.
        """
        from obstore.exceptions import InvalidPathError

        try:
            yield
        except InvalidPathError:
            raise StorageError(
                f"An object below {self} has a name with a control character, such as a line end, and hides all "
                "others; delete it by the store's own tools, and tell its sender."
            ) from None

    def everything(self) -> Iterator[tuple[str, os.stat_result]]:
        """Name below here and stat of each object, at whatever depth."""
        import obstore

        start = len(f"{self.key}/") if self.key else 0
        with self._listing():
            for page in obstore.list(self.store, self.key):
                for meta in page:
                    yield meta["path"][start:], _stat(meta["size"], meta["last_modified"], meta["e_tag"])

    def glob(self, pattern: str) -> Generator[Self, None, None]:
        """What lies right below, by a pattern without `/`; nothing if the folder is not there."""
        if "/" in pattern or "**" in pattern:
            raise NotImplementedError(pattern)
        try:
            found = list(self.iterdir())
        except FileNotFoundError:
            return
        yield from (place for place in found if fnmatch.fnmatchcase(place.name, pattern))

    def rglob(self, pattern: str) -> Generator[Self, None, None]:
        """All objects at whatever depth whose own name fits a pattern."""
        import obstore

        with self._listing():
            for page in obstore.list(self.store, self.key):
                for meta in page:
                    place = cast("Self", _place(self.parts[:2], meta["path"]))
                    if fnmatch.fnmatchcase(place.name, pattern):
                        yield place

    # --- reading and writing

    def open(  # type: ignore[override]
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:  # fmt: skip
        """A stream: reading fetches blocks of one version of the object; a write appears as a whole when closed."""
        _ = buffering
        binary = "b" in mode
        kind = mode.replace("b", "").replace("t", "")
        if kind == "r":
            raw: IO[bytes] = cast("IO[bytes]", io.BufferedReader(_Reader(self), _BLOCK))
        elif kind in {"w", "x"}:
            raw = cast("IO[bytes]", _Writer(self, new=kind == "x"))
        else:
            raise ValueError(f"mode {mode} is not for objects")
        return raw if binary else io.TextIOWrapper(raw, encoding or "utf-8", errors, newline)

    def read_bytes(self) -> bytes:
        """The whole content."""
        import obstore

        return bytes(obstore.get(self.store, self.key).bytes())

    def read_text(self, encoding: str | None = None, errors: str | None = None) -> str:
        """The same as text, of UTF-8 by default."""
        return self.read_bytes().decode(encoding or "utf-8", errors or "strict")

    def write_bytes(self, data: Any) -> int:  # noqa: ANN401 - as pathlib has it
        """Put content there, whatever is there."""
        import obstore

        obstore.put(self.store, self.key, bytes(data))
        return len(data)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """The same of text."""
        _ = newline
        return self.write_bytes(data.encode(encoding or "utf-8", errors or "strict"))

    def put_new(self, data: bytes) -> bool:
        """Put content there if nothing is; whether this very content is there now.

        A request whose answer was lost is made again, and then refused by its own success: so the content decides.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        try:
            obstore.put(self.store, self.key, data, mode="create")
        except AlreadyExistsError:
            return (self.read_tagged() or (None,))[0] == data
        return True

    def read_tagged(self) -> tuple[bytes, str] | None:
        """Content and the ETag it has; None if nothing is there."""
        import obstore

        try:
            got = obstore.get(self.store, self.key)
        except FileNotFoundError:
            return None
        return bytes(got.bytes()), got.meta["e_tag"] or ""

    def replace_tagged(self, data: bytes, tag: str) -> str | None:
        """Put content in the place of what has an ETag; the new one, or None if something else is there by now."""
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            return obstore.put(self.store, self.key, data, mode={"e_tag": tag})["e_tag"]
        except (PreconditionError, FileNotFoundError):
            return None

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:  # noqa: ARG002, FBT001, FBT002
        """Make an empty object, if nothing is there."""
        if not self.put_new(b"") and not exist_ok:
            raise FileExistsError(str(self))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Nothing: folders need not be made."""

    def rmdir(self) -> None:
        """Nothing: an empty folder is not there."""

    def unlink(self, missing_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Delete the object.

        Raises:
            FileNotFoundError: none is there; stores do not tell, so that it is asked for first.
        """
        import obstore

        if not missing_ok:
            self.head()
        try:
            obstore.delete(self.store, self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: Any) -> Self:  # noqa: ANN401 - as pathlib has it
        """Copy to a place of the same bucket, over whatever is there, and delete. Who dies between leaves both."""
        import obstore

        if not isinstance(target, ObjectPath) or target.parts[:2] != self.parts[:2]:
            raise StorageError(f"{self} can only be renamed within its bucket.")
        if self.head()["size"] > _MOST_COPIED:
            raise StorageError(f"{self} is larger than stores copy in one step (5 GiB).")
        obstore.copy(self.store, self.key, target.key)
        obstore.delete(self.store, self.key)
        return cast("Self", target)

    replace = rename

    # --- what a local path would make of itself

    def resolve(self, strict: bool = False) -> Self:  # noqa: ARG002, FBT001, FBT002
        """The same: there are no links."""
        return self

    def absolute(self) -> Self:
        """The same."""
        return self

    def expanduser(self) -> Self:
        """The same."""
        return self

    def is_absolute(self) -> bool:
        """Always."""
        return True

    def relative_to(self, *other: Any) -> PurePosixPath:  # type: ignore[override]  # noqa: ANN401 - as pathlib has it
        """The name below another place: no place itself."""
        return PurePosixPath(*super().relative_to(*other).parts)

    def samefile(self, other_path: Any) -> bool:  # noqa: ANN401 - as pathlib has it
        """Whether it is the same name."""
        return str(self) == str(other_path)

    def _no(self, *_: object, **__: object) -> NoReturn:
        raise StorageError(f"{self} is in an object store, which has no permissions and links.")

    chmod = lchmod = symlink_to = hardlink_to = link_to = readlink = owner = group = is_mount = _no


class _Reader(io.RawIOBase):
    """One version of an object, fetched range by range: content that is replaced meanwhile is an error, never a mix."""

    def __init__(self, place: ObjectPath) -> None:
        self._place, meta = place, place.head()
        self._size, self._tag, self._at = meta["size"], meta["e_tag"], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = max(0, {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401
        import obstore
        from obstore.exceptions import PreconditionError

        end = min(self._at + len(buffer), self._size)
        if end <= self._at:
            return 0
        try:
            wanted = {"range": (self._at, end), "if_match": self._tag}
            got = obstore.get(self._place.store, self._place.key, options=cast("Any", wanted)).bytes()
        except PreconditionError:
            raise OSError(f"{self._place.name} was replaced while it was read.") from None
        buffer[: len(got)] = memoryview(got)
        self._at += len(got)
        return len(got)


class _Writer(io.RawIOBase):
    """Uploads what is written; the object appears when it is closed, and never if the block that wrote it fails."""

    def __init__(self, place: ObjectPath, *, new: bool) -> None:
        import obstore

        self._place, self._new = place, new
        if new and place.is_file():
            raise FileExistsError(str(place))
        self._upload = obstore.open_writer(place.store, place.key)
        self._failed = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:  # noqa: ANN401
        self._upload.write(bytes(data))
        return len(data)

    def __exit__(self, kind: object, *_: object) -> None:
        self._failed = kind is not None
        self.close()

    def close(self) -> None:
        if self.closed:
            return
        super().close()
        if not self._failed:
            self._upload.close()


def place_of(uri: str | os.PathLike[str]) -> PosixPath:
    """The place that a text names: an object store's, if it is a URI of one; else a local path.

    Raises:
        StorageError: it is a URI of something else.
    """
    text = str(uri)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return PosixPath(text)
    if scheme == "file":
        return PosixPath(rest)
    if scheme not in SCHEMES or not rest or rest.startswith("/"):
        raise StorageError(f"This is no folder that can be used: {scheme}:// names none of {', '.join(SCHEMES)}.")
    return ObjectPath(text)


def _place(root: tuple[str, ...], key: str) -> ObjectPath:
    return ObjectPath("/".join((*root, key)))


@lru_cache(maxsize=32)
def _store(scheme: str, bucket: str, options: tuple[tuple[str, str], ...]) -> "ObjectStore":
    from obstore.store import AzureStore, GCSStore, S3Store

    said: Mapping[str, Any] = dict(options)
    retries: Any = {"max_retries": 8}
    if scheme == "s3":
        return S3Store(bucket, config=cast("Any", said), retry_config=retries)
    if scheme == "az":
        return AzureStore(bucket, config=cast("Any", said), retry_config=retries)
    return GCSStore(bucket, config=cast("Any", said), retry_config=retries)


def _stat(size: int, changed: "datetime", tag: str | None) -> os.stat_result:
    """As `os.stat` gives it. Stores tell whole seconds: the ETag's sum stands below, so that a change is always one.

    Azure's listings tell an ETag without the quotes that it has elsewhere.
    """
    digest = crc32((tag or "").strip('"').encode())
    seconds = int(changed.timestamp())
    nanoseconds = seconds * 10**9 + digest % 10**9
    times = {"st_atime_ns": nanoseconds, "st_mtime_ns": nanoseconds, "st_ctime_ns": nanoseconds}
    return os.stat_result((0o100600, digest, 0, 1, 0, 0, size, seconds, seconds, seconds), times)
