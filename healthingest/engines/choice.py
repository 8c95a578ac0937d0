"""Which engine works on a delivery: what its client's YAML says now, whatever the delivery is pinned to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from healthingest.lake.rewrite import Changes
from healthingest.lake.silver import Silver, Snapshot
from healthingest.model import Delivery
from healthingest.platform import Platform

if TYPE_CHECKING:
    from healthingest.records.check import Elsewhere


@contextmanager
def checking_elsewhere(platform: Platform, delivery: Delivery) -> Iterator["Elsewhere | None"]:
    """What checks a delivery's batches on other machines; None where that is this process."""
    remote = _remote(platform, [delivery])
    if remote is None:
        yield None
        return
    from healthingest.engines.exchange import exchange_of
    from healthingest.engines.spark import Check, session_of

    with session_of(remote) as spark, exchange_of(platform, delivery.client_id) as exchange:
        yield Check(spark, exchange, delivery)


@contextmanager
def merging(
    platform: Platform, silver: Silver, snapshot: Snapshot, deliveries: Sequence[Delivery]
) -> Iterator[Changes]:
    """What gathers the changes that deliveries of one client make to silver, and commits them."""
    remote = _remote(platform, deliveries)
    if remote is None or silver.partition_by[-1] != "_bucket":  # rows that move between dates meet in no worker
        with silver.change(snapshot) as here:
            yield here
        return
    from healthingest.engines.exchange import exchange_of
    from healthingest.engines.spark import Merge, session_of

    with (
        session_of(remote) as spark,
        exchange_of(platform, snapshot.client_id) as exchange,
        Merge(spark, exchange, silver, snapshot) as there,
    ):
        yield there


def _remote(platform: Platform, deliveries: Sequence[Delivery]) -> str | None:
    """The server that is to work on them; None: nobody but this process."""
    client = platform.clients.clients.get(deliveries[0].client_id)
    if client is None:
        return None
    engine = platform.present_client(client.client_id).config.engine
    large = engine.above is None or any(d.file_bytes > engine.above for d in deliveries)
    return engine.remote if engine.kind == "spark" and large else None
