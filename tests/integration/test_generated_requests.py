"""Requests that schemathesis generates from our OpenAPI description, valid ones and almost valid
ones: no failure of the server, no answer that isn't described, nothing that takes for ever."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.conftest import Engine
from tokasaurus.server.sampling_params import MAX_N

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
TIMEOUT_SECONDS = 60
NUM_EXAMPLES = 40
"""So many that some are answered: no schema can say of what most of some requests ask too much.

Of 40 valid ones 12 were answered at /v1/completions, 14 at /v1/embeddings, 37 and more elsewhere.
None of 40 is once in two million times where the share is 12 of 40 (0.7 ** 40 = 6e-7).
"""
AFFORDABLE = {
    "n": 3,
    "best_of": 3,
    "min_tokens": 2,
    "max_tokens": 6,
    "max_completion_tokens": 6,
    "max_output_tokens": 6,
}
MAX_INT32 = 2**31 - 1
LARGEST = {"n": MAX_N, "best_of": MAX_N}
STRUCTURED = ("response_format", "structured_outputs", "guided_json", "guided_choice")
UNKNOWABLE = (
    "model",
    "previous_response_id",
    "timeout",
    "max_completion_tokens",
    "min_tokens",
    "allowed_token_ids",
    "stop_token_ids",
    "guided_regex",
    "guided_grammar",
    "truncate_prompt_tokens",
    "tools",
    "tool_choice",
)
"""What is right depends on the model, or on what was said before, or has a language of its own."""
GENERATING = ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages")


def make_affordable(body: dict[str, Any]) -> None:
    """Few and short samples: how long a model talks is not what is tested here.

    What has to be refused stays as it is.
    """
    for name, most in AFFORDABLE.items():
        value, largest = body.get(name), LARGEST.get(name, MAX_INT32)
        if isinstance(value, int) and most < value <= largest:
            body[name] = most


def calls_of(value: Any) -> Iterator[dict[str, Any]]:
    """What has arguments, which are JSON within JSON."""
    if isinstance(value, dict):
        if isinstance(value.get("arguments"), str):
            yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from calls_of(item)


def known_tokens(value: Any) -> Any:
    """Token ids that every model has, in lists of any depth."""
    if isinstance(value, list):
        return [known_tokens(item) for item in value]
    return value % 300 if isinstance(value, int) else value


def untangle(path: str, body: dict[str, Any]) -> None:
    """Takes out what no schema can forbid: contradictions, and names of what isn't there."""
    for name in UNKNOWABLE:
        body.pop(name, None)
    for name in ("prompt", "input", "tokens"):
        if name in body:
            body[name] = known_tokens(body[name])
    if path in GENERATING:
        body["max_output_tokens" if path == "/v1/responses" else "max_tokens"] = 4
    for name in [name for name in STRUCTURED if body.get(name) is not None][1:]:
        del body[name]
    for needed, name in (("stream", "stream_options"), ("logprobs", "top_logprobs")):
        if not body.get(needed):
            body.pop(name, None)
    for call in calls_of(body):
        call["arguments"] = "{}"
    if path.startswith("/v1/messages") and isinstance(body.get("messages"), list):
        body["messages"].append({"role": "user", "content": "Hi"})
    if body.get("stream") or (body.get("best_of") or 1) < (body.get("n") or 1):
        body.pop("best_of", None)


def operations(schema: Any) -> Iterator[Any]:
    for result in schema.get_all_operations():
        operation = result.ok()
        assert operation is not None, "the description can be read"
        yield operation


def statuses_of(operation: Any, mode: GenerationMode) -> Counter[int]:
    """Raises what the checks find."""
    statuses: Counter[int] = Counter()

    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        if isinstance(case.body, dict):
            make_affordable(case.body)
            if mode is GenerationMode.POSITIVE:
                untangle(operation.path, case.body)
        response = case.call(timeout=TIMEOUT_SECONDS)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    try:
        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE, "only texts without any rule can't be wrong"
    return statuses


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_generated_requests(engine: Engine) -> None:
    """Slow: over a thousand requests, and half a minute to read what the schemas allow."""
    schema = schemathesis.openapi.from_url(f"{engine.url}/openapi.json")
    found: dict[str, Counter[int]] = {}
    for operation in operations(schema):
        for mode in GenerationMode:
            statuses = statuses_of(operation, mode)
            if mode is GenerationMode.POSITIVE:
                found[operation.path] = statuses
    assert len(found) > 15
    for path in (*GENERATING, "/v1/score", "/v1/embeddings", "/tokenize"):
        assert found[path][200] > 0, f"nothing was answered at {path}: {found[path]}"
