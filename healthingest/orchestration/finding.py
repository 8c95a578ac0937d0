"""How a tick finds new files: from what S3's queues told, and by listing the landing zone, now and then or always.

Nothing depends on a message: one that never comes, or a queue that is away, only makes the listing find the file.
"""

import hashlib
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from healthingest.errors import UnroutableError
from healthingest.landing.discovery import Landed
from healthingest.landing.notified import forget, hear
from healthingest.orchestration.seen import Seen, Told
from healthingest.platform import Platform
from healthingest.storage.objects import ObjectPath
from healthingest.storage.options import load_stores

#: Names that are left to the next tick; where there are more, it lists the landing zone.
_MOST_OWED = 200
#: Names that are taken from queues in each tick, however many are owed.
_LEAST_HEARD = 10


def find(platform: Platform, seen: Seen, configs: str, runs: int) -> tuple[list[Landed], list[str]]:
    """Files that are new, and what is to be said of the queues.

    `configs` stands for what is known of the clients: another one may make files lead somewhere that only a listing
    finds. `runs`: how many files a tick takes.

    Raises:
        ConfigError: storage.yaml cannot be used.
    """
    discovery, landing = load_stores(platform.places.configs).discovery, platform.places.landing
    if not discovery.sqs:
        seen.told = None
        return seen.new(landing), []
    told = seen.told = seen.told or Told()
    # The tick that noted them has ended, and what it led to is stored: its cursor is here.
    remarks, told.receipts = forget(discovery.sqs, told.receipts), {}
    if not isinstance(landing, ObjectPath) or landing.parts[0] != "s3:":
        return _all(seen, landing), [
            "storage.yaml names queues of S3, but the landing zone is elsewhere; it is listed."
        ]
    now, known = time.time(), _digest(configs, *map(str, platform.clients.problems))
    if told.known != known or not 0 <= now - told.listed < discovery.full_listing_every.total_seconds():
        told.known = known
        return _all(seen, landing, now), remarks
    heard = hear(discovery.sqs, landing, max(_LEAST_HEARD, runs - len(told.owed)))
    told.receipts, remarks = heard.receipts, [*dict.fromkeys([*remarks, *heard.silent]), *heard.remarks]
    if heard.silent:
        return _all(seen, landing, now), remarks
    return seen.named([*told.owed, *heard.names, *_led_somewhere(seen, platform)], landing), remarks


def owe(seen: Seen, looked_at: Sequence[Landed], waiting: Collection[str]) -> None:
    """Note, at a tick's end, what it found and did not decide on, but for what only another config can help.

    The next tick begins with that; where it is too much, it lists the landing zone once more.
    """
    if not seen.told:
        return
    owed = [f.name for f in looked_at if seen.decided(f) is None and f.name not in waiting]
    if seen.crowded or len(owed) > _MOST_OWED:
        seen.told.listed, owed = 0.0, []
    seen.told.owed = owed


def _all(seen: Seen, landing: Path, now: float = 0.0) -> list[Landed]:
    found = seen.new(landing)
    if seen.told:
        seen.told.listed = now
    return found


def _led_somewhere(seen: Seen, platform: Platform) -> list[str]:
    """Files that led nowhere and now would: the day in their names has come, say."""
    return [name for name in seen.led_nowhere() if leads_somewhere(platform, name)]


def leads_somewhere(platform: Platform, name: str) -> bool:
    """Whether a file of that name now leads to a client and a partition."""
    try:
        platform.route(name)
    except UnroutableError:
        return False
    return True


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
