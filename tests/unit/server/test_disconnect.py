"""Clients that go away, or don't, at any time around a response."""

import asyncio

import pytest

from tokasaurus.server.disconnect import DisconnectWatch


@pytest.mark.parametrize("leaves_at", ["before", "inside", "at the end", "never"])
@pytest.mark.parametrize("num_turns", [0, 1])
def test_is_told_only_inside(leaves_at: str, num_turns: int) -> None:
    async def check() -> None:
        problems: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        gone, told = asyncio.Event(), []

        async def receive() -> dict[str, str]:
            for _ in range(num_turns):
                await asyncio.sleep(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        if leaves_at == "before":
            gone.set()
        with DisconnectWatch(receive, lambda: told.append(True)):
            for _ in range(4):
                await asyncio.sleep(0)
            if leaves_at == "inside":
                gone.set()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            elif leaves_at == "at the end":
                gone.set()
        for _ in range(4):
            await asyncio.sleep(0)
        assert bool(told) == (leaves_at in ("before", "inside"))
        assert not problems

    asyncio.run(check())
