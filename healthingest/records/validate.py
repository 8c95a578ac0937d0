"""Holds records against their contract, through Pandera, and says every rule that each record fails.

The contract's Pandera schema is the only source of rules. Pandera's `failure_cases` and messages hold values and cost
memory, so only its row-aligned `check_output` is used; a result that cannot be tied to records stops the delivery.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import pandera.polars as pa
import polars as pl
from pandera.config import ValidationDepth, config_context
from pandera.errors import SchemaErrorReason

from healthingest.contracts.clients import Client
from healthingest.contracts.contract import Column
from healthingest.contracts.rules import CONTROL, DELIVERY_DATE, DOMAIN_WORDS, Rule
from healthingest.errors import PermanentError
from healthingest.records.damage import RECORD_NO
from healthingest.records.reasons import REASON, REASONS, Reason
from healthingest.records.standardize import standard_form

#: Records of which a frame is small enough to be looked at twice.
_FEW = 20_000
_NATIVE_BACKEND = "pandera.backends.polars.container"
#: Rules of the reader, in words.
_READER_TEXTS = {
    "too_few_fields": "the record has fewer fields than the header",
    "too_many_fields": "the record has more fields than the header; a text with the delimiter in it must be quoted",
    "unterminated_quote": "a quote is opened and never closed; all that follows it cannot be read",
    "text_after_quote": "text stands between a closing quote and the next delimiter; quotes in a text must be doubled",
    "record_too_large": "the record is longer than 8 MiB, the limit",
    "swallowed_records": "a stray quote takes in further records; none of these lines can be told apart",
    "encoding": "the bytes are no text in the agreed encoding",
}


class ValidationError(PermanentError):
    """Pandera reported something that belongs to no record; nothing of the delivery may be published."""

    kind = "validation"


@dataclass(frozen=True)
class Split:
    """A batch, divided; every record is in exactly one part, in file order."""

    accepted: pl.DataFrame
    #: The rejected rows, with `reasons` (list of Reason) added.
    rejected: pl.DataFrame
    #: Reason of a rule of severity warn -> accepted records that break it; and how many break any.
    warnings: dict[Reason, int]
    warned: int


@dataclass(frozen=True)
class _Check:
    """One check as Pandera runs it, and what it stands for."""

    reason: Reason
    passes: pl.Expr
    severity: str
    text: str

    def pandera(self) -> pa.Check:
        def evaluate(data: pa.PolarsData) -> pl.LazyFrame:
            return data.lazyframe.select(self.passes)

        # n_failure_cases keeps Pandera from building a frame of values; check_output stays complete.
        return pa.Check(evaluate, name=self.reason.rule, n_failure_cases=1)


@dataclass(frozen=True)
class Validator:
    """A client's rules as Pandera schemas, one for each severity."""

    errors: pa.DataFrameSchema
    warnings: pa.DataFrameSchema
    checks: Mapping[str, _Check]
    #: Rule id -> the reason it stands for.
    reasons: dict[str, Reason]
    #: Rule id -> what it asks, for the people who send the files.
    texts: dict[str, str]
    _warns: bool = field(default=False)

    @classmethod
    def of(cls, client: Client, duplicates: Mapping[str, pl.Series] | None = None) -> "Validator":
        """Build the schemas of a client's contract, rules and date source.

        `duplicates`: id of each rule of the file -> numbers of the records that break it (`uniqueness`, `families`).
        """
        checks = {
            c.reason.rule: c for column in client.contract.columns for c in _checks(column, client, duplicates or {})
        }
        return cls(
            _schema(checks.values(), "error", client.contract.column),
            _schema(checks.values(), "warn", client.contract.column),
            checks,
            {name: check.reason for name, check in checks.items()},
            _READER_TEXTS | {name: check.text for name, check in checks.items()},
            any(check.severity == "warn" for check in checks.values()),
        )

    def split(self, rows: pl.DataFrame, delivery_date: date) -> Split:
        """Divide standardised rows (see `standardize`) by whether they pass every rule.

        Raises:
            ValidationError: a check threw or gave a result that is not one truth value per record.
        """
        failed = list(self._failures("error", rows, delivery_date))
        if not failed:
            rejected = rows.clear().with_columns(pl.lit(None, REASONS).alias("reasons"))
            return Split(rows, rejected, *self._warnings(rows, delivery_date))
        per_row = self._reasons_per_row(failed)
        bad = pl.zeros(rows.height, pl.UInt8, eager=True).scatter(per_row["row"], 1) == 1
        accepted = rows.filter(~bad)
        rejected = rows.filter(bad).with_columns(per_row["reasons"])
        return Split(accepted, rejected, *self._warnings(accepted, delivery_date))

    def _reasons_per_row(self, failed: Sequence[tuple[str, pl.Series]]) -> pl.DataFrame:
        """`row` (UInt32) and `reasons` of each row that fails a rule, in order."""
        index = pl.int_range(len(failed[0][1]), eager=True, dtype=pl.UInt32).alias("row")
        long = pl.concat(
            pl.select(index.filter(mask), pl.lit(number, pl.UInt32).alias("rule"))
            for number, (_, mask) in enumerate(failed)
        )
        named = pl.DataFrame(
            {"rule": range(len(failed)), "reasons": [self.reasons[name] for name, _ in failed]},
            schema={"rule": pl.UInt32, "reasons": REASON},
        )
        per_row = long.sort("row", "rule").join(named, on="rule", maintain_order="left")
        return per_row.group_by("row", maintain_order=True).agg("reasons")

    def _warnings(self, accepted: pl.DataFrame, delivery_date: date) -> tuple[dict[Reason, int], int]:
        if not self._warns or accepted.is_empty():
            return {}, 0
        failed = list(self._failures("warn", accepted, delivery_date))
        any_of = pl.DataFrame([mask.alias(name) for name, mask in failed])
        warned = any_of.select(pl.any_horizontal(pl.all()).sum()).item() if failed else 0
        return {self.reasons[name]: int(mask.sum()) for name, mask in failed}, int(warned)

    def _failures(self, severity: str, rows: pl.DataFrame, delivery_date: date) -> Iterator[tuple[str, pl.Series]]:
        """Check name and mask of the failing rows, for each check that fails anywhere."""
        frame = rows.with_columns(pl.lit(delivery_date).alias(DELIVERY_DATE))
        schema = self._schema_for(severity, frame)
        if not uses_native_backend(schema):
            raise ValidationError("Pandera does not use its native polars backend; unset PANDERA_USE_NARWHALS_BACKEND.")
        # Explicit, because PANDERA_VALIDATION_ENABLED=False in the environment would switch validation off silently.
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
            try:
                schema.validate(frame, lazy=True)
            except pa.errors.SchemaErrors as error:
                found = [(e.reason_code, _name(e.check), e.check_output) for e in error.schema_errors]
            else:
                found = []
        for code, name, output in found:
            rows_judged = output.height if isinstance(output, pl.DataFrame) else -1
            if code is not SchemaErrorReason.DATAFRAME_CHECK or name not in self.reasons or rows_judged != frame.height:
                raise ValidationError(f"The rule {name} could not be evaluated on this delivery; correct the rule.")
            yield name, ~output["check_output"].fill_null(value=False)

    def _schema_for(self, severity: str, frame: pl.DataFrame) -> pa.DataFrameSchema:
        """The schema that a frame is held against: of few records, only with the checks that one of them fails.

        Pandera takes 2 ms for each check of a frame, however small; all checks at once, seen by polars alone, as much.
        """
        whole = self.errors if severity == "error" else self.warnings
        checks = [check for check in self.checks.values() if check.severity == severity]
        if frame.height > _FEW or not checks:
            return whole
        try:
            # Without a value a check passes, as in Pandera.
            said = frame.select(c.passes.fill_null(value=True).all().alias(c.reason.rule) for c in checks)
        except pl.exceptions.PolarsError:
            return whole  # which says what is wrong with it
        broken = [check for check in checks if not said[check.reason.rule].item()]
        return _schema(broken, severity, dict.fromkeys(str(check.reason.column) for check in broken))


