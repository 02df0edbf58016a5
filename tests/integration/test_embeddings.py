"""Vectors through real processes: OpenAI's client, sync and async, against transformers' states."""

import asyncio
from collections.abc import Iterator

import numpy as np
import openai
import pytest
import torch

from tests.integration.conftest import Engine
from tests.reference import load_reference
from tokasaurus.demo_model import DEMO_MODEL_DIR
from tokasaurus.tokenization.tokenizer import Tokenizer

TEXTS = ["def add(a, b):\n    return a + b", "The capital of France is Paris.", "x = 1\n" * 150]


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokens() -> list[list[int]]:
    return Tokenizer.load(DEMO_MODEL_DIR).encode_batch(TEXTS)


@pytest.fixture(scope="module")
def states(tokens: list[list[int]]) -> list[np.ndarray]:
    """The last hidden states of each text."""
    model = load_reference(DEMO_MODEL_DIR).base_model
    with torch.inference_mode():
        return [model(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in tokens]


def unit(vectors: list[np.ndarray]) -> np.ndarray:
    stacked = np.stack(vectors)
    return stacked / np.linalg.norm(stacked, axis=1, keepdims=True)


def test_mean_and_last(
    client: openai.OpenAI, engine: Engine, tokens: list[list[int]], states: list[np.ndarray]
) -> None:
    expected = {
        "mean": unit([state.mean(0) for state in states]),
        "last": unit([state[-1] for state in states]),
    }
    for pooling, vectors in expected.items():
        reply = client.embeddings.create(
            model=engine.model, input=TEXTS, extra_body={"pooling": pooling}
        )
        assert [data.index for data in reply.data] == [0, 1, 2]
        np.testing.assert_allclose([d.embedding for d in reply.data], vectors, atol=1e-4)
        assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(map(len, tokens))
    by_default = client.embeddings.create(model=engine.model, input=tokens)
    np.testing.assert_allclose([d.embedding for d in by_default.data], expected["mean"], atol=1e-4)


def test_forms_agree(client: openai.OpenAI, engine: Engine) -> None:
    """The SDK asks for base64 unless told otherwise."""
    [packed] = client.embeddings.create(model=engine.model, input=TEXTS[0]).data
    [plain] = client.embeddings.create(
        model=engine.model, input=TEXTS[0], encoding_format="float"
    ).data
    np.testing.assert_allclose(packed.embedding, plain.embedding, atol=1e-6)
    [short] = client.embeddings.create(model=engine.model, input=TEXTS[0], dimensions=8).data
    np.testing.assert_allclose(short.embedding, unit([np.array(plain.embedding[:8])])[0], atol=1e-6)


def test_refusals(client: openai.OpenAI, engine: Engine) -> None:
    with pytest.raises(openai.BadRequestError, match=r"between 1 and \d+, which is the hidden"):
        client.embeddings.create(model=engine.model, input="a", dimensions=20_000)
    with pytest.raises(openai.BadRequestError, match="has 10000 tokens"):
        client.embeddings.create(model=engine.model, input=[5] * 10_000)
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="text-embedding-3-small", input="a")


def test_many_beside_generations(engine: Engine) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{engine.url}/v1", api_key="none", max_retries=0
        ) as client:
            texts = [f"{i} and {i * i} " * (i % 7 + 1) for i in range(48)]

            async def embed(text: str) -> list[float]:
                reply = await client.embeddings.create(model=engine.model, input=text)
                return reply.data[0].embedding

            async def generate(text: str) -> str:
                reply = await client.completions.create(
                    model=engine.model, prompt=text, max_tokens=12, temperature=0
                )
                return reply.choices[0].text

            vectors, written = await asyncio.gather(
                asyncio.gather(*map(embed, texts)), asyncio.gather(*map(generate, texts))
            )
            assert all(written)
            together = await client.embeddings.create(model=engine.model, input=texts)
            np.testing.assert_allclose(vectors, [d.embedding for d in together.data], atol=1e-4)

    asyncio.run(main())
