"""Takes ingested files out of the landing zone, for clients whose config says so: archived, or deleted.

A file goes only if its very bytes are in silver and bronze gives them back; whatever else lies there stays.
"""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from healthingest.contracts.clients import CleanSource
from healthingest.errors import HealthingestError, UnroutableError
from healthingest.landing.discovery import is_complete, list_landing
from healthingest.landing.names import printable
from healthingest.platform import Platform
from healthingest.storage.objects import ObjectPath


def clean_landing(platform: Platform) -> Iterator[str]:
    """Do so; yields a sentence for each file that went.

    Not in an object store: what lands between the last look and the deletion would be lost there unseen. Its lifecycle
    rules do it.
    """
    if isinstance(platform.places.landing, ObjectPath):
        return
    for landed in list_landing(platform.places.landing):
        try:
            client_id = platform.route(landed.name).client_id
        except UnroutableError:
            continue
        clean = platform.clients.clients[client_id].config.clean_source
        if not isinstance(clean, CleanSource) or not is_complete(landed, time.time_ns()):
            continue
        if time.time() - landed.changed_ns / 1e9 < clean.after.total_seconds():
            continue
        archive = platform.places.landing.parent / "archive" / client_id if clean.archive_after is not None else None
        if _take_away(platform, landed.path, client_id, archive):
            yield f"{printable(landed.name)} {'moved to the archive' if archive else 'deleted'}"


def _take_away(platform: Platform, path: Path, client_id: str, archive: Path | None) -> bool:
    file_id = platform.file_id(path)
    audit = platform.lake.audit.row(file_id)
    if not audit or audit["status"] != "succeeded" or not platform.lake.bronze.is_whole(client_id, file_id):
        return False
    aside = path.with_name(f".{path.name}.cleaning")  # hidden, so that nobody takes it
    path.rename(aside)
    if platform.file_id(aside, path.name) != file_id:  # the next version landed between the look and the grasp
        _put_back(aside, path)
        return False
    if archive:
        archive.mkdir(parents=True, exist_ok=True, mode=0o700)
        shutil.move(aside, archive / f"{audit['delivery_no']}-{path.name}")
    else:
        aside.unlink()
    return True


def _put_back(aside: Path, path: Path) -> None:
    try:
        os.link(aside, path)
    except FileExistsError:
        raise HealthingestError(
            f"{printable(path.name)} landed twice while it was looked at; the earlier one is {aside.name}."
        ) from None
    aside.unlink()
