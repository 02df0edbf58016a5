"""What a caller may pass as prompts, and what is refused before anything is sent."""

from typing import Any

import numpy as np
import pytest
import tokenizers

from tokasaurus.api.prompts import PromptPreparer, pair_params, split_chats, split_prompts
from tokasaurus.errors import InvalidRequestError, PromptTooLongError
from tokasaurus.server.request_building import ModelLimits
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.tokenizer import Tokenizer

LETTERS = {letter: i for i, letter in enumerate("abcdefgh")}


def make_preparer(template: str | None = None) -> PromptPreparer:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=LETTERS, merges=[]))
    chat_template = None if template is None else ChatTemplate(template, {}, origin="test")
    limits = ModelLimits(max_model_len=6, vocab_size=8, eos_token_ids=(7,))
    return PromptPreparer(Tokenizer(backend, {}), chat_template, limits)


def prepare(prompts: Any, params: Any = None) -> list[list[int]]:
    pairs = list(pair_params(split_prompts(prompts), params))
    return [one.token_ids for one in make_preparer().prepare(pairs)]


@pytest.mark.parametrize(
    ("prompts", "token_ids"),
    [
        ("abc", [[0, 1, 2]]),
        (["abc", "d"], [[0, 1, 2], [3]]),
        ([1, 2], [[1, 2]]),
        ((1, 2), [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", [3]], [[0], [3]]),
        (np.array([1, 2]), [[1, 2]]),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        ([np.array([1, 2])], [[1, 2]]),
        ([np.int64(5)], [[5]]),
        ([], []),
    ],
    ids=repr,
)
def test_forms_of_prompts(prompts: Any, token_ids: list[list[int]]) -> None:
    assert prepare(prompts) == token_ids


def test_prompts_may_come_one_by_one() -> None:
    assert prepare(iter(["a", "b"])) == [[0], [1]]


def test_text_is_kept() -> None:
    (one,) = make_preparer().prepare([("ab", SamplingParams())])
    assert (one.text, one.token_ids) == ("ab", [0, 1])
    assert all(type(i) is int for i in one.token_ids)


@pytest.mark.parametrize(
    "prompts",
    [
        3,
        None,
        {"prompt": "a"},
        [""],
        [[]],
        [None],
        [["a", "b"]],
        [[1, 2.5]],
        [[True]],
        [[8]],
        [[-1]],
    ],
    ids=repr,
)
def test_bad_prompts(prompts: Any) -> None:
    with pytest.raises(InvalidRequestError):
        prepare(prompts)


def test_too_long() -> None:
    with pytest.raises(PromptTooLongError):
        prepare("abcdef")
    with pytest.raises(PromptTooLongError):
        prepare("abc", SamplingParams(max_tokens=4))


def test_stop_token_outside_the_vocabulary() -> None:
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        prepare("abc", SamplingParams(stop_token_ids=[8]))


def test_params_for_each() -> None:
    params = [SamplingParams(n=1), SamplingParams(n=2)]
    pairs = list(pair_params(["a", "b"], params))
    assert [one.n for _, one in pairs] == [1, 2]
    assert [one.n for _, one in pair_params(iter("ab"), params)] == [1, 2]


@pytest.mark.parametrize("num_params", [1, 3])
def test_wrong_number_of_params(num_params: int) -> None:
    params = [SamplingParams()] * num_params
    with pytest.raises(InvalidRequestError, match="sampling_params"):
        pair_params(["a", "b"], params)
    with pytest.raises(InvalidRequestError, match="sampling_params"):
        list(pair_params(iter("ab"), params))


@pytest.mark.parametrize("params", [{"n": 1}, [{"n": 1}], 3], ids=repr)
def test_params_of_another_kind(params: Any) -> None:
    with pytest.raises(InvalidRequestError, match="sampling_params"):
        pair_params(["a"], params)


TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}h{% endif %}"
)


def test_chats_go_through_the_template() -> None:
    chat = [{"role": "user", "content": "ab"}]
    for messages, count in ((chat, 1), ([chat, chat], 2), (iter([chat]), 1)):
        pairs = list(pair_params(split_chats(messages), None))
        prepared = make_preparer(TEMPLATE).prepare_chats(pairs)
        assert [one.token_ids for one in prepared] == [[0, 1, 7]] * count
        assert prepared[0].text == "abh"


@pytest.mark.parametrize(
    "messages",
    ["hi", {"role": "user", "content": "x"}, 3, [[]], [["hi"]], [[{"role": "user"}]], [{"a": 1}]],
    ids=repr,
)
def test_bad_chats(messages: Any) -> None:
    with pytest.raises(InvalidRequestError):
        make_preparer(TEMPLATE).prepare_chats(list(pair_params(split_chats(messages), None)))


def test_model_without_a_chat_template() -> None:
    with pytest.raises(InvalidRequestError, match="chat_template"):
        make_preparer().prepare_chats([([{"role": "user", "content": "x"}], SamplingParams())])
