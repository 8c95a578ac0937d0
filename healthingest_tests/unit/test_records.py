"""One file's records: what the reader gives back, what is rejected and why, and what values become."""

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthingest.contracts.clients import Client, ClientConfig
from healthingest.contracts.contract import Contract, load_contract
from healthingest.errors import DeliveryError
from healthingest.landing.preflight import Preflight
from healthingest.model import Counts, Profile
from healthingest.records import frame as frame_module
from healthingest.records import validate
from healthingest.records.check import check_records
from healthingest.records.damage import RECORD_NO
from healthingest.records.read import RecordReader
from healthingest.records.standardize import clean, standard_form
from healthingest.records.validate import Validator
from healthingest_tests.conftest import CONTRACTS, DATA, HEADER, csv_of, examples, line

DAY = date(2025, 1, 6)
ClientOf = Callable[[str], Client]


def plain_client(**config: object) -> Client:
    """A client of the member contract without a file behind it."""
    parsed = ClientConfig.model_validate({"client_id": "acme", **config})
    return Client("acme", parsed, load_contract(CONTRACTS.parent, "member/1"))


def reader_of(data: bytes, client: Client) -> RecordReader:
    source = client.config.source
    trailer = source.trailer
    preflight = Preflight(
        source.encodings, trailer and trailer.starts_with, trailer and trailer.count_field, source.delimiter
    )
    preflight.feed(data)
    return RecordReader(io.BytesIO(data), preflight.facts(), client)


@dataclass
class Result:
    """What one file became, in plain Python."""

    accepted: dict[int, dict[str, str | None]]
    #: record_no -> {(column, rule, kind)}
    reasons: dict[int, set[tuple[str | None, str, str]]]
    raw: dict[int, bytes]
    #: record_no -> (first physical line, number of lines)
    lines: dict[int, tuple[int, int]]
    fields: dict[int, tuple[int | None, int | None]]
    counts: Counts
    extra: tuple[str, ...] = field(default=())
    profile: Profile = field(default_factory=Profile)


def check(data: str | bytes, client: Client | None = None) -> Result:
    data = data.encode() if isinstance(data, str) else data
    client = client or plain_client()
    done = check_records(lambda: reader_of(data, client), client, DAY, lambda *_: None)
    bad = done.rejected.to_dicts()
    result = Result(
        {row.pop(RECORD_NO): row for row in done.accepted.frame().to_dicts()},
        {row[RECORD_NO]: {(r["column"], r["rule"], r["kind"]) for r in row["reasons"]} for row in bad},
        {row[RECORD_NO]: row["raw"] for row in bad},
        {row[RECORD_NO]: (row["line_no"], row["lines"]) for row in bad},
        {row[RECORD_NO]: (row["expected_fields"], row["found_fields"]) for row in bad},
        done.counts,
        done.extra_columns,
        done.profile,
    )
    c = done.counts
    assert c.physical_lines == c.header_lines + c.record_lines + c.blank_lines + c.trailer_lines
    assert c.records == c.accepted + c.rejected
    assert (len(result.accepted), len(result.reasons)) == (c.accepted, c.rejected)
    assert not result.accepted.keys() & result.reasons.keys()
    assert all(result.reasons.values())
    return result


def rules(result: Result, record_no: int) -> set[str]:
    return {rule for _, rule, _ in result.reasons[record_no]}


def failure(data: str | bytes, client: Client | None = None) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        check(data, client)
    return caught.value


# --- the reader -----------------------------------------------------------------------------------------------


def test_records_are_numbered_from_one_without_the_header() -> None:
    result = check(csv_of(line("M1"), line("M2"), line("M3")))
    assert {n: row["member_id"] for n, row in result.accepted.items()} == {1: "M1", 2: "M2", 3: "M3"}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_short_and_long_records_are_rejected_with_their_field_counts(end: str) -> None:
    result = check(csv_of(line("M1"), "M2,Bob,Hope", line("M3"), line("M4") + ",x,y", line("M5"), end=end))
    assert result.reasons[2] == {(None, "too_few_fields", "malformed")}
    assert result.reasons[4] == {(None, "too_many_fields", "malformed")}
    assert result.fields == {2: (11, 3), 4: (11, 13)}
    assert result.raw == {2: b"M2,Bob,Hope", 4: line("M4").encode() + b",x,y"}
    assert sorted(result.accepted) == [1, 3, 5]
    assert result.counts.malformed == 2


def test_malformed_first_last_and_only_records_keep_their_numbers() -> None:
    result = check(csv_of("x", "y", line("M3"), "z"))
    assert sorted(result.reasons) == [1, 2, 4]
    assert sorted(result.accepted) == [3]
    only = check(csv_of("x", "y"))
    assert sorted(only.reasons) == [1, 2]


def test_numbers_stay_right_over_batches_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_module, "_BLOCK", 1000)
    lines = [f"M{n}" if n % 9 == 0 else line(f"M{n}") for n in range(1, 400)]
    result = check(csv_of(*lines))
    assert sorted(result.reasons) == [n for n in range(1, 400) if n % 9 == 0]
    assert all(row["member_id"] == f"M{n}" for n, row in result.accepted.items())
    assert all(raw == f"M{n}".encode() for n, raw in result.raw.items())


def test_an_invalid_byte_rejects_its_record_alone_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    bad = line("M2").encode().replace(b"Lovelace", b"Lov\xe9lace")
    data = csv_of(line("M1", last_name="Ünal")).encode() + bad + b"\n" + csv_of(line("M3"), header="").encode()[1:]
    result = check(data)
    assert result.accepted[1]["last_name"] == "Ünal"
    assert result.reasons == {2: {("last_name", "encoding", "encoding")}}
    assert result.raw[2] == bad
    assert sorted(result.accepted) == [1, 3]
    assert capfd.readouterr() == ("", "")


