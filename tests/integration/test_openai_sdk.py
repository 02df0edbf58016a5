"""The current OpenAI SDK, sync and async, against real processes serving the demo model."""

import asyncio
import math
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.integration.conftest import Engine

GREETING = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI, engine: Engine) -> None:
    assert [model.id for model in client.models.list()] == [engine.model]


def test_chat(client: openai.OpenAI, engine: Engine) -> None:
    reply = client.chat.completions.create(
        model=engine.model, messages=GREETING, temperature=0, max_tokens=30
    )
    assert reply.object == "chat.completion"
    assert reply.choices[0].message.role == "assistant"
    assert "5" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_streamed_chat_equals_whole(client: openai.OpenAI, engine: Engine) -> None:
    def ask(**options: object) -> object:
        return client.chat.completions.create(
            model=engine.model, messages=GREETING, temperature=0, max_tokens=20, **options
        )

    whole = ask()
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert reasons[:-1] == [None] * (len(reasons) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])


def test_completion_forms(client: openai.OpenAI, engine: Engine) -> None:
    def complete(prompt: object) -> openai.types.Completion:
        return client.completions.create(
            model=engine.model, prompt=prompt, temperature=0, max_tokens=8
        )

    alone = complete("def add(a, b):")
    several = complete(["import os", "def add(a, b):"])
    assert several.choices[1].text == alone.choices[0].text
    assert [c.index for c in several.choices] == [0, 1]
    ids = [40, 41, 42, 43]
    assert complete(ids).choices[0].text == complete([[50], ids]).choices[1].text
    assert complete(ids).usage.prompt_tokens == 4


def test_samples_differ_and_repeat(client: openai.OpenAI, engine: Engine) -> None:
    def sample() -> list[str]:
        reply = client.completions.create(
            model=engine.model, prompt="def ", n=4, seed=11, temperature=1.0, max_tokens=16
        )
        assert reply.usage is not None
        assert reply.usage.completion_tokens <= 4 * 16
        return [choice.text for choice in reply.choices]

    first = sample()
    assert len(set(first)) > 1
    assert sample() == first


def test_prompt_is_counted_once(client: openai.OpenAI, engine: Engine) -> None:
    def usage(n: int) -> openai.types.CompletionUsage:
        reply = client.completions.create(
            model=engine.model, prompt="class Node:", n=n, max_tokens=2, temperature=0
        )
        assert reply.usage is not None
        return reply.usage

    assert usage(3).prompt_tokens == usage(1).prompt_tokens


