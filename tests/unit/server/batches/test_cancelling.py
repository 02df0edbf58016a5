"""Batches that are cancelled at an awkward moment still end cancelled."""

import asyncio
import threading
from pathlib import Path

import pytest

from tests.unit.server.batches.batch_client import changed, create, line, settings, wait_for
from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.server.batches.results import ResultFiles
from tokasaurus.server.batches.run import BatchRun


def test_a_batch_that_was_cancelled_while_it_was_validated_ends_cancelled(tmp_path: Path) -> None:
    batch_ids: list[str] = []

    async def first(server: TinyServer) -> None:
        batch_ids.append(await create(server, ["{"]))
        await wait_for(server, batch_ids[0], "failed")
        await server.state.batch_service.close()
        async with changed(tmp_path, batch_ids[0]) as (batch, store):
            # As if it had been killed between its cancel and the end of the checks.
            batch.status, batch.cancelling_at = "cancelling", 5
            batch.failed_at = batch.errors = batch.error_file_id = None
            store.folder.failures(batch.id).write_text('{"code": "invalid_json", "line": 1}\n')

    async def second(server: TinyServer) -> None:
        await server.state.batch_service.resume()
        batch = await wait_for(server, batch_ids[0], "cancelled", "failed")
        assert (batch["status"], batch["errors"]) == ("cancelled", None)
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)

    run(first, batch_settings=settings(tmp_path))
    run(second, batch_settings=settings(tmp_path))


def test_a_batch_that_is_cancelled_while_it_expires_ends_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_ids: list[str] = []
    has_begun, may_go_on = threading.Event(), threading.Event()
    answer_rest = BatchRun._answer_rest_as_expired

    def answer_slowly(self: BatchRun, results: ResultFiles) -> None:
        has_begun.set()
        assert may_go_on.wait(60)
        answer_rest(self, results)

    async def first(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        batch_ids.append(await create(server, [line("a")]))
        await wait_for(server, batch_ids[0], "in_progress")
        await server.state.batch_service.close()
        async with changed(tmp_path, batch_ids[0]) as (batch, _):
            batch.expires_at = 5

    async def second(server: TinyServer) -> None:
        await server.state.batch_service.resume()
        assert await asyncio.to_thread(has_begun.wait, 60)
        await server.post(f"/v1/batches/{batch_ids[0]}/cancel", {})
        may_go_on.set()
        batch = await wait_for(server, batch_ids[0], "cancelled", "expired", "completed")
        assert (batch["status"], batch["expired_at"]) == ("cancelled", None)

    monkeypatch.setattr(BatchRun, "_answer_rest_as_expired", answer_slowly)
    run(first, batch_settings=settings(tmp_path))
    run(second, batch_settings=settings(tmp_path))
