"""What a file's columns look like, whatever its header says: counts, and the shape of values, never a value.

For telling how a file differs from its contract. The records themselves are read as always; only the client is another
one here, who needs no column and takes every column of the header as it stands.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.contract import ColumnType
from healthingest.contracts.source import CreationDate, Transform, normal_header, plain_name
from healthingest.records.header import required_columns
from healthingest.records.read import RecordReader
from healthingest.records.standardize import clean, standard_form
from healthingest.records.transform import SOURCE

#: Types that values are tried as, the narrowest first.
_TRIED: tuple[ColumnType, ...] = ("mbi", "ssn", "email", "date", "us_state", "gender", "us_zip", "phone", "npi")
#: Ways of writing a date that are tried where a client's own do not fit.
DATE_FORMATS = (
    "%Y-%m-%d", "%m/%d/%Y", "%d/%m/%Y", "%Y%m%d", "%Y/%m/%d", "%m-%d-%Y", "%d-%m-%Y", "%d.%m.%Y", "%d-%b-%Y",
    "%b %d %Y", "%m%d%Y",
)  # fmt: skip
#: So many of the values must be of a type for the column to be.
_MOST = 0.95
#: Distinct values that types are tried on.
_SAMPLE = 5_000
_LONGEST_SHAPE = 24
#: Records of each of a file's batches that are looked at.
_OF_EACH = 20_000
_NAME = re.compile(r"(?=.*[A-Za-z])(?!(?:.*[0-9]){4})[A-Za-z0-9][A-Za-z0-9 _./#()-]{0,62}")


@dataclass(frozen=True)
class SeenColumn:
    """One column of a file."""

    header: str
    #: Contract column that the client's config makes of it; None: nothing takes it.
    column: str | None
    #: 1-based place in the header.
    place: int
    records: int
    filled: int
    #: Cleaned values of some of the file's records (String), to judge and to forget.
    values: pl.Series
    #: Set where another column of the file has the same key.
    suffix: str = ""

    @property
    def key(self) -> str:
        """What the column is called in ids and commands: its name, if it looks like one, else its place."""
        name = plain_name(self.header)
        return name + self.suffix if self.shown and name else f"column_{self.place}"

    @property
    def shown(self) -> str:
        """Its name as far as it may be told: nothing that may be a value."""
        return self.header.strip() if _NAME.fullmatch(self.header.strip()) else ""

    @property
    def distinct(self) -> int:
        """Different values among those records."""
        return self.values.drop_nulls().n_unique()

    @property
    def shape(self) -> str:
        """What most of the values look like: a letter for a letter, 9 for a digit."""
        return shape_of(self.values)

    @property
    def type_(self) -> ColumnType | None:
        """The narrowest type that nearly all values have; None: they may be any text."""
        return next((kind for kind in _TRIED if share_of(self.values, kind) >= _MOST), None)


@dataclass(frozen=True)
class Glimpse:
    """A file's columns, in its order."""

    records: int
    columns: tuple[SeenColumn, ...]
    #: Records that have as many fields as the header.
    whole: int
    #: Columns that the contract requires, and that no transform or default gives.
    required: frozenset[str]

    @property
    def is_header(self) -> bool:
        """Whether what stands there is a header for sure, and a header alone, so that names of it may be told.

        Where a line end was lost, the first record stands on the header's line: no other record is as long then.
        """
        known = {c.column for c in self.columns if c.column is not None}
        most = 2 * len(known) >= len(self.columns) or self.required <= known
        return most and len(known) > 2 and 2 * self.whole > self.records  # noqa: PLR2004 - two words may be two values


def glimpse(open_reader: Callable[[Client], RecordReader], client: Client) -> Glimpse:
    """Look at all columns of a file; `open_reader` starts at its beginning for the client that it is given.

    Raises:
        DeliveryError: it cannot be read as a whole.
    """
    names = _names(open_reader(_taking(client, [])))
    spelt = Counter(map(normal_header, names))
    told = [name for name in names if normal_header(name) and spelt[normal_header(name)] == 1]
    reader = open_reader(_taking(client, told))
    filled, some, whole = dict.fromkeys(map(normal_header, told), 0), list[pl.DataFrame](), 0
    for batch in reader:
        rows = batch.rows
        whole += rows.height
        for name in filled:
            filled[name] += rows.height - rows[SOURCE + name].null_count()
        some.append(rows if rows.height <= _OF_EACH else rows.sample(_OF_EACH, seed=0))
    sample = pl.concat(some) if some else pl.DataFrame()
    header, counts = reader.header, reader.line_counts()
    places = {place: column for column, place in header.columns.items()} if header else {}
    nothing = ["", *client.config.source.null_values]
    columns, keys = [], set[str]()
    for place, name in enumerate(names):
        normal = normal_header(name)
        if normal not in filled:  # blank, or there twice: nobody can speak of it
            continue
        values = sample[SOURCE + normal] if sample.width else pl.Series([], dtype=pl.String)
        seen = SeenColumn(name, _column_of(client, name, places.get(place)), place + 1, counts.records,
                          filled[normal], clean(values, nothing))  # fmt: skip
        columns.append(replace(seen, suffix=f"_{place + 1}") if seen.key in keys else seen)
        keys.add(seen.key)
    return Glimpse(counts.records, tuple(columns), whole, frozenset(required_columns(client)))


