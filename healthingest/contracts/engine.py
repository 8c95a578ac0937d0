"""Which engine a client's deliveries are worked on with; it decides how long that takes, never what becomes of them."""

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, StrictStr, model_validator

from healthingest.contracts.rules import Strict
from healthingest.contracts.secret import SECRET_REFERENCE

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_REMOTE = re.compile(r"sc://[A-Za-z0-9._-]+(:[0-9]{1,5})?(/(;[A-Za-z0-9_-]+=[^;]*)*)?")


def _size(value: object) -> object:
    match = re.fullmatch(r"([0-9]{1,6}) ?(KB|MB|GB|TB)", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("write a size like 500MB or 2GB")
    return int(match[1]) * _UNITS[match[2]]


class Engine(Strict):
    """`embedded`: in the run's process; `spark`: on the workers of any server that speaks Spark Connect."""

    kind: Literal["embedded", "spark"] = "embedded"
    #: The server (`sc://host:15002`), or a reference to where that stands, if it holds a token.
    remote: StrictStr | None = None
    #: Bytes of the received file; smaller ones go the embedded way.
    above: Annotated[int, BeforeValidator(_size)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> "Engine":
        if self.kind == "embedded":
            if self.remote is not None or self.above is not None:
                raise ValueError("remote and above belong to kind: spark; write that, or leave them out")
            return self
        if self.remote is None:
            raise ValueError('kind: spark needs to know where; write "remote: sc://host:15002"')
        if SECRET_REFERENCE.fullmatch(self.remote):
            return self
        if not _REMOTE.fullmatch(self.remote):
            raise ValueError('remote is written like sc://host:15002, or "env:VARIABLE" that holds it')
        if "token=" in self.remote:
            raise ValueError("remote holds a token; put it into a secret and write env:VARIABLE or file:PATH")
        return self
