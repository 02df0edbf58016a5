"""The store of responses stays within its bounds."""

import pytest

from tokasaurus.server.responses.store import ResponseNotFoundError, ResponseStore


def test_the_oldest_go_first() -> None:
    store = ResponseStore(max_responses=2)
    for name in "abc":
        store.add(name, name.encode(), [])
    with pytest.raises(ResponseNotFoundError, match="'a'"):
        store.get("a")
    assert [store.get(name).response for name in "bc"] == [b"b", b"c"]


def test_bytes_are_bounded() -> None:
    store = ResponseStore(max_bytes=100)
    store.add("a", b"x" * 60, [{"content": "y"}])
    store.add("b", b"x" * 10, [])
    assert store.get("a").messages == [{"content": "y"}]
    store.add("c", b"x" * 40, [])
    assert store.get("b").response == b"x" * 10
    with pytest.raises(ResponseNotFoundError):
        store.get("a")
    store.delete("c")
    store.add("d", b"x" * 80, [])
    store.get("b")
    store.add("e", b"x" * 200, [])
    assert [len(store.get(name).response) for name in "bd"] == [10, 80]  # too large a one stays out
    for name in "ce":
        with pytest.raises(ResponseNotFoundError):
            store.get(name)
