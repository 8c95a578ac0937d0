"""What a worker does: check one batch of a file, or change one bucket of silver; the functions of the embedded way.

Each writes what it made into the job's exchange, or files that nobody sees until the run's process publishes them, so
that a task may run twice. An error's own text could hold a value and would stand in the engine's logs: it is scrubbed.
"""

import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable

from healthingest.contracts.clients import Client
from healthingest.engines.exchange import Job, place
from healthingest.errors import PermanentError, scrubbed, unexpected
from healthingest.lake.bronze import Bronze
from healthingest.lake.buckets import merge_part
from healthingest.model import Delivery
from healthingest.records.check import check_batch
from healthingest.storage.files import options_of

#: What a worker says of its work: `said` is JSON, `error` the kind of what rules the delivery out, with its sentence.
SAID = pa.schema({"part": pa.int64(), "said": pa.string(), "error": pa.string()})
SAID_DDL = "part bigint, said string, error string"
Row = dict[str, Any]


def check_parts(job: Job, delivery: Delivery, parts: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Check the batches whose numbers (`id`) come in; for `mapInArrow`."""
    from healthingest.members import of_members  # which itself asks for an engine

    exchange = job.exchange()
    places = job.places()
    client = Client.from_pin(Bronze(places.output / "bronze", exchange.keyring).pinned_config(delivery), places.configs)
    finish = partial(of_members, delivery, client, exchange.keyring)
    duplicates = exchange.get("whole")

    def check(part: int) -> str:
        batch = exchange.get(f"{part}.read")
        exchange.put(f"{part}.checked", check_batch(batch, client, delivery.creation_date, duplicates, finish))
        return ""

    for batch in parts:
        yield pa.RecordBatch.from_pylist([_done(n, partial(check, n)) for n in batch["id"].to_pylist()], schema=SAID)


def merge_bucket(job: Job, path: str, version: int, told: bool, rows: pa.Table) -> pa.Table:  # noqa: FBT001
    """Change one bucket of silver by the rows that are named; for `applyInArrow`. Client and bucket are literal."""
    bucket = rows["bucket"][0].as_py()

    def merge() -> str:
        root, exchange = place(path), job.exchange()
        table = DeltaTable(str(root), version=version, storage_options=options_of(root))
        frames = (exchange.get(name) for name in sorted(rows["name"].to_pylist()))
        return json.dumps(merge_part(root, table, {"client_id": job.client_id}, bucket, frames, told=told))

    return pa.Table.from_pylist([_done(bucket, merge)], schema=SAID)


def _done(part: int, work: Callable[[], str]) -> Row:
    try:
        return {"part": part, "said": work(), "error": None}
    except PermanentError as error:  # the delivery is ruled out: another try would find the same
        return {"part": part, "said": str(error), "error": error.kind}
    except BaseException as error:
        if not unexpected(error):
            raise
        raise RuntimeError(scrubbed(error)) from None
