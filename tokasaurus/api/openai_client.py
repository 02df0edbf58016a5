"""OpenAI's client, pointed at a Tokasaurus server."""

import os

import openai

from tokasaurus.api.serving import ServeHandle
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.server.access.api_keys import ENVIRONMENT_VARIABLE

_NO_KEY = "none"
"""The SDK insists on a key; a server without keys asks for none."""


def client(url: str | ServeHandle | None = None, **options: object) -> openai.OpenAI:
    """A client of the server at `url`, of what `serve` returned, or of one on the default port.

    `options` go to `openai.OpenAI` (api_key, timeout, max_retries ...). Without an `api_key` the
    key is what TOKASAURUS_API_KEY says.
    """
    if isinstance(url, ServeHandle):
        url = url.url
    elif url is None:
        config = EngineConfig()
        url = f"http://{config.host}:{config.port}"
    base_url = url.rstrip("/").removesuffix("/v1") + "/v1"
    key = os.environ.get(ENVIRONMENT_VARIABLE) or _NO_KEY
    return openai.OpenAI(**{"base_url": base_url, "api_key": key, **options})  # type: ignore[arg-type]
