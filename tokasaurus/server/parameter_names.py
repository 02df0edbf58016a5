"""Errors name parameters as the client calls them, whichever endpoint it asked."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tokasaurus.errors import InvalidRequestError


@contextmanager
def parameters_called(names: Mapping[str, str]) -> Iterator[None]:
    """`names`: our name for a parameter -> this endpoint's."""
    try:
        yield
    except InvalidRequestError as error:
        own = names.get(error.param or "")
        if own is None:
            raise
        message = str(error).replace(repr(error.param), repr(own))
        raise type(error)(message, param=own, code=error.code) from error
