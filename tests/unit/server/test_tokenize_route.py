"""POST /tokenize and /detokenize, and GET /."""

import threading
from typing import Any

import pytest

from tests.unit.server.tiny_server import ANSWER, CHATML, TOKENIZER, TinyServer, run
from tests.unit.server.tool_calls import QWEN, TOOL
from tokasaurus.tokenization.tokenizer import Tokenizer


def test_a_text_there_and_back() -> None:
    async def check(server: TinyServer) -> None:
        reply = (await server.post("/tokenize", {"prompt": ANSWER, "model": "tiny"})).json()
        assert reply == {
            "count": len(TOKENIZER.encode(ANSWER)),
            "max_model_len": 64,
            "tokens": TOKENIZER.encode(ANSWER),
        }
        back = await server.post("/detokenize", {"tokens": reply["tokens"]})
        assert back.json() == {"prompt": ANSWER}
        back = await server.post("/detokenize", {"tokens": [0, *reply["tokens"]]})
        assert back.json() == {"prompt": "<s>" + ANSWER}
        body = {"tokens": [0, *reply["tokens"]], "skip_special_tokens": True}
        assert (await server.post("/detokenize", body)).json() == {"prompt": ANSWER}
        assert (await server.post("/tokenize", {"prompt": ""})).json()["tokens"] == []
        assert (await server.post("/detokenize", {"tokens": []})).json() == {"prompt": ""}

    run(check)


def test_many_tokens_are_decoded_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    decode = Tokenizer.decode

    def note(self: Tokenizer, *args: Any, **options: Any) -> str:
        threads.append(threading.get_ident())
        return decode(self, *args, **options)

    monkeypatch.setattr(Tokenizer, "decode", note)

    async def check(server: TinyServer) -> None:
        ids = TOKENIZER.encode("The fox")
        for count in (1, 5000):
            reply = await server.post("/detokenize", {"tokens": ids * count})
            assert reply.json() == {"prompt": "The fox" * count}
        error = await server.error("/detokenize", {"tokens": [*ids * 5000, 420]})
        assert error["param"] == "tokens"
        assert threads[0] == threading.get_ident() != threads[1]

    run(check)


def test_a_chat_as_it_would_be_answered() -> None:
    async def check(server: TinyServer) -> None:
        messages = [{"role": "user", "content": "Hi"}]
        reply = (await server.post("/tokenize", {"messages": messages})).json()
        await server.chat("Hi")
        assert reply["tokens"] == server.manager.requests[0].prompt_ids.tolist()
        body = {"messages": messages, "chat_template_kwargs": {"mood": "x"}}
        longer = (await server.post("/tokenize", body | {"return_token_strs": True})).json()
        assert "".join(longer["token_strs"]) == "<user>Hi\n<assistant>x"
        body = {"messages": messages, "add_generation_prompt": False}
        assert (await server.post("/tokenize", body)).json()["count"] < reply["count"]

    run(check)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "chat_template_kwargs": {}}, "chat_template_kwargs"),
        ("/tokenize", {"prompt": "a", "foo": 1}, "foo"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens[0]"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [420]}, "tokens"),
        ("/detokenize", {"tokens": [10**400]}, "tokens"),
    ],
)
def test_refused_by_name(path: str, body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        assert (await server.error(path, body))["param"] == param

    run(check)


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": []})]
)
def test_unknown_model(path: str, body: dict[str, Any]) -> None:
    async def check(server: TinyServer) -> None:
        assert (await server.error(path, body | {"model": "x"}, 404))["param"] == "model"

    run(check)


def test_a_chat_with_tools() -> None:
    async def check(server: TinyServer) -> None:
        body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
        counted = (await server.post("/tokenize", body)).json()
        await server.post("/v1/chat/completions", body)
        assert counted["tokens"] == server.manager.requests[0].prompt_ids.tolist()

    run(check, template=QWEN, max_model_len=2048)
    run(refuses_tools)


async def refuses_tools(server: TinyServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "tools": [TOOL]}
    assert (await server.error("/tokenize", body))["param"] == "tools"


def test_home_page() -> None:
    async def check(server: TinyServer) -> None:
        server.state.model_name = "<b>it's</b>"
        response = await server.http.get("/")
        assert response.headers["content-type"].startswith("text/html")
        assert "&lt;b&gt;it&#x27;\\&#x27;&#x27;s&lt;/b&gt;" in response.text
        assert "<b>" not in response.text
        assert "ready; 0 samples" in response.text
        assert "curl http://test/v1/chat/completions" in response.text
        for path in ("docs", "openapi.json", "v1/models", "health", "ready"):
            assert f'href="{path}"' in response.text
            assert (await server.http.get(f"/{path}")).status_code == 200
        await server.state.engine.close()
        assert "down: The server is shutting down" in (await server.http.get("/")).text

    run(check)


def test_tokenizer_info() -> None:
    async def check(server: TinyServer) -> None:
        info = (await server.http.get("/tokenizer_info")).json()
        assert info == {
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": None,
            "chat_template": CHATML,
        }

    run(check)
