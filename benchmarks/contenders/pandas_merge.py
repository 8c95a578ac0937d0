"""pandas, Pandera and `DeltaTable.merge` with change feed, as a competent user writes it."""

from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender, Loaded

_STATES = [
    "AL",
    "AK",
    "AZ",
    "AR",
    "CA",
    "CO",
    "CT",
    "DE",
    "DC",
    "FL",
    "GA",
    "HI",
    "ID",
    "IL",
    "IN",
    "IA",
    "KS",
    "KY",
    "LA",
    "ME",
    "MD",
    "MA",
    "MI",
    "MN",
    "MS",
    "MO",
    "MT",
    "NE",
    "NV",
    "NH",
    "NJ",
    "NM",
    "NY",
    "NC",
    "ND",
    "OH",
    "OK",
    "OR",
    "PA",
    "RI",
    "SC",
    "SD",
    "TN",
    "TX",
    "UT",
    "VT",
    "VA",
    "WA",
    "WV",
    "WI",
    "WY",
]


def load(root: Path, files: list[Path]) -> Loaded:
    """Per file: read text, check lazily, drop what failed any check, merge the rest."""
    import pandas as pd
    import pandera.errors

    schema, read, rejected = _schema(), 0, 0
    for file in files:
        frame = pd.read_csv(file, dtype=str, keep_default_na=False, na_values=[""], on_bad_lines="skip")
        read += len(frame)
        try:
            schema.validate(frame, lazy=True)
            good = frame
        except pandera.errors.SchemaErrors as failed:
            good = frame.drop(index=failed.failure_cases["index"].dropna().unique())
        rejected += len(frame) - len(good)
        _merge(root / "table", good.drop_duplicates("member_id", keep="last"))
    return Loaded(read, rejected)


def _schema() -> Any:  # noqa: ANN401 - Pandera loads in the child
    import pandera.pandas as pa

    def text(pattern: str, *, required: bool = False) -> Any:  # noqa: ANN401
        return pa.Column(str, pa.Check.str_matches(pattern), nullable=not required)

    day = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$"
    return pa.DataFrameSchema({
        "member_id": text(r"^\S+$", required=True),
        "first_name": text(r"\S", required=True),
        "last_name": text(r"\S", required=True),
        "dob": text(day, required=True),
        "gender": pa.Column(str, pa.Check.isin(["F", "M", "X", "U"]), nullable=True),
        "address": text(r"^[^\x00-\x1f]*$"),
        "city": text(r"^[^\x00-\x1f]*$"),
        "state": pa.Column(str, pa.Check.isin(_STATES), nullable=True),
        "zip": text(r"^\d{5}(-\d{4})?$"),
        "phone_number": text(r"^\(?\d{3}\)?[ -]?\d{3}-?\d{4}$"),
        "email": text(r"^[^@\s]+@[^@\s]+\.[^@\s]+$"),
        "creation_date": text(day),
    })  # fmt: skip


def _merge(table: Path, rows: Any) -> None:  # noqa: ANN401
    from deltalake import DeltaTable, write_deltalake

    if not DeltaTable.is_deltatable(str(table)):
        write_deltalake(table, rows, configuration={"delta.enableChangeDataFeed": "true"})
        return
    merge = DeltaTable(table).merge(rows, "s.member_id = t.member_id", source_alias="s", target_alias="t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()


CONTENDER = Contender(
    "pandas", ("pandas", "pandera", "deltalake"),
    "quarantine with reasons, malformed lines (skipped), protection, standard forms, telling unchanged rows, "
    "order of files",
    load, "table",
)  # fmt: skip
