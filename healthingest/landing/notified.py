"""Which files of the landing zone SQS queues tell of. A message only names an object; what is there is looked at.

A message is deleted by `forget` alone, which a later tick calls: who receives it may die before what it led to is
stored, and the queue then gives it again. What is no message of S3 on the bucket is not deleted at all.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import unquote_plus

from healthingest.errors import HealthingestError, StorageError
from healthingest.landing.names import named_client
from healthingest.storage.objects import ObjectPath
from healthingest.storage.options import Queue, options_for

#: Most messages that SQS gives, or deletes, at a time.
_AT_ONCE = 10
#: Most messages that are received in a row: it bounds the receipts that a cursor holds.
_MOST = 100
#: Seconds until no further messages are asked for.
_SECONDS = 5.0
#: Seconds that SQS waits for a message: with none it would ask only some of its servers, and miss messages.
_WAIT = 1
#: Queues that are asked side by side.
_SIDE_BY_SIDE = 16
#: Seconds until a server that does not answer is given up.
_TIMEOUT = 5
#: No key of S3 is longer (bytes); a longer one is refused as a mistake of who asks.
_KEY = 1024
#: Bucket and key.
Object = tuple[str, str]


@dataclass
class Heard:
    """What queues told."""

    #: Names of files right in the landing zone, each once.
    names: list[str] = field(default_factory=list)
    #: Receipts of messages that may be deleted once what they name is remembered, by the queue's URL.
    receipts: dict[str, list[str]] = field(default_factory=dict)
    #: A sentence for each queue that could not be asked.
    silent: list[str] = field(default_factory=list)
    #: What an operator should know of the messages.
    remarks: list[str] = field(default_factory=list)


def hear(queues: Sequence[Queue], landing: ObjectPath, most: int) -> Heard:
    """Receive what waits in some queues, about `most` names in all; never raises for a queue that is away."""
    names: dict[str, None] = {}
    limits = _Limits(most, max(_AT_ONCE, _MOST // len(queues)), time.monotonic() + _SECONDS)
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        parts = list(pool.map(lambda queue: _hear(queue, landing, names, limits), queues))
    heard = Heard([*names])
    for part in parts:
        heard.receipts |= part.receipts
        heard.silent += part.silent
        heard.remarks += part.remarks
    return heard


class _Limits(NamedTuple):
    names: int
    messages: int
    until: float


def _hear(queue: Queue, landing: ObjectPath, names: dict[str, None], limits: _Limits) -> Heard:
    """What one queue tells; `names` is filled by all of them."""
    heard, elsewhere, strange = Heard(), 0, 0
    receipts: list[str] = []
    try:
        while len(receipts) + strange < limits.messages and time.monotonic() < limits.until:
            room = limits.names - len(names)
            messages = _receive(queue, min(_AT_ONCE, room)) if room > 0 else []
            for message in messages:
                objects = objects_in(message["Body"])
                if objects is None or any(bucket != landing.parts[1] for bucket, _ in objects):
                    strange += 1  # somebody else's, perhaps: it stays
                    continue
                mine = [name for found in objects if (name := _name(found, landing, queue.client))]
                names |= dict.fromkeys(mine)
                elsewhere += len(mine) < len(objects)
                receipts.append(message["ReceiptHandle"])
            if not messages:
                break
    except HealthingestError as error:  # the secret for it may be gone, too
        heard.silent.append(str(error))
    if receipts:
        heard.receipts[queue.queue] = receipts
    heard.remarks += _remarks(queue, landing, elsewhere, strange)
    return heard


def objects_in(body: str) -> list[Object] | None:
    """The objects that a message says were made, none for other events of S3; None: it is no message of S3.

    As S3 itself sends it (keys are URL-encoded there), the same wrapped by SNS, or an event of EventBridge.
    """
    try:
        said = json.loads(body)
        if said.get("Type") == "Notification":
            said = json.loads(said["Message"])
        if said.get("Event") == "s3:TestEvent":
            return []
        if said.get("source") == "aws.s3":
            made = [said["detail"]] if said["detail-type"] == "Object Created" else []
            return [(str(of["bucket"]["name"]), str(of["object"]["key"])) for of in made]
        made = [r["s3"] for r in said["Records"] if r["eventName"].removeprefix("s3:").startswith("ObjectCreated:")]
        return [(str(of["bucket"]["name"]), unquote_plus(of["object"]["key"])) for of in made]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _name(found: Object, landing: ObjectPath, client: str | None) -> str | None:
    """The name of an object that is a file right in the landing zone, and the client's, if one is asked for."""
    key, prefix = found[1], _prefix(landing)
    name = key.removeprefix(prefix)
    if not key.startswith(prefix) or "/" in name or name in {"", ".", ".."} or len(key.encode(errors="replace")) > _KEY:
        return None
    return name if client in {None, named_client(name)} else None


