"""What shows that each field of each request is honoured: the tables of test_every_parameter."""

from typing import Any

from tests.integration.parameter_checks import (
    Accepts,
    Changes,
    Check,
    Refuses,
    ShownBy,
)
from tokasaurus.server.schemas.batches import BatchRequest
from tokasaurus.server.schemas.chat_completions import ChatCompletionRequest
from tokasaurus.server.schemas.completions import CompletionRequest
from tokasaurus.server.schemas.embeddings import EmbeddingRequest
from tokasaurus.server.schemas.messages import CountTokensRequest, MessagesRequest
from tokasaurus.server.schemas.responses import NEUTRAL_VALUES as RESPONSES_NEUTRAL_VALUES
from tokasaurus.server.schemas.responses import ResponsesRequest
from tokasaurus.server.schemas.score import ScoreRequest
from tokasaurus.server.schemas.tokenize import DetokenizeRequest, TokenizeRequest
from tokasaurus.server.schemas.unsupported_fields import NEUTRAL_VALUES

Table = dict[str, tuple[Check, ...]]
QUESTION = [{"role": "user", "content": "What is 2 + 3?"}]
CONTINUED = [*QUESTION, {"role": "assistant", "content": "It is"}]
OTHER_QUESTION = [{"role": "user", "content": "What is 4 + 3?"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "f"}}
WARM = {"temperature": 1.9}
FEW = {"allowed_token_ids": [95, 96, 97]}
ONLY = {"allowed_token_ids": [95]}
"""All of the output is one token, over and over."""
UNIT = "tests/unit/server"
INTEGRATION = "tests/integration"
LONG = "Count with me: " + ", ".join(map(str, range(60)))


def no_model(fields: dict[str, Any] | None = None) -> Check:
    return Refuses("nobody", fields or {})


