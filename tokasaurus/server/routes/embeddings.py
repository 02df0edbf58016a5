"""POST /v1/embeddings: vectors of texts, pooled from the served model's last hidden states."""

from typing import cast

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.server.body import parse_body
from tokasaurus.server.completion_prompts import encode_prompts
from tokasaurus.server.embeddings import check_dimensions, split_inputs, write_vectors
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.prompt_truncation import truncated
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.schemas.embeddings import (
    Embedding,
    EmbeddingList,
    EmbeddingRequest,
    EmbeddingUsage,
)
from tokasaurus.server.state import state_of
from tokasaurus.server.whole_response import finish_all

router = APIRouter(tags=["embeddings"])


@router.post(
    "/v1/embeddings",
    summary="Vectors of texts",
    openapi_extra=takes(EmbeddingRequest),
    responses=answers(EmbeddingList),
)
async def create_embeddings(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, EmbeddingRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    params = SamplingParams(
        max_tokens=0,
        priority=body.priority,
        timeout=body.timeout,
        cache_salt=body.cache_salt or "",
    )
    limits = state.engine.limits
    check_dimensions(body.dimensions, limits)
    inputs = split_inputs(body.input)
    state.engine.check_room(len(inputs))
    encoded = await encode_prompts(
        inputs, state, add_special_tokens=body.add_special_tokens is not False
    )
    kept = [
        truncated(
            ids,
            body.truncate_prompt_tokens,
            limits,
            max_output_tokens=0,
            min_output_tokens=0,
        )
        for ids in encoded
    ]
    pooling = body.pooling or state.default_pooling
    group = state.engine.submit(
        [Prompt(ids, params, "input", pooling=pooling) for ids in kept],
        stream=False,
        predictor_key="embeddings",
    )
    generations = await finish_all(request, group)
    num_tokens = sum(generation.num_prompt_tokens for generation in generations)
    written = await write_vectors(generations, body.dimensions, body.encoding_format or "float")
    answer = EmbeddingList(
        data=cast(list[Embedding], written),
        model=state.model_name,
        usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    )
    return Response(msgspec.json.encode(answer), media_type="application/json")
