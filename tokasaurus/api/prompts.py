"""Turns what a caller passes as prompts into token ids with their sampling parameters."""

import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from tokasaurus.errors import InvalidRequestError
from tokasaurus.ipc.messages.to_manager import Pooling
from tokasaurus.server.request_building import (
    CheckedParams,
    ModelLimits,
    build_requests,
    check_prompt_ids,
    checked_params,
)
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.tokenizer import Tokenizer

PromptInput: TypeAlias = str | Sequence[int]
"""One prompt: text, or token ids."""
Message: TypeAlias = Mapping[str, Any]
"""One chat message: {"role": ..., "content": ...}."""
ParamsInput: TypeAlias = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or one per prompt."""


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt that the engine will accept."""

    text: str | None
    token_ids: list[int]
    params: SamplingParams
    pooling: Pooling = ""
    """If set, the prompt's vector is wanted instead of text."""


def split_prompts(prompts: PromptInput | Iterable[PromptInput]) -> Iterable[PromptInput]:
    """Many prompts from one or many: a string or a list of integers is a single prompt."""
    if isinstance(prompts, str):
        return [prompts]
    if hasattr(prompts, "tolist"):  # an array or tensor of token ids
        prompts = prompts.tolist()
    if isinstance(prompts, Mapping) or not isinstance(prompts, Iterable):
        raise InvalidRequestError(
            "Prompts must be a string, token ids, or a list or iterator of these, "
            f"not {type(prompts).__name__}.",
            param="prompts",
        )
    if isinstance(prompts, Sequence) and prompts and _is_token_id(prompts[0]):
        return [prompts]
    return cast(Iterable[PromptInput], prompts)


def split_chats(
    messages: Sequence[Message] | Iterable[Sequence[Message]],
) -> Iterable[Sequence[Message]]:
    """Many chats from one or many: a list of messages is a single chat."""
    if isinstance(messages, str | Mapping) or not isinstance(messages, Iterable):
        raise InvalidRequestError(
            'Chats must be a list of messages like {"role": "user", "content": "Hi"}, or a list '
            f"or iterator of such lists, not {type(messages).__name__}.",
            param="messages",
        )
    if isinstance(messages, Sequence) and messages and isinstance(messages[0], Mapping):
        return [messages]
    return cast(Iterable[Sequence[Message]], messages)


def pair_params(items: Iterable[Any], params: ParamsInput) -> Iterator[tuple[Any, SamplingParams]]:
    """Each item with its parameters. Raises InvalidRequestError if their numbers differ."""
    if params is None or isinstance(params, SamplingParams):
        return zip(items, itertools.repeat(params or SamplingParams()))
    if not isinstance(params, Sequence) or not all(
        isinstance(one, SamplingParams) for one in params
    ):
        raise InvalidRequestError(
            "sampling_params must be a SamplingParams or a list of them.", param="sampling_params"
        )
    if isinstance(items, Sequence) and len(items) != len(params):
        raise InvalidRequestError(
            f"There are {len(items)} prompts but {len(params)} sampling_params; give one for each "
            "prompt, or one for all.",
            param="sampling_params",
        )
    return _pair_strictly(items, params)


def _pair_strictly(
    items: Iterable[Any], params: Sequence[SamplingParams]
) -> Iterator[tuple[Any, SamplingParams]]:
    missing = object()
    for item, one in itertools.zip_longest(items, params, fillvalue=missing):
        if item is missing or not isinstance(one, SamplingParams):
            raise InvalidRequestError(
                "There must be as many sampling_params as prompts.", param="sampling_params"
            )
        yield item, one


class PromptPreparer:
    """Tokenizes and validates, so that nothing invalid is sent."""

    def __init__(
        self, tokenizer: Tokenizer, chat_template: ChatTemplate | None, limits: ModelLimits
    ) -> None:
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._limits = limits

    def prepare(self, pairs: Sequence[tuple[PromptInput, SamplingParams]]) -> list[PreparedPrompt]:
        """Of prompts. Raises InvalidRequestError for the first that is invalid."""
        return self._checked(self._tokenized(pairs))

    def _tokenized(
        self, pairs: Sequence[tuple[PromptInput, SamplingParams]]
    ) -> list[PreparedPrompt]:
        texts = [prompt for prompt, _ in pairs if isinstance(prompt, str)]
        encoded = iter(self._tokenizer.encode_batch(texts))
        return [
            PreparedPrompt(prompt, next(encoded), params)
            if isinstance(prompt, str)
            else PreparedPrompt(None, _token_ids(prompt), params)
            for prompt, params in pairs
        ]

    def prepare_inputs(
        self, pairs: Sequence[tuple[PromptInput, SamplingParams]], pooling: Pooling
    ) -> list[PreparedPrompt]:
        """Of texts whose vectors are wanted. Raises InvalidRequestError like `prepare`."""
        prepared = [replace(one, pooling=pooling) for one in self._tokenized(pairs)]
        for one in prepared:
            check_prompt_ids(one.token_ids, self._limits, param="inputs", needs_output=False)
        return prepared

    def prepare_chats(
        self, pairs: Sequence[tuple[Sequence[Message], SamplingParams]]
    ) -> list[PreparedPrompt]:
        """Of chats, rendered by the model's template, which puts special tokens in itself."""
        if self._chat_template is None:
            raise InvalidRequestError(
                "This model has no chat template; give one with chat_template=..., or use "
                "generate().",
                param="messages",
            )
        texts = [self._chat_template.render(_checked_chat(chat)) for chat, _ in pairs]
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return self._checked(
            [
                PreparedPrompt(text, token_ids, params)
                for text, token_ids, (_, params) in zip(texts, encoded, pairs, strict=True)
            ]
        )

    def _checked(self, prepared: list[PreparedPrompt]) -> list[PreparedPrompt]:
        checked: dict[int, CheckedParams] = {}
        for one in prepared:
            ids = check_prompt_ids(one.token_ids, self._limits)
            params = checked.get(id(one.params))
            if params is None:
                params = checked[id(one.params)] = checked_params(one.params, self._limits)
            build_requests(ids, params, self._limits, lambda: 0)
        return prepared


def _token_ids(prompt: Any) -> list[int]:
    try:
        ids = prompt.tolist() if hasattr(prompt, "tolist") else list(prompt)
    except TypeError:
        ids = None
    if not isinstance(ids, list) or not all(map(_is_token_id, ids)):
        raise InvalidRequestError(
            f"A prompt must be a string or a list of token ids, not {prompt!r:.80}.",
            param="prompts",
        )
    return [int(token_id) for token_id in ids]


def _is_token_id(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _checked_chat(chat: Any) -> Sequence[Message]:
    messages = list(chat) if isinstance(chat, Sequence) and not isinstance(chat, str) else []
    if not messages or not all(
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and ("content" in message or "tool_calls" in message)
        for message in messages
    ):
        raise InvalidRequestError(
            'A chat must be a list of messages like {"role": "user", "content": "Hi"}, not '
            f"{chat!r:.80}.",
            param="messages",
        )
    return messages
