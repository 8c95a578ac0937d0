"""Writes large synthetic member files: the same arguments give the same bytes, and the defects are known.

People are invented: names from short lists, telephone numbers 555-01xx, addresses at example.com. Everything is drawn
from the record's number by integer arithmetic, so that no random generator's version can change a file.

Example: python -m benchmarks.generate --records 1000000 --day 2 --out acme_20250107.csv
"""

import argparse
import json
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path

import polars as pl

HEADER = (
    "member_id", "first_name", "last_name", "dob", "gender", "address", "city", "state", "zip", "phone_number",
    "email", "creation_date",
)  # fmt: skip
#: Kind of defect -> the column it spoils and what stands there; `extra_field` spoils the line instead.
DEFECTS: dict[str, tuple[str, str] | None] = {
    "missing_member_id": ("member_id", ""),
    "missing_last_name": ("last_name", " "),
    "impossible_dob": ("dob", "1990-02-30"),
    "future_dob": ("dob", "2031-01-01"),
    "unknown_gender": ("gender", "Q"),
    "unknown_state": ("state", "ZZ"),
    "short_zip": ("zip", "2139"),
    "short_phone": ("phone_number", "555-01"),
    "bad_email": ("email", "nobody.example.com"),
    "control_character": ("city", "Bos\x07ton"),
    "extra_field": None,
}
_CHUNK = 500_000
_FIRST = [
    "Ana", "Ben", "Carla", "Dmitri", "Eve", "Femi", "Gwen", "Hana", "Ivo", "José", "Kai", "Lena", "Mina",
    "Noor", "Olga", "Pavel", "Quinn", "Rosa", "Sami", "Zoë",
]  # fmt: skip
_LAST_A = [
    "Ash", "Birch", "Cedar", "Dale", "Elm", "Fern", "Glen", "Hazel", "Iris", "Juniper", "Kestrel", "Linden",
    "Maple", "North", "Oak", "Pine",
]  # fmt: skip
_LAST_B = [
    "berg", "by", "croft", "dal", "feld", "ford", "gate", "ham", "ley", "mark", "mont", "quist", "son",
    "stone", "ton", "wood",
]  # fmt: skip
_STREETS = [
    "Oak St", "Elm St", "Main St", "Hill Rd", "Lake Ave", "Mill Ln", "Park Blvd", "River Dr",
]  # fmt: skip
#: city, state, first three digits of the ZIP, area code: they belong together.
_TOWNS = [
    ("Boston", "MA", "021", "617"), ("Albany", "NY", "122", "518"), ("Salem", "OR", "973", "503"),
    ("Austin", "TX", "787", "512"), ("Denver", "CO", "802", "303"), ("Tampa", "FL", "336", "813"),
]  # fmt: skip


@dataclass
class Truth:
    """What a generated file holds, so that an ingest of it can be checked."""

    records: int = 0
    #: Good records whose content is not that of the first day.
    changed: int = 0
    #: Kind of defect -> records.
    defects: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """Records that must be rejected."""
        return sum(self.defects.values())


@dataclass(frozen=True)
class Plan:
    """What to write."""

    records: int
    #: The first is January 6, 2025; from the second on some members have moved.
    day: int = 1
    #: Number of the first member.
    start: int = 0
    #: One record in so many is bad; one in so many has another address than on the first day.
    bad_in: int = 50
    changed_in: int = 10
    #: Whether lines with a field too many are among the defects.
    malformed: bool = True

    @property
    def date(self) -> date:
        """The day that the file is of."""
        return date(2025, 1, 5) + timedelta(days=self.day)

    @property
    def defects(self) -> list[str]:
        """The kinds of defects."""
        return [kind for kind, spoilt in DEFECTS.items() if spoilt or self.malformed]


def write_file(target: Path, plan: Plan) -> Truth:
    """Write the file of one day, a chunk at a time."""
    truth = Truth(defects=dict.fromkeys(plan.defects, 0))
    with target.open("wb") as file:
        file.write((",".join(HEADER) + "\n").encode())
        stop = plan.start + plan.records
        for start in range(plan.start, stop, _CHUNK):
            chunk = _people(start, min(start + _CHUNK, stop), plan)
            truth.records += chunk.height
            truth.changed += chunk.filter(pl.col("changed") & pl.col("defect").is_null()).height
            for kind, count in chunk.drop_nulls("defect").group_by("defect").len().iter_rows():
                truth.defects[kind] += count
            chunk.select(_line()).write_csv(file, include_header=False, quote_style="never")
    return truth