def test_an_invalid_byte_in_a_malformed_record_rejects_that_record_alone(capfd: pytest.CaptureFixture[str]) -> None:
    data = csv_of(line("M1")).encode() + b"M2,\xff\xfe,short\n" + line("M3").encode()
    result = check(data)
    assert result.reasons == {2: {(None, "too_few_fields", "malformed")}}
    assert result.raw[2] == b"M2,\xff\xfe,short"
    assert sorted(result.accepted) == [1, 3]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["cp1252", ["utf-8", "cp1252"]])
def test_an_invalid_byte_in_the_clients_own_encoding_rejects_its_record_alone(encoding: str | list[str]) -> None:
    data = csv_of(line("M1", first_name="José"), line("M2", first_name="ZoX")).encode("cp1252")
    result = check(data.replace(b"ZoX", b"Zo\x81"), plain_client(source={"encoding": encoding}))
    assert result.accepted[1]["first_name"] == "José"
    assert result.reasons == {2: {("first_name", "encoding", "encoding")}}


def test_what_is_sealed_of_an_undecodable_record_keeps_the_clients_delimiter() -> None:
    client = plain_client(source={"delimiter": "|"})
    bad = line("M1").encode().replace(b",", b"|").replace(b"Main St", b"Main, \xff")
    assert check(HEADER.replace(",", "|").encode() + b"\n" + bad + b"\n", client).raw[1] == bad


def test_the_raw_bytes_of_a_swallowed_record_survive_an_undecodable_neighbour() -> None:
    closing = 'M3,Zoë,Lovelace,1980-12-10,F,12 Main",Boston,MA,02139,,'
    undecodable = line("M4", first_name="?").encode().replace(b"?", b"\xff")
    data = csv_of(line("M1"), line("M2", address='"12 Main'), closing).encode() + undecodable
    result = check(data)
    assert rules(result, 2) == {"swallowed_records"}
    assert "Zoë".encode() in result.raw[2]
    assert rules(result, 3) == {"encoding"}


@pytest.mark.parametrize(
    "character", ["\x00", "\x01", "\x08", "\x0b", "\x0c", "\x1b", "\x1f", "\x7f", "\x85", "\x9f", "�"]
)
@pytest.mark.parametrize("where", ["{}Ada", "A{}da", "Ada{}"])
def test_a_control_character_rejects_its_record(character: str, where: str) -> None:
    result = check(csv_of(line("M1", first_name=where.format(character)), line("M2")))
    assert result.reasons == {1: {("first_name", "first_name.control_characters", "control_characters")}}
    assert sorted(result.accepted) == [2]


def test_a_control_character_is_found_in_every_column_of_the_contract() -> None:
    client = plain_client()
    names = client.contract.column
    header = ",".join(names)
    lines = [",".join("\x01" if c == column else "1" for c in names) for column in names]
    result = check(csv_of(*lines, header=header), client)
    for number, column in enumerate(names, 1):
        assert f"{column}.control_characters" in rules(result, number)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_embedded_line_end_is_legal_and_becomes_a_blank(end: str) -> None:
    result = check(csv_of(line("M1", address=f'"12 Main St{end}{end}Apt 3"'), line("M2"), end=end))
    assert result.accepted[1]["address"] == "12 Main St Apt 3"
    assert (result.counts.records, result.counts.record_lines, result.counts.physical_lines) == (2, 4, 5)
    assert result.counts.blank_lines == 0  # the one inside the field belongs to its record


@pytest.mark.parametrize(
    "header",
    [
        HEADER.upper(),
        HEADER.replace("_", " ").title(),
        HEADER.replace("_", "-"),
        HEADER.replace(",", " , "),
        "\ufeff" + HEADER,
        ",".join(f'"{name}"' for name in HEADER.split(",")),
        HEADER.replace("member_id", "\u00a0member_id\u200b"),
    ],
)
def test_header_names_are_recognised_in_other_spellings(header: str) -> None:
    assert check(csv_of(line("M1"), header=header)).accepted[1]["email"] == "ada@example.com"


def test_columns_may_stand_in_any_order_and_optional_ones_may_lack() -> None:
    result = check("dob,last_name,member_id,first_name\n1980-12-10,Lovelace,M1,Ada\n")
    assert result.accepted[1]["first_name"] == "Ada"
    assert result.accepted[1]["zip"] is None


def test_mapped_header_names_and_date_formats_are_used() -> None:
    client = plain_client(
        columns={"Member No.": "member_id", "DOB": {"to": "dob", "date_formats": ["%m/%d/%Y", "%Y%m%d"]}}
    )
    result = check(
        "Member No.,first_name,last_name,DOB\nM1,A,B,1/31/1980\nM2,A,B,19800131\nM3,A,B,31/1/1980\nM4,A,B,1/31/80\n",
        client,
    )
    assert [result.accepted[n]["dob"] for n in (1, 2)] == ["1980-01-31"] * 2
    assert rules(result, 3) == rules(result, 4) == {"dob.date"}


