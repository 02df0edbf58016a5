"""The output of a response, item by item, as the model writes it."""

from collections.abc import Callable

from tokasaurus.server.ids import new_id
from tokasaurus.server.output_events import (
    ArgumentsPiece,
    CallStart,
    OutputEvent,
    ReasoningPiece,
    TextPiece,
)
from tokasaurus.server.schemas.response_events import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ResponseEvent,
    TextDelta,
    TextDone,
)
from tokasaurus.server.schemas.responses import (
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
)


class OutputItems:
    """Grows by `add`, which returns the events that tell a stream about it."""

    def __init__(self, new_call_id: Callable[[], str]) -> None:
        self.items: list[OutputItem] = []
        self._new_call_id = new_call_id
        self._is_open = False

    def add(self, event: OutputEvent) -> list[ResponseEvent]:
        events: list[ResponseEvent] = []
        if not self._continues(event):
            events += self.close("completed")
            events += self._open(event)
        item, index = self.items[-1], len(self.items) - 1
        match event, item:
            case TextPiece(), MessageItem():
                item.content[0].text += event.text
                events.append(TextDelta(item_id=item.id, output_index=index, delta=event.text))
            case ReasoningPiece(), ReasoningItem():
                item.content[0].text += event.text
                events.append(ReasoningDelta(item_id=item.id, output_index=index, delta=event.text))
            case ArgumentsPiece(), FunctionCallItem():
                item.arguments += event.text
                events.append(ArgumentsDelta(item_id=item.id, output_index=index, delta=event.text))
        return events

    def close(self, status: ItemStatus) -> list[ResponseEvent]:
        """The last item gets nothing more."""
        if not self._is_open:
            return []
        self._is_open = False
        item, index = self.items[-1], len(self.items) - 1
        item.status = status
        events: list[ResponseEvent]
        match item:
            case MessageItem(content=[part]):
                events = [
                    TextDone(item_id=item.id, output_index=index, text=part.text),
                    PartDone(item_id=item.id, output_index=index, part=part),
                ]
            case ReasoningItem(content=[thought]):
                events = [
                    ReasoningDone(item_id=item.id, output_index=index, text=thought.text),
                    PartDone(item_id=item.id, output_index=index, part=thought),
                ]
            case FunctionCallItem():
                events = [
                    ArgumentsDone(
                        item_id=item.id,
                        output_index=index,
                        name=item.name,
                        arguments=item.arguments,
                    )
                ]
        return [*events, ItemDone(output_index=index, item=item)]

    def _continues(self, event: OutputEvent) -> bool:
        if not self._is_open:
            return False
        match event, self.items[-1]:
            case (
                (TextPiece(), MessageItem())
                | (ReasoningPiece(), ReasoningItem())
                | (ArgumentsPiece(), FunctionCallItem())
            ):
                return True
        return False

    def _open(self, event: OutputEvent) -> list[ResponseEvent]:
        """Events hold copies of what they show, because items go on growing."""
        self._is_open = True
        index, number = len(self.items), new_id("")
        match event:
            case CallStart():
                call_id, name = self._new_call_id(), event.name
                call = FunctionCallItem(id=f"fc_{number}", call_id=call_id, name=name)
                self.items.append(call)
                shown = FunctionCallItem(id=call.id, call_id=call_id, name=name)
                return [ItemAdded(output_index=index, item=shown)]
            case ReasoningPiece():
                item: OutputItem = ReasoningItem(id=f"rs_{number}", content=[ReasoningText("")])
                empty: OutputItem = ReasoningItem(id=item.id)
                part: OutputText | ReasoningText = ReasoningText("")
            case _:
                item = MessageItem(id=f"msg_{number}", content=[OutputText("")])
                empty = MessageItem(id=item.id)
                part = OutputText("")
        self.items.append(item)
        return [
            ItemAdded(output_index=index, item=empty),
            PartAdded(item_id=item.id, output_index=index, part=part),
        ]
