"""Every field of every request changes the outcome or is refused by name; a new one without a
check fails."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Engine
from tests.integration.parameter_checks import Accepts, Endpoint, Refuses
from tests.integration.parameter_tables import LONG, NEUTRAL_OF, NOT_NEUTRAL, TABLES
from tokasaurus.server.routes.synchronous_batches import SynchronousBatch
from tokasaurus.server.schemas.unsupported_fields import HARMLESS


@pytest.fixture(scope="module")
def http(engine: Engine) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=engine.url, timeout=60) as client:
        yield client


# At temperature 2 the demo model answered it in 60 ways of 60; "2 + 3" it often answers in one.
OPEN_ENDED = [{"role": "user", "content": "Once upon a time, a traveller"}]


def endpoint_of(http: httpx.Client, schema: type) -> Endpoint:
    path, base, _ = TABLES[schema]
    return Endpoint(http, path, base)


@pytest.mark.parametrize("schema", TABLES, ids=lambda schema: schema.__name__)
def test_every_field_has_a_check(schema: Any) -> None:
    assert set(TABLES[schema][2]) == set(schema.model_fields)
    assert all(TABLES[schema][2].values())


def test_every_request_is_here(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    bodies = [
        operation["requestBody"]["content"].get("application/json")
        for operations in document["paths"].values()
        for operation in operations.values()
        if "requestBody" in operation
    ]
    names = {body["schema"]["$ref"].rsplit("/", 1)[-1] for body in bodies if body}
    own_fields_nowhere = {SynchronousBatch.__name__}
    assert names - own_fields_nowhere == {schema.__name__ for schema in TABLES}


@pytest.mark.parametrize(
    ("schema", "name"),
    [(schema, name) for schema, (_, _, table) in TABLES.items() for name in table],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_field(http: httpx.Client, schema: type, name: str) -> None:
    for check in TABLES[schema][2][name]:
        check(endpoint_of(http, schema), name)


@pytest.mark.parametrize("schema", NEUTRAL_OF, ids=lambda schema: schema.__name__)
def test_fields_of_other_servers(http: httpx.Client, schema: Any) -> None:
    """Those that ask for nothing change nothing; those that ask for something are refused."""
    endpoint = endpoint_of(http, schema)
    own = schema.model_fields
    for name in HARMLESS:
        if name not in own:
            Accepts("me")(endpoint, name)
    for name, values in NEUTRAL_OF[schema].items():
        if name not in own:
            Refuses(NOT_NEUTRAL)(endpoint, name)
            for value in values:
                Accepts(value)(endpoint, name)


def test_salts_keep_caches_apart(http: httpx.Client) -> None:
    def num_cached(cache_salt: str) -> int:
        body = {"prompt": LONG, "max_tokens": 1, "cache_salt": cache_salt}
        usage = http.post("/v1/completions", json=body).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert num_cached("sea") == 0
    assert num_cached("sea") > 0
    assert num_cached("rock") == 0


def test_warm_messages(http: httpx.Client) -> None:
    """/v1/messages has no seed, so that only many answers show what draws them."""

    def answers(**fields: Any) -> set[str]:
        body = {"messages": OPEN_ENDED, "max_tokens": 16} | fields
        replies = [http.post("/v1/messages", json=body).json() for _ in range(6)]
        return {"".join(block["text"] for block in reply["content"]) for reply in replies}

    assert len(answers(temperature=2)) > 1
    for held in ({"temperature": 0}, {"top_p": 0}, {"top_k": 1}):
        assert len(answers(**({"temperature": 2} | held))) == 1
