"""The design's table "What bad input gets": each row as files, each taken by the command line and by the sensor's runs.

All files of one way lie in one landing zone at once, so each of them is also one of "the others" that must go on.
Every record holds SECRETNAME or SECRETID, so that a value which leaks anywhere is found by one search.
"""

import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from typer.testing import CliRunner

from healthingest.cli import app
from healthingest.export import export_frame
from healthingest.lake.quarantine import open_record
from healthingest.landing import discovery
from healthingest.orchestration.build import build_defs
from healthingest.platform import Platform
from healthingest_tests.conftest import HEADER, csv_of, env_of, install, line, places_in

CLIENTS = {
    "acme": "client_id: acme\n",
    "latin": "client_id: latin\nsource: {encoding: cp1252}\n",
    "counted": 'client_id: counted\nsource: {trailer: {starts_with: "TRAILER", count_field: 2}}\n',
    "frozen": "client_id: frozen\nschema_evolution: freeze\n",
}
Reasons = set[tuple[str | None, str, str]]


def whole(rule: str) -> Reasons:
    """The reason of a record whose fields cannot be told apart."""
    return {(None, rule, "malformed")}


TOO_FEW, TOO_MANY, OPEN = whole("too_few_fields"), whole("too_many_fields"), whole("unterminated_quote")
AFTER, TOO_LARGE = whole("text_after_quote"), whole("record_too_large")
SWALLOWED: Reasons = {(None, "swallowed_records", "swallowed_records")}
BAD_ZIP: Reasons = {("zip", "zip.us_zip", "us_zip")}


def encoding(*columns: str) -> Reasons:
    return {(column, "encoding", "encoding") for column in columns}


def control(*columns: str) -> Reasons:
    return {(column, f"{column}.control_characters", "control_characters") for column in columns}


# --- what a case is ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """One rejected record."""

    reasons: Reasons
    #: Physical line on which it starts, the file's first being 1.
    line_no: int
    #: As received, without its line end.
    raw: bytes
    lines: int = 1
    #: Expected and found fields.
    fields: tuple[int | None, int | None] | None = None
    #: Whether it is too long for more than its beginning to be kept.
    cut: bool = False


@dataclass(frozen=True)
class Tally:
    """The audit row's counts of lines and records."""

    physical: int
    records: int
    accepted: int
    rejected: int = 0
    malformed: int = 0
    header: int = 1
    blank: int = 0
    trailer: int = 0


@dataclass(frozen=True)
class Case:
    """A file that is read; the accepted record `n` is the member `<key>.<n>`."""

    key: str
    content: bytes | str
    tally: Tally
    accepted: tuple[int, ...]
    rejected: dict[int, Bad] = field(default_factory=dict)
    client: str = "acme"
    #: Record number -> column -> what an export must show.
    values: dict[int, dict[str, str]] = field(default_factory=dict)
    #: What the audit's message says.
    says: str = ""
    extension: str = "csv"


@dataclass(frozen=True)
class Refused:
    """A file that fails as a whole."""

    key: str
    content: bytes | str
    error_kind: str
    #: What the sentence says.
    says: str
    client: str = "acme"
    extension: str = "csv"


