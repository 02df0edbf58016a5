"""Two servers of one engine, whichever of them a client's connection reaches."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from tests.unit.server.tiny_server import TinyServer, serving
from tokasaurus.ipc.addresses import Addresses
from tokasaurus.ipc.codec import Decoder, Encoder
from tokasaurus.ipc.messages.to_server import PeerAnswer, PeerQuestion, ToServer
from tokasaurus.server import peers as peers_module
from tokasaurus.server.batches.settings import BatchSettings
from tokasaurus.server.errors import ServerNotReadyError
from tokasaurus.server.peers import Peers


class PeerDouble:
    """Outbox to a server in the same event loop."""

    def __init__(self, receiver: Peers) -> None:
        self._receiver = receiver
        self.is_silent = False

    def send(self, message: msgspec.Struct) -> None:
        received: ToServer = Decoder(ToServer).decode(Encoder().encode(message))
        assert isinstance(received, PeerQuestion | PeerAnswer)
        if not self.is_silent:
            asyncio.get_running_loop().call_soon(self._receiver.receive, received)

    def close(self) -> None:
        self.is_silent = True


def two_peers() -> tuple[Peers, Peers]:
    return Peers(0, 2, Addresses("/none")), Peers(1, 2, Addresses("/none"))


def connect(first: Peers, second: Peers) -> PeerDouble:
    """Returns the outbox to the first."""
    to_first = PeerDouble(first)
    second.start({0: to_first})
    first.start({1: PeerDouble(second)})
    return to_first


@contextlib.asynccontextmanager
async def two_servers(folder: Path) -> AsyncIterator[tuple[TinyServer, TinyServer]]:
    first, second = two_peers()
    settings = BatchSettings(state_dir=folder / "state")
    async with (
        serving(peers=first, batch_settings=settings) as leader,
        serving(peers=second, batch_settings=settings) as other,
    ):
        connect(first, second)
        yield leader, other
        first.close()
        second.close()


def run(folder: Path, check: Callable[[TinyServer, TinyServer], Awaitable[None]]) -> None:
    async def main() -> None:
        async with two_servers(folder) as servers:
            await check(*servers)

    asyncio.run(asyncio.wait_for(main(), timeout=120))  # more than any wait in it


def test_questions_are_answered() -> None:
    async def main() -> None:
        first, second = two_peers()

        async def shout(payload: bytes) -> bytes:
            return payload.upper()

        async def fail(payload: bytes) -> bytes:
            raise ValueError(payload)

        first.answer_with("shout", shout)
        first.answer_with("fail", fail)
        connect(first, second)
        assert await asyncio.gather(*(second.ask(0, "shout", b"%d" % i) for i in range(9))) == [
            b"%d" % i for i in range(9)
        ]
        assert await second.ask_all("shout", b"a") == [b"A"]
        with pytest.raises(ServerNotReadyError, match="server0 failed"):
            await second.ask(0, "fail")
        with pytest.raises(ServerNotReadyError, match="server0 failed"):
            await second.ask(0, "a question that nobody knows")

    asyncio.run(main())


def test_silence_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers_module, "_DEADLINE_SECONDS", 0.01)

    async def main() -> None:
        first, second = two_peers()
        connect(first, second).is_silent = True
        with pytest.raises(ServerNotReadyError, match="server0 did not answer"):
            await second.ask(0, "anything")
        second.receive(PeerAnswer(question_id=0))  # too late, and harmless

    asyncio.run(main())


def test_every_scrape_shows_totals(tmp_path: Path) -> None:
    async def check(leader: TinyServer, other: TinyServer) -> None:
        await leader.complete(max_tokens=2)
        for _ in range(3):
            await other.complete(max_tokens=2)
        for server in (leader, other, leader):
            lines = (await server.http.get("/metrics")).text.splitlines()
            assert 'tokasaurus_requests_finished_total{finish_reason="length"} 4.0' in lines
            assert 'tokasaurus_request_output_tokens_sum{dp_rank="0"} 8.0' in lines
            assert "tokasaurus_ready 1.0" in lines
        await other.state.engine.close()
        assert "tokasaurus_ready 0.0" in (await leader.http.get("/metrics")).text

    run(tmp_path, check)


def test_stored_responses_are_found_and_deleted_anywhere(tmp_path: Path) -> None:
    async def check(leader: TinyServer, other: TinyServer) -> None:
        for here, there in ((leader, other), (other, leader)):
            created = (await here.post("/v1/responses", {"input": "Hi"})).json()
            path = f"/v1/responses/{created['id']}"
            assert (await there.http.get(path)).json() == created
            follow_up = {"input": "More", "previous_response_id": created["id"]}
            assert (await there.post("/v1/responses", follow_up)).status_code == 200
            assert (await there.http.delete(path)).status_code == 200
            for server in (here, there):
                assert (await server.http.get(path)).status_code == 404
                assert (await server.http.delete(path)).status_code == 404

    run(tmp_path, check)


@pytest.mark.parametrize("creator", [0, 1])
def test_batches_run_at_the_leader_and_show_everywhere(tmp_path: Path, creator: int) -> None:
    item = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    line = json.dumps(item | {"body": {"prompt": "The", "max_tokens": 3}})

    async def check(*servers: TinyServer) -> None:
        here, there = servers[creator], servers[1 - creator]
        file = await here.http.post(
            "/v1/files", files={"file": ("in.jsonl", line)}, data={"purpose": "batch"}
        )
        body = {
            "input_file_id": file.json()["id"],
            "endpoint": "/v1/completions",
            "completion_window": "1h",
        }
        created = await here.post("/v1/batches", body)
        assert created.status_code == 200, created.text
        path = f"/v1/batches/{created.json()['id']}"
        for _ in range(6000):
            batch = (await there.http.get(path)).json()
            if batch["status"] == "completed":
                break
            await asyncio.sleep(0.01)
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        assert [len(server.manager.requests) for server in servers] == [1, 0]
        for server in servers:
            answers = await server.http.get(f"/v1/files/{batch['output_file_id']}/content")
            assert json.loads(answers.text)["custom_id"] == "a"
            listed = (await server.http.get("/v1/batches?limit=1")).json()
            assert [b["id"] for b in listed["data"]] == [batch["id"]]
            refused = await server.http.post(f"{path}/cancel")
            assert refused.status_code == 400
            assert "completed" in refused.json()["error"]["message"]
            assert (await server.http.get("/v1/batches/none")).status_code == 404

    run(tmp_path, check)


def test_a_state_directory_that_the_leader_can_not_have(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")

    async def check(leader: TinyServer, other: TinyServer) -> None:
        for server in (other, leader):
            for path in ("/v1/files", "/v1/batches"):
                response = await server.http.get(path)
                assert response.status_code == 503
                assert "state_dir" in response.json()["error"]["message"]

    run(tmp_path, check)


def test_a_body_that_is_too_large_is_not_forwarded(tmp_path: Path) -> None:
    async def check(leader: TinyServer, other: TinyServer) -> None:
        response = await other.post("/v1/batches", b" " * (2**20 + 1))
        assert response.status_code == 413

    run(tmp_path, check)
