"""Deliveries read once more, as their clients' present configs read them: after a config or contract was mended.

A delivery is pinned to the config that it was registered with, for good. So reading it again makes another delivery of
its name, of the same bytes, which replaces the earlier one by the usual way: whoever builds silver from bronze finds
both, and comes to the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from healthingest.bulk import GROUP
from healthingest.contracts.clients import Client
from healthingest.errors import ConfigError, PermanentError, UsageError
from healthingest.ingest import ingest_many
from healthingest.lake.bronze import Registered
from healthingest.members import check_as
from healthingest.model import Counts, Outcome
from healthingest.platform import Platform
from healthingest.silence import without_erased


@dataclass(frozen=True)
class Foretold:
    """What reading a delivery again would make of it."""

    registered: Registered
    #: What became of it, and the records that it had accepted and rejected.
    status: str
    before: Counts
    after: Counts
    #: Why it could not be read at all.
    message: str | None = None

    @property
    def released(self) -> int:
        """Records that would be accepted, and are not."""
        return max(0, self.after.accepted - self.before.accepted)

    @property
    def refused(self) -> int:
        """Accepted records that would not be."""
        return max(0, self.before.accepted - self.after.accepted)


def stale(
    platform: Platform, client_id: str, names: Sequence[str] = (), client: Client | None = None
) -> list[Registered]:
    """The latest delivery of each file name, or of some, that another config than the present one, or `client`, read.

    Of a name whose latest ones were taken back, the one before them, which counts instead.

    Raises:
        UsageError: the client cannot be served now, or has no delivery of such a name.
    """
    if client is None and client_id in platform.clients.clients:
        client = platform.present_client(client_id)
    if client is None:
        known = ", ".join(platform.clients.clients) or "none"
        raise UsageError(f"There is no client {client_id!r} whose config can be used; there is {known}.")
    latest = {r.delivery.file_name: r for r in platform.lake.bronze.latest(client_id)}
    if unknown := [name for name in names if name not in latest]:
        raise UsageError(
            f"{client_id} has no delivery {unknown[0]!r}; healthingest quarantine list shows those it has."
        )
    found = [one for name in names or latest if (one := _standing(platform, latest[name], client))]
    decided = platform.lake.audit.decided([r.delivery.file_id for r in found])
    other = [
        r for r in found
        if r.delivery.config_hash != client.config_hash
        and decided.get(r.delivery.file_id) not in {None, "discarded"}
    ]  # fmt: skip
    return sorted(other, key=lambda r: r.delivery.rank)


def _standing(platform: Platform, latest: Registered, client: Client) -> Registered | None:
    """The latest delivery of a name that nobody took back; None where its reading by this config is what was."""
    client_id, bronze = latest.delivery.client_id, platform.lake.bronze
    slot = sorted(bronze.slot(client_id, latest.delivery.file_name).items(), reverse=True)
    gone = []
    for found in (bronze.find(client_id, file_id) for _, file_id in slot):
        if found and platform.lake.reverts.gone(client_id, found.delivery.file_id):
            gone.append((found.delivery.origin, found.delivery.config_hash))
        elif found:
            return None if (found.delivery.origin, client.config_hash) in gone else found
    return None


def foretell(platform: Platform, registered: Sequence[Registered], client: Client | None = None) -> Iterator[Foretold]:
    """What would become of each under its client's present config, or that of `client`; writes nothing."""
    rows = platform.lake.audit.rows([r.delivery.file_id for r in registered])
    for one in registered:
        row = rows[one.delivery.file_id]
        before = Counts(**{name: row[name] or 0 for name in Counts.names()})
        wanted = client or platform.clients.clients[one.delivery.client_id]
        now = platform.current(one.delivery.client_id)
        try:
            checked = check_as(now, one, wanted)
        except (PermanentError, ConfigError) as error:
            yield Foretold(one, row["status"], before, Counts(), str(error))
        else:
            after = without_erased(now, one.delivery.client_id, checked).counts
            yield Foretold(one, row["status"], before, after)


def read_again(platform: Platform, registered: Sequence[Registered], *, run_id: str) -> Iterator[list[Outcome]]:
    """Read them again, in the order of the sequence, some at a time. May be stopped, and started again at will."""
    for at in range(0, len(registered), GROUP):
        deliveries = []
        for one in registered[at : at + GROUP]:
            client_id = one.delivery.client_id
            with platform.lake.exclusion.shared(client_id):
                client = platform.present_client(client_id)
                now = platform.current(client_id)
                platform.publish(client)
                deliveries.append(now.lake.bronze.again(one, client).delivery)
        yield ingest_many(platform, deliveries, run_id=run_id)