class Records:
    """Good records of one case: `r(2)` is the member `<key>.2`."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, number: int | str, **values: str) -> str:
        return line(f"{self.key}.{number}", **({"last_name": "SECRETNAME"} | values))


def with_byte(text: str, byte: bytes = b"\xe9") -> bytes:
    """The text, with a byte that no UTF-8 has for each tilde."""
    return text.encode().replace(b"~", byte)


def joined(*lines: str, end: str = "\n") -> bytes:
    """Lines as one record that spans them has them."""
    return end.join(lines).encode()


# --- the table's rows: what is read ------------------------------------------------------------------------------


def field_counts() -> Iterator[Case]:
    """Too few or too many fields."""
    r = Records("few")
    yield Case(
        "few", csv_of(r(1), "few.2,Bob,SECRETNAME", r(3)), Tally(4, 3, 2, 1, 1), (1, 3),
        {2: Bad(TOO_FEW, 3, b"few.2,Bob,SECRETNAME", fields=(11, 3))},
    )  # fmt: skip
    r = Records("many")
    long = r(2) + ",SECRETNAME,y"
    yield Case(
        "many", csv_of(r(1), long, r(3)), Tally(4, 3, 2, 1, 1), (1, 3),
        {2: Bad(TOO_MANY, 3, long.encode(), fields=(11, 13))},
    )  # fmt: skip
    r = Records("edges")  # first and last, the last without a line end
    yield Case(
        "edges", csv_of("SECRETNAME", r(2), r(3) + ",x")[:-1], Tally(4, 3, 1, 2, 2), (2,),
        {1: Bad(TOO_FEW, 2, b"SECRETNAME", fields=(11, 1)),
         3: Bad(TOO_MANY, 4, (r(3) + ",x").encode(), fields=(11, 12))},
    )  # fmt: skip
    yield Case(
        "nothing-good", csv_of("SECRETNAME", "SECRETNAME,x"), Tally(3, 2, 0, 2, 2), (),
        {1: Bad(TOO_FEW, 2, b"SECRETNAME", fields=(11, 1)), 2: Bad(TOO_FEW, 3, b"SECRETNAME,x", fields=(11, 2))},
    )  # fmt: skip
    r = Records("exact")  # sealed as it came, not as a CSV writer would write it today
    odd = [r(2, first_name='"Ada"', address='"12 ""Main"" St"', city='""', zip="x"), r(3, first_name="  Ada ", zip="1")]
    yield Case(
        "exact", csv_of(r(1), *odd, end="\r\n"), Tally(4, 3, 1, 2), (1,),
        {2: Bad(BAD_ZIP, 3, odd[0].encode()), 3: Bad(BAD_ZIP, 4, odd[1].encode())},
    )  # fmt: skip


def invalid_bytes() -> Iterator[Case]:
    """Bytes that are invalid in the declared encoding."""
    for place in (1, 2, 3):
        key = f"byte{place}"
        r = Records(key)
        lines = [r(n, first_name="Zo~" if n == place else "Zoë") for n in (1, 2, 3)]
        good = tuple(n for n in (1, 2, 3) if n != place)
        yield Case(
            key, with_byte(csv_of(*lines)[:-1]), Tally(4, 3, 2, 1, 1), good,
            {place: Bad(encoding("first_name"), place + 1, with_byte(lines[place - 1]))},
            values={n: {"first_name": "Zoë"} for n in good},
        )  # fmt: skip
    r = Records("bytes")
    two, broken = r(2, first_name="Zo~", city="~"), r(3, address='"12 ~,\n\nSECRETNAME"')
    yield Case(
        "bytes", with_byte(csv_of(r(1), two, broken, r(4))), Tally(7, 4, 2, 2, 2), (1, 4),
        {2: Bad(encoding("first_name", "city"), 3, with_byte(two)),
         3: Bad(encoding("address"), 4, with_byte(broken), lines=3)},
    )  # fmt: skip
    r = Records("byte-in-malformed")
    short = with_byte("byte-in-malformed.2,~~,SECRETNAME")
    yield Case(
        "byte-in-malformed", csv_of(r(1)).encode() + short + b"\n" + r(3).encode(), Tally(4, 3, 2, 1, 1), (1, 3),
        {2: Bad(TOO_FEW, 3, short, fields=(11, 3))},
    )  # fmt: skip
    r = Records("cp1252")
    bad = r(2, first_name="Zo~")
    content = csv_of(r(1, first_name="José"), bad, r(3)).encode("cp1252").replace(b"~", b"\x81")
    yield Case(
        "cp1252", content, Tally(4, 3, 2, 1, 1), (1, 3),
        {2: Bad(encoding("first_name"), 3, with_byte(bad, b"\x81"))},
        client="latin", values={1: {"first_name": "José"}},
    )  # fmt: skip


def control_characters() -> Iterator[Case]:
    """NUL, U+FFFD or other control characters in a field."""
    r = Records("control")
    lines = [r(n, first_name=f"A{c}da") for n, c in enumerate("\x00\ufffd\x01\x1b\x7f\x85\x0b", 1)]
    lines.append(r(8, city="\x00", email="\x01ada@example.com"))
    rejected = {n: Bad(control("first_name"), n + 1, text.encode()) for n, text in enumerate(lines[:7], 1)}
    several = control("city", "email") | {("email", "email.email", "email")}
    rejected[8] = Bad(several, 9, lines[7].encode())
    yield Case("control", csv_of(*lines, r(9)), Tally(10, 9, 1, 8), (9,), rejected)


def quoted_line_ends() -> Iterator[Case]:
    """A newline inside a quoted text field."""
    r = Records("newline")
    short, bad = "newline.3,SECRETNAME", r(4, address='"12 Main St\nSECRETNAME"', zip="x")
    lines = [r(1, address='"12 Main St\nApt 3"'), r(2, address='"12 Main St,\r\n\r\nApt 3"'), short, bad, r(5)]
    yield Case(
        "newline", csv_of(*lines), Tally(10, 5, 3, 2, 1), (1, 2, 5),
        {3: Bad(TOO_FEW, 7, short.encode(), fields=(11, 2)), 4: Bad(BAD_ZIP, 8, bad.encode(), lines=2)},
        values={1: {"address": "12 Main St Apt 3"}, 2: {"address": "12 Main St, Apt 3"}},
    )  # fmt: skip


def stray_quotes() -> Iterator[Case]:
    """A stray quote that swallows following records."""
    for key, end in (("stray-lf", "\n"), ("stray-crlf", "\r\n"), ("stray-cr", "\r")):
        r = Records(key)
        lines = [r(1), r(2, first_name='"Ada'), r("swallowed"), r("closes", first_name='Ada"'), r(3)]
        wide = [f"{text},2024-01-01" for text in lines]
        yield Case(
            key, csv_of(*wide, header=f"{HEADER},creation_date", end=end), Tally(6, 3, 2, 1, 1), (1, 3),
            {2: Bad(SWALLOWED, 3, joined(*wide[1:4], end=end), lines=3)},
        )  # fmt: skip
    r = Records("stray-uneven")  # it closes in another column: the fields do not number right either
    lines = [r(1), r(2, first_name='"Ada'), r("swallowed"), r("closes", last_name='SECRETNAME"'), r(3)]
    wide = [f"{text},2024-01-01" for text in lines]
    yield Case(
        "stray-uneven", csv_of(*wide, header=f"{HEADER},creation_date"), Tally(6, 3, 2, 1, 1), (1, 3),
        {2: Bad(SWALLOWED, 3, joined(*wide[1:4]), lines=3)},
    )  # fmt: skip
    r = Records("stray-quoted")  # the next quote is one that a later record opens a field with
    lines = [r(1), r(2, first_name='"Ada'), r("swallowed"), r("closes", address='"12 Main St, Apt 3"'), r(3)]
    yield Case(
        "stray-quoted", csv_of(*lines), Tally(6, 3, 2, 1, 1), (1, 3),
        {2: Bad(SWALLOWED, 3, joined(*lines[1:4]), lines=3)},
    )  # fmt: skip
    r = Records("stray-uneven-pair")
    lines = [r(1), r(2, first_name='"Ada'), r("closes", last_name='SECRETNAME"'), r(3)]
    yield Case(
        "stray-uneven-pair", csv_of(*lines), Tally(5, 3, 2, 1, 1), (1, 3),
        {2: Bad(SWALLOWED, 3, joined(*lines[1:3]), lines=2)},
    )  # fmt: skip
    r = Records("stray-pair")
    lines = [r(1, first_name='"Ada'), r("closes", first_name='Ada"'), "stray-pair.2,x", r(3)]
    yield Case(
        "stray-pair", csv_of(*lines), Tally(5, 3, 1, 2, 2), (3,),
        {1: Bad(SWALLOWED, 2, joined(*lines[:2]), lines=2), 2: Bad(TOO_FEW, 4, b"stray-pair.2,x", fields=(11, 2))},
    )  # fmt: skip


def unpaired_quotes() -> Iterator[Case]:
    """An unterminated quote; text after a closing quote; a record over the size limit."""
    for key, end, last_end in (("open", "\n", "\n"), ("open-crlf", "\r\n", "\r\n"), ("open-cut", "\n", "")):
        r = Records(key)
        lines = [r(1), r(2, address='"12 Main'), r("swallowed"), r("last")]
        text = csv_of(*lines, end=end).removesuffix(end) + last_end
        yield Case(
            key, text, Tally(5, 2, 1, 1, 1), (1,), {2: Bad(OPEN, 3, joined(*lines[1:], end=end), lines=3)}
        )  # fmt: skip
    r = Records("open-last-field")
    last = r(2, email='"ada@example.com')
    yield Case(
        "open-last-field", csv_of(r(1), last), Tally(3, 2, 1, 1, 1), (1,), {2: Bad(OPEN, 3, last.encode())}
    )  # fmt: skip
    r = Records("after")
    bad = [r(2, first_name='"Ada" Maria'), r(4, email='"ada@example.com"x')]
    yield Case(
        "after", csv_of(r(1), bad[0], r(3), bad[1], r(5)), Tally(6, 5, 3, 2, 2), (1, 3, 5),
        {2: Bad(AFTER, 3, bad[0].encode()), 4: Bad(AFTER, 5, bad[1].encode())},
    )  # fmt: skip
    for key, size in (("large", 9 << 20), ("huge", 40 << 20)):
        r = Records(key)
        large = r(2, address='"12 Main St\n' + "x" * size + '"')
        yield Case(
            key, csv_of(r(1), large, r(3)), Tally(5, 3, 2, 1, 1), (1, 3),
            {2: Bad(TOO_LARGE, 3, large.encode(), lines=2, cut=True)},
        )  # fmt: skip


def spellings() -> Iterator[Case]:
    """A header with other case, spaces, order, a BOM; line ends; UTF-16 with BOM; gzip by content."""
    headers = {
        "head-upper": HEADER.upper(),
        "head-spaces": HEADER.replace("_", " ").replace(",", " , ").title(),
        "head-quoted": ",".join(f'"{name}"' for name in HEADER.split(",")),
        "head-bom": "\ufeff" + HEADER,
    }
    for key, header in headers.items():
        r = Records(key)
        yield Case(
            key, csv_of(r(1), header=header), Tally(2, 1, 1), (1,), values={1: {"email": "ada@example.com"}}
        )  # fmt: skip
    r = Records("head-order")
    header, first, bad = (",".join(reversed(text.split(","))) for text in (HEADER, r(1), r(2, zip="x")))
    yield Case(
        "head-order", csv_of(first, bad, header=header), Tally(3, 2, 1, 1), (1,),
        {2: Bad(BAD_ZIP, 3, bad.encode())}, values={1: {"email": "ada@example.com"}},
    )  # fmt: skip
    plain = {"lf": "\n", "crlf": "\r\n", "cr": "\r", "utf-16-le": "\n", "utf-16-be": "\r\n", "gzip": "\n", "gz": "\n"}
    marks = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}
    for key, end in plain.items():
        r = Records(key)
        text = csv_of(r(1, first_name="Zoë"), f"{key}.2,SECRETNAME", r(3), end=end)
        content = marks[key] + text.encode(key) if key in marks else text.encode()
        yield Case(
            key, gzip.compress(content) if key == "gzip" else content, Tally(4, 3, 2, 1, 1), (1, 3),
            {2: Bad(TOO_FEW, 3, f"{key}.2,SECRETNAME".encode(), fields=(11, 2))},
            values={1: {"first_name": "Zoë"}}, extension="csv.gz" if key == "gz" else "csv",
        )  # fmt: skip


def what_is_no_record() -> Iterator[Case]:
    """A header repeated in the middle, blank lines, a trailer that counts right, a header only."""
    r = Records("repeat")
    yield Case(
        "repeat", csv_of(r(1), HEADER, "repeat.2,SECRETNAME", r(3), HEADER, r(4)), Tally(7, 4, 3, 1, 1, header=3),
        (1, 3, 4), {2: Bad(TOO_FEW, 4, b"repeat.2,SECRETNAME", fields=(11, 2))},
    )  # fmt: skip
    r = Records("blank")
    yield Case(
        "blank", "\n\n" + csv_of("", r(1), "", "", "blank.2,SECRETNAME", "", r(3), ""),
        Tally(11, 3, 2, 1, 1, blank=7), (1, 3), {2: Bad(TOO_FEW, 8, b"blank.2,SECRETNAME", fields=(11, 2))},
    )  # fmt: skip
    r = Records("trailer")
    yield Case(
        "trailer", csv_of(r(1), "trailer.2,SECRETNAME", "TRAILER,2"), Tally(4, 2, 1, 1, 1, trailer=1), (1,),
        {2: Bad(TOO_FEW, 3, b"trailer.2,SECRETNAME", fields=(11, 2))}, client="counted",
    )  # fmt: skip
    for key, content in (("header-only", HEADER + "\n"), ("header-no-end", "\ufeff" + HEADER)):
        yield Case(key, content, Tally(1, 0, 0), (), says="no records")


def extra_columns() -> Iterator[Case]:
    """An extra column under `review`."""
    r = Records("extra")
    bad = r(2, zip="x") + ",SECRETPLAN"
    yield Case(
        "extra", csv_of(r(1) + ",SECRETPLAN", bad, header=f"{HEADER},plan"), Tally(3, 2, 1, 1), (1,),
        {2: Bad(BAD_ZIP, 3, bad.encode())}, says="1 column(s) that the contract does not know",
        values={1: {"email": "ada@example.com"}},
    )  # fmt: skip


READ = [
    case
    for row in (field_counts, invalid_bytes, control_characters, quoted_line_ends, stray_quotes, unpaired_quotes,
                spellings, what_is_no_record, extra_columns)
    for case in row()
]  # fmt: skip


# --- the table's rows: what fails as a whole ---------------------------------------------------------------------

SECRET = line("SECRETID", first_name="SECRETNAME", address="1 SECRET St", email="secret@example.com")
GOOD = csv_of(SECRET, SECRET.replace("SECRETID", "SECRETID2"))


def zipped(*names: str) -> bytes:
    """An archive of these files, each holding a good delivery."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, GOOD)
    return buffer.getvalue()


