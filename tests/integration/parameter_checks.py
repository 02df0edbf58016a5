"""Ways to show that a parameter is honoured: it changes the outcome, or is refused by its name."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx

_VOLATILE = {"id", "created", "created_at", "prompt_tokens_details", "input_tokens_details"}
_CACHED = "cache_read_input_tokens"


@dataclass(frozen=True)
class Endpoint:
    """`base`: a request that gives the same outcome each time."""

    http: httpx.Client
    path: str
    base: Mapping[str, Any]

    def send(self, fields: Mapping[str, Any]) -> httpx.Response:
        given = {name: value for name, value in (self.base | fields).items() if value is not None}
        return self.http.post(self.path, json=given)

    def outcome(self, fields: Mapping[str, Any]) -> Any:
        """What an answer says, but for what differs between two equal requests."""
        response = self.send(fields)
        if response.headers["content-type"].startswith("text/event-stream"):
            return _kinds_of_events(response.text)
        return response.status_code, _steady(response.json())


def _kinds_of_events(stream: str) -> list[str]:
    """Which fields its events fill, not how many events: a busy engine sends tokens together."""
    kinds = set()
    for line in stream.splitlines():
        field_name, _, value = line.partition(": ")
        if value.startswith("{"):
            filled = sorted(key for key, held in json.loads(value).items() if held is not None)
            kinds.add(f"{field_name}: {filled}")
        else:
            kinds.add(line)
    return sorted(kinds)


class Check(Protocol):
    def __call__(self, endpoint: Endpoint, name: str) -> None: ...


@dataclass(frozen=True)
class Changes:
    """With this value the outcome is another, for which the request may need `fields`, too."""

    value: Any
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, endpoint: Endpoint, name: str) -> None:
        without = endpoint.outcome(self.fields)
        assert without[0] == 200 or isinstance(without, list), without
        assert endpoint.outcome(self.fields | {name: self.value}) != without


@dataclass(frozen=True)
class Refuses:
    """This value is a 4xx that names the parameter."""

    value: Any
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, endpoint: Endpoint, name: str) -> None:
        response = endpoint.send(self.fields | {name: self.value})
        assert response.status_code in (400, 404), response.text
        error = response.json()["error"]
        assert re.split(r"[.\[]", error["param"])[0] == name, error


@dataclass(frozen=True)
class Accepts:
    """The documentation says that it has no effect."""

    value: Any

    def __call__(self, endpoint: Endpoint, name: str) -> None:
        assert endpoint.outcome({name: self.value}) == endpoint.outcome({})


@dataclass(frozen=True)
class ShownBy:
    """Another test shows it: `tests/...py::test_...`."""

    test: str

    def __call__(self, endpoint: Endpoint, name: str) -> None:
        file, function = self.test.split("::")
        source = (Path(__file__).parents[2] / file).read_text()
        start = source.index(f"def {function}(")
        rest = source[start + 4 :]
        end = re.search(r"^def |^@", rest, re.MULTILINE)
        decorators = source[:start].rsplit("\n\n\n", 1)[-1]
        body = decorators + (rest[: end.start()] if end else rest)
        assert name in body, f"{self.test} does not mention {name}"


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        steady = {k: _steady(v) for k, v in value.items() if k not in _VOLATILE}
        if _CACHED in steady:
            steady["input_tokens"] += steady.pop(_CACHED)
        return steady
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return value
