"""Any bytes: framing against a byte-wise reference, undamaged records byte for byte, and every line accounted for."""

import csv
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthingest.contracts.clients import Client, ClientConfig
from healthingest.contracts.contract import Contract
from healthingest.errors import DeliveryError
from healthingest.records import frame as frame_module
from healthingest.records.damage import RECORD_NO
from healthingest.records.frame import Framer
from healthingest_tests.conftest import examples
from healthingest_tests.unit.test_records import check, plain_client, reader_of

ENDS = ["\n", "\r\n", "\r"]
NAMES = ["member_id", "first_name", "last_name", "dob", "note_a", "note_b", "note_c", "note_d", "note_e"]


@contextmanager
def blocks_of(size: int, limit: int = frame_module.LIMIT) -> Iterator[None]:
    """Let the framer read in blocks of this size: what stands at their edges must not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frame_module, "_BLOCK", size)
        patch.setattr(frame_module, "RECORDS", 2 if size < 9 else 200_000)
        patch.setattr(frame_module, "LIMIT", limit)
        patch.setattr(frame_module, "KEPT", min(limit, frame_module.KEPT))
        yield


# --- where records end ----------------------------------------------------------------------------------------


def line_end(data: bytes, at: int) -> int:
    """Length of the line end that stands here."""
    return 2 if data[at : at + 2] == b"\r\n" else 1 if data[at : at + 1] in {b"\r", b"\n"} else 0


def reference(data: bytes) -> list[tuple[bytes, int, int, str | None]]:
    """RFC 4180 a byte at a time: (record, first line, lines, fault) of each record."""
    records, at, line_no = [], 0, 1
    while at < len(data):
        if length := line_end(data, at):
            at, line_no = at + length, line_no + 1
            continue
        end, fault = record_end(data, at)
        record = data[at:end]
        if fault == "unterminated_quote":
            record = re.sub(rb"(\r\n|\r|\n)\Z", b"", record)
        lines = len(re.findall(rb"\r\n|\r|\n", record)) + 1
        records.append((record, line_no, lines, fault))
        line_no += lines
        at = end + line_end(data, end)
    return records


def record_end(data: bytes, at: int) -> tuple[int, str | None]:
    start = at
    while True:
        if data[at : at + 1] == b'"':
            at += 1
            while at < len(data) and (data[at : at + 1] != b'"' or data[at : at + 2] == b'""'):
                at += 2 if data[at : at + 2] == b'""' else 1
            if at >= len(data):
                return len(data), "unterminated_quote"
            at += 1
            if at < len(data) and data[at : at + 1] != b"," and not line_end(data, at):
                lines_before = [m.end() for m in re.finditer(rb"\r\n|\r|\n", data[start:at])]
                if lines_before:  # that line's own record, read from its start, is taken in as a whole, if it ends
                    end, fault = record_end(data, start + lines_before[-1])
                    if fault != "unterminated_quote":
                        return end, "text_after_quote"
                while at < len(data) and not line_end(data, at):
                    at += 1
                return at, "text_after_quote"
        while at < len(data) and data[at : at + 1] != b"," and not line_end(data, at):
            at += 1
        if at >= len(data) or line_end(data, at):
            return at, None
        at += 1


_BYTES = st.lists(st.sampled_from([b"a", b"b", b",", b",", b'"', b'"', b"\n", b"\n", b"\r", b"\xff"]), max_size=60)


@given(_BYTES, st.sampled_from([1, 2, 3, 5, 8, 20, 1000]))
@settings(max_examples=examples(400), deadline=None)
def test_records_end_where_the_grammar_says_whatever_the_blocks(pieces: list[bytes], block: int) -> None:
    data = b"".join(pieces)
    with blocks_of(block):
        framer = Framer(io.BytesIO(data), ",", '"')
        got = [
            (f.record(i), int(f.line_nos[i]), int(f.lines[i]), f.faults.get(i))
            for f in framer
            for i in range(len(f.starts))
        ]
    assert got == reference(data)


@given(_BYTES, st.sampled_from([1, 3, 8, 1000]))
@settings(max_examples=examples(200), deadline=None)
def test_every_line_belongs_to_one_record_or_is_blank_also_where_records_are_too_long(
    pieces: list[bytes], block: int
) -> None:
    data = b"".join(pieces)
    with blocks_of(block, limit=10):
        framer = Framer(io.BytesIO(data), ",", '"')
        frames = list(framer)
    lines = len(re.findall(rb"\r\n|\r|\n", data)) + bool(re.search(rb"[^\r\n]\Z", data))
    assert sum(int(f.lines.sum()) for f in frames) + framer.blank_lines == lines
    assert all(len(f.record(i)) <= 10 for f in frames for i in range(len(f.starts)))


# --- what a conforming writer wrote ---------------------------------------------------------------------------


def text_client(**source: object) -> Client:
    """A client whose contract asks nothing of its columns but an id, so that only the reader decides."""
    policy = {name: {"vault": "contact"} for name in NAMES} | {"member_id": {"token": True}}
    columns = [
        {"name": name, "type": "text", "required": name == "member_id", "policy": policy[name]} for name in NAMES
    ]
    contract = Contract.model_validate({"contract": "text", "version": 1, "columns": columns})
    return Client("acme", ClientConfig.model_validate({"client_id": "acme", "source": source}), contract)


#: Any text that UTF-8 can carry; NUL and other control characters are the contract's business, not the reader's.
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text("ab,;|\"'\n\r é李", max_size=12)
_RECORD = st.tuples(st.integers(1, 10**6).map(str), *[_TEXT] * (len(NAMES) - 1)).map(list)
_DAMAGE = st.sampled_from(["short", "long", "byte", "open", "stray", "after"])


def written(record: list[str], end: str, delimiter: str, quote: str, quoting: int) -> bytes:
    out = io.StringIO(newline="")
    if end != "\r\n":  # Python 3.11 quotes only those line ends that it writes itself
        quoting = csv.QUOTE_ALL
    csv.writer(out, delimiter=delimiter, quotechar=quote, lineterminator=end, quoting=quoting).writerow(record)
    return out.getvalue().encode()


def damaged(how: str, record: list[str], end: str, delimiter: str, quote: str) -> bytes:
    """One record spoilt in a way that leaves its neighbours alone; only `open` and `stray` may take them in."""
    plain = [re.sub(r"[^a-z]", "", cell) for cell in record]
    plain[0] = record[0]
    if how == "short":
        plain = plain[:-2]
    elif how == "long":
        plain.append("x")
    elif how == "after":
        plain[3] = f"{quote}x{quote}y"
    elif how in {"open", "stray"}:
        plain[3] = f"{quote}x"
    raw = (delimiter.join(plain) + end).encode()
    return raw.replace(delimiter.encode(), delimiter.encode() + b"\xff", 1) if how == "byte" else raw


@given(
    st.lists(st.tuples(_RECORD, st.none() | _DAMAGE), max_size=8),
    st.sampled_from(ENDS),
    st.sampled_from([(",", '"'), ("|", '"'), ("\t", "'"), (";", "'")]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.sampled_from([7, 100, 1 << 20]),
    st.booleans(),
)
@settings(max_examples=examples(200), deadline=None)
def test_every_undamaged_record_survives_byte_for_byte_among_damaged_ones(
    records: list[tuple[list[str], str | None]],
    end: str,
    dialect: tuple[str, str],
    quoting: int,
    block: int,
    last_end: bool,
) -> None:
    delimiter, quote = dialect
    data = written(NAMES, end, delimiter, quote, quoting)
    line_of: dict[int, tuple[list[str], str | None]] = {}
    for record, how in records:
        line_of[len(re.findall(rb"\r\n|\r|\n", data)) + 1] = (record, how)
        part = damaged(how, record, end, delimiter, quote) if how else written(record, end, delimiter, quote, quoting)
        data += part
    if not last_end:
        data = data.removesuffix(end.encode())
    client = text_client(delimiter=delimiter, quote=quote)
    with blocks_of(block):
        reader = reader_of(data, client)
        batches = list(reader)
    rows = pl.concat([pl.DataFrame(schema={RECORD_NO: pl.Int64} | dict.fromkeys(NAMES, pl.String)),
                      *(b.rows.select(RECORD_NO, *NAMES) for b in batches)])  # fmt: skip
    kept = {row[0]: ["" if cell is None else cell for cell in row[1:]] for row in rows.rows()}
    spans = [(r["line_no"], r["lines"]) for b in batches for r in b.rejected.to_dicts()]
    numbers = sorted([*kept, *(n for b in batches for n in b.rejected[RECORD_NO])])
    assert numbers == list(range(1, len(numbers) + 1))
    taken_in = {line for first, lines in spans for line in range(first, first + lines)}
    untouched = [record for line, (record, how) in line_of.items() if how is None and line not in taken_in]
    assert list(kept.values()) == untouched
    # Only an opened quote, or a field that looks like whole records, may cost an undamaged record.
    opened = any(how in {"open", "stray"} for _, how in records)
    lost = [record for line, (record, how) in line_of.items() if how is None and line in taken_in]
    assert opened or all(any(delimiter in c and re.search("[\r\n]", c) for c in record) for record in lost)
    assert all(line in taken_in for line, (_, how) in line_of.items() if how)


# --- any bytes at all -----------------------------------------------------------------------------------------

_HEAD = b"member_id,first_name,last_name,dob\n"
_PIECES = [
    b",",
    b'"',
    b"\n",
    b"\r",
    b"\r\n",
    b"x",
    b"\x00",
    b"\xff",
    b"\xc3\xa9",
    b"\xef\xbb\xbf",
    b"1990-01-01",
    _HEAD,
]
_ANY = st.binary(max_size=300) | st.lists(st.sampled_from(_PIECES), max_size=60).map(b"".join)


@given(
    _ANY,
    st.booleans(),
    st.sampled_from(["plain", "gzip", "bom"]),
    st.sampled_from([["utf-8"], ["utf-8", "cp1252"], ["cp1252"], ["ascii"], ["utf-16"]]),
    st.sampled_from(['"', "'", "none"]),
    st.sampled_from([9, 100, 1 << 20]),
    st.sampled_from([40, frame_module.LIMIT]),
)
@settings(max_examples=examples(400), deadline=None)
def test_any_bytes_are_read_with_every_line_accounted_for_or_refused_as_a_whole(
    body: bytes, headed: bool, pack: str, encodings: list[str], quote: str, block: int, limit: int
) -> None:
    text = (_HEAD if headed else b"") + body
    data = {"plain": text, "gzip": gzip.compress(text), "bom": b"\xef\xbb\xbf" + text}[pack]
    client = plain_client(source={"encoding": encodings, "quote": quote})
    try:
        with blocks_of(block, limit):
            check(data, client)  # holds the accounting, the numbering and the reasons itself
    except DeliveryError as error:
        assert not headed or error.kind in {"not_text", "header", "missing_column", "duplicate_column", "damaged_utf16"}  # noqa: PT017
