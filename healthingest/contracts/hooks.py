"""Python functions that a client's files need: the registry's `hooks/<name>/<version>.py`, each with a `transform`.

A hook takes a frame of the contract columns that its step names (String), and ROW, and gives the same columns and rows
back, changed. Like a contract it never changes once used: a delivery is pinned to its digest. Whoever may write a
config may run code here; both are reviewed alike.
"""

import contextlib
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import polars as pl

from healthingest.errors import ConfigError

#: Column of the frame that a hook is given: the record's number, which it must leave as it is.
ROW = "_record_no"
Transformer = Callable[[pl.DataFrame], pl.DataFrame]


@dataclass(frozen=True)
class Hook:
    """One version of one function."""

    name: str
    file: Path
    digest: str
    transform: Transformer

    def objection(self, given: pl.DataFrame, made: object) -> str | None:
        """What is wrong with what it made of `given`; None if nothing is."""
        if not isinstance(made, pl.DataFrame):
            return "it does not return a frame"
        if made.height != given.height:
            return "it returns another number of records than it was given"
        if made.schema != given.schema:
            return "it returns other columns than it was given, or columns that are no text"
        if not made[ROW].equals(given[ROW]):
            return f"it returns the records in another order, or changes {ROW}"
        return None

    def run(self, given: pl.DataFrame) -> tuple[pl.DataFrame, str | None]:
        """What the hook makes of `given` (with ROW), and what is wrong with it; what it prints goes nowhere."""
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                made = self.transform(given)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - also SystemExit and a panic of polars; its text may hold values
            return given, f"it throws {type(error).__name__}"
        wrong = self.objection(given, made)
        return (given, wrong) if wrong else (made, None)


def load_hook(configs: Path, name: str) -> Hook:
    """Load `<name>/<version>`.

    Raises:
        ConfigError: there is none, it does not load, or it has no `transform`.
    """
    file = configs / "hooks" / f"{name}.py"
    try:
        text = file.read_bytes()
    except OSError:
        raise ConfigError(f"there is no hook {name}; expected it at hooks/{name}.py.", file=file) from None
    module = ModuleType("healthingest_hook_" + name.replace("/", "_"))
    try:
        exec(compile(text, str(file), "exec"), module.__dict__)  # noqa: S102 - the registry's code, reviewed
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever that code raises, SystemExit too
        line = getattr(error, "lineno", None)
        raise ConfigError(f"the hook does not load ({type(error).__name__}); mend it.", file=file, line=line) from None
    transform = getattr(module, "transform", None)
    if not callable(transform):
        raise ConfigError("the hook defines no function transform(frame); add it.", file=file)
    return Hook(name, file, hashlib.sha256(text).hexdigest()[:16], transform)


def try_hook(hook: Hook, columns: list[str]) -> None:
    """Run a hook on two empty records.

    Raises:
        ConfigError: it throws, or gives back something else than it must.
    """
    empty = pl.DataFrame({ROW: [1, 2]}).with_columns(pl.lit(None, pl.String).alias(column) for column in columns)
    _, wrong = hook.run(empty)
    if wrong:
        raise ConfigError(
            f"the hook {hook.name} cannot be used: on two empty records {wrong}; mend it.", file=hook.file
        )
