"""SamplingParams: how a prompt is continued. Checked once, here, for HTTP and Python alike."""

from collections.abc import Sequence
from typing import Any

import msgspec

from tokasaurus.errors import InvalidRequestError

MAX_N = 128
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 65_536
MAX_STOP_TOKEN_IDS = 1024
_MAX_TOKENS = 2**31 - 1
_MAX_PRIORITY = 2**31 - 1
_MAX_SALT_CHARACTERS = 1024


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Raises InvalidRequestError, which names the parameter, for values that can't be honoured."""

    n: int = 1
    """Samples per prompt, 1 to 128."""
    temperature: float = 1.0
    """0 to 2; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together reach this probability, 0 to 1."""
    top_k: int = 0
    """Draw from this many most likely tokens; 0 or -1: from all."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the most likely one, 0 to 1."""
    seed: int | None = None
    """The same seed gives the same tokens; sample i uses seed + i. None: drawn at random."""
    max_tokens: int | None = None
    """Most output tokens; None: what fits the context. 0: only look at the prompt."""
    min_tokens: int = 0
    """Neither EOS, `stop_token_ids` nor `stop` end the output before this many tokens."""
    stop: str | Sequence[str] = ()
    """Texts that end the output, of any length; they are cut off."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the output, besides the model's EOS tokens; not part of the text."""
    ignore_eos: bool = False
    """Go on after the model's EOS tokens."""
    logprobs: int | None = None
    """Log-probability of each output token, and of this many most likely ones, 0 to 20."""
    prompt_logprobs: int | None = None
    """The same for each prompt token after the first."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    include_stop_str_in_output: bool = False
    """Keep the stop string, or the text of the stop token, at the end of the output."""
    priority: int = 0
    """Lower runs earlier; first come, first served within one priority."""
    cache_salt: str = ""
    """Prompts share cached prefixes only with prompts of the same salt."""

    def __post_init__(self) -> None:
        _check_integer("n", self.n, 1, MAX_N)
        _check_number("temperature", self.temperature, 0, 2)
        _check_number("top_p", self.top_p, 0, 1)
        _check_number("min_p", self.min_p, 0, 1)
        _check_integer("top_k", self.top_k, -1, _MAX_TOKENS)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, 2**63 - 1)
        if self.max_tokens is not None:
            _check_integer("max_tokens", self.max_tokens, 0, _MAX_TOKENS)
        _check_integer("min_tokens", self.min_tokens, 0, _MAX_TOKENS)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"'min_tokens' ({self.min_tokens}) must not be above 'max_tokens' "
                f"({self.max_tokens}).",
                param="min_tokens",
            )
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _check_integer(name, value, 0, MAX_LOGPROBS)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(value := getattr(self, name), bool):
                raise _invalid(name, "true or false", value)
        _check_integer("priority", self.priority, -_MAX_PRIORITY, _MAX_PRIORITY)
        if not isinstance(self.cache_salt, str) or len(self.cache_salt) > _MAX_SALT_CHARACTERS:
            raise _invalid("cache_salt", f"a string of at most {_MAX_SALT_CHARACTERS} characters")
        msgspec.structs.force_setattr(self, "stop", _checked_stop(self.stop))
        msgspec.structs.force_setattr(
            self, "stop_token_ids", _checked_stop_token_ids(self.stop_token_ids)
        )


def _invalid(name: str, wanted: str, value: Any = None) -> InvalidRequestError:
    found = "" if value is None else f", not {shown(value)}"
    return InvalidRequestError(f"{name!r} must be {wanted}{found}.", param=name)


def shown(value: Any) -> str:
    """A client's value as it appears in messages: never long."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number that large"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _invalid(name, f"an integer between {low} and {high}", value)


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise _invalid(name, f"a number between {low} and {high}", value)


def _checked_stop(stop: Any) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
        raise _invalid("stop", "a string or a list of strings", stop)
    if not all(stops):
        raise _invalid("stop", "made of strings that are not empty", stop)
    if len(stops) > MAX_STOP_STRINGS:
        raise _invalid("stop", f"at most {MAX_STOP_STRINGS} strings", len(stops))
    if sum(map(len, stops)) > MAX_STOP_CHARACTERS:
        raise _invalid("stop", f"at most {MAX_STOP_CHARACTERS} characters in all")
    return tuple(dict.fromkeys(stops))


def _checked_stop_token_ids(ids: Any) -> tuple[int, ...]:
    if not isinstance(ids, list | tuple) or not all(type(i) is int for i in ids):
        raise _invalid("stop_token_ids", "a list of integers", ids)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise _invalid("stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} token ids", len(ids))
    return tuple(dict.fromkeys(ids))
