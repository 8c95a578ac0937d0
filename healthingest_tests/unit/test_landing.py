"""What has arrived: file names, discovery and the facts of the byte pre-flight."""

import gzip
import os
import time
import zlib
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from healthingest.errors import DeliveryError, UnroutableError
from healthingest.landing.discovery import QUIET_SECONDS, is_complete, list_landing, look, settle
from healthingest.landing.names import FileName, parse_file_name
from healthingest.landing.preflight import Facts, Preflight, judge
from healthingest_tests.conftest import csv_of, examples, line

CLIENTS = ["acme", "north_star", "blue-cross", "acme_20250106", "a"]
TODAY = date(2025, 6, 30)


def parse(name: str) -> FileName:
    return parse_file_name(name, CLIENTS, first_date=date(2015, 1, 1), today=TODAY)


@pytest.mark.parametrize(
    ("name", "client", "day", "suffix"),
    [
        ("acme_20250106.csv", "acme", date(2025, 1, 6), ""),
        ("acme_2025-01-06.csv", "acme", date(2025, 1, 6), ""),
        ("acme_20250106_1.csv", "acme", date(2025, 1, 6), "1"),
        ("acme_20250106_2.csv.gz", "acme", date(2025, 1, 6), "2"),
        ("north_star_2025-01-06_2.csv", "north_star", date(2025, 1, 6), "2"),
        ("blue-cross_20240229.csv.gz", "blue-cross", date(2024, 2, 29), ""),
        ("acme_20250106_20250107.csv", "acme_20250106", date(2025, 1, 7), ""),
        ("acme_20250630.csv", "acme", TODAY, ""),
        ("acme_20150101.csv", "acme", date(2015, 1, 1), ""),
    ],
)
def test_a_good_name_says_client_date_and_suffix(name: str, client: str, day: date, suffix: str) -> None:
    assert parse(name) == FileName(name, client, day, suffix)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme_20250230.csv", "does not exist"),
        ("acme_20230229.csv", "does not exist"),
        ("acme_20251301.csv", "does not exist"),
        ("acme_00000000.csv", "does not exist"),
        ("acme_20250701.csv", "future"),
        ("acme_20141231.csv", "HEALTHINGEST_FIRST_DATE"),
        ("globex_20250106.csv", "client"),
        ("ACME_20250106.csv", "client"),
        ("acme_20250106_3.csv", "pattern"),
        ("acme_20250106_0.csv", "pattern"),
        ("acme_20250106_1_2.csv", "client"),
        ("acme_2025-0106.csv", "pattern"),
        ("acme_250106.csv", "pattern"),
        ("acme20250106.csv", "pattern"),
        ("_20250106.csv", "pattern"),
        ("acme_20250106.CSV", "pattern"),
        ("acme_20250106.csv.gz.gz", "pattern"),
        ("acme_20250106.csv\n", "pattern"),
        ("acme\n_20250106.csv", "pattern"),
        ("acme_\uff12\uff10\uff12\uff15\uff10\uff11\uff10\uff16.csv", "pattern"),
        ("acme_20250106.csv\x00.txt", "pattern"),
        ("../acme_20250106.csv", "client"),
        ("acme|x_20250106.csv", "client"),
        ("", "pattern"),
        (".csv", "pattern"),
        ("acme_" * 40 + "20250106.csv", "client"),
    ],
)
def test_a_name_that_leads_nowhere_gets_a_sentence(name: str, words: str) -> None:
    with pytest.raises(UnroutableError) as caught:
        parse(name)
    message = str(caught.value)
    assert words in message.replace("does not follow", "pattern")
    assert "\n" not in message


@given(st.text(max_size=60))
@settings(max_examples=examples(200), deadline=None)
def test_every_name_gives_a_result_or_an_unroutable_error(text: str) -> None:
    for name in (text, f"{text}_20250106.csv", f"acme_{text}.csv"):
        try:
            parsed = parse(name)
        except UnroutableError:
            continue
        assert parsed.client_id in CLIENTS


# --- discovery ------------------------------------------------------------------------------------------------


