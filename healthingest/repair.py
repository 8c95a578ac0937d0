"""Rejected records, mended by a person: as a file in the client's own columns, and back into silver.

A repaired delivery is the next of its name: the same bytes with the mended records in the place of the rejected ones.
So it replaces the one before as a whole, at that one's place in the sequence: a later file still wins; and whoever
builds silver from bronze finds it there. It can be reverted, read again and repaired again like any other.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, cast

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.errors import ConfigError, PermanentError, UsageError
from healthingest.ingest import ingest
from healthingest.lake.bronze import Registered
from healthingest.lake.silver import Snapshot
from healthingest.landing.preflight import Facts, Preflight
from healthingest.members import check_as, check_bytes
from healthingest.model import Delivery, Outcome
from healthingest.platform import Platform
from healthingest.private_file import as_written
from healthingest.reading import Reader
from healthingest.records.check import Checked
from healthingest.records.damage import RECORD_NO, decoded
from healthingest.records.frame import Grammar
from healthingest.records.header import read_header
from healthingest.records.read import text_of
from healthingest.records.splice import spliced, written
from healthingest.records.streams import Pieces
from healthingest.rejections import note_reading, opened, problems
from healthingest.silence import names_of_erased

#: Seconds to wait for others at work on the client.
_WAIT = 600.0
FILE_ID, RECORD, PROBLEMS, RECEIVED = "_file_id", "_record_no", "_problems", "_received"
_OWN = (FILE_ID, "_file", RECORD, "_line", PROBLEMS, RECEIVED)


def for_repair(platform: Platform, rows: pl.DataFrame, reader: Reader) -> pl.DataFrame:
    """Rejected records (rows of quarantine) in their clients' own columns, to be mended and given to `replay`.

    Columns: _file_id, _file, _record_no, _line, _problems, each file's own (String), and _received: the text of a
    record that does not fit the header. The reading is an event.

    Raises:
        KeyringError: the reader's role does not open rejected records, or its keyring does not.
        DeliveryError: a file has no header that could be read; its sender must mend it.
    """
    rows = rows.filter(pl.col("sealed_record").is_not_null())
    told = problems(platform, rows).with_columns(
        problem=pl.when(pl.col("column") == "").then("problem").otherwise(pl.format("{}: {}", "column", "problem"))
    )
    said = told.group_by("file", "record").agg(pl.col("problem").unique(maintain_order=True).str.join("; "))
    note_reading(rows, reader)
    parts = [_of_delivery(platform, part, reader) for part in rows.partition_by("file_id", maintain_order=True)]
    if not parts:
        return pl.DataFrame(schema=dict.fromkeys(_OWN, pl.String))
    found = pl.concat(parts, how="diagonal")
    found = found.join(said, left_on=["_file", RECORD], right_on=["file", "record"], how="left", maintain_order="left")
    columns = [c for c in found.columns if c not in {*_OWN, "problem"}]
    return found.rename({"problem": PROBLEMS}).select(*_OWN[:-1], *columns, RECEIVED)


def _of_delivery(platform: Platform, rows: pl.DataFrame, reader: Reader) -> pl.DataFrame:
    client_id, file_id = str(rows["client_id"][0]), str(rows["file_id"][0])
    registered = platform.lake.bronze.find(client_id, file_id)
    if registered is None:
        raise PermanentError(f"Delivery {file_id} is not in bronze; restore bronze.")
    client = platform.pinned_client(registered.delivery)
    names, grammar = _header(platform, registered, client), _grammar(client)
    records = []
    whole = rows["reasons"].list.eval(pl.element().struct.field("column").is_null().any()).list.first()
    for raw, at_fault in zip(opened(rows, reader.keyring), whole, strict=True):
        text = decoded(raw, ["utf-8", *client.config.source.encodings]) or raw.decode("utf-8", "replace")
        fields = [part.decode() for part in grammar.fields(text.encode())]
        fits = len(fields) == len(names) and not at_fault  # else its fields may be anything
        records.append(dict(zip(names, fields if fits else [""] * len(names), strict=True)) | {
            RECEIVED: "" if fits else text
        })  # fmt: skip
    own = pl.DataFrame(records, schema=dict.fromkeys([*names, RECEIVED], pl.String))
    return rows.select(
        pl.col("file_id").alias(FILE_ID), pl.col("file_name").alias("_file"), pl.col("record_no").alias(RECORD),
        pl.col("line_no").alias("_line"),
    ).hstack(own)  # fmt: skip


def _header(platform: Platform, registered: Registered, client: Client) -> list[str]:
    """The names of a file's columns, as it writes them.

    Raises:
        DeliveryError: it has none that can be read, or two of one name.
    """
    bronze, facts = platform.lake.bronze, registered.facts
    encodings = ["utf-8", *client.config.source.encodings]
    with bronze.open(registered.delivery) as source:
        return read_header(text_of(source, facts), client, encodings)[0].names


def _grammar(client: Client) -> Grammar:
    return Grammar(client.config.source.delimiter, client.config.source.quote)


# --- and back -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Foretold:
    """What mended records make of a delivery."""

    delivery: Delivery
    #: Records that were mended and pass now; that were mended and fail still; whom nothing is left to do for.
    released: Sequence[int]
    still: Sequence[int]
    closed: Sequence[int]
    #: Why nothing of it can be taken.
    message: str | None = None
    repair: "_Repair | None" = field(default=None, repr=False)


def plan_replay(platform: Platform, path: Path) -> list[Foretold]:
    """What the mended records of a file (as `for_repair` gave it) would come to, per delivery; writes nothing.

    Raises:
        UsageError: the file is not of that form, or names what is not there.
    """
    mended = _read(path)
    latest = {file_id: _latest(platform, file_id) for file_id in mended[FILE_ID].unique(maintain_order=True)}
    for (file_id,), rows in mended.group_by(FILE_ID, maintain_order=True):
        _refuse_moved(platform, str(file_id), latest[str(file_id)].delivery, rows[RECORD].to_list())
    ids = pl.col(FILE_ID).replace_strict({f: one.delivery.file_id for f, one in latest.items()}, return_dtype=pl.String)
    mended = mended.with_columns(ids)
    by_id = {one.delivery.file_id: one for one in latest.values()}
    return [_foretell(platform, by_id[str(f)], rows) for (f,), rows in mended.group_by(FILE_ID, maintain_order=True)]


def replay(platform: Platform, foretold: Sequence[Foretold], *, by: str, run_id: str) -> Iterator[Outcome]:
    """Take mended records in, delivery by delivery; each is the next delivery of its name. May be repeated.

    Raises:
        UsageError: somebody else was faster.
    """
    for one in foretold:
        if one.repair is not None and one.released:
            yield ingest(platform, _register(platform, one.repair, one.released, by), run_id=run_id)


def _register(platform: Platform, repair: "_Repair", released: Sequence[int], by: str) -> Delivery:
    latest, lake = repair.latest, platform.lake
    client_id = latest.delivery.client_id
    with lake.exclusion.alone(client_id, wait=_WAIT):  # or two repairs at once would each lack the other
        client = platform.present_client(client_id)
        platform.publish(client)
        said = {"by": by, "of": latest.delivery.file_id, "records": sorted(released)}
        known = lake.bronze.slot(client_id, latest.delivery.file_name)
        if client.config_hash != repair.client.config_hash or max(known) != repair.number:
            raise UsageError(f"{latest.delivery.file_name} has changed meanwhile; look at the plan again.")
        lake.events.append(client_id, "repaired", "", {"who": by, "file_id": said["of"], "records": len(released)})
        return lake.bronze.mend(latest, client, repair.chunks(platform), said).delivery


@dataclass(frozen=True)
class _Repair:
    """Mended records of one delivery."""

    latest: Registered
    client: Client
    #: Greatest delivery number of the name.
    number: int
    #: Line on which a rejected record starts -> what stands there instead.
    lines: Mapping[int, bytes]
    #: Further records, where one rejected span was mended into several.
    after: Sequence[bytes]

    def chunks(self, platform: Platform) -> Iterator[bytes]:
        """The delivery's bytes with them."""

        def instead(start: int, height: int) -> bytes | None:
            # Blank lines keep the numbers of the lines below.
            return self.lines[start] + b"\n" * (height - 1) if start in self.lines else None

        with platform.lake.bronze.open(self.latest.delivery) as source:
            yield from spliced(source, self.latest.facts, self.client, instead, self.after)

    def checked(self, platform: Platform) -> Checked:
        """The delivery with them, read and validated."""
        delivery = self.latest.delivery
        return check_bytes(
            lambda: cast("IO[bytes]", Pieces(self.chunks(platform))), self._facts(platform), delivery, self.client,
            lambda _stage, _seconds: None, platform.keyring, erased=names_of_erased(platform, delivery.client_id),
        )  # fmt: skip

    def _facts(self, platform: Platform) -> Facts:
        preflight = Preflight.of(self.client.config.source)
        for chunk in self.chunks(platform):
            preflight.feed(chunk)
        return preflight.facts().model_copy(update={"erased_records": self.latest.facts.erased_records})


