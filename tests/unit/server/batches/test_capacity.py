"""Places are never given out twice, never lost, and nobody is overtaken."""

import asyncio
import random

import msgspec
import pytest

from tokasaurus.server.batches.capacity import Capacity
from tokasaurus.server.batches.item_runner import num_samples


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_first_come_first_served() -> None:
    async def main() -> None:
        capacity = Capacity(4)
        order: list[str] = []

        async def take(name: str, num_places: int) -> None:
            await capacity.acquire(num_places)
            order.append(name)

        held = await capacity.acquire(3)
        tasks = [asyncio.create_task(take(n, k)) for n, k in (("large", 4), ("small", 1))]
        await settle()
        assert order == []
        capacity.release(held)
        await settle()
        assert order == ["large"]
        capacity.release(4)
        await asyncio.gather(*tasks)
        assert order == ["large", "small"]

    asyncio.run(main())


def test_more_than_all_is_all() -> None:
    async def main() -> None:
        capacity = Capacity(4)
        assert await capacity.acquire(100) == 4
        capacity.release(4)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(20))
def test_cancelled_waiters_lose_no_places(seed: int) -> None:
    async def main() -> None:
        rng = random.Random(seed)
        capacity = Capacity(5)
        held = 0

        async def use() -> None:
            nonlocal held
            places = await capacity.acquire(rng.randint(1, 7))
            try:
                held += places
                assert held <= 5
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)
            finally:
                held -= places
                capacity.release(places)

        tasks = [asyncio.create_task(use()) for _ in range(50)]
        for _ in range(100):
            await asyncio.sleep(0)
            rng.choice(tasks).cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.wait_for(capacity.acquire(5), 60) == 5

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"prompt": "a"}', 1),
        (b'{"prompt": ["a", "b"], "n": 3}', 6),
        (b'{"prompt": ["a", "b"], "n": 3, "best_of": 5}', 10),
        (b'{"prompt": [7, 8], "n": 3, "best_of": null}', 3),
        (b'{"n": "many", "best_of": 4}', 4),
        (b'{"n": -1, "best_of": [2]}', 1),
    ],
)
def test_places_of_an_item(body: bytes, expected: int) -> None:
    assert num_samples(msgspec.json.decode(body, type=dict[str, msgspec.Raw])) == expected
