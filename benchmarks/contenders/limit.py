"""The limit: polars reads the file and writes Parquet. No checks, no merge."""

from pathlib import Path

from benchmarks.contenders import Contender, Loaded


def load(root: Path, files: list[Path]) -> Loaded:
    """Per file: read text, write it down."""
    import polars as pl

    read = 0
    for file in files:
        rows = pl.read_csv(file, infer_schema=False, truncate_ragged_lines=True)
        rows.write_parquet(root / f"{file.stem}.parquet")
        read += rows.height
    return Loaded(read, 0)


CONTENDER = Contender("limit", ("polars",), "everything: it reads and writes Parquet", load, "")
