"""POST /v1/chat/completions as OpenAI's clients know it."""

from typing import Any

import pytest

from tests.unit.server.tiny_server import ANSWER, ANSWER_IDS, CHATML, TOKENIZER, TinyServer, run

PATH = "/v1/chat/completions"
TRIMMING = CHATML.replace("m.content", "m.content|trim")


def prompt_of(server: TinyServer) -> str:
    return TOKENIZER.decode(server.manager.requests[-1].prompt_ids.tolist())


def test_whole_answer() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.chat(model="tiny", n=2)
        assert response["object"] == "chat.completion"
        assert response["id"].startswith("chatcmpl-")
        assert [c["index"] for c in response["choices"]] == [0, 1]
        assert response["choices"][0] == {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
        assert prompt_of(server) == "<user>Hi\n<assistant>"
        num_prompt = len(TOKENIZER.encode("<user>Hi\n<assistant>"))
        assert response["usage"]["prompt_tokens"] == num_prompt
        assert response["usage"]["completion_tokens"] == 2 * len(ANSWER_IDS)
        assert server.manager.requests[0].max_tokens == 64 - num_prompt

    run(check)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_output_limit(name: str) -> None:
    async def check(server: TinyServer) -> None:
        response = await server.chat(**{name: 3})
        assert response["choices"][0]["finish_reason"] == "length"
        assert response["usage"]["completion_tokens"] == 3

    run(check)


def test_logprobs() -> None:
    async def check(server: TinyServer) -> None:
        response = await server.chat(logprobs=True, top_logprobs=2)
        content = response["choices"][0]["logprobs"]["content"]
        assert len(content) == len(ANSWER_IDS)
        for entry, token_id in zip(content, ANSWER_IDS, strict=True):
            assert bytes(entry["bytes"]) == TOKENIZER.token_bytes(token_id)
            assert entry["logprob"] == (-9999.0 if token_id % 7 == 0 else -token_id / 8)
            assert [top["logprob"] for top in entry["top_logprobs"]] == [-0.5, -0.5]
        data = b"".join(bytes(e["bytes"]) for e in content)
        assert data.decode() == ANSWER + "</s>"
        response = await server.chat(logprobs=True)
        assert response["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
        response = await server.chat(logprobs=False)
        assert response["choices"][0]["logprobs"] is None

    run(check)


@pytest.mark.parametrize("tokens_per_tick", [1, 4, 100])
def test_stream(tokens_per_tick: int) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.tokens_per_tick = tokens_per_tick
        body = {
            "messages": [{"role": "user", "content": "Hi"}],
            "n": 2,
            "stop": "over",
            "logprobs": True,
            "stream_options": {"include_usage": True, "include_obfuscation": False},
        }
        *chunks, usage = await server.stream(PATH, body)
        assert usage["choices"] == []
        assert usage["usage"]["completion_tokens"] >= 2 * len(ANSWER_IDS) - 12
        assert all(chunk["usage"] is None for chunk in chunks)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        for index in (0, 1):
            mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            first, *middle, last = mine
            assert first["delta"] == {"role": "assistant", "content": ""}
            assert "".join(c["delta"]["content"] for c in middle) == ANSWER[: ANSWER.index("over")]
            assert all(c["finish_reason"] is None for c in [first, *middle])
            assert (last["delta"], last["finish_reason"]) == ({}, "stop")
            num_logprobs = sum(len(c["logprobs"]["content"]) for c in middle)
            assert num_logprobs == usage["usage"]["completion_tokens"] / 2

    run(check)


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        (
            [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}],
            "<system>S\n<user>U\n",
        ),
        ([{"role": "developer", "content": "D"}], "<system>D\n"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                }
            ],
            "<user>a\nb\n",
        ),
        (
            [{"role": "assistant", "content": None}, {"role": "user", "content": ""}],
            "<assistant>\n<user>\n",
        ),
    ],
)
def test_messages(messages: list[dict[str, Any]], prompt: str) -> None:
    async def check(server: TinyServer) -> None:
        response = await server.post(PATH, {"messages": messages})
        assert response.status_code == 200
        assert prompt_of(server) == prompt + "<assistant>"

    run(check)


def test_developer_stays_where_the_template_knows_it() -> None:
    async def check(server: TinyServer) -> None:
        await server.post(PATH, {"messages": [{"role": "developer", "content": "D"}]})
        assert prompt_of(server) == "developer: D"

    run(
        check,
        template="{# developer #}{% for m in messages %}{{m.role}}: {{m.content}}{% endfor %}",
    )


