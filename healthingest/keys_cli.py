"""`healthingest keys` and `healthingest audit`: the keyring's files, and the chain of events. No key is ever shown."""

from pathlib import Path
from typing import Annotated

import typer

from healthingest.command import Json, command_of
from healthingest.errors import UsageError
from healthingest.show import print_json

keys_app = typer.Typer(
    help="The keyring: make it, lock it, copy it, look at it. Key material is never shown.", no_args_is_help=True
)
audit_app = typer.Typer(help="The chain of events: who read what. Holds no values.", no_args_is_help=True)
keys_command, audit_command = command_of(keys_app), command_of(audit_app)
Kek = Annotated[
    str | None,
    typer.Option(help="Key that locks the file: env:NAME, file:PATH, aws-kms:KEY or vault-transit:[MOUNT/]KEY."),
]
Out = Annotated[Path, typer.Option(help="File to write; it must not exist. Mode 0600.")]


@keys_command("init")
def keys_init_command(kek: Kek = None, as_json: Json = False) -> int:
    """Make the keyring, once. Back it up: without it the protected values cannot be read.

    Example: HEALTHINGEST_ENV=prod healthingest keys init --kek vault-transit:healthingest
    """
    from healthingest.places import Places
    from healthingest.privacy.keyring_file import init_keyring

    path = init_keyring(Places.from_env(), kek)
    if as_json:
        print_json({"path": str(path), "locked_by": kek})
    else:
        typer.echo(f"A keyring was made at {path}. Back it up now, apart from the data.")
    return 0


@keys_command("status")
def keys_status_command(as_json: Json = False) -> int:
    """Where the keyring is, its id, its age, what locks it, whose keys it holds and what it can open.

    Example: healthingest keys status --json
    """
    from healthingest.places import Places
    from healthingest.privacy.keyring_file import keyring_status

    state = keyring_status(Places.from_env())
    if as_json:
        print_json(state)
    else:
        for name, value in state.items():
            typer.echo(f"{name:14} {', '.join(value) if isinstance(value, list) else value}")
    return 1 if state["missing"] else 0


@keys_command("lock")
def keys_lock_command(kek: Kek = None, as_json: Json = False) -> int:
    """Lock the keyring by a key-encryption key, or by another one than now; without --kek, take the lock off.

    Example: healthingest keys lock --kek aws-kms:alias/healthingest
    """
    from healthingest.places import Places
    from healthingest.privacy.keyring_file import load_keyring, relock

    places = Places.from_env()
    load_keyring(places)
    relock(places, kek)
    if as_json:
        print_json({"path": str(places.keyring), "locked_by": kek})
    else:
        typer.echo(f"{places.keyring} is locked by {kek}." if kek else f"{places.keyring} has no lock any more.")
    return 0


@keys_command("backup")
def keys_backup_command(out: Out, kek: Kek = None, as_json: Json = False) -> int:
    """Write a copy of the keyring, to be kept apart from the data; lock it with a key of its own by --kek.

    Example: healthingest keys backup --out /mnt/safe/keyring-2026-11-23.json --kek file:/mnt/safe/kek
    """
    from healthingest.places import Places
    from healthingest.privacy.keyring_file import check_copy, load_keyring, write_copy

    places = Places.from_env()
    check_copy(places, out)
    keyring = load_keyring(places)
    write_copy(keyring, out, kek)
    if as_json:
        print_json({"path": str(out), "keyring_id": keyring.keyring_id, "clients": keyring.clients})
    else:
        typer.echo(f"{out} holds the keys of {len(keyring.clients)} clients. Try it: healthingest keys check {out}")
    return 0


@keys_command("check")
def keys_check_command(
    backup: Annotated[Path, typer.Argument(help="A keyring's copy, as keys backup writes it.")], as_json: Json = False
) -> int:
    """Try a backup without using it: has it all keys, and opens it a file of each kind? Restore by copying it back.

    Example: healthingest keys check /mnt/safe/keyring-2026-11-23.json
    """
    from healthingest.drill import drill
    from healthingest.places import Places

    results = drill(Places.from_env(), backup)
    if as_json:
        print_json({"results": [vars(result) for result in results]})
    else:
        for result in results:
            typer.echo(f"{'ok' if result.opens else 'FAILS':6} {result.client_id:20} {result.what}")
    return 0 if all(result.opens for result in results) else 1


@keys_command("rotate")
def keys_rotate_command(
    client: Annotated[list[str] | None, typer.Argument(help="Clients; all by default.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for ingests that are at work on a client.")] = 600,
    as_json: Json = False,
) -> int:
    """Give clients new keys and put all their data under them, beside running ingests. Run again, it goes on.

    Back the keyring up afterwards, issue the roles' keyrings anew, and then forget the old keys: keys revoke.

    Example: healthingest keys rotate acme
    """
    import sys

    from healthingest.platform import Platform
    from healthingest.rotate import rotate

    platform = Platform.open()
    shown = not as_json and sys.stderr.isatty()
    done = []
    for client_id in client or platform.keyring.clients:

        def tell(step: str, client_id: str = client_id) -> None:
            if shown:
                typer.echo(f"\r\033[K{client_id}: {step}", nl=False, err=True)

        done.append(rotate(platform, client_id, wait=wait, on_step=tell))
        if shown:
            typer.echo("\r\033[K", nl=False, err=True)
        if not as_json:
            places = ", ".join(f"{count} {place}" for place, count in done[-1].renewed.items())
            typer.echo(f"{client_id}: keys of generation {done[-1].generation}; renewed: {places}")
    if as_json:
        print_json({"clients": [vars(rotated) for rotated in done]})
    elif done:
        typer.echo("Back the keyring up, issue roles' keyrings anew, then run: healthingest keys revoke")
    return 0


