"""The FastAPI application inside our own layers, which see a request before the framework does.

The framework's way from its entry to its innermost middleware costs more than all our layers.
"""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send


class LayeredApp(FastAPI):
    """A layer answers what fails in it: the framework's handlers are further inside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.outermost: ASGIApp = super().__call__

    def wrap(self, layer: Callable[..., ASGIApp], **options: Any) -> None:
        """Put another layer, ASGI middleware, around all that are there."""
        self.outermost = layer(self.outermost, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self.outermost(scope, receive, send)