def _foretell(platform: Platform, latest: Registered, rows: pl.DataFrame) -> Foretold:
    delivery, numbers = latest.delivery, rows[RECORD].unique().sort().to_list()
    if why := _replaced(platform, latest):
        return Foretold(delivery, [], [], numbers, why)
    if platform.lake.audit.row(delivery.file_id) is None:  # whoever took it in died before its end
        why = "Its last repair has come to no end yet; run healthingest ingest --all, then this again."
        return Foretold(delivery, [], [], numbers, why)
    mine = (pl.col("client_id") == delivery.client_id) & (pl.col("file_id") == delivery.file_id)
    standing = platform.lake.quarantine.frame(["record_no", "line_no", "state"], mine)
    open_now = {n: at for n, at, state in standing.iter_rows() if state == "open"}
    wanted = [n for n in numbers if n in open_now]
    closed = [n for n in numbers if n not in open_now]
    if not wanted:
        return Foretold(delivery, [], [], closed, "Nothing of it is open: all was released, discarded or repaired.")
    now = platform.current(delivery.client_id)
    client = now.present_client(delivery.client_id)
    repair = _spliced(now, latest, client, rows.filter(pl.col(RECORD).is_in(wanted)), open_now)
    try:
        before, after = check_as(now, latest, client), repair.checked(now)
    except (PermanentError, ConfigError) as error:
        return Foretold(delivery, [], wanted, closed, str(error))
    failing = set(after.rejected[RECORD_NO])
    still = [n for n in wanted if n in failing]
    if _harms(before, after, len(repair.after)):
        why = "Other records would be read otherwise with these in their place; ask the sender for a new file."
        return Foretold(delivery, [], wanted, closed, why)
    # What fails still stays as it was received.
    left = replace(
        repair, lines={at: text for at, text in repair.lines.items() if at not in {open_now[n] for n in still}}
    )
    return Foretold(delivery, [n for n in wanted if n not in failing], still, closed, None, left)