def binary() -> bytes:
    """What no text has: NUL bytes in what would be the first line."""
    return b"\x7fELF\x00\x01" + random.Random(1).randbytes(5000) + b"SECRETNAME"


REFUSED = [
    Refused("no-dob", csv_of(SECRET, header=HEADER.replace("dob", "birthday")), "missing_column", "dob"),
    Refused("dob-twice", csv_of(SECRET, header=HEADER.replace("city", "DOB")), "duplicate_column", "dob twice"),
    Refused("no-header", f"{SECRET}\n{SECRET}\n", "missing_column", "no header"),
    Refused("pipes", GOOD.replace(",", "|"), "missing_column", "delimiter"),
    Refused("tabs", GOOD.replace(",", "\t"), "missing_column", "delimiter"),
    Refused("open-header", csv_of(SECRET, header=HEADER.replace("city", '"city')), "header", "quote"),
    Refused("empty", "", "empty_file", "empty"),
    Refused("blank-only", "\n\r\n\n", "empty_file", "empty"),
    Refused("empty-gzip", gzip.compress(b""), "empty_file", "empty"),
    Refused("binary", binary(), "not_text", "binary"),
    Refused("utf-16-no-bom", GOOD.encode("utf-16-le"), "not_text", "UTF-16"),
    Refused("utf-16-cut", GOOD.encode("utf-16")[:-1], "damaged_utf16", "UTF-16"),
    Refused("gzip-cut", gzip.compress(GOOD.encode())[:-12], "damaged_gzip", "gzip", extension="csv.gz"),
    Refused("gzip-half", gzip.compress(GOOD.encode())[:60], "damaged_gzip", "gzip"),
    Refused("zip", zipped("acme.csv"), "not_text", "ZIP"),
    Refused("xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), "not_text", "Excel"),
    Refused("xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"SECRETNAME" * 99, "not_text", "Excel"),
    Refused("pdf", b"%PDF-1.7\n" + GOOD.encode(), "not_text", "PDF"),
    Refused("trailer-wrong", csv_of(SECRET, SECRET, "TRAILER,3"), "trailer", "3 records", client="counted"),
    Refused("trailer-gone", GOOD, "trailer", "trailer", client="counted"),
    Refused("trailer-unread", csv_of(SECRET, "TRAILER,SECRETNAME"), "trailer", "number of records", client="counted"),
    Refused("frozen", csv_of(SECRET + ",SECRETPLAN", header=f"{HEADER},plan"), "extra_column", "frozen", "frozen"),
]

FILES: list[Case | Refused] = [*READ, *REFUSED]
DAYS = {case.key: date(2024, 1, 1) + timedelta(days=number) for number, case in enumerate(FILES)}

#: A file that leads nowhere -> what its row says.
UNROUTABLE = {
    "nobody_20240101.csv": "client",
    "acme.csv": "does not follow",
    "acme_20240101_3.csv": "does not follow",
    "acme_20240230.csv": "does not exist",
    "acme_20990101.csv": "future",
}


def file_name(case: Case | Refused) -> str:
    return f"{case.client}_{DAYS[case.key]:%Y%m%d}.{case.extension}"


def content(case: Case | Refused) -> bytes:
    return case.content.encode() if isinstance(case.content, str) else case.content


# --- the two ways ------------------------------------------------------------------------------------------------


@dataclass
class Way:
    """An installation below `root`, and one way to have it take what has landed."""

    root: Path
    #: Whatever was printed, logged, stored or returned on the way.
    said: list[str] = field(default_factory=list)

    @property
    def home(self) -> Platform:
        return Platform.open(places_in(self.root))

    def land(self, name: str, content: bytes | str) -> Path:
        path = places_in(self.root).landing / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def configure(self, client_id: str, text: str) -> None:
        (places_in(self.root).configs / f"{client_id}.yaml").write_text(text)

    def take(self) -> dict[str, bool]:
        """Take what has landed; file name -> whether it went well, for each file that was taken on."""
        raise NotImplementedError


@dataclass
class CommandLine(Way):
    """`healthingest ingest --all`."""

    def take(self) -> dict[str, bool]:
        places = places_in(self.root)
        done = CliRunner().invoke(app, ["ingest", "--all", "--json"], env=env_of(places))
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        self.said.append(done.output)
        rows = json.loads(done.stdout)["files"]
        assert all((places.landing / row["file"]).exists() for row in rows)
        return {r["file"]: r["status"] == "succeeded" for r in rows if r["status"] in {"succeeded", "held", "failed"}}


@dataclass
class Sensor(Way):
    """Ticks of the sensor `landing_zone`, and the runs it asks for, until it asks for none."""

    instance: dg.DagsterInstance = field(default_factory=dg.DagsterInstance.ephemeral)
    cursor: str | None = None
    #: Dagster starts one run per key, ever.
    run_keys: set[str] = field(default_factory=set)

    def take(self) -> dict[str, bool]:
        defs = build_defs(places_in(self.root))
        repository = defs.get_repository_def()
        sensor = repository.get_sensor_def("landing_zone")
        job = defs.resolve_job_def("ingest_delivery")
        taken: dict[str, bool] = {}
        while True:
            context = dg.build_sensor_context(
                self.instance, cursor=self.cursor, repository_def=repository, sensor_name="landing_zone"
            )
            tick = sensor.evaluate_tick(context)
            self.cursor = tick.cursor
            self.said += [str(tick.skip_message), *map(str, tick.asset_events)]
            new = [r for r in tick.run_requests or [] if r.run_key not in self.run_keys]
            if not new:
                return taken
            for request in new:
                self.run_keys.add(str(request.run_key))
                name = request.tags["healthingest/file"]
                assert request.partition_key == partition_of(name)
                done = job.execute_in_process(
                    instance=self.instance, partition_key=request.partition_key, run_config=request.run_config,
                    tags=request.tags, raise_on_error=False,
                )  # fmt: skip
                self.said += [str(entry) for entry in self.instance.all_logs(done.run_id)]
                taken[name] = done.success


WAYS: dict[str, type[Way]] = {"command line": CommandLine, "sensor": Sensor}


def partition_of(name: str) -> str:
    client, day = name.split(".", maxsplit=1)[0].split("_")
    return f"{client}|{date.fromisoformat(day)}"


@dataclass
class Taken:
    """What one way made of all files of this module, read from the tables once."""

    way: Way
    first: dict[str, bool]
    second: dict[str, bool]
    #: File name -> its stat when it landed.
    landed: dict[str, tuple[int, int, int]]

    @cached_property
    def home(self) -> Platform:
        return self.way.home

    @cached_property
    def audit(self) -> dict[str, list[dict[str, Any]]]:
        """File name -> its audit rows."""
        return by_name(self.home.lake.audit.frame())

    @cached_property
    def quarantine(self) -> dict[str, list[dict[str, Any]]]:
        return by_name(self.home.lake.quarantine.frame().sort("record_no"))

    @cached_property
    def silver(self) -> pl.DataFrame:
        return self.home.lake.silver.frame(["_file_id", "_record_no"])

    @cached_property
    def exported(self) -> pl.DataFrame:
        return export_frame(self.home)

    def row(self, case: Case | Refused) -> dict[str, Any]:
        (row,) = self.audit[file_name(case)]
        return row

    def rejected(self, case: Case | Refused) -> dict[int, dict[str, Any]]:
        rows = self.quarantine.get(file_name(case), [])
        numbers = {row["record_no"]: row for row in rows}
        assert len(numbers) == len(rows), "no record is rejected twice"
        return numbers

    def received(self, row: dict[str, Any]) -> bytes:
        """A rejected record, opened."""
        return open_record(
            self.home.keyring, row["client_id"], row["file_id"], row["record_no"], row["sealed_record"]
        )  # fmt: skip

    def members(self, case: Case | Refused) -> pl.DataFrame:
        """What an export shows of a file's members; no member of this module comes in two files."""
        mine = (pl.col("client_id") == case.client) & (pl.col("creation_date") == DAYS[case.key])
        return self.exported.filter(mine)


def by_name(rows: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    named: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_dicts():
        named.setdefault(row["file_name"], []).append(row)
    return named


def seen(path: Path) -> tuple[int, int, int]:
    info = path.stat()
    return info.st_mtime_ns, info.st_ctime_ns, info.st_mode


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Taken]]:
    """Every file of this module, taken both ways, and looked for a second time."""
    made: dict[str, Taken] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "QUIET_SECONDS", 0.05)
        patch.delenv("DAGSTER_HOME", raising=False)
        for name, kind in WAYS.items():
            root = tmp_path_factory.mktemp(name.replace(" ", "_"))
            install(root, CLIENTS)
            way = kind(root)
            landed = {file_name(case): seen(way.land(file_name(case), content(case))) for case in FILES}
            for unroutable in UNROUTABLE:
                way.land(unroutable, GOOD)
            made[name] = Taken(way, way.take(), way.take(), landed)
        yield made