def aged(path: Path) -> Path:
    """Wait until the file's own change lies QUIET_SECONDS back: ctime cannot be set."""
    rest = max(path.stat().st_ctime, path.stat().st_mtime) + QUIET_SECONDS - time.time()
    time.sleep(max(0.0, rest) + 0.05)
    return path


def test_an_absent_landing_zone_is_an_empty_one(tmp_path: Path) -> None:
    assert list_landing(tmp_path / "nowhere") == []


def test_only_plain_visible_finished_files_are_listed(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".hidden.csv", "x.csv.tmp", "x.csv.part", "x.partial", "x.filepart", "x.csv~"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.csv")
    assert [landed.name for landed in list_landing(tmp_path)] == ["a.csv", "b.csv"]


def test_a_file_that_vanished_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("x")
    landed = look(file)
    assert landed is not None
    file.unlink()
    assert look(file) is None
    assert not is_complete(landed, time.time_ns() + 10**12)
    assert settle([landed], sleep=lambda _: None) == []


def test_a_young_file_is_not_complete_and_a_quiet_one_is(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("x")
    landed = look(file)
    assert landed is not None
    assert not is_complete(landed, landed.changed_ns + int((QUIET_SECONDS - 0.1) * 1e9))
    assert is_complete(landed, landed.changed_ns + int(QUIET_SECONDS * 1e9))


def test_an_old_modification_time_does_not_make_a_new_file_look_quiet(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("x")
    os.utime(file, (1, 1))  # as `cp -p` and `rsync -t` do
    landed = look(file)
    assert landed is not None
    assert not is_complete(landed, time.time_ns())


def test_a_file_still_open_for_writing_waits_until_it_is_closed(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with file.open("w") as writer:
        writer.write("member_id")
        writer.flush()
        aged(file)
        landed = look(file)
        assert landed is not None
        assert not is_complete(landed, time.time_ns())
    assert is_complete(landed, time.time_ns())


def test_settle_waits_at_most_once_and_drops_what_changed_meanwhile(tmp_path: Path) -> None:
    still, grown = tmp_path / "a.csv", tmp_path / "b.csv"
    still.write_text("x")
    grown.write_text("x")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        time.sleep(seconds + 0.05)
        grown.write_text("xy")

    assert [f.name for f in settle(list_landing(tmp_path), sleep=sleep)] == ["a.csv"]
    assert len(waits) == 1
    assert 0 < waits[0] <= QUIET_SECONDS


# --- pre-flight -----------------------------------------------------------------------------------------------


def facts_of(data: bytes, *, chunks: list[int] | None = None, encodings: tuple[str, ...] = ("utf-8",),
             trailer: str | None = None, count_field: int | None = None) -> Facts:  # fmt: skip
    preflight = Preflight(encodings, trailer, count_field, ",")
    at = 0
    for size in chunks or [len(data)]:
        preflight.feed(data[at : at + size])
        at += size
    if at < len(data):
        preflight.feed(data[at:])
    return preflight.facts()


def refusal(data: bytes) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        judge(facts_of(data))
    return caught.value


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last_end", [True, False])
def test_lines_are_counted_whatever_their_ends(end: str, last_end: bool) -> None:
    data = end.join(["a,b", "1,2", "3,4"]) + (end if last_end else "")
    facts = facts_of(data.encode())
    assert (facts.physical_lines, facts.has_text) == (3, True)
    assert facts.text_bytes == len(data)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_blank_lines_are_lines_but_no_text(end: str) -> None:
    facts = facts_of(end.join(["", "a,b", "", "", "1,2", "", ""]).encode())
    assert (facts.physical_lines, facts.has_text) == (6, True)
    nothing = facts_of((end * 6).encode())
    assert (nothing.physical_lines, nothing.has_text) == (6, False)


def test_a_blank_line_after_the_byte_order_mark_is_a_blank_line() -> None:
    facts = facts_of(b"\xef\xbb\xbf\na,b\n1,2\n")
    assert (facts.physical_lines, facts.bom) == (3, "utf-8")


def test_gzip_is_recognised_by_content() -> None:
    data = csv_of(line("M1"), line("M2")).encode()
    facts = facts_of(gzip.compress(data))
    assert facts.gzip
    assert not facts.gzip_damage
    assert (facts.physical_lines, facts.text_bytes, facts.encoding) == (3, len(data), "utf-8")


def test_a_concatenated_gzip_is_one_text() -> None:
    data = csv_of(line("M1"), line("M2")).encode()
    facts = facts_of(gzip.compress(data[:50]) + gzip.compress(data[50:]))
    assert not facts.gzip_damage
    assert (facts.physical_lines, facts.text_bytes) == (3, len(data))


@pytest.mark.parametrize("cut", [1, 4, 8, 9, 20, -3])
def test_a_truncated_gzip_is_damage(cut: int) -> None:
    whole = gzip.compress(csv_of(line("M1")).encode())
    cut_at = len(whole) - cut if cut > 0 else 5
    assert refusal(whole[:cut_at]).kind == "damaged_gzip"
    assert refusal(whole + whole[:cut_at]).kind == "damaged_gzip"


def test_a_flipped_bit_and_garbage_after_a_gzip_are_damage() -> None:
    whole = gzip.compress(csv_of(*(line(f"M{n}") for n in range(50))).encode())
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # in the checksum
    assert refusal(bytes(flipped)).kind == "damaged_gzip"
    assert refusal(whole + b"garbage").kind == "damaged_gzip"


@pytest.mark.parametrize(
    ("bom", "codec", "name"),
    [(b"\xef\xbb\xbf", "utf-8", "utf-8"), (b"\xff\xfe", "utf-16-le", "utf-16"), (b"\xfe\xff", "utf-16-be", "utf-16")],
)
def test_byte_order_marks_name_the_encoding(bom: bytes, codec: str, name: str) -> None:
    facts = facts_of(bom + "a,b\r\n\r\né,2\r\n".encode(codec))
    assert (facts.bom, facts.encoding) == (name, name)
    assert (facts.physical_lines, facts.has_text) == (3, True)
    judge(facts)


def test_utf_16_without_a_mark_is_refused_in_words() -> None:
    assert "UTF-16" in str(refusal(csv_of(line("M1")).encode("utf-16-le")))


@pytest.mark.parametrize("damage", [b"\x41", b"\x00\xd8\x41\x00"])
def test_damaged_utf_16_says_that_it_is_utf_16(damage: bytes) -> None:
    assert "UTF-16" in str(refusal("\ufeff".encode("utf-16-le") + csv_of(line("M1")).encode("utf-16-le") + damage))


def test_a_utf_8_mark_beats_another_configured_encoding() -> None:
    facts = facts_of(b"\xef\xbb\xbf" + "a\né\n".encode(), encodings=("cp1252",))
    assert facts.encoding == "utf-8"


def test_the_first_encoding_that_fits_the_whole_file_is_taken() -> None:
    text = "a,b\né,1\n"
    assert facts_of(text.encode(), encodings=("utf-8", "cp1252")).encoding == "utf-8"
    assert facts_of(text.encode("cp1252"), encodings=("utf-8", "cp1252")).encoding == "cp1252"
    assert facts_of(b"a\n\x81\n", encodings=("utf-8", "cp1252")).encoding is None
    assert facts_of("a\né".encode()[:-1]).encoding is None  # cut within a character


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"\r\n\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\xff\xfe", gzip.compress(b"", mtime=0)]
)
def test_nothing_but_marks_and_line_ends_is_an_empty_file(data: bytes) -> None:
    assert refusal(data).kind == "empty_file"


@pytest.mark.parametrize(
    ("magic", "what"),
    [
        (b"PK\x03\x04", "Excel"), (b"%PDF-1.7", "PDF"), (b"PAR1", "Parquet"), (b"\xd0\xcf\x11\xe0", "old Excel"),
        (b"BZh9", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"7z\xbc\xaf\x27", "7-Zip"),
        (b"-----BEGIN PGP MESSAGE", "PGP"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("rest", [b"", b"x" * 100])
def test_other_formats_are_named(magic: bytes, what: str, rest: bytes) -> None:
    error = refusal(magic + rest)
    assert error.kind == "not_text"
    assert what in str(error)


def test_binary_is_refused_and_a_few_nuls_are_not() -> None:
    assert refusal(bytes(range(256)) * 20).kind == "not_text"
    assert refusal(b"a,\x00b\n1,2\n").kind == "not_text"
    padded = facts_of(csv_of(line("M1"), line("M2")).encode() + b"\x00\x00")
    assert padded.nul_bytes == 2
    judge(padded)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ""])
def test_a_trailer_is_found_with_its_count(end: str) -> None:
    facts = facts_of(f"a,b\n1,2\nTRAILER, 1{end}".encode(), trailer="TRAILER", count_field=2)
    assert facts.trailer_count == 1
    assert facts.trailer_bytes == len("TRAILER, 1" + end)


def test_a_trailers_bytes_are_counted_as_the_reader_will_see_them() -> None:
    data = "a,b\né,2\nTRAILER,1,Société\n".encode("cp1252")
    facts = facts_of(data, encodings=("utf-8", "cp1252"), trailer="TRAILER", count_field=2)
    assert facts.trailer_bytes == len("TRAILER,1,Société\n".encode("cp1252"))


def test_a_trailer_that_states_no_number_is_refused() -> None:
    facts = facts_of(b"a,b\n1,2\nTRAILER,many\n", trailer="TRAILER", count_field=2)
    with pytest.raises(DeliveryError, match="does not state a number"):
        judge(facts)


_LINES = st.lists(
    st.sampled_from(
        ["a,b", "", "\r", "\n", "\r\n", "é", "日本", '"x\n\ny"', "TRAILER,3", "\ufeff", "\x00", " ", "M1,😀"]
    ),
    max_size=12,
)


@st.composite
def _files(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = draw(st.sampled_from(["", "\ufeff"])) + end.join(draw(_LINES))
    data = text.encode(draw(st.sampled_from(["utf-8", "utf-16", "utf-16-le"])))
    if draw(st.booleans()):
        data = data[:-1] + b"\xff" if draw(st.booleans()) else data + b"\xd8"
    pack = draw(st.sampled_from(["plain", "gzip", "stored", "two", "cut"]))
    if pack == "gzip":
        return gzip.compress(data)
    if pack == "stored":
        return gzip.compress(data, 0)
    if pack == "two":
        half = draw(st.integers(0, len(data)))
        return gzip.compress(data[:half]) + gzip.compress(data[half:], 0)
    return gzip.compress(data)[:-3] if pack == "cut" else data


@given(_files(), st.lists(st.integers(1, 9), max_size=200))
@settings(max_examples=examples(250), deadline=None)
def test_facts_do_not_depend_on_how_the_bytes_were_cut(data: bytes, sizes: list[int]) -> None:
    options = {"encodings": ("utf-8", "cp1252"), "trailer": "TRAILER", "count_field": 2}
    whole = facts_of(data, **options)
    assert facts_of(data, chunks=sizes or [1] * len(data), **options) == whole
    assert facts_of(data, chunks=[1] * len(data), **options) == whole


@given(st.lists(st.sampled_from(["x", "", "y,z", " "]), min_size=1, max_size=10), st.sampled_from(["\n", "\r\n", "\r"]))
@settings(max_examples=examples(100), deadline=None)
def test_line_counts_equal_a_plain_split(lines: list[str], end: str) -> None:
    facts = facts_of("".join(one + end for one in lines).encode())
    assert facts.physical_lines == len(lines)
    assert facts.has_text == any(lines)


def test_a_gzip_that_unpacks_to_very_much_is_counted_without_holding_it() -> None:
    size = 40 << 20
    packer = zlib.compressobj(9, wbits=31)
    data = packer.compress(b"a,b\n" + b"1,2\n" * (size // 4)) + packer.flush()
    facts = facts_of(data)
    assert (facts.physical_lines, facts.gzip_damage) == (size // 4 + 1, False)
