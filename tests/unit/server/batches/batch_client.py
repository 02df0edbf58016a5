"""How tests upload input, run a batch over it, and read what came out."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.unit.server.tiny_server import TinyServer
from tokasaurus.server.batches.settings import BatchSettings
from tokasaurus.server.schemas.batches import Batch
from tokasaurus.server.store.store import Store

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def settings(path: Path, **values: Any) -> BatchSettings:
    return BatchSettings(state_dir=path / "state", **values)


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> str:
    return json.dumps(
        {
            "custom_id": custom_id,
            "method": "POST",
            "url": url,
            "body": {"prompt": "The", "max_tokens": 3} | body,
        }
    )


async def upload(server: TinyServer, content: str | bytes, name: str = "in.jsonl") -> str:
    response = await server.http.post(
        "/v1/files", files={"file": (name, content)}, data={"purpose": "batch"}
    )
    assert response.status_code == 200, response.text
    return response.json()["id"]


async def create(server: TinyServer, lines: list[str], **body: Any) -> str:
    file_id = await upload(server, "".join(f"{one}\n" for one in lines))
    request = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
    response = await server.post("/v1/batches", request | body)
    assert response.status_code == 200, response.text
    batch = response.json()
    assert batch["object"] == "batch"
    return batch["id"]


async def retrieve(server: TinyServer, batch_id: str) -> dict[str, Any]:
    response = await server.http.get(f"/v1/batches/{batch_id}")
    assert response.status_code == 200, response.text
    return response.json()


async def wait_for(server: TinyServer, batch_id: str, *statuses: str) -> dict[str, Any]:
    for _ in range(6000):
        batch = await retrieve(server, batch_id)
        if batch["status"] in statuses:
            return batch
        await asyncio.sleep(0.01)
    raise AssertionError(f"the batch is still {batch['status']}")


async def until_completed(server: TinyServer, batch_id: str, count: int) -> dict[str, Any]:
    """The batch once it counts so many answers."""
    for _ in range(6000):
        batch = await retrieve(server, batch_id)
        if batch["request_counts"]["completed"] >= count:
            return batch
        await asyncio.sleep(0.01)
    raise AssertionError(f"the batch is still at {batch['request_counts']}")


async def read_lines(server: TinyServer, file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    response = await server.http.get(f"/v1/files/{file_id}/content")
    assert response.status_code == 200, response.text
    return [json.loads(one) for one in response.text.splitlines()]


@asynccontextmanager
async def changed(path: Path, batch_id: str) -> AsyncIterator[tuple[Batch, Store]]:
    """A stored batch to change, while no server runs it."""
    store = Store(path / "state")
    await store.open()
    batch = await store.batch(batch_id)
    yield batch, store
    await store.save_batch(batch)
    await store.close()
