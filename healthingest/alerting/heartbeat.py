"""Calls the dead man's switch: a service elsewhere that raises the alarm when it is not called for a while."""

from healthingest.alerting.http import UnreachableError, request
from healthingest.errors import HealthingestError

_REFUSED = 400


class HeartbeatError(HealthingestError):
    """The dead man's switch did not take the call; it may raise the alarm although all is well."""

    kind = "heartbeat"


def call(url: str) -> None:
    """Call it once; its address is a secret and stands in no error.

    Raises:
        HeartbeatError: it did not answer, or refused.
    """
    try:
        status, _ = request("GET", url)
    except UnreachableError as error:
        raise HeartbeatError(f"The dead man's switch does not answer. {error}") from None
    if status >= _REFUSED:
        raise HeartbeatError(f"The dead man's switch answered {status}.")
