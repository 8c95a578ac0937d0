"""Every error this system raises on purpose, each class named for who must act.

A message is one readable sentence: what, where, what to do. It never holds a value of a record. Raise with
`from None` where the cause could hold one: Dagster stores causes and contexts in its event log.
"""

import os
import re
import traceback
from pathlib import Path


class HealthingestError(Exception):
    """Base of all expected errors; `kind` is the stable word that audit rows and alerts carry."""

    kind = "internal"


class UsageError(HealthingestError):
    """The person who called asked for something impossible; nothing was done."""

    kind = "usage"


class ConfigError(HealthingestError):
    """A client config or contract cannot be used; its author must change it. Other clients go on."""

    kind = "config"

    def __init__(self, message: str, *, file: Path, line: int | None = None, key: str | None = None) -> None:
        """Keep where the mistake is, and put it in front of the sentence."""
        self.file, self.line, self.key = file, line, key
        at = f"{file.name}:{line}" if line else file.name
        where = f"{at}, key '{key}'" if key else at
        super().__init__(f"{where}: {message}")


class KeyringError(HealthingestError):
    """The keyring is missing, unreadable or not the one this data was written with; an operator must act."""

    kind = "keyring"


class StorageError(HealthingestError):
    """An object store cannot be used as it is, or a place in it not as a local file; an operator must act."""

    kind = "storage"


class EngineError(HealthingestError):
    """The client's engine cannot be reached or gave up; nothing was published, and the file waits."""

    kind = "engine"


class UnroutableError(HealthingestError):
    """A landed file belongs to no client or partition; its sender or the operator must rename or remove it."""

    kind = "unroutable"


class PermanentError(HealthingestError):
    """A re-run cannot clear this; retrying it would only repeat the failure."""

    kind = "permanent"


class DeliveryError(PermanentError):
    """The delivery fails as a whole: nothing of it is merged and its sender must send it again."""

    def __init__(self, kind: str, message: str) -> None:
        """Take the failure's stable kind, e.g. `missing_column`, and the sentence."""
        self.kind = kind
        super().__init__(message)


class AccountingError(PermanentError):
    """The counts of a delivery do not add up: a defect of this system, never published."""

    kind = "accounting"


class IncompleteError(HealthingestError):
    """A table or file that must be there is gone; an operator must restore it."""

    kind = "incomplete"


class ContentionError(HealthingestError):
    """Other writers kept winning; a later re-run is expected to succeed."""

    kind = "contention"


class BusyError(HealthingestError):
    """Only one of its kind may run, and one does; nothing was done."""

    kind = "busy"


def unexpected(error: BaseException) -> bool:
    """Whether an exception is an error, and not a request to stop: panics of Rust libraries are no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def scrubbed(error: BaseException) -> str:
    """What may be said of an unexpected error: its type and where it rose. Its text could hold a record's values."""
    if refused := _refused_by_system(error):
        return refused
    if type(error).__module__.partition(".")[0] in {"obstore", "_obstore"}:
        return (
            f"The object store did not do as asked ({type(error).__name__}); look whether it is up and at what this "
            "principal may do, and run this again; what was done is kept, nothing is half-done."
        )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "healthingest" in Path(frame.filename).parts] or frames
    place = f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"An unexpected {type(error).__name__} rose{place}; this is a defect or a fault of the machine."


def system_sentence(error: OSError) -> str:
    """What the system refused, and of which file."""
    if error.filename is None and (refused := _refused_by_system(error)):
        return refused
    return f"{error.strerror or 'The system refused'}: {error.filename or 'no file named'}."


def _refused_by_system(error: BaseException) -> str | None:
    """What the system refused, where a library only says so in its own text: Rust's ends in `(os error 28)`."""
    number = error.errno if isinstance(error, OSError) else None
    found = re.search(r"\(os error ([0-9]{1,3})\)", str(error))
    number = number or (int(found[1]) if found else None)
    if not number:
        return None
    return f"{os.strerror(number)}: mend that and run this again; what was done is kept, nothing is half-done."
