"""One HTTP request to an address that is a secret: nothing of it in an error, a log, or at another host."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from healthingest.errors import HealthingestError

TIMEOUT_SECONDS = 10


class UnreachableError(HealthingestError):
    """Nobody answered at an address."""

    kind = "unreachable"


def request(
    method: str, url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str]]:
    """Ask once, following no redirect; the status and headers of the answer.

    Raises:
        UnreachableError: there was none. Names neither address nor body.
    """
    import requests

    try:
        with _unlogged("urllib3.connectionpool"):
            answer = requests.request(
                method, url, data=body, headers=dict(headers or {}), timeout=TIMEOUT_SECONDS, allow_redirects=False
            )
    except (requests.RequestException, ValueError) as error:
        raise UnreachableError(f"It could not be reached ({type(error).__name__}).") from None
    return answer.status_code, answer.headers


@contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Keep a library's logger silent: at level DEBUG it writes every address."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
