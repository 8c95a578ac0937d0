"""Secrets that YAML files name and never hold: `env:VARIABLE` or `file:PATH`, read when they are needed."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, StrictStr

from healthingest.errors import HealthingestError

#: How a config names a secret that it must not hold.
SECRET_REFERENCE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+")


class SecretError(HealthingestError):
    """A secret that a YAML names is not there; who sets it must act."""

    kind = "secret"


def _reference(value: str) -> str:
    if not SECRET_REFERENCE.fullmatch(value):
        raise ValueError("name the secret as env:VARIABLE or file:PATH, never write it here")
    return value


SecretRef = Annotated[StrictStr, AfterValidator(_reference)]


def secret(reference: str, env: Mapping[str, str] = os.environ) -> str:
    """The secret that a reference names, without the white space around it.

    Raises:
        SecretError: it is not there, or empty.
    """
    kind, _, where = reference.partition(":")
    try:
        value = env.get(where, "") if kind == "env" else Path(where).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        value = ""
    if not value.strip():
        raise SecretError(f"The secret {reference} is not there; set it for the process that needs it.")
    return value.strip()
