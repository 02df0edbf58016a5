"""toka-ping: send one prompt to a running server and show the answer as it comes."""

import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import openai

from tokasaurus.cli.command import run_command
from tokasaurus.config.strict_config import StrictConfig
from tokasaurus.errors import ConfigError, TokasaurusError
from tokasaurus.server.access.api_keys import ENVIRONMENT_VARIABLE

_ABOUT = """\
usage: toka-ping [key=value ...]

Sends a prompt to a running server, prints the answer as it comes, then TTFT and tokens/s.
The variable TOKASAURUS_API_KEY holds the key, if the server wants one.
For example:  toka-ping prompt='Hello world' max_tokens=100 chat=True

  --help      show this
  --version   show the version"""


class PingError(TokasaurusError):
    """The server isn't there, or refused the request."""


class PingConfig(StrictConfig):
    """Options of toka-ping."""

    prompt: str = "Hello world"
    """What to send."""
    max_tokens: int = 100
    """Most tokens of the answer."""
    chat: bool = False
    """Send the prompt as a chat message instead of as text to continue."""
    stream: bool = True
    """Print tokens as they come instead of all at the end."""
    temperature: float | None = None
    """Randomness of the answer, 0 for none; None: the server's default."""
    model: str | None = None
    """Name of the model; None: the first one that the server lists."""
    host: str = "127.0.0.1"
    """Where the server is."""
    port: int = 10210
    """The server's port."""
    url: str | None = None
    """The server's URL, in place of host and port, such as http://127.0.0.1:10210."""
    timeout_seconds: float = 600.0
    """Give up after this long without a byte from the server."""

    @property
    def server_url(self) -> str:
        url = self.url if self.url is not None else f"http://{self.host}:{self.port}"
        return url.rstrip("/").removesuffix("/v1")

    def validate(self) -> None:
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if self.timeout_seconds <= 0:
            raise ConfigError(f"timeout_seconds must be above 0, not {self.timeout_seconds}.")
        if not self.server_url.startswith(("http://", "https://")):
            raise ConfigError(f"url must start with http:// or https://, not {self.url!r}.")


class Answer:
    """What has come so far, and when."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.first_token_at: float | None = None
        self.num_tokens: int | None = None

    def saw_text(self) -> None:
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()

    def summary(self) -> str:
        """TTFT and speed; without a stream, only the whole time is known."""
        now = time.monotonic()
        tokens = "?" if self.num_tokens is None else str(self.num_tokens)
        parts = [f"{tokens} tokens in {now - self.started:.2f} s"]
        if self.first_token_at is not None:
            parts.insert(0, f"TTFT {(self.first_token_at - self.started) * 1000:.0f} ms")
        if self.num_tokens:
            parts.append(f"{self.num_tokens / max(now - self.started, 1e-9):.1f} tokens/s")
        return " · ".join(parts)


def ping(config: PingConfig) -> int:
    client = openai.OpenAI(
        base_url=f"{config.server_url}/v1",
        api_key=os.environ.get(ENVIRONMENT_VARIABLE) or "none",
        timeout=config.timeout_seconds,
        max_retries=0,
    )
    try:
        model = config.model or _first_model(client)
        answer = Answer()
        for text in _request(client, config, model, answer):
            print(text, end="", flush=True)
    except openai.APITimeoutError:
        raise PingError(
            f"{config.server_url} sent nothing for {config.timeout_seconds:g} seconds; "
            "wait longer with timeout_seconds=..."
        ) from None
    except openai.APIConnectionError as error:
        raise PingError(
            f"No server answers at {config.server_url} ({error.__cause__ or error}). "
            "Start one with `toka`, or say where it is with url=... or port=..."
        ) from None
    except openai.APIStatusError as error:
        raise PingError(f"The server refused: {error.message}") from None
    except openai.APIError as error:
        raise PingError(f"The answer broke off: {error.message}") from None
    print(f"\n\n[{model}] {answer.summary()}", file=sys.stderr)
    return 0


def _first_model(client: openai.OpenAI) -> str:
    models = client.models.list().data
    if not models:
        raise PingError("The server lists no model; name one with model=...")
    return models[0].id


def _request(
    client: openai.OpenAI, config: PingConfig, model: str, answer: Answer
) -> Iterator[str]:
    """Pieces of the answer's text; fills in `answer`."""
    options: dict[str, Any] = {"model": model, "max_tokens": config.max_tokens}
    if config.temperature is not None:
        options["temperature"] = config.temperature
    if config.stream:
        options |= {"stream": True, "stream_options": {"include_usage": True}}
    if config.chat:
        options["messages"] = [{"role": "user", "content": config.prompt}]
        response = client.chat.completions.create(**options)
    else:
        response = client.completions.create(prompt=config.prompt, **options)
    for chunk in response if config.stream else [response]:
        if chunk.usage is not None:
            answer.num_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            text = _text_of(choice, chat=config.chat, stream=config.stream)
            if text and config.stream:
                answer.saw_text()
            yield text


def _text_of(choice: Any, *, chat: bool, stream: bool) -> str:
    if not chat:
        return choice.text or ""
    return (choice.delta if stream else choice.message).content or ""


def main(args: list[str] | None = None) -> int:
    return run_command("toka-ping", _ABOUT, PingConfig, ping, args)


if __name__ == "__main__":
    sys.exit(main())
