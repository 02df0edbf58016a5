"""An engine with a single seat: order of admission, and what walking away leaves behind."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.engine_process import EngineProcess

OPTIONS = (
    "max_seqs_per_forward=1",
    "max_tokens_per_forward=64",
    "scheduling_steps_ahead=1",
    "kv_cache_num_tokens=4096",
    "cpu_threads=1",
    "dtype=float32",
    "debug_checks=True",
    "request_log=True",
)
LONG = {"prompt": [9] * 20, "max_tokens": 600, "ignore_eos": True, "temperature": 0}
SHORT = {"prompt": "import ", "max_tokens": 3, "temperature": 0}


@pytest.fixture(scope="module")
def narrow() -> Iterator[EngineProcess]:
    with EngineProcess(OPTIONS) as process:
        process.wait_until_ready()
        yield process
        assert process.stop() == 0, process.output


def test_waiting_requests_are_admitted_in_order(narrow: EngineProcess) -> None:
    names = [f"request-{number}" for number in range(7)]

    async def main() -> None:
        async with httpx.AsyncClient(base_url=narrow.url, timeout=120) as client:

            async def ask(name: str, body: dict[str, Any]) -> None:
                headers = {"X-Request-Id": name}
                reply = await client.post("/v1/completions", json=body, headers=headers)
                assert reply.status_code == 200

            tasks = []
            for name, body in zip(names, [LONG] + [SHORT] * 6, strict=True):
                tasks.append(asyncio.create_task(ask(name, body)))
                await until_all_have_arrived(client, tasks)
            await asyncio.gather(*tasks)

    asyncio.run(main())
    logged = [re.search("request-[0-9]", narrow.wait_for_line("request-")) for _ in names]
    assert [match and match[0] for match in logged] == names


async def until_all_have_arrived(client: httpx.AsyncClient, tasks: list[asyncio.Task]) -> None:
    for _ in range(6000):
        num_done = sum(task.done() for task in tasks)
        text = (await client.get("/metrics")).text
        [num_in_flight] = re.findall(r"^tokasaurus_requests_in_flight (\S+)", text, re.M)
        if num_done + float(num_in_flight) >= len(tasks):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a request did not arrive within a minute")


def test_a_client_that_leaves_frees_the_seat(narrow: EngineProcess) -> None:
    """Whether its prefill, its decode or its wait in the queue is interrupted."""

    async def main() -> None:
        async with httpx.AsyncClient(base_url=narrow.url, timeout=120) as client:
            for seconds in (0.0, 0.02, 0.3):
                prompt = {"prompt": list(range(6, 1500)), "max_tokens": 500, "ignore_eos": True}
                for stream in (False, True):
                    leaving = [
                        asyncio.create_task(
                            client.post("/v1/completions", json={**prompt, "stream": stream})
                        )
                        for _ in range(2)
                    ]
                    await asyncio.sleep(seconds)
                    for task in leaving:
                        task.cancel()
                    await asyncio.gather(*leaving, return_exceptions=True)
            reply = await client.post("/v1/completions", json=SHORT)
            assert reply.status_code == 200
            for _ in range(600):
                text = (await client.get("/metrics")).text
                counts = re.findall(
                    r"^tokasaurus_\w*(?:running|queued)\w*(?:{.*})? (\S+)", text, re.M
                )
                if counts and not any(map(float, counts)):
                    return
                await asyncio.sleep(0.1)
            raise AssertionError(text)

    asyncio.run(main())


def test_unlikely_tokens_have_finite_scores(narrow: EngineProcess) -> None:
    body = {"prompt": list(range(6, 1500)), "max_tokens": 0, "echo": True, "logprobs": 1}
    reply = httpx.post(f"{narrow.url}/v1/completions", json=body, timeout=120)
    scores = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert scores[0] is None
    assert all(-1e5 < score <= 0 for score in scores[1:])
