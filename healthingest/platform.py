"""One installation, opened: its places, clients, keys and tables. The first thing every command and run makes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from healthingest.contracts.clients import Client, ClientSet, load_client, stamp_of
from healthingest.errors import ConfigError
from healthingest.lake.lake import Lake
from healthingest.lake.registrations import Registrations, known_clients
from healthingest.lake.silver import Snapshot
from healthingest.lake.whereabouts import require_here
from healthingest.landing.names import FileName, parse_file_name
from healthingest.model import Delivery
from healthingest.places import Places, today
from healthingest.privacy import tokens
from healthingest.privacy.keyring import Keyring
from healthingest.privacy.keyring_file import give_keys, open_keyring, stamp
from healthingest.privacy.roles import actor
from healthingest.storage.objects import ObjectPath
from healthingest.storage.probe import require_usable


@dataclass(frozen=True)
class Platform:
    """Everything a delivery's way needs."""

    places: Places
    clients: ClientSet
    keyring: Keyring
    lake: Lake
    #: Clients as deliveries are pinned to them, by client and config digest: a history has few of them.
    _pinned: dict[tuple[str, str, str], Client] = field(default_factory=dict, compare=False, repr=False)
    #: Clients whose YAML has changed since.
    _fresh: dict[str, Client] = field(default_factory=dict, compare=False, repr=False)
    #: Contracts that were registered since.
    _published: set[str] = field(default_factory=set, compare=False, repr=False)
    #: Tells the keyring's file as it was opened.
    _stamp: tuple[int, int, int] = field(default=(0, 0, 0), compare=False, repr=False)

    @classmethod
    def open(cls, places: Places | None = None, *, whole: bool = True) -> "Platform":
        """Open the installation that the environment (or `places`) names.

        `whole=False` is for building again what is gone: it opens an installation that lacks tables.

        Raises:
            KeyringError: the keyring is missing, damaged or not the one the data was written with.
            IncompleteError: a table is gone that others say was there.
            UsageError: a HEALTHINGEST_* variable holds something that is not allowed.
            StorageError: the object store that holds the output folder cannot be used; or the installation has moved.
        """
        places = places or Places.from_env()
        if isinstance(places.output, ObjectPath):
            require_usable(places.output, prod=places.env == "prod")
        require_here(places.output)
        clients = known_clients(places)
        groups = {client_id: clients.clients[client_id].contract.groups for client_id in clients.active}
        keyring, seen = _keyring_of(places, groups)
        lake = Lake.of(places, keyring, clients.layouts)
        if whole:
            lake.require_whole()
        return cls(places, clients, keyring, lake, _stamp=seen)

    def current(self, client_id: str) -> "Platform":
        """The same with the keys that a client has now: they may have been rotated since this was opened.

        To be called with the client's lock held, shared or alone: then they stay what they are.

        Raises:
            StorageError: the installation has moved to another place meanwhile.
        """
        require_here(self.places.output)
        now = self if stamp(self.places) == self._stamp else Platform.open(self.places, whole=False)
        held = now.keyring.keys.get(client_id, {}).get("member_token", {})
        if len(held) <= 1:
            return now
        silver = now.lake.silver_of(client_id)
        noted = Snapshot(silver.snapshot(), client_id).generation if silver.exists() else None
        in_force = noted or max(held)
        if now.keyring.in_force.get(client_id) == in_force:
            return now
        keyring = replace(now.keyring, in_force={**now.keyring.in_force, client_id: in_force})
        return replace(now, keyring=keyring, lake=Lake.of(now.places, keyring, now.clients.layouts))

    def route(self, file_name: str) -> FileName:
        """Which client and partition a file name belongs to.

        Raises:
            UnroutableError: none.
        """
        return parse_file_name(file_name, self.clients.active, first_date=self.places.first_date, today=today())

    def pinned_client(self, delivery: Delivery) -> Client:
        """The client as its config was when the delivery was registered: what every attempt at it must use.

        Raises:
            ConfigError: the pinned contract is no longer in the registry.
        """
        key = (delivery.client_id, delivery.contract, delivery.config_hash)
        if key not in self._pinned:
            self._pinned[key] = Client.from_pin(self.lake.bronze.pinned_config(delivery), self.places.configs)
        return self._pinned[key]

    def present_client(self, client_id: str) -> Client:
        """The client as its YAML is at this moment: it may have been changed since this was opened.

        To be called with the client's lock held, shared or alone: an approval changes the YAML under it, alone.

        Raises:
            ConfigError: what it says now cannot be used; the file waits.
        """
        client = self._fresh.get(client_id) or self.clients.clients[client_id]
        if client.file is None or stamp_of(client.file[0]) == client.file[1]:
            return client
        published = Registrations.at(self.places.output).digests()
        fresh = load_client(client.file[0], self.places.configs, published)
        if fresh.client_id != client_id:
            raise ConfigError(f"it is no longer the file of {client_id}.", file=client.file[0], key="client_id")
        if fresh.contract.groups - client.contract.groups:  # keys for them are given to whoever opens the installation
            Platform.open(self.places, whole=False)
        self._fresh[client_id] = fresh
        return fresh

    def publish(self, client: Client) -> None:
        """Register the client's contract with the first delivery that meets it: from then on its text stands.

        Raises:
            ConfigError: another text of it was registered since this was opened.
        """
        name = client.config.contract
        if name in self.clients.published or name in self._published:
            return
        registrations = Registrations.at(self.places.output)
        registrations.publish(self.places.configs, name, by=actor(), reason=f"first met by {client.client_id}")
        self._published.add(name)

    def waits_for(self, file_name: str) -> ConfigError | None:
        """What is wrong with the config of the client that a file seems to be from; such a file waits."""
        return next((p for p in self.clients.problems if file_name.startswith(f"{p.file.stem}_")), None)

    def file_id(self, path: Path, name: str | None = None) -> str:
        """The id a landed file has as a delivery, under its own or another name; reads its bytes once.

        Raises:
            UnroutableError: it cannot be read.
        """
        return tokens.file_id(self.keyring, name or path.name, self.lake.bronze.digest(path))


def _keyring_of(places: Places, groups: Mapping[str, Iterable[str]]) -> tuple[Keyring, tuple[int, int, int]]:
    """The keyring, with keys for each client and its column groups, and the stamp of the very file it was read from.

    A rotation that came between reading and stamping it would never be noticed: data would go under keys that are gone.
    """
    while True:
        seen = stamp(places)
        keyring = give_keys(places, open_keyring(places), groups)
        if stamp(places) == seen:
            return keyring, seen
