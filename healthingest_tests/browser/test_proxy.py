"""The login in front of the web UI: the shipped nginx.conf under a real nginx, two real web servers, and a browser."""

import base64
import contextlib
import json
import shutil
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from playwright.sync_api import expect, sync_playwright

from healthingest_tests.conftest import csv_of, drop, install, line
from healthingest_tests.servers import REPO, environment, free_port, running, wait_for_http

NGINX, CHROMIUM = shutil.which("nginx", path="/usr/sbin:/usr/bin"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    None in (NGINX, CHROMIUM, shutil.which("openssl")), reason="needs Debian's packages nginx-light, openssl, chromium"
)
_PASSWORD = "correct horse"
_START_SENSOR = """mutation { startSensor(sensorSelector: {
    repositoryLocationName: "healthingest", repositoryName: "__repository__", sensorName: "landing_zone"})
    { __typename } }"""
_START_RUN = """mutation { launchRun(executionParams: {
    selector: {repositoryLocationName: "healthingest", repositoryName: "__repository__", jobName: "ingest_file"},
    runConfigData: {}, mode: "default"}) { __typename } }"""


@dataclass
class Proxy:
    secure: int
    plain: int

    def ask(
        self, path: str, who: str | None = None, data: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and body of one request; `who` is the name of an account, `name:password` another password."""
        request = urllib.request.Request(f"https://127.0.0.1:{self.secure}{path}", headers=headers or {})
        if data is not None:
            request.data = json.dumps({"query": data}).encode()
            request.add_header("Content-Type", "application/json")
        if who:
            login = who if ":" in who else f"{who}:{_PASSWORD}"
            request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
        trusting = ssl._create_unverified_context()
        try:
            with urllib.request.urlopen(request, timeout=60, context=trusting) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()


def certificate(folder: Path) -> None:
    """A self-signed certificate of localhost."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
    made = builder.add_extension(alternative, critical=True).sign(key, hashes.SHA256())
    (folder / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    raw = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / "tls.key").write_bytes(raw)


def nginx_folder(root: Path, ports: dict[str, int]) -> Path:
    """A folder in which nginx runs the shipped file, with other ports."""
    folder = root / "nginx"
    (folder / "healthingest").mkdir(parents=True)
    certificate(folder / "healthingest")
    for file, names in {"operators": ["olga"], "viewers": ["olga", "vera"]}.items():
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"], input=_PASSWORD, capture_output=True, check=True, text=True
        ).stdout.strip()
        (folder / "healthingest" / f"{file}.htpasswd").write_text("".join(f"{name}:{hashed}\n" for name in names))
    text = (REPO / "deploy" / "nginx.conf").read_text()
    for shipped, port in ports.items():
        assert shipped in text
        text = text.replace(shipped, shipped.rsplit(":", 1)[0] + f":{port}" if ":" in shipped else f"listen {port}")
    (folder / "shipped.conf").write_text(text)
    (folder / "nginx.conf").write_text(
        "user root;\ndaemon off;\npid nginx.pid;\nerror_log error.log;\nevents {}\n"
        "http { access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3;\n"
        "uwsgi_temp_path t4; scgi_temp_path t5; include shipped.conf; }\n"
    )
    return folder


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    root = tmp_path_factory.mktemp("proxy")
    home = install(root, {"acme": "client_id: acme\n"})
    drop(home, "acme_20250106.csv", csv_of(line("M1")))
    ports = {
        name: free_port() for name in ("listen 80", "listen 443", "127.0.0.1:3000", "127.0.0.1:3001", "127.0.0.1:3002")
    }
    reports = root / "reports"
    reports.mkdir()
    (reports / "index.html").write_text("counts only")
    workspace = str(REPO / "workspace.yaml")
    operate = ["dagster-webserver", "-w", workspace, "-h", "127.0.0.1", "-p", str(ports["127.0.0.1:3000"])]
    look = [*operate[:-1], str(ports["127.0.0.1:3002"]), "--read-only", "--path-prefix", "/view"]
    serve = ["python", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(reports)]
    serve.append(str(ports["127.0.0.1:3001"]))
    folder = nginx_folder(root, ports)
    with running(operate, look, serve, env=environment(home, root / "dagster"), cwd=root):
        nginx = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")])
        try:
            wait_for_http(ports["127.0.0.1:3000"])
            wait_for_http(ports["127.0.0.1:3002"], "/view/server_info")
            yield Proxy(ports["listen 443"], ports["listen 80"])
        finally:
            nginx.terminate()
            nginx.wait(15)


@pytest.mark.parametrize("path", ["/", "/graphql", "/view/", "/view/graphql", "/reports/", "/server_info"])
@pytest.mark.parametrize("who", [None, "vera:wrong", "nobody"])
def test_nobody_passes_without_a_login(proxy: Proxy, path: str, who: str | None) -> None:
    assert proxy.ask(path, who)[0] == 401


def test_a_viewer_looks_and_cannot_act(proxy: Proxy) -> None:
    assert proxy.ask("/", "vera")[0] == 401
    assert proxy.ask("/graphql", "vera", _START_SENSOR)[0] == 401
    assert "counts only" in proxy.ask("/reports/", "vera")[1]
    assert json.loads(proxy.ask("/view/graphql", "vera", "{ version }")[1])["data"]["version"]
    for mutation in (_START_SENSOR, _START_RUN):
        assert "UnauthorizedError" in proxy.ask("/view/graphql", "vera", mutation)[1]


def test_an_operator_acts(proxy: Proxy) -> None:
    answer = json.loads(proxy.ask("/graphql", "olga", _START_SENSOR)[1])
    assert answer["data"]["startSensor"]["__typename"] == "Sensor"


def test_other_sites_cannot_use_the_login_of_a_browser(proxy: Proxy) -> None:
    for origin in ("https://elsewhere.example", "null", f"http://127.0.0.1:{proxy.secure}"):
        assert proxy.ask("/graphql", "olga", _START_SENSOR, {"Origin": origin})[0] == 403
    own = {"Origin": f"https://127.0.0.1:{proxy.secure}"}
    assert proxy.ask("/graphql", "olga", _START_SENSOR, own)[0] == 200


def test_unencrypted_requests_are_sent_to_the_encrypted_port(proxy: Proxy) -> None:
    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: Any, **__: Any) -> None:
            return None

    with contextlib.suppress(urllib.error.HTTPError), pytest.raises(urllib.error.HTTPError) as sent:
        urllib.request.build_opener(Stay).open(f"http://127.0.0.1:{proxy.plain}/runs?q=1")
    assert sent.value.code == 308
    assert sent.value.headers["Location"] == "https://127.0.0.1/runs?q=1"


def test_a_viewer_sees_the_pages_in_a_browser(proxy: Proxy) -> None:
    flags = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        context = browser.new_context(
            ignore_https_errors=True, http_credentials={"username": "vera", "password": _PASSWORD}
        )
        page = context.new_page()
        page.goto(f"https://127.0.0.1:{proxy.secure}/view/assets/silver")
        expect(page.get_by_text("member_token", exact=False).first).to_be_visible(timeout=60_000)
        expect(page.get_by_role("button", name="Materialize").first).to_be_disabled(timeout=60_000)
        browser.close()