@pytest.fixture(params=list(WAYS))
def taken(both: dict[str, Taken], request: pytest.FixtureRequest) -> Taken:
    return both[request.param]


each_read = pytest.mark.parametrize("case", READ, ids=[case.key for case in READ])
each_refused = pytest.mark.parametrize("case", REFUSED, ids=[case.key for case in REFUSED])
each_file = pytest.mark.parametrize("case", FILES, ids=[case.key for case in FILES])


# --- files that are read -----------------------------------------------------------------------------------------


@each_read
def test_a_file_that_can_be_read_succeeds_and_every_line_is_counted(taken: Taken, case: Case) -> None:
    row = taken.row(case)
    counts = Tally(
        row["physical_lines"], row["records"], row["accepted"], row["rejected"], row["malformed"], row["header_lines"],
        row["blank_lines"], row["trailer_lines"],
    )  # fmt: skip
    assert (row["status"], row["error_kind"]) == ("succeeded", None)
    assert counts == case.tally
    assert row["inserted"] == row["accepted"] == len(case.accepted)
    assert row["rejected"] == len(case.rejected)
    assert row["physical_lines"] == sum(row[name] for name in ("header_lines", "record_lines", "blank_lines",
                                                               "trailer_lines"))  # fmt: skip
    assert case.says in (row["message"] or "")
    assert taken.first[file_name(case)], "the run went well, and the command named the file"


