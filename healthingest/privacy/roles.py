"""Roles: which column groups, clients and purposes a person's role grants, from `client_configs/roles.yaml`.

A role only ever narrows: what is read is decided by the keys that are left. Without a file there are the two roles
of `BUILT_IN`.
"""

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, StrictBool, StrictStr, field_validator

from healthingest.contracts import strict_yaml
from healthingest.contracts.contract import Group
from healthingest.contracts.rules import Strict
from healthingest.errors import UsageError
from healthingest.privacy.keyring import SHARED, Keyring, vault_purpose

FILE = "roles.yaml"
#: Characters of the reason of a decision that is kept for good.
LONGEST_REASON = 500
_NAME = r"^[a-z][a-z0-9_]{0,30}$"


class Role(Strict):
    """What one role grants."""

    description: StrictStr = ""
    #: Column groups whose values it reads; all others come back as null.
    groups: list[Group] | Literal["*"] = Field(default_factory=list)
    #: Clients whose rows it reads.
    clients: list[StrictStr] | Literal["*"] = "*"
    #: What it may be used for; whoever reads says which.
    purposes: list[StrictStr] = Field(min_length=1)
    #: Whether it reads rejected records as they were received.
    rejected: StrictBool = False

    @field_validator("purposes")
    @classmethod
    def _plain(cls, value: list[str]) -> list[str]:
        if not all(purpose and purpose.isprintable() for purpose in value):
            raise ValueError("a purpose is a word or two")
        return value

    def narrow(self, keyring: Keyring) -> Keyring:
        """The keyring with what the role grants, as far as the keyring holds it."""
        held = {purpose for keys in keyring.keys.values() for purpose in keys}
        groups = {p for p in held if p.startswith("vault/")} if self.groups == "*" else map(vault_purpose, self.groups)
        granted = {"vault/footer", *groups, *(["rejected"] if self.rejected else [])}
        return keyring.narrowed(granted, None if self.clients == "*" else self.clients)


class _Roles(Strict):
    roles: dict[StrictStr, Role] = Field(min_length=1)

    @field_validator("roles")
    @classmethod
    def _named(cls, value: dict[str, Role]) -> dict[str, Role]:
        for name in value:
            if not re.fullmatch(_NAME, name):
                raise ValueError("a role's name has lower-case letters, digits and '_'")
        return value


#: The roles of an installation that has no roles.yaml.
BUILT_IN: Mapping[str, Role] = {
    "operations": Role(groups="*", rejected=True, purposes=["operations"], description="Runs the pipeline."),
    "analyst": Role(purposes=["analysis"], description="Reads silver; no value that names a person."),
}


def load_roles(configs: Path) -> Mapping[str, Role]:
    """All roles by name.

    Raises:
        ConfigError: roles.yaml cannot be used; then nobody reads anything.
    """
    file = configs / FILE
    return strict_yaml.load(file).parse(_Roles).roles if file.exists() else BUILT_IN


def role_of(configs: Path, name: str) -> Role:
    """One role.

    Raises:
        UsageError: there is none of that name.
        ConfigError: as `load_roles`.
    """
    roles = load_roles(configs)
    if name not in roles:
        raise UsageError(f"There is no role {name}; there is {', '.join(roles)}.")
    return roles[name]


def role_named(configs: Path, name: str, purpose: str | None) -> tuple[Role, str]:
    """A role and the purpose it is used for: the one given, or the only one it has.

    Raises:
        UsageError: no such role, or not for that purpose.
        ConfigError: as `load_roles`.
    """
    role = role_of(configs, name)
    if purpose is None and len(role.purposes) == 1:
        return role, role.purposes[0]
    if purpose not in role.purposes:
        raise UsageError(f"The role {name} is for {', '.join(role.purposes)}; say which as its purpose.")
    return role, purpose


def issue(keyring: Keyring, name: str, role: Role) -> Keyring:
    """The keyring that a person of this role gets: what it may open, and a key to sign its own events with."""
    narrow = role.narrow(keyring)
    keys = {scope: held for scope, held in narrow.keys.items() if scope != SHARED and held}
    own = {f"audit/{name}": {1: keyring.derive("audit", SHARED, name)}}
    return Keyring(keyring.keyring_id, keyring.created_at, {SHARED: own} | keys, role=name)


def reason_given(reason: str, longest: int, *, needed: bool = True) -> str:
    """Why somebody acts, as it is kept: one line of text.

    Raises:
        UsageError: it is not, or is missing where it is needed.
    """
    if len(reason) > longest or not reason.isprintable() or (needed and not reason.strip()):
        raise UsageError(f"The reason must be one line of text, up to {longest} characters; nothing was done.")
    return reason.strip()


def decision_reason(reason: str) -> str:
    """Why somebody decides about a delivery or its records: as `reason_given`, to be ended by a sentence's own stop."""
    return reason_given(reason.strip().rstrip("."), LONGEST_REASON)


def actor() -> str:
    """Who is acting: the operating system's user, not what the environment (LOGNAME, USER) says of it."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a user that has no name
        return f"uid {os.getuid()}"
