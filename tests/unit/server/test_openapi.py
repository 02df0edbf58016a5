"""The API's description is complete: what it refers to is in it."""

import json
import re

from tests.unit.server.tiny_server import TinyServer, run


def test_every_reference_resolves() -> None:
    async def check(server: TinyServer) -> None:
        document = (await server.http.get("/openapi.json")).json()
        names = re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))
        assert set(names) <= set(document["components"]["schemas"])
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert operation["summary"], (method, path)
                assert "422" not in operation["responses"], (method, path)

    run(check)
