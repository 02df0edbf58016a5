"""How the served model marks reasoning and tool calls: as configured, or as its template shows."""

from dataclasses import dataclass

from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.chat_grammar import ChatGrammar, ReasoningState
from tokasaurus.server.reasoning.splitter import REASONING_FORMATS, ReasoningMarks
from tokasaurus.server.tools.call_grammar import CallSyntax
from tokasaurus.server.tools.hermes import HermesParser
from tokasaurus.server.tools.llama3 import Llama3Parser
from tokasaurus.server.tools.mistral import MistralParser
from tokasaurus.server.tools.parser import ToolParser
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.tokenizer import Tokenizer

_TOOL_PARSERS: dict[str, type[ToolParser]] = {
    "hermes": HermesParser,
    "llama3": Llama3Parser,
    "mistral": MistralParser,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFormat:
    """None where the model has no such thing."""

    tool_parser: type[ToolParser] | None = None
    call_syntax: CallSyntax | None = None
    """What `tool_parser` reads."""
    reasoning: ReasoningMarks | None = None

    @classmethod
    def choose(
        cls,
        template: ChatTemplate | None,
        *,
        tool_parser: str = "auto",
        reasoning_parser: str = "auto",
    ) -> "OutputFormat":
        """By the options of these names; a template that never heard of tools can't offer any."""
        if template is None:
            return cls()
        if tool_parser == "auto":
            tool_parser = _tool_format_of(template)
        if reasoning_parser == "auto":
            reasoning_parser = _reasoning_format_of(template)
        parser = _TOOL_PARSERS.get(tool_parser) if template.mentions("tools") else None
        return cls(
            tool_parser=parser,
            call_syntax=None if parser is None else parser.call_syntax(template),
            reasoning=REASONING_FORMATS.get(reasoning_parser),
        )

    def check_tools(self) -> type[ToolParser]:
        """Raises InvalidRequestError if the model can't be offered tools."""
        if self.tool_parser is None:
            raise InvalidRequestError(
                "The served model's chat template has no tools that this server understands; leave "
                "'tools' out, or start the server with tool_parser=... and a chat_template= that "
                "renders tools.",
                param="tools",
                code="unsupported_parameter",
            )
        return self.tool_parser

    def tool_parser_for(self, names: frozenset[str]) -> ToolParser:
        """Raises what `check_tools` raises."""
        return self.check_tools()(names)

    def reasoning_state(self, prompt: str, *, continued: str = "") -> ReasoningState:
        """At the end of a prompt, which ends with the text that is `continued`, if any is."""
        if self.reasoning is None:
            return "none"
        opening, closing = self.reasoning
        if continued.strip():
            is_open = continued.rfind(opening) > continued.rfind(closing)
            return "begun" if is_open else "none"
        prompt = prompt.rstrip()
        if prompt.endswith(opening):
            return "begun"
        return "none" if prompt.endswith(closing) else "possible"

    def grammar(self, tokenizer: Tokenizer) -> ChatGrammar:
        """Of what the model writes."""
        return ChatGrammar(
            call_syntax=self.call_syntax, reasoning=self.reasoning, tokenizer=tokenizer
        )

    def visible_tokens(self, *, with_tools: bool) -> tuple[str, ...]:
        """Special tokens that have to stay in the text, because they mean something."""
        tokens: tuple[str, ...] = self.reasoning or ()
        if with_tools and self.tool_parser is not None:
            tokens = (*tokens, *self.tool_parser.special_tokens)
        return tuple(tokens)


def _tool_format_of(template: ChatTemplate) -> str:
    if template.mentions("[TOOL_CALLS]"):
        return "mistral"
    if template.mentions("<tool_call>") and not template.mentions("<function="):
        return "hermes"
    if template.mentions("<|start_header_id|>") or template.mentions("<|python_tag|>"):
        return "llama3"
    return "none"


def _reasoning_format_of(template: ChatTemplate) -> str:
    for name, marks in REASONING_FORMATS.items():
        if template.mentions(marks.closing):
            return name
    return "none"
