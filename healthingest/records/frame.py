"""Cuts a stream of bytes into records, by line ends and quotes (RFC 4180), before anything is parsed.

What belongs here: where each record starts and ends, on which physical lines, and whether its quotes pair. What does
not: what its fields are (`read`) and what damage looks like (`damage`). Whole blocks are judged at once with numpy:
quotes must open and close in turn, each where a field starts or ends. Where one does not, that record alone is walked.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from healthingest.landing.preflight import count_line_ends
from healthingest.records.streams import ByteSource, read_up_to

#: Bytes of the longest record; of a longer one only the first `KEPT` bytes are kept, and it is rejected.
LIMIT = 8 << 20
KEPT = 1 << 20
_BLOCK, _FIRST = 24 << 20, 2 << 20
#: Records that a block should hold about, and a frame at most once and a half.
RECORDS = 200_000
#: A physical line's end.
LINE_END = re.compile(rb"\r\n|\n|\r")
_CR, _LF = 13, 10

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """Consecutive whole records, blank lines between them left out."""

    data: bytes
    #: Offsets in `data` of each record's first byte, and of the first byte after its last (a line end, or the end).
    starts: Positions
    ends: Positions
    #: Physical line (1-based, the file's first is 1) on which each record starts, and how many it takes.
    line_nos: Positions
    lines: Positions
    #: Index of a record -> why its quotes or size rule it out: text_after_quote, unterminated_quote, record_too_large.
    faults: dict[int, str] = field(default_factory=dict)

    def record(self, index: int) -> bytes:
        """One record's bytes, without its line end."""
        return self.data[self.starts[index] : self.ends[index]]


