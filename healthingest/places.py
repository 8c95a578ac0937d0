"""Where things are: the folders and the keyring of one installation, read from the environment when asked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from healthingest.errors import StorageError, UsageError
from healthingest.storage.objects import place_of
from healthingest.storage.options import configs_folder

DEFAULT_FIRST_DATE = date(2015, 1, 1)
#: Each is a table that whoever reads silver opens.
MOST_SHARDS = 256


@dataclass(frozen=True)
class Places:
    """Absolute paths of one installation, and the settings that go with them."""

    home: Path
    configs: Path
    #: Both may be in an object store (`storage.objects.ObjectPath`).
    landing: Path
    output: Path
    keyring: Path
    #: "dev" or "prod"; in prod nothing is created silently.
    env: str
    #: First day of the date partitions.
    first_date: date
    #: Over how many tables of silver clients are dealt out that name none of their own, each at its first delivery.
    silver_shards: int = 1

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Places":
        """Read HEALTHINGEST_* variables (design, section 4).

        Raises:
            UsageError: HEALTHINGEST_ENV, _FIRST_DATE or _SILVER_SHARDS holds something else than allowed, or a place is
                a URI of no object store that is known here.
        """
        home = Path(env.get("HEALTHINGEST_HOME") or Path.cwd()).expanduser().resolve()

        def place(name: str, default: Path, *, anywhere: bool = False) -> Path:
            said = env.get(name) or ""
            if "://" in said and not anywhere:
                raise UsageError(f"{name} must be a local place; an object store can hold input and output only.")
            try:
                return (place_of(said) if said else default).expanduser().resolve()
            except StorageError as error:
                raise UsageError(f"{name}: {error}") from None

        mode = env.get("HEALTHINGEST_ENV") or "dev"
        if mode not in {"dev", "prod"}:
            raise UsageError("HEALTHINGEST_ENV must be 'dev' or 'prod'.")
        config_home = Path(env.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
        try:
            first = date.fromisoformat(env.get("HEALTHINGEST_FIRST_DATE") or DEFAULT_FIRST_DATE.isoformat())
        except ValueError:
            raise UsageError("HEALTHINGEST_FIRST_DATE must be a date like 2015-01-01.") from None
        shards = env.get("HEALTHINGEST_SILVER_SHARDS") or "1"
        if not shards.isdecimal() or not 1 <= int(shards) <= MOST_SHARDS:
            raise UsageError(f"HEALTHINGEST_SILVER_SHARDS must be a number from 1 to {MOST_SHARDS}.")
        return cls(
            home=home,
            configs=configs_folder(env),
            landing=place("HEALTHINGEST_INPUT", home / "input" / "raw", anywhere=True),
            output=place("HEALTHINGEST_OUTPUT", home / "output", anywhere=True),
            keyring=place("HEALTHINGEST_KEYRING", config_home / "healthingest" / "keyring.json"),
            env=mode,
            first_date=first,
            silver_shards=int(shards),
        )


def today() -> date:
    """The current day in UTC, the calendar of all partitions."""
    return datetime.now(UTC).date()
