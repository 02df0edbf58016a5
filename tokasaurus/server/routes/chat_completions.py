"""POST /v1/chat/completions."""

import time
from functools import partial
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.server.body import parse_body
from tokasaurus.server.chat_choices import ChatChoiceWriter, chat_choice
from tokasaurus.server.chat_turns import ChatTurn, RunningTurn, start_turn
from tokasaurus.server.generation import Generation
from tokasaurus.server.ids import new_id
from tokasaurus.server.logprobs import chat_logprobs, prompt_logprobs
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.reasoning.effort import effort_variables, with_own_variables
from tokasaurus.server.schemas.chat_completions import (
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionRequest,
    ChatDelta,
)
from tokasaurus.server.schemas.prompt_logprobs import PromptLogprobs
from tokasaurus.server.schemas.usage import Usage
from tokasaurus.server.state import ServerState, state_of
from tokasaurus.server.streaming import Chunks, EventStream, News, TextEvents
from tokasaurus.server.tools.definitions import checked_tools
from tokasaurus.server.tools.tool_choice import tool_use_of
from tokasaurus.server.usage_counting import count_usage
from tokasaurus.server.whole_response import finish_all

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
    turn = ChatTurn(
        messages=body.messages,
        params=params,
        tool_use=tool_use_of(
            checked_tools(body.tools),
            body.tool_choice,
            parallel=body.parallel_tool_calls is not False,
        ),
        template_variables=_template_variables(state, body),
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        add_special_tokens=bool(body.add_special_tokens),
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )
    running = await start_turn(state, turn, stream=bool(body.stream))
    group = running.group
    maker = _ChatMaker(state, body, running)
    if body.stream:
        return EventStream(
            group,
            maker.chunks,
            lambda: maker.usage_chunks(count_usage(group.generations, n=params.n)),
        )
    generations = await finish_all(request, group)
    return Response(msgspec.json.encode(maker.whole(generations)), media_type="application/json")


def _template_variables(state: ServerState, body: ChatCompletionRequest) -> dict[str, Any] | None:
    if body.reasoning_effort is None:
        return body.chat_template_kwargs
    param = "reasoning_effort"
    variables = effort_variables(
        body.reasoning_effort, state.chat_template, state.output_format, param=param
    )
    return with_own_variables(body.chat_template_kwargs, variables, param=param)


class _ChatMaker:
    """Builds the response of one request, whole or in chunks."""

    def __init__(
        self, state: ServerState, body: ChatCompletionRequest, running: RunningTurn
    ) -> None:
        self._id = new_id("chatcmpl-")
        self._created = int(time.time())
        self._model = state.model_name
        self._tokenizer = state.tokenizer
        self._write_logprobs = partial(
            chat_logprobs,
            tokenizer=state.tokenizer,
            as_ids=bool(body.return_tokens_as_token_ids),
        )
        self._running = running
        self._null_usage = None if body.includes_usage else msgspec.UNSET
        self._text_events: dict[int, TextEvents] = {}
        self._writers = [
            ChatChoiceWriter(self._write_logprobs, running.new_parser(), running.new_call_id)
            for _ in range(running.turn.params.n if body.stream else 0)
        ]

    def whole(self, generations: list[Generation]) -> ChatCompletion:
        running = self._running
        scores: PromptLogprobs | msgspec.UnsetType = msgspec.UNSET
        if running.turn.params.prompt_logprobs is not None:
            scores = prompt_logprobs(generations[0], self._tokenizer)
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                chat_choice(g, self._write_logprobs, running.new_parser(), running.new_call_id)
                for g in generations
            ],
            usage=count_usage(generations, n=running.turn.params.n),
            prompt_logprobs=scores,
        )

    def chunks(self, generation: Generation) -> News:
        index = generation.index
        text = self._writers[index].take_text(generation)
        if text is not None:
            if not text:
                return []
            events = self._text_events.get(index) or self._begin_text_events(index)
            return [events.event(text)]
        choices = self._writers[index].write(generation)
        chunks: Chunks = [self._chunk([choice], self._null_usage) for choice in choices]
        return chunks

    def _begin_text_events(self, index: int) -> TextEvents:
        def chunk(text: str) -> ChatChunk:
            choice = ChatChunkChoice(index=index, delta=ChatDelta(content=text))
            return self._chunk([choice], self._null_usage)

        events = self._text_events[index] = TextEvents(chunk)
        return events

    def usage_chunks(self, usage: Usage) -> Chunks:
        """The last chunk, if the client wants one with the token counts."""
        return [] if self._null_usage is msgspec.UNSET else [self._chunk([], usage)]

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | msgspec.UnsetType | None
    ) -> ChatChunk:
        return ChatChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        )
