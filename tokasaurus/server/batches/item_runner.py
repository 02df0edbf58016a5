"""Runs single requests of batches: bounded in number, patient when the engine has no room."""

import asyncio
from collections.abc import Coroutine, Iterable
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.types import ASGIApp

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.batches.capacity import Capacity
from tokasaurus.server.batches.internal_call import Answer, call
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.errors import describe

ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings")
"""What batches may ask for, where the server has it."""

_FIRST_RETRY_SECONDS = 0.05
_LAST_RETRY_SECONDS = 2.0
_RETRIED = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})


class ItemRunner:
    """Shared by everything that asks in bulk."""

    def __init__(
        self, app: ASGIApp, paths: Iterable[str], engine: EngineClient, max_in_flight: int
    ) -> None:
        """`paths`: what the app serves. `max_in_flight` counts samples."""
        known = set(paths)
        self.endpoints = tuple(path for path in ENDPOINTS if path in known)
        self.capacity = Capacity(max_in_flight)
        self._app = app
        self._engine = engine

    async def start(
        self,
        group: asyncio.TaskGroup,
        body: dict[str, msgspec.Raw],
        work: Coroutine[Any, Any, None],
    ) -> None:
        """Begin `work`, which runs the body, as soon as there is room for its samples."""
        try:
            places = await self.capacity.acquire(num_samples(body))
        except asyncio.CancelledError:
            work.close()
            raise
        # Not within the work: a task that is cancelled before it begins never runs at all.
        group.create_task(work).add_done_callback(lambda _: self.capacity.release(places))

    async def run(self, endpoint: str, body: dict[str, msgspec.Raw]) -> Answer:
        """To be called by what `start` begins.

        Raises EngineFailedError if the engine is gone: the item was not answered.
        """
        if _decoded(body, "stream") is True:
            error = InvalidRequestError(
                "'stream' must not be true here: answers come as a whole.", param="stream"
            )
            return Answer(400, "", msgspec.json.encode(describe(error)))
        encoded = msgspec.json.encode(body)
        seconds = _FIRST_RETRY_SECONDS
        while True:
            answer = await call(self._app, endpoint, encoded)
            if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR and self._engine.failure:
                raise self._engine.failure
            if answer.status not in _RETRIED:
                return answer
            await asyncio.sleep(seconds)
            seconds = min(2 * seconds, _LAST_RETRY_SECONDS)


def num_samples(body: dict[str, msgspec.Raw]) -> int:
    """Prompts times n (or best_of), as far as a glance shows; what is wrong comes out later."""
    if isinstance(inputs := _decoded(body, "input"), list):
        # Of embeddings; where they are the items of one response, they are objects.
        return sum(isinstance(one, str | list) for one in inputs) or 1
    numbers = (_decoded(body, "n"), _decoded(body, "best_of"))
    per_prompt = max([1, *(number for number in numbers if isinstance(number, int))])
    prompts = _decoded(body, "prompt")
    is_many = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    return per_prompt * (len(prompts) if isinstance(prompts, list) and is_many else 1)


def _decoded(body: dict[str, msgspec.Raw], name: str) -> object:
    """None for what is missing, no JSON, or a text."""
    raw = bytes(body.get(name, b""))
    if raw.startswith(b'"'):
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
