"""Requests as a manager takes them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.unit.server.tiny_server import TOKENIZER
from tokasaurus.errors import InvalidRequestError, PromptTooLongError
from tokasaurus.ipc.messages.to_manager import GenerateRequest
from tokasaurus.server.request_building import (
    ModelLimits,
    bad_words_encoder,
    build_requests,
    check_copies,
    check_prompt_ids,
    checked_params,
    encode_bad_words,
)
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.structured_output import StructuredOutput
from tokasaurus.tokenization.tokenizer import Tokenizer

LIMITS = ModelLimits(max_model_len=10, vocab_size=100, eos_token_ids=(2, 3))


def build(
    num_prompt: int = 4, default: int | None = None, **params: object
) -> list[GenerateRequest]:
    ids = check_prompt_ids([5] * num_prompt, LIMITS)
    return build_requests(
        ids,
        checked_params(SamplingParams(**params), LIMITS),
        LIMITS,
        itertools.count(7).__next__,
        default_max_tokens=default,
        predictor_key="k",
    )


def test_samples() -> None:
    requests = build(n=3, seed=2**63 - 2)
    assert [r.request_id for r in requests] == [7, 8, 9]
    assert [r.sampling.seed for r in requests] == [2**63 - 2, 2**63 - 1, 0]
    assert all(r.prompt_ids is requests[0].prompt_ids for r in requests)
    assert requests[0].prompt_ids.dtype == np.int32
    assert requests[0].predictor_key == "k"


def test_only_the_first_sample_scores_the_prompt() -> None:
    assert [r.sampling.num_prompt_logprobs for r in build(n=3, prompt_logprobs=2)] == [2, -1, -1]
    assert [r.sampling.num_prompt_logprobs for r in build(n=2)] == [-1, -1]


@pytest.mark.parametrize(("given", "expected"), [({}, 7), ({"priority": 0}, 0)])
def test_a_priority_that_is_given_stays(given: dict[str, int], expected: int) -> None:
    checked = checked_params(SamplingParams(**given), LIMITS, default_priority=7)
    assert checked.priority == expected


def test_random_seeds_differ() -> None:
    seeds = {build()[0].sampling.seed for _ in range(20)}
    assert len(seeds) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "default", "expected"),
    [(4, None, None, 6), (4, None, 3, 3), (9, None, 16, 1), (4, 6, 3, 6), (4, 0, None, 1)],
)
def test_max_tokens(
    num_prompt: int, max_tokens: int | None, default: int | None, expected: int
) -> None:
    [request] = build(num_prompt, default, max_tokens=max_tokens)
    assert request.max_tokens == expected


def test_min_tokens_raise_the_default() -> None:
    [request] = build(default=2, min_tokens=5)
    assert request.max_tokens == 5


def test_too_long() -> None:
    with pytest.raises(PromptTooLongError, match="10 tokens, but the prompt has 10"):
        build(10)
    with pytest.raises(PromptTooLongError, match=r"asks for 11 \(4 in the prompt, 7 in"):
        build(max_tokens=7)
    with pytest.raises(InvalidRequestError, match="must not be above 6"):
        build(min_tokens=7)


def test_stop_tokens() -> None:
    [request] = build(stop_token_ids=[9, 2])
    assert request.stop_token_ids == (9, 2, 3)
    assert request.sampling.banned_until_min_tokens == ()
    [request] = build(stop_token_ids=[9], ignore_eos=True, min_tokens=1)
    assert request.stop_token_ids == (9,)
    assert request.sampling.banned_until_min_tokens == (9,)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"temperature": 1e-9}, (0.0, 0, 1.0)),
        ({"temperature": 1, "top_k": -1}, (1.0, 0, 1.0)),
        ({"top_p": 0}, (1.0, 1, 1.0)),
        ({"top_p": 0.5, "top_k": 3}, (1.0, 3, 0.5)),
    ],
)
def test_values_that_mean_the_same(
    params: dict[str, object], expected: tuple[float, int, float]
) -> None:
    sampling = build(**params)[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == expected


@pytest.mark.parametrize("ids", [[], [-1], [100], [1.0], [True], ["a"], [2**70], [None, 1]])
def test_no_prompt(ids: list[object]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_prompt_ids(ids, LIMITS, param="input")  # type: ignore[arg-type]
    assert caught.value.param == "input"


def test_what_changes_the_logits_reaches_the_worker() -> None:
    [request] = build(
        frequency_penalty=1,
        presence_penalty=0.5,
        repetition_penalty=1.25,
        logit_bias={"9": 3, "4": -1},
        allowed_token_ids=[4, 9, 4],
    )
    sampling = request.sampling
    assert (sampling.frequency_penalty, sampling.presence_penalty) == (1.0, 0.5)
    assert sampling.repetition_penalty == 1.25
    assert dict(zip(sampling.bias_ids, sampling.bias_values, strict=True)) == {9: 3.0, 4: -1.0}
    assert sampling.allowed_token_ids == (4, 9)
    assert sampling.depends_on_tokens
    assert not build()[0].sampling.depends_on_tokens


def test_bad_words_with_and_without_a_leading_space() -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    words = encode_bad_words(["ab", " c"], encode)
    assert set(words) == {(97, 98), (32, 97, 98), (99,), (32, 99)}
    with pytest.raises(InvalidRequestError, match="takes 65 tokens"):
        encode_bad_words(["x" * 64], encode)


def test_bad_words_that_prompts_share_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    def encode(self: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        texts.append(text)
        return [5]

    monkeypatch.setattr(Tokenizer, "encode", encode)
    encoder = bad_words_encoder(TOKENIZER)
    assert encoder(("ab",)) == encoder(("ab",)) == ((5,),)
    assert texts == ["ab", "ab", " ab"]


@pytest.mark.parametrize(
    ("n", "num_prompts", "values", "param"),
    [
        (4096, 1, {"allowed_token_ids": list(range(1025))}, "allowed_token_ids"),
        (2, 2048, {"allowed_token_ids": list(range(1025))}, "allowed_token_ids"),
        (4096, 1, {"bad_words": ["a" * 20, "b" * 20]}, "bad_words"),
        (
            4096,
            1,
            {"structured_output": StructuredOutput(choice=["a" * 20_000])},
            "structured_output",
        ),
    ],
)
def test_lists_that_all_samples_get_copies_of_are_bounded(
    n: int, num_prompts: int, values: dict[str, Any], param: str
) -> None:
    def encode_words(words: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return tuple((5,) * 1000 for _ in words)

    with pytest.raises(InvalidRequestError, match="fewer samples or prompts") as caught:
        check_copies([SamplingParams(n=n, **values)] * num_prompts, encode_words)
    assert caught.value.param == param
    check_copies([SamplingParams(**values)] * num_prompts, encode_words)
