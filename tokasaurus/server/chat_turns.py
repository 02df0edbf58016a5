"""One turn of a chat, whichever endpoint it came by: from messages and tools to running samples."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from tokasaurus.server.chat_output import ChatOutputParser
from tokasaurus.server.chat_prompts import continued_text, render_chat
from tokasaurus.server.ids import new_id
from tokasaurus.server.output_format import OutputFormat
from tokasaurus.server.prompt_truncation import truncated
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.reasoning.splitter import ReasoningSplitter
from tokasaurus.server.request_group import RequestGroup
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.server.state import ServerState
from tokasaurus.server.tools.mistral import MistralParser
from tokasaurus.server.tools.tool_choice import NO_TOOLS, ToolUse


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """What is asked. `params.structured_output` is about the answer, which a call may replace."""

    messages: Any
    params: SamplingParams
    tool_use: ToolUse = NO_TOOLS
    template_variables: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False
    add_special_tokens: bool = False
    truncate_prompt_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class RunningTurn:
    """A turn's samples, and how to read what they say."""

    turn: ChatTurn
    output_format: OutputFormat
    group: RequestGroup
    num_prompt_tokens: int
    starts_in_reasoning: bool

    def new_parser(self) -> ChatOutputParser | None:
        """For one sample; None if all that it says is text."""
        tool_use, marks = self.turn.tool_use, self.output_format.reasoning
        if marks is None and not tool_use.offered:
            return None
        return ChatOutputParser(
            marks and ReasoningSplitter(marks, starts_inside=self.starts_in_reasoning),
            self.output_format.tool_parser_for(tool_use.names) if tool_use.offered else None,
            max_calls=tool_use.max_calls,
            is_call_named=tool_use.is_named,
        )

    def new_call_id(self) -> str:
        """Mistral's templates take ids of nine characters only."""
        number = new_id("")
        is_short = self.output_format.tool_parser is MistralParser
        return number[:9] if is_short else f"call_{number[:24]}"


def render_turn(state: ServerState, turn: ChatTurn) -> str:
    """The prompt. Raises InvalidRequestError for what is no chat, or what the model can't do."""
    tools = turn.tool_use.offered
    if tools:
        state.output_format.check_tools()
    return render_chat(
        state,
        turn.messages,
        tools=[tool.for_template() for tool in tools] or None,
        add_generation_prompt=turn.add_generation_prompt,
        continue_final_message=turn.continue_final_message,
        variables=turn.template_variables,
    )


async def start_turn(state: ServerState, turn: ChatTurn, *, stream: bool) -> RunningTurn:
    """Raises what `render_turn` and the engine's `submit` raise."""
    output_format = state.output_format
    state.engine.check_room(turn.params.n)
    await asyncio.sleep(0)  # until others that came with it are here: see EncodingPool.encode
    text = render_turn(state, turn)
    continued = continued_text(turn.messages) if turn.continue_final_message else ""
    reasoning = output_format.reasoning_state(text, continued=continued)
    grammar = output_format.grammar(state.tokenizer)
    output = grammar.output(turn.params.structured_output, turn.tool_use, reasoning)
    params = turn.params
    if output is not params.structured_output:
        params = msgspec.structs.replace(params, structured_output=output)
    [prompt_ids] = await state.encoding_pool.encode(
        [text], add_special_tokens=turn.add_special_tokens
    )
    prompt_ids = truncated(
        prompt_ids,
        turn.truncate_prompt_tokens,
        state.engine.limits,
        max_output_tokens=params.max_tokens,
    )
    visible_tokens = output_format.visible_tokens(with_tools=bool(turn.tool_use.offered))
    group = state.engine.submit(
        [Prompt(prompt_ids, params, "messages", visible_tokens)],
        stream=stream,
        predictor_key="chat",
    )
    return RunningTurn(turn, output_format, group, len(prompt_ids), reasoning == "begun")
