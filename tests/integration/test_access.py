"""A real engine behind TLS and keys, from OpenAI's client; and slow readers of its streams."""

import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from tests.integration.conftest import SMALL
from tests.integration.engine_process import EngineProcess
from tokasaurus.api.openai_client import client

KEY = "from-the-environment"
pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl is not installed (apt-get install -y openssl)"
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return folder


@pytest.fixture(scope="module")
def locked(certificate: Path) -> Iterator[EngineProcess]:
    options = (
        *SMALL,
        f"ssl_certfile={certificate}/cert.pem",
        f"ssl_keyfile={certificate}/key.pem",
        "api_key=[first,second]",
        "cors_origins=[*]",
        "request_log=True",
    )
    with EngineProcess(options, environment={"TOKASAURUS_API_KEY": KEY}) as process:
        process.wait_until_ready()
        yield process


@pytest.fixture(scope="module")
def trusting(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate / "cert.pem"))


@pytest.mark.parametrize("key", ["first", "second", KEY])
def test_openai_client(locked: EngineProcess, trusting: ssl.SSLContext, key: str) -> None:
    with openai.OpenAI(
        base_url=f"{locked.url}/v1",
        api_key=key,
        http_client=httpx.Client(verify=trusting, timeout=60),
    ) as locked_client:
        completion = locked_client.completions.create(
            model=locked.model, prompt="Once", max_tokens=3
        )
    assert completion.usage is not None
    assert completion.usage.completion_tokens > 0
    assert completion._request_id is not None


def test_our_own_clients_bring_the_key(locked: EngineProcess, certificate: Path) -> None:
    trust = {"SSL_CERT_FILE": str(certificate / "cert.pem")}
    for key, is_right in ((KEY, True), ("third", False)):
        result = subprocess.run(
            [sys.executable, "-m", "tokasaurus.cli.toka_ping", f"url={locked.url}", "max_tokens=2"],
            env=os.environ | trust | {"TOKASAURUS_API_KEY": key},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (result.returncode == 0) == is_right, result.stderr


def test_the_python_client_takes_the_key_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TOKASAURUS_API_KEY", "mine")
    assert client("http://localhost:1").api_key == "mine"
    assert client("http://localhost:1", api_key="given").api_key == "given"
    monkeypatch.delenv("TOKASAURUS_API_KEY")
    assert client("http://localhost:1").api_key == "none"


def test_a_wrong_key(locked: EngineProcess, trusting: ssl.SSLContext) -> None:
    with (
        openai.OpenAI(
            base_url=f"{locked.url}/v1",
            api_key="third",
            http_client=httpx.Client(verify=trusting, timeout=60),
        ) as locked_client,
        pytest.raises(openai.AuthenticationError, match="not one that this server knows"),
    ):
        locked_client.models.list()


def test_health_is_open_and_plain_http_is_not_served(
    locked: EngineProcess, trusting: ssl.SSLContext
) -> None:
    assert locked.url.startswith("https://")
    assert httpx.get(f"{locked.url}/ready", verify=trusting, timeout=60).status_code == 200
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{locked.url.replace('https', 'http')}/ready", timeout=60)


def test_the_log_names_the_request(locked: EngineProcess, trusting: ssl.SSLContext) -> None:
    headers = {"X-Request-Id": "find-me", "Authorization": "Bearer first"}
    httpx.get(f"{locked.url}/v1/models", headers=headers, verify=trusting, timeout=60)
    assert '"path":"/v1/models"' in locked.wait_for_line("find-me")


def test_keys_are_not_in_the_log(locked: EngineProcess) -> None:
    assert KEY not in locked.output


def test_a_certificate_that_can_not_be_used(tmp_path: Path) -> None:
    with EngineProcess((*SMALL, f"ssl_certfile={tmp_path}/none.pem")) as process:
        assert process.wait(timeout_seconds=120) != 0
        assert "can't be used" in process.output


def test_a_reader_that_takes_nothing_frees_engine_and_connection() -> None:
    body = json.dumps(
        {
            "prompt": "Once",
            "n": 64,
            "max_tokens": 900,
            "ignore_eos": True,
            "logprobs": 20,
            "stream": True,
        }
    )
    request = (
        "POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    with EngineProcess((*SMALL, "stream_stall_seconds=0.5")) as process:
        process.wait_until_ready()
        url = httpx.URL(process.url)
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect((url.host, url.port))
            reader.sendall(request.encode())
            wait_for_end_of_samples(process, 64)
            wait_for_metric(process, "requests_in_flight", 0)
            if sys.platform == "linux":
                wait_for_end_of_connection(process, reader.getsockname()[1])
        body_of_other = {"prompt": "Once", "max_tokens": 2}
        response = httpx.post(f"{process.url}/v1/completions", json=body_of_other, timeout=60)
        assert response.status_code == 200


def wait_for_end_of_connection(process: EngineProcess, client_port: int) -> None:
    deadline = time.monotonic() + 60
    server = process.children()["server0"]
    while any(c.raddr and c.raddr.port == client_port for c in server.net_connections("tcp")):
        assert time.monotonic() < deadline, "the connection stays although nobody reads"
        time.sleep(0.1)


def wait_for_end_of_samples(process: EngineProcess, count: int) -> None:
    """None of them by itself: the server gives them up, or the kernel the connection before."""
    deadline = time.monotonic() + 120
    ended = re.compile(r'^tokasaurus_requests_finished_total{finish_reason="(\w+)"} (\d+)', re.M)
    while True:
        metrics = httpx.get(f"{process.url}/metrics", timeout=60).text
        counts = {reason: int(number) for reason, number in ended.findall(metrics)}
        if counts.get("error", 0) + counts.get("cancelled", 0) == count:
            return
        assert time.monotonic() < deadline, counts
        time.sleep(0.2)


def wait_for_metric(process: EngineProcess, series: str, value: float) -> None:
    deadline = time.monotonic() + 120
    while (
        f"\ntokasaurus_{series} {value:.1f}\n"
        not in httpx.get(f"{process.url}/metrics", timeout=60).text
    ):
        assert time.monotonic() < deadline, series
        time.sleep(0.2)
