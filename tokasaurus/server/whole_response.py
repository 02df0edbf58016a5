"""Waits for a group that does not stream, unless its client goes away."""

from fastapi import Request

from tokasaurus.server.disconnect import DisconnectWatch
from tokasaurus.server.generation import Generation
from tokasaurus.server.request_group import RequestGroup

CLIENT_CLOSED_REQUEST = 499
"""What logs show for a request whose client left; nobody receives it."""


async def finish_all(request: Request, group: RequestGroup) -> list[Generation] | None:
    """All generations, finished; None if the client left. Raises the first one's error, if any."""
    with group, DisconnectWatch(request.receive, group.cancel):
        while await group.wait():
            pass
    for generation in group.generations:
        if generation.finish_reason == "cancelled":
            return None
        if generation.error is not None:
            raise generation.error
    return group.generations
