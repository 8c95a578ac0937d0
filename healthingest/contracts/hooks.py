"""Python functions that a client's files need: the registry's `hooks/<name>/<version>.py`, each with a `transform`.

A hook takes a frame of the contract columns that its step names (String) and gives the same columns and rows back,
changed. Like a contract it never changes once used: a delivery is pinned to its digest. Whoever may write a config may
run code here; both are reviewed alike.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import polars as pl

from healthingest.errors import ConfigError

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
        return None


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
    except Exception as error:  # noqa: BLE001 - whatever that code raises
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
    empty = pl.DataFrame({column: [None, None] for column in columns}, schema=dict.fromkeys(columns, pl.String()))
    try:
        wrong = hook.objection(empty, hook.transform(empty))
    except Exception as error:  # noqa: BLE001 - whatever that code raises
        wrong = f"it throws {type(error).__name__} on records whose columns are empty"
    if wrong:
        raise ConfigError(f"the hook {hook.name} cannot be used: {wrong}; mend it.", file=hook.file)
