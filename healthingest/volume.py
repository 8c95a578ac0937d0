"""What a delivery adds, changes and drops against the one before it, and whether that is more than its client allows.

What came before depends on the order of arrival, and silver must not: so the gate's word on a delivery is noted the
first time it is asked, and counts from then on, however often silver is built again.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl

from healthingest.contracts.clients import Client, Volume
from healthingest.lake.decisions import put_once, read_word
from healthingest.lake.sightings import only_active
from healthingest.lake.silver import Snapshot
from healthingest.members import Members
from healthingest.model import Delivery
from healthingest.platform import Platform
from healthingest.privacy.tokens import compact
from healthingest.quality import Judgement


@dataclass(frozen=True)
class Change:
    """Members that a delivery adds, changes and drops against another one."""

    #: File name of that one, and how many members it named.
    against: str
    members: int
    added: int
    changed: int
    dropped: int

    def share(self, count: int) -> float:
        """A count as a share of the members of the delivery before; 0.0 if it named none."""
        return count / self.members if self.members else 0.0

    @property
    def sentence(self) -> str:
        """All three, with their shares."""
        told = [
            f"{count:,} {what} ({self.share(count):.1%})"
            for what, count in (("added", self.added), ("changed", self.changed), ("dropped", self.dropped))
        ]
        return f"Against the {self.members:,} members of {self.against}: {', '.join(told)}."


def against(own: pl.DataFrame, name: str, before: pl.DataFrame) -> Change:
    """The change from one delivery's members (token, hash) to another's."""
    both = own.join(before, on="token", suffix="_before")
    changed = int((both["hash"] != both["hash_before"]).sum())
    return Change(name, before.height, own.height - both.height, changed, before.height - both.height)


def before(platform: Platform, delivery: Delivery) -> tuple[str, pl.DataFrame] | None:
    """The client's active delivery of another name that is next below in the sequence: its name, and token and hash.

    A name that is sent again is compared with what is below both.
    """
    silver = platform.lake.silver_of(delivery.client_id)
    if not silver.exists():
        return None
    snapshot = Snapshot(silver.snapshot(), delivery.client_id)
    active = only_active(
        platform.lake.sightings.of_client(
            delivery.client_id, snapshot.generation, ["file_id", "file_name", "member_token", "content_hash"]
        ),
        lambda some: snapshot.active(some, platform.lake.bronze),
    )
    ranks = {}
    for file_id in active["file_id"].unique():
        found = platform.lake.bronze.find(delivery.client_id, file_id)
        if found and found.delivery.file_name != delivery.file_name and found.delivery.rank < delivery.rank:
            ranks[file_id] = found.delivery.rank
    if not ranks:
        return None
    last = max(ranks, key=lambda file_id: ranks[file_id])
    rows = active.filter(pl.col("file_id") == last)
    return ranks[last][2], rows.select(token=compact("member_token"), hash=compact("content_hash"))


def over(limits: Volume, change: Change) -> list[str]:
    """A sentence for each limit that a change breaks."""
    named = (
        ("adds", change.added, limits.max_added),
        ("changes", change.changed, limits.max_changed),
        ("drops", change.dropped, limits.max_dropped),
    )
    return [
        f"Against {change.against}, the delivery before, the file {what} {count:,} members "
        f"({change.share(count):.1%} of {change.members:,}; at most {most:.1%} is expected)."
        for what, count, most in named if most is not None and change.share(count) > most
    ]  # fmt: skip


def gated(platform: Platform, delivery: Delivery, client: Client, members: Members, judged: Judgement) -> Judgement:
    """The judgement of a delivery together with the gate's, which is noted unless it was before."""
    limits, place = client.config.quality.volume, _place(platform, delivery)
    # What is read again or mended was decided by the delivery that was received.
    if limits is None or delivery.reread_of is not None:
        return judged
    if not place.exists():
        earlier = before(platform, delivery)
        change = against(members.keys, *earlier) if earlier else None
        said = over(limits, change) if change else []
        holds = bool(said) and limits.on_breach == "hold"
        put_once(place, {"said": said, "holds": holds, "change": asdict(change) if change else None})
    return as_noted(platform, delivery, judged)


def as_noted(platform: Platform, delivery: Delivery, judged: Judgement) -> Judgement:
    """The judgement of a delivery together with what the gate said of it, if it ever did."""
    for kind in ("", ".absence"):
        noted: Mapping[str, Any] | None = read_word(_place(platform, delivery, kind))
        if noted is not None:
            said = dict.fromkeys((*judged.file, *noted["said"]))
            judged = replace(judged, file=tuple(said), holds=judged.holds or noted["holds"])
    return judged


def note_breach(platform: Platform, delivery: Delivery, said: str) -> None:
    """Note, once, what of a delivery that was taken somebody should accept."""
    put_once(_place(platform, delivery, ".absence"), {"said": [said], "holds": False})


def _place(platform: Platform, delivery: Delivery, kind: str = "") -> Path:
    return platform.places.output / "checkpoint" / "gates" / delivery.client_id / f"{delivery.file_id}{kind}.json"
