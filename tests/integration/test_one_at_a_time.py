"""An engine with a single seat and a short queue: who gets in, and what leaving leaves behind."""

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
    "max_queued_requests=12",
    "served_model_name=narrow",
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
        if sum(task.done() for task in tasks) + await num_in_flight(client) >= len(tasks):
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a request did not arrive within a minute")


async def num_in_flight(client: httpx.AsyncClient) -> float:
    text = (await client.get("/metrics")).text
    [number] = re.findall(r"^tokasaurus_requests_in_flight (\S+)", text, re.M)
    return float(number)


def test_a_full_queue_refuses_until_there_is_room(narrow: EngineProcess) -> None:
    """Some of the short requests may find a seat in it; these wait for many seconds."""

    async def main() -> None:
        async with httpx.AsyncClient(base_url=narrow.url, timeout=120) as client:
            body = LONG | {"n": 12, "max_tokens": 2000}
            full = asyncio.create_task(client.post("/v1/completions", json=body))
            while await num_in_flight(client) < 6:
                assert not full.done()
            short = [
                asyncio.create_task(client.post("/v1/completions", json=SHORT)) for _ in range(12)
            ]
            first, _ = await asyncio.wait(short, return_when=asyncio.FIRST_COMPLETED)
            for task in first:
                refused = task.result()
                assert refused.status_code == 429
                assert int(refused.headers["retry-after"]) >= 1
            for task in (full, *short):
                task.cancel()
            for _ in range(6000):
                if (await client.post("/v1/completions", json=SHORT)).status_code == 200:
                    return
                await asyncio.sleep(0.01)
            raise AssertionError("the queue is still full")

    asyncio.run(main())


def test_the_model_has_the_name_that_it_was_given(narrow: EngineProcess) -> None:
    with httpx.Client(base_url=narrow.url, timeout=120) as client:
        [model] = client.get("/v1/models").json()["data"]
        reply = client.post("/v1/completions", json=SHORT | {"model": "narrow"})
        assert model["id"] == reply.json()["model"] == "narrow"
        other = client.post("/v1/completions", json=SHORT | {"model": "demo"})
        assert (other.status_code, other.json()["error"]["code"]) == (404, "model_not_found")


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
