"""A short way to the endpoints that are asked most: past the framework's routing, dependencies and
layers of exception handling, which cost more than such a request's own work.

The framework still documents these routes, and serves whatever does not fit exactly.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import Request, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from tokasaurus.errors import TokasaurusError
from tokasaurus.server.errors import bug_response, own_error_response

Endpoint = Callable[[Request], Awaitable[Response]]


class DirectRoutes:
    """ASGI middleware, our innermost one. Endpoints that take nothing but the request are called
    right away when a POST comes to exactly their path."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        """Of `routes`, those that can be served so are."""
        self._app = app
        self._routes: dict[str, tuple[Endpoint, Any]] = {}
        for route in routes:
            if getattr(route, "methods", None) == {"POST"} and _takes_a_request_only(route):
                self._routes[route.path] = route.endpoint, route  # type: ignore[attr-defined]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = None
        if scope["type"] == "http" and scope["method"] == "POST":
            found = self._routes.get(scope["path"])
        if found is None:
            await self._app(scope, receive, send)
            return
        endpoint, scope["route"] = found
        scope["endpoint"] = endpoint
        try:
            response = await endpoint(Request(scope, receive, send))
        except TokasaurusError as error:
            response = own_error_response(scope["path"], error)
        except Exception:
            await bug_response(scope["path"])(scope, receive, send)
            raise
        await response(scope, receive, send)


def _takes_a_request_only(route: BaseRoute) -> bool:
    parameters = inspect.signature(route.endpoint).parameters.values()  # type: ignore[attr-defined]
    return [parameter.annotation for parameter in parameters] == [Request]