@pytest.mark.parametrize(
    "encode",
    [
        lambda t: t.encode(),
        lambda t: t.encode("utf-8-sig"),
        lambda t: t.encode("utf-16"),
        lambda t: b"\xfe\xff" + t.encode("utf-16-be"),
        lambda t: gzip.compress(t.encode()),
        lambda t: gzip.compress(t.encode("utf-16")),
        lambda t: gzip.compress(t.encode()[:40]) + gzip.compress(t.encode()[40:]),
    ],
    ids=["utf-8", "bom", "utf-16-le", "utf-16-be", "gzip", "gzip of utf-16", "two gzips"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_same_records_come_from_every_encoding_and_line_end(encode: Callable[[str], bytes], end: str) -> None:
    text = csv_of(line("M1", first_name="Zoë"), "", line("M2", last_name="李"), "x", end=end)
    result = check(encode(text))
    assert [result.accepted[n]["member_id"] for n in (1, 2)] == ["M1", "M2"]
    assert (result.accepted[1]["first_name"], result.accepted[2]["last_name"]) == ("Zoë", "李")
    assert rules(result, 3) == {"too_few_fields"}
    assert (result.counts.physical_lines, result.counts.blank_lines) == (5, 1)


def test_blank_lines_are_skipped_and_counted_also_before_the_header() -> None:
    result = check("\n\n" + csv_of("", line("M1"), "", "", line("M2"), ""))
    assert (result.counts.records, result.counts.blank_lines, result.counts.header_lines) == (2, 6, 1)
    assert sorted(result.accepted) == [1, 2]


def test_a_blank_line_between_mark_and_header_is_no_failure() -> None:
    assert check("\ufeff\n" + csv_of(line("M1"))).counts.blank_lines == 1


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_header_in_the_middle_is_skipped_and_counted(mark: str) -> None:
    result = check(csv_of(line("M1"), mark + HEADER, line("M2")))
    assert [row["member_id"] for row in result.accepted.values()] == ["M1", "M2"]
    assert not result.reasons
    assert (result.counts.header_lines, result.counts.records) == (2, 2)


def test_a_repeated_header_with_a_line_end_in_it_is_skipped_and_counted() -> None:
    header = HEADER.replace("city", '"ci\nty"')
    result = check(csv_of(line("M1"), header, line("M2"), header=header))
    assert (result.counts.header_lines, result.counts.records) == (4, 2)


def test_a_member_called_like_a_header_is_no_header() -> None:
    assert check(csv_of(line("member_id"))).accepted[1]["member_id"] == "member_id"


@pytest.mark.parametrize("data", [HEADER, HEADER + "\n", HEADER + "\r\n\r\n\r\n", "\ufeff" + HEADER])
def test_a_header_alone_is_a_file_of_no_records(data: str) -> None:
    counts = check(data).counts
    assert (counts.records, counts.header_lines) == (0, 1)


def trailing(*lines: str, **trailer: object) -> Result:
    return check(csv_of(*lines), plain_client(source={"trailer": {"starts_with": "TRAILER", **trailer}}))


def test_a_trailer_is_no_record_and_its_count_is_held_against_the_file() -> None:
    result = trailing(line("M1"), "x", "TRAILER,2", count_field=2)
    assert (result.counts.records, result.counts.trailer_lines) == (2, 1)
    with pytest.raises(DeliveryError, match="states 3 records, the file has 2") as caught:
        trailing(line("M1"), line("M2"), "TRAILER,3", count_field=2)
    assert caught.value.kind == "trailer"
    assert trailing(line("M1"), "TRAILER,99").counts.trailer_lines == 1


def test_a_trailer_in_another_encoding_is_held_back_whole() -> None:
    client = plain_client(source={"encoding": "cp1252", "trailer": {"starts_with": "TRAILER", "count_field": 2}})
    data = csv_of(line("M1", first_name="José"), "TRAILER,1,Société").encode("cp1252")
    assert check(data, client).counts.trailer_lines == 1


def test_a_trailer_in_the_middle_is_a_malformed_record() -> None:
    result = trailing(line("M1"), "TRAILER,1", line("M2"), "TRAILER,3", count_field=2)
    assert rules(result, 2) == {"too_few_fields"}


SECRET = line("M-SECRET-1", first_name="SECRETNAME", email="secret@example.org")


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (csv_of(SECRET, header=HEADER.replace("dob", "birthday")), "missing_column", "dob"),
        (csv_of(SECRET, header=HEADER.replace("city", "dob")), "duplicate_column", "dob"),
        (csv_of(SECRET).replace(",", "|"), "missing_column", "','"),
        (csv_of(SECRET).replace(",", "\t"), "missing_column", "delimiter"),
        (SECRET + "\n" + SECRET + "\n", "missing_column", "no header"),
        ("x\n", "missing_column", "one column"),
        (HEADER.replace("city", '"city') + "\n" + SECRET + "\n", "header", "quote"),
        (HEADER.replace("email", '"email') + "\n" + SECRET + "\n", "header", "quote"),
        ('"' + "x" * 200_000 + "\n" + SECRET + "\n", "header", "header"),
    ],
)
def test_what_cannot_be_read_as_a_whole_fails_with_a_sentence_without_values(data: str, kind: str, words: str) -> None:
    error = failure(data)
    assert error.kind == kind
    assert words in str(error)
    assert "SECRET" not in str(error)
    assert "secret" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__ or error.__context__ is None


def test_an_unknown_column_is_read_over_or_refused_as_the_client_says() -> None:
    data = csv_of(line("M1") + ",gold", header=HEADER + ",plan")
    assert check(data).extra == ("plan",)
    assert failure(data, plain_client(schema_evolution="freeze")).kind == "extra_column"


