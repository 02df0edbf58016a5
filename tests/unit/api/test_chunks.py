"""What `LLM` submits at a time stays below what one request may send copies of."""

from tokasaurus import SamplingParams
from tokasaurus.api.llm import _chunks
from tokasaurus.server.request_building import check_copies


def sizes(params: SamplingParams, num_prompts: int) -> list[int]:
    chunks = list(_chunks(iter([("", params)] * num_prompts)))
    for chunk in chunks:
        check_copies([params for _, params in chunk], lambda words: ())
    return [len(chunk) for chunk in chunks]


def test_samples_bound_a_chunk() -> None:
    assert sizes(SamplingParams(), 600) == [256, 256, 88]
    assert sizes(SamplingParams(n=100), 4) == [3, 1]


def test_long_lists_of_allowed_tokens_weigh_too() -> None:
    assert sizes(SamplingParams(allowed_token_ids=list(range(150_000))), 30) == [14, 14, 2]
