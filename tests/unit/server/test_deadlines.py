"""Requests that take too long, and readers that take nothing, are given up; nothing is left."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.server.raw_client import PATHS, RawClient
from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.server.sender import Sender

SHORT = 0.01


def body_for(path: str, **body: Any) -> dict[str, Any]:
    if "chat" in path:
        return {"messages": [{"role": "user", "content": "Hi"}]} | body
    return {"prompt": "Hi"} | body


@pytest.mark.parametrize("path", PATHS)
def test_a_request_ends_at_its_timeout(path: str) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        response = await server.post(path, body_for(path, timeout=SHORT, n=3))
        assert response.status_code == 504
        assert response.headers["x-should-retry"] == "false"
        error = response.json()["error"]
        assert (error["type"], error["code"]) == ("timeout_error", "timeout")
        assert "0.01 s" in error["message"]
        assert len(server.manager.cancelled) == 3

    run(check)


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_ends_at_its_timeout(path: str) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        chunks = await server.stream(path, body_for(path, timeout=SHORT))
        assert chunks[-1]["error"]["code"] == "timeout"

    run(check)


def test_the_default_is_for_those_that_say_nothing() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        await server.error(PATHS[0], {"prompt": "Hi"}, 504)
        patient = asyncio.create_task(server.complete(timeout=600, max_tokens=1))
        await until(lambda: bool(server.manager.running))
        await asyncio.sleep(5 * SHORT)
        server.manager.tick()
        assert (await patient)["usage"]["completion_tokens"] == 1

    run(check, default_timeout_seconds=SHORT)


def test_who_finishes_in_time_leaves_no_timer() -> None:
    async def check(server: TinyServer) -> None:
        loop = asyncio.get_running_loop()
        await server.complete(timeout=1000)
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]
        assert not [timer for timer in timers if timer.when() > loop.time() + 500]

    run(check)


@pytest.mark.parametrize("timeout", [0, -1, 1e12, "1", True])
def test_timeouts_that_are_none(timeout: object) -> None:
    async def check(server: TinyServer) -> None:
        for path in PATHS:
            error = await server.error(path, body_for(path, timeout=timeout))
            assert error["param"] == "timeout"

    run(check)


async def until(is_so: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_so():
            return
        await asyncio.sleep(SHORT)
    raise AssertionError("it never was")


class StuckClient(RawClient):
    """Its connection's buffers are full from the first event on, until it is `released`."""

    def __init__(self, server: TinyServer, path: str, **body: Any) -> None:
        self.released = asyncio.Event()
        super().__init__(server, path, **body)

    async def _send(self, message: dict[str, Any]) -> None:
        await super()._send(message)
        if message["type"] == "http.response.body":
            await self.released.wait()


def test_a_reader_that_takes_nothing_is_given_up() -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        client = StuckClient(server, PATHS[0], stream=True, max_tokens=40)
        await until(lambda: bool(server.manager.running))
        server.manager.tick()
        await until(lambda: bool(server.manager.cancelled))
        assert not server.manager.running
        client.released.set()
        await client.task
        assert b"slow_reader" in client.writes[-2]

    run(check, stream_stall_seconds=SHORT)


class FullConnection:
    """Takes a message at once, or when it has `room`."""

    def __init__(self) -> None:
        self.room = asyncio.Event()
        self.taken: list[Any] = []

    async def send(self, message: Any) -> None:
        while not self.room.is_set():
            await self.room.wait()
            await asyncio.sleep(0)
        self.taken.append(message)


def test_a_write_that_need_not_wait_is_done_at_once() -> None:
    async def main() -> None:
        connection = FullConnection()
        connection.room.set()
        sender = Sender(connection.send, 10, lambda: None)
        sender.begin({"type": "a"})
        assert not sender.is_blocked
        assert connection.taken == [{"type": "a"}]

    asyncio.run(main())


def test_a_write_that_waits_goes_on_in_a_task() -> None:
    async def main() -> None:
        connection = FullConnection()
        stalls: list[str] = []
        sender = Sender(connection.send, 60, lambda: stalls.append("stall"))
        sender.begin({})
        assert sender.is_blocked
        finishing = asyncio.create_task(sender.finish())
        await asyncio.sleep(0)
        assert not finishing.done()
        connection.room.set()
        await finishing
        assert not sender.is_blocked
        assert (connection.taken, stalls) == ([{}], [])

    asyncio.run(main())


def test_a_write_that_waits_can_be_cancelled_and_stalls_once() -> None:
    async def main() -> None:
        connection = FullConnection()
        stalled = asyncio.Event()
        sender = Sender(connection.send, SHORT, stalled.set)
        writing = asyncio.create_task(sender.send({}))
        await stalled.wait()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert not sender.is_blocked
        assert not connection.taken
        sender.begin({})
        sender.close()
        assert not sender.is_blocked

    asyncio.run(main())
