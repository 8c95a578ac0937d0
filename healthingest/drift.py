"""Notice how deliveries differ from their contracts and from the client's deliveries before, and note it.

Decides nothing about a delivery. The counts that every delivery has anyway say whether it is worth a second look; only
then is it read once more. Whoever dies between the audit row and here loses a note: `schema propose` looks again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import polars as pl

from healthingest.contracts.clients import Client
from healthingest.contracts.evolve import Answer, Candidate, candidate
from healthingest.errors import ConfigError, PermanentError, UsageError
from healthingest.lake.bronze import Registered
from healthingest.lake.proposals import Drifts
from healthingest.members import check_as
from healthingest.model import Delivery, Outcome, Profile
from healthingest.platform import Platform
from healthingest.proposals import OF_RULES, proposals_of
from healthingest.records.drift import NOW_EMPTY, RETYPED, RETYPED_SHARE, Before, Drift, compare, missing_columns
from healthingest.records.glimpse import Glimpse, glimpse
from healthingest.records.read import RecordReader

#: Deliveries that say what a client's files look like.
_RECENT = 20
#: Whole-file failures that a change of columns may be behind.
_FAILURES = {"missing_column", "extra_column"}
_COLUMNS = ["file_id", "file_name", "status", "records", "accepted", "filled", "rules", "extra_columns", "error_kind",
            "creation_date", "delivery_no", "reread_of", "ingestion_time"]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What is known of one decided delivery without reading it."""

    file_id: str
    records: int
    accepted: int
    profile: Profile
    extra_columns: int
    error_kind: str | None

    @classmethod
    def of(cls, outcome: Outcome) -> "Seen":
        """Of a delivery that was decided now."""
        counts = outcome.counts
        return cls(outcome.delivery.file_id, counts.records, counts.accepted, outcome.profile, outcome.extra_columns,
                   outcome.error_kind)  # fmt: skip

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Seen":
        """Of one whose audit row is `row`."""
        return cls(row["file_id"], row["records"] or 0, row["accepted"] or 0, Profile.of(row),
                   row["extra_columns"] or 0, row["error_kind"])  # fmt: skip


@dataclass(frozen=True)
class _History:
    """What the client's files were like so far."""

    before: Before = field(default_factory=lambda: Before({}))
    #: Contract column -> the latest delivery (file_id) that had it.
    carriers: Mapping[str, str] = field(default_factory=dict)
    #: Rule -> codes that were named for its list already.
    codes: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def with_codes(self, drift: Drift) -> "_History":
        """The same, knowing the codes that a note names."""
        named = self.codes.get(drift.rule, frozenset()) | _codes(drift)
        return replace(self, codes={**self.codes, drift.rule: named}) if named else self

    def with_(self, seen: Seen) -> "_History":
        """The same after one more delivery."""
        has = {f.column: f.records / max(1, seen.records) for f in seen.profile.filled if f.header}
        if not has:
            return self
        filled = dict(self.before.filled)
        for column, share in has.items():
            filled[column] = max(share, filled.get(column, 0.0))
        carriers = {**self.carriers, **dict.fromkeys(has, seen.file_id)}
        return replace(self, before=replace(self.before, filled=filled, order=list(has)), carriers=carriers)


def _codes(drift: Drift) -> frozenset[str]:
    return frozenset(drift.fix.get("codes", ()))


def notice(platform: Platform, outcomes: Sequence[Outcome]) -> int:
    """Note how deliveries of one client that were decided now differ; how many notes are new."""
    received = [o for o in outcomes if o.delivery.reread_of is None and o.status not in {"discarded", "reverted"}]
    if not received:
        return 0
    client_id = received[0].delivery.client_id
    ids = [o.delivery.file_id for o in received]
    before = ~pl.col("file_id").is_in(ids) & (pl.col("status") == "succeeded")
    recent = platform.lake.audit.frame(_COLUMNS, (pl.col("client_id") == client_id) & before)
    history = _history(platform, client_id, recent.sort("ingestion_time").tail(_RECENT).to_dicts())
    work = [(o.delivery, Seen.of(o)) for o in received]
    return _note(platform, client_id, work, history, lambda: _rows(platform, client_id))


