"""A person's word on a proposal: approve it, so that config, contract, tables and data follow, or reject it.

Approving writes the contract's next version and the client's YAML while nobody is at work on the client; whoever
registers a delivery afterwards finds the new one. Then everything that was read before is read again from bronze. Each
step may be repeated: whoever dies in between is finished by the same command.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from healthingest.contracts.clients import Client
from healthingest.contracts.evolve import Answer, write
from healthingest.errors import PermanentError, UsageError
from healthingest.ingest import ingest_many, undecided
from healthingest.lake.proposals import Said, Word, Words
from healthingest.lake.registrations import Registrations
from healthingest.model import Outcome
from healthingest.platform import Platform
from healthingest.privacy.roles import LONGEST_REASON, reason_given
from healthingest.proposals import Proposal, proposal_named
from healthingest.propose import made_of, write_proposals
from healthingest.records.read import RecordReader
from healthingest.reread import read_again, stale

#: Told the outcomes as deliveries are read again.
OnGroup = Callable[[list[Outcome]], None]


def approve(
    platform: Platform, proposal_id: str, answer: Answer, *, by: str, reason: str, wait: float = 600.0,
    on_group: OnGroup = lambda _: None,
) -> tuple[Proposal, list[Outcome]]:  # fmt: skip
    """Approve a proposal; returns it as it stands then, and what became of the deliveries that were read again.

    In prod the first person's word is noted, and the second's counts: then its state is `second person`, and nothing
    was done.

    Raises:
        UsageError: there is no such proposal, it was closed otherwise, something must be said with it, or a second
            person must.
        ConfigError: what would come out cannot be used.
        BusyError: others did not finish with the client within `wait` seconds.
    """
    reason = reason_given(reason, LONGEST_REASON)
    proposal = proposal_named(platform.places, platform.clients, proposal_id)
    if proposal.state == "noted":
        made_of(platform, proposal, answer)  # says why not
    if proposal.is_open or proposal.state == "rejected":
        answer = _agreed(proposal, answer)
        made_of(platform, proposal, answer)  # what is wrong with it is told before anybody has to wait
        if not _enough(platform, proposal, answer, by, reason):
            write_proposals(platform, proposal.client_id)
            return proposal_named(platform.places, platform.clients, proposal_id), []
        platform = _put_in_force(platform, proposal, answer, by, reason, wait)
    outcomes: list[Outcome] = []
    for group in replay(platform, proposal.client_id, run_id=f"schema approve by {by}"):
        outcomes += group
        on_group(group)
    if not any(word.word == "applied" for word in proposal.words):
        Words.at(platform.places.output).put(proposal.client_id, proposal_id, "applied", by=by, reason=reason)
    write_proposals(platform, proposal.client_id)
    return proposal_named(platform.places, platform.clients, proposal_id), outcomes


def replay(platform: Platform, client_id: str, *, run_id: str) -> Iterator[list[Outcome]]:
    """Bring all of a client's deliveries to where its present config would have brought them.

    Those that others registered with the config before, and have not decided, are decided first: afterwards there is
    nothing that the config before has read.
    """
    while True:
        if left := undecided(platform, client_id):
            yield ingest_many(platform, left, run_id=run_id)
        found = stale(platform, client_id)
        if not found:
            return
        yield from read_again(platform, found, run_id=run_id)


def reject(platform: Platform, proposal_id: str, *, by: str, reason: str) -> Proposal:
    """Close a proposal; what was seen stays in bronze, and `schema propose` opens it again.

    Raises:
        UsageError: there is no such proposal, or it is not open.
    """
    reason = reason_given(reason, LONGEST_REASON)
    proposal = proposal_named(platform.places, platform.clients, proposal_id)
    if not proposal.is_open:
        raise UsageError(f"{proposal_id} is not open; it is {proposal.state}.")
    _note(platform, proposal, "rejected", by, reason, _plain(proposal, Answer()))
    write_proposals(platform, proposal.client_id)
    return proposal_named(platform.places, platform.clients, proposal_id)


def reopen(platform: Platform, proposal_id: str, *, by: str, reason: str) -> None:
    """Open a rejected proposal again.

    Raises:
        UsageError: there is no such proposal, or it is not rejected.
    """
    proposal = proposal_named(platform.places, platform.clients, proposal_id)
    if proposal.state != "rejected":
        raise UsageError(f"{proposal_id} is not rejected; it is {proposal.state}.")
    _note(platform, proposal, "reopened", by, reason_given(reason, LONGEST_REASON, needed=False))


def _require_readable(platform: Platform, client: Client) -> None:
    """Refuse a config under which a delivery that is in silver could not be read any more.

    Raises:
        UsageError: there is one.
    """
    found = stale(platform, client.client_id, client=client)
    rows = platform.lake.audit.rows([one.delivery.file_id for one in found])
    for one in found:
        if rows[one.delivery.file_id]["status"] != "succeeded":
            continue
        facts = platform.lake.bronze.facts_again(one, client)
        try:
            with platform.lake.bronze.open(one.delivery) as source:
                next(iter(RecordReader(source, facts, client)), None)
        except PermanentError as error:
            raise UsageError(f"{one.delivery.file_name} is in silver and could not be read any more. {error}") from None


def _agreed(proposal: Proposal, answer: Answer) -> Answer:
    """The answer that counts: whoever comes second agrees with the first by saying nothing else."""
    first = _first(proposal)
    if first and answer == Answer():
        said = {name: first.answer[name] for name in vars(answer)}
        return Answer(**said | {"codes": tuple(said["codes"])})
    return answer


def _first(proposal: Proposal) -> Word | None:
    """The approval that waits for a second person."""
    last = proposal.words[-1] if proposal.words else None
    return last if last and last.word == "approved" else None


def _enough(platform: Platform, proposal: Proposal, answer: Answer, by: str, reason: str) -> bool:
    """Whether the change may be made now; a first word in prod is noted."""
    if platform.places.env != "prod":
        return True
    first = _first(proposal)
    if first is None or first.answer != _plain(proposal, answer):
        # Also where more was seen since: both must have said the same of the same.
        _note(platform, proposal, "approved", by, reason, _plain(proposal, answer))
        return False
    if first.said_by == by:
        raise UsageError(f"{by} has approved {proposal.proposal_id} already; in prod a second person must.")
    return True


def _plain(proposal: Proposal, answer: Answer) -> dict[str, Any]:
    seen = {"fix": proposal.drift.fix, "header": proposal.drift.header}
    return asdict(answer) | {"codes": list(answer.codes), "seen": seen}


def _note(
    platform: Platform, proposal: Proposal, word: Said, by: str, reason: str, answer: dict[str, Any] | None = None
) -> None:
    platform.lake.events.append(proposal.client_id, f"schema {word}", "", {
        "who": by, "proposal": proposal.proposal_id, "reason": reason,
    })  # fmt: skip
    Words.at(platform.places.output).put(
        proposal.client_id, proposal.proposal_id, word, by=by, reason=reason, answer=answer
    )


def _put_in_force(
    platform: Platform, proposal: Proposal, answer: Answer, by: str, reason: str, wait: float
) -> Platform:
    """Write contract and YAML, publish, widen the tables; returns the installation, opened anew."""
    client_id, places = proposal.client_id, platform.places
    with platform.lake.exclusion.alone(client_id, wait=wait):
        # Of the YAML as it is now: somebody else may have changed it while this waited.
        platform = Platform.open(places)
        if client_id not in platform.clients.clients:
            raise UsageError(f"The YAML of {client_id} cannot be used now; healthingest doctor says why.")
        made = made_of(platform, proposal, answer)
        _require_readable(platform, made.client)
        write(places.configs, made)
        platform.lake.events.append(client_id, "schema approved", "", {
            "who": by, "proposal": proposal.proposal_id, "reason": reason, "contract": made.client.contract.name,
        })  # fmt: skip
    platform = Platform.open(places)
    name, why = made.client.contract.name, f"{proposal.proposal_id}: {reason}"
    Registrations.at(places.output).publish(places.configs, name, by=by, reason=why)
    platform.lake.silver_for(client_id).for_client(client_id, platform.clients.clients[client_id].contract)
    return platform