def test_a_stray_quote_that_swallows_records_rejects_their_whole_span() -> None:
    lines = [line("M1"), line("M2", address='"12 Main'), line("M3"), line("M4", city='Rome"'), line("M5")]
    result = check(csv_of(*lines))
    assert result.reasons == {2: {(None, "swallowed_records", "swallowed_records")}}
    assert result.lines == {2: (3, 3)}
    assert [row["member_id"] for row in result.accepted.values()] == ["M1", "M5"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_swallowed_records_are_found_also_where_the_fields_still_number_right(end: str) -> None:
    span = [line("M2", address='"12 Main').rsplit(",", 5)[0], line("M3"), 'end",Boston,MA,02139,,']
    result = check(csv_of(line("M1"), *span, line("M5"), end=end))
    assert result.reasons == {2: {(None, "swallowed_records", "swallowed_records")}}
    assert sorted(row["member_id"] for row in result.accepted.values()) == ["M1", "M5"]
    assert b"M3" in result.raw[2]
    assert result.counts.record_lines == 5


@pytest.mark.parametrize("last_end", ["\n", "", "\r\n", "\n\n"])
def test_an_unterminated_quote_rejects_the_tail_as_one_span(last_end: str) -> None:
    lines = [line("M1"), line("M2", address='"12 Main'), line("M3"), line("M4")]
    result = check(csv_of(*lines)[:-1] + last_end)
    assert sorted(result.accepted) == [1]
    assert result.reasons == {2: {(None, "unterminated_quote", "malformed")}}
    received = "\n".join(lines[1:]) + last_end
    assert result.raw[2].decode() == re.sub(r"(\r\n|\n|\r)\Z", "", received)
    assert result.lines == {2: (3, 3 if last_end != "\n\n" else 4)}
    assert result.counts.records == 2


@pytest.mark.parametrize("last_end", ["\n", "", "\r\n", "\r", "\n\n"])
def test_a_quote_left_open_in_the_very_last_field_is_no_value(last_end: str) -> None:
    last = line("M2", email='"ada@example.com')
    result = check(csv_of(line("M1"), last)[:-1] + last_end)
    assert result.reasons == {2: {(None, "unterminated_quote", "malformed")}}
    assert result.raw[2].decode() == re.sub(r"(\r\n|\n|\r)\Z", "", last + last_end)
    assert sorted(result.accepted) == [1]


@pytest.mark.parametrize("block", [50, 900, 1 << 20])
@pytest.mark.parametrize("quoted", [True, False])
def test_a_record_over_the_limit_is_rejected_alone(monkeypatch: pytest.MonkeyPatch, block: int, quoted: bool) -> None:
    monkeypatch.setattr(frame_module, "_BLOCK", block)
    monkeypatch.setattr(frame_module, "LIMIT", 400)
    monkeypatch.setattr(frame_module, "KEPT", 100)
    text = '"' + 'x,"",\n' * 500 + '"' if quoted else "x,y" * 900
    result = check(csv_of(line("M1"), line("M2", address=text), "", line("M3"), "short"))
    assert result.reasons == {
        2: {(None, "record_too_large", "malformed")}, 4: {(None, "too_few_fields", "malformed")},
    }  # fmt: skip
    assert result.raw[2] == line("M2", address=text).encode()[:100]
    height = 501 if quoted else 1
    assert result.lines == {2: (3, height), 4: (3 + height + 2, 1)}
    assert sorted(result.accepted) == [1, 3]


@pytest.mark.parametrize("block", [50, 900, 1 << 20])
def test_an_open_quote_over_the_limit_rejects_the_tail_and_what_came_before_is_read(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(frame_module, "_BLOCK", block)
    monkeypatch.setattr(frame_module, "LIMIT", 400)
    monkeypatch.setattr(frame_module, "KEPT", 100)
    tail = [line("M2", address='"12 Main'), *(line(f"N{n}") for n in range(50))]
    result = check(csv_of(line("M1"), *tail))
    assert result.reasons == {2: {(None, "unterminated_quote", "malformed")}}
    assert result.lines == {2: (3, 51)}
    assert result.raw[2] == "\n".join(tail).encode()[:100]
    assert sorted(result.accepted) == [1]


@pytest.mark.parametrize("name", ['"Ada" Lovelace', '"Ada"x', '"A"d"a"', '"Ada" ', '"Ada \\"x\\""'])
def test_text_behind_a_closing_quote_rejects_its_record_alone(name: str) -> None:
    bad = line("M2", first_name=name)
    result = check(csv_of(line("M1"), bad, line("M3")))
    assert result.reasons == {2: {(None, "text_after_quote", "malformed")}}
    assert result.raw[2] == bad.encode()
    assert sorted(result.accepted) == [1, 3]


def test_a_stray_quote_that_meets_a_quoted_text_takes_in_that_whole_record() -> None:
    lines = [line("M1"), line("M2", city='"Rome'), line("M3", address='"12 Main,\n,,,,,,,,,,\nApt 3"'), line("M4")]
    result = check(csv_of(*lines))
    assert result.reasons == {2: {(None, "swallowed_records", "swallowed_records")}}
    assert result.lines == {2: (3, 4)}
    assert [row["member_id"] for row in result.accepted.values()] == ["M1", "M4"]


def test_a_stray_quote_that_a_quoted_delimiter_closes_is_found() -> None:
    lines = [line("M1"), line("M2", address='"12 Main'), line("M3", address='", Apt 3"'), line("M4")]
    result = check(csv_of(*lines))
    assert result.reasons == {2: {(None, "swallowed_records", "swallowed_records")}}
    assert [row["member_id"] for row in result.accepted.values()] == ["M1", "M4"]


def test_a_broken_quote_in_a_record_over_the_limit_is_only_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_module, "LIMIT", 300)
    monkeypatch.setattr(frame_module, "KEPT", 50)
    text = '"' + "x" * 400 + '\n"y'
    result = check(csv_of(line("M1"), line("M2", address=text), line("M3")))
    assert result.reasons == {2: {(None, "record_too_large", "malformed")}}
    assert sorted(result.accepted) == [1, 3]


@pytest.mark.parametrize("swallowed", ["{},x", "{}", "{},x,y"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_swallowed_records_that_were_malformed_themselves_are_found_too(swallowed: str, count: int) -> None:
    cut = [swallowed.format(line(f"N{n}").rsplit(",", 1)[0]) for n in range(count)]
    cut[-1] += '"'
    lines = [line("M1") + ",", line("M2") + ',"oops', *cut, line("M4") + ","]
    result = check(csv_of(*lines, header=HEADER + ",notes"))
    assert result.reasons == {2: {(None, "swallowed_records", "swallowed_records")}}
    assert result.lines == {2: (3, count + 1)}
    assert [row["member_id"] for row in result.accepted.values()] == ["M1", "M4"]


def test_a_note_of_several_lines_in_the_last_column_is_text() -> None:
    notes = ['"first line\nsecond, with a comma\nthird"', '"a\nb"', '"a, b, c\n"', '"\n\n"']
    result = check(csv_of(*(line(f"M{n}") + "," + note for n, note in enumerate(notes)), header=HEADER + ",notes"))
    assert len(result.accepted) == 4


def test_many_quoted_line_ends_in_one_record_are_looked_at_once() -> None:
    result = check(csv_of(line("M1")).encode() + b'"\n",' * 100_000 + b"\n")
    assert rules(result, 2) == {"too_many_fields"}
    assert result.lines[2] == (3, 100_001)


@pytest.mark.parametrize("source", [{"encoding": "latin-1"}, {"encoding": ["utf-8", "cp1252"]}, {}])
def test_a_trailer_with_accents_costs_the_last_record_nothing(source: dict[str, object]) -> None:
    client = plain_client(source=source | {"trailer": {"starts_with": "TRAILER", "count_field": 2}})
    bad = line("M1", last_name="?").encode().replace(b"?", b"\xff")
    for trailer in ("TRAILER,2,éééééééé".encode(), "TRAILER,2,éééééééé".encode("latin-1")):
        result = check(b"\n".join([HEADER.encode(), bad, line("M2").encode(), trailer, b""]), client)
        assert result.accepted[2]["email"] == "ada@example.com"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blank_lines_below_a_trailer_are_counted(end: str) -> None:
    client = plain_client(source={"trailer": {"starts_with": "TRAILER", "count_field": 2}})
    result = check(csv_of(line("M1"), "TRAILER,1", "", "", end=end), client)
    assert (result.counts.trailer_lines, result.counts.blank_lines, result.counts.records) == (1, 2, 1)


def test_a_header_that_ends_at_the_limit_of_its_buffer_is_read() -> None:
    header = HEADER + ","
    header += "x" * ((1 << 20) - 1 - len(header))
    result = check(csv_of(line("M1") + ",z", header=header, end="\r\n"))
    assert result.counts.records == 1
    assert "1 MiB" not in str(result.counts)


def test_a_repeated_header_is_known_also_if_its_first_name_is_empty() -> None:
    result = check(csv_of("0," + line("M1"), "," + HEADER, "1," + line("M2"), header="," + HEADER))
    assert (result.counts.records, result.counts.header_lines, result.counts.rejected) == (2, 2, 0)


def test_a_quote_within_an_unquoted_field_is_text() -> None:
    result = check(csv_of(line("M1", address='12 Main 6" pipe'), line("M2", address='a"b"c'), line("M3")))
    assert [row["address"] for row in result.accepted.values()] == ['12 Main 6" pipe', 'a"b"c', "12 Main St"]


def test_a_text_of_many_lines_and_commas_is_no_record() -> None:
    letter = '"12 Main St, Apt 3, Bldg 4, Rear, c/o Ann, Floor 2\nBoston, MA, USA, Earth\n,,,\nMilky Way, Local Group"'
    result = check(csv_of(line("M1", address=letter), line("M2")))
    assert not result.reasons


def test_lines_of_rejected_records_are_those_of_the_file() -> None:
    text = csv_of(
        "", line("M1", address='"a\n\nb"'), "", HEADER, line("M2", zip="x"), line("M3", city='"x\ny"', zip="y")
    )
    result = check("\n" + text)
    assert result.lines == {2: (9, 1), 3: (10, 2)}


def test_a_rejected_record_is_sealed_byte_for_byte() -> None:
    bad = ' M2 ,"Ada", Lovelace,1980-12-10,F,"12 ""Main"" St",Boston,MA,x,,'
    assert check(csv_of(line("M1"), bad, end="\r\n")).raw[2] == bad.encode()


def test_one_bad_byte_does_not_change_how_the_other_records_are_decoded() -> None:
    client = plain_client(source={"encoding": ["utf-8", "cp1252"]})
    data = csv_of(line("M1", first_name="José"), line("M2", first_name="Zo?"), line("M3", first_name="李")).encode()
    result = check(data.replace(b"Zo?", b"Zo\xeb"), client)
    assert [row["first_name"] for row in result.accepted.values()] == ["José", "Zoë", "李"]


def test_a_client_may_use_another_quote_or_none() -> None:
    single = plain_client(source={"quote": "'"})
    result = check(csv_of(line("M1", address="'12 Main, " + "''rear" + "'" * 3), line("M2", address='"12')), single)
    assert [row["address"] for row in result.accepted.values()] == ["12 Main, 'rear'", '"12']
    none = plain_client(source={"quote": "none"})
    assert check(csv_of(line("M1", address='"12 Main"')), none).accepted[1]["address"] == '"12 Main"'


def test_a_file_without_a_header_takes_its_names_from_the_clients_yaml() -> None:
    client = plain_client(source={"header": False, "names": HEADER.split(",")})
    result = check(line("M1") + "\n" + line("M2", zip="x") + "\n", client)
    assert sorted(result.accepted) == [1]
    assert result.lines == {2: (2, 1)}
    assert result.counts.header_lines == 0


def test_leading_lines_are_skipped_and_counted_as_header() -> None:
    client = plain_client(source={"skip_lines": 2})
    result = check('Report "of, today\n\n' + csv_of(line("M1"), line("M2", zip="x")), client)
    assert (result.counts.header_lines, result.counts.records) == (3, 2)
    assert result.lines == {2: (5, 1)}
    assert failure("only one line", client).kind == "header"


def test_a_header_that_does_not_end_fails_with_the_limit() -> None:
    error = failure("x" * (2 << 20), plain_client())
    assert error.kind == "header"
    assert "1 MiB" in str(error)


SPECTRUM = DATA / "csv_spectrum"


@pytest.mark.skipif(not SPECTRUM.is_dir(), reason=f"{SPECTRUM} is not there")
@pytest.mark.parametrize("name", [
    "comma_in_quotes", "empty", "empty_crlf", "escaped_quotes", "json", "location_coordinates", "newlines",
    "newlines_crlf", "quotes_and_newlines", "simple", "simple_crlf", "utf8",
])  # fmt: skip
def test_the_csv_spectrum_parses_as_its_json_says(name: str) -> None:
    data = (SPECTRUM / "csvs" / f"{name}.csv").read_bytes()
    if name.endswith("_crlf"):  # git may have taken the carriage returns
        data = data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    expected = json.loads((SPECTRUM / "json" / f"{name}.json").read_text("utf-8"))
    if name == "location_coordinates":  # its JSON is one object, with another phone number than its CSV
        expected = [expected | {"Contact Phone Number": "2095257564"}]
    columns = ["member_id", *(f"c_{n}" for n in range(len(expected[0]) - 1))]
    contract = Contract.model_validate(
        {
            "contract": "spectrum",
            "version": 1,
            "columns": [
                {
                    "name": c,
                    "type": "text",
                    "required": c == "member_id",
                    "policy": {"token": True} if c == "member_id" else {"vault": "contact"},
                }
                for c in columns
            ],
        }
    )
    config = ClientConfig.model_validate({"client_id": "s", "columns": dict(zip(expected[0], columns, strict=True))})
    batches = list(reader_of(data, Client("s", config, contract)))
    rows = pl.concat([batch.rows for batch in batches]).select(columns).fill_null("").rows()
    assert rows == [tuple(record.values()) for record in expected]
    assert sum(batch.rejected.height for batch in batches) == 0


# --- accounting, whatever the bytes ---------------------------------------------------------------------------

_CELL = st.text(st.sampled_from('ab,"\n\r é李\x00\x0b\x85\u2028;|\ufeff'), max_size=6)
_ROW = st.lists(_CELL, min_size=4, max_size=4)


def _written(rows: list[list[str]], end: str) -> str:
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue()


@given(st.lists(_ROW, max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=examples(120), deadline=None)
def test_every_well_formed_record_comes_back_as_it_was_written(rows: list[list[str]], end: str) -> None:
    header = ["member_id", "first_name", "last_name", "dob"]
    client = plain_client()
    reader = reader_of(_written([header, *rows], end).encode(), client)
    batches = list(reader)
    kept = pl.concat([pl.DataFrame(schema={RECORD_NO: pl.Int64} | dict.fromkeys(header, pl.String)),
                      *(b.rows.select(RECORD_NO, *header) for b in batches)])  # fmt: skip
    whole = {row[0]: list(row[1:]) for row in kept.fill_null("").rows()}
    swallowed = {n for b in batches for n in b.rejected[RECORD_NO]}
    assert whole.keys() | swallowed == set(range(1, len(rows) + 1))
    assert all(rows[number - 1] == cells for number, cells in whole.items())
    for number in swallowed:  # rightly suspected only where a line end and a delimiter share a cell
        assert any("," in cell and ("\n" in cell or "\r" in cell) for cell in rows[number - 1])


_DAMAGE = st.tuples(
    st.sampled_from(["insert", "delete", "replace", "cut"]),
    st.floats(0, 1),
    st.sampled_from([b'"', b",", b"\n", b"\r", b"\r\n", b"\xff", b"\xc3", b"\x00", b"\n\n", b'""', b"\\", b" "]),
)


@given(
    st.lists(_ROW, max_size=6),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.lists(_DAMAGE, max_size=6),
    st.sampled_from(["plain", "bom", "gzip"]),
    st.sampled_from([["utf-8"], ["utf-8", "cp1252"], ["ascii"]]),
    st.sampled_from([1 << 20, 400]),
)
@settings(max_examples=examples(120), deadline=None)
def test_every_line_is_accounted_for_whatever_the_damage(
    rows: list[list[str]], end: str, damage: list[tuple[str, float, bytes]], pack: str, encodings: list[str], block: int
) -> None:
    head = ("member_id,first_name,last_name,dob" + end).encode()
    body = _written(rows, end).encode()
    for what, where, piece in damage:
        at = int(where * len(body))
        keep = {"insert": 0, "delete": len(piece), "replace": len(piece), "cut": len(body)}[what]
        body = body[:at] + (b"" if what in {"delete", "cut"} else piece) + body[at + keep :]
    text = (b"\xef\xbb\xbf" if pack == "bom" else b"") + head + body
    data = gzip.compress(text) if pack == "gzip" else text
    client = plain_client(source={"encoding": encodings})
    before = frame_module._BLOCK
    frame_module._BLOCK = block
    try:
        result = check(data, client)  # holds the accounting itself
    except DeliveryError as error:
        assert error.kind == "not_text"  # noqa: PT017 - mostly there is none
        return
    finally:
        frame_module._BLOCK = before
    lines = text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    assert result.counts.physical_lines == lines.count(b"\n") + (not lines.endswith(b"\n"))
    numbers = result.accepted.keys() | result.reasons.keys()
    assert len(numbers) == result.counts.records
    assert not numbers or (min(numbers) >= 1 and max(numbers) == len(numbers))


# --- values ---------------------------------------------------------------------------------------------------


def standard(kind: str, text: str, *formats: str) -> str | None:
    cleaned = clean(pl.Series("v", [text]))
    return standard_form(cleaned, kind, formats or ("%Y-%m-%d",)).item()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "formats", "expected"),
    [
        ("2020-02-29", (), "2020-02-29"),
        (" 2020-02-29 ", (), "2020-02-29"),
        ("2019-02-29", (), None),
        ("2020-1-1", (), None),
        ("+2020-01-01", (), None),
        ("-0001-01-01", (), None),
        ("2020-01-01T00:00:00", (), None),
        ("2020-01-01 00:00:00", (), None),
        ("20200101", (), None),
        ("\uff12\uff10\uff12\uff10-01-01", (), None),
        ("0000-00-00", (), None),
        ("01/02/2020", (), None),
        ("01/02/2020", ("%m/%d/%Y",), "2020-01-02"),
        ("1/2/2020", ("%m/%d/%Y",), "2020-01-02"),
        ("13/01/2020", ("%m/%d/%Y",), None),
        ("01/02/20", ("%m/%d/%Y",), None),
        ("01/02/99", ("%m/%d/%Y",), None),
        ("01/02/12020", ("%m/%d/%Y",), None),
        ("31.12.1999", ("%m/%d/%Y", "%d.%m.%Y"), "1999-12-31"),
        ("31x12x1999", ("%d.%m.%Y",), None),
        ("19991231", ("%Y%m%d",), "1999-12-31"),
        ("1999123", ("%Y%m%d",), None),
        ("31-Dec-1999", ("%d-%b-%Y",), "1999-12-31"),
        ("31-XXX-1999", ("%d-%b-%Y",), None),
        ("06/07/1999", ("%m/%d/%Y", "%d/%m/%Y"), "1999-06-07"),
    ],
)
def test_dates_are_read_in_the_declared_formats_only(text: str, formats: tuple[str, ...], expected: str | None) -> None:
    assert standard("date", text, *formats) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("617-253-1000", "+16172531000"), ("(617) 253-1000", "+16172531000"), ("617.253.1000", "+16172531000"),
        ("6172531000", "+16172531000"), ("1 617 253 1000", "+16172531000"), ("+1 (617) 253-1000", "+16172531000"),
        ("+16172531000", "+16172531000"), ("617-253-1000 x12", "+16172531000"), ("617-253-1000 ext. 4", "+16172531000"),
        ("617-253-1000#9", "+16172531000"), ("555-555-5555", None), ("999-999-9999", None), ("117-253-1000", None),
        ("617-153-1000", None), ("617-253-100", None), ("617-253-10000", None), ("253-1000", None),
        ("+44 20 7946 0018", "+442079460018"), ("+49 30 901820", "+4930901820"), ("44 20 7946 0018", None),
        ("020 7946 0018", None), ("+999 12345678", None), ("+1 555 555 5555", None), ("1-800-FLOWERS", None),
        ("+1-800-FLOWERS", None), ("2125551234.0", None), ("212 555 1234 home", None), ("phone", None),
        ("\uff16\uff11\uff17-253-1000", None), ("787-765-4321", "+17877654321"),
    ],
)  # fmt: skip
def test_phones_become_e164_or_nothing(text: str, expected: str | None) -> None:
    assert standard("phone", text) == expected


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("us_zip", "02139", "02139"), ("us_zip", "021391234", "02139-1234"), ("us_zip", "02139-1234", "02139-1234"),
        ("us_zip", "2139", None), ("us_zip", "02139-", None), ("us_zip", "02139-123", None), ("us_zip", "0213a", None),
        ("us_zip", "\uff10\uff12\uff11\uff13\uff19", None), ("us_zip", "02139 1234", None),
        ("email", "Ada@Example.COM", "ada@example.com"), ("email", "a.b+c@x-y.co.uk", "a.b+c@x-y.co.uk"),
        ("email", "a@b", None), ("email", "a@b..com", None), ("email", ".a@b.com", None), ("email", "a.@b.com", None),
        ("email", "a@-b.com", None), ("email", "a@b-.com", None), ("email", "a b@c.com", None), ("email",
        "a@b@c.com", None),
        ("email", "a@b.com,c@d.com", None), ("email", "<a@b.com>", None), ("email", "a" * 65 + "@b.com", None),
        ("email", "a@" + "b" * 64 + ".com", None), ("email", "a@b.c1", "a@b.c1"), ("email", "a@1.2.3.4", None),
        ("us_state", "MA", "MA"), ("us_state", "ma", "MA"), ("us_state", "Massachusetts", "MA"),
        ("us_state", "district of  columbia", "DC"), ("us_state", "PR", "PR"), ("us_state", "AE", "AE"),
        ("us_state", "ZZ", None), ("us_state", "Mass", None), ("us_state", "Ontario", None),
        ("gender", "f", "F"), ("gender", "Female", "F"), ("gender", "UNKNOWN", "U"), ("gender", "other", "O"),
        ("gender", "X", "X"), ("gender", "1", None), ("gender", "W", None),
    ],
)  # fmt: skip
def test_codes_zips_and_addresses_have_one_form_or_none(kind: str, text: str, expected: str | None) -> None:
    assert standard(kind, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Ada  ", "Ada"), ("Ada\t \n Lovelace", "Ada Lovelace"), ("\u00a0Ada\u00a0King\u3000", "Ada King"),
        ("Ade\u0301le", "Ad\u00e9le"), ("A\u200bda\u2060", "Ada"), ("\ufeffAda", "Ada"), ("A \u200b B", "A B"),
        ("क्\u200dष", "क्\u200dष"), ("O'Brien-Smith", "O'Brien-Smith"), ("", None), ("   ", None), ("\u200b", None),
        ("\u00a0", None), ("ﬁ", "ﬁ"), ("null", "null"),
    ],
)  # fmt: skip
def test_text_is_cleaned_of_what_no_one_can_see_and_of_nothing_else(text: str, expected: str | None) -> None:
    assert clean(pl.Series("v", [text])).item() == expected


