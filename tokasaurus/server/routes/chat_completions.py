"""POST /v1/chat/completions."""

import time
import uuid

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.server.body import parse_body
from tokasaurus.server.chat_prompts import render_chat
from tokasaurus.server.choices import ChatChoiceWriter, chat_choice
from tokasaurus.server.engine_client import Prompt
from tokasaurus.server.generation import Generation
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.prompt_truncation import truncated
from tokasaurus.server.schemas.chat_completions import (
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionRequest,
)
from tokasaurus.server.schemas.usage import Usage
from tokasaurus.server.state import ServerState, state_of
from tokasaurus.server.streaming import Chunks, EventStream
from tokasaurus.server.usage_counting import count_usage
from tokasaurus.server.whole_response import CLIENT_CLOSED_REQUEST, finish_all

router = APIRouter(tags=["chat"])


@router.post(
    "/v1/chat/completions",
    summary="Answer a chat",
    openapi_extra=takes(ChatCompletionRequest),
    responses=answers(ChatCompletion, streams=True),
)
async def create_chat_completion(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, ChatCompletionRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    body.check()
    params = body.sampling_params()
    text = render_chat(
        state,
        body.messages,
        add_generation_prompt=body.add_generation_prompt is not False,
        variables=body.chat_template_kwargs,
    )
    [prompt_ids] = await state.encoding_pool.encode(
        [text], add_special_tokens=bool(body.add_special_tokens)
    )
    prompt_ids = truncated(
        prompt_ids,
        body.truncate_prompt_tokens,
        state.engine.limits,
        max_output_tokens=params.max_tokens,
    )
    group = state.engine.submit(
        [Prompt(prompt_ids, params, "messages")],
        stream=bool(body.stream),
        predictor_key="chat",
    )
    maker = _ChatMaker(state, body, params.n)
    if body.stream:
        return EventStream(
            group,
            maker.chunks,
            lambda: maker.usage_chunks(count_usage(group.generations, n=params.n)),
        )
    generations = await finish_all(request, group)
    if generations is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return Response(msgspec.json.encode(maker.whole(generations)), media_type="application/json")


class _ChatMaker:
    """Builds the response of one request, whole or in chunks."""

    def __init__(self, state: ServerState, body: ChatCompletionRequest, n: int) -> None:
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._model = state.model_name
        self._tokenizer = state.tokenizer
        self._n = n
        self._null_usage = None if body.includes_usage else msgspec.UNSET
        self._writers = [ChatChoiceWriter(state.tokenizer) for _ in range(n)]

    def whole(self, generations: list[Generation]) -> ChatCompletion:
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[chat_choice(g, self._tokenizer) for g in generations],
            usage=count_usage(generations, n=self._n),
        )

    def chunks(self, generation: Generation) -> Chunks:
        choices = self._writers[generation.index].write(generation)
        return [self._chunk([choice], self._null_usage) for choice in choices]

    def usage_chunks(self, usage: Usage) -> Chunks:
        """The last chunk, if the client wants one with the token counts."""
        return [] if self._null_usage is msgspec.UNSET else [self._chunk([], usage)]

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | msgspec.UnsetType | None
    ) -> ChatChunk:
        return ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
