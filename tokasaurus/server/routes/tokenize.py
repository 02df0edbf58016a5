"""POST /tokenize and /detokenize: text to the model's token ids and back; GET /tokenizer_info."""

import asyncio

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.body import parse_body
from tokasaurus.server.chat_prompts import render_chat
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.sampling_params import shown
from tokasaurus.server.schemas.tokenize import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from tokasaurus.server.state import ServerState, state_of
from tokasaurus.server.tools.definitions import checked_tools

router = APIRouter(tags=["tokens"])

_MAX_INLINE_TOKENS = 4096
"""More are decoded on a thread: a body may hold millions, and streams have to go on."""


@router.post(
    "/tokenize",
    summary="Token ids of a text or a chat",
    openapi_extra=takes(TokenizeRequest),
    responses=answers(Tokenized),
)
async def tokenize(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, TokenizeRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    body.check()
    text = body.prompt
    if text is None:
        tools = checked_tools(body.tools)
        if tools:
            state.output_format.check_tools()
        text = render_chat(
            state,
            body.messages,
            tools=[tool.for_template() for tool in tools] or None,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=bool(body.continue_final_message),
            variables=body.chat_template_kwargs,
        )
    adds_special = body.messages is None
    if body.add_special_tokens is not None:
        adds_special = body.add_special_tokens
    [ids] = await state.encoding_pool.encode([text], add_special_tokens=adds_special)
    answer = Tokenized(count=len(ids), max_model_len=state.engine.limits.max_model_len, tokens=ids)
    if body.return_token_strs:
        token_bytes = state.tokenizer.token_bytes
        answer.token_strs = [token_bytes(i).decode(errors="replace") for i in ids]
    return Response(msgspec.json.encode(answer), media_type="application/json")


@router.post(
    "/detokenize",
    summary="The text of token ids",
    openapi_extra=takes(DetokenizeRequest),
    responses=answers(Detokenized),
)
async def detokenize(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, DetokenizeRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    if len(body.tokens) <= _MAX_INLINE_TOKENS:
        text = _decoded(body, state)
    else:
        text = await asyncio.to_thread(_decoded, body, state)
    return Response(msgspec.json.encode(Detokenized(prompt=text)), media_type="application/json")


@router.get(
    "/tokenizer_info",
    summary="Special tokens and the chat template",
    responses=answers(TokenizerInfo),
)
async def tokenizer_info(request: Request) -> Response:
    state = state_of(request)
    names, template = state.tokenizer.named_tokens, state.chat_template
    info = TokenizerInfo(
        bos_token=names.get("bos_token"),
        eos_token=names.get("eos_token"),
        pad_token=names.get("pad_token"),
        chat_template=None if template is None else template.source,
    )
    return Response(msgspec.json.encode(info), media_type="application/json")


def _decoded(body: DetokenizeRequest, state: ServerState) -> str:
    _check_ids(body.tokens, state)
    return state.tokenizer.decode(body.tokens, skip_special_tokens=bool(body.skip_special_tokens))


def _check_ids(token_ids: list[int], state: ServerState) -> None:
    vocab_size = state.engine.limits.vocab_size
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"'tokens' contains {shown(token_id)}, but ids of this model are between 0 and "
                f"{vocab_size - 1}.",
                param="tokens",
            )