def test_cleaning_one_value_does_not_depend_on_its_neighbours() -> None:
    values = ["  x", "a\u200bb", "é", "e\u0301", "a  b", None, "NULL", "\u00a0", "q\x0b"]
    together = clean(pl.Series("v", values), ["", "NULL"]).to_list()
    assert together == [clean(pl.Series("v", [v], pl.String), ["", "NULL"]).item() for v in values]


def test_a_person_called_null_is_a_person() -> None:
    result = check(
        csv_of(line("M1", last_name="Null"), line("M2", last_name="NULL"), line("M3", city="N/A"), line("M4", zip=""))
    )
    assert result.accepted[1]["last_name"] == "Null"
    assert rules(result, 2) == {"last_name.required"}
    assert result.accepted[3]["city"] is None
    assert result.accepted[4]["zip"] is None


# --- rules ----------------------------------------------------------------------------------------------------


def test_all_reasons_of_a_record_are_listed() -> None:
    bad = line(
        "M 1/x", first_name="", last_name="L" * 101, dob="1899-12-31", gender="Q", address="a" * 201, city="c" * 101,
        state="ZZ", zip="1", phone_number="12", email="x",
    )  # fmt: skip
    result = check(csv_of(line("M1"), bad, line("M3", dob="2025-01-07"), line("M4", dob="2025-01-06")))
    assert result.reasons[2] == {
        ("member_id", "member_id.characters", "pattern"), ("first_name", "first_name.required", "missing"),
        ("last_name", "last_name.length", "length"), ("dob", "dob.range", "range"), ("gender", "gender.gender",
        "gender"),
        ("address", "address.length", "length"), ("city", "city.length", "length"), ("state", "state.us_state",
        "us_state"),
        ("zip", "zip.us_zip", "us_zip"), ("phone_number", "phone_number.phone", "phone"), ("email", "email.email",
        "email"),
    }  # fmt: skip
    assert rules(result, 3) == {"dob.range"}
    assert sorted(result.accepted) == [1, 4]


