"""Waits for a group that does not stream, unless its client goes away."""

from fastapi import Request

from tokasaurus.server.disconnect import ClientGoneError, DisconnectWatch
from tokasaurus.server.generation import Generation
from tokasaurus.server.request_group import RequestGroup


async def finish_all(request: Request, group: RequestGroup) -> list[Generation]:
    """All generations, finished. As soon as one fails the others are cancelled, and its error is
    raised; ClientGoneError if nobody waits for them any more."""
    with group, DisconnectWatch(request.receive, group.cancel):
        while finished := await group.wait():
            for generation in finished:
                if generation.finish_reason == "cancelled":
                    raise ClientGoneError("The client went away before its answer was there.")
                if generation.error is not None:
                    raise generation.error
    return group.generations
