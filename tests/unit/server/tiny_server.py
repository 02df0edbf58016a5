"""A whole server inside the test's event loop, over a manager double; and how to talk to it."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from tests.unit.server.manager_double import ManagerDouble, connected
from tokasaurus.server.access.policy import AccessPolicy
from tokasaurus.server.app import create_app
from tokasaurus.server.batches.settings import BatchSettings
from tokasaurus.server.output_format import OutputFormat
from tokasaurus.server.state import ServerState
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.encoding_pool import EncodingPool
from tokasaurus.tokenization.tokenizer import Tokenizer

ANSWER = "The quick brown fox.\n\nIt jumps 日本 😀 over."
CHATML = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{{ mood }}{% endif %}"
)


def make_tokenizer() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([ANSWER.replace("日本 😀", "")] * 2, trainer)
    backend.add_tokens([AddedToken("<user>", normalized=False)])
    return Tokenizer(backend, {"eos_token": "</s>", "bos_token": "<s>"})


TOKENIZER = make_tokenizer()
ANSWER_IDS = [*TOKENIZER.encode(ANSWER), 1]


@dataclass
class TinyServer:
    state: ServerState
    managers: list[ManagerDouble]
    http: httpx.AsyncClient
    app: Any

    @property
    def manager(self) -> ManagerDouble:
        return self.managers[0]

    async def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        if isinstance(body, str | bytes):
            return await self.http.post(path, content=body, **options)
        return await self.http.post(path, json=body, **options)

    async def complete(self, **body: Any) -> dict[str, Any]:
        response = await self.post("/v1/completions", {"prompt": "The", "max_tokens": 50} | body)
        assert response.status_code == 200, response.text
        return response.json()

    async def chat(self, content: str = "Hi", **body: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": content}]
        response = await self.post("/v1/chat/completions", {"messages": messages} | body)
        assert response.status_code == 200, response.text
        return response.json()

    async def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream that ends as it should."""
        response = await self.post(path, body | {"stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        *chunks, done, rest = response.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]

    async def error(self, path: str, body: Any, status: int = 400) -> dict[str, Any]:
        response = await self.post(path, body)
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[TinyServer]:
    """A server that answers everything with ANSWER, one token per message."""
    max_body_bytes = options.pop("max_body_bytes", 2**20)
    access = options.pop("access", AccessPolicy())
    batch_settings = options.pop("batch_settings", BatchSettings(state_dir=Path("/nonexistent")))
    stall_seconds = options.pop("stream_stall_seconds", 60.0)
    peers = options.pop("peers", None)
    template = options.pop("template", CHATML)
    tracer = options.pop("tracer", None)
    chat_template = template and ChatTemplate(template, {}, origin="a test")
    parsers = {n: options.pop(n) for n in ("tool_parser", "reasoning_parser") if n in options}
    client, managers = connected(TOKENIZER, lambda request: ANSWER_IDS, **options)
    await client.start(deadline_seconds=60)
    state = ServerState(
        engine=client,
        tokenizer=TOKENIZER,
        encoding_pool=EncodingPool(TOKENIZER),
        chat_template=chat_template,
        output_format=OutputFormat.choose(chat_template, **parsers),
        model_name="tiny",
        access=access,
        tracer=tracer,
        batch_settings=batch_settings,
        stream_stall_seconds=stall_seconds,
        max_body_bytes=max_body_bytes,
        peers=peers,
    )
    app = create_app(state)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield TinyServer(state, managers, http, app)
    await state.batch_service.close()
    await client.close()
    state.encoding_pool.close()


def run(test: Callable[[TinyServer], Awaitable[None]], **options: Any) -> None:
    """Run a test against a fresh server, after which nothing may be in flight."""

    async def main() -> None:
        async with serving(**options) as server:
            await test(server)
            for _ in range(100):
                await asyncio.sleep(0)
            assert server.state.engine.num_in_flight == 0
            assert not any(manager.running for manager in server.managers)

    asyncio.run(asyncio.wait_for(main(), timeout=120))  # more than any wait in it
