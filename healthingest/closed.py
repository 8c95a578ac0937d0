"""Rejected records that nobody need do anything about: their delivery was discarded, taken back, or read again.

What a record's state is follows from the deliveries of its name, so that it can be set again at any time.
"""

from healthingest.lake.lake import Lake
from healthingest.lake.reverts import is_odd
from healthingest.lake.silver import APPLIED, DISCARDED, Snapshot
from healthingest.model import Delivery
from healthingest.platform import Platform


def settle_records(platform: Platform, delivery: Delivery) -> None:
    """Set the states of the rejected records of a delivery and of the other readings of its bytes."""
    lake, client_id = platform.lake, delivery.client_id
    snapshot = Snapshot(lake.silver_of(client_id).snapshot(), client_id)
    readings = [one.delivery for one in lake.bronze.readings(delivery)]
    counting = [d.delivery_no for d in readings if snapshot.state(d.file_id) == APPLIED and not _gone(lake, d)]
    for one in readings:
        if snapshot.state(one.file_id) == DISCARDED:
            lake.quarantine.turn(client_id, one.file_id, {"open": "discarded"})
        elif _gone(lake, one):
            lake.quarantine.turn(client_id, one.file_id, {"open": "reverted", "released": "reverted"})
        elif max(counting, default=0) > one.delivery_no:
            lake.quarantine.turn(client_id, one.file_id, {"open": "released", "reverted": "released"})
        else:
            lake.quarantine.turn(client_id, one.file_id, {"reverted": "open", "released": "open"})
            _follow_discards(lake, one)


def _follow_discards(lake: Lake, delivery: Delivery) -> None:
    """What somebody gave up is discarded, and what somebody took up again is open."""
    said = lake.discards.of(delivery.client_id, delivery.origin)
    if gone := [number for number, word in said.items() if not word.open]:
        lake.quarantine.turn(delivery.client_id, delivery.file_id, {"open": "discarded"}, gone)
    if back := [number for number, word in said.items() if word.open]:
        lake.quarantine.turn(delivery.client_id, delivery.file_id, {"discarded": "open"}, back)


def _gone(lake: Lake, delivery: Delivery) -> bool:
    return is_odd(lake.reverts.number(delivery.client_id, delivery.file_id))
