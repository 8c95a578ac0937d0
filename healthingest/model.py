"""The nouns that layers pass to each other: delivery, counts, outcome. They only answer questions about themselves."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import date, datetime
from typing import Any, Literal

Status = Literal["succeeded", "held", "discarded", "reverted", "failed", "unroutable"]
#: `accepted`: it had been taken although it broke its client's limits, and somebody says that this is right.
Word = Literal["released", "discarded", "accepted"]


@dataclass(frozen=True)
class Delivery:
    """One file as received, registered in bronze; everything a retry needs is pinned here."""

    #: 32 hex digits, a keyed HMAC over file name and content digest.
    file_id: str
    client_id: str
    #: Also the slot: deliveries of one name supersede each other in order of `delivery_no`.
    file_name: str
    #: The file name's date; keys the partition.
    creation_date: date
    #: "", "1" or "2"; "" < "1" < "2".
    suffix: str
    #: 1-based order of arrival within the slot.
    delivery_no: int
    #: Keyed digest of the content alone: equal bytes under two names show here.
    content_hmac: str
    file_bytes: int
    #: name/version of the contract in force when the delivery was registered.
    contract: str
    #: Digest of the client's config in force when the delivery was registered.
    config_hash: str
    registered_at: datetime
    #: The delivery whose bytes it reads once more, under a later config; None: it was received.
    reread_of: str | None = None

    @property
    def origin(self) -> str:
        """file_id of the delivery that was received with these bytes."""
        return self.reread_of or self.file_id

    @property
    def rank(self) -> tuple[str, str, str, int]:
        """Sorts deliveries of one client as the sequence does: date, suffix, name, number."""
        return self.creation_date.isoformat(), self.suffix, self.file_name, self.delivery_no

    @property
    def partition(self) -> tuple[str, str]:
        """(client, ISO date)."""
        return self.client_id, self.creation_date.isoformat()


@dataclass(frozen=True)
class Counts:
    """The accounting of one delivery (design, section 3); every field is a number of lines or records."""

    physical_lines: int = 0
    header_lines: int = 0
    record_lines: int = 0
    blank_lines: int = 0
    trailer_lines: int = 0
    records: int = 0
    accepted: int = 0
    rejected: int = 0
    malformed: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    stale: int = 0
    suppressed: int = 0
    duplicates: int = 0
    #: Accepted records that broke a rule of severity warn; no part of any sum.
    warned: int = 0

    @property
    def invalid_ratio(self) -> float:
        """Rejected over all records; 0.0 for a file without records."""
        return self.rejected / self.records if self.records else 0.0

    def as_dict(self) -> dict[str, int]:
        """Name -> count, in the order of the audit's columns."""
        return asdict(self)

    @classmethod
    def names(cls) -> list[str]:
        """The counts' names, in the order of the audit's columns."""
        return [f.name for f in fields(cls)]


@dataclass(frozen=True)
class RuleCount:
    """How many records of a delivery broke one rule; a record that breaks several counts in each."""

    column: str | None
    rule: str
    kind: str
    records: int
    severity: str = "error"


@dataclass(frozen=True)
class RulePair:
    """How many records two rules rejected together."""

    first: str
    second: str
    records: int


@dataclass(frozen=True)
class Filled:
    """How many of a delivery's well-formed records have a value in one contract column."""

    column: str
    #: The column's name in the file; None if the file lacks it.
    header: str | None
    records: int


@dataclass(frozen=True)
class Profile:
    """What a delivery looked like, in counts: for reports, never for decisions."""

    #: Most frequent first.
    rules: tuple[RuleCount, ...] = ()
    pairs: tuple[RulePair, ...] = ()
    filled: tuple[Filled, ...] = ()

    def as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Plain values, as the audit table and silver's log keep them."""
        return {name: [asdict(item) for item in getattr(self, name)] for name in ("rules", "pairs", "filled")}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Profile":
        """From what `as_dict` gave; what is missing is empty."""
        return cls(
            rules=tuple(RuleCount(**row) for row in plain.get("rules") or ()),
            pairs=tuple(RulePair(**row) for row in plain.get("pairs") or ()),
            filled=tuple(Filled(**row) for row in plain.get("filled") or ()),
        )


@dataclass(frozen=True)
class Verdict:
    """What somebody decided about a delivery."""

    decision: Word
    decided_by: str
    decision_reason: str
    decided_at: datetime

    @property
    def sentence(self) -> str:
        """Who decided what, when and why."""
        return (
            f"{self.decision.capitalize()} by {self.decided_by} on {self.decided_at:%Y-%m-%d %H:%M} UTC: "
            f"{self.decision_reason}."
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one delivery."""

    delivery: Delivery
    status: Status
    #: False: an earlier attempt had decided; this one changed no table.
    fresh: bool
    counts: Counts = field(default_factory=Counts)
    max_invalid_ratio: float = 1.0
    profile: Profile = field(default_factory=Profile)
    #: What of the whole file breaks the client's `quality`, in sentences; the invalid ratio is none of them.
    file_breaches: tuple[str, ...] = ()
    #: Columns of its header that the contract does not know.
    extra_columns: int = 0
    #: Stage -> seconds, in the order they ran; empty when not fresh.
    stages: dict[str, float] = field(default_factory=dict)
    silver_version: int | None = None
    error_kind: str | None = None
    #: What a person decided about it, where somebody did.
    verdict: Verdict | None = None
    #: When it was first recorded as what it is; None: now.
    ingested_at: datetime | None = None
    #: One sentence where there is something to say: why it failed or was held, or a warning.
    message: str | None = None

    @property
    def breached(self) -> bool:
        """Whether more records were rejected than the client's threshold allows."""
        return self.counts.invalid_ratio > self.max_invalid_ratio

    @property
    def closed(self) -> bool:
        """Whether a person has decided about it, so that nothing about it is left to do."""
        return self.verdict is not None