def test_every_required_column_is_required() -> None:
    result = check(csv_of(line(""), *(line("M1", **{column: ""}) for column in ("first_name", "last_name", "dob"))))
    assert [rules(result, n) for n in (1, 2, 3, 4)] == [
        {"member_id.required"}, {"first_name.required"}, {"last_name.required"}, {"dob.required"},
    ]  # fmt: skip


@pytest.mark.parametrize("member_id", ["a" * 65, "a/b", "é", "a b", "a\u0660"])
def test_a_member_id_of_other_characters_is_rejected(member_id: str) -> None:
    assert rules(check(csv_of(line(member_id))), 1) == {"member_id.characters"}


@pytest.mark.parametrize("member_id", ["a" * 64, "A.b_c-9", " M1 ", "M1\u200b"])
def test_a_member_id_of_allowed_characters_after_trimming_is_accepted(member_id: str) -> None:
    assert check(csv_of(line(member_id))).accepted[1]["member_id"] == member_id.strip(" \u200b")


def test_a_clients_rules_reject_and_override() -> None:
    client = plain_client(
        rules=[
            {"id": "ma_only", "column": "state", "in": ["MA"]},
            {"id": "city.length", "column": "city", "max_length": 4},
            {"id": "plan", "column": "address", "pattern": "[0-9]+ .*"},
        ]
    )
    result = check(
        csv_of(line("M1", city="Lynn", state="Massachusetts"), line("M2", state="NH", city="Lynn", address="x")), client
    )
    assert sorted(result.accepted) == [1]
    assert result.reasons[2] == {("state", "ma_only", "in"), ("address", "plan", "pattern")}
    assert rules(check(csv_of(line("M1")), client), 1) == {"city.length"}
    assert Validator.of(client).reasons.keys() >= {"ma_only", "city.length", "dob.range", "dob.date", "email.email"}


