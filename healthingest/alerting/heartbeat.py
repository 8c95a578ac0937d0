"""Calls the dead man's switch: a service elsewhere that raises the alarm when it is not called for a while."""

from healthingest.errors import HealthingestError

_TIMEOUT_SECONDS = 10.0


class HeartbeatError(HealthingestError):
    """The dead man's switch did not take the call; it may raise the alarm although all is well."""

    kind = "heartbeat"


def call(url: str) -> None:
    """Call it once; its address is a secret and stands in no error.

    Raises:
        HeartbeatError: it did not answer, or refused.
    """
    import requests

    try:
        answer = requests.get(url, timeout=_TIMEOUT_SECONDS, allow_redirects=False)
    except (requests.RequestException, ValueError) as error:
        raise HeartbeatError(f"The dead man's switch could not be called ({type(error).__name__}).") from None
    if not answer.ok:
        raise HeartbeatError(f"The dead man's switch answered {answer.status_code}.")
