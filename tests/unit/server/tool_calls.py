"""Servers whose model knows tools: their template, a tool, and how to have it called."""

from typing import Any

import httpx
import openai
from openai.types.chat import ChatCompletion

from tests.unit.server.tiny_server import TOKENIZER, TinyServer, run

PATH = "/v1/chat/completions"
QWEN = (
    "{% if tools %}<tools>{% for t in tools %}{{ t | tojson }}{% endfor %}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<tool_call>{{ c.function.arguments.x }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif enable_thinking is defined %}<think>\n{% endif %}{% endif %}"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "Does it.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
    },
}
MESSAGES = [{"role": "user", "content": "Hi"}]


def with_parameters(parameters: dict[str, Any], *, strict: bool = False) -> dict[str, Any]:
    function = {"name": "f", "parameters": parameters, "strict": strict}
    return {"type": "function", "function": function}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def says(server: TinyServer, text: str) -> None:
    server.manager.script = lambda request: [*TOKENIZER.encode(text), 1]


def prompt_of(server: TinyServer) -> str:
    return TOKENIZER.decode(server.manager.requests[-1].prompt_ids.tolist())


def roomy(check: Any, template: str = QWEN, **options: Any) -> None:
    run(check, template=template, max_model_len=2048, **options)


def sdk(server: TinyServer) -> openai.AsyncOpenAI:
    http = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
    return openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="none", max_retries=0, http_client=http
    )


async def ask(server: TinyServer, **options: Any) -> ChatCompletion:
    async with sdk(server) as client:
        return await client.chat.completions.create(model="tiny", messages=MESSAGES, **options)
