"""Spark, by way of Spark Connect: hands batches and buckets to its workers and publishes what they made, at once.

The run's process reads, numbers and decides; workers check batches and write the files of silver's buckets. Silver's
commit stays one log entry, so that a delivery is there wholly or not at all, whatever becomes of workers.
"""

import json
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import polars as pl
import pyarrow as pa

from healthingest.contracts.secret import SECRET_REFERENCE, secret
from healthingest.engines.exchange import Exchange, Job
from healthingest.engines.tasks import SAID_DDL, check_parts, merge_bucket
from healthingest.errors import EngineError, PermanentError
from healthingest.lake.log_entry import Entry, UncertainError, put_entry
from healthingest.lake.rewrite import FILE_ROWS, NEW
from healthingest.lake.silver import Silver, Snapshot, bucket
from healthingest.model import Delivery
from healthingest.records.check import CheckedBatch
from healthingest.records.read import Batch

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_PORT, _PATIENCE = 15002, 10


@contextmanager
def session_of(remote: str) -> Iterator["SparkSession"]:
    """A session of a Spark Connect server.

    Raises:
        EngineError: the client is not installed, or the server cannot be reached or gave up.
    """
    remote = secret(remote) if SECRET_REFERENCE.fullmatch(remote) else remote
    at = urlsplit(remote)
    where = f"{at.hostname}:{at.port or _PORT}"
    try:
        from pyspark.sql import SparkSession
    except ImportError:
        raise EngineError('Spark\'s client is not installed; run pip install "healthingest[spark]".') from None
    try:  # its client would try for ten minutes
        socket.create_connection((at.hostname or "", at.port or _PORT), _PATIENCE).close()
    except OSError:
        raise EngineError(f"Spark at {where} cannot be reached; the file waits. Start it and run this again.") from None
    try:
        spark = SparkSession.builder.remote(remote).create()
    except Exception as error:  # noqa: BLE001 - whatever it raises
        raise EngineError(f"Spark at {where} takes no session ({type(error).__name__}); the file waits.") from None
    try:
        yield spark
    finally:
        spark.stop()


class Check:
    """Checks a delivery's batches on Spark's workers (`records.check.Elsewhere`)."""

    def __init__(self, spark: "SparkSession", exchange: Exchange, delivery: Delivery) -> None:
        """By way of an exchange."""
        self._spark, self._exchange, self._delivery = spark, exchange, delivery

    def __call__(self, batches: Iterator[Batch], duplicates: Mapping[str, pl.Series]) -> Iterator[CheckedBatch]:
        """Yield what became of each batch, in order."""
        self._exchange.put("whole", dict(duplicates))
        number = 0
        for batch in batches:
            self._exchange.put(f"{number}.read", batch)
            number += 1
        if not number:
            return
        work = partial(check_parts, self._exchange.job, self._delivery)
        _collected(self._spark.range(0, number, 1, number).mapInArrow(work, SAID_DDL), set(range(number)))
        for part in range(number):
            yield self._exchange.get(f"{part}.checked")[0]


class Merge:
    """Gathers changes to a client's silver, has each bucket's files written by a worker, and commits them at once."""

    def __init__(self, spark: "SparkSession", exchange: Exchange, silver: Silver, snapshot: Snapshot) -> None:
        """Against the snapshot that the changes were compared with."""
        self._spark, self._exchange, self._silver, self._snapshot = spark, exchange, silver, snapshot
        self._waiting: list[pl.DataFrame] = []
        #: Bucket -> names of its files in the exchange.
        self._names: defaultdict[int, list[str]] = defaultdict(list)
        self._changes, self._count = False, 0
        self._actions: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        """The same."""
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing of what was not committed."""
        self._abandon()

    def add(self, rows: pl.DataFrame) -> None:
        """Take further changes in."""
        self._changes |= bool((rows["_change"] != NEW).any())
        self._waiting.append(rows)
        if sum(part.height for part in self._waiting) >= FILE_ROWS:
            self._hand_over()

    def commit(self, transactions: Mapping[str, int], metadata: Mapping[str, str]) -> int:
        """Have all buckets written, and publish them with transactions and metadata; the new version.

        Raises:
            CommitFailedError: another writer of the client was faster; nothing was published.
            EngineError: Spark gave up; nothing was published.
        """
        self._hand_over()
        table, root = self._snapshot.table, self._silver.path
        if self._names:
            names = [{"bucket": b, "name": name} for b, found in self._names.items() for name in found]
            self._spark.conf.set("spark.sql.shuffle.partitions", str(len(self._names)))
            # Spark would take tasks together that get few rows; those rows name many.
            self._spark.conf.set("spark.sql.adaptive.enabled", "false")
            work = _merging(self._exchange.job, str(root), int(table.version()), told=self._changes)
            frame = self._spark.createDataFrame(names, "bucket bigint, name string")
            said = _collected(frame.groupBy("bucket").applyInArrow(work, SAID_DDL), set(self._names))
            self._actions = [action for part in sorted(said) for action in json.loads(said[part])]
        kind = "MERGE" if self._changes else "WRITE"
        entry = Entry(kind, {"client_id": self._snapshot.client_id}, self._actions, transactions, metadata)
        written, self._actions = self._actions, []
        try:
            return put_entry(root, table, entry)
        except UncertainError:
            raise
        except Exception:
            self._actions = written
            raise

    def _hand_over(self) -> None:
        if not self._waiting:
            return
        rows = pl.concat(self._waiting, how="diagonal")
        self._waiting = []
        placed = rows.with_columns(__bucket=bucket(self._silver.buckets))
        for (place,), part in placed.partition_by("__bucket", as_dict=True, include_key=False).items():
            name = f"{self._count:06d}-{place}.rows"
            self._exchange.put(name, part)
            self._names[int(place)].append(name)
        self._count += 1

    def _abandon(self) -> None:
        for action in self._actions:
            for kind in action.keys() & {"add", "cdc"}:
                (self._silver.path / action[kind]["path"]).unlink(missing_ok=True)
        self._actions = []


def _merging(job: Job, path: str, version: int, *, told: bool) -> Callable[[pa.Table], pa.Table]:
    def merge(rows: pa.Table) -> pa.Table:  # Spark's client wants a function with hints, and takes no partial
        return merge_bucket(job, path, version, told, rows)

    return merge


def _collected(frame: "DataFrame", expected: set[int]) -> dict[int, str]:
    """What each task said of its part.

    Raises:
        EngineError: Spark gave up, or left parts out.
        PermanentError: the delivery is ruled out.
    """
    try:
        rows = frame.collect()
    except Exception as error:  # noqa: BLE001 - its text could hold anything
        raise EngineError(
            f"Spark gave up ({type(error).__name__}); nothing was published and the file waits. Its workers' logs say "
            "why: they need this software, the output folder, the configs and the keyring (HEALTHINGEST_KEYRING)."
        ) from None
    for row in sorted(rows, key=lambda row: row["part"]):
        if row["error"]:
            ruled_out = PermanentError(row["said"])
            ruled_out.kind = row["error"]
            raise ruled_out
    said = {int(row["part"]): str(row["said"]) for row in rows}
    if said.keys() != expected or len(rows) != len(expected):
        raise EngineError("Spark left out a part of the delivery, or did one twice; nothing was published. Run again.")
    return said