def _harms(before: Checked, after: Checked, more: int) -> bool:
    """Whether anything but the mended records, and `more` at the end, is read otherwise than before."""
    known = before.counts.records
    failing = set(after.rejected[RECORD_NO]) - set(before.rejected[RECORD_NO])
    return after.counts.records != known + more or any(number <= known for number in failing)


def _latest(platform: Platform, file_id: str) -> Registered:
    """The latest reading of the bytes of a delivery.

    Raises:
        UsageError: there is no such delivery.
    """
    rows = platform.lake.audit.frame(["client_id"], pl.col("file_id") == file_id)
    found = platform.lake.bronze.find(rows["client_id"][0], file_id) if rows.height else None
    if found is None:
        raise UsageError(f"There is no delivery {file_id[:32]!r}; give the file that quarantine export --repair wrote.")
    return platform.lake.bronze.readings(found.delivery)[-1]


def _refuse_moved(platform: Platform, file_id: str, latest: Delivery, numbers: Sequence[int]) -> None:
    """Raise UsageError where the latest reading of the bytes has other records under the numbers that were exported."""
    if file_id == latest.file_id:
        return
    mine = (pl.col("client_id") == latest.client_id) & pl.col("file_id").is_in([file_id, latest.file_id])
    rows = platform.lake.quarantine.frame(["record_no", "line_no", "lines"], mine & pl.col("record_no").is_in(numbers))
    if rows.unique().height != rows["record_no"].n_unique():
        raise UsageError(
            f"{latest.file_name} is cut into other records since this was exported; export it again and mend that."
        )


