"""Changes to a client's buckets, each a `Rewrite` of its own, and published by one entry of the log.

The embedded engine goes through the buckets here; another engine has each done by a worker, by `merge_part`. Both call
`Rewrite.add` and `Rewrite.prepare` of one bucket, so that the same rows make the same files, whoever does it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import polars as pl
from deltalake import DeltaTable

from healthingest.lake.log_entry import Entry, UncertainError, put_entry
from healthingest.lake.rewrite import FILE_ROWS, DataFile, Known, Rewrite, files_in, types_of

_COLUMN = "_bucket"


def part_of(
    root: Path, table: DeltaTable, client: Mapping[str, str], bucket: int, known: Known | None = None
) -> Rewrite:
    """What changes in one bucket of a client's rows in silver."""
    partition = {**client, _COLUMN: str(bucket)}
    return Rewrite(root, table, partition, key="member_token", bounds="_sequence", known=known)


def merge_part(
    root: Path, table: DeltaTable, client: Mapping[str, str], bucket: int, frames: Iterable[pl.DataFrame], *, told: bool
) -> list[dict[str, Any]]:
    """Write what frames (as `Rewrite.add` takes them) change in one bucket of silver; the actions that publish it.

    `told`: as in `Rewrite.prepare`.
    """
    part = part_of(root, table, client, bucket)
    try:
        for rows in frames:
            part.add(rows)
        return part.prepare(told=told)
    except BaseException:
        part.abandon()
        raise


class Buckets:
    """Changes to a client's rows in silver, gathered and then committed at once (`Changes`)."""

    def __init__(self, root: Path, table: DeltaTable, client: Mapping[str, str], place: pl.Expr) -> None:
        """`place` is the bucket of a row; the rest as `Rewrite` has it."""
        self._root, self._table, self._client, self._place = root, table, client, place
        self._parts: dict[int, Rewrite] = {}

    def add(self, rows: pl.DataFrame) -> None:
        """Take further changes in; new rows are written as soon as all of them would fill a file."""
        placed = rows.with_columns(**{_COLUMN: self._place})
        for (bucket,), some in placed.partition_by(_COLUMN, as_dict=True, include_key=False).items():
            self._part(int(bucket)).add(some)
        if sum(part.waiting for part in self._parts.values()) >= FILE_ROWS:
            for part in self._parts.values():
                part.write_new()

    def commit(self, transactions: Mapping[str, int], metadata: Mapping[str, str]) -> int:
        """Publish everything that was added, with transactions and metadata; the new version.

        Raises:
            CommitFailedError, AccountingError: as `Rewrite.commit`; nothing was published.
        """
        told = any(part.changes for part in self._parts.values())
        try:
            actions = [a for _, part in sorted(self._parts.items()) for a in part.prepare(told=told)]
        except BaseException:
            self.abandon()
            raise
        entry = Entry("MERGE" if told else "WRITE", self._client, actions, transactions, metadata)
        parts, self._parts = self._parts, {}  # as in `Rewrite.commit`: who is interrupted now may have published
        try:
            return put_entry(self._root, self._table, entry)
        except UncertainError:
            raise
        except Exception:
            self._parts = parts
            self.abandon()
            raise

    def __enter__(self) -> Self:
        """The same."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing of what was not committed."""
        self.abandon()

    def abandon(self) -> None:
        """Delete what was written and never published."""
        for part in self._parts.values():
            part.abandon()

    def _part(self, bucket: int) -> Rewrite:
        if bucket not in self._parts:
            known = Known(self._types, lambda: self._files[str(bucket)])
            self._parts[bucket] = part_of(self._root, self._table, self._client, bucket, known)
        return self._parts[bucket]

    @cached_property
    def _types(self) -> dict[str, pl.DataType]:
        return types_of(self._table, {*self._client, _COLUMN})

    @cached_property
    def _files(self) -> defaultdict[str, list[DataFile]]:
        """The files of each bucket, from one look at the log."""
        found: defaultdict[str, list[DataFile]] = defaultdict(list)
        for file in files_in(self._table, self._client):
            found[file.partition[_COLUMN]].append(file)
        return found
