"""POST /v1/score: how likely one text is after another."""

import time

import msgspec
from fastapi import APIRouter, Request, Response

from tokasaurus.server.body import parse_body
from tokasaurus.server.ids import new_id
from tokasaurus.server.openapi import answers, takes
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.schemas.score import ScoreList, ScoreRequest
from tokasaurus.server.scoring import score_of, scored_prompts, text_pairs
from tokasaurus.server.state import state_of
from tokasaurus.server.usage_counting import count_usage
from tokasaurus.server.whole_response import finish_all

router = APIRouter(tags=["score"])


@router.post(
    "/v1/score",
    summary="Log-likelihood of texts after others",
    openapi_extra=takes(ScoreRequest),
    responses=answers(ScoreList),
)
async def create_scores(request: Request) -> Response:
    state = state_of(request)
    body = await parse_body(request, ScoreRequest, state.max_body_bytes)
    state.check_ready()
    state.check_model(body.model)
    params = SamplingParams(
        max_tokens=0,
        temperature=0,
        prompt_logprobs=1,
        priority=body.priority,
        cache_salt=body.cache_salt or "",
    )
    pairs = text_pairs(body.text_1, body.text_2)
    state.engine.check_room(len(pairs))
    prompts = await scored_prompts(
        pairs,
        state.encoding_pool,
        add_special_tokens=body.add_special_tokens is not False,
    )
    group = state.engine.submit(
        [Prompt(prompt.token_ids, params, "text_2") for prompt in prompts],
        stream=False,
        predictor_key="score",
    )
    generations = await finish_all(request, group)
    scores = ScoreList(
        id=new_id("score-"),
        created=int(time.time()),
        model=state.model_name,
        data=[score_of(p, g) for p, g in zip(prompts, generations, strict=True)],
        usage=count_usage(generations, n=1),
    )
    return Response(msgspec.json.encode(scores), media_type="application/json")