def _schema(checks: Iterable[_Check], severity: str, columns: Iterable[str]) -> pa.DataFrameSchema:
    """The checks of one severity as a Pandera schema of these columns."""
    of_column: dict[str, list[pa.Check]] = {name: [] for name in columns}
    for check in checks:
        if check.severity == severity:
            of_column[str(check.reason.column)].append(check.pandera())
    made = {name: pa.Column(pl.String, checks=found, nullable=True) for name, found in of_column.items()}
    return pa.DataFrameSchema(made, strict=False)


def uses_native_backend(schema: pa.DataFrameSchema) -> bool:
    """Whether Pandera checks polars frames itself; its other backends do not say which record failed."""
    try:
        return type(schema.get_backend(pl.DataFrame())).__module__ == _NATIVE_BACKEND
    except ImportError:  # the environment asks for one that is not installed
        return False


def _name(check: object) -> str:
    return str(getattr(check, "name", None) or "of the schema")


def _checks(column: Column, client: Client, duplicates: Mapping[str, pl.Series]) -> Iterator[_Check]:
    """All checks of one column: presence, no control characters, a standard form if its type has one, the rules."""
    name = column.name
    date_from = client.config.source.creation_date
    orders_records = date_from.from_ == "column" and date_from.column == name
    if column.required or orders_records:
        reason = Reason(name, f"{name}.required", "missing")
        yield _Check(reason, pl.col(name).is_not_null(), "error", "must not be empty")
    reason = Reason(name, f"{name}.control_characters", "control_characters")
    yield _Check(reason, ~pl.col(name + CONTROL), "error", "must not hold control characters, which no one can see")
    standard = client.contract.standard_of(name)
    if column.parsed:
        reason = Reason(name, f"{name}.{column.type}", column.type)
        text = f"must be a valid {DOMAIN_WORDS[column.type]}"
        yield _Check(reason, pl.col(name).is_null() | standard.is_not_null(), "error", text)
    if orders_records:  # a date that lies ahead would win over every later delivery
        not_ahead = standard <= pl.col(DELIVERY_DATE).dt.to_string("%Y-%m-%d")
        yield _Check(
            Reason(name, f"{name}.not_ahead", "range"), not_ahead, "error", "must not lie after the file's date"
        )
    for rule in client.rules:
        if rule.column == name:
            # Null passes: a value without standard form fails its type's check already.
            passes = _passes(rule, client, duplicates)
            yield _Check(Reason(name, rule.id, rule.kind), passes, rule.severity, rule.text)


def _passes(rule: Rule, client: Client, duplicates: Mapping[str, pl.Series]) -> pl.Expr:
    contract = client.contract
    if rule.of_the_file:
        return ~pl.col(RECORD_NO).is_in(duplicates.get(rule.id, pl.Series([], dtype=pl.Int64)).implode())
    if rule.is_:
        kind = rule.is_
        value = contract.standard_of(rule.column)
        formed = value.map_batches(lambda text: standard_form(text, kind).is_not_null(), return_dtype=pl.Boolean)
        return rule.conditional(value.is_null() | formed, contract.standard_of)
    return contract.passes(rule)
