"""Which form of tool calls and reasoning a chat template stands for."""

import pytest

from tokasaurus.server.output_format import OutputFormat
from tokasaurus.server.reasoning.splitter import REASONING_FORMATS
from tokasaurus.server.tools.hermes import HermesParser
from tokasaurus.server.tools.llama3 import Llama3Parser
from tokasaurus.server.tools.mistral import MistralParser
from tokasaurus.tokenization.chat_template import ChatTemplate


def choose(source: str, **options: str) -> OutputFormat:
    return OutputFormat.choose(ChatTemplate(source, {}, origin="a test"), **options)


@pytest.mark.parametrize(
    ("source", "parser"),
    [
        ("{{ tools }}[TOOL_CALLS]", MistralParser),
        ("{{ tools }}<tool_call>", HermesParser),
        ("{{ tools }}<tool_call><function=", None),
        ("{{ tools }}<|start_header_id|>", Llama3Parser),
        ("<tool_call>", None),
        ("{{ tools }}", None),
        ("", None),
    ],
)
def test_by_template(source: str, parser: type | None) -> None:
    assert choose(source).tool_parser is parser
    assert choose(source).reasoning is None


def test_by_option() -> None:
    assert choose("{{ tools }}", tool_parser="hermes").tool_parser is HermesParser
    assert choose("no", tool_parser="hermes").tool_parser is None
    assert choose("{{ tools }}<tool_call>", tool_parser="none").tool_parser is None
    assert choose("", reasoning_parser="think").reasoning == REASONING_FORMATS["think"]
    assert choose("</think>", reasoning_parser="none").reasoning is None
    assert OutputFormat.choose(None, tool_parser="hermes") == OutputFormat()


def test_reasoning_by_template() -> None:
    assert choose("<think></think>").reasoning == REASONING_FORMATS["think"]
    assert choose("[THINK][/THINK]").reasoning == REASONING_FORMATS["mistral"]


@pytest.mark.parametrize(
    ("prompt", "continued", "state"),
    [
        ("Hi<a>", "", "possible"),
        ("Hi<a><think>\n", "", "begun"),
        ("Hi<a><think></think>\n", "", "none"),
        ("<think>? Hi<a>It", "It", "none"),
        ("Hi<a><think>It", "<think>It", "begun"),
        ("Hi<a><think>a</think>It", "<think>a</think>It", "none"),
        ("Hi<a><think>\n\n", "\n", "begun"),
    ],
)
def test_reasoning_at_the_end_of_a_prompt(prompt: str, continued: str, state: str) -> None:
    assert choose("</think>").reasoning_state(prompt, continued=continued) == state
    assert choose("").reasoning_state(prompt, continued=continued) == "none"


def test_tokens_that_mean_something() -> None:
    chosen = choose("{{ tools }}<tool_call></think>")
    assert chosen.visible_tokens(with_tools=False) == ("<think>", "</think>")
    assert "<tool_call>" in chosen.visible_tokens(with_tools=True)
    assert OutputFormat().visible_tokens(with_tools=True) == ()