@each_read
def test_each_rejected_record_is_in_quarantine_with_its_reasons(taken: Taken, case: Case) -> None:
    rows = taken.rejected(case)
    found = {n: {(r["column"], r["rule"], r["kind"]) for r in row["reasons"]} for n, row in rows.items()}
    assert found == {n: bad.reasons for n, bad in case.rejected.items()}
    assert {row["state"] for row in rows.values()} <= {"open"}
    for number, bad in case.rejected.items():
        if bad.fields:
            assert (rows[number]["expected_fields"], rows[number]["found_fields"]) == bad.fields


@each_read
def test_each_rejected_record_says_on_which_lines_it_stands_and_under_which_config(taken: Taken, case: Case) -> None:
    rows = taken.rejected(case)
    found = {n: (row["line_no"], row["lines"]) for n, row in rows.items()}
    assert found == {n: (bad.line_no, bad.lines) for n, bad in case.rejected.items()}
    client = taken.home.clients.clients[case.client]
    assert {row["config_hash"] for row in rows.values()} <= {client.config_hash}
    assert taken.row(case)["config_hash"] == client.config_hash


@each_read
def test_a_rejected_record_opens_to_the_bytes_that_were_received(taken: Taken, case: Case) -> None:
    opened = {n: taken.received(row) for n, row in taken.rejected(case).items()}
    assert opened.keys() == case.rejected.keys()
    for number, bad in case.rejected.items():
        if bad.cut:
            assert bad.raw.startswith(opened[number])
            assert len(opened[number]) >= 1000
        else:
            assert opened[number] == bad.raw