def look_again(platform: Platform, client_id: str, since: datetime | None = None) -> int:
    """Look at all deliveries that a client's files stand for now, in their order; how many notes are new.

    `since`: only at those that were decided since then and have no note, which a process that died may have left.
    """
    rows = _rows(platform, client_id)
    latest = {row["file_name"]: row for row in sorted(rows, key=lambda row: row["delivery_no"])}
    rows = [row for row in latest.values() if row["status"] not in {"discarded", "reverted"}]
    found = [(platform.lake.bronze.find(client_id, row["reread_of"] or row["file_id"]), row) for row in rows]
    work = [(one.delivery, Seen.of_row(row)) for one, row in found if one]
    before: list[dict[str, Any]] = []
    if since is not None:
        noted = {n.file_id for n in Drifts.at(platform.places.output).of(client_id)}
        new = {row["reread_of"] or row["file_id"] for row in rows if row["ingestion_time"] > since} - noted
        work = [(delivery, seen) for delivery, seen in work if delivery.file_id in new]
        before = [row for row in rows if (row["reread_of"] or row["file_id"]) not in new][-_RECENT:]
    return _note(platform, client_id, work, _history(platform, client_id, before), lambda: rows)


def _rows(platform: Platform, client_id: str) -> list[dict[str, Any]]:
    """The client's audit rows, in the order of their deliveries' dates."""
    rows = platform.lake.audit.frame(_COLUMNS, pl.col("client_id") == client_id)
    return rows.sort("creation_date", "file_name", "delivery_no").to_dicts()


def _history(platform: Platform, client_id: str, rows: Sequence[Mapping[str, Any]]) -> _History:
    waiting = [p.drift for p in proposals_of(platform.places, platform.clients, client_id) if p.is_open]
    told = [drift for drift in waiting if drift.kind in OF_RULES]
    history = _History(Before({}, open_rules=frozenset(drift.rule for drift in told)))
    for drift in told:
        history = history.with_codes(drift)
    for row in rows:
        history = history.with_(Seen.of_row(row))
    return history


def _note(
    platform: Platform, client_id: str, work: Sequence[tuple[Delivery, Seen]], history: _History,
    rows: Callable[[], Sequence[Mapping[str, Any]]],
) -> int:  # fmt: skip
    found: list[tuple[Delivery, Drift, int]] = []
    new: dict[tuple[str, str], Drift] = {}
    for delivery, seen in work:
        client = platform.clients.clients.get(client_id) or platform.pinned_client(delivery)
        if _suspicious(seen, client, history):
            for drift, releases in _look(platform, delivery, seen, client, history):
                found.append((delivery, drift, releases))
                if drift.kind in OF_RULES and drift.rule not in history.before.open_rules:
                    new[drift.subject, drift.rule] = drift
        history = history.with_(seen)
    for drift in new.values():
        found += _others(platform, client_id, drift, rows(), {d.file_id for d, _, _ in found})
    return Drifts.at(platform.places.output).put(found) if found else 0


def _suspicious(seen: Seen, client: Client, history: _History) -> bool:
    """Whether a delivery's counts say that a closer look may find something."""
    if seen.extra_columns or seen.error_kind in _FAILURES:
        return True
    filled, before = seen.profile.filled, history.before
    if not filled:
        return False
    has = [f.column for f in filled if f.header]
    if any(name in before.filled and name in client.contract.column for name in {*before.filled} - {*has}):
        return True
    if [c for c in before.order if c in has] != [c for c in has if c in set(before.order)]:
        return True
    if seen.records >= NOW_EMPTY and any(f.header and not f.records and before.filled.get(f.column) for f in filled):
        return True
    return any(_tells(rule.rule, rule.records, seen, client, before.open_rules) for rule in seen.profile.rules)


def _tells(rule_id: str, records: int, seen: Seen, client: Client, open_rules: Iterable[str]) -> bool:
    if rule_id in open_rules:
        return True
    if any(rule.id == rule_id and rule.in_ for rule in client.rules):
        return True
    typed = {f"{c.name}.{c.type}" for c in client.contract.columns if c.parsed}
    return rule_id in typed and records >= RETYPED and records >= RETYPED_SHARE * seen.records


