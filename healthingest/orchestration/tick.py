"""What one look at the landing zone leads to, as a pure function: which get a run, which wait, which lead nowhere.

Total over any listing: no name, however bad, may raise here, since one failed tick would stop every client.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from healthingest.errors import UnroutableError
from healthingest.landing.discovery import Landed
from healthingest.landing.names import FileName

#: File name -> (size, changed_ns, what was decided): the files of the landing zone that need no second look.
Seen = dict[str, tuple[int, int, str]]
SUBMITTED, UNROUTABLE = "submitted", "unroutable"


@dataclass
class Plan:
    """What to do with the files that are new since the last look."""

    candidates: list[tuple[Landed, FileName]] = field(default_factory=list)
    unroutable: list[tuple[Landed, UnroutableError]] = field(default_factory=list)
    #: Names of files whose client's config is broken.
    waiting: list[str] = field(default_factory=list)


def new_files(listing: Iterable[Landed], seen: Mapping[str, tuple[int, int, str]]) -> list[Landed]:
    """Files that changed since the last look, and those that led nowhere: a new client may make them lead somewhere."""
    return [f for f in listing if seen.get(f.name) != (f.size, f.changed_ns, SUBMITTED)]


def plan(files: Iterable[Landed], route: Callable[[str], FileName], waits: Callable[[str], object]) -> Plan:
    """Sort complete files by where they lead; `waits` tells of a name that leads nowhere whether that may pass."""
    result = Plan()
    for landed in files:
        try:
            result.candidates.append((landed, route(landed.name)))
        except UnroutableError as error:
            if waits(landed.name):
                result.waiting.append(landed.name)
            else:
                result.unroutable.append((landed, error))
    return result


def load_seen(cursor: str | None) -> Seen:
    """Read a cursor; one that cannot be read is an empty one, since every step behind it may be repeated."""
    try:
        raw = json.loads(cursor or "{}")
        return {str(name): (int(size), int(changed), str(what)) for name, (size, changed, what) in raw.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def dump_seen(seen: Seen, listing: Iterable[Landed]) -> str:
    """Write a cursor, with those files only that still lie in the landing zone."""
    present = {f.name for f in listing}
    return json.dumps({name: value for name, value in sorted(seen.items()) if name in present})
