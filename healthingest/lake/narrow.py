"""Takes columns out of a table by rewriting its files, so that nobody finds them there any more.

Delta's own way is to overwrite the whole table: a new id, its columns' comments lost, and a change feed that says that
every row went and came. Here one entry replaces schema and files together, says that no data changed, and leaves id,
name, description, comments, properties and application transactions as they are. Files are rewritten one at a time.
"""

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any
from uuid import uuid4

import polars as pl
from deltalake import DeltaTable

from healthingest.errors import HealthingestError
from healthingest.lake.delta import Table, retry
from healthingest.lake.log_entry import Entry, UncertainError, put_entry
from healthingest.storage.files import scan_parquet, sink_parquet


def drop_columns(table: Table, names: Collection[str]) -> int | None:
    """Take columns out of a table; the new version, None where it has none of them.

    Raises:
        HealthingestError: the table is partitioned by one of them, or its own schema names it.
        ContentionError: others kept committing.
    """
    if kept := sorted({*names} & {*table.schema, *table.partition_by}):
        raise HealthingestError(f"{kept[0]} is a column that every row of {table.path.name} has; it cannot leave.")
    return retry(lambda: _attempt(table, set(names)))


def _attempt(table: Table, names: set[str]) -> int | None:
    handle = table.snapshot()
    schema = json.loads(handle.schema().to_json())
    fields = [field for field in schema["fields"] if field["name"] not in names]
    if len(fields) == len(schema["fields"]):
        return None
    written: list[Path] = []
    try:
        actions = [{"metaData": _metadata(handle, {**schema, "fields": fields})}]
        for add in pl.DataFrame(handle.get_add_actions(flatten=False)).to_dicts():
            actions += _rewritten(table.path, add, names, written)
        told = {"healthingest": json.dumps({"deliveries": {}, "dropped": sorted(names)})}
        return put_entry(table.path, handle, Entry("DROP COLUMNS", {}, actions, {}, told))
    except UncertainError:
        raise
    except Exception:
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _metadata(handle: DeltaTable, schema: dict[str, Any]) -> dict[str, Any]:
    said = handle.metadata()
    return {
        "id": str(said.id), "name": said.name, "description": said.description,
        "format": {"provider": "parquet", "options": {}}, "schemaString": json.dumps(schema),
        "partitionColumns": said.partition_columns, "createdTime": said.created_time,
        "configuration": said.configuration,
    }  # fmt: skip


def _rewritten(root: Path, add: dict[str, Any], names: set[str], written: list[Path]) -> list[dict[str, Any]]:
    """Actions that put a file without the columns in a file's place; none if it lacks them anyway."""
    path = root / add["path"]
    scan = scan_parquet(path, hive_partitioning=False)
    if not names & set(scan.collect_schema()):
        return []
    partition = {name: None if value is None else str(value) for name, value in (add["partition"] or {}).items()}
    place = Path(add["path"]).parent
    new = root / place / f"part-00000-{uuid4()}-c000.zstd.parquet"
    written.append(new)
    sink_parquet(scan.drop(names, strict=False), new, compression="zstd", compression_level=1, statistics=False)
    now = int(time.time() * 1000)
    common = {"dataChange": False, "partitionValues": partition}
    stats = {"numRecords": add["num_records"]}
    for key, name in (("minValues", "min"), ("maxValues", "max"), ("nullCount", "null_count")):
        held = {column: value for column, value in (add.get(name) or {}).items() if column not in names}
        if held:
            stats[key] = held
    removed = common | {
        "path": add["path"], "deletionTimestamp": now, "extendedFileMetadata": True, "size": add["size_bytes"],
    }  # fmt: skip
    added = common | {
        "path": str(new.relative_to(root)), "size": new.stat().st_size, "modificationTime": now,
        "stats": json.dumps(stats),
    }  # fmt: skip
    return [{"remove": removed}, {"add": added}]
