"""POST /v1/completions."""

import time
from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.server.best_of import best_samples
from tokasaurus.server.body import parse_body
from tokasaurus.server.completion_choices import CompletionChoiceWriter
from tokasaurus.server.completion_prompts import encode_prompts, split_prompts
from tokasaurus.server.generation import Generation
from tokasaurus.server.ids import new_id
from tokasaurus.server.logprobs import prompt_logprobs
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.prompt_truncation import truncated
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.schemas.completions import Completion, CompletionChoice, CompletionRequest
from tokasaurus.server.schemas.usage import Usage
from tokasaurus.server.state import ServerState, state_of
from tokasaurus.server.streaming import Chunks, EventStream, News, TextEvents
from tokasaurus.server.usage_counting import count_usage
from tokasaurus.server.whole_response import finish_all

router = APIRouter(tags=["completions"])

_DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this path only."""


@router.post(
    "/v1/completions",
    summary="Continue prompts",
    openapi_extra=takes(CompletionRequest),
    responses=answers(Completion, streams=True),
)
async def create_completion(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, CompletionRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    body.check()
    params = body.sampling_params()
    prompts = split_prompts(body.prompt, n=params.n)
    state.engine.check_room(len(prompts) * params.n)
    encoded = await encode_prompts(
        prompts, state, add_special_tokens=body.add_special_tokens is not False
    )
    if body.truncate_prompt_tokens is not None:
        encoded = prompts = [
            truncated(
                ids,
                body.truncate_prompt_tokens,
                state.engine.limits,
                max_output_tokens=params.max_tokens,
            )
            for ids in encoded
        ]
    group = state.engine.submit(
        [Prompt(ids, params) for ids in encoded],
        stream=bool(body.stream),
        default_max_tokens=_DEFAULT_MAX_TOKENS,
        predictor_key="completions",
    )
    maker = _CompletionMaker(state, body, prompts, num_drawn=params.n)
    if body.stream:
        return EventStream(
            group,
            maker.chunks,
            lambda: maker.usage_chunks(count_usage(group.generations, n=params.n)),
        )
    generations = await finish_all(request, group)
    return Response(msgspec.json.encode(maker.whole(generations)), media_type="application/json")


class _CompletionMaker:
    """Builds the response of one request, whole or in chunks."""

    def __init__(
        self,
        state: ServerState,
        body: CompletionRequest,
        prompts: Sequence[str | list[int]],
        *,
        num_drawn: int,
    ) -> None:
        """`num_drawn`: samples per prompt, of which the client sees the best n."""
        self._id = new_id("cmpl-")
        self._created = int(time.time())
        self._model = state.model_name
        self._n = n = body.n or 1
        self._num_drawn = num_drawn
        self._tokenizer = state.tokenizer
        self._scores_prompts = body.prompt_logprobs is not None
        self._null_usage = None if body.includes_usage else msgspec.UNSET
        skip = body.skip_special_tokens is not False
        echoed: list[str | None] = [None] * len(prompts)
        if body.echo:
            echoed = [
                p if isinstance(p, str) else state.tokenizer.decode(p, skip_special_tokens=skip)
                for p in prompts
            ]
        self._text_events: dict[int, TextEvents] = {}
        self._writers = [
            CompletionChoiceWriter(
                index,
                state.tokenizer,
                echoed=echoed[index // n],
                with_logprobs=body.logprobs is not None,
                as_ids=bool(body.return_tokens_as_token_ids),
            )
            for index in range(n * len(prompts))
        ]

    def whole(self, generations: list[Generation]) -> Completion:
        usage = count_usage(generations, n=self._num_drawn)
        if self._num_drawn > self._n:
            generations = best_samples(generations, num_drawn=self._num_drawn, n=self._n)
        choices = [w.write(g) for w, g in zip(self._writers, generations, strict=True)]
        if self._scores_prompts:
            # The choices of a prompt follow one another, whichever samples are the best.
            scores = [prompt_logprobs(g, self._tokenizer) for g in generations[:: self._n]]
            for index, choice in enumerate(choices):
                choice.prompt_logprobs = scores[index // self._n]
        return self._completion(choices, usage)

    def chunks(self, generation: Generation) -> News:
        index = generation.index
        text = self._writers[index].take_text(generation)
        if text is not None:
            if not text:
                return []
            events = self._text_events.get(index) or self._begin_text_events(index)
            return [events.event(text)]
        choice = self._writers[index].write(generation)
        chunks: Chunks = [self._completion([choice], self._null_usage)]
        return chunks

    def _begin_text_events(self, index: int) -> TextEvents:
        def chunk(text: str) -> Completion:
            choice = CompletionChoice(index=index, text=text, logprobs=None, finish_reason=None)
            return self._completion([choice], self._null_usage)

        events = self._text_events[index] = TextEvents(chunk)
        return events

    def usage_chunks(self, usage: Usage) -> Chunks:
        """The last chunk, if the client wants one with the token counts."""
        return [] if self._null_usage is msgspec.UNSET else [self._completion([], usage)]

    def _completion(
        self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None
    ) -> Completion:
        return Completion(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
