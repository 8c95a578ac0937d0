"""`healthingest export`: current members as a file, as far as the role may see them."""

from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from healthingest.command import Json
from healthingest.show import print_json


class Profile(StrEnum):
    """What an export shows."""

    operations = "operations"
    limited_data_set = "limited_data_set"
    safe_harbor = "safe_harbor"
    qa = "qa"


def export_command(
    out: Annotated[
        Path,
        typer.Option(help="File to write: .csv or .parquet, mode 0600. qa: a new folder for generated deliveries."),
    ],
    profile: Annotated[
        Profile,
        typer.Option(
            help="operations: all the role may see. limited_data_set: no names. safe_harbor: no identifier. "
            "qa: invented deliveries of the shape of the real ones."
        ),
    ] = Profile.operations,
    role: Annotated[
        str | None, typer.Option(help="Role of roles.yaml that you act in. Default: your keyring's, or operations.")
    ] = None,
    purpose: Annotated[
        str | None, typer.Option(help="What for, one of the role's purposes. Default: the only one.")
    ] = None,
    client: Annotated[list[str] | None, typer.Option(help="Only this client; may be given again.")] = None,
    as_of: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Day that ages are counted to. Default: today.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="safe_harbor: leave out groups of fewer equal members.")] = 1,
    seed: Annotated[int, typer.Option(help="qa: the same seed invents the same values.")] = 1,
    as_json: Json = False,
) -> int:
    """Write current members to a file, with the values that your role and keys open. Each export is recorded.

    Example: healthingest export --profile safe_harbor --k 11 --out members.csv --client acme
    """
    from healthingest.export import export_members
    from healthingest.places import Places
    from healthingest.platform import Platform
    from healthingest.private_file import check_target, write_private

    if profile is Profile.qa:
        return _generate(out, client, seed, as_json=as_json)
    check_target(Places.from_env(), out)
    done = export_members(
        Platform.open(), profile=profile.value, role=role, purpose=purpose, clients=client,
        as_of=as_of.date() if as_of else None, k=k,
    )  # fmt: skip
    write_private(done.frame, out)
    if as_json:
        said = {"file": str(out), "members": done.frame.height, "columns": done.frame.columns, "profile": profile.value}
        print_json(said | done.notes)
        return 0
    typer.echo(f"{done.frame.height} members written to {out}.")
    if left_out := done.notes.get("suppressed"):
        typer.echo(f"{left_out} were left out: fewer than {k} members have their values.")
    return 0


def _generate(out: Path, clients: list[str] | None, seed: int, *, as_json: bool) -> int:
    from healthingest.platform import Platform
    from healthingest.qa import generate

    made = list(generate(Platform.open(), out, clients=clients, seed=seed))
    records, bad = sum(m.records for m in made), sum(m.bad for m in made)
    if as_json:
        print_json({"folder": str(out), "profile": "qa", "files": len(made), "records": records, "bad": bad})
    else:
        typer.echo(f"{len(made)} deliveries with {records} invented records, {bad} of them bad, written to {out}.")
    return 0
