"""`healthingest schema propose|list|approve|reject`: changes of files that wait for a person's word."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from healthingest.command import Json
from healthingest.errors import UsageError
from healthingest.schema_cli import command, schema_app
from healthingest.show import outcome_row, print_json, print_outcomes, print_table

if TYPE_CHECKING:
    from healthingest.contracts.evolve import Answer
    from healthingest.platform import Platform

__all__ = ["schema_app"]
ProposalId = Annotated[str, typer.Argument(metavar="PROPOSAL", help="Its id, as schema list shows it.")]
Reason = Annotated[str, typer.Option(help="Why: one line, kept for good. Never write a member's value here.")]
ClientId = Annotated[str | None, typer.Option("--client", help="One client only.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for ingests that are at work on the client.")]


@command("propose")
def propose_command(
    client: ClientId = None,
    reopen: Annotated[str | None, typer.Option(help="A rejected proposal that shall be open again.")] = None,
    reason: Reason = "",
    as_json: Json = False,
) -> int:
    """Look again at what clients' files say, for changes that their configs do not take in, and propose them.

    Deliveries are looked at when they are ingested; this finds what was missed then.

    Example: healthingest schema propose --client acme
    """
    from healthingest.approve import reopen as open_again
    from healthingest.drift import look_again
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor
    from healthingest.propose import write_proposals

    platform = Platform.open()
    if client is not None and client not in platform.clients.clients:
        raise UsageError(f"There is no client {client}; there is {', '.join(platform.clients.clients)}.")
    if reopen is not None:
        open_again(platform, reopen, by=actor(), reason=reason)
        client = reopen.partition(".")[0]
    for one in [client] if client else platform.clients.active:
        look_again(platform, one)
        write_proposals(platform, one)
    return _list(platform, client, everything=False, as_json=as_json)


@command("list")
def list_command(
    proposal: Annotated[str | None, typer.Argument(help="One proposal, with its evidence and diffs.")] = None,
    client: ClientId = None,
    everything: Annotated[bool, typer.Option("--all", help="Also what is closed, or needs nobody.")] = False,
    as_json: Json = False,
) -> int:
    """Changes of files that wait for approval: what was seen, and what approving would do.

    Example: healthingest schema list acme.added.middle_name
    """
    import yaml

    from healthingest.platform import Platform
    from healthingest.proposals import proposal_named
    from healthingest.propose import document_of

    platform = Platform.open()
    if proposal is None:
        return _list(platform, client, everything=everything, as_json=as_json)
    document = document_of(platform, proposal_named(platform.places, platform.clients, proposal))
    if as_json:
        print_json(document)
    else:
        typer.echo(_as_text(document, yaml))
    return 0


def _as_text(document: dict[str, Any], yaml: Any) -> str:  # noqa: ANN401 - a module
    diffs = {k: v for k, v in document["change"].items() if k.endswith("_diff")}
    plain = document | {"change": {k: v for k, v in document["change"].items() if k not in diffs}}
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
    return "\n".join([text.rstrip(), *(diff.rstrip() for diff in diffs.values())])


def _list(platform: "Platform", client: str | None, *, everything: bool, as_json: bool) -> int:
    from healthingest.proposals import proposals_of
    from healthingest.propose import document_of

    found = [p for p in proposals_of(platform.places, platform.clients, client) if p.is_open or everything]
    if as_json:
        print_json({"proposals": [document_of(platform, p) for p in found]})
        return 0
    if not found:
        typer.echo("No change waits for approval.")
        return 0
    print_table("", ["proposal", "state", "what was seen", "approving it"],
                [[p.proposal_id, p.state, p.sentence, p.impact] for p in found])  # fmt: skip
    return 0


@command("approve")
def approve_command(
    proposal: ProposalId,
    reason: Reason = "",
    name: Annotated[str | None, typer.Option(help="Contract column that a new column becomes.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Its type, like text, name, date, us_zip.")] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="What becomes of a new column's values: vault:GROUP, keep, drop, or YAML. Repeatable."),
    ] = None,
    description: Annotated[str, typer.Option(help="What a new column holds.")] = "",
    date_format: Annotated[str | None, typer.Option(help="How dates are written, like %m/%d/%Y.")] = None,
    code: Annotated[list[str] | None, typer.Option(help="A code that a list gets. Repeatable.")] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", help="WORD=CODE: what a word means. Repeatable.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would happen; write nothing.")] = False,
    wait: Wait = 600,
    as_json: Json = False,
) -> int:
    """Take a change in: the contract's next version, the client's YAML, the tables, then all that waited in bronze.

    In prod two persons must approve: the first's word waits. May be repeated if it was cut off.

    Example: healthingest schema approve acme.added.middle_name --policy vault:identity --reason "acme asked for it"
    """
    from healthingest.approve import approve
    from healthingest.ingest_cli import telling
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor

    platform = Platform.open()
    answer = _answer(name, type_, policy, description, date_format, code, map_)
    if plan:
        return _plan(platform, proposal, answer, as_json=as_json)
    with telling(platform, 0) as tell:
        done, outcomes = approve(
            platform, proposal, answer, by=actor(), reason=reason or "approved", wait=wait, on_group=tell
        )
    if as_json:
        print_json({"proposal": done.proposal_id, "state": done.state, "files": [outcome_row(o) for o in outcomes]})
    elif done.state == "second person":
        typer.echo(f"{proposal} is noted; a second person must approve it too. Nothing was changed.")
    else:
        typer.echo(f"{proposal} is in force; {len(outcomes)} deliveries were read again.")
        if outcomes:
            print_outcomes(outcomes, [], Platform.open())
    return 0


def _plan(platform: "Platform", proposal_id: str, answer: "Answer", *, as_json: bool) -> int:
    from healthingest.proposals import proposal_named
    from healthingest.propose import document_of, made_of
    from healthingest.reread import foretell, stale

    proposal = proposal_named(platform.places, platform.clients, proposal_id)
    made = made_of(platform, proposal, answer)
    found = stale(platform, proposal.client_id, client=made.client)
    foretold = list(foretell(platform, found, made.client))
    released, refused = (sum(getattr(one, what) for one in foretold) for what in ("released", "refused"))
    document = document_of(platform, proposal, answer)
    document |= {"would_read_again": len(foretold), "would_release": released, "would_refuse": refused}
    if as_json:
        print_json(document)
        return 0
    import yaml

    typer.echo(_as_text(document, yaml))
    return 0


@command("reject")
def reject_command(proposal: ProposalId, reason: Reason, as_json: Json = False) -> int:
    """Leave a change out. Its column's values stay in bronze; schema propose --reopen opens the proposal again.

    Example: healthingest schema reject acme.added.internal_note --reason "not for us; acme will stop sending it"
    """
    from healthingest.approve import reject
    from healthingest.platform import Platform
    from healthingest.privacy.roles import actor

    done = reject(Platform.open(), proposal, by=actor(), reason=reason)
    if as_json:
        print_json({"proposal": done.proposal_id, "state": done.state})
    else:
        typer.echo(f"{proposal} is rejected; nothing was changed.")
    return 0


def _answer(
    name: str | None, type_: str | None, policy: list[str] | None, description: str, date_format: str | None,
    code: list[str] | None, map_: list[str] | None,
) -> "Answer":  # fmt: skip
    from healthingest.contracts.evolve import Answer

    words = dict(one.partition("=")[::2] for one in map_ or ())
    if not all(words.values()):
        raise UsageError("Write --map as WORD=CODE, like --map NB=X.")
    said: dict[str, Any] = {}
    for one in policy or ():
        said |= _policy(one)
    return Answer(name, type_, said or None, description, date_format, tuple(code or ()), words)


def _policy(text: str) -> dict[str, Any]:
    import yaml

    if text in {"keep", "drop"}:
        return {text: True}
    if text.startswith("vault:") and " " not in text:
        return {"vault": text.removeprefix("vault:")}
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError:
        said = None
    if not isinstance(said, dict):
        raise UsageError(
            'Write a policy as vault:GROUP, keep, drop, or like "{vault: identity, mask: {ssn_end: last4}}".'
        )
    return said
