"""How a duration is written in YAML and on the command line (30m, 24h, 7d), and how it is told."""

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _duration(value: object) -> object:
    match = re.fullmatch(r"([0-9]{1,4})([mhd])", value) if isinstance(value, str) else None
    if not match:
        raise ValueError("write a duration like 30m, 24h or 7d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def in_hours(duration: timedelta) -> str:
    """How a duration is told: hours, with one digit."""
    return f"{duration.total_seconds() / 3600:.1f} h"


Duration = Annotated[timedelta, BeforeValidator(_duration)]