def test_cached_tokens_are_reported(client: openai.OpenAI, engine: Engine) -> None:
    prompt = [7 + i % 200 for i in range(100)]
    counts = []
    for _ in range(2):
        usage = client.completions.create(model=engine.model, prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        counts.append(usage.prompt_tokens_details.cached_tokens)
    assert counts[0] == 0
    assert 64 <= (counts[1] or 0) < 100


def test_stop_strings_of_any_length(client: openai.OpenAI, engine: Engine) -> None:
    whole = client.completions.create(
        model=engine.model, prompt="import os\nimport sys\n", temperature=0, max_tokens=40
    ).choices[0]
    assert len(whole.text) > 20
    for stop in (whole.text[9], whole.text[5:18]):
        cut = client.completions.create(
            model=engine.model,
            prompt="import os\nimport sys\n",
            temperature=0,
            max_tokens=40,
            stop=["never to be seen \u2603", stop],
        ).choices[0]
        assert cut.text == whole.text[: whole.text.index(stop)]
        assert cut.finish_reason == "stop"


def test_length_and_min_tokens(client: openai.OpenAI, engine: Engine) -> None:
    reply = client.chat.completions.create(
        model=engine.model,
        messages=GREETING,
        max_completion_tokens=40,
        temperature=0,
        extra_body={"min_tokens": 40},
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 40
    assert reply.choices[0].finish_reason == "length"


def test_ignore_eos(client: openai.OpenAI, engine: Engine) -> None:
    reply = client.chat.completions.create(
        model=engine.model,
        messages=GREETING,
        temperature=0,
        max_tokens=24,
        extra_body={"ignore_eos": True},
    )
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 24
    assert reply.choices[0].finish_reason == "length"


def test_stop_token_ids(client: openai.OpenAI, engine: Engine) -> None:
    def complete(**extra: object) -> openai.types.CompletionChoice:
        return client.completions.create(
            model=engine.model,
            prompt="import os\nimport sys\n",
            temperature=0,
            max_tokens=24,
            logprobs=0,
            extra_body=extra,
        ).choices[0]

    free = complete()
    tokens = free.logprobs.tokens
    stop = tokens[5]
    body = {"prompt": stop, "add_special_tokens": False}
    stop_ids = httpx.post(f"{engine.url}/tokenize", json=body, timeout=60).json()["tokens"]
    assert len(stop_ids) == 1, f"{stop!r} is not one token"
    stopped = complete(stop_token_ids=stop_ids)
    first = tokens.index(stop)
    assert stopped.finish_reason == "stop"
    assert stopped.text == "".join(tokens[:first])
    assert len(stopped.logprobs.tokens) == first + 1


def test_chat_logprobs(client: openai.OpenAI, engine: Engine) -> None:
    reply = client.chat.completions.create(
        model=engine.model,
        messages=GREETING,
        temperature=0,
        max_tokens=5,
        logprobs=True,
        top_logprobs=3,
    )
    content = reply.choices[0].logprobs.content
    assert reply.usage is not None
    assert len(content) == reply.usage.completion_tokens
    for token in content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
        assert -100 < token.logprob <= 0
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001


def test_echo_scores_the_prompt(client: openai.OpenAI, engine: Engine) -> None:
    prompt = "def main():\n    return"
    reply = client.completions.create(
        model=engine.model, prompt=prompt, echo=True, logprobs=2, max_tokens=4, temperature=0
    )
    choice, usage = reply.choices[0], reply.usage
    assert choice.text.startswith(prompt)
    assert usage is not None
    assert choice.logprobs.token_logprobs[0] is None
    assert len(choice.logprobs.tokens) == usage.prompt_tokens + usage.completion_tokens
    assert "".join(choice.logprobs.tokens) == choice.text
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    scored = client.completions.create(
        model=engine.model, prompt=choice.text, echo=True, logprobs=0, max_tokens=0
    )
    assert scored.choices[0].text == choice.text
    assert scored.choices[0].logprobs.token_logprobs[1:] == pytest.approx(
        choice.logprobs.token_logprobs[1:], abs=0.05
    )


def test_async_client_many_at_once(engine: Engine) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{engine.url}/v1", api_key="none", max_retries=0
        ) as client:

            async def ask(i: int) -> str:
                stream = await client.chat.completions.create(
                    model=engine.model,
                    messages=[{"role": "user", "content": f"What is 1 + {i % 5}?"}],
                    temperature=0,
                    max_tokens=16,
                    stream=True,
                )
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*(ask(i) for i in range(64)))

    replies = asyncio.run(main())
    assert all(replies)


def test_same_seed_alone_and_in_a_batch(client: openai.OpenAI, engine: Engine) -> None:
    """float32 on this engine, so that logits can't tie differently by batch shape."""
    options = {
        "model": engine.model,
        "prompt": "class Queue:",
        "temperature": 0.9,
        "max_tokens": 24,
    }
    alone = client.completions.create(**options, seed=5).choices[0].text

    async def crowd() -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{engine.url}/v1", api_key="none", max_retries=0
        ) as many:
            others = [many.completions.create(**{**options, "seed": 100 + i}) for i in range(63)]
            mine = many.completions.create(**options, seed=5)
            results = await asyncio.gather(mine, *others)
            return results[0].choices[0].text

    assert asyncio.run(crowd()) == alone
