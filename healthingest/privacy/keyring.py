"""The keyring in memory: which keys there are, for whom, and the keys derived from them by HKDF.

What belongs here: holding, narrowing and deriving. What does not: the file (`keyring_file`) and using the keys
(`tokens`, `seal`, `vault_file`). Every client has keys of its own, so that one client's can be destroyed.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from healthingest.errors import KeyringError

#: Whose keys the installation's own are; no client_id can be this.
SHARED = "*"
#: What each of the installation's own keys is for; one never serves two purposes.
SHARED_PURPOSES = ("file", "audit", "certificate")
#: What each key of a client is for, the vault's column groups aside.
CLIENT_PURPOSES = ("member_token", "content_hash", "rejected", "bronze", "erasure", "vault/footer")
#: Those whose generation in force is the data's to say: rows of silver are found by what they make.
TOKEN_PURPOSES = ("member_token", "content_hash")
#: What is never rotated: the ids that the ledger's entries were made from are gone.
LASTING_PURPOSES = ("erasure",)
KEY_BYTES = 32

#: Scope (a client, or SHARED) -> purpose -> generation -> key.
Keys = Mapping[str, Mapping[str, Mapping[int, bytes]]]


def vault_purpose(group: str) -> str:
    """The purpose of a column group's key."""
    return f"vault/{group}"


@dataclass(frozen=True)
class Keyring:
    """Loaded keys; never printed, pickled or logged."""

    keyring_id: str
    created_at: str
    keys: Keys = field(repr=False)
    #: The role that it was made for; None for the installation's own.
    role: str | None = None
    #: Clients whose keys were destroyed, with the day.
    destroyed: Mapping[str, str] = field(default_factory=dict)
    #: Client -> the generation that its tokens and hashes are made with; only while its keys are being rotated.
    in_force: Mapping[str, int] = field(default_factory=dict)

    def derive(self, purpose: str, client: str = SHARED, *context: str) -> bytes:
        """32 bytes for one purpose, client and context (file, ...), by HKDF-SHA256 (RFC 5869).

        Raises:
            KeyringError: this keyring holds no such key.
        """
        return self.derive_at(self.generation(purpose, client), purpose, client, *context)

    def generation(self, purpose: str, client: str = SHARED) -> int:
        """The generation that a key is used in: the latest, but of tokens that in force.

        Raises:
            KeyringError: this keyring holds no such key.
        """
        held = self._generations(purpose, client)
        if purpose not in TOKEN_PURPOSES or len(held) == 1:
            return max(held)
        if client not in self.in_force:
            raise KeyringError(f"The keys of {client} are being rotated: open the installation anew.")
        return self.in_force[client]

    def derive_at(self, generation: int, purpose: str, client: str = SHARED, *context: str) -> bytes:
        """The same under one generation of the key.

        Raises:
            KeyringError: this keyring does not hold it.
        """
        held = self._generations(purpose, client)
        if generation not in held:
            raise KeyringError(
                f"This keyring holds no generation {generation} of the keys of {client}; restore the latest backup, or "
                "have the role's keyring issued anew."
            )
        info = "\x1f".join(("healthingest/2", purpose, client, *context)).encode()
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(held[generation])

    def derive_all(self, purpose: str, client: str = SHARED, *context: str) -> list[bytes]:
        """The same under every generation of the key, the latest first: what was made before may still be there.

        Raises:
            KeyringError: this keyring holds no such key.
        """
        held = sorted(self._generations(purpose, client), reverse=True)
        return [self.derive_at(generation, purpose, client, *context) for generation in held]

    def latest(self, client: str) -> int:
        """The latest generation of a client's keys; 0 if it has none that are ever rotated."""
        held = self.keys.get(client, {})
        return max((g for p, versions in held.items() if p not in LASTING_PURPOSES for g in versions), default=0)

    def _generations(self, purpose: str, client: str) -> Mapping[int, bytes]:
        held = self.keys.get(client, {}).get(purpose)
        if not held:
            raise KeyringError(self._lacks(purpose, client))
        return held

    def audit_key(self, role: str) -> bytes:
        """The key of a role's entries in the chain of events; "" is the system's own.

        Raises:
            KeyringError: this keyring is another role's.
        """
        if not self.holds("audit") and (issued := self.keys.get(SHARED, {}).get(f"audit/{role}")):
            return issued[max(issued)]
        return self.derive("audit", SHARED, role)

    def holds(self, purpose: str, client: str = SHARED) -> bool:
        """Whether values of that purpose can be opened."""
        return bool(self.keys.get(client, {}).get(purpose))

    @property
    def clients(self) -> list[str]:
        """Clients that it has keys of."""
        return sorted(scope for scope in self.keys if scope != SHARED)

    def narrowed(self, purposes: Collection[str], clients: Collection[str] | None = None) -> "Keyring":
        """The same with those purposes and clients only (None: all clients); it can never open more."""
        kept = {
            scope: {purpose: versions for purpose, versions in held.items() if purpose in purposes}
            for scope, held in self.keys.items()
            if scope == SHARED or clients is None or scope in clients
        }
        return replace(self, keys=kept)

    def _lacks(self, purpose: str, client: str) -> str:
        if client in self.destroyed:
            return f"The keys of {client} were destroyed on {self.destroyed[client]}; nothing of it can be read."
        whose = "the installation" if client == SHARED else client
        return (
            f"This keyring holds no key for {purpose} of {whose}; use a keyring that may open it, or restore its "
            "latest backup if it should."
        )

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Refuse to be pickled: a pickle would carry the keys to disk."""
        raise TypeError("a keyring cannot be pickled")
