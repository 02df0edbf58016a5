"""What can't be enforced is refused by the name of the keyword; the rest becomes a grammar."""

import json
import re
from typing import Any

import pytest

from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.errors import InvalidRequestError
from tokasaurus.server.structured_output import StructuredOutput


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"properties": {"a": {"items": {"not": {}}}}}, "not"),
        ({"if": {"type": "string"}, "then": {"minLength": 2}}, "if', 'then"),
        ({"type": "string", "format": "rhyme"}, "rhyme"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "maxLength": 3}]}, "oneOf"),
        ({"type": "text"}, "text"),
        ({"$ref": "#/$defs/T"}, "$defs/T"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"type": "string", "pattern": "(?=a)"}, "look-ahead"),
        ({"enum": []}, "empty"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "minimum"),
        ({"uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        ('{"type": "object"', "not JSON"),
        (5, "object"),
        (False, "empty"),
        ({"description": "x" * 70_000}, "65536"),
    ],
    ids=str,
)
def test_schemas_that_can_not_be_enforced(schema: Any, named: str) -> None:
    with pytest.raises(InvalidRequestError, match=re.escape(named)) as caught:
        StructuredOutput(json_schema=schema, param="response_format")
    assert caught.value.param == "response_format"
    assert len(str(caught.value)) < 400


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize("depth", [200, 3000])
def test_deep_schemas_are_refused(depth: int) -> None:
    with pytest.raises(InvalidRequestError):
        StructuredOutput(json_schema=nested(depth))


@pytest.mark.parametrize(
    "kinds",
    [
        {},
        {"regex": "a", "grammar": "b"},
        {"json_object": True, "json_schema": {}},
        {"regex": ""},
        {"regex": "("},
        {"regex": 5},
        {"choice": []},
        {"choice": [""]},
        {"choice": "yes"},
        {"grammar": "start: other"},
        {"grammar": "root ::= ("},
        {"grammar": "start: " + "(" * 20_000},
    ],
    ids=lambda kinds: str(kinds)[:40],
)
def test_other_kinds_that_are_refused(kinds: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        StructuredOutput(**kinds)
    assert caught.value.param == "structured_output"
    assert len(str(caught.value)) < 400


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
        {"guided_regex": "[a-z]+"},
        {"guided_choice": ["yes", "no"], "response_format": {"type": "text"}},
        {"guided_grammar": 'root ::= "a" | "b"'},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json_object": True, "regex": None}},
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"grammar": 'start: "a" | "b"'}},
    ],
    ids=str,
)
def test_fields_become_a_grammar(body: dict[str, Any]) -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(n=2, **body)
        await server.chat(**body)
        for request in server.manager.requests:
            assert request.sampling.grammar
            assert request.sampling.end_token_ids == request.stop_token_ids
            assert request.sampling.depends_on_tokens

    run(check)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x"),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "x": 1}}},
            "response_format.json_schema.x",
        ),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}},
            "response_format",
        ),
        ({"guided_json": {"not": {}}}, "guided_json"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_regex": ""}, "guided_regex"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_grammar": "x"}, "guided_grammar"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        (
            {"guided_regex": "a", "response_format": {"type": "json_object"}},
            "response_format",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"whitespace_pattern": "x"}}, "structured_outputs"),
        ({"guided_regex": "a", "ignore_eos": True}, "guided_regex"),
    ],
    ids=str,
)
def test_refused_by_name(body: dict[str, Any], param: str) -> None:
    async def check(server: TinyServer) -> None:
        error = await server.error("/v1/completions", {"prompt": "The"} | body)
        assert error["param"] == param
        assert not server.manager.requests

    run(check)


def test_plain_requests_have_no_grammar() -> None:
    async def check(server: TinyServer) -> None:
        await server.complete(response_format={"type": "text"})
        [request] = server.manager.requests
        assert request.sampling.grammar == ""
        assert request.sampling.end_token_ids == ()

    run(check)
