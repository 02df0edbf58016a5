"""OpenAI's client, pointed at a Tokasaurus server."""

import openai

from tokasaurus.api.serving import ServeHandle
from tokasaurus.config.engine_config import EngineConfig

_NO_KEY = "none"
"""The SDK insists on a key; the server asks for none."""


def client(url: str | ServeHandle | None = None, **options: object) -> openai.OpenAI:
    """A client of the server at `url`, of what `serve` returned, or of one on the default port.

    `options` go to `openai.OpenAI` (timeout, max_retries ...).
    """
    if isinstance(url, ServeHandle):
        url = url.url
    elif url is None:
        config = EngineConfig()
        url = f"http://{config.host}:{config.port}"
    base_url = url.rstrip("/").removesuffix("/v1") + "/v1"
    return openai.OpenAI(**{"base_url": base_url, "api_key": _NO_KEY, **options})  # type: ignore[arg-type]
