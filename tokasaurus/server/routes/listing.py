"""The query of a list: `limit`, `after`, `order`; and what its page says."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from fastapi import Request

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.store.database import Page


class Identified(Protocol):
    id: str


class Slice(NamedTuple):
    first_id: str | None
    last_id: str | None
    has_more: bool


def query_parameters(max_limit: int, *, takes_purpose: bool = False) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `parse_page`."""
    schemas: dict[str, dict[str, Any]] = {
        "limit": {"type": "integer", "minimum": 1, "maximum": max_limit},
        "after": {"type": "string"},
        "order": {"enum": ["asc", "desc"]},
    }
    if takes_purpose:
        schemas["purpose"] = {"type": "string"}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in schemas.items()
        ]
    }


def parse_page(
    request: Request, *, default_limit: int, max_limit: int, takes_purpose: bool = False
) -> Page:
    """Asks for one more than the limit, so that `slice_of` knows whether there are more.

    Raises InvalidRequestError, which names the parameter.
    """
    query = request.query_params
    known = ("limit", "after", "order", *(["purpose"] if takes_purpose else []))
    for name in query:
        if name not in known:
            raise InvalidRequestError(
                f"Unrecognized query parameter: {name[:64]!r}; remove it.",
                param=name[:64],
                code="unknown_parameter",
            )
    text = query.get("limit", str(default_limit))
    if not (text.isascii() and text.isdecimal() and len(text) < 9 and 1 <= int(text) <= max_limit):
        raise InvalidRequestError(
            f"'limit' must be an integer between 1 and {max_limit}.", param="limit"
        )
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidRequestError("'order' must be 'asc' or 'desc'.", param="order")
    return Page(
        limit=int(text) + 1,
        after=query.get("after"),
        newest_first=order == "desc",
        purpose=query.get("purpose"),
    )


def slice_of(found: list[Any], page: Page) -> Slice:
    """Takes the one too many off the list."""
    has_more = len(found) == page.limit
    if has_more:
        found.pop()
    return Slice(*_ends(found), has_more)


def _ends(found: Sequence[Identified]) -> tuple[str | None, str | None]:
    return (found[0].id, found[-1].id) if found else (None, None)
