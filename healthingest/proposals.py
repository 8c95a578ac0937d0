"""Proposals to change a client's schema: what deliveries showed, gathered, with what approving each would do.

A proposal is open as long as the client's present config does not take in what was seen and nobody has rejected it. So
whoever mends the YAML by hand closes it as well, and nothing is left to be kept in step. Needs no keys.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import yaml

from healthingest.contracts.clients import Client, ClientSet
from healthingest.contracts.source import normal_header
from healthingest.contracts.versions import Compatibility
from healthingest.errors import UsageError
from healthingest.lake.audit import Audit
from healthingest.lake.proposals import Drifts, Noted, Word, Words
from healthingest.places import Places
from healthingest.records.drift import Drift, Kind
from healthingest.storage.files import put

State = Literal["open", "second person", "applied", "rejected", "noted"]
_SHOWN = 20
#: Kinds of differences that a rule tells.
OF_RULES = frozenset({"retyped", "codes"})


@dataclass(frozen=True)
class Proposal:
    """One change of a client's schema that its deliveries ask for."""

    client_id: str
    kind: Kind
    subject: str
    #: What showed it, latest deliveries of their names only, in the order of noting.
    seen: tuple[Noted, ...]
    state: State
    words: tuple[Word, ...] = ()

    @property
    def proposal_id(self) -> str:
        """What commands call it: `acme.added.middle_name`."""
        return f"{self.client_id}.{self.kind}.{self.subject}"

    @property
    def drift(self) -> Drift:
        """The latest evidence, with what all of it asks for together."""
        last = next((noted.drift for noted in reversed(self.seen) if noted.drift.fix), self.seen[-1].drift)
        more: dict[str, Any] = {}
        if codes := sorted({code for noted in self.seen for code in noted.drift.fix.get("codes", ())}):
            more["codes"] = codes
        if self.kind == "renamed":
            more["headers"] = sorted({noted.drift.header for noted in self.seen if noted.drift.header})
        return replace(last, fix=last.fix | more) if more else last

    @property
    def releases(self) -> int:
        """Rejected records that approving would accept."""
        return sum(noted.releases for noted in self.seen)

    @property
    def is_open(self) -> bool:
        """Whether somebody must still say something."""
        return self.state in {"open", "second person"}

    @property
    def sentence(self) -> str:
        """What was seen."""
        drift, column = self.drift, self.drift.column
        name = f'"{drift.header}"' if drift.header else self.subject
        return {
            "added": f"The header has a column {name} that {self.seen[-1].contract} does not know",
            "renamed": f"The column {column} is missing, and {name} looks like it",
            "missing": f"The column {column} is missing",
            "emptied": f"The column {column} is empty now",
            "retyped": f"The values of {column} have another shape: {drift.shape}",
            "codes": f"The column {column} has codes that its list does not know",
            "reordered": "The columns stand in another order, which changes nothing: they are found by their names",
        }[self.kind] + "."

    @property
    def impact(self) -> str:
        """What approving would do, in numbers of records and deliveries."""
        drift, files = self.drift, "1 delivery" if len(self.seen) == 1 else f"{len(self.seen)} deliveries"
        values = sum(noted.drift.filled for noted in self.seen)
        if self.kind == "codes" and not drift.fix.get("codes"):
            return f"must say what the words mean that {values:,} records of {files} have"
        released = f"would release {self.releases:,} quarantined records of {files}"
        if self.kind == "added":
            return f"would add column {self.subject} and fill it from {values:,} records of {files}"
        if self.kind == "renamed":
            said = f"would read {drift.column} from {values:,} records of {files}"
            return f"{said}; {released}" if self.releases else said
        if self.kind in {"missing", "emptied"}:
            return f"would take {drift.column} out of the contract; {files} came without it"
        return released if self.kind in {"retyped", "codes"} else "nothing to do"


def proposals_of(places: Places, clients: ClientSet, client_id: str | None = None) -> list[Proposal]:
    """All proposals of a client, or of all clients, by id."""
    noted: dict[tuple[str, Kind, str], list[Noted]] = defaultdict(list)
    found = Drifts.at(places.output).of(client_id)
    if not found:
        return []
    latest = _latest(places, {n.client_id for n in found})
    for one in found:
        if one.file_id in latest:
            noted[one.client_id, one.drift.kind, one.drift.subject].append(one)
    words: dict[str, list[Word]] = defaultdict(list)
    for word in Words.at(places.output).of(client_id):
        words[word.proposal].append(word)
    made = []
    for (of, kind, subject), seen in sorted(noted.items()):
        if of in clients.clients:
            said = tuple(words[f"{of}.{kind}.{subject}"])
            left = [n for n in seen if not (kind in OF_RULES and _is_over(n, latest[n.file_id]))]
            state = _state(clients.clients[of], kind, left, said)
            made.append(Proposal(of, kind, subject, tuple(seen), state, said))
    return made


