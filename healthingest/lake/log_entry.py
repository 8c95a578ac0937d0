"""One entry of a Delta log: data files, change data and transactions, published at once or not at all.

delta-rs commits change data only of merges that it ran itself; silver's are made by `rewrite`. Entries keep to the
protocol's writer version 4 (https://github.com/delta-io/delta/blob/master/PROTOCOL.md, "Actions"), which is what
delta-rs creates silver with, and every Delta reader reads it.
"""

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import CommitFailedError

from healthingest.errors import HealthingestError
from healthingest.storage.files import options_of, put_new
from healthingest.storage.objects import ObjectPath

#: Every so many entries the log is summed up, so that opening the table stays quick. Of 98 entries it takes 42 ms to
#: open a table and 10 ms to look up a transaction, of a checkpoint 4 and 1; writing one takes 2 ms of 100 files and
#: 93 ms of 20,000. delta-rs would wait for 100.
CHECKPOINT_EVERY = 20
_WRITER_VERSION = 4


class UncertainError(HealthingestError):
    """Nobody can say whether a commit was published; whoever runs it again finds out."""

    kind = "storage"


@dataclass(frozen=True)
class Entry:
    """What one commit says; all its files lie in one partition, or below some of its values."""

    operation: str
    #: Partition column -> value, as text.
    partition: Mapping[str, str]
    #: `add`, `remove` and `cdc`, each as {its kind: its fields}.
    actions: Sequence[Mapping[str, Any]]
    #: Application transactions: name -> number.
    transactions: Mapping[str, int]
    #: Shown by `history()`; never a value of a record.
    metadata: Mapping[str, str]
    #: Whether it only adds rows, whatever others add beside it.
    blind: bool = False

    def lines(self) -> Iterator[str]:
        """The entry's JSON lines."""
        now = int(time.time() * 1000)
        info = {"timestamp": now, "operation": self.operation, "operationParameters": {}, "engineInfo": "healthingest"}
        transactions = [{"txn": {"appId": n, "version": v, "lastUpdated": now}} for n, v in self.transactions.items()]
        for action in ({"commitInfo": info | dict(self.metadata)}, *self.actions, *transactions):
            yield json.dumps(action, separators=(",", ":"), sort_keys=True)


def put_entry(root: Path, table: DeltaTable, entry: Entry) -> int:
    """Publish an entry that was made from what `table`, a handle on the table at `root`, has seen; its version.

    Entries of others that came since are passed over if they concern other partitions and transactions only. After
    any other `Exception` nothing was published; whoever is interrupted cannot know.

    Raises:
        UncertainError: an object store did not answer; it may have been published.
        CommitFailedError: one of them does concern this entry; nothing was published.
        HealthingestError: the table asks of its writers what this one does not know.
    """
    _require_known(table)
    log, version = root / "_delta_log", int(table.version())
    _require_kept(log, version)
    content = "".join(f"{line}\n" for line in entry.lines()).encode()
    put_next = _put_object if isinstance(log, ObjectPath) else _put_file
    version = put_next(log, version + 1, content, entry)
    if version % CHECKPOINT_EVERY == 0:
        with contextlib.suppress(Exception):  # the entry is published; maintenance sums up too
            DeltaTable(str(root), version=version, storage_options=options_of(root)).create_checkpoint()
    return version


def _put_file(log: Path, version: int, content: bytes, entry: Entry) -> int:
    temporary = log / f".{secrets.token_hex(8)}.tmp"
    try:
        temporary.write_bytes(content)
        while True:
            try:
                os.link(temporary, _entry(log, version))  # exclusive, and never half-written
            except FileExistsError:
                _require_unrelated(_entry(log, version), entry)
                version += 1
            else:
                return version
    finally:
        with contextlib.suppress(OSError):  # the entry may be published; maintenance takes the file away
            temporary.unlink()


def _put_object(log: Path, version: int, content: bytes, entry: Entry) -> int:
    while True:
        try:
            if put_new(_entry(log, version), content):
                return version
        except Exception as error:  # noqa: BLE001 - whatever a store or the way to it raises
            raise UncertainError(
                f"Whether version {version} of {log.parent.name} was written is not known ({type(error).__name__}); "
                "run this again."
            ) from None
        _require_unrelated(_entry(log, version), entry)
        version += 1


def _entry(log: Path, version: int) -> Path:
    return log / f"{version:020d}.json"


def _require_known(table: DeltaTable) -> None:
    protocol = table.protocol()
    if protocol.min_writer_version > _WRITER_VERSION:
        raise HealthingestError(
            f"The table {table.metadata().name} asks for writer version {protocol.min_writer_version} of Delta's "
            f"protocol, this software knows {_WRITER_VERSION}; restore the table as this software made it."
        )


def _require_kept(log: Path, version: int) -> None:
    """A log that was shortened past the handle's version would take an entry at a number long since used."""
    if not _entry(log, version).exists() and not list(log.glob(f"{version:020d}.checkpoint*")):
        raise CommitFailedError(f"Version {version} is no longer in the log.")


def _require_unrelated(path: Path, mine: Entry) -> None:
    # Not `splitlines`: text in JSON may hold other line separators than the one that ends an action.
    for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        ((kind, fields),) = json.loads(line).items()
        values = (fields or {}).get("partitionValues")
        if (
            kind in {"metaData", "protocol"}
            or (kind == "txn" and fields["appId"] in mine.transactions)
            or (kind in {"add", "remove", "cdc"} and not mine.blind and (not values or _same(values, mine.partition)))
        ):
            raise CommitFailedError(f"Another writer was faster: version {int(path.stem)} concerns this commit too.")


def _same(values: Mapping[str, str], partition: Mapping[str, str]) -> bool:
    return all(values.get(column) == value for column, value in partition.items())
