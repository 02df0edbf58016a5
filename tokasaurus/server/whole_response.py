"""Waits for a group that does not stream, unless its client goes away."""

from fastapi import Request

from tokasaurus.server.disconnect import ClientGoneError, DisconnectWatch
from tokasaurus.server.generation import Generation
from tokasaurus.server.request_group import RequestGroup


async def finish_all(request: Request, group: RequestGroup) -> list[Generation]:
    """All generations, finished. Raises the first one's error, if any, or ClientGoneError."""
    with group, DisconnectWatch(request.receive, group.cancel):
        while await group.wait():
            pass
    for generation in group.generations:
        if generation.finish_reason == "cancelled":
            raise ClientGoneError("The client went away before its answer was there.")
        if generation.error is not None:
            raise generation.error
    return group.generations
