"""`healthingest erase`: members and clients, everywhere and for good; legal holds; certificates."""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from healthingest.command import Json, asked_member_id, command_of
from healthingest.errors import UsageError
from healthingest.show import print_json

erase_app = typer.Typer(
    help="Erase a member or a client everywhere, with a signed certificate. Member ids are never arguments: they are "
    "asked for, or read from standard input, so that no shell history keeps them.",
    no_args_is_help=True,
)
command = command_of(erase_app)
Client = Annotated[str, typer.Option(help="Client whose member it is.")]
Token = Annotated[str | None, typer.Option(help="The member's token in silver, instead of the id.")]
Out = Annotated[Path | None, typer.Option(help="Write the certificate to this file too; it must not exist.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether it is meant.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for ingests that are at work on the client.")]
Backups = Annotated[str, typer.Option(help="Until when backups made before are kept, for the certificate.")]


@command("member")
def erase_member_command(
    client: Client,
    token: Token = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say where the member stands.")] = False,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Also if the member stands nowhere: files to come are to leave it out.")
    ] = False,
    yes: Yes = False,
    out: Out = None,
    wait: Wait = 600,
    notice_days: Annotated[
        int, typer.Option(min=0, help="Days that silver's change feed tells of the removal; 0: not at all.")
    ] = 7,
    backups_until: Backups = "not stated",
    as_json: Json = False,
) -> int:
    """Erase one member: landing zone, bronze, quarantine, vault, silver, sightings, change data and old versions.

    Example: healthingest erase member --client acme --out certificate.json < id.txt
    """
    from healthingest.erase import Request, erase_member, find_member, member_of_token, was_erased
    from healthingest.platform import Platform

    platform = Platform.open()
    _new_file(out)
    member_id = member_of_token(platform, client, token) if token else asked_member_id()
    found = find_member(platform, client, member_id, _tell(as_json=as_json))
    total = sum(looked.found for looked in found.values())
    if dry_run:
        _show_places({place: looked.as_dict() for place, looked in found.items()}, as_json=as_json)
        return 0
    if not (total or unseen or was_erased(platform, client, member_id)):
        raise UsageError(f"{client} has no trace of this member; check the id. With --unseen it is noted all the same.")
    _confirm(f"Erase this member of {client}, found in {total} places, for good?", yes=yes, as_json=as_json)
    request = Request(wait, timedelta(days=notice_days), backups_until, _tell(as_json=as_json))
    _show(erase_member(platform, client, member_id, request), out, as_json=as_json)
    return 0


@command("client")
def erase_client_command(
    client: Annotated[str, typer.Argument(help="Client.")],
    yes: Yes = False,
    out: Out = None,
    wait: Wait = 600,
    backups_until: Backups = "not stated",
    as_json: Json = False,
) -> int:
    """Erase a whole client: its keys are destroyed, and its files and rows deleted. Its audit rows (counts) stay.

    Example: healthingest erase client acme --out certificate.json
    """
    from healthingest.erase import Request, erase_client
    from healthingest.platform import Platform

    platform = Platform.open()
    _new_file(out)
    _confirm(f"Destroy the keys of {client} and delete all its data, for good?", yes=yes, as_json=as_json)
    request = Request(wait, backups_until=backups_until, on_step=_tell(as_json=as_json))
    _show(erase_client(platform, client, request), out, as_json=as_json)
    if client in platform.clients.clients and not as_json:
        typer.echo(f"Remove its config too ({client}.yaml): files that still come cannot be sealed, and wait.")
    return 0


@command("hold")
def erase_hold_command(
    client: Client,
    reason: Annotated[str, typer.Option(help="Why, e.g. a case number; no name.")],
    token: Token = None,
    as_json: Json = False,
) -> int:
    """Put a legal hold on a member: nobody can erase it. For a whole client write legal_hold into its YAML.

    Example: healthingest erase hold --client acme --reason "case 2026-118"
    """
    from healthingest.erase import member_of_token, set_hold
    from healthingest.platform import Platform

    platform = Platform.open()
    member_id = member_of_token(platform, client, token) if token else asked_member_id()
    known = set_hold(platform, client, member_id, reason)
    sentence = "The member is held." if known else "The id is held, but silver has no such member: check the id."
    _said({"client_id": client, "hold": True, "in_silver": known}, sentence, as_json=as_json)
    return 0


@command("release")
def erase_release_command(client: Client, token: Token = None, as_json: Json = False) -> int:
    """Take the legal hold off a member.

    Example: healthingest erase release --client acme < id.txt
    """
    from healthingest.erase import member_of_token, release_hold
    from healthingest.platform import Platform

    platform = Platform.open()
    release_hold(platform, client, member_of_token(platform, client, token) if token else asked_member_id())
    _said({"client_id": client, "hold": False}, "The member is held no longer.", as_json=as_json)
    return 0


@command("verify")
def erase_verify_command(
    certificate: Annotated[Path, typer.Argument(help="A certificate.")],
    key: Annotated[
        str | None, typer.Option(help="The signer's public key, as keys status shows it. Default: this keyring's.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Check that a certificate is what was signed.

    Example: healthingest erase verify certificate.json
    """
    from healthingest.places import Places
    from healthingest.privacy.certificate import faults, public_key
    from healthingest.privacy.keyring_file import load_keyring

    found = faults(certificate, key or public_key(load_keyring(Places.from_env())))
    _said({"faults": found}, "; ".join(found) or "The certificate is as it was signed.", as_json=as_json)
    return 1 if found else 0


def _confirm(question: str, *, yes: bool, as_json: bool) -> None:
    if yes or as_json or not sys.stdin.isatty():
        return
    typer.confirm(question, abort=True, err=True)


def _new_file(out: Path | None) -> None:
    if out and (out.exists() or not out.absolute().parent.is_dir()):
        raise UsageError(f"--out {out} exists, or lies in a folder that does not; nothing was done.")


def _tell(*, as_json: bool) -> Any:  # noqa: ANN401 - a function of a text
    shown = not as_json and sys.stderr.isatty()
    return (lambda text: typer.echo(f"  {text}", err=True)) if shown else (lambda _: None)


def _said(body: dict[str, Any], sentence: str, *, as_json: bool) -> None:
    if as_json:
        print_json(body)
    else:
        typer.echo(sentence)


def _show(certificate: dict[str, Any], out: Path | None, *, as_json: bool) -> None:
    if out:
        out.touch(mode=0o600, exist_ok=False)
        out.write_text(json.dumps(certificate, indent=1))
    if as_json:
        print_json(certificate)
        return
    for what, count in certificate["erased"].items():
        number = sum(count.values()) if isinstance(count, dict) else count
        typer.echo(f"{what.replace('_', ' '):18} {number}")
    if "looked_through" in certificate:
        looked = certificate["looked_through"].values()
        typer.echo(
            f"{'looked through':18} {sum(p['files'] for p in looked)} files, {sum(p['rows'] for p in looked)} records "
            f"and rows; the member in {sum(p['found'] for p in looked)} of them"
        )
        if skipped := sum(p["not_searched"] for p in looked):
            typer.echo(f"{'not searched':18} {skipped} files that are no text or damaged")
    typer.echo(f"Certificate {certificate['id']}: output/checkpoint/certificates" + (f" and {out}" if out else ""))


def _show_places(places: dict[str, dict[str, int]], *, as_json: bool) -> None:
    from healthingest.show import print_table

    if as_json:
        print_json({"places": places})
        return
    rows = [[place, str(said["files"]), str(said["rows"]), str(said["found"])] for place, said in places.items()]
    print_table("", ["place", "files", "records or rows", "of the member"], rows)
