"""Whatever JSON a body holds: an answer or a 4xx, never a failure of the server."""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.unit.server.tiny_server import TinyServer, run
from tests.unit.server.tool_calls import CALL, QWEN, says

FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
CHAT_CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
USER = {"role": "user", "content": [{"type": "text", "text": "a"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": ["a", "b"], "best_of": 2, "n": 1, "logprobs": 1, "echo": True},
    "/v1/chat/completions": {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
            {"role": "tool", "tool_call_id": "1", "content": "c"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "chat_template_kwargs": {"enable_thinking": True},
        "stream_options": {"include_usage": True},
        "stream": True,
    },
    "/v1/responses": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "a"}]},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "1", "output": "c"},
        ],
        "instructions": "i",
        "tools": [{"type": "function", **FUNCTION}],
        "metadata": {"a": "b"},
        "stream": False,
        "max_output_tokens": 5,
    },
    "/v1/messages": {
        "max_tokens": 20,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "c"}],
            },
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
        "thinking": {"type": "disabled"},
        "stop_sequences": ["x"],
        "stream": True,
    },
    "/v1/messages/count_tokens": {"messages": [USER]},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/embeddings": {"input": ["a", "b"], "dimensions": 2, "encoding_format": "base64"},
    "/tokenize": {"messages": [USER], "tools": [{"type": "function", "function": FUNCTION}]},
    "/detokenize": {"tokens": [5, 6]},
}
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 63, 64, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e300]),
    st.sampled_from(["", "a", "f", "auto", "text", "user", "\0", "é😀", "{", '{"x": "\\ud800"}']),
    st.sampled_from(['{"x": ' + "9" * 400 + "}", "[" * 300, "x" * 200, "null", "NaN"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "name", "a", ""]), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be put in the place of something else."""
    keys: Any = ()
    if isinstance(value, dict):
        keys = value
    elif isinstance(value, list):
        keys = range(len(value))
    return [path, *(place for key in keys for place in places(value[key], (*path, key)))][
        0 if path else 1 :
    ]


def found_at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


PARTS = [
    json.loads(text)
    for text in sorted(
        {json.dumps(found_at(body, p)) for body in BODIES.values() for p in places(body)}
    )
]
"""What is right in one place may come up in any other."""


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, str]:
    path = draw(st.sampled_from(sorted(BODIES)))
    body = copy.deepcopy(BODIES[path])
    for _ in range(draw(st.integers(1, 2))):
        *parents, key = draw(st.sampled_from(places(body)))
        target = found_at(body, tuple(parents))
        if isinstance(target, dict) and draw(st.booleans()):
            key = draw(st.sampled_from(["extra", "type", "content", "strict", "id"]))
        target[key] = copy.deepcopy(draw(st.one_of(VALUES, st.sampled_from(PARTS))))
    return path, json.dumps(body)


@pytest.mark.parametrize("with_calls", [False, True])
@settings(
    max_examples=examples(25, searching=100),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(requests=st.lists(mutated(), min_size=1, max_size=12))
def test_no_body_makes_the_server_fail(with_calls: bool, requests: list[tuple[str, str]]) -> None:
    async def check(server: TinyServer) -> None:
        if with_calls:
            says(server, f"<think>a</think>b{CALL}{CALL}")
        for path, body in requests:
            response = await server.post(path, body)
            status = response.status_code
            assert status == 200 or 400 <= status < 500, f"{path} {body}: {response.text}"
            assert status != 422
            if status != 200:
                assert response.json()["error"]["message"]
            assert "server_error" not in response.text

    run(check, template=QWEN, max_model_len=2048)


@pytest.mark.parametrize("path", sorted(BODIES))
def test_unmutated_bodies_are_answered(path: str) -> None:
    async def check(server: TinyServer) -> None:
        says(server, f"<think>a</think>b{CALL}")
        response = await server.post(path, BODIES[path])
        assert response.status_code == 200, response.text

    run(check, template=QWEN, max_model_len=2048)
