"""What the ASGI scope of a request holds for us; no client can put it there."""

INTERNAL = "tokasaurus.internal"
"""There if the server makes the request to itself."""
REQUEST_ID = "tokasaurus.request_id"
