"""A delivery's members: from its bytes in bronze to one standardised, tokenised row per member. Writes nothing."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import IO

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.engines.choice import checking_elsewhere
from healthingest.errors import AccountingError, PermanentError
from healthingest.lake.bronze import Registered
from healthingest.lake.sightings import sequence
from healthingest.landing.preflight import Facts
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy import tokens
from healthingest.privacy.generalize import generalize
from healthingest.privacy.keyring import Keyring
from healthingest.privacy.spool import Spool
from healthingest.privacy.tokens import compact
from healthingest.records.check import Checked, Clock, Elsewhere, Erased, check_records
from healthingest.records.damage import RECORD_NO
from healthingest.records.parts import Aside, Parts
from healthingest.records.read import RecordReader
from healthingest.silence import names_of_erased, silence

#: Lines of a file from which on its accepted records wait on disk, encrypted.
_LARGE = 1_500_000
#: Members of a delivery that are always kept: to read them anew costs more than their memory.
_KEPT = 100_000


def check_delivery(platform: Platform, delivery: Delivery, client: Client, clock: Clock) -> Checked:
    """Read, standardise and validate a delivery's bytes in bronze; `clock` is told the seconds of each stage.

    Raises:
        PermanentError: it cannot be read as a whole, or its counts do not add up.
    """
    registered = platform.lake.bronze.find(delivery.client_id, delivery.file_id)
    if registered is None:
        raise PermanentError("The delivery is not in bronze; drop the file into the landing zone again.")
    opens = partial(platform.lake.bronze.open, delivery)
    aside = Spool(platform.lake.spool) if registered.facts.physical_lines > _LARGE else None
    erased = names_of_erased(platform, delivery.client_id)
    with checking_elsewhere(platform, delivery) as elsewhere:
        return check_bytes(opens, registered.facts, delivery, client, clock, platform.keyring, aside, erased, elsewhere)


def check_bytes(
    open_bytes: Callable[[], IO[bytes]], facts: Facts, delivery: Delivery, client: Client, clock: Clock,
    keyring: Keyring, aside: Aside | None = None, erased: Erased | None = None, elsewhere: Elsewhere | None = None,
) -> Checked:  # fmt: skip
    """The same for bytes that lie anywhere; `facts` is what the pre-flight found in them."""
    with ExitStack() as opened:

        def open_reader() -> RecordReader:
            return RecordReader(opened.enter_context(open_bytes()), facts, client)

        finish = partial(of_members, delivery, client, keyring)
        checked = check_records(open_reader, client, delivery.creation_date, clock, finish, aside, erased, elsewhere)
    counts = checked.counts
    if counts.records != counts.accepted + counts.rejected:
        raise AccountingError(
            f"{counts.records} records were read, but {counts.accepted} accepted and {counts.rejected} rejected."
        )
    return checked


def check_as(platform: Platform, one: Registered, client: Client) -> Checked:
    """A delivery's bytes in bronze as another config than its own reads them.

    Raises:
        PermanentError: as `check_delivery`.
    """
    bronze = platform.lake.bronze
    return check_bytes(
        lambda: bronze.open(one.delivery), bronze.facts_again(one, client), one.delivery, client,
        lambda _stage, _seconds: None, platform.keyring, erased=names_of_erased(platform, one.delivery.client_id),
    )  # fmt: skip


def read_again(platform: Platform, delivery: Delivery) -> "Members":
    """What a delivery says of its members, from bronze: the same at any time, since it is pinned to its config."""
    client = platform.pinned_client(delivery)
    checked = check_delivery(platform, delivery, client, lambda _stage, _seconds: None)
    checked, _ = silence(platform, delivery, client, checked)
    return Members.of(checked, lambda: read_again(platform, delivery))


class Members:
    """One row per member of a delivery, its last record: silver's columns, the vault's, and `sequence`.

    Of a large delivery they are not kept during the commit, which needs the memory. Should it have to be tried again,
    they are read from bronze anew.
    """

    def __init__(self, parts: Parts, keys: pl.DataFrame, again: "Callable[[], Members]") -> None:
        """`again` gives the same members once more."""
        self._parts: Parts | None = parts
        #: Of each member token and hash (`compact`, Int128), and its place in `parts`, __row (UInt32).
        self.keys = keys
        self._again = again

    @classmethod
    def of(cls, checked: Checked, again: "Callable[[], Members]") -> "Members":
        """The members of what was checked."""
        rows = checked.accepted
        keys = rows.gather(
            ["member_token", "_content_hash"],
            lambda some: some.select(token=compact("member_token"), hash=compact("_content_hash")),
        ).with_row_index("__row")
        if keys["token"].n_unique() < keys.height:
            ranked = rows.gather(["creation_date", RECORD_NO], lambda some: some).with_columns(keys["token", "__row"])
            last = ranked.sort("creation_date", RECORD_NO).unique("token", keep="last")["__row"].sort()
            rows, keys = rows.pick(last), keys[last].drop("__row").with_row_index("__row")
        return cls(rows, keys, again)

    @property
    def parts(self) -> Parts:
        """Their rows."""
        if self._parts is None:
            self._parts = self._again().parts
        return self._parts

    def lowest(self) -> str | None:
        """The least sequence; None without members."""
        lows = self.parts.gather(["sequence"], lambda rows: rows.select(pl.col("sequence").min()))
        return lows["sequence"].min()  # type: ignore[return-value]  # a text column

    def picked(self, rows: pl.DataFrame) -> Iterable[pl.DataFrame]:
        """The members at `__row`, ascending, with `_change` beside each; all at once, or a piece at a time."""
        frames = _changing(self.parts.pick(rows["__row"]), rows["_change"])
        if not self.parts.in_memory:
            return frames
        together = pl.concat([pl.DataFrame(schema=self.parts.schema | {"_change": pl.String()}), *frames])
        return [_copied(together) if 2 * rows.height < self.parts.height else together]

    def let_go(self) -> None:
        """Free their rows if they are many."""
        if self._parts is not None and self._parts.in_memory and self._parts.height > _KEPT:
            self._parts = None


def _changing(parts: Parts, change: pl.Series) -> Iterator[pl.DataFrame]:
    start = 0
    for rows in parts:
        yield rows.with_columns(change.slice(start, rows.height).alias("_change"))
        start += rows.height


def _copied(picked: pl.DataFrame) -> pl.DataFrame:
    # polars' text of few picked rows keeps that of all rows alive; by way of Arrow's older layout it is a copy.
    return pl.DataFrame(picked.to_arrow(compat_level=pl.CompatLevel.oldest()), schema=picked.schema)


def of_members(delivery: Delivery, client: Client, keyring: Keyring, accepted: pl.DataFrame) -> pl.DataFrame:
    """Accepted records with what silver and its vault say of their members: token, hash, sequence, derived columns."""
    contract, columns = client.contract, client.contract.columns
    date_from = client.config.source.creation_date
    record_date = (
        pl.col(date_from.column).str.to_date("%Y-%m-%d")
        if date_from.from_ == "column"
        else pl.lit(delivery.creation_date)
    )
    derived = {target: generalize(pl.col(column), how) for target, (column, how) in contract.derived.items()}
    rows = accepted.with_columns(
        tokens.member_token(keyring, client.client_id, accepted["member_id"]),
        sequence(delivery, record_date, pl.col(RECORD_NO)).alias("sequence"),
        record_date.alias("__record_date"),
        **derived,
    )
    # Each column with what is made of it: one that a later version of the contract appends changes no hash by itself.
    made = {c.name: [target for target, (column, _) in contract.derived.items() if column == c.name] for c in columns}
    hashed = [name for c in columns if not c.policy.drop for name in (c.name, *made[c.name])]
    hashes = tokens.content_hash(keyring, client.client_id, rows, hashed)
    return rows.with_columns(
        hashes, creation_date=pl.col("__record_date"), _file_id=pl.lit(delivery.file_id),
        _contract=pl.lit(client.contract.name),
    ).drop("__record_date")  # fmt: skip