def test_the_record_date_of_a_backfill_is_required_and_must_be_a_date() -> None:
    client = plain_client(source={"creation_date": {"from": "column", "column": "creation_date"}})
    header = HEADER + ",creation_date"
    result = check(csv_of(line("M1") + ",2024-05-01", line("M2") + ",", line("M3") + ",soon", header=header), client)
    assert sorted(result.accepted) == [1]
    assert rules(result, 2) == {"creation_date.required"}
    assert rules(result, 3) == {"creation_date.date"}
    assert failure(csv_of(line("M1")), client).kind == "missing_column"


def test_reasons_hold_no_value() -> None:
    secret = "SECRET7"
    columns = plain_client().contract.column
    lines = [",".join(secret + "\x01/" * 120 if c == column else secret for c in columns) for column in columns]
    result = check(csv_of(*lines, f"{secret},x", header=",".join(columns)))
    assert len(result.reasons) == len(columns) + 1
    assert secret not in repr(result.reasons)


@pytest.mark.parametrize("few", [0, validate._FEW])
def test_records_are_judged_alike_however_many_come_together(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "_FEW", few)
    client = plain_client(rules=[
        {"id": "city.known", "column": "city", "in": ["Boston", "Lynn"], "severity": "warn"},
        {"id": "state.known", "column": "state", "in": ["MA"]},
    ])  # fmt: skip
    broken = {"member_id": "", "first_name": "", "last_name": "x" * 101, "dob": "2999-01-01", "zip": "1", "state": "NH"}
    plain = [line("M1"), line("M2", city="Salem"), line("M3", email="", phone_number="", state="")]
    result = check(csv_of(*plain, *(line(**{"member_id": "M9"} | {c: value}) for c, value in broken.items())), client)
    assert sorted(result.accepted) == [1, 2, 3]
    assert [sorted(rules(result, number)) for number in range(4, 10)] == [
        ["member_id.required"], ["first_name.required"], ["last_name.length"], ["dob.range"], ["zip.us_zip"],
        ["state.known"],
    ]  # fmt: skip
    assert result.counts.warned == 1


@pytest.mark.parametrize(
    "setting",
    ["PANDERA_VALIDATION_ENABLED=False", "PANDERA_VALIDATION_DEPTH=SCHEMA_ONLY", "PANDERA_USE_NARWHALS_BACKEND=False"],
)
def test_the_environment_does_not_switch_validation_off(setting: str) -> None:
    script = (
        "from healthingest_tests.unit.test_records import check, line, csv_of\n"
        "result = check(csv_of(line('M1', zip='x'), line('M2')))\n"
        "print(sorted(result.reasons), sorted(result.accepted))"
    )
    name, value = setting.split("=")
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {name: value}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "[1] [2]\n"), done.stderr


def test_a_check_that_cannot_be_evaluated_stops_the_delivery() -> None:
    client = plain_client()
    frame = pl.DataFrame({RECORD_NO: [1]} | {c: ["x"] for c in client.contract.column})
    with pytest.raises(Exception, match="could not be evaluated") as caught:  # the standard forms are missing
        Validator.of(client).split(frame, DAY)
    assert type(caught.value).__name__ == "ValidationError"
