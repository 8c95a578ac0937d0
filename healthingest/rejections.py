"""What was rejected, for people: per delivery, per record, and as a file that its sender can work with.

What belongs here: reading quarantine and putting rules into words, under the sender's own column names. What does not:
the table itself (`lake.quarantine`) and how the command line shows it. No value, unless a caller asks to open the
sealed records and holds their key.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

import polars as pl

from healthingest.errors import ConfigError, UsageError
from healthingest.lake.quarantine import open_record
from healthingest.platform import Platform
from healthingest.privacy.keyring import Keyring
from healthingest.reading import Reader
from healthingest.records.validate import Validator

_ID = r"^[0-9a-f]{6,32}$"
#: What `with_words` adds.
_WORDS = {
    "state_by": pl.String(), "state_reason": pl.String(), "state_at": pl.Datetime("us", "UTC"),
    "state_of_file": pl.Boolean(),
}  # fmt: skip
#: Stands for a record whose member was erased.
_ERASED = b"(erased)"


@dataclass(frozen=True)
class Wanted:
    """Which rejected records are asked for; what is None or empty asks for all."""

    #: File names, or file ids or their first six digits or more.
    files: Sequence[str] = ()
    client: str | None = None
    day: date | None = None
    rule: str | None = None
    state: str | None = None

    def filter(self) -> pl.Expr:
        """The filter on the quarantine table."""
        wanted = pl.lit(value=True)
        if self.files:
            ids = pl.Series(self.files)
            starts = [pl.col("file_id").str.starts_with(i) for i in ids.filter(ids.str.contains(_ID))]
            wanted = pl.any_horizontal(pl.col("file_name").is_in(list(self.files)), *starts)
        if self.client:
            wanted &= pl.col("client_id") == self.client
        if self.day:
            wanted &= pl.col("creation_date") == self.day
        if self.state:
            wanted &= pl.col("state") == self.state
        return wanted


def rejected(platform: Platform, wanted: Wanted) -> pl.DataFrame:
    """Rows of the quarantine table, in the order of client, date, file, delivery and record.

    Raises:
        UsageError: a file was named of which nothing is known.
    """
    rows = platform.lake.quarantine.frame(None, wanted.filter())
    for name in wanted.files:
        known = (pl.col("file_name") == name) | pl.col("file_id").str.starts_with(name)
        if rows.filter(known).is_empty() and platform.lake.audit.frame(["file_id"], known).is_empty():
            raise UsageError(
                f"There is no delivery {name!r}; healthingest quarantine list shows those with rejections."
            )
    if wanted.rule:
        rows = rows.filter(pl.col("reasons").list.eval(pl.element().struct.field("rule") == wanted.rule).list.any())
    return rows.sort("client_id", "creation_date", "file_name", "quarantined_at", "file_id", "record_no")


def tasks(platform: Platform, rows: pl.DataFrame) -> pl.DataFrame:
    """Those rows of quarantine that wait for somebody: open, of a delivery that no later one of its name replaced.

    With what `with_words` adds, and open as that says it.
    """
    rows = with_words(platform, rows)
    standing = platform.lake.audit.standing()["file_id"].implode()
    return rows.filter((pl.col("state") == "open") & pl.col("file_id").is_in(standing))


def with_words(platform: Platform, rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of quarantine with the word that closed each, or opened it again.

    Adds state_by, state_reason (String), state_at (Datetime UTC) and state_of_file (Boolean: it was on the delivery as
    a whole). `state` is as the words say, also where whoever said one died before the table followed.
    """
    parts = [_with_words(platform, part) for part in rows.partition_by("client_id", "file_id", maintain_order=True)]
    return pl.concat([rows.clear().with_columns(pl.DataFrame(schema=_WORDS).get_columns()), *parts])


def _with_words(platform: Platform, rows: pl.DataFrame) -> pl.DataFrame:
    lake, client_id, file_id = platform.lake, str(rows["client_id"][0]), str(rows["file_id"][0])
    verdict, reverts = lake.decisions.of(client_id, file_id), lake.reverts.of(client_id, file_id)
    registered = lake.bronze.find(client_id, file_id)
    words = lake.discards.of(client_id, registered.delivery.origin) if registered else {}
    told: list[tuple[str, str | None, str | None, datetime | None, bool]] = []
    for state, *span in rows.select("state", "line_no", "lines").iter_rows():
        word = words.get((span[0], span[1]))
        if state == "discarded" and verdict and verdict.decision == "discarded":
            told.append((state, verdict.decided_by, verdict.decision_reason, verdict.decided_at, True))
        elif state == "reverted" and reverts:
            told.append((state, reverts[-1].by, reverts[-1].reason, reverts[-1].at, True))
        elif word and state in {"open", "discarded"}:
            told.append(("open" if word.open else "discarded", word.by, word.reason, word.at, False))
        else:
            told.append((state, None, None, None, False))
    return rows.with_columns(pl.DataFrame(told, schema={"state": pl.String, **_WORDS}, orient="row").get_columns())


