"""Reasoning before an answer; any cut of a text gives the same pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tokasaurus.server.output_events import OutputEvent, ReasoningPiece, TextPiece, merged
from tokasaurus.server.reasoning.splitter import REASONING_FORMATS, ReasoningSplitter

THINK = REASONING_FORMATS["think"]


def split(text: str, *, inside: bool, cuts: list[int] | None = None) -> list[OutputEvent]:
    splitter = ReasoningSplitter(THINK, starts_inside=inside)
    events: list[OutputEvent] = []
    start = 0
    for cut in [*sorted(cuts or []), len(text)]:
        events += splitter.push(text[start:cut])
        start = cut
    return merged([*events, *splitter.flush()])


@pytest.mark.parametrize(
    ("inside", "text", "reasoning", "answer"),
    [
        (False, "<think>\nHm,  so.\n</think>\n\n4 \n", "Hm,  so.", "4 \n"),
        (False, " <think>a</think>b", "a", "b"),
        (False, "<think>\n\n</think>\n\nb", "", "b"),
        (False, "<think>still", "still", ""),
        (False, "<think>still </thi", "still </thi", ""),
        (False, "  4 </think> 5", "", "  4 </think> 5"),
        (False, "<thinking>", "", "<thinking>"),
        (False, "  <th", "", "  <th"),
        (False, "4 <think>5</think>", "", "4 <think>5</think>"),
        (False, "", "", ""),
        (True, "\nso\n</think>\n\n4", "so", "4"),
        (True, "so", "so", ""),
        (True, "so</think>4</think>5", "so", "4</think>5"),
    ],
)
def test_split(inside: bool, text: str, reasoning: str, answer: str) -> None:
    expected = merged([ReasoningPiece(reasoning), TextPiece(answer)])
    assert split(text, inside=inside) == expected
    assert split(text, inside=inside, cuts=list(range(len(text)))) == expected


@settings(max_examples=examples(100, searching=500))
@given(
    parts=st.lists(
        st.sampled_from(["<think>", "</think>", "<", "th", ">", " ", "\n", "a", "b c"]), max_size=12
    ),
    inside=st.booleans(),
    data=st.data(),
)
def test_any_cut_gives_the_same(parts: list[str], inside: bool, data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=20))
    assert split(text, inside=inside, cuts=cuts) == split(text, inside=inside)


def test_other_marks() -> None:
    splitter = ReasoningSplitter(REASONING_FORMATS["mistral"], starts_inside=False)
    assert splitter.push("[THINK]a[/THINK]b") == [ReasoningPiece("a"), TextPiece("b")]
