"""Real endpoints on loopback that take alerts: an HTTP server that keeps what it was sent, and answers as told."""

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Request:
    """One request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes
    #: Seconds of the monotonic clock.
    at: float

    @property
    def json(self) -> dict[str, Any]:
        """Its body."""
        return dict(json.loads(self.body or b"{}"))


@dataclass
class Receiver:
    """The server, and what it took and refused."""

    url: str
    #: The same server under TLS, where it was given a certificate.
    secure_url: str = ""
    #: Whom to trust for it.
    ca_file: str | None = None
    #: What it answered with 2xx.
    taken: list[Request] = field(default_factory=list)
    refused: list[Request] = field(default_factory=list)
    #: Status, headers and body of the next answers.
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    reply: bytes = b'{"ok": true}'

    def bodies(self, path: str) -> list[dict[str, Any]]:
        """The bodies that one path took."""
        return [request.json for request in list(self.taken) if request.path == path]

    def wait_for(self, enough: Callable[[], bool], seconds: float, what: str) -> None:
        """Return once `enough` holds; fails after `seconds`."""
        deadline = time.monotonic() + seconds
        while not enough():
            assert time.monotonic() < deadline, f"no {what} within {seconds} s"
            time.sleep(0.1)


@contextlib.contextmanager
def receiving(certificate: tuple[Path, Path] | None = None) -> Iterator[Receiver]:
    """A receiver on a free port, for as long as the block lasts; with a certificate and its key, under TLS as well."""

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.path, dict(self.headers), body, time.monotonic())
            (receiver.taken if receiver.status < 300 else receiver.refused).append(request)
            self.send_response(receiver.status)
            for name, value in {**receiver.headers, "Content-Length": str(len(receiver.reply))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(receiver.reply)

        do_GET = do_POST = _take  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), Handler)]
    receiver = Receiver(f"http://127.0.0.1:{servers[0].server_address[1]}")
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[1].socket = context.wrap_socket(servers[1].socket, server_side=True)
        receiver.ca_file = str(certificate[0])
        receiver.secure_url = f"https://127.0.0.1:{servers[1].server_address[1]}"
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield receiver
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
