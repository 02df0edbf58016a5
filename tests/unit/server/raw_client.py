"""A client below HTTP, which leaves or stops reading when a test wants it to."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from tests.unit.server.tiny_server import TinyServer

PATHS = ["/v1/completions", "/v1/chat/completions"]


class RawClient:
    """Talks ASGI, so that a test decides when the client goes away."""

    def __init__(
        self,
        server: TinyServer,
        path: str,
        *,
        has_more: bool = False,
        form: bytes | None = None,
        **body: Any,
    ) -> None:
        """`has_more`: the body never comes to its end. `form`: it is this multipart form, with the
        boundary "b"."""
        messages = {"messages": [{"role": "user", "content": "Hi"}]}
        prompt = {"prompt": "Hi"} if path == "/v1/completions" else messages
        data = json.dumps(prompt | body).encode() if form is None else form
        kind = b"application/json" if form is None else b"multipart/form-data; boundary=b"
        self._body = {"type": "http.request", "body": data, "more_body": has_more}
        self._gone = asyncio.Event()
        self.sent: list[dict[str, Any]] = []
        self.on_send: Callable[[], None] = lambda: None
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", kind)],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        self.task = asyncio.create_task(server.app(scope, self._receive, self._send))

    def leave(self) -> None:
        self._gone.set()

    async def _receive(self) -> dict[str, Any]:
        if self._body:
            body, self._body = self._body, {}
            return body
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self.on_send()

    @property
    def writes(self) -> list[bytes]:
        return [m["body"] for m in self.sent if m["type"] == "http.response.body"]


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)