def _names(reader: RecordReader) -> list[str]:
    for _ in reader:
        break
    return list(reader.header.names) if reader.header else []


def _column_of(client: Client, name: str, column: str | None) -> str | None:
    """A column that a transform takes is known too: it is called like the first that is made of it."""
    if column is not None:
        return column
    normal = normal_header(name)
    taking = (s for s in client.config.transform if normal in {normal_header(source) for source in s.sources})
    return next((step.to[0] for step in taking), None)


def _taking(client: Client, names: list[str]) -> Client:
    """The client, as if it needed no column of the contract and took these as they stand."""
    columns = [column.model_copy(update={"required": False}) for column in client.contract.columns]
    steps = [Transform.model_construct(concat=names, split=None, hook=None, separator=" ", to=["__"])] if names else []
    source = client.config.source.model_copy(update={"creation_date": CreationDate()})
    update = {"transform": steps, "source": source, "schema_evolution": "review"}
    return Client(
        client.client_id, client.config.model_copy(update=update),
        client.contract.model_copy(update={"columns": columns}),
    )  # fmt: skip


def share_of(values: pl.Series, kind: ColumnType, date_formats: tuple[str, ...] = DATE_FORMATS) -> float:
    """Which share of different values has a standard form of a type; 0.0 without values."""
    some = values.drop_nulls().unique().head(_SAMPLE)
    if some.is_empty():
        return 0.0
    if kind == "date":
        return max(_formed(some, "date", (fmt,)) for fmt in date_formats)
    return _formed(some, kind, ())


def date_formats_of(values: pl.Series) -> list[str]:
    """The ways of writing a date that nearly all values have, in the order they are tried."""
    some = values.drop_nulls().unique().head(_SAMPLE)
    return [fmt for fmt in DATE_FORMATS if not some.is_empty() and _formed(some, "date", (fmt,)) >= _MOST]


def _formed(some: pl.Series, kind: ColumnType, date_formats: tuple[str, ...]) -> float:
    formed = standard_form(some, kind, date_formats) if date_formats else standard_form(some, kind)
    return float(formed.is_not_null().sum()) / len(some)


def shape_of(values: pl.Series) -> str:
    """What most values look like, and how many of them; else how long they are."""
    filled = values.drop_nulls()
    if filled.is_empty():
        return "no values"
    shapes = _shapes(filled).value_counts(sort=True)
    top, count = str(shapes["shape"][0]), int(shapes["count"][0])
    lengths = filled.str.len_chars().sort().to_list()
    if 2 * count >= len(filled) and len(top) <= _LONGEST_SHAPE:
        return f"{top} ({count / len(filled):.0%})"
    return f"text of {lengths[0]} to {lengths[-1]} characters"


def _shapes(filled: pl.Series) -> pl.Series:
    shapes = filled.str.replace_all(r"\p{Lu}", "A").str.replace_all(r"[\p{L}\p{M}--\p{Lu}]", "a")
    shapes = shapes.str.replace_all(r"\p{N}", "9").str.replace_all(r"[^\x20-\x7e]", "?")
    return shapes.alias("shape")


def alike(one: pl.Series, other: pl.Series) -> float:
    """How alike the shapes of two columns' values are, 0.0 to 1.0: what of their values has a shape of both."""
    kinds = [_kinds(one), _kinds(other)]
    return float(sum(min(share, kinds[1].get(shape, 0.0)) for shape, share in kinds[0].items()))


def _kinds(values: pl.Series) -> dict[str, float]:
    """Shape, runs of a letter or digit as one, -> its share."""
    filled = values.drop_nulls()
    runs = _shapes(filled).str.replace_all("A+", "A").str.replace_all("a+", "a").str.replace_all("9+", "9")
    return {shape: count / len(filled) for shape, count in _rows(runs.value_counts())}


def _rows(frame: pl.DataFrame) -> Iterator[tuple[str, int]]:
    return frame.iter_rows()