def _people(start: int, stop: int, plan: Plan) -> pl.DataFrame:
    """HEADER's columns (String), `defect` (String or null) and `changed` (Boolean), one row per record."""
    frame = pl.select(pl.int_range(start, stop, dtype=pl.Int64).alias("i")).with_columns(
        defect=pl.when(_draw("bad", plan.bad_in) == 0).then(_pick("defect", plan.defects)),
        changed=(_draw("changed", plan.changed_in) == 0) & pl.lit(plan.day > 1),
    )
    town = _draw("town", len(_TOWNS))
    city, state, zip3, area = (pl.lit(pl.Series(values)).gather(town) for values in zip(*_TOWNS, strict=True))
    return frame.with_columns(
        member_id=pl.format("M{}", _padded(pl.col("i"), 9)),
        first_name=_pick("first", _FIRST),
        last_name=_pick("last a", _LAST_A) + _pick("last b", _LAST_B),
        dob=pl.date(1935, 1, 1).dt.offset_by(pl.format("{}d", _draw("dob", 31_000))).dt.to_string("%Y-%m-%d"),
        gender=_pick("gender", ["F", "M", "F", "M", "X", "U"]),
        address=_address(),
        city=city,
        state=state,
        zip=zip3 + _padded(_draw("zip", 90) + 10, 2),
        phone_number=pl.format("({}) 555-01{}", area, _padded(_draw("phone", 100), 2)),
        email=pl.format("member{}@example.com", pl.col("i")),
        creation_date=pl.lit(plan.date.isoformat()),
    ).with_columns(_spoilt(column) for column in sorted({spoilt[0] for spoilt in DEFECTS.values() if spoilt}))


def _spoilt(column: str) -> pl.Expr:
    """The column with what its defects put there; one expression, since several may spoil the same column."""
    value = pl.col(column)
    for kind, spoilt in DEFECTS.items():
        if spoilt and spoilt[0] == column:
            value = pl.when(pl.col("defect") == kind).then(pl.lit(spoilt[1])).otherwise(value)
    return value.alias(column)


def _address() -> pl.Expr:
    """A street; with a comma, and so quoted, where it names a flat. Changed members have moved."""
    number = _draw("house", 9_000) + 1 + pl.col("changed").cast(pl.Int64) * 9_000
    street = pl.format("{} {}", number, _pick("street", _STREETS))
    flat = pl.format('"{}, Apt {}"', street, _draw("apt", 40) + 1)
    return pl.when(_draw("flat", 5) == 0).then(flat).otherwise(street)


def _line() -> pl.Expr:
    surplus = pl.when(pl.col("defect") == "extra_field").then(pl.lit(",surplus")).otherwise(pl.lit(""))
    return pl.concat_str(pl.concat_str(*HEADER, separator=","), surplus).alias("line")


def _draw(purpose: str, below: int) -> pl.Expr:
    """A number in [0, below) that depends on the record and the purpose alone; all products stay below 2**63."""
    salt = sum(ord(letter) * 31**place for place, letter in enumerate(purpose)) % 1_000_003
    mixed: pl.Expr = (pl.col("i") * 2_654_435_761 + salt * 97_531) % 4_294_967_291
    mixed = (mixed ^ (mixed // 65_536)) * 1_640_531_527 % 4_294_967_291
    mixed = mixed ^ (mixed // 32_768)
    return mixed % below


def _pick(purpose: str, values: list[str]) -> pl.Expr:
    return pl.lit(pl.Series(values)).gather(_draw(purpose, len(values)))


def _padded(number: pl.Expr, width: int) -> pl.Expr:
    return number.cast(pl.String).str.zfill(width)


def main() -> None:
    """Write one file and print what it holds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--day", type=int, default=1, help="1 is January 6, 2025")
    parser.add_argument("--start", type=int, default=0, help="number of the first member")
    parser.add_argument("--bad-in", type=int, default=50, help="one record in so many is bad")
    parser.add_argument("--changed-in", type=int, default=10, help="one in so many has moved, from day 2 on")
    parser.add_argument("--no-malformed", dest="malformed", action="store_false", help="no line with a field too many")
    parser.add_argument("--out", type=Path, required=True)
    given = vars(parser.parse_args())
    truth = write_file(given.pop("out"), Plan(**given))
    print(json.dumps(asdict(truth) | {"bad": truth.bad}))


if __name__ == "__main__":
    main()
