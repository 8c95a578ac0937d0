"""The partitions of all four assets: client by date, keys like `acme|2025-01-06`.

Clients are static, from `client_configs/`: unknown ones are refused, and the CLI works without a Dagster database.
"""

from collections.abc import Sequence
from datetime import date

import dagster as dg

from healthingest.places import Places

#: Stands for "no client yet": Dagster refuses a dimension without keys, and an empty start must load.
NO_CLIENT = "no-client-configured"


def partitions(places: Places, clients: Sequence[str]) -> dg.MultiPartitionsDefinition:
    """Client by day, today included, in UTC."""
    days = dg.DailyPartitionsDefinition(start_date=places.first_date.isoformat(), timezone="UTC", end_offset=1)
    return dg.MultiPartitionsDefinition(
        {"client": dg.StaticPartitionsDefinition(list(clients) or [NO_CLIENT]), "date": days}
    )


def partition_key(client_id: str, creation_date: date) -> dg.MultiPartitionKey:
    """The key of one client and day; never format it by hand, Dagster sorts dimensions by name."""
    return dg.MultiPartitionKey({"client": client_id, "date": creation_date.isoformat()})
