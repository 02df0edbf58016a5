"""SamplingParams hold only what can be honoured."""

import math
from typing import Any

import pytest

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.sampling_params import SamplingParams


def test_defaults_are_valid() -> None:
    params = SamplingParams()
    assert (params.n, params.temperature, params.max_tokens, params.stop) == (1, 1.0, None, ())


def test_stop_is_normalised() -> None:
    assert SamplingParams(stop="x").stop == ("x",)
    assert SamplingParams(stop=["x", "y", "x"]).stop == ("x", "y")
    assert SamplingParams(stop_token_ids=[3, 3, 4]).stop_token_ids == (3, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", True),
        ("n", None),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", "1"),
        ("temperature", 10**5000),
        ("n", 10**5000),
        ("top_p", None),
        ("top_p", -math.inf),
        ("min_p", 2),
        ("top_k", 0.5),
        ("seed", -1),
        ("max_tokens", -1),
        ("max_tokens", 1.0),
        ("min_tokens", None),
        ("stop", [""]),
        ("stop", None),
        ("stop", b"x"),
        ("stop_token_ids", 5),
        ("stop_token_ids", [True]),
        ("ignore_eos", None),
        ("skip_special_tokens", 1),
        ("logprobs", 21),
        ("prompt_logprobs", -1),
        ("cache_salt", None),
        ("frequency_penalty", 2.1),
        ("presence_penalty", None),
        ("repetition_penalty", 0),
        ("logit_bias", [1]),
        ("logit_bias", {"1.5": 1}),
        ("logit_bias", {True: 1}),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", dict.fromkeys(range(1025), 1)),
        ("bad_words", "x"),
        ("bad_words", [""]),
        ("bad_words", ["x" * 9000]),
        ("allowed_token_ids", ["x"]),
        ("priority", 1.5),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError, match=name) as caught:
        SamplingParams(**{name: value})
    assert caught.value.param == name
    assert len(str(caught.value)) < 300


def test_logit_bias_takes_ids_as_json_writes_them() -> None:
    assert SamplingParams(logit_bias={"7": 1, 8: -2.5}).logit_bias == {7: 1.0, 8: -2.5}


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        SamplingParams().n = 5  # type: ignore[misc]
