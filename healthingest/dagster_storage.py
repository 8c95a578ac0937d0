"""Where Dagster keeps runs and events: in files below DAGSTER_HOME, or in a Postgres that several machines share.

Read from dagster.yaml without Dagster, which would make its tables at the first look.
"""

import contextlib
import os
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from healthingest.errors import StorageError

_SECONDS = 5
#: What Dagster takes the database's times for.
_UTC = {"UTC", "Etc/UTC", "GMT", "Etc/GMT", "Zulu", "UCT"}
_SETTINGS = "dagster.yaml"


def postgres_url(home: Path) -> str | None:
    """The URL of the Postgres that dagster.yaml names, its password included; None: there is none.

    Raises:
        StorageError: dagster.yaml is no YAML, or a variable that it names is not set.
    """
    try:
        settings = yaml.safe_load((home / _SETTINGS).read_text())
    except yaml.YAMLError:
        raise StorageError(f"{home / _SETTINGS} is no YAML; copy it from deploy/ again.") from None
    found = _mapping(_mapping(_mapping(settings).get("storage")).get("postgres"))
    if "postgres_url" in found:
        return _text(found["postgres_url"])
    parts = _mapping(found.get("postgres_db"))
    if not parts:
        return None
    user, host, name = (_text(parts.get(key, "")) for key in ("username", "hostname", "db_name"))
    password, port = _text(parts.get("password", "")), _text(parts.get("port", 5432))
    scheme = _text(parts.get("scheme", "postgresql"))
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}:{port}/{quote(name, safe='')}"


def password_in(home: Path) -> bool:
    """Whether a password stands in dagster.yaml itself, where a variable could be named."""
    with contextlib.suppress(yaml.YAMLError):
        settings = yaml.safe_load((home / _SETTINGS).read_text())
        found = _mapping(_mapping(_mapping(settings).get("storage")).get("postgres"))
        parts = _mapping(found.get("postgres_db"))
        return isinstance(found.get("postgres_url"), str) or isinstance(parts.get("password"), str)
    return False


def require_usable(url: str) -> str:
    """Connect to Dagster's Postgres and look at what it must be; returns where it is and how far it is set up.

    Raises:
        StorageError: it cannot be used, or Dagster would misread its times; says what to do.
    """
    if find_spec("dagster_postgres") is None or find_spec("psycopg2") is None:
        raise StorageError("dagster.yaml names a Postgres; run: pip install 'healthingest[postgres]'")
    if url.partition("://")[0] in {"postgresql", "postgres"} and not version("sqlalchemy").startswith(("1.", "2.0.")):
        raise StorageError(
            "Dagster's Postgres must be named as postgresql+psycopg2://..., since SQLAlchemy looks for another driver "
            "with postgresql://."
        )
    from sqlalchemy import make_url

    try:
        parsed = make_url(url)
    except Exception:  # noqa: BLE001 - its text holds the URL, and so the password
        raise StorageError(
            "The URL of Dagster's Postgres is none; write postgresql+psycopg2://USER:...@HOST/DATABASE."
        ) from None
    where = f"Postgres at {parsed.host}:{parsed.port or 5432}, database {parsed.database}"
    zone, made = _asked(url, where)
    if zone not in _UTC:
        raise StorageError(
            f"{where}, speaks in the time of {zone}, and Dagster takes it for UTC; "
            f"run there: ALTER DATABASE {parsed.database} SET timezone TO 'UTC'"
        )
    return where if made else f"{where}; its tables are not made yet, run: dagster instance migrate"


def _asked(url: str, where: str) -> tuple[str, bool]:
    """The time zone of a new connection, and whether Dagster's tables are there."""
    import psycopg2

    plain = "postgresql://" + url.partition("://")[2]
    try:
        connection = psycopg2.connect(plain, connect_timeout=_SECONDS)
    except psycopg2.Error:  # its text may hold the user's name and address
        raise StorageError(
            f"{where}, takes no connection; is it up, and are the user and the password right?"
        ) from None
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('TimeZone'), to_regclass('runs') IS NOT NULL")
        zone, made = cursor.fetchone()
    return str(zone), bool(made)


def _mapping(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}


def _text(found: object) -> str:
    """A setting, or the value of the environment variable that it names.

    Raises:
        StorageError: that is not set.
    """
    name = _mapping(found).get("env")
    if name is None:
        return str(found)
    if not (said := os.environ.get(str(name))):
        raise StorageError(
            f"{_SETTINGS} reads Dagster's Postgres from {name}, which is not set; see docs/distributed.md."
        )
    return said