@each_read
def test_the_accepted_records_are_in_silver_and_no_others(taken: Taken, case: Case) -> None:
    mine = taken.silver.filter(pl.col("_file_id") == taken.row(case)["file_id"])
    assert sorted(mine["_record_no"]) == list(case.accepted)
    members = {row["member_id"]: row for row in taken.members(case).to_dicts()}
    assert sorted(members) == sorted(f"{case.key}.{number}" for number in case.accepted)
    for number, values in case.values.items():
        member = members[f"{case.key}.{number}"]
        assert {column: member[column] for column in values} == values


# --- files that fail as a whole ----------------------------------------------------------------------------------


@each_refused
def test_a_file_that_cannot_be_read_fails_as_a_whole(taken: Taken, case: Refused) -> None:
    row = taken.row(case)
    assert (row["status"], row["error_kind"]) == ("failed", case.error_kind)
    assert taken.silver.filter(pl.col("_file_id") == row["file_id"]).is_empty()
    assert taken.members(case).is_empty()
    assert taken.rejected(case) == {}
    assert taken.first[file_name(case)] is False, "the run fails too, and so does the command"


@each_refused
def test_a_failed_file_gets_one_sentence_without_a_value(taken: Taken, case: Refused) -> None:
    message = taken.row(case)["message"]
    assert case.says in message
    assert "SECRET" not in message.upper()
    assert len(re.findall(r"[.!?](?=\s|$)", message)) == 1, "one sentence"
    assert message.endswith(".")
    assert "\n" not in message
    assert any(file_name(case) in said and message in said for said in taken.way.said), "and it is shown"