@keys_command("revoke")
def keys_revoke_command(
    client: Annotated[list[str] | None, typer.Argument(help="Clients; all by default.")] = None, as_json: Json = False
) -> int:
    """Forget the keys that a rotation has replaced, once nothing needs them. What only they open cannot be read again.

    Example: healthingest keys revoke acme
    """
    from healthingest.platform import Platform
    from healthingest.rotate import revoke

    platform = Platform.open()
    gone = {client_id: revoke(platform, client_id) for client_id in client or platform.keyring.clients}
    if as_json:
        print_json({"forgotten": gone})
    else:
        for client_id, count in gone.items():
            typer.echo(f"{client_id}: {count} old generations forgotten")
    return 0


@keys_command("role")
def keys_role_command(
    name: Annotated[str, typer.Argument(help="Role of roles.yaml.")],
    out: Out,
    kek: Kek = None,
    as_json: Json = False,
) -> int:
    """Write a role's own keyring: it holds what the role may open, and nothing else.

    Example: healthingest keys role analyst --out analyst.json --kek aws-kms:alias/analyst
    """
    from healthingest.lake.events import INSTALLATION
    from healthingest.platform import Platform
    from healthingest.privacy.keyring_file import check_copy, write_copy
    from healthingest.privacy.roles import actor, issue, role_of

    platform = Platform.open()
    check_copy(platform.places, out)
    issued = issue(platform.keyring, name, role_of(platform.places.configs, name))
    platform.lake.events.append(INSTALLATION, "keyring issued", "", {"who": actor(), "for_role": name})
    write_copy(issued, out, kek)
    purposes = sorted({purpose for scope in issued.clients for purpose in issued.keys[scope]})
    if as_json:
        print_json({"path": str(out), "role": name, "clients": issued.clients, "purposes": purposes})
    else:
        typer.echo(f"{out} opens {', '.join(purposes) or 'nothing'} of {', '.join(issued.clients) or 'no client'}.")
    return 0


# --- audit ---------------------------------------------------------------------------------------------------------


@audit_command("show")
def audit_show_command(
    client: Annotated[str, typer.Argument(help="Client.")],
    last: Annotated[int, typer.Option(min=1, help="So many of the latest events.")] = 20,
    as_json: Json = False,
) -> int:
    """Who read what of a client: the latest events of its chain.

    Example: healthingest audit show acme --last 50
    """
    from healthingest.platform import Platform
    from healthingest.show import print_table

    platform = Platform.open()
    chains = platform.lake.events.clients()
    if client not in chains and client not in platform.clients.clients:
        raise UsageError(f"There is no client {client}; there are events of {', '.join(chains) or 'nobody'}.")
    events = platform.lake.events.read(client)[-last:]
    if as_json:
        print_json({"events": events})
        return 0
    rows = [
        [e["at"][:19], e["kind"], str(e.get("who", "")), e["role"], str(e.get("purpose", "")),
         str(e.get("members", "")), ", ".join(e.get("columns", ()))]
        for e in events
    ]  # fmt: skip
    print_table("", ["at (UTC)", "what", "who", "role", "purpose", "members", "columns opened"], rows)
    return 0


@audit_command("verify")
def audit_verify_command(
    anchor: Annotated[Path | None, typer.Option(help="Heads of the chains, as audit anchor wrote them.")] = None,
    as_json: Json = False,
) -> int:
    """Check every chain: no event was changed, or is missing; against an anchor, none of the last is missing either.

    Example: healthingest audit verify --anchor /mnt/safe/anchor-2026-11-23.json
    """
    from healthingest.lake.events import anchor_of
    from healthingest.platform import Platform

    events = Platform.open().lake.events
    faults = events.faults(anchor_of(anchor) if anchor else None)
    if as_json:
        print_json({"chains": len(events.clients()), "faults": faults})
    else:
        for fault in faults:
            typer.echo(fault)
        if not faults:
            alone = "" if anchor else " Whether last events or whole chains are missing, only --anchor shows."
            typer.echo(f"{len(events.clients())} chains are whole.{alone}")
    return 1 if faults else 0


@audit_command("anchor")
def audit_anchor_command(out: Out, as_json: Json = False) -> int:
    """Write where each chain ends, to be kept where whoever writes the chains cannot: a ticket, another account.

    Example: healthingest audit anchor --out /mnt/safe/anchor-2026-11-23.json
    """
    from healthingest.lake.events import write_anchor
    from healthingest.platform import Platform

    platform = Platform.open()
    if out.resolve().is_relative_to(platform.places.output):
        raise UsageError(f"--out must not lie in {platform.places.output}: who can change chains could change it too.")
    heads = platform.lake.events.heads()
    write_anchor(heads, out)
    if as_json:
        print_json({"path": str(out), "chains": {client: vars(head) for client, head in heads.items()}})
    else:
        typer.echo(f"{out} says where {len(heads)} chains end. Keep it where nobody here can write.")
    return 0