def _look(
    platform: Platform, delivery: Delivery, seen: Seen, client: Client, history: _History
) -> Iterator[tuple[Drift, int]]:
    """Read a delivery once more, for each difference and how many rejected records it keeps out."""
    one = platform.lake.bronze.find(delivery.client_id, delivery.file_id)
    try:
        looked = _glimpse(platform, one, client) if one else None
    except PermanentError:
        return
    if one is None or looked is None:
        return
    before = history.before
    if looked.is_header and any(c.column is None for c in looked.columns):
        values: dict[str, pl.Series] = {}
        for name in missing_columns(looked, client, before):
            values |= _values_of(platform, delivery.client_id, name, history.carriers.get(name))
        before = replace(before, values=values)
    differences = compare(looked, client, seen.profile, before)
    renamed = _with_names(client, [d for d in differences if d.kind == "renamed"])
    for found in differences:
        # Whoever approves takes in all codes that were named.
        named = history.codes.get(found.rule, frozenset())
        drift = replace(found, fix=found.fix | {"codes": sorted(named | _codes(found))}) if named else found
        yield drift, _releases(platform, one, seen, client, drift, renamed)


def _glimpse(platform: Platform, one: Registered, client: Client) -> Glimpse:
    same = one.delivery.config_hash == client.config_hash
    facts = one.facts if same else platform.lake.bronze.facts_again(one, client)
    return glimpse(lambda other: RecordReader(platform.lake.bronze.open(one.delivery), facts, other), client)


def _values_of(platform: Platform, client_id: str, name: str, file_id: str | None) -> dict[str, pl.Series]:
    """Values of a column in an earlier file, to compare their shapes; none if it cannot be read."""
    one = platform.lake.bronze.find(client_id, file_id) if file_id else None
    if one is None:
        return {}
    try:
        looked = _glimpse(platform, one, platform.pinned_client(one.delivery))
    except (PermanentError, ConfigError):
        return {}
    found = [c.values for c in looked.columns if c.column == name]
    return {name: found[0]} if found else {}


def _with_names(client: Client, renamed: Sequence[Drift]) -> Client:
    """The client, as if all columns that a file has renamed were mapped: one alone may not let the file in."""
    columns = dict(client.config.columns)
    for drift in renamed:
        columns[drift.header or ""] = client.column_source(drift.column or "")
    return replace(client, config=client.config.model_copy(update={"columns": columns}))


def _releases(platform: Platform, one: Registered, seen: Seen, client: Client, drift: Drift, renamed: Client) -> int:
    """Rejected records that would be accepted; of a renamed column with all others that the file has renamed."""
    if drift.kind not in {"renamed", "retyped", "codes"}:
        return 0
    try:
        made = renamed if drift.kind == "renamed" else candidate_of(platform, client, drift, Answer()).client
        return max(0, check_as(platform, one, made).counts.accepted - seen.accepted)
    except (UsageError, ConfigError, PermanentError):
        return 0


def candidate_of(platform: Platform, client: Client, drift: Drift, answer: Answer) -> Candidate:
    """What would take a difference in.

    Raises:
        UsageError, ConfigError: as `evolve.candidate`.
    """
    return candidate(platform.places.configs, client, drift.kind, drift.column, drift.header, drift.rule, drift.fix,
                     answer)  # fmt: skip


def _others(
    platform: Platform, client_id: str, new: Drift, rows: Sequence[Mapping[str, Any]], but: set[str]
) -> Iterator[tuple[Delivery, Drift, int]]:
    """Deliveries that a rule had kept records of before it was worth a proposal."""
    history = _History(Before({}, open_rules=frozenset({new.rule}))).with_codes(new)
    client = platform.clients.clients[client_id]
    for row in rows:
        if row["file_id"] in but or row["reread_of"] or all(r["rule"] != new.rule for r in row["rules"] or ()):
            continue
        one = platform.lake.bronze.find(client_id, row["file_id"])
        for drift, releases in _look(platform, one.delivery, Seen.of_row(row), client, history) if one else ():
            if (drift.subject, drift.rule) == (new.subject, new.rule):
                yield one.delivery, drift, releases  # type: ignore[union-attr]  # looked at, so it is there