# --- all files ---------------------------------------------------------------------------------------------------


@each_file
def test_both_ways_come_to_the_same(both: dict[str, Taken], case: Case | Refused) -> None:
    def told(taken: Taken) -> tuple[object, ...]:
        of_its_own = {"file_id", "run_id", "content_hmac", "started_at", "ingestion_time", "duration_s"}
        row = {k: v for k, v in taken.row(case).items() if k not in of_its_own | {"silver_version"}}
        secret = {"file_id", "run_id", "sealed_record", "quarantined_at"}
        rejected = [
            ({k: v for k, v in bad.items() if k not in secret}, taken.received(bad))
            for bad in taken.rejected(case).values()
        ]
        return row, rejected, taken.members(case).drop("last_seen").to_dicts()

    command_line, sensor = (told(taken) for taken in both.values())
    assert command_line == sensor


@each_file
def test_the_landed_file_stays_byte_for_byte_as_it_was(taken: Taken, case: Case | Refused) -> None:
    path = taken.home.places.landing / file_name(case)
    assert path.read_bytes() == content(case)
    assert seen(path) == taken.landed[path.name]


def test_every_file_has_one_audit_row_and_none_is_lost(taken: Taken) -> None:
    rows = {name: len(rows) for name, rows in taken.audit.items()}
    assert rows == dict.fromkeys([*map(file_name, FILES), *UNROUTABLE], 1)
    assert set(taken.first) == set(map(file_name, FILES))
    assert taken.second in ({}, taken.first), "a second look finds nothing else"


def test_no_value_of_a_record_stands_where_people_without_keys_read(taken: Taken) -> None:
    clear = [str(row) for rows in taken.audit.values() for row in rows]
    clear += [str({k: v for k, v in row.items() if k != "sealed_record"}) for rows in taken.quarantine.values()
              for row in rows]  # fmt: skip
    assert [text for text in [*taken.way.said, *clear] if "SECRET" in text.upper()] == []
    logs = [p for p in taken.home.places.output.rglob("_delta_log/*") if p.is_file()]
    assert logs
    assert [p for p in logs if b"SECRET" in p.read_bytes().upper()] == []


