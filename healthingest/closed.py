"""What becomes of rejected records: open, given up, released by a later reading, or taken back with their delivery.

A record's state follows from the deliveries of its name and from people's words, so that it can be set again at any
time, and a table that is built again comes to the same.
"""

from healthingest.lake.discards import Span
from healthingest.lake.lake import Lake
from healthingest.lake.silver import APPLIED, DISCARDED, Snapshot
from healthingest.model import Delivery
from healthingest.platform import Platform


def settle_records(platform: Platform, delivery: Delivery) -> None:
    """Set the states of the rejected records of a delivery and of the other readings of its bytes."""
    lake, client_id = platform.lake, delivery.client_id
    snapshot = Snapshot(lake.silver_of(client_id).snapshot(), client_id)
    readings = [one.delivery for one in lake.bronze.readings(delivery)]
    counting = [
        d.delivery_no
        for d in readings
        if snapshot.state(d.file_id) == APPLIED and not lake.reverts.gone(client_id, d.file_id)
    ]
    given_up = _given_up(lake, delivery)
    for one in readings:
        if snapshot.state(one.file_id) == DISCARDED:
            state = "discarded"
        elif lake.reverts.gone(client_id, one.file_id):
            state = "reverted"
        else:
            state = "released" if max(counting, default=0) > one.delivery_no else "open"
        lake.quarantine.settle(client_id, one.file_id, state, given_up)


def _given_up(lake: Lake, delivery: Delivery) -> set[Span]:
    """Where the records stand that somebody gave up, and nobody took up again."""
    return {span for span, word in lake.discards.of(delivery.client_id, delivery.origin).items() if not word.open}
