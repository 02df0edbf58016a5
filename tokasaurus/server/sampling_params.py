"""SamplingParams: how a prompt is continued. Checked once, here, for HTTP and Python alike."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import astuple, force_setattr

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.structured_output import StructuredOutput

MAX_N = 4096
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 64
MAX_STOP_CHARACTERS = 65_536
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARACTERS = 8192
MAX_ALLOWED_TOKEN_IDS = 2**20
_MAX_TOKENS = 2**31 - 1
_MAX_PRIORITY = 2**31 - 1
_MIN_TIMEOUT = 0.001
_MAX_TIMEOUT = 31_536_000
_MAX_SALT_CHARACTERS = 1024


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """Raises InvalidRequestError, which names the parameter, for values that can't be honoured."""

    n: int = 1
    """Samples per prompt, 1 to 4096."""
    temperature: float = 1.0
    """0 to 2; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Draw from the most likely tokens that together reach this probability, 0 to 1."""
    top_k: int = 0
    """Draw from this many most likely tokens; 0 or -1: from all."""
    min_p: float = 0.0
    """Draw from tokens at least this fraction as likely as the most likely one, 0 to 1."""
    frequency_penalty: float = 0.0
    """-2 to 2: taken off a token's logit for each time it is in the output."""
    presence_penalty: float = 0.0
    """-2 to 2: taken off once if it is in the output."""
    repetition_penalty: float = 1.0
    """0.01 to 100: positive logits of tokens in prompt or output are divided by it, others
    multiplied."""
    logit_bias: Mapping[int, float] = {}
    """Token id -> -100 to 100, added to its logit. Keys may be strings, as in JSON."""
    bad_words: Sequence[str] = ()
    """Texts that can't be drawn as the tokens they encode to, with or without a leading space."""
    allowed_token_ids: Sequence[int] = ()
    """Only these can be drawn, the end of the text included only if it is among them; (): all."""
    structured_output: StructuredOutput | None = None
    """What the text has to match. It is valid unless `max_tokens` or `stop` cut it."""
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
    priority: int | None = None
    """Lower runs earlier; first come, first served within one priority. None: 0, or 100 in a batch.
    """
    timeout: float | None = None
    """Seconds until what has not finished is given up, time in the queue included."""
    cache_salt: str = ""
    """Prompts share cached prefixes only with prompts of the same salt."""

    def __post_init__(self) -> None:
        for name, default, value in zip(_NAMES, _DEFAULTS, astuple(self), strict=True):
            if value is not default:  # defaults are valid, and most values are the default
                checked = _CHECKS[name](name, value)
                if checked is not value:
                    force_setattr(self, name, checked)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequestError(
                f"'min_tokens' ({self.min_tokens}) must not be above 'max_tokens' "
                f"({self.max_tokens}).",
                param="min_tokens",
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


_Check = Callable[[str, Any], Any]
"""Of a parameter's name and value: the value as it is kept. Raises InvalidRequestError."""


def _integer(low: int, high: int) -> _Check:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _invalid(name, f"an integer between {low} and {high}", value)
        return value

    return check


def _number(low: float, high: float) -> _Check:
    def check(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise _invalid(name, f"a number between {low} and {high}", value)
        return value

    return check


def _checked_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _invalid(name, "true or false", value)
    return value


def _checked_output(name: str, value: Any) -> StructuredOutput:
    if not isinstance(value, StructuredOutput):
        raise _invalid(name, "a StructuredOutput", value)
    return value


def _checked_salt(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > _MAX_SALT_CHARACTERS:
        raise _invalid(name, f"a string of at most {_MAX_SALT_CHARACTERS} characters")
    return value


def _checked_stop(name: str, stop: Any) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) for s in stops):
        raise _invalid(name, "a string or a list of strings", stop)
    if not all(stops):
        raise _invalid(name, "made of strings that are not empty", stop)
    if len(stops) > MAX_STOP_STRINGS:
        raise _invalid(name, f"at most {MAX_STOP_STRINGS} strings", len(stops))
    if sum(map(len, stops)) > MAX_STOP_CHARACTERS:
        raise _invalid(name, f"at most {MAX_STOP_CHARACTERS} characters in all")
    return tuple(dict.fromkeys(stops))


def _ids(max_count: int) -> _Check:
    def check(name: str, ids: Any) -> tuple[int, ...]:
        if not isinstance(ids, list | tuple) or not all(type(i) is int for i in ids):
            raise _invalid(name, "a list of integers", ids)
        if len(ids) > max_count:
            raise _invalid(name, f"at most {max_count} token ids", len(ids))
        return tuple(dict.fromkeys(ids))

    return check


def _checked_logit_bias(name: str, biases: Any) -> dict[int, float]:
    if biases == {}:  # the default, which is a new one each time
        return biases
    if not isinstance(biases, Mapping):
        raise _invalid(name, "an object of token ids and numbers", biases)
    if len(biases) > MAX_LOGIT_BIASES:
        raise _invalid(name, f"at most {MAX_LOGIT_BIASES} entries", len(biases))
    checked: dict[int, float] = {}
    for key, value in biases.items():
        is_id = type(key) is int or (isinstance(key, str) and key.isdecimal() and len(key) < 20)
        if not is_id:
            raise _invalid(name, "keyed by token ids", key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not -100 <= value <= 100:
            raise _invalid(name, "made of numbers between -100 and 100", value)
        checked[int(key)] = float(value)
    return checked


def _checked_bad_words(name: str, words: Any) -> tuple[str, ...]:
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise _invalid(name, "a list of strings", words)
    if not all(word.strip() for word in words):
        raise _invalid(name, "made of strings with more than white space", words)
    if len(words) > MAX_BAD_WORDS:
        raise _invalid(name, f"at most {MAX_BAD_WORDS} strings", len(words))
    if sum(map(len, words)) > MAX_BAD_WORD_CHARACTERS:
        raise _invalid(name, f"at most {MAX_BAD_WORD_CHARACTERS} characters in all")
    return tuple(dict.fromkeys(words))


INTEGER_RANGES = {
    "n": (1, MAX_N),
    "top_k": (-1, _MAX_TOKENS),
    "seed": (0, 2**63 - 1),
    "max_tokens": (0, _MAX_TOKENS),
    "min_tokens": (0, _MAX_TOKENS),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "priority": (-_MAX_PRIORITY, _MAX_PRIORITY),
}
NUMBER_RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "frequency_penalty": (-2, 2),
    "presence_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
    "timeout": (_MIN_TIMEOUT, _MAX_TIMEOUT),
}
_CHECKS: dict[str, _Check] = {
    **{name: _integer(low, high) for name, (low, high) in INTEGER_RANGES.items()},
    **{name: _number(low, high) for name, (low, high) in NUMBER_RANGES.items()},
    "logit_bias": _checked_logit_bias,
    "bad_words": _checked_bad_words,
    "allowed_token_ids": _ids(MAX_ALLOWED_TOKEN_IDS),
    "structured_output": _checked_output,
    "stop": _checked_stop,
    "stop_token_ids": _ids(MAX_STOP_TOKEN_IDS),
    "ignore_eos": _checked_flag,
    "skip_special_tokens": _checked_flag,
    "include_stop_str_in_output": _checked_flag,
    "cache_salt": _checked_salt,
}
_NAMES = SamplingParams.__struct_fields__
_DEFAULTS = SamplingParams.__struct_defaults__
