"""What a chat's output has to match, all of it: reasoning, then an answer or calls of tools."""

from dataclasses import dataclass
from typing import Literal

from tokasaurus.server.grammar_writing import several
from tokasaurus.server.reasoning.splitter import ReasoningMarks
from tokasaurus.server.structured_output import StructuredOutput
from tokasaurus.server.tools.call_grammar import CallGrammar, CallSyntax, mark, text_up_to
from tokasaurus.server.tools.tool_choice import ToolUse
from tokasaurus.tokenization.tokenizer import Tokenizer

ReasoningState = Literal["none", "possible", "begun"]
"""Of a prompt's end: nothing is thought, the model may open its reasoning, or it is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatGrammar:
    """Of the served model."""

    call_syntax: CallSyntax | None
    reasoning: ReasoningMarks | None
    tokenizer: Tokenizer

    def output(
        self, answer: StructuredOutput | None, tool_use: ToolUse, reasoning: ReasoningState
    ) -> StructuredOutput | None:
        """None: any text will do. `answer`: what the client wants of a text that calls no tool.

        Raises InvalidRequestError for what can't be enforced.
        """
        body, rules = self._body(answer, tool_use)
        if not body:
            return None
        if reasoning == "none" and body == "@answer":
            return answer
        thought, more = self._thought(reasoning)
        turn = "\n".join([f"start: {thought}({body})", *more, *rules])
        param = "tool_choice" if answer is None else answer.param
        grammar = several({"turn": turn} | ({"answer": answer.compiled()} if answer else {}))
        return StructuredOutput(grammar=grammar, param=param)

    def _body(self, answer: StructuredOutput | None, tool_use: ToolUse) -> tuple[str, list[str]]:
        """What follows the reasoning; "" for any text."""
        tools = tool_use.forced or tool_use.offered
        strict = frozenset(tool.name for tool in tools if tool.is_strict)
        if not (tool_use.forced or (tools and (answer or strict))):
            return ("@answer" if answer else ""), []
        assert self.call_syntax is not None, "tools were offered to a model that can't call any"
        grammar = CallGrammar(self.call_syntax, self.tokenizer)
        max_calls = tool_use.max_calls
        if tool_use.forced:
            checked = frozenset(tool.name for tool in tools)
            return "calls", [grammar.rules(tools, checked=checked, max_calls=max_calls)]
        if answer is None:
            rules = grammar.rules_after_text(tools, checked=strict, max_calls=max_calls)
            return "text_and_calls", [rules]
        return "@answer | calls", [grammar.rules(tools, checked=strict, max_calls=max_calls)]

    def _thought(self, state: ReasoningState) -> tuple[str, list[str]]:
        """How a text begins, and the rules for it."""
        if state == "none" or self.reasoning is None:
            return "", []
        opening, closing = self.reasoning
        thought = text_up_to("thought", closing, self.tokenizer)
        rules = [thought, r"SPACE: /\s{1,8}/"]
        if state == "begun":
            return "thought SPACE? ", rules
        return f"({mark(opening, self.tokenizer)} thought SPACE?)? ", rules
