"""What one look at the landing zone leads to, as a pure function: which get a run, which wait, which lead nowhere.

Total over any listing: no name, however bad, may raise here, since one failed tick would stop every client.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from healthingest.errors import UnroutableError
from healthingest.landing.discovery import Landed
from healthingest.landing.names import FileName


@dataclass
class Plan:
    """What to do with the files that are new since the last look."""

    candidates: list[tuple[Landed, FileName]] = field(default_factory=list)
    unroutable: list[tuple[Landed, UnroutableError]] = field(default_factory=list)
    #: Names of files whose client's config is broken.
    waiting: list[str] = field(default_factory=list)


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
