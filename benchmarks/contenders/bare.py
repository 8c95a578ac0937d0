"""polars and one `DeltaTable.merge` of all rows with change feed: nothing else."""

from pathlib import Path

from benchmarks.contenders import Contender, Loaded


def load(root: Path, files: list[Path]) -> Loaded:
    """Per file: read text, one row per key, merge."""
    import polars as pl
    from deltalake import DeltaTable, write_deltalake

    table, read, dropped = root / "table", 0, 0
    for file in files:
        rows = pl.read_csv(file, infer_schema=False, truncate_ragged_lines=True)
        keyed = rows.filter(pl.col("member_id").is_not_null()).unique("member_id", keep="last")
        read, dropped = read + rows.height, dropped + rows.height - keyed.height
        if not DeltaTable.is_deltatable(str(table)):
            write_deltalake(table, keyed, configuration={"delta.enableChangeDataFeed": "true"})
            continue
        merge = DeltaTable(table).merge(
            keyed, "s.member_id = t.member_id", source_alias="s", target_alias="t", streamed_exec=False
        )
        merge.when_matched_update_all().when_not_matched_insert_all().execute()
    return Loaded(read, dropped)


CONTENDER = Contender("bare merge", ("polars", "deltalake"), "everything but the upsert", load, "table")
