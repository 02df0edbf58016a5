"""How much a model is asked to think: what its chat template lets a client choose."""

from collections.abc import Mapping
from typing import Any

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.output_format import OutputFormat
from tokasaurus.server.sampling_params import shown
from tokasaurus.tokenization.chat_template import ChatTemplate

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_LEVEL = "reasoning_effort"
_SWITCH = "enable_thinking"


def effort_variables(
    effort: Any, template: ChatTemplate | None, output_format: OutputFormat, *, param: str
) -> dict[str, Any]:
    """Variables for the template. Raises InvalidRequestError for what it doesn't read.

    "none" is also honoured by models that never think, and where thinking can be switched off.
    """
    if effort is None:
        return {}
    if effort not in EFFORTS:
        raise InvalidRequestError(
            f"{param!r} must be one of {', '.join(EFFORTS)}, not {shown(effort)}.", param=param
        )
    variables: dict[str, Any] = {}
    if template is not None and template.mentions(_LEVEL):
        variables[_LEVEL] = effort
    if effort == "none":
        variables |= thinking_off(template)
        if variables or output_format.reasoning is None:
            return variables
    if variables:
        return variables
    raise InvalidRequestError(
        f"{param!r} of {effort!r} changes nothing about the served model, whose chat template does "
        "not read it; leave it out.",
        param=param,
        code="unsupported_parameter",
    )


def thinking_off(template: ChatTemplate | None) -> dict[str, Any]:
    """Models that think do so by default; some of their templates can turn it off."""
    can_choose = template is not None and template.mentions(_SWITCH)
    return {_SWITCH: False} if can_choose else {}


def with_own_variables(
    own: Mapping[str, Any] | None, variables: Mapping[str, Any], *, param: str
) -> dict[str, Any]:
    """Both together; `own` are those that the client gave by name.

    Raises InvalidRequestError if they contradict `variables`, which come of `param`.
    """
    own = own or {}
    for name in variables.keys() & own.keys():
        if own[name] != variables[name]:
            raise InvalidRequestError(
                f"{param!r} and 'chat_template_kwargs' say different things of {name!r}; give only "
                "one of them.",
                param=param,
            )
    return {**own, **variables}
