"""Put proposals down as files for people: what would change, as diffs of YAML, beside evidence and impact."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from healthingest.contracts import strict_yaml
from healthingest.contracts.clients import Client
from healthingest.contracts.contract import load_contract
from healthingest.contracts.evolve import Answer, Candidate
from healthingest.contracts.versions import Compatibility, silver_types
from healthingest.drift import candidate_of
from healthingest.errors import ConfigError, UsageError
from healthingest.platform import Platform
from healthingest.proposals import Proposal, as_document, proposals_of, write_file

_OPEN_QUESTION: Mapping[str, Any] = {"vault": "identity"}


def made_of(platform: Platform, proposal: Proposal, answer: Answer) -> Candidate:
    """What a proposal comes to with an answer.

    Raises:
        UsageError: something must be said first, like a new column's policy.
        ConfigError: the contract or config that would come out cannot be used.
    """
    made = candidate_of(platform, platform.clients.clients[proposal.client_id], proposal.drift, answer)
    _require_types(platform, made.client)
    return made


def _require_types(platform: Platform, client: Client) -> None:
    """A table of silver has one type per column, whoever's it is; a config with another one would be left out."""
    mine = silver_types(client.contract)
    for other in platform.clients.clients.values():
        same_table = other.config.silver.folder == client.config.silver.folder
        beside = other.client_id != client.client_id and same_table
        theirs = silver_types(other.contract) if beside else {}
        if wrong := sorted(name for name in mine.keys() & theirs.keys() if mine[name] != theirs[name]):
            raise UsageError(
                f"{other.client_id} has a column {wrong[0]} of another type in silver; give this one another name."
            )


def document_of(platform: Platform, proposal: Proposal, answer: Answer | None = None) -> dict[str, Any]:
    """A proposal as its file says it, with the diffs that approving it would make."""
    change, compatibility = _change(platform, proposal, answer) if proposal.is_open else ({}, None)
    return as_document(proposal, change, compatibility)


def write_proposals(platform: Platform, client_id: str) -> list[Path]:
    """Write the files of a client's proposals, as they stand."""
    found = proposals_of(platform.places, platform.clients, client_id)
    known = {f"{proposal.proposal_id}.yaml" for proposal in found}
    for old in (platform.places.output / "proposals").glob(f"{client_id}.*.yaml"):
        if old.name not in known:  # whatever showed it was replaced
            old.unlink(missing_ok=True)
    return [write_file(platform.places, document_of(platform, proposal)) for proposal in found]


def _change(
    platform: Platform, proposal: Proposal, answer: Answer | None
) -> tuple[dict[str, Any], Compatibility | None]:
    needs = None
    try:
        made = made_of(platform, proposal, answer or Answer())
    except (UsageError, ConfigError) as error:
        needs = str(error)
        if proposal.kind != "added" or answer is not None:
            return {"needs": needs}, None
        try:  # what it comes to but for the policy, which a person must say
            made = made_of(platform, proposal, Answer(policy=_OPEN_QUESTION))
        except (UsageError, ConfigError):
            return {"needs": needs}, None
    change: dict[str, Any] = {"changes": [": ".join(filter(None, [c.subject, c.text])) for c in made.changes]}
    if needs:
        return {"needs": needs, "contract": made.client.contract.name} | change, made.compatibility
    diffs = _diffs(platform, made)
    return {"contract": made.client.contract.name} | change | diffs, made.compatibility


def _diffs(platform: Platform, made: Candidate) -> dict[str, str]:
    configs, found = platform.places.configs, {}
    if made.contract:
        before = load_contract(configs, made.before.name)
        old = strict_yaml.text_of(configs / "contracts" / f"{before.name}.yaml")
        found["contract_diff"] = _diff(
            old, made.contract[1], f"contracts/{before.name}", f"contracts/{made.contract[0]}"
        )
    old = strict_yaml.text_of(made.file)
    found["config_diff"] = _diff(old, made.config, made.file.stem, made.file.stem)
    return found


def _diff(old: str, new: str, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), f"{before}.yaml", f"{after}.yaml", n=1
    )
    return "".join(lines)