def per_delivery(rows: pl.DataFrame) -> pl.DataFrame:
    """One row per delivery: client_id, creation_date, file_name, file_id, records, open, quarantined_at, closed, rules.

    The last two are lists, most first: states with their counts, and rules with theirs.
    """
    keys = ["client_id", "creation_date", "file_name", "file_id"]
    rules = (
        rows.select(*keys, rule=pl.col("reasons").list.eval(pl.element().struct.field("rule")))
        .explode("rule")
        .group_by(*keys, "rule")
        .len()
        .sort("len", "rule", descending=[True, False])
        .group_by(keys, maintain_order=True)
        .agg(rules=pl.format("{} {}", "rule", "len"))
    )
    closed = pl.col("state").filter(pl.col("state") != "open").value_counts(sort=True)
    counted = rows.group_by(keys, maintain_order=True).agg(
        records=pl.len(), open=(pl.col("state") == "open").sum(), quarantined_at=pl.col("quarantined_at").min(),
        closed=pl.format("{} {}", closed.struct.field("state"), closed.struct.field("count")),
    )  # fmt: skip
    return counted.join(rules, on=keys, how="left", maintain_order="left")


def problems(platform: Platform, rows: pl.DataFrame, reader: Reader | None = None) -> pl.DataFrame:
    """One row per record and broken rule, as a sender needs it.

    Columns: file, record, line, lines, column (the sender's own name, empty where the record as a whole is at fault),
    rule, problem (a sentence); with a `reader` also received (the record's text, and an event for each client that says
    so). All String but the three numbers.

    Raises:
        KeyringError: the reader's role does not open rejected records, or its keyring does not.
    """
    if reader:
        note_reading(rows, reader)
    parts = [_of_delivery(platform, part, reader) for part in rows.partition_by("file_id", maintain_order=True)]
    schema = {"file": pl.String, "record": pl.Int64, "line": pl.Int64, "lines": pl.Int64}
    text = ["column", "rule", "problem", *(["received"] if reader else [])]
    return pl.concat([pl.DataFrame(schema=schema | dict.fromkeys(text, pl.String)), *parts])


def note_reading(rows: pl.DataFrame, reader: Reader) -> None:
    """Write the event of a reading of rejected records, for each client.

    Raises:
        KeyringError: the reader's role does not open them, or its keyring does not; it leaves no event.
    """
    for (client_id,), part in rows.group_by("client_id"):
        reader.keyring.derive("rejected", str(client_id))
        reader.record(str(client_id), "rejected records", ["received"], part.height)


def opened(rows: pl.DataFrame, keyring: Keyring) -> list[bytes]:
    """The records of rows of quarantine as they were received, for who holds the key."""
    return [
        open_record(keyring, client_id, file_id, number, sealed) if sealed is not None else _ERASED
        for client_id, file_id, number, sealed in rows.select(
            "client_id", "file_id", "record_no", "sealed_record"
        ).rows()
    ]


def _of_delivery(platform: Platform, rows: pl.DataFrame, reader: Reader | None) -> pl.DataFrame:
    client_id, file_id = str(rows["client_id"][0]), str(rows["file_id"][0])
    texts, headers = _words(platform, client_id, file_id)
    if reader:
        received = [raw.decode("utf-8", "replace") for raw in opened(rows, reader.keyring)]
        rows = rows.with_columns(received=pl.Series(received, dtype=pl.String))
    fields = pl.format("{} (expected {}, found {})", "__text", "expected_fields", "found_fields")
    return (
        rows.explode("reasons")
        .unnest("reasons")
        .with_columns(__text=pl.col("rule").replace_strict(texts, default=pl.col("rule")))
        .select(
            file="file_name",
            record="record_no",
            line="line_no",
            lines="lines",
            column=pl.col("column").replace(headers).fill_null(""),
            rule="rule",
            problem=pl.when(pl.col("found_fields").is_not_null()).then(fields).otherwise("__text"),
            **({"received": pl.col("received")} if reader else {}),
        )
    )


def _words(platform: Platform, client_id: str, file_id: str) -> tuple[dict[str, str], dict[str, str]]:
    """Rule id -> its sentence, and contract column -> the name that this file gave it."""
    row = platform.lake.audit.row(file_id) or {}
    headers = {item["column"]: item["header"] for item in row.get("filled") or () if item["header"]}
    registered = platform.lake.bronze.find(client_id, file_id)
    if registered is None:
        return {}, headers
    try:
        texts = Validator.of(platform.pinned_client(registered.delivery)).texts
    except ConfigError:  # its contract or hook is gone from the registry: the ids must do
        texts = {}
    return texts, headers
