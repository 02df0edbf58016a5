"""The priority of what is submitted in a context and gives none of its own.

Batches set it around requests that they make to the server's own routes, not all of which let
clients choose a priority.
"""

from contextvars import ContextVar

default_priority: ContextVar[int] = ContextVar("default_priority", default=0)
"""Lower runs earlier, as everywhere."""