SAMPLING: Table = {
    "model": (no_model(),),
    "n": (Changes(2), Refuses(0)),
    "temperature": (Changes(1.9), Refuses(3)),
    "top_p": (Changes(0, WARM), Refuses(2)),
    "top_k": (Changes(1, WARM), Refuses(-2)),
    "min_p": (Changes(1, WARM), Refuses(-1)),
    "frequency_penalty": (Changes(2, FEW), Refuses(3)),
    "presence_penalty": (
        ShownBy(f"{INTEGRATION}/test_sampling_options.py::test_penalties_avoid_repeating"),
        Refuses(3),
    ),
    "repetition_penalty": (Changes(50), Refuses(0)),
    "logit_bias": (Changes({"95": 100}), Refuses({"95": 101})),
    "bad_words": (
        ShownBy(f"{INTEGRATION}/test_sampling_options.py::test_bad_words_never_appear"),
        Refuses([" "]),
    ),
    "allowed_token_ids": (Changes([95]), Refuses([10**7])),
    "response_format": (Changes({"type": "json_object"}), Refuses({"type": "xml"})),
    "structured_outputs": (Changes({"regex": "[0-9]{4}"}), Refuses({})),
    "guided_json": (Changes(SCHEMA), Refuses({"not": {}})),
    "guided_regex": (Changes("[0-9]{4}"), Refuses("(")),
    "guided_choice": (Changes(["yes", "no"]), Refuses([])),
    "guided_grammar": (Changes('start: "a"'), Refuses("start: b")),
    "prompt_logprobs": (Changes(2), Refuses(2, {"stream": True})),
    "seed": (Changes(2, WARM), Refuses(-1)),
    "max_tokens": (Changes(3), Refuses(-1)),
    "min_tokens": (Changes(4, ONLY | {"stop_token_ids": [95]}), Refuses(100)),
    "stop": (Changes(list("0123456789 ")), Refuses([""])),
    "stop_token_ids": (Changes([95], ONLY), Refuses([10**7])),
    "ignore_eos": (Changes(True, {"guided_regex": None}), Refuses("yes")),
    "skip_special_tokens": (Changes(False, {"ignore_eos": True}), Refuses(1)),
    "include_stop_str_in_output": (
        Changes(True, ONLY | {"stop_token_ids": [95]}),
        Refuses(1),
    ),
    "return_tokens_as_token_ids": (Changes(True, {"logprobs": 1}), Refuses("yes")),
    "add_special_tokens": (
        ShownBy(f"{UNIT}/test_add_special_tokens.py::test_bos"),
        Refuses("yes"),
    ),
    "truncate_prompt_tokens": (Changes(2), Refuses(0)),
    "priority": (
        ShownBy(f"{UNIT}/test_completions_route.py::test_parameters_reach_the_manager"),
        Refuses(2**40),
    ),
    "timeout": (Changes(0.001, {"n": 32}), Refuses(0)),
    "cache_salt": (
        ShownBy(f"{UNIT}/test_completions_route.py::test_parameters_reach_the_manager"),
        ShownBy(f"{INTEGRATION}/test_every_parameter.py::test_salts_keep_caches_apart"),
        Refuses(5),
    ),
    "stream": (Changes(True), Refuses("yes")),
    "stream_options": (
        Changes({"include_usage": True}, {"stream": True}),
        Refuses({"include_usage": True}),
    ),
}
TOOLS_TEST = f"{UNIT}/test_tools_route.py"
TABLES: dict[type, tuple[str, dict[str, Any], Table]] = {
    CompletionRequest: (
        "/v1/completions",
        {
            "prompt": "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n",
            "temperature": 0,
            "seed": 1,
            "max_tokens": 30,
        },
        SAMPLING
        | {
            "prompt": (Changes("def f"), Refuses([])),
            "echo": (Changes(True), Refuses("yes")),
            "logprobs": (Changes(2), Refuses(-1)),
            "best_of": (Changes(6, WARM), Refuses(2, {"n": 3})),
        },
    ),
    ChatCompletionRequest: (
        "/v1/chat/completions",
        {"messages": QUESTION, "temperature": 0, "seed": 1, "max_tokens": 30},
        SAMPLING
        | {
            "messages": (Changes(OTHER_QUESTION), Refuses([])),
            "max_completion_tokens": (Changes(2, {"max_tokens": None}), Refuses(0)),
            "logprobs": (Changes(True), Refuses(2)),
            "return_tokens_as_token_ids": (Changes(True, {"logprobs": True}), Refuses("yes")),
            "top_logprobs": (Changes(2, {"logprobs": True}), Refuses(2)),
            "tools": (ShownBy(f"{TOOLS_TEST}::test_a_call"), Refuses([TOOL])),
            "tool_choice": (
                ShownBy(f"{UNIT}/test_tool_choice_route.py::test_required"),
                Refuses("required"),
            ),
            "parallel_tool_calls": (ShownBy(f"{TOOLS_TEST}::test_a_call"), Refuses("no")),
            "add_generation_prompt": (Changes(False), Refuses("no")),
            "continue_final_message": (
                Changes(True, {"messages": CONTINUED}),
                Refuses(True, {"messages": QUESTION}),
            ),
            "reasoning_effort": (
                ShownBy(f"{UNIT}/test_reasoning_effort.py::asking"),
                Refuses("low"),
            ),
            "chat_template_kwargs": (
                ShownBy(f"{UNIT}/test_chat_route.py::test_template_variables"),
                Refuses({"messages": []}),
            ),
        },
    ),
    ResponsesRequest: (
        "/v1/responses",
        {"input": "What is 2 + 3?", "temperature": 0, "max_output_tokens": 30, "store": False},
        {
            "model": (no_model(),),
            "input": (Changes("What is 4 + 3?"), Refuses([])),
            "instructions": (Changes("Say no."), Refuses(5)),
            "previous_response_id": (
                ShownBy(f"{INTEGRATION}/test_endpoints.py::test_responses"),
                Refuses("resp_5"),
            ),
            "store": (
                ShownBy(f"{UNIT}/test_responses_route.py::test_retrieve_and_delete"),
                Changes(True),
                Refuses("no"),
            ),
            "stream": (Changes(True), Refuses("yes")),
            "max_output_tokens": (Changes(2), Refuses(0)),
            "temperature": (
                ShownBy(f"{UNIT}/test_responses_route.py::test_whole_answer"),
                Refuses(3),
            ),
            "top_p": (
                ShownBy(f"{UNIT}/test_responses_route.py::test_whole_answer"),
                Refuses(2),
            ),
            "tools": (
                ShownBy(f"{UNIT}/test_tool_choice_route.py::test_strict"),
                Refuses([{"type": "function", "name": "f"}]),
            ),
            "tool_choice": (
                ShownBy(f"{UNIT}/test_tool_choice_route.py::test_required"),
                Refuses("required"),
            ),
            "parallel_tool_calls": (
                ShownBy(f"{UNIT}/test_tool_choice_route.py::test_required"),
                Changes(False),
                Refuses("no"),
            ),
            "text": (Changes({"format": {"type": "json_object"}}), Refuses({"x": 1})),
            "metadata": (Changes({"a": "b"}), Refuses({"a": 1})),
            "reasoning": (
                ShownBy(f"{UNIT}/test_reasoning_effort.py::asking"),
                Refuses({"effort": "low"}),
            ),
        },
    ),
    MessagesRequest: (
        "/v1/messages",
        {"messages": QUESTION, "temperature": 0, "max_tokens": 30},
        {
            "model": (no_model(),),
            "messages": (Changes(OTHER_QUESTION), Refuses([])),
            "system": (Changes("Say no."), Refuses(5)),
            "max_tokens": (Changes(2), Refuses(0)),
            "stop_sequences": (Changes(["5"]), Refuses([""])),
            "stream": (Changes(True), Refuses("yes")),
            "temperature": (
                ShownBy(f"{INTEGRATION}/test_every_parameter.py::test_warm_messages"),
                Refuses(3),
            ),
            "top_p": (
                ShownBy(f"{INTEGRATION}/test_every_parameter.py::test_warm_messages"),
                Refuses(2),
            ),
            "top_k": (
                ShownBy(f"{INTEGRATION}/test_every_parameter.py::test_warm_messages"),
                Refuses(-2),
            ),
            "metadata": (Accepts({"user_id": "me"}), Refuses(5)),
            "service_tier": (Accepts("auto"), Refuses("fast")),
            "tools": (
                ShownBy(f"{UNIT}/test_tool_choice_route.py::test_strict"),
                Refuses([{"name": "f", "input_schema": {}}]),
            ),
            "tool_choice": (
                ShownBy(f"{UNIT}/test_tool_choice_route.py::test_required"),
                Refuses({"type": "any"}),
            ),
            "thinking": (
                ShownBy(f"{UNIT}/test_messages_route.py::test_thinking"),
                Refuses({"type": "enabled", "budget_tokens": 5}),
            ),
            "output_config": (
                Changes({"format": {"type": "json_schema", "schema": {"type": "object"}}}),
                Refuses({"effort": "low"}),
            ),
        },
    ),
    CountTokensRequest: (
        "/v1/messages/count_tokens",
        {"messages": QUESTION},
        {
            "model": (no_model(),),
            "messages": (Changes([*QUESTION, *QUESTION]), Refuses([])),
            "system": (Changes("Say no."), Refuses(5)),
            "tools": (Refuses([{"name": "f", "input_schema": {}}]),),
            "tool_choice": (Refuses({"type": "any"}),),
            "thinking": (Refuses({"type": "enabled"}),),
            "output_config": (Refuses({"effort": "low"}),),
        },
    ),
    ScoreRequest: (
        "/v1/score",
        {"text_1": "import ", "text_2": "os"},
        {
            "model": (no_model(),),
            "text_1": (Changes("def "), Refuses(5)),
            "text_2": (Changes("sys"), Refuses([])),
            "add_special_tokens": (
                ShownBy(f"{UNIT}/test_add_special_tokens.py::test_bos"),
                Refuses("yes"),
            ),
            "priority": (
                ShownBy(f"{UNIT}/test_score_route.py::test_options_reach_the_manager"),
                Refuses(2**40),
            ),
            "cache_salt": (
                ShownBy(f"{UNIT}/test_score_route.py::test_options_reach_the_manager"),
                Refuses(5),
            ),
            "user": (Accepts("me"), Refuses(5)),
        },
    ),
    EmbeddingRequest: (
        "/v1/embeddings",
        {"input": "import os"},
        {
            "model": (no_model(),),
            "input": (Changes("import sys"), Refuses([])),
            "encoding_format": (Changes("base64"), Refuses("text")),
            "dimensions": (Changes(3), Refuses(0)),
            "pooling": (Changes("last"), Refuses("first")),
            "add_special_tokens": (
                ShownBy(f"{UNIT}/test_add_special_tokens.py::test_bos"),
                Refuses("yes"),
            ),
            "truncate_prompt_tokens": (Changes(1), Refuses(0)),
            "priority": (
                ShownBy(f"{UNIT}/test_embeddings_route.py::test_scheduling_fields_arrive"),
                Refuses(2**40),
            ),
            "timeout": (
                ShownBy(f"{UNIT}/test_embeddings_route.py::test_timeout_cancels"),
                Refuses(0),
            ),
            "cache_salt": (
                ShownBy(f"{UNIT}/test_embeddings_route.py::test_scheduling_fields_arrive"),
                Refuses(5),
            ),
            "user": (Accepts("me"), Refuses(5)),
        },
    ),
    TokenizeRequest: (
        "/tokenize",
        {"messages": QUESTION},
        {
            "model": (no_model(),),
            "prompt": (Changes("a", {"messages": None, "prompt": "a b"}), Refuses("a")),
            "messages": (Changes(OTHER_QUESTION), Refuses([])),
            "add_special_tokens": (
                ShownBy(f"{UNIT}/test_add_special_tokens.py::test_bos"),
                Refuses("yes"),
            ),
            "add_generation_prompt": (Changes(False), Refuses("no")),
            "continue_final_message": (
                Changes(True, {"messages": CONTINUED}),
                Refuses(True, {"messages": QUESTION}),
            ),
            "chat_template_kwargs": (
                ShownBy(f"{UNIT}/test_tokenize_route.py::test_a_chat_as_it_would_be_answered"),
                Refuses({"messages": []}),
            ),
            "tools": (
                ShownBy(f"{UNIT}/test_tokenize_route.py::test_a_chat_with_tools"),
                Refuses([TOOL]),
            ),
            "return_token_strs": (Changes(True), Refuses("yes")),
        },
    ),
    DetokenizeRequest: (
        "/detokenize",
        {"tokens": [95, 0, 1, 2, 3]},
        {
            "model": (no_model(),),
            "tokens": (Changes([96]), Refuses([10**7])),
            "skip_special_tokens": (Changes(True), Refuses("yes")),
        },
    ),
    BatchRequest: (
        "/v1/batches",
        {"input_file_id": "file-5", "endpoint": "/v1/completions", "completion_window": "24h"},
        {
            "input_file_id": (
                ShownBy(f"{INTEGRATION}/test_batches.py::test_openai_client"),
                Refuses("file-6"),
            ),
            "endpoint": (
                ShownBy(
                    f"{UNIT}/batches/test_batches_route.py::test_routes_without_a_priority_yield_too"
                ),
                Refuses("/v1/models"),
            ),
            "completion_window": (
                ShownBy(
                    f"{UNIT}/batches/test_batches_route.py::test_what_is_not_done_in_the_window_expires"
                ),
                Refuses("tomorrow"),
            ),
            "metadata": (
                ShownBy(f"{UNIT}/batches/test_batches_route.py::test_every_line_has_an_answer"),
                Refuses({"a": 1}),
            ),
        },
    ),
}
NEUTRAL_OF = {
    CompletionRequest: NEUTRAL_VALUES,
    ChatCompletionRequest: NEUTRAL_VALUES,
    ResponsesRequest: RESPONSES_NEUTRAL_VALUES,
}
NOT_NEUTRAL = {"nobody": "asks for this"}
