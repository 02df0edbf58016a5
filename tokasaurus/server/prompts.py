"""What a front end submits: prompts with their parameters, and the requests that come of them."""

from collections.abc import Callable, Sequence

import msgspec

from tokasaurus.ipc.messages.to_manager import GenerateRequest, Pooling
from tokasaurus.server.default_priority import default_priority
from tokasaurus.server.request_building import (
    CheckedParams,
    ModelLimits,
    bad_words_encoder,
    build_embedding_request,
    build_requests,
    check_copies,
    check_prompt_ids,
    checked_params,
)
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.tokenization.tokenizer import Tokenizer


class Prompt(msgspec.Struct, frozen=True):
    """Token ids to continue, and how."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    param: str = "prompt"
    """What a client calls the ids, for messages about them."""
    visible_tokens: tuple[str, ...] = ()
    """Special tokens that stay in the text even where others are skipped."""
    pooling: Pooling = ""
    """If set, no token is drawn: the generation ends with a vector of the ids."""


class RequestBuilder:
    """Checks prompts against a model's limits, and numbers the requests."""

    def __init__(self, tokenizer: Tokenizer, new_request_id: Callable[[], int]) -> None:
        self._new_request_id = new_request_id
        self._encode_bad_words = bad_words_encoder(tokenizer)

    def build(
        self,
        prompts: Sequence[Prompt],
        limits: ModelLimits,
        default_max_tokens: int | None,
        predictor_key: str,
        *,
        stream: bool,
    ) -> list[list[GenerateRequest]]:
        """The samples of each prompt. Raises InvalidRequestError if any can't be honoured.

        Parameters that several prompts share are checked once.
        """
        check_copies([prompt.params for prompt in prompts], self._encode_bad_words)
        checked: dict[int, CheckedParams] = {}
        built = []
        for prompt in prompts:
            if prompt.pooling:
                built.append([self._embedding(prompt, limits, predictor_key)])
                continue
            ids = check_prompt_ids(prompt.prompt_ids, limits, param=prompt.param)
            params = checked.get(id(prompt.params))
            if params is None:
                params = checked[id(prompt.params)] = self._checked(prompt.params, limits)
            built.append(
                build_requests(
                    ids,
                    params,
                    limits,
                    self._new_request_id,
                    default_max_tokens=default_max_tokens,
                    predictor_key=predictor_key,
                    stream=stream,
                )
            )
        return built

    def _checked(self, params: SamplingParams, limits: ModelLimits) -> CheckedParams:
        return checked_params(
            params,
            limits,
            default_priority=default_priority.get(),
            bad_words=self._encode_bad_words(params.bad_words),
        )

    def _embedding(
        self, prompt: Prompt, limits: ModelLimits, predictor_key: str
    ) -> GenerateRequest:
        return build_embedding_request(
            prompt.prompt_ids,
            prompt.pooling,
            prompt.params,
            limits,
            self._new_request_id(),
            predictor_key=predictor_key,
            default_priority=default_priority.get(),
            param=prompt.param,
        )
