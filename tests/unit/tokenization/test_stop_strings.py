"""Stop strings are found wherever they are cut, and nothing is sent that may belong to one."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tokasaurus.tokenization.stop_strings import StopMatcher

stop_lists = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Text and stop string, looking for one after every character."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def run(matcher: StopMatcher, pieces: list[str]) -> list[str]:
    out = []
    for piece in pieces:
        out.append(matcher.push(piece))
        if matcher.matched is not None:
            return out
    return [*out, matcher.flush()]


@given(pieces=st.lists(st.text("abc", max_size=6), max_size=12), stops=stop_lists)
@settings(max_examples=examples(200, searching=800))
@example(pieces=["aab", "aac"], stops=["aabaac", "abaab"])
def test_equals_oracle(pieces: list[str], stops: list[str]) -> None:
    text, stop = oracle("".join(pieces), stops)
    matcher = StopMatcher(stops)
    assert "".join(run(matcher, pieces)) == text
    assert matcher.matched == stop
    including = StopMatcher(stops, include_stop=True)
    assert "".join(run(including, pieces)) == text + (stop or "")


@given(pieces=st.lists(st.text("abc", max_size=6), max_size=12), stops=stop_lists)
@settings(max_examples=examples(120, searching=500))
def test_holds_back_no_more_than_needed(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    sent = seen = ""
    for piece in pieces:
        sent += matcher.push(piece)
        seen += piece
        if matcher.matched is not None:
            return
        held = seen[len(sent) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        shorter = [seen[i:] for i in range(len(sent)) if seen[i:]]
        assert not any(stop.startswith(suffix) for stop in stops for suffix in shorter)


def test_long_stop_string_over_many_pieces() -> None:
    stop = "the end of " * 400
    matcher = StopMatcher([stop])
    out = run(matcher, ["before ", *stop])
    assert "".join(out) == "before "
    assert matcher.matched == stop


def test_beginning_of_a_stop_string_is_released_when_it_fails() -> None:
    matcher = StopMatcher(["\n\n###"])
    assert [matcher.push(p) for p in ["a", "\n", "\n#", "b"]] == ["a", "", "", "\n\n#b"]
    assert matcher.push("\n\n##") == ""
    assert matcher.flush() == "\n\n##"
