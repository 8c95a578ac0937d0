"""Where things are: the folders and the keyring of one installation, read from the environment when asked."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from healthingest.errors import UsageError

DEFAULT_FIRST_DATE = date(2015, 1, 1)


@dataclass(frozen=True)
class Places:
    """Absolute paths of one installation, and the settings that go with them."""

    home: Path
    configs: Path
    landing: Path
    output: Path
    keyring: Path
    #: "dev" or "prod"; in prod nothing is created silently.
    env: str
    #: First day of the date partitions.
    first_date: date

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Places":
        """Read HEALTHINGEST_* variables (design, section 4).

        Raises:
            UsageError: HEALTHINGEST_ENV or HEALTHINGEST_FIRST_DATE holds something else than allowed.
        """
        home = Path(env.get("HEALTHINGEST_HOME") or Path.cwd()).expanduser().resolve()

        def place(name: str, default: Path) -> Path:
            if "://" in env.get(name, ""):
                raise UsageError(f"{name} must be a local folder; object stores are not supported yet.")
            return Path(env.get(name) or default).expanduser().resolve()

        mode = env.get("HEALTHINGEST_ENV") or "dev"
        if mode not in {"dev", "prod"}:
            raise UsageError("HEALTHINGEST_ENV must be 'dev' or 'prod'.")
        config_home = Path(env.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser())
        try:
            first = date.fromisoformat(env.get("HEALTHINGEST_FIRST_DATE") or DEFAULT_FIRST_DATE.isoformat())
        except ValueError:
            raise UsageError("HEALTHINGEST_FIRST_DATE must be a date like 2015-01-01.") from None
        return cls(
            home=home,
            configs=place("HEALTHINGEST_CONFIGS", home / "client_configs"),
            landing=place("HEALTHINGEST_INPUT", home / "input" / "raw"),
            output=place("HEALTHINGEST_OUTPUT", home / "output"),
            keyring=place("HEALTHINGEST_KEYRING", config_home / "healthingest" / "keyring.json"),
            env=mode,
            first_date=first,
        )


def today() -> date:
    """The current day in UTC, the calendar of all partitions."""
    return datetime.now(UTC).date()
