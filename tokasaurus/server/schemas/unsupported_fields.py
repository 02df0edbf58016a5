"""Fields outside our schemas: ignored where that changes nothing, otherwise refused by name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from tokasaurus.errors import InvalidRequestError

HARMLESS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "parallel_tool_calls",
)
"""They say who asks and how to bill or cache, or, where no tools are given, nothing at all."""

NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "grammar": (),
    "length_penalty": (1,),
    "modalities": (["text"],),
    "moderation": (),
    "reasoning_effort": (),
    "service_tier": ("auto", "default"),
    "spaces_between_special_tokens": (True,),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Field -> values, besides null, that ask for nothing beyond what is done anyway."""


def refuse_unsupported(
    extra: Mapping[str, Any],
    supported: Iterable[str],
    neutral_values: Mapping[str, tuple[Any, ...]] = NEUTRAL_VALUES,
) -> None:
    """Raises InvalidRequestError for the first field that would change the outcome.

    `neutral_values`: known fields -> values, besides null, that ask for nothing.
    """
    for name, value in extra.items():
        if name in HARMLESS:
            continue
        if name in neutral_values:
            neutral = neutral_values[name]
        else:
            raise _unknown(name, [*supported, *HARMLESS, *neutral_values])
        if value is not None and value not in neutral:
            raise _unsupported(name, neutral)


def describe_extra_fields(
    schema: dict[str, Any], neutral_values: Mapping[str, tuple[Any, ...]] = NEUTRAL_VALUES
) -> None:
    """Adds what `refuse_unsupported` lets through to the JSON schema of a request."""
    schema["additionalProperties"] = False
    properties = schema["properties"]
    for name in HARMLESS:
        properties.setdefault(name, {"description": "Accepted, without effect."})
    for name, values in neutral_values.items():
        description = "Accepted where it asks for nothing; other values are refused."
        properties.setdefault(name, {"enum": [None, *values], "description": description})


def _unknown(name: str, known: Iterable[str]) -> InvalidRequestError:
    near = difflib.get_close_matches(name[:64], known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else "remove it."
    return InvalidRequestError(
        f"Unrecognized request argument: {name[:64]!r}; {advice}",
        param=name[:64],
        code="unknown_parameter",
    )


def _unsupported(name: str, neutral: tuple[Any, ...]) -> InvalidRequestError:
    advice = f"leave it out or set it to {neutral[0]!r}" if neutral else "leave it out"
    return InvalidRequestError(
        f"This server does not support {name!r} with this value; {advice}.",
        param=name,
        code="unsupported_parameter",
    )
