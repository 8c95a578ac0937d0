"""Whether an output folder is where its installation is: one that is arriving, or has moved on, must not be worked in.

The word lies in the folder itself, `checkpoint/whereabouts.json`, so that whoever still has the old address, on
whatever machine, is stopped before anything is read or written.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from healthingest.errors import StorageError
from healthingest.storage.files import put

_PLACE = ("checkpoint", "whereabouts.json")


@dataclass(frozen=True)
class Word:
    """What is said of a folder: that it is not whole yet, or where its installation is now."""

    state: Literal["arriving", "moved"]
    #: The folder it comes from or has gone to, as a path or URI.
    other: str
    at: str


def word_of(output: Path) -> Word | None:
    """What is said of a folder; None: nothing, it is where its installation is.

    Raises:
        StorageError: something is said that cannot be read.
    """
    place = output.joinpath(*_PLACE)
    try:
        return Word(**json.loads(place.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise StorageError(f"{place} cannot be read; only who knows that {output} is whole may remove it.") from None


def say(output: Path, state: Literal["arriving", "moved"], other: Path) -> None:
    """Stop whoever opens the folder from now on."""
    word = Word(state, str(other), datetime.now(UTC).isoformat(timespec="seconds"))
    put(output.joinpath(*_PLACE), json.dumps(asdict(word)).encode())


def unsay(output: Path) -> None:
    """The folder is whole: it may be worked in."""
    output.joinpath(*_PLACE).unlink(missing_ok=True)


def require_here(output: Path) -> None:
    """Stop where the installation is not.

    Raises:
        StorageError: the folder is incomplete, or what was in it has moved.
    """
    word = word_of(output)
    if word is None:
        return
    if word.state == "arriving":
        raise StorageError(
            f"{output} is not whole: `healthingest storage copy` from {word.other} has not ended; run it again there."
        )
    raise StorageError(
        f"This installation moved from {output} to {word.other} on {word.at[:10]}; set HEALTHINGEST_OUTPUT to that. "
        f"If it is to stay here after all, remove {output.joinpath(*_PLACE)}."
    )
