"""From a prompt and SamplingParams to the requests that a manager takes, one per sample.

All that depends on the model is checked here: nothing invalid reaches a manager.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import msgspec
import numpy as np

from tokasaurus.errors import InvalidRequestError, PromptTooLongError
from tokasaurus.ipc.messages.to_manager import GenerateRequest, Pooling, TokenSampling
from tokasaurus.server.sampling_params import SamplingParams, shown
from tokasaurus.server.structured_output import MAX_GRAMMAR_CHARACTERS
from tokasaurus.tokenization.tokenizer import Tokenizer

_GREEDY_BELOW = 1e-4
"""Temperatures below this draw the most likely token anyway, and would overflow the logits."""
_MAX_BAD_WORD_TOKENS = 64
_NUM_CACHED_BAD_WORDS = 16
"""Lists of them: the prompts of a request share one."""
_MAX_COPIED_IDS = 2**22
"""Of one parameter, in all samples that are submitted together."""
_MAX_COPIED_CHARACTERS = 2**26


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLimits:
    """What requests are held to."""

    max_model_len: int
    """Most tokens of prompt and output together; the KV cache holds at least as many."""
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    hidden_size: int = 0
    """Of embeddings; 0 where the engine makes none."""


def check_prompt_ids(
    prompt_ids: Sequence[int],
    limits: ModelLimits,
    *,
    param: str = "prompt",
    needs_output: bool = True,
) -> np.ndarray:
    """int32 ids. Raises InvalidRequestError if this is empty or no prompt of the model.

    `needs_output`: at least one token more has to fit the context.
    """
    num_tokens = len(prompt_ids)
    if num_tokens == 0:
        raise InvalidRequestError(
            f"{param!r} has no tokens; give it at least one character or token id.", param=param
        )
    if num_tokens + needs_output > limits.max_model_len:
        advice = ", which leaves no room for output" if needs_output else ""
        raise PromptTooLongError(
            f"This model's maximum context length is {limits.max_model_len} tokens, but the prompt "
            f"has {num_tokens} tokens{advice}; shorten it.",
            param=param,
        )
    if set(map(type, prompt_ids)) != {int}:
        raise InvalidRequestError(f"{param!r} must consist of integer token ids.", param=param)
    try:
        ids = np.asarray(prompt_ids, np.int32)
    except OverflowError:
        ids = None
    if ids is None or ids.view(np.uint32).max() >= limits.vocab_size:  # or below 0
        wrong = next(i for i in prompt_ids if not 0 <= i < limits.vocab_size)
        raise InvalidRequestError(
            f"{param!r} contains token id {shown(wrong)}, but ids of this model are between 0 and "
            f"{limits.vocab_size - 1}.",
            param=param,
        )
    return ids


class CheckedParams(NamedTuple):
    """Parameters that the model can honour, and what follows from them for every prompt."""

    params: SamplingParams
    sampling: TokenSampling
    """Of each sample, but for its seed."""
    stop_token_ids: tuple[int, ...]
    priority: int


def checked_params(
    params: SamplingParams,
    limits: ModelLimits,
    *,
    default_priority: int = 0,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> CheckedParams:
    """Once for all prompts that come with them: some checks take long.

    `bad_words` are the token sequences of `params.bad_words`, see `encode_bad_words`.
    Raises InvalidRequestError, which names the parameter.
    """
    _check_ids("stop_token_ids", params.stop_token_ids, limits)
    _check_ids("allowed_token_ids", params.allowed_token_ids, limits)
    _check_ids("logit_bias", params.logit_bias, limits)
    stop_token_ids = () if params.ignore_eos else limits.eos_token_ids
    if params.stop_token_ids:
        stop_token_ids = tuple(dict.fromkeys((*params.stop_token_ids, *stop_token_ids)))
    structured = params.structured_output
    if structured is not None and not stop_token_ids:
        raise InvalidRequestError(
            f"{structured.param!r} needs a token that ends the output; leave out 'ignore_eos' or "
            "give 'stop_token_ids'.",
            param=structured.param,
        )
    grammar = "" if structured is None else structured.compiled()
    early = stop_token_ids if params.min_tokens > 0 else ()
    if params.allowed_token_ids:
        _check_something_is_left(params, {*early, *(word[-1] for word in bad_words)})
    sampling = TokenSampling(
        temperature=0.0 if params.temperature < _GREEDY_BELOW else float(params.temperature),
        top_k=1 if params.top_p == 0 else max(0, params.top_k),
        top_p=1.0 if params.top_p == 0 else float(params.top_p),
        min_p=float(params.min_p),
        min_tokens=params.min_tokens,
        banned_until_min_tokens=early,
        num_top_logprobs=-1 if params.logprobs is None else params.logprobs,
        frequency_penalty=float(params.frequency_penalty),
        presence_penalty=float(params.presence_penalty),
        repetition_penalty=float(params.repetition_penalty),
        bias_ids=tuple(params.logit_bias),
        bias_values=tuple(params.logit_bias.values()),
        allowed_token_ids=tuple(params.allowed_token_ids),
        bad_words=bad_words,
        grammar=grammar,
        end_token_ids=stop_token_ids if grammar else (),
    )
    priority = default_priority if params.priority is None else params.priority
    return CheckedParams(params, sampling, stop_token_ids, priority)


def build_requests(
    prompt_ids: np.ndarray,
    checked: CheckedParams,
    limits: ModelLimits,
    new_request_id: Callable[[], int],
    *,
    default_max_tokens: int | None = None,
    predictor_key: str = "",
    stream: bool = False,
) -> list[GenerateRequest]:
    """`params.n` requests for checked ids, which they share. Only the first scores the prompt.

    With `stream` each token is to come as soon as it is there.
    `default_max_tokens` bounds the output when the client did not; None: the context does.
    Where `params.max_tokens` is 0 the requests draw one token, which the caller drops.
    """
    params = checked.params
    max_tokens = _max_tokens(len(prompt_ids), params, limits, default_max_tokens)
    seed = random.getrandbits(63) if params.seed is None else params.seed
    num_scores = -1 if params.prompt_logprobs is None else params.prompt_logprobs
    return [
        GenerateRequest(
            request_id=new_request_id(),
            prompt_ids=prompt_ids,
            sampling=msgspec.structs.replace(
                checked.sampling,
                seed=(seed + sample) % 2**63,
                num_prompt_logprobs=-1 if sample else num_scores,
            ),
            max_tokens=max(1, max_tokens),
            stop_token_ids=checked.stop_token_ids,
            priority=checked.priority,
            cache_salt=params.cache_salt,
            predictor_key=predictor_key,
            wants_every_token=stream or bool(params.stop),
        )
        for sample in range(params.n)
    ]


def build_embedding_request(
    prompt_ids: Sequence[int],
    pooling: Pooling,
    params: SamplingParams,
    limits: ModelLimits,
    request_id: int,
    *,
    predictor_key: str,
    default_priority: int,
    param: str,
) -> GenerateRequest:
    """A request for a vector. Of `params` only priority and salt count.

    Raises InvalidRequestError if the ids are no prompt, or the engine makes no vectors.
    """
    if not limits.hidden_size:
        raise InvalidRequestError(
            "This engine gives no hidden states, so it can't make embeddings; serve the model with "
            "another runner."
        )
    return GenerateRequest(
        request_id=request_id,
        prompt_ids=check_prompt_ids(prompt_ids, limits, param=param, needs_output=False),
        sampling=TokenSampling(),
        max_tokens=1,
        priority=default_priority if params.priority is None else params.priority,
        cache_salt=params.cache_salt,
        predictor_key=predictor_key,
        pooling=pooling,
    )


def encode_bad_words(
    words: Sequence[str], encode: Callable[[str], Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """The token sequences of each word, as it stands within and at the start of a text."""
    sequences: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for text in (word, bare, f" {bare}"):
            ids = tuple(encode(text))
            if len(ids) > _MAX_BAD_WORD_TOKENS:
                raise InvalidRequestError(
                    f"'bad_words' contains {shown(word)}, which takes {len(ids)} tokens, but a bad "
                    f"word may take {_MAX_BAD_WORD_TOKENS}; shorten it.",
                    param="bad_words",
                )
            if ids:
                sequences[ids] = None
    return tuple(sequences)


def bad_words_encoder(
    tokenizer: Tokenizer,
) -> Callable[[Sequence[str]], tuple[tuple[int, ...], ...]]:
    """`encode_bad_words` for tuples of words; it remembers the latest."""
    encode = partial(tokenizer.encode, add_special_tokens=False)
    return lru_cache(_NUM_CACHED_BAD_WORDS)(partial(encode_bad_words, encode=encode))


def check_copies(
    params: Sequence[SamplingParams],
    encode_words: Callable[[Sequence[str]], tuple[tuple[int, ...], ...]],
) -> None:
    """Of prompts that come together: each of their samples is sent a copy of these lists.

    Raises InvalidRequestError, which names the parameter, where the copies are too large.
    """
    by_identity = {id(one): one for one in params}
    num_prompts = Counter(map(id, params))
    copied: Counter[str] = Counter()
    for key, one in by_identity.items():
        num_samples = num_prompts[key] * one.n
        if one.allowed_token_ids:
            copied["allowed_token_ids"] += num_samples * len(one.allowed_token_ids)
        if one.bad_words:
            copied["bad_words"] += num_samples * sum(map(len, encode_words(one.bad_words)))
        output = one.structured_output
        if output is not None and num_samples * MAX_GRAMMAR_CHARACTERS > _MAX_COPIED_CHARACTERS:
            num_characters = num_samples * len(output.compiled())
            _check_copied(output.param, num_characters, "characters", _MAX_COPIED_CHARACTERS)
    for name, num_ids in copied.items():
        _check_copied(name, num_ids, "token ids", _MAX_COPIED_IDS)


def _check_copied(name: str, num: int, what: str, bound: int) -> None:
    if num > bound:
        raise InvalidRequestError(
            f"{name!r} takes {num} {what} in all samples together, but at most {bound} fit one "
            "request; ask for fewer samples or prompts at a time.",
            param=name,
        )


def _check_ids(name: str, token_ids: Iterable[int], limits: ModelLimits) -> None:
    for token_id in token_ids:
        if not 0 <= token_id < limits.vocab_size:
            raise InvalidRequestError(
                f"{name!r} contains {shown(token_id)}, but ids of this model are between 0 and "
                f"{limits.vocab_size - 1}.",
                param=name,
            )


def _check_something_is_left(params: SamplingParams, banned: set[int]) -> None:
    if banned.issuperset(params.allowed_token_ids):
        raise InvalidRequestError(
            "'bad_words' or 'min_tokens' may ban everything that 'allowed_token_ids' allows; allow "
            "more tokens.",
            param="allowed_token_ids",
        )


def _max_tokens(
    num_prompt_tokens: int,
    params: SamplingParams,
    limits: ModelLimits,
    default_max_tokens: int | None,
) -> int:
    room = limits.max_model_len - num_prompt_tokens
    if params.max_tokens is None:
        if params.min_tokens > room:
            raise InvalidRequestError(
                f"'min_tokens' ({params.min_tokens}) must not be above {room}, which is what the "
                f"context of {limits.max_model_len} tokens leaves after the prompt's "
                f"{num_prompt_tokens}.",
                param="min_tokens",
            )
        wanted = room if default_max_tokens is None else min(room, default_max_tokens)
        return max(wanted, params.min_tokens)
    if params.max_tokens > room:
        raise PromptTooLongError(
            f"This model's maximum context length is {limits.max_model_len} tokens, but the "
            f"request asks for {num_prompt_tokens + params.max_tokens} ({num_prompt_tokens} in the "
            f"prompt, {params.max_tokens} in 'max_tokens'); reduce one of them.",
            param="max_tokens",
        )
    return params.max_tokens
