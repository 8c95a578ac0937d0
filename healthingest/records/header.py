"""A file's header: where it ends, its names, and which contract column each of them is.

What belongs here: everything about the lines above the first record. What does not: the records (`read`). No message
holds a name found in the file: one without a header has a member's values in that place.
"""

from dataclasses import dataclass

from healthingest.contracts.clients import Client
from healthingest.contracts.source import normal_header
from healthingest.errors import DeliveryError
from healthingest.records.damage import decoded
from healthingest.records.frame import LINE_END, Grammar
from healthingest.records.streams import ByteSource, Chained, read_up_to

_LIMIT = 1 << 20


@dataclass(frozen=True)
class Header:
    """What stands above a file's records."""

    #: As the file writes them, or as the client's YAML names them.
    names: list[str]
    #: Contract column -> its place among them.
    columns: dict[str, int]
    #: Header name that a transform takes (see `normal_header`) -> its place.
    sources: dict[str, int]
    #: Names that nothing takes.
    extra: list[str]
    #: Physical lines of it, skipped ones included; of one header alone; and blank lines before it.
    lines: int
    height: int
    blank_lines: int

    @property
    def written(self) -> dict[str, str]:
        """Contract column -> its name in the file. Names that the contract or the YAML knows, so never a value."""
        return {column: self.names[place].strip() for column, place in self.columns.items()}


def read_header(stream: ByteSource, client: Client, encodings: list[str]) -> tuple[Header, ByteSource]:
    """Take the header off a stream; returns it and the stream of records.

    Raises:
        DeliveryError: there is none, or its columns are not those the contract needs.
    """
    source = client.config.source
    head = read_up_to(stream, _LIMIT)
    if head.endswith(b"\r"):  # its \n may be the next byte
        head += read_up_to(stream, 1)
    at = _after_lines(head, source.skip_lines)
    blank = 0
    while ended := LINE_END.match(head, at):
        at, blank = ended.end(), blank + 1
    if not source.header and at == len(head) >= _LIMIT:
        raise DeliveryError("header", "There is no record within the first MiB, the limit; send the file whole.")
    if not source.header:
        names, height = list(source.names or ()), 0
    else:
        raw, at = _first_record(head, at, Grammar(source.delimiter, source.quote))
        text = decoded(raw, encodings) or raw.decode("utf-8", "ignore")
        names = [
            field.decode().removeprefix("\ufeff")
            for field in Grammar(source.delimiter, source.quote).fields(text.encode())
        ]
        height = len(LINE_END.findall(raw)) + 1
        if any(source.delimiter in name and LINE_END.search(name.encode()) for name in names):
            raise DeliveryError(
                "header", "A quote in the header line is not closed on that line; send the file with a plain header."
            )
    columns, sources, extra = _map(names, client)
    header = Header(names, columns, sources, extra, source.skip_lines + height, height, blank)
    return header, Chained(head[at:], stream)


def _after_lines(head: bytes, count: int) -> int:
    at = 0
    for _ in range(count):
        ended = LINE_END.search(head, at)
        if ended is None:
            raise DeliveryError(
                "header",
                f"The file ends within the {count} leading line(s) that the client's YAML skips; send it whole.",
            )
        at = ended.end()
    return at


def _first_record(head: bytes, at: int, grammar: Grammar) -> tuple[bytes, int]:
    if at == len(head):
        raise DeliveryError("header", "There is no header within the first MiB, the limit; send the file whole.")
    end, fault = grammar.record_end(head, at, at_end=len(head) < _LIMIT)
    if end is None:
        raise DeliveryError(
            "header", "The header does not end within 1 MiB, the limit; send the file with a line per record."
        )
    if fault:
        raise DeliveryError(
            "header",
            "A quote in the header line is not closed, or has text behind it; send the file with a plain header.",
        )
    ended = LINE_END.match(head, end)
    return head[at:end], ended.end() if ended else end


def _map(names: list[str], client: Client) -> tuple[dict[str, int], dict[str, int], list[str]]:
    """Contract columns, transforms' sources and the names that nothing takes."""
    contract, config = client.contract, client.config
    wanted = {normal_header(column): column for column in contract.column}
    wanted |= {normal_header(header): source.to for header, source in config.columns.items()}
    taken = {normal_header(name) for step in config.transform for name in step.sources}
    found: dict[str, int] = {}
    sources: dict[str, int] = {}
    extra: list[str] = []
    for place, name in enumerate(names):
        normal = normal_header(name)
        column = wanted.get(normal)
        if normal in sources or column in found:
            raise DeliveryError("duplicate_column", f"The header names {column or 'a column'} twice; send each once.")
        if normal in taken:
            sources[normal] = place
        if column is not None and column not in client.made_columns:
            found[column] = place
        elif normal not in taken:
            extra.append(name)
    missing = [name for name in required_columns(client) if name not in found]
    missing += sorted(taken - sources.keys())
    if missing:
        raise DeliveryError(
            "missing_column", _missing_sentence(missing, len(names), bool(found), config.source.delimiter)
        )
    if extra and config.schema_evolution == "freeze":
        raise DeliveryError(
            "extra_column", f"The header has {len(extra)} column(s) that {contract.name} does not know; this client's "
            "schema is frozen."
        )  # fmt: skip
    return {column: found[column] for column in contract.column if column in found}, sources, extra


def required_columns(client: Client) -> list[str]:
    """Contract columns that the header must name: those that neither a transform nor a default gives."""
    date_from = client.config.source.creation_date
    needed = [*client.contract.required, *([date_from.column] if date_from.from_ == "column" else [])]
    return [c for c in dict.fromkeys(needed) if c not in client.made_columns and not client.column_source(c).default]


def _missing_sentence(missing: list[str], width: int, any_found: bool, delimiter: str) -> str:  # noqa: FBT001
    wanted = ", ".join(missing)
    if width == 1:
        return f"With {delimiter!r} as delimiter the header has one column only; check it (missing: {wanted})."
    if not any_found:
        return f"The first line names no known column; the file seems to have no header (missing: {wanted})."
    return f"The header lacks the required column(s) {wanted}; send them, or map their names in the client's YAML."