@pytest.mark.parametrize("name", UNROUTABLE)
def test_a_file_that_leads_nowhere_gets_one_row_also_after_a_second_look(taken: Taken, name: str) -> None:
    (row,) = taken.audit[name]
    assert (row["status"], row["error_kind"]) == ("unroutable", "unroutable")
    assert UNROUTABLE[name] in row["message"]
    assert row["file_bytes"] == len(GOOD)
    assert row["records"] is None
    assert name not in taken.first
    assert (taken.home.places.landing / name).read_text() == GOOD
    assert taken.silver.filter(pl.col("_file_id") == row["file_id"]).is_empty()


# --- files that wait, and files that come again ------------------------------------------------------------------


@pytest.fixture(params=list(WAYS))
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Way:
    """A fresh installation with the client `acme`."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    install(tmp_path)
    return WAYS[request.param](tmp_path)


def audited(way: Way) -> list[tuple[str, int, str]]:
    rows = way.home.lake.audit.frame(["file_name", "delivery_no", "status"])
    return rows.sort("file_name", "delivery_no").rows()


def cities(way: Way) -> dict[str, str]:
    return dict(export_frame(way.home).select("member_id", "city").iter_rows())


def state(way: Way) -> tuple[dict[str, int | None], set[Path]]:
    """The version of each table, and every file below the output folder."""
    lake = way.home.lake
    tables = (lake.silver, lake.quarantine, lake.sightings, lake.audit)
    output = way.home.places.output
    return {t.path.name: t.version() for t in tables}, {p for p in output.rglob("*") if p.is_file()}


def test_a_file_that_is_still_being_written_or_is_marked_so_waits(way: Way) -> None:
    waiting = [".acme_20240301.csv", "acme_20240302.csv.tmp", "acme_20240303.csv.part"]
    for number, name in enumerate(waiting, 1):
        way.land(name, csv_of(line(f"W{number}")))
    way.land("acme_20240305.csv", csv_of(line("M1")))
    growing = places_in(way.root).landing / "acme_20240304.csv"
    with growing.open("w") as handle:
        handle.write(csv_of(line("W4")))
        handle.flush()
        first, second = way.take(), way.take()
        assert audited(way) == [("acme_20240305.csv", 1, "succeeded")]
        assert set(first) == {"acme_20240305.csv"}
        assert set(second) <= {"acme_20240305.csv"}
        handle.write(line("W5") + "\n")

    for name in waiting:
        path = growing.with_name(name)
        path.rename(path.with_name(name.removeprefix(".").removesuffix(".tmp").removesuffix(".part")))
    assert way.take()["acme_20240304.csv"]
    assert audited(way) == [(f"acme_2024030{day}.csv", 1, "succeeded") for day in (1, 2, 3, 4, 5)]
    assert sorted(cities(way)) == ["M1", "W1", "W2", "W3", "W4", "W5"], "what was written last is there"


def test_the_same_name_with_the_same_bytes_again_is_no_work(way: Way) -> None:
    text = csv_of(line("M1"), "short")
    way.land("acme_20240106.csv", text)
    assert way.take() == {"acme_20240106.csv": True}
    before = state(way)
    for _ in range(2):
        way.land("acme_20240106.csv", text)
        way.take()
        assert state(way) == before
    assert audited(way) == [("acme_20240106.csv", 1, "succeeded")]


def test_the_same_name_with_other_bytes_is_a_new_delivery_that_wins(way: Way) -> None:
    texts = [csv_of(line("M1", city=city), line("M2", city=city), "short") for city in ("Boston", "Salem")]
    for text in texts:
        way.land("acme_20240106.csv", text)
        assert way.take() == {"acme_20240106.csv": True}
    assert cities(way) == {"M1": "Salem", "M2": "Salem"}
    assert audited(way) == [("acme_20240106.csv", 1, "succeeded"), ("acme_20240106.csv", 2, "succeeded")]
    bronze = way.home.lake.bronze
    kept = sorted((r.delivery for r in bronze.of_client("acme")), key=lambda d: d.delivery_no)
    assert [bronze.open(delivery).read().decode() for delivery in kept] == texts
    assert way.home.lake.quarantine.frame()["file_id"].n_unique() == 2, "each delivery keeps its own rejected records"


def test_files_of_a_client_with_a_broken_config_wait_until_it_is_mended(way: Way) -> None:
    way.configure("acme", "client_id: acme\nrulez: 1\n")
    way.configure("globex", "client_id: globex\n")
    for client in ("acme", "globex"):
        way.land(f"{client}_20240106.csv", csv_of(line("M1")))

    assert way.take() == {"globex_20240106.csv": True}
    assert audited(way) == [("globex_20240106.csv", 1, "succeeded")], "a file that waits is not unroutable"
    assert any("acme.yaml:2, key 'rulez'" in said for said in way.said)

    way.configure("acme", "client_id: acme\n")
    assert way.take()["acme_20240106.csv"]
    assert audited(way) == [("acme_20240106.csv", 1, "succeeded"), ("globex_20240106.csv", 1, "succeeded")]
    assert export_frame(way.home)["client_id"].to_list() == ["acme", "globex"]