def proposal_named(places: Places, clients: ClientSet, proposal_id: str) -> Proposal:
    """One proposal.

    Raises:
        UsageError: there is none of that id.
    """
    client_id = proposal_id.partition(".")[0]
    if client_id not in clients.clients and any(problem.file.stem == client_id for problem in clients.problems):
        raise UsageError(f"The YAML of {client_id} cannot be used now; healthingest doctor says why.")
    found = {p.proposal_id: p for p in proposals_of(places, clients, client_id)}
    if proposal_id not in found:
        known = ", ".join(p.proposal_id for p in found.values() if p.is_open) or "none open"
        raise UsageError(f"There is no proposal {proposal_id!r}; there is {known}.")
    return found[proposal_id]


def _latest(places: Places, client_ids: set[str]) -> dict[str, dict[str, Any]]:
    """Deliveries (file_id, as received) that no other file has replaced under their names -> their audit rows."""
    columns = ["client_id", "file_name", "delivery_no", "file_id", "reread_of", "rules", "status"]
    rows = Audit.at(places.output).frame(columns, pl.col("client_id").is_in(sorted(client_ids)))
    last = rows.sort("delivery_no").group_by("client_id", "file_name").last()
    return {row["reread_of"] or row["file_id"]: row for row in last.to_dicts()}


def _is_over(noted: Noted, row: Mapping[str, Any]) -> bool:
    """Whether a delivery that was read again no longer breaks the rule that told."""
    broken = {rule["rule"] for rule in row["rules"] or ()}
    return row["reread_of"] is not None and row["status"] == "succeeded" and noted.drift.rule not in broken


def _state(client: Client, kind: Kind, seen: Sequence[Noted], words: Sequence[Word]) -> State:
    if kind == "reordered":
        return "noted"
    if all(covers(client, noted.drift) for noted in seen):
        return "applied"
    last = words[-1] if words else None
    if last and last.word == "rejected" and all(_meant(noted, last) for noted in seen):
        return "rejected"
    return "second person" if last and last.word == "approved" else "open"


def _meant(noted: Noted, rejected: Word) -> bool:
    """Whether a rejection speaks of this evidence, too: it was there, or says the same."""
    seen, drift = rejected.answer.get("seen", {}), noted.drift
    fix = seen.get("fix", {})
    if noted.noted_at <= rejected.said_at:
        return True
    if drift.kind == "renamed":
        return drift.header in fix.get("headers", ())
    if drift.kind == "codes":
        return set(drift.fix.get("codes", ())) <= set(fix.get("codes", ()))
    return drift.kind != "retyped" or drift.fix == fix


def covers(client: Client, drift: Drift) -> bool:
    """Whether a client's config takes in what a delivery showed."""
    contract, column = client.contract, drift.column or ""
    if drift.kind in {"added", "renamed"}:
        known = {*contract.column, *client.config.columns, *(s for t in client.config.transform for s in t.sources)}
        return drift.header is not None and normal_header(drift.header) in map(normal_header, known)
    if column not in contract.column:
        return True
    source = client.column_source(column)
    if drift.kind == "retyped":
        formats = drift.fix.get("fits", [drift.fix.get("date_format")])
        return bool(set(formats) & set(source.date_formats or ())) or (
            source.zip_repair and bool(drift.fix.get("zip_repair"))
        )
    if drift.kind == "codes":
        rule = next((rule for rule in client.rules if rule.id == drift.rule), None)
        codes = set(drift.fix.get("codes", ()))
        builtin = drift.rule == f"{column}.{contract.column[column].type}"
        return not builtin and (rule is None or (bool(codes) and codes <= set(rule.in_ or codes)))
    return False


# --- as a file ----------------------------------------------------------------------------------------------------


def as_document(
    proposal: Proposal, diff: Mapping[str, Any] | None, compatibility: Compatibility | None
) -> dict[str, Any]:
    """The proposal as its file says it; no value of a record is in it."""
    drift = proposal.drift
    evidence = [
        {
            "file": n.file_name, "records": n.drift.records, "filled": n.drift.filled,
            "fill_rate": round(n.drift.filled / n.drift.records, 4) if n.drift.records else 0.0,
            "distinct": n.drift.distinct, "shape": n.drift.shape, "told_by": n.drift.rule, "releases": n.releases,
        }
        for n in proposal.seen[-_SHOWN:]
    ]  # fmt: skip
    return {
        "proposal": proposal.proposal_id, "client_id": proposal.client_id, "kind": proposal.kind,
        "state": proposal.state, "says": proposal.sentence, "header": drift.header, "column": drift.column,
        "contract": proposal.seen[-1].contract, "compatibility": compatibility, "impact": proposal.impact,
        "change": dict(diff or {}), "suggests": drift.fix, "deliveries": len(proposal.seen), "evidence": evidence,
        "words": [{"word": w.word, "by": w.said_by, "at": w.said_at.isoformat(timespec="seconds"), "why": w.reason}
                  for w in proposal.words],
    }  # fmt: skip


def write_file(places: Places, document: Mapping[str, Any]) -> Path:
    """Write a proposal's file, `output/proposals/<id>.yaml`, in the place of the one before."""
    target = places.output / "proposals" / f"{document['proposal']}.yaml"
    put(target, yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True, width=120).encode())
    return target
