"""Holds records against their contract, through Pandera, and says every rule that each record fails.

The contract's Pandera schema is the only source of rules. Pandera's `failure_cases` and messages hold values and cost
memory, so only its row-aligned `check_output` is used; a result that cannot be tied to records stops the delivery.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import pandera.polars as pa
import polars as pl
from pandera.config import ValidationDepth, config_context
from pandera.errors import SchemaErrorReason

from healthingest.contracts.clients import Client
from healthingest.contracts.contract import Column
from healthingest.contracts.rules import DELIVERY_DATE, STANDARD
from healthingest.errors import PermanentError
from healthingest.records.reasons import REASON, REASONS, Reason
from healthingest.records.standardize import CONTROL_CHARACTERS

_NATIVE_BACKEND = "pandera.backends.polars.container"


class ValidationError(PermanentError):
    """Pandera reported something that belongs to no record; nothing of the delivery may be published."""

    kind = "validation"


@dataclass(frozen=True)
class Split:
    """A batch, divided; every record is in exactly one part, in file order."""

    accepted: pl.DataFrame
    #: The rejected rows, with `reasons` (list of Reason) added.
    rejected: pl.DataFrame


@dataclass(frozen=True)
class Validator:
    """A client's rules as one Pandera schema, and how its checks map to reasons."""

    schema: pa.DataFrameSchema
    #: Check name -> the reason it stands for.
    reasons: dict[str, Reason]

    @classmethod
    def of(cls, client: Client) -> "Validator":
        """Build the schema of a client's contract, rules and date source."""
        reasons: dict[str, Reason] = {}
        columns: dict[str, pa.Column] = {}
        for column in client.contract.columns:
            named = dict(_checks(column, client))
            columns[column.name] = pa.Column(pl.String, checks=[check for check, _ in named.values()], nullable=True)
            reasons |= {name: reason for name, (_, reason) in named.items()}
        return cls(pa.DataFrameSchema(columns, strict=False), reasons)

    def split(self, rows: pl.DataFrame, delivery_date: date) -> Split:
        """Divide standardised rows (see `standardize`) by whether they pass every rule.

        Raises:
            ValidationError: a check threw or gave a result that is not one truth value per record.
        """
        frame = rows.with_columns(pl.lit(delivery_date).alias(DELIVERY_DATE))
        failed = list(self._failures(frame))
        if not failed:
            return Split(rows, rows.clear().with_columns(pl.lit(None, REASONS).alias("reasons")))
        index = pl.int_range(rows.height, eager=True, dtype=pl.UInt32).alias("row")
        long = pl.concat(
            pl.select(index.filter(mask), pl.lit(number, pl.UInt32).alias("rule"))
            for number, (_, mask) in enumerate(failed)
        )
        named = pl.DataFrame(
            {"rule": range(len(failed)), "reasons": [self.reasons[name] for name, _ in failed]},
            schema={"rule": pl.UInt32, "reasons": REASON},
        )
        per_row = long.sort("row", "rule").join(named, on="rule", maintain_order="left")
        per_row = per_row.group_by("row", maintain_order=True).agg("reasons")
        bad = pl.zeros(rows.height, pl.UInt8, eager=True).scatter(per_row["row"], 1) == 1
        return Split(rows.filter(~bad), rows.filter(bad).with_columns(per_row["reasons"]))

    def _failures(self, frame: pl.DataFrame) -> Iterator[tuple[str, pl.Series]]:
        """Check name and mask of the failing rows, for each check that fails anywhere."""
        if not uses_native_backend(self.schema):
            raise ValidationError("Pandera does not use its native polars backend; unset PANDERA_USE_NARWHALS_BACKEND.")
        # Explicit, because PANDERA_VALIDATION_ENABLED=False in the environment would switch validation off silently.
        with config_context(validation_enabled=True, validation_depth=ValidationDepth.SCHEMA_AND_DATA):
            try:
                self.schema.validate(frame, lazy=True)
            except pa.errors.SchemaErrors as error:
                found = [(e.reason_code, _name(e.check), e.check_output) for e in error.schema_errors]
            else:
                found = []
        for code, name, output in found:
            rows = output.height if isinstance(output, pl.DataFrame) else -1
            if code is not SchemaErrorReason.DATAFRAME_CHECK or name not in self.reasons or rows != frame.height:
                raise ValidationError(f"The rule {name} could not be evaluated on this delivery; correct the rule.")
            yield name, ~output["check_output"].fill_null(value=False)


def uses_native_backend(schema: pa.DataFrameSchema) -> bool:
    """Whether Pandera checks polars frames itself; its other backends do not say which record failed."""
    try:
        return type(schema.get_backend(pl.DataFrame())).__module__ == _NATIVE_BACKEND
    except ImportError:  # the environment asks for one that is not installed
        return False


def _name(check: object) -> str:
    return str(getattr(check, "name", None) or "of the schema")


def _checks(column: Column, client: Client) -> Iterator[tuple[str, tuple[pa.Check, Reason]]]:
    """All checks of one column: presence, no control characters, a standard form if its type has one, the rules."""
    name = column.name
    date_from = client.config.source.creation_date
    orders_records = date_from.from_ == "column" and date_from.column == name
    if column.required or orders_records:
        yield _check(f"{name}.required", name, "missing", pl.col(name).is_not_null())
    clean = ~pl.col(name).str.contains(CONTROL_CHARACTERS)
    yield _check(f"{name}.control_characters", name, "control_characters", clean)
    standard = pl.col(name + STANDARD) if column.parsed else pl.col(name)
    if column.parsed:
        yield _check(f"{name}.{column.type}", name, column.type, pl.col(name).is_null() | standard.is_not_null())
    if orders_records:  # a date that lies ahead would win over every later delivery
        not_ahead = standard <= pl.col(DELIVERY_DATE).dt.to_string("%Y-%m-%d")
        yield _check(f"{name}.not_ahead", name, "range", not_ahead)
    for rule in client.rules:
        if rule.column == name:
            # Null passes: a value without standard form fails its type's check already.
            yield _check(rule.id, name, rule.kind, rule.passes(standard))


def _check(rule: str, column: str, kind: str, passes: pl.Expr) -> tuple[str, tuple[pa.Check, Reason]]:
    def evaluate(data: pa.PolarsData) -> pl.LazyFrame:
        return data.lazyframe.select(passes)

    # n_failure_cases keeps Pandera from building a frame of values; check_output stays complete.
    check = pa.Check(evaluate, name=rule, n_failure_cases=1)
    return rule, (check, Reason(column, rule, kind))