def _prefix(landing: ObjectPath) -> str:
    return f"{landing.key}/" if landing.key else ""


def _remarks(queue: Queue, landing: ObjectPath, elsewhere: int, strange: int) -> Iterator[str]:
    if elsewhere:
        whose = f"files of {queue.client} in the landing zone" if queue.client else "files in the landing zone"
        prefix = _prefix(landing) + (f"{queue.client}_" if queue.client else "")
        yield (
            f"{elsewhere} messages of the queue {queue.name} tell of other objects than {whose} and are deleted; give "
            f"the bucket's notification the prefix {prefix or 'that is theirs'}."
        )
    if strange:
        yield (
            f"{strange} messages of the queue {queue.name} are none that S3 sends for this bucket; they stay there, "
            "until its dead letter queue takes them."
        )


def forget(queues: Sequence[Queue], receipts: Mapping[str, Sequence[str]]) -> list[str]:
    """Delete messages; a sentence for each queue that could not be asked, and gives them again: that does no harm."""
    due = [(queue, receipts[queue.queue]) for queue in queues if receipts.get(queue.queue)]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        return [sentence for sentence in pool.map(lambda each: _forget(*each), due) if sentence]


def _forget(queue: Queue, receipts: Sequence[str]) -> str | None:
    try:
        for at in range(0, len(receipts), _AT_ONCE):
            some = receipts[at : at + _AT_ONCE]
            entries = [{"Id": str(number), "ReceiptHandle": receipt} for number, receipt in enumerate(some)]
            with _asking(queue) as client:
                client.delete_message_batch(QueueUrl=queue.queue, Entries=entries)
    except HealthingestError as error:
        return str(error)
    return None


class QueueState(NamedTuple):
    """What an operator looks at."""

    #: Messages that wait, and those that were received and not deleted yet; about.
    waiting: int
    received: int
    #: Seconds until a message that was received and not deleted is given again.
    hidden: int
    has_dead_letters: bool


def state_of(queue: Queue) -> QueueState:
    """How a queue stands.

    Raises:
        StorageError: it cannot be reached.
        SecretError: what it is to be asked with is not there.
    """
    with _asking(queue) as client:
        said = client.get_queue_attributes(QueueUrl=queue.queue, AttributeNames=["All"])["Attributes"]
    waiting, received = said["ApproximateNumberOfMessages"], said["ApproximateNumberOfMessagesNotVisible"]
    return QueueState(int(waiting), int(received), int(said["VisibilityTimeout"]), "RedrivePolicy" in said)


def _receive(queue: Queue, most: int) -> list[dict[str, str]]:
    with _asking(queue) as client:
        answer = client.receive_message(QueueUrl=queue.queue, MaxNumberOfMessages=most, WaitTimeSeconds=_WAIT)
    return list(answer.get("Messages", []))


@contextmanager
def _asking(queue: Queue) -> Iterator[Any]:
    """A client for the queue's server; whatever goes wrong with it becomes one sentence."""
    if find_spec("boto3") is None:
        raise StorageError("Queues are asked by boto3, which is not installed; run: pip install healthingest[aws]")
    from botocore.exceptions import BotoCoreError, ClientError

    said = options_for("s3") | queue.plain()
    if queue.access_key_id:
        said.pop("aws_session_token", None)  # it goes with the other key
    try:
        yield _client(queue.endpoint, tuple(sorted(said.items())))
    except (BotoCoreError, ClientError, ValueError) as error:
        code = error.response.get("Error", {}).get("Code", "") if isinstance(error, ClientError) else ""
        why = code if re.fullmatch(r"[A-Za-z.]{1,80}", code) else type(error).__name__
        raise StorageError(
            f"The queue {queue.name} cannot be asked ({why}); look at discovery in storage.yaml, at what this "
            "principal may do, and whether the server is up."
        ) from None


@lru_cache(maxsize=32)
def _client(endpoint: str, options: tuple[tuple[str, str], ...]) -> Any:  # noqa: ANN401 - boto3 has no types
    import boto3
    from botocore.config import Config

    said = dict(options)
    config = Config(connect_timeout=_TIMEOUT, read_timeout=_TIMEOUT + _WAIT, retries={"total_max_attempts": 1})
    return boto3.session.Session().client(
        "sqs", endpoint_url=endpoint, config=config, aws_access_key_id=said.get("aws_access_key_id"),
        aws_secret_access_key=said.get("aws_secret_access_key"), aws_session_token=said.get("aws_session_token"),
        region_name=said.get("aws_region") or said.get("aws_default_region"),
    )  # fmt: skip
