"""File names: which client, date and suffix a landed file belongs to. Every name gives a result or a sentence."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date

from healthingest.errors import UnroutableError

_NAME = re.compile(
    r"(?P<client>.+)_(?P<date>[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2})(?:_(?P<suffix>[12]))?\.csv(?:\.gz)?",
    re.ASCII,
)
PATTERN = "{client_id}_{YYYYMMDD}[_1|_2].csv[.gz]"


@dataclass(frozen=True)
class FileName:
    """What a well-formed file name says."""

    name: str
    client_id: str
    creation_date: date
    #: "", "1" or "2".
    suffix: str


def printable(name: str) -> str:
    """A file name as tables and people can take it: bytes that are no text and control characters as escapes."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def named_client(name: str) -> str | None:
    """The client that a landed file's name starts with, whether it exists, is active, or may have sent that date."""
    match = _NAME.fullmatch(name)
    return match["client"] if match else None


def parse_file_name(name: str, client_ids: Collection[str], *, first_date: date, today: date) -> FileName:
    """Read a landed file's name.

    Raises:
        UnroutableError: it does not follow the pattern, or names an unknown client or an impossible date.
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise UnroutableError(f"The file name does not follow {PATTERN}; rename the file.")
    if match["client"] not in client_ids:
        raise UnroutableError("No active client has the id that the file name starts with; add its YAML or rename it.")
    try:
        creation_date = date.fromisoformat(match["date"])
    except ValueError:
        raise UnroutableError("The date in the file name does not exist; rename the file.") from None
    if creation_date > today:
        raise UnroutableError("The date in the file name lies in the future (UTC); rename the file.")
    if creation_date < first_date:
        raise UnroutableError(
            f"The date in the file name lies before {first_date}, the first day of this installation's partitions; "
            "set HEALTHINGEST_FIRST_DATE or rename the file."
        )
    return FileName(name, match["client"], creation_date, match["suffix"] or "")
