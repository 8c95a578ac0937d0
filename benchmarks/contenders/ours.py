"""This system: the command, from the landed file to the audit row, everything on."""

import io
import json
import os
import sys
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

from benchmarks.contenders import Contender, Loaded
from benchmarks.measure import install

_LANDING = Path("home", "input", "raw")
_QUIET_SECONDS = 2.2


def land(root: Path, files: list[Path]) -> None:
    """Put files into the landing zone, long enough ago that nobody waits whether they still grow."""
    if not (root / "home").exists():
        install(root, sorted({file.name.split("_")[0] for file in files}))
    for file in files:
        (root / _LANDING / file.name).hardlink_to(file)
    time.sleep(_QUIET_SECONDS)


def load(root: Path, files: list[Path]) -> Loaded:
    """As `healthingest ingest FILE...` in an installation below the folder."""
    os.environ |= {"HEALTHINGEST_HOME": str(root / "home"), "HEALTHINGEST_KEYRING": str(root / "keys" / "keyring.json")}
    from healthingest.cli import main

    said = io.StringIO()
    sys.argv = ["healthingest", "ingest", *(str(root / _LANDING / file.name) for file in files), "--json"]
    with redirect_stdout(said), suppress(SystemExit):
        main()
    done = json.loads(said.getvalue())["files"]
    if bad := [file["message"] for file in done if file["status"] != "succeeded"]:
        raise RuntimeError(f"{len(bad)} files were not taken: {bad[0]}")
    return Loaded(sum(file["records"] for file in done), sum(file["rejected"] for file in done))


CONTENDER = Contender("healthingest", ("healthingest",), "", load, "home/output/silver", land=land)
