"""What every command of the `healthingest` program shares: `--json`, exit codes, and one line for an error."""

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, ParamSpec

import typer

from healthingest.errors import HealthingestError, UsageError, scrubbed, system_sentence, unexpected
from healthingest.show import print_json

P = ParamSpec("P")
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def command_of(on: typer.Typer) -> Callable[[str], Callable[[Callable[P, int]], Callable[P, None]]]:
    """How to register functions that return an exit code with `on`; their errors are turned into one line."""

    def command(name: str) -> Callable[[Callable[P, int]], Callable[P, None]]:
        def register(function: Callable[P, int]) -> Callable[P, None]:
            run = _in_one_line(function)
            on.command(name)(run)
            return run

        return register

    return command


def asked_member_id() -> str:
    """A member's id, typed unseen or read from standard input, so that no shell history keeps it.

    Raises:
        UsageError: none was given.
    """
    asked = sys.stdin.isatty()
    given = str(typer.prompt("Member id", hide_input=True, err=True)) if asked else sys.stdin.readline()
    if not given.strip():
        raise UsageError("No member id was given; type it when asked, or write it to standard input.")
    return given.strip()


def _in_one_line(function: Callable[P, int]) -> Callable[P, None]:
    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        code, as_json = 1, bool(kwargs.get("as_json"))
        try:
            code = function(*args, **kwargs)
        except HealthingestError as error:
            code = 2 if isinstance(error, UsageError) else 1
            _say(error.kind, str(error), as_json=as_json)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            _say("system", system_sentence(error), as_json=as_json)
        except BaseException as error:  # its text may hold a record's values
            if not unexpected(error):
                raise
            _say("internal", scrubbed(error), as_json=as_json)
        raise typer.Exit(code)

    return run


def _say(kind: str, sentence: str, *, as_json: bool) -> None:
    """The error as one line for people, and as the one JSON document for programs that asked for one."""
    if as_json:
        print_json({"error": kind, "message": sentence})
    typer.echo(f"healthingest: {sentence}", err=True)
