"""Who gets in, what the answers' headers say, and what is logged."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.unit.server.raw_client import RawClient, settle
from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.errors import ConfigError
from tokasaurus.server.access.api_keys import ApiKeys
from tokasaurus.server.access.policy import AccessPolicy, TlsFiles
from tokasaurus.server.batches.settings import BatchSettings

LOCKED = AccessPolicy(api_keys=ApiKeys(["secret", "other"]))
CORS = AccessPolicy(api_keys=ApiKeys(["secret"]), cors_origins=("https://page.example",))
PATHS = [
    "/v1/models",
    "/metrics",
    "/",
    "/openapi.json",
    "/v1/nothing",
    "/docs",
    "/health/x",
    "/ping",
]
ORIGIN = {"Origin": "https://page.example"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": "Basic secret"},
        {"Authorization": "secret"},
        {"X-Api-Key": "wrong"},
    ],
)
def test_without_a_key_everything_is_closed(path: str, headers: dict[str, str]) -> None:
    async def check(server: TinyServer) -> None:
        response = await server.http.get(path, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert not server.manager.requests

    run(check, access=LOCKED)


def test_anthropics_clients_are_told_in_their_form() -> None:
    async def check(server: TinyServer) -> None:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            response = await server.post(path, {})
            assert response.status_code == 401
            assert response.json()["type"] == "error"
            assert response.json()["error"]["type"] == "authentication_error"
            assert "missing" in response.json()["error"]["message"]
            response = await server.http.put(path, headers={"X-Api-Key": "secret"})
            assert response.status_code == 405
            assert response.json()["error"]["type"] == "invalid_request_error"

    run(check, access=LOCKED)


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer secret"},
        {"Authorization": "bearer  other"},
        {"X-Api-Key": "secret"},
    ],
)
def test_with_a_key_it_is_open(headers: dict[str, str]) -> None:
    async def check(server: TinyServer) -> None:
        body = {"prompt": "The", "max_tokens": 2}
        response = await server.post("/v1/completions", body, headers=headers)
        assert response.status_code == 200

    run(check, access=LOCKED)


def test_health_needs_no_key() -> None:
    async def check(server: TinyServer) -> None:
        for path in ("/health", "/ready"):
            assert (await server.http.get(path)).status_code == 200

    run(check, access=LOCKED)


def test_a_key_is_read_before_the_body() -> None:
    async def check(server: TinyServer) -> None:
        await server.error("/v1/completions", "{", 401)
        await server.error("/v1/completions", {"prompt": "x" * 3000}, 401)

    run(check, access=LOCKED, max_body_bytes=2000)


def test_preflights_need_no_key() -> None:
    async def check(server: TinyServer) -> None:
        asks = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        response = await server.http.options("/v1/completions", headers=ORIGIN | asks)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == ORIGIN["Origin"]
        assert "authorization" in response.headers["access-control-allow-headers"]
        other = {"Origin": "https://other.example"} | asks
        response = await server.http.options("/v1/completions", headers=other)
        assert "access-control-allow-origin" not in response.headers

    run(check, access=CORS)


def test_pages_may_read_answers_and_refusals() -> None:
    async def check(server: TinyServer) -> None:
        for headers, status in (({}, 401), ({"Authorization": "Bearer secret"}, 200)):
            response = await server.http.get("/v1/models", headers=ORIGIN | headers)
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == ORIGIN["Origin"]
            assert "X-Request-Id" in response.headers["access-control-expose-headers"]

    run(check, access=CORS)


def test_by_default_no_page_may() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.http.get("/v1/models", headers=ORIGIN)
        assert "access-control-allow-origin" not in response.headers

    run(check)


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("abc-123", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("", False)],
)
def test_request_ids(sent: str, is_kept: bool) -> None:
    async def check(server: TinyServer) -> None:
        for path, status in (("/v1/models", 200), ("/v1/nothing", 404)):
            response = await server.http.get(path, headers={"X-Request-Id": sent})
            assert response.status_code == status
            echoed = response.headers["x-request-id"]
            assert (echoed == sent) if is_kept else echoed.startswith("req_")

    run(check)


def test_request_ids_differ_and_come_with_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(server: TinyServer) -> None:
        ids = {(await server.http.get("/health")).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(server.state.engine, "submit", broken)
        response = await server.post(
            "/v1/completions", {"prompt": "The"}, headers={"X-Request-Id": "mine"}
        )
        assert response.status_code == 500
        assert response.headers["x-request-id"] == "mine"

    run(check)


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        json.loads(record.getMessage())
        for record in caplog.records
        if record.name.endswith("request_log")
    ]


def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def check(server: TinyServer) -> None:
        caplog.set_level(logging.INFO, logger="tokasaurus")
        await server.http.get("/v1/models", headers={"X-Request-Id": "one"})
        await server.stream("/v1/completions", {"prompt": "The", "max_tokens": 3})
        await server.error("/v1/completions", {})
        models, stream, refused = logged(caplog)
        assert (models["request_id"], models["method"], models["path"]) == (
            "one",
            "GET",
            "/v1/models",
        )
        assert (models["status"], stream["status"], refused["status"]) == (200, 200, 400)
        assert stream["bytes_sent"] > models["bytes_sent"] > 0
        assert models["client"] == "127.0.0.1"
        seen = (await server.http.get("/metrics")).text
        assert 'route="/v1/models",status="200"} 1.0' in seen
        assert 'route="/v1/completions",status="400"} 1.0' in seen

    run(check, access=AccessPolicy(logs_requests=True))


def test_without_the_log_only_bugs_are_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def check(server: TinyServer) -> None:
        caplog.set_level(logging.INFO, logger="tokasaurus")
        await server.http.get("/v1/models")

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError

        monkeypatch.setattr(server.state.engine, "submit", broken)
        await server.error("/v1/completions", {"prompt": "The"}, 500)
        [bug] = logged(caplog)
        assert (bug["status"], bug["error"]) == (500, "RuntimeError")

    run(check)


@pytest.mark.parametrize(
    ("path", "has_more"),
    [
        ("/v1/completions", True),
        ("/v1/chat/completions", True),
        ("/v1/files", True),
        ("/v1/batches", True),
        ("/custom/synchronous-batch-completions", True),
        ("/v1/completions", False),
        ("/v1/chat/completions", False),
    ],
)
def test_clients_that_leave_have_a_status_of_their_own(
    path: str, has_more: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def check(server: TinyServer) -> None:
        caplog.set_level(logging.INFO, logger="tokasaurus")
        server.manager.runs_by_itself = False
        form = b"--b\r\nContent-Disposition: form-data;" if path == "/v1/files" else None
        client = RawClient(server, path, has_more=has_more, form=form)
        await settle()
        client.leave()
        await client.task
        assert [line["status"] for line in logged(caplog)] == [499]
        seen = (await server.http.get("/metrics")).text
        assert f'route="{path}",status="499"}} 1.0' in seen

    settings = BatchSettings(state_dir=tmp_path)
    run(check, access=AccessPolicy(logs_requests=True), batch_settings=settings)


def test_unknown_methods_and_paths_make_no_series() -> None:
    async def check(server: TinyServer) -> None:
        for name in ("a", "b"):
            await server.http.request(name.upper() * 5, f"/{name}")
        seen = (await server.http.get("/metrics")).text
        assert 'method="other",route="other",status="404"} 2.0' in seen

    run(check)


def test_tls_files_are_checked(tmp_path: Any) -> None:
    assert TlsFiles.of(EngineConfig()) is None
    with pytest.raises(ConfigError, match="ssl_certfile"):
        TlsFiles.of(EngineConfig(ssl_keyfile="key.pem"))
    with pytest.raises(ConfigError, match="can't be used"):
        TlsFiles.of(EngineConfig(ssl_certfile=str(tmp_path / "none.pem")))
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("hello")
    with pytest.raises(ConfigError, match="can't be used"):
        TlsFiles.of(EngineConfig(ssl_certfile=str(wrong)))
