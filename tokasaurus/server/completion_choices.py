"""What a choice of a completion shows of its generation; streams and whole responses agree."""

from typing import Literal

from tokasaurus.errors import EngineFailedError
from tokasaurus.server.generation import Generation
from tokasaurus.server.logprobs import CompletionLogprobsBuilder, joined
from tokasaurus.server.schemas.completions import CompletionChoice, CompletionLogprobs
from tokasaurus.tokenization.tokenizer import Tokenizer


def api_finish_reason(generation: Generation) -> Literal["stop", "length"] | None:
    """None while it runs."""
    reason = generation.finish_reason
    assert reason in (None, "stop", "length"), f"{reason} is no finish reason of the API"
    return reason


class CompletionChoiceWriter:
    """One choice of a completion; echoes its prompt before the first text."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        *,
        echoed: str | None,
        with_logprobs: bool,
        as_ids: bool = False,
    ) -> None:
        """`echoed`: the prompt's text, if the client wants it back. `as_ids`: tokens beside
        log-probabilities show as their ids."""
        self._index = index
        self._tokenizer = tokenizer
        self._echoed = echoed
        self._with_logprobs = with_logprobs
        self._as_ids = as_ids
        self._logprobs: CompletionLogprobsBuilder | None = None

    def take_text(self, generation: Generation) -> str | None:
        """All news if they are no more than further text; None, and nothing taken, otherwise."""
        if self._with_logprobs or self._echoed is not None:
            return None
        return generation.take_text()

    def write(self, generation: Generation) -> CompletionChoice:
        """Everything since the last call."""
        delta = generation.take()
        logprobs = None
        if self._with_logprobs:
            is_first = self._logprobs is None
            builder = self._logprobs or self._new_builder(generation)
            self._logprobs = builder
            if is_first and self._echoed is not None:
                logprobs = _prompt_logprobs(builder, generation)
                logprobs = joined(logprobs, builder.add(delta.logprobs))
            else:
                logprobs = builder.add(delta.logprobs)
        text = delta.text
        if self._echoed is not None:
            text, self._echoed = self._echoed + text, None
        return CompletionChoice(
            index=self._index,
            text=text,
            logprobs=logprobs,
            finish_reason=api_finish_reason(generation),
        )

    def _new_builder(self, generation: Generation) -> CompletionLogprobsBuilder:
        context = [] if self._echoed is not None else generation.request.prompt_ids.tolist()
        detokenizer = self._tokenizer.detokenizer(
            skip_special_tokens=generation.params.skip_special_tokens, prompt_ids=context
        )
        return CompletionLogprobsBuilder(self._tokenizer, detokenizer, as_ids=self._as_ids)


def _prompt_logprobs(
    builder: CompletionLogprobsBuilder, generation: Generation
) -> CompletionLogprobs:
    if len(generation.prompt_logprobs) != generation.num_prompt_tokens - 1:
        raise EngineFailedError("The engine did not score the whole prompt; try again.")
    first = builder.add_unscored(int(generation.request.prompt_ids[0]))
    return joined(first, builder.add(generation.prompt_logprobs))
