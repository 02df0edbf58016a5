"""200 streams at once whose clients leave when they like: nothing of them stays anywhere."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable

import httpx
import pytest

from tests.integration.conftest import Engine
from tests.integration.engine_process import EngineProcess

NUM_STREAMS = 200
PATHS = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")
IDLE = (
    "tokasaurus_sequences_running",
    "tokasaurus_sequences_queued",
    "tokasaurus_requests_in_flight",
    "tokasaurus_kv_blocks_in_use",
)


def body_of(path: str, rng: random.Random) -> dict[str, object]:
    text = "Count: " + "1, " * rng.randint(1, 80)
    messages = [{"role": "user", "content": text}]
    long = rng.choice([3, 400])
    return {
        "/v1/completions": {"prompt": text, "max_tokens": long, "ignore_eos": True, "n": 2},
        "/v1/chat/completions": {"messages": messages, "max_tokens": long, "ignore_eos": True},
        "/v1/responses": {"input": text, "max_output_tokens": long},
        "/v1/messages": {"messages": messages, "max_tokens": long},
    }[path] | {"stream": True}


async def follow(http: httpx.AsyncClient, number: int) -> str:
    rng = random.Random(number)
    path = PATHS[number % len(PATHS)]
    patience = rng.choice([None, 0, 1, 3, 20])
    async with http.stream("POST", path, json=body_of(path, rng)) as response:
        assert response.status_code == 200
        num_lines = 0
        async for _ in response.aiter_lines():
            num_lines += 1
            if patience is not None and num_lines > patience:
                return "left"
    return "read to the end"


async def follow_all(url: str) -> Counter[str]:
    limits = httpx.Limits(max_connections=NUM_STREAMS)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        return Counter(await asyncio.gather(*(follow(http, i) for i in range(NUM_STREAMS))))


def gauges(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    found: dict[str, float] = {}
    for line in lines:
        name, _, value = line.rpartition(" ")
        name = name.split("{")[0]
        if name in IDLE:
            found[name] = found.get(name, 0) + float(value)
    return found


def num_open_files(process: EngineProcess) -> int:
    return sum(child.num_fds() for child in process.children().values())


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@pytest.mark.timeout(280)
def test_nothing_is_left_of_200_streams(engine: Engine) -> None:
    process = engine.process
    asyncio.run(follow_all(engine.url))
    wait_until(lambda: not any(gauges(engine.url).values()), "something still runs")
    assert set(gauges(engine.url)) == set(IDLE)
    files = num_open_files(process)
    memory = process.children()["server0"].memory_info().rss
    ends = asyncio.run(follow_all(engine.url))
    assert min(ends["left"], ends["read to the end"]) > 20
    wait_until(lambda: not any(gauges(engine.url).values()), "something still runs")
    wait_until(lambda: num_open_files(process) <= files, "connections stay open")
    assert process.children()["server0"].memory_info().rss < memory + 64 * 2**20