class Framer:
    """Iterates over a stream's frames. Memory is bounded by the block and the longest record, not by the file."""

    def __init__(self, source: ByteSource, delimiter: str, quote: str | None, *, first_line: int = 1) -> None:
        """Start where a record starts; `first_line` is that line's number in the file."""
        self._source = source
        self._grammar = Grammar(delimiter, quote)
        self._line = first_line
        #: Empty lines between records, so far.
        self.blank_lines = 0

    def __iter__(self) -> Iterator[Frame]:
        """Yield all records in order."""
        carry, at_end, size = b"", False, min(_BLOCK, _FIRST)
        while not at_end:
            fresh = read_up_to(self._source, size)
            at_end = len(fresh) < size
            # The \n that belongs to a last \r may be the next byte.
            held = b"\r" if fresh.endswith(b"\r") and not at_end else b""
            buffer = carry + fresh.removesuffix(held)
            cut = self._grammar.cut(buffer, at_end=at_end)
            if len(cut.nexts):
                yield from _in_parts(self._frame(buffer, cut))
                # Short records need memory by their number, not by their bytes.
                size = min(_BLOCK, max(_FIRST, len(buffer) * RECORDS // len(cut.nexts)))
            carry = buffer[cut.nexts[-1] if len(cut.nexts) else 0 :] + held
            if len(carry) > LIMIT and not at_end:
                frame, carry = self._skip_long(carry)
                yield frame

    def _frame(self, buffer: bytes, cut: "_Cut") -> Frame:
        starts = np.concatenate([np.zeros(1, np.int64), cut.nexts[:-1]])
        line_nos = self._line + np.concatenate([np.zeros(1, np.int64), cut.last_lines[:-1] + 1])
        lines = np.diff(cut.last_lines, prepend=-1)
        self._line += int(cut.last_lines[-1]) + 1
        filled = cut.ends > starts
        faults = dict(cut.faults)
        for index in np.flatnonzero(cut.ends - starts > LIMIT).tolist():
            if faults.get(index) != "unterminated_quote":
                faults[index] = "record_too_large"
        if not filled.all():
            self.blank_lines += int(np.count_nonzero(~filled))
            place = np.cumsum(filled) - 1
            faults = {int(place[index]): fault for index, fault in faults.items()}
            starts, line_nos, lines = starts[filled], line_nos[filled], lines[filled]
        ends = cut.ends[filled].copy()
        for index in faults:
            if ends[index] - starts[index] > LIMIT:
                ends[index] = starts[index] + KEPT
        return Frame(buffer, starts, ends, line_nos, lines, faults)

    def _skip_long(self, begun: bytes) -> tuple[Frame, bytes]:
        """Read past a record that is too long; returns it as a frame, and what has been read of those after it.

        It ends at the first line end outside of the quotes that it was in when it became too long.
        """
        chunk, lines, last, at_end = begun, 1, b"", False
        at, quoted = self._grammar.last_field(begun)
        while True:
            end, at, quoted = self._grammar.go_on(chunk, at, quoted=quoted, at_end=at_end)
            stop = at if end is None else end
            lines, last = lines + count_line_ends(chunk[:stop]), chunk[stop - 1 : stop] or last
            if end is not None:
                lines -= quoted and last in {b"\n", b"\r"}  # the file's last line end starts no further line
                frame = self._long(begun[:KEPT], lines, "unterminated_quote" if quoted else "record_too_large")
                ended = LINE_END.match(chunk, end)
                return frame, chunk[ended.end() :] if ended else b""
            more = read_up_to(self._source, 1 << 20)
            chunk, at, at_end = chunk[at:] + more, 0, not more

    def _long(self, kept: bytes, lines: int, fault: str) -> Frame:
        start, end, line_no, height = (np.array([value], np.int64) for value in (0, len(kept), self._line, lines))
        self._line += lines
        return Frame(kept, start, end, line_no, height, {0: fault})


def _in_parts(frame: Frame) -> Iterator[Frame]:
    """The frame, in several where it holds too many records."""
    count = len(frame.starts)
    if count <= RECORDS + RECORDS // 2:
        yield frame
        return
    for first in range(0, count, RECORDS):
        part = slice(first, min(first + RECORDS, count))
        offset, end = int(frame.starts[first]), int(frame.ends[part.stop - 1])
        faults = {at - first: fault for at, fault in frame.faults.items() if first <= at < part.stop}
        starts, ends = frame.starts[part] - offset, frame.ends[part] - offset
        yield Frame(frame.data[offset:end], starts, ends, frame.line_nos[part], frame.lines[part], faults)


@dataclass(frozen=True)
class _Cut:
    """Where records end in a buffer that starts with one: offsets of their ends and of what follows each."""

    ends: Positions
    nexts: Positions
    #: 0-based number, in the buffer, of each record's last line.
    last_lines: Positions
    faults: dict[int, str]


class Grammar:
    """RFC 4180 with one delimiter and at most one quote character; a quote within an unquoted field is text."""

    def __init__(self, delimiter: str, quote: str | None) -> None:
        """Take the client's delimiter and quote, each one ASCII character."""
        self.delimiter, self.quote = delimiter.encode(), quote.encode() if quote else None
        d, q = re.escape(self.delimiter), re.escape(self.quote or b"\0")
        # Possessive throughout: a record of megabytes is matched in one pass, without a stack.
        inside, plain = rb"(?:[^Q]++|QQ)*+", rb"(?:[^QD\r\n][^D\r\n]*+)?+"
        whole = rb"(?:(?:Q" + inside + rb"Q|" + plain + rb")D)*+"
        self._fields = re.compile(whole.replace(b"Q", q).replace(b"D", d))
        self._inside = re.compile(inside.replace(b"Q", q))
        self._opens = _bytes_in(self.delimiter + b"\r\n" + (self.quote or b""))

    def record_end(self, buffer: bytes, start: int, *, at_end: bool) -> tuple[int | None, str | None]:
        """Where the record that starts here ends (None: not in this buffer), and its fault.

        After text behind a closing quote nothing is certain. If that quote stands on a later line, a stray one has
        taken in that line's own opening quote: the span ends where a record that starts with that line would, or with
        the line where that would never end.
        """
        end, broken_at = self._walk(buffer, start, at_end=at_end)
        if broken_at is None or broken_at == len(buffer):
            return end, None if broken_at is None else "unterminated_quote"
        while broken_at is not None:
            line = max(buffer.rfind(b"\n", start, broken_at), buffer.rfind(b"\r", start, broken_at)) + 1
            if line <= start:
                break
            start, before = line, end
            end, broken_at = self._walk(buffer, start, at_end=at_end)
            if broken_at == len(buffer):
                return before, "text_after_quote"
        return end, "text_after_quote"

    def _walk(self, buffer: bytes, start: int, *, at_end: bool) -> tuple[int | None, int | None]:
        """Where the record that starts here ends; and where its quotes break the grammar, the end for an open one."""
        unfinished = len(buffer) if at_end else None
        at, broken_at = start, None
        if self.quote is not None:
            matched = self._fields.match(buffer, start)
            at = matched.end() if matched else start
            if buffer[at : at + 1] == self.quote:
                at = self._close(buffer, at + 1) + 1
                if at > len(buffer):
                    return unfinished, len(buffer) if at_end else None
                if at == len(buffer):
                    return unfinished, None
                broken_at = None if buffer[at] in {_CR, _LF} else at
        found = LINE_END.search(buffer, at)
        return (found.start() if found else unfinished), broken_at

    def fields(self, record: bytes) -> list[bytes]:
        """A whole record's fields, unquoted; of one with a fault, as far as they can be told."""
        return [field for field, _ in self._split(record)]

    def has_loose_quote(self, record: bytes) -> bool:
        """Whether a quote stands as text in an unquoted field: no writer that quotes at all leaves one there."""
        return any(loose for _, loose in self._split(record))

    def _split(self, record: bytes) -> Iterator[tuple[bytes, bool]]:
        at, q = 0, self.quote
        while at <= len(record):
            quoted = q is not None and record[at : at + 1] == q
            closed = self._close(record, at + 1) if quoted else at
            end = record.find(self.delimiter, closed)
            end = len(record) if end < 0 else end
            if quoted and q is not None:
                yield record[at + 1 : closed].replace(q + q, q) + record[closed + 1 : end], False
            else:
                yield record[at:end], q is not None and q in record[at:end]
            at = end + 1

    def cut(self, buffer: bytes, *, at_end: bool) -> _Cut:
        """All records that end in `buffer`; at the end of the stream the last line needs no line end."""
        text = np.frombuffer(buffer, np.uint8)
        ends, nexts = _line_ends(buffer, text)
        if at_end and len(buffer) > (nexts[-1] if len(nexts) else 0):
            ends, nexts = np.append(ends, len(buffer)), np.append(nexts, len(buffer))
        if self.quote is None or self.quote not in buffer:
            return _Cut(ends, nexts, np.arange(len(ends)), {})
        last_lines, faults = self._walk_buffer(buffer, text, ends, nexts, at_end=at_end)
        return _Cut(ends[last_lines], nexts[last_lines], last_lines, faults)

    def _walk_buffer(
        self, buffer: bytes, text: npt.NDArray[np.uint8], ends: Positions, nexts: Positions, *, at_end: bool
    ) -> tuple[Positions, dict[int, str]]:
        """The lines at whose end a record ends, and index of record -> fault."""
        quotes = np.flatnonzero(text == (self.quote or b"\0")[0])
        before = np.searchsorted(quotes, ends)
        outside = {p: np.flatnonzero(before % 2 == p) for p in (0, 1)}  # line ends outside of quotes, by parity
        misplaced: dict[int, Positions] = {}
        found: list[Positions] = []
        faults: dict[int, str] = {}
        records = line = quote = parity = 0  # parity: that of the quotes before a line end that ends a record
        while line < len(ends):
            if parity not in misplaced:
                misplaced[parity] = self._misplaced(text, quotes, parity)
            bad = misplaced[parity][np.searchsorted(misplaced[parity], quote) :][:1]
            stop = int(np.searchsorted(ends, quotes[bad[0]])) if len(bad) else len(ends)
            sound = outside[parity]
            sound = sound[np.searchsorted(sound, line) : np.searchsorted(sound, stop)]
            if len(sound):
                found.append(sound)
                records, line = records + len(sound), int(sound[-1]) + 1
            if not len(bad) and not (at_end and line < len(ends)):
                break
            end, fault = self.record_end(buffer, int(nexts[line - 1]) if line else 0, at_end=at_end)
            if end is None:
                break
            last = min(int(np.searchsorted(ends, end)), len(ends) - 1)  # an open quote takes in the last line end
            if fault:
                faults[records] = fault
            found.append(np.array([last]))
            records, line, quote = records + 1, last + 1, int(np.searchsorted(quotes, nexts[last]))
            parity = quote % 2
        return (np.concatenate(found) if found else np.zeros(0, np.int64)), faults

    def _misplaced(self, text: npt.NDArray[np.uint8], quotes: Positions, parity: int) -> Positions:
        """Indices of quotes that stand where their turn does not allow: those of `parity` open, the others close.

        Two quotes side by side within a field close and open it again, which is what a doubled quote comes to.
        """
        wrong = np.zeros(len(quotes), bool)
        opening, closing = quotes[parity::2], quotes[1 - parity :: 2]
        first = len(opening) > 0 and opening[0] == 0
        wrong[parity::2] = ~self._opens[text[np.maximum(opening - 1, 0)]]
        if first:
            wrong[parity] = False
        wrong[1 - parity :: 2] = ~self._opens[text[np.minimum(closing + 1, len(text) - 1)]]
        return np.flatnonzero(wrong)

    def _close(self, buffer: bytes, at: int) -> int:
        """Offset of the quote that closes a field whose inside goes on at `at`; the buffer's length if none does."""
        matched = self._inside.match(buffer, at)
        return matched.end() if matched else at

    def last_field(self, begun: bytes) -> tuple[int, bool]:
        """Where the last field of a record without its end begins, or its inside; and whether it has a quote."""
        if self.quote is None:
            return 0, False
        matched = self._fields.match(begun)
        at = matched.end() if matched else 0
        return (at + 1, True) if begun[at : at + 1] == self.quote else (at, False)

    def go_on(self, chunk: bytes, at: int, *, quoted: bool, at_end: bool) -> tuple[int | None, int, bool]:
        """Look for a record's end from `at` on: its offset if it is here, where to go on, and whether in quotes."""
        if quoted:
            at = self._close(chunk, at)
            if at_end and at == len(chunk):
                return at, at, True
            if not at_end and at >= len(chunk) - 1:  # none, or one whose pair may follow
                return None, at - chunk.endswith(b"\r"), True
            at += 1
        found = LINE_END.search(chunk, at)
        if found and (found.end() < len(chunk) or at_end):
            return found.start(), at, False
        if at_end:
            return len(chunk), at, False
        return None, found.start() if found else len(chunk), False


def _line_ends(buffer: bytes, text: npt.NDArray[np.uint8]) -> tuple[Positions, Positions]:
    r"""Offsets of all line ends (\n, \r\n or a lone \r) and of what follows each."""
    feeds = np.flatnonzero(text == _LF)
    if b"\r" not in buffer:
        return feeds, feeds + 1
    returns = np.flatnonzero(text == _CR)
    after_return = np.concatenate([np.zeros(1, bool), text[:-1] == _CR])[feeds]
    ends, nexts = feeds - after_return, feeds + 1
    if np.count_nonzero(after_return) == len(returns):
        return ends, nexts
    alone = returns[np.append(text, 0)[returns + 1] != _LF]
    ends, nexts = np.concatenate([ends, alone]), np.concatenate([nexts, alone + 1])
    order = np.argsort(ends, kind="stable")
    return ends[order], nexts[order]


def _bytes_in(wanted: bytes) -> npt.NDArray[np.bool_]:
    table = np.zeros(256, bool)
    table[list(wanted)] = True
    return table