def test_template_variables() -> None:
    async def check(server: TinyServer) -> None:
        await server.chat(chat_template_kwargs={"mood": "happy"})
        assert prompt_of(server) == "<user>Hi\n<assistant>happy"
        await server.chat(add_generation_prompt=False)
        assert prompt_of(server) == "<user>Hi\n"

    run(check)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ("It is ", "It is "),
        ([{"type": "text", "text": " a"}, {"type": "text", "text": "b"}], " a\nb"),
        (None, ""),
    ],
)
@pytest.mark.parametrize("template", [CHATML, TRIMMING])
def test_continuing_the_last_message(content: Any, shown: str, template: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    begun = shown.lstrip() if template == TRIMMING else shown
    whole = shown.strip() if template == TRIMMING else shown

    async def check(server: TinyServer) -> None:
        body: dict[str, Any] = {"messages": messages, "continue_final_message": True}
        options: list[dict[str, Any]] = [{}, {"add_generation_prompt": False}]
        for option in options:
            response = await server.post(PATH, body | option)
            assert response.status_code == 200, response.text
            assert prompt_of(server) == f"<user>Hi\n<assistant>{begun}"
            assert response.json()["choices"][0]["message"]["content"] == ANSWER
        sent = server.manager.requests[-1].prompt_ids.tolist()
        assert (await server.post("/tokenize", body)).json()["tokens"] == sent
        await server.post(PATH, {"messages": messages})
        assert prompt_of(server) == f"<user>Hi\n<assistant>{whole}\n<assistant>"

    run(check, template=template)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("last", "options", "template"),
    [
        ({"role": "user", "content": "a"}, {}, CHATML),
        ({"role": "assistant", "content": "a", "tool_calls": [CALL]}, {}, CHATML),
        ({"role": "assistant", "content": "a"}, {"add_generation_prompt": True}, CHATML),
        ({"role": "assistant", "content": "a"}, {}, "{{ messages[0].content }}"),
    ],
)
def test_what_can_not_be_continued(last: Any, options: dict[str, Any], template: str) -> None:
    messages = [{"role": "user", "content": "Hi"}, last]

    async def check(server: TinyServer) -> None:
        body = {"messages": messages, "continue_final_message": True} | options
        for path in (PATH, "/tokenize"):
            assert (await server.error(path, body))["param"] == "continue_final_message"

    run(check, template=template)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_as_ids(stream: bool) -> None:
    async def check(server: TinyServer) -> None:
        options: dict[str, Any] = {"logprobs": True, "top_logprobs": 1, "max_tokens": 3}
        options["return_tokens_as_token_ids"] = True
        body = {"messages": [{"role": "user", "content": "Hi"}]} | options
        replies = await server.stream(PATH, body) if stream else [await server.chat(**options)]
        entries = [
            entry
            for reply in replies
            for choice in reply["choices"]
            for entry in (choice["logprobs"] or {}).get("content", ())
        ]
        assert [entry["token"] for entry in entries] == [f"token_id:{i}" for i in ANSWER_IDS[:3]]
        assert [entry["bytes"] for entry in entries] == [
            list(TOKENIZER.token_bytes(i)) for i in ANSWER_IDS[:3]
        ]
        assert entries[0]["top_logprobs"][0]["token"] == "token_id:20"

    run(check)


def test_tool_calls_of_earlier_turns_reach_the_template_as_objects() -> None:
    template = "{% for m in messages %}{{ m.tool_calls[0].function.arguments.x }}!{% endfor %}"

    async def check(server: TinyServer) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 5}'}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
        response = await server.post(PATH, {"messages": [message]})
        assert response.status_code == 200
        assert prompt_of(server) == "5!"

    run(check, template=template)


def test_tool_results_get_the_name_of_their_call() -> None:
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.name }}:{{ 'tool_calls' in m }};{% endfor %}"
    )

    async def check(server: TinyServer) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "x"},
            {"role": "tool", "tool_call_id": "1", "name": "g", "content": "x"},
            {"role": "tool", "tool_call_id": "2", "content": "x"},
            {"role": "assistant", "content": "x", "tool_calls": []},
        ]
        response = await server.post(PATH, {"messages": messages})
        assert response.status_code == 200
        assert prompt_of(server) == (
            "assistant::True;tool:f:False;tool:g:False;tool::False;assistant::False;"
        )

    run(check, template=template, max_model_len=2048)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "f", "arguments": "{"}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"function": {"name": "f", "arguments": '{"x": "\\ud800"}'}}
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "messages[0].tool_calls"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": -4}, "max_completion_tokens"),
        ({"max_completion_tokens": -4, "max_tokens": 5}, "max_completion_tokens"),
        ({"max_completion_tokens": 5, "max_tokens": 6}, "max_tokens"),
        ({"max_tokens": 64}, "max_tokens"),
        ({"logprobs": 1}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"echo": True}, "echo"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_refused(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        default = {} if not body else {"messages": [{"role": "user", "content": "Hi"}]}
        error = await server.error(PATH, default | body)
        assert error["param"] == param
        assert not server.manager.requests

    run(check)


def test_harmless_fields_are_accepted() -> None:
    async def check(server: TinyServer) -> None:
        await server.chat(
            user="me",
            metadata={"a": "b"},
            store=False,
            tools=None,
            tool_choice="none",
            response_format={"type": "text"},
            frequency_penalty=0.0,
            presence_penalty=0,
            logit_bias=None,
            modalities=["text"],
            service_tier="auto",
            parallel_tool_calls=True,
            reasoning_effort=None,
            seed=None,
            stop=None,
        )

    run(check)


def test_model_without_template() -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error(PATH, {"messages": [{"role": "user", "content": "Hi"}]})
        assert "chat_template=FILE" in error["message"]

    run(check, template=None)
