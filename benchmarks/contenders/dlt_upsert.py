"""dlt: an Arrow table of the file, `merge` with the `upsert` strategy into Delta on the file system."""

import os
from pathlib import Path

from benchmarks.contenders import Contender, Loaded


def load(root: Path, files: list[Path]) -> Loaded:
    """One run of the pipeline per file; malformed lines are skipped, records without a key dropped."""
    os.environ |= {"RUNTIME__DLTHUB_TELEMETRY": "false", "RUNTIME__LOG_LEVEL": "ERROR"}
    import dlt
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    lake = dlt.destinations.filesystem((root / "lake").as_uri())
    pipeline = dlt.pipeline("members", pipelines_dir=str(root / "state"), destination=lake, dataset_name="lake")
    read = dropped = 0
    for file in files:
        with file.open() as lines:
            texts = dict.fromkeys(next(lines).rstrip("\n").split(","), pa.string())
        rows = csv.read_csv(
            file,
            parse_options=csv.ParseOptions(invalid_row_handler=lambda _: "skip"),
            convert_options=csv.ConvertOptions(column_types=texts, strings_can_be_null=True),
        )
        keyed = rows.filter(pc.is_valid(rows["member_id"]))
        read, dropped = read + rows.num_rows, dropped + rows.num_rows - keyed.num_rows
        merge = {"disposition": "merge", "strategy": "upsert"}
        pipeline.run(
            keyed, table_name="members", table_format="delta", write_disposition=merge, primary_key="member_id"
        ).raise_on_failed_jobs()  # fmt: skip
    return Loaded(read, dropped)


CONTENDER = Contender(
    "dlt", ("dlt",),
    "any rule, quarantine, malformed lines (skipped), change feed, protection, standard forms, order of files",
    load, "lake/lake/members",
)  # fmt: skip