def _replaced(platform: Platform, latest: Registered) -> str | None:
    """Why a delivery's records are nobody's task any more; else None."""
    delivery = latest.delivery
    silver = platform.lake.silver_of(delivery.client_id)
    row = platform.lake.audit.row(delivery.file_id) or {}
    if silver.exists():
        snapshot = Snapshot(silver.snapshot(), delivery.client_id)
        counting = snapshot.counting_of(platform.lake.bronze.slot(delivery.client_id, delivery.file_name))
        if max(counting, default=0) > delivery.delivery_no:
            return f"Delivery {max(counting)} of this name has replaced it; its records are nobody's task any more."
    if row.get("status") in {"reverted", "discarded"}:
        return f"The delivery is {row['status']}; nothing of it counts."
    return None


def _spliced(
    platform: Platform, latest: Registered, client: Client, rows: pl.DataFrame, lines: Mapping[int, int]
) -> _Repair:
    """The mended records as lines in the client's form.

    Raises:
        UsageError: a column is missing or unknown, or the client's form has no way to write a record.
    """
    delivery = latest.delivery
    names = _header(platform, latest, client)
    own = [c for c in rows.columns if c not in _OWN]
    used = [c for c in own if c in names or rows[c].fill_null("").ne("").any()]
    if set(used) != set(names):
        odd = sorted(set(names) ^ set(used))
        raise UsageError(
            f"The columns for {delivery.file_name} must be those of the file: {len(odd)} of them differ; "
            "keep all columns that quarantine export --repair wrote, under their names."
        )
    facts = latest.facts
    encoding = "utf-8" if facts.wide or facts.bom else facts.encoding or client.config.source.encodings[0]
    texts: dict[int, list[bytes]] = defaultdict(list)
    for number, *fields in rows.select(RECORD, *[pl.col(n).fill_null("") for n in names]).iter_rows():
        record = written(fields, client.config.source, encoding)
        if record is None:
            raise UsageError(
                f"Record {number} of {delivery.file_name} cannot be written in the client's encoding and delimiter; "
                "take other characters."
            )
        texts[number].append(record)
    after = [text for several in texts.values() for text in several[1:]]
    number = max(platform.lake.bronze.slot(delivery.client_id, delivery.file_name))
    return _Repair(latest, client, number, {lines[n]: several[0] for n, several in texts.items()}, after)


def _read(path: Path) -> pl.DataFrame:
    """The mended records: _file_id, _record_no (Int64) and the clients' columns (String).

    Raises:
        UsageError: it cannot be read as such; nothing of it is said.
    """
    try:
        if path.suffix == ".parquet":
            rows = pl.read_parquet(path).with_columns(pl.all().cast(pl.String))
        else:
            rows = as_written(pl.read_csv(path, infer_schema=False))
    except (OSError, pl.exceptions.PolarsError, UnicodeError):
        raise UsageError(f"{path} cannot be read as the CSV file that quarantine export --repair writes.") from None
    if not {FILE_ID, RECORD} <= set(rows.columns):
        raise UsageError(f"{path} lacks the columns {FILE_ID} and {RECORD}; keep those that the export wrote.")
    numbers = rows[RECORD].cast(pl.Int64, strict=False)
    if numbers.null_count() or rows[FILE_ID].null_count():
        raise UsageError(f"{path} has a row without {FILE_ID} or {RECORD}; keep them as the export wrote them.")
    return rows.with_columns(numbers)
