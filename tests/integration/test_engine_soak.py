"""2,000 random requests through real processes; afterwards nothing is left anywhere."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.checkpoints import make_checkpoint
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.model_files import read_model_config
from tokasaurus.errors import InvalidRequestError
from tokasaurus.ipc.messages.to_server import ManagerStats
from tokasaurus.launch.background import BackgroundEngine
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.tokenization.tokenizer import Tokenizer

NUM_REQUESTS = 2000
NUM_CALLERS = 48
VOCAB_SIZE = 384


def random_prompt(rng: random.Random) -> Prompt:
    shared = [7 + i % 50 for i in range(rng.choice([0, 0, 20, 40, 90]))]
    prompt_ids = shared + [rng.randrange(6, VOCAB_SIZE) for _ in range(rng.randint(1, 40))]
    if rng.random() < 0.05:
        prompt_ids *= 40  # over-long
    return Prompt(
        prompt_ids,
        SamplingParams(
            n=rng.choice([1, 1, 1, 2, 5]),
            temperature=rng.choice([0.0, 0.7, 1.3]),
            top_k=rng.choice([0, 0, 5]),
            top_p=rng.choice([1.0, 0.8]),
            seed=rng.choice([None, 3]),
            max_tokens=rng.randint(1, 60),
            min_tokens=rng.choice([0, 0, 1]),
            stop=rng.choice([(), (), ("a",), ("th", "\n")]),
            stop_token_ids=rng.choice([(), (40, 41)]),
            ignore_eos=rng.random() < 0.5,
            logprobs=rng.choice([None, None, 0, 3]),
            prompt_logprobs=rng.choice([None] * 9 + [1]),
        ),
    )


async def run_one(client: EngineClient, rng: random.Random) -> str:
    """Submit, follow for a while, perhaps walk away; returns how it ended."""
    prompt = random_prompt(rng)
    patience = rng.choice([None, None, None, 0, 1, 5])
    try:
        group = client.submit([prompt], stream=rng.random() < 0.5)
    except InvalidRequestError:
        assert len(prompt.prompt_ids) > 400
        return "refused"
    with group:
        num_waits = 0
        while patience is None or num_waits < patience:
            if not await group.wait():
                break
            num_waits += 1
    reasons = {generation.finish_reason for generation in group.generations}
    assert None not in reasons
    assert "error" not in reasons
    if patience is None:
        assert "cancelled" not in reasons
        for generation in group.generations:
            assert len(generation.output_ids) <= (prompt.params.max_tokens or 0)
    return "cancelled" if "cancelled" in reasons else "finished"


async def run_all(client: EngineClient) -> Counter[str]:
    numbers = iter(range(NUM_REQUESTS))
    ends: Counter[str] = Counter()

    async def call() -> None:
        for number in numbers:
            ends[await run_one(client, random.Random(number))] += 1

    await asyncio.gather(*(call() for _ in range(NUM_CALLERS)))
    return ends


async def settled_stats(client: EngineClient) -> ManagerStats:
    """The manager's report once it says that nothing runs; one comes when all has become idle."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        stats = client.stats.get(0)
        if not client.num_in_flight and stats and not stats.num_running and not stats.num_queued:
            return stats
        await asyncio.sleep(0.05)
    raise AssertionError(f"{client.num_in_flight} in flight, the manager says {client.stats}")


async def soak(engine: BackgroundEngine, checkpoint: Path) -> tuple[Counter[str], ManagerStats]:
    client = EngineClient(
        engine.addresses,
        0,
        1,
        tokenizer=Tokenizer.load(checkpoint),
        eos_token_ids=read_model_config(checkpoint).eos_token_ids,
    )
    await client.start(deadline_seconds=60)
    try:
        ends = await run_all(client)
        return ends, await settled_stats(client)
    finally:
        await client.close()


@pytest.mark.slow  # two thousand requests to a model on a CPU
@pytest.mark.timeout(280)
def test_nothing_is_left_after_two_thousand_requests(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama", tmp_path / "llama")
    failures: list[str] = []
    engine = BackgroundEngine(
        EngineConfig(
            model=str(checkpoint),
            page_size=4,
            kv_cache_num_tokens=2400,
            max_tokens_per_forward=96,
            max_seqs_per_forward=32,
            debug_checks=True,
        ),
        with_server=False,
        on_failure=failures.append,
        show_progress=False,
    )
    try:
        engine.start()
        ends, stats = asyncio.run(soak(engine, checkpoint))
    finally:
        engine.close()
    assert failures == []
    assert sum(ends.values()) == NUM_REQUESTS
    assert min(ends["finished"], ends["cancelled"], ends["refused"]) > 50
    assert stats.num_blocks_in_use == 0
