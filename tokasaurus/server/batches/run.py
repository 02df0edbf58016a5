"""One batch from its first check to its end, in whatever state an earlier server left it.

Each step may be repeated: a server that was killed within one begins it again after its restart.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import IO

from tokasaurus.errors import EngineFailedError
from tokasaurus.server.batches.item_runner import ItemRunner
from tokasaurus.server.batches.lines import Item, check_lines, read_items
from tokasaurus.server.batches.results import ResultFiles
from tokasaurus.server.default_priority import default_priority
from tokasaurus.server.schemas.batches import (
    Batch,
    BatchErrors,
    BatchStatus,
    LineError,
)
from tokasaurus.server.store.store import Store, new_file_id

log = logging.getLogger(__name__)

BATCH_PRIORITY = 100
"""Of items that give none; interactive requests have 0, and lower runs earlier."""
_CHUNK_ITEMS = 256
_CHUNK_BYTES = 4 * 2**20
_EXPIRED = "The batch's completion window ended before this request was done."


class BatchRun:
    """`batch` always shows how far it is."""

    def __init__(self, batch: Batch, store: Store, items: ItemRunner, max_line_bytes: int) -> None:
        self.batch = batch
        self._store = store
        self._items = items
        self._max_line_bytes = max_line_bytes
        self._work: asyncio.Task[None] | None = None

    async def run(self, room: asyncio.Semaphore) -> None:
        """Until its end; `room` bounds the batches that run at a time.

        Cancelling this leaves the batch to the next server; `cancel` ends it.
        Raises EngineFailedError if the engine is gone, which leaves it, too.
        """
        batch = self.batch
        try:
            if batch.status == "cancelling" and batch.output_file_id is None:
                # An earlier server was killed.
                await asyncio.to_thread(self._recover_cancelled)
            if batch.status == "validating":
                await self._validate()
            if batch.status == "in_progress":
                await self._work_until_end(room)
            if batch.status == "finalizing":
                await self._finalize("completed" if batch.expired_at is None else "expired")
            elif batch.status == "cancelling":
                await self._finalize("cancelled")
        except (OSError, ValueError, BaseExceptionGroup) as error:
            self._raise_if_the_engine_failed(error)
            log.exception("%s failed", self.batch.id)
            message = "The server failed on this batch; its log says why."
            await self._fail([LineError(code="server_error", message=message)])

    def _recover_cancelled(self) -> None:
        """The counts that were saved may be behind the files."""
        batch, folder = self.batch, self._store.folder
        if batch.in_progress_at is None:
            # What validation found wrong; no answers, and of no use to a cancelled batch.
            folder.failures(batch.id).unlink(missing_ok=True)
        else:
            self._result_files().recover()

    async def cancel(self) -> None:
        """What is done stays; returns at once."""
        if self.batch.status not in ("validating", "in_progress"):
            return
        self.batch.cancelling_at = int(time.time())
        await self._set("cancelling")
        if self._work is not None:
            self._work.cancel()

    async def _set(self, status: BatchStatus) -> None:
        self.batch.status = status
        await self._store.save_batch(self.batch)

    async def _validate(self) -> None:
        batch, folder = self.batch, self._store.folder
        checked = await asyncio.to_thread(
            check_lines,
            folder.file(batch.input_file_id),
            batch.endpoint,
            self._max_line_bytes,
            folder.failures(batch.id),
        )
        if batch.status != "validating":  # cancelled meanwhile
            folder.failures(batch.id).unlink()
            return
        batch.request_counts.total = checked.num_items
        if checked.num_errors:
            batch.error_file_id = new_file_id()
            await self._publish(folder.failures(batch.id), batch.error_file_id, "errors")
            await self._fail(checked.shown_errors)
            return
        folder.failures(batch.id).unlink()
        batch.in_progress_at = int(time.time())
        await self._set("in_progress")

    async def _work_until_end(self, room: asyncio.Semaphore) -> None:
        """Leaves the batch finalizing, or cancelling if it was cancelled."""
        batch, results = self.batch, self._result_files()
        await asyncio.to_thread(results.recover)
        if batch.status == "cancelling":
            return
        self._work = asyncio.create_task(self._answer_all(results, room))
        try:
            await asyncio.wait((self._work,), timeout=max(0.0, batch.expires_at - time.time()))
        finally:
            self._work.cancel()
            await asyncio.wait((self._work,))
        if batch.status == "cancelling":
            return
        if self._work.cancelled():
            await asyncio.to_thread(self._answer_rest_as_expired, results)
            if batch.status == "cancelling":
                return
            batch.expired_at = int(time.time())
        else:
            self._work.result()
        batch.finalizing_at = int(time.time())
        await self._set("finalizing")

    def _result_files(self) -> ResultFiles:
        folder, batch = self._store.folder, self.batch
        return ResultFiles(
            folder.results(batch.id), folder.failures(batch.id), batch.request_counts
        )

    async def _answer_all(self, results: ResultFiles, room: asyncio.Semaphore) -> None:
        path = self._store.folder.file(self.batch.input_file_id)
        async with room:
            with results, path.open("rb") as source:
                async with asyncio.TaskGroup() as group:
                    await self._ask_all(source, results, group)

    async def _ask_all(
        self, source: IO[bytes], results: ResultFiles, group: asyncio.TaskGroup
    ) -> None:
        chunks = read_items(source, _CHUNK_ITEMS, _CHUNK_BYTES)
        while chunk := await asyncio.to_thread(next, chunks, None):
            for item in chunk:
                if item.custom_id not in results.finished:
                    await self._items.start(group, item.body, self._answer(item, results))

    async def _answer(self, item: Item, results: ResultFiles) -> None:
        default_priority.set(BATCH_PRIORITY)  # of this item's task only
        answer = await self._items.run(self.batch.endpoint, item.body)
        results.add_answer(item.custom_id, answer)

    def _answer_rest_as_expired(self, results: ResultFiles) -> None:
        results.recover()
        path = self._store.folder.file(self.batch.input_file_id)
        with results, path.open("rb") as source:
            for chunk in read_items(source, _CHUNK_ITEMS, _CHUNK_BYTES):
                for item in chunk:
                    if item.custom_id not in results.finished:
                        results.add_error(item.custom_id, "batch_expired", _EXPIRED)

    async def _finalize(self, status: BatchStatus) -> None:
        """Turn the result files into files of their own; again, if the server was killed here."""
        batch, folder = self.batch, self._store.folder
        if batch.output_file_id is None:
            batch.output_file_id, batch.error_file_id = new_file_id(), new_file_id()
            await self._store.save_batch(batch)
        if not await self._publish(folder.results(batch.id), batch.output_file_id, "output"):
            batch.output_file_id = None
        assert batch.error_file_id is not None
        if not await self._publish(folder.failures(batch.id), batch.error_file_id, "errors"):
            batch.error_file_id = None
        setattr(batch, f"{status}_at", int(time.time()))
        await self._set(status)
        counts = batch.request_counts
        log.info(
            "%s %s: %d of %d requests answered, %d failed",
            batch.id,
            status,
            counts.completed,
            counts.total,
            counts.failed,
        )

    async def _publish(self, path: Path, file_id: str, kind: str) -> bool:
        """False if there is nothing in it."""
        target = self._store.folder.file(file_id)

        def move() -> bool:
            if path.exists():
                if path.stat().st_size == 0:
                    path.unlink()
                else:
                    path.rename(target)
            return target.exists()

        if not await asyncio.to_thread(move):
            return False
        await self._store.register_file(file_id, f"{self.batch.id}_{kind}.jsonl", "batch_output")
        return True

    async def _fail(self, errors: list[LineError]) -> None:
        self.batch.errors = BatchErrors(errors)
        self.batch.failed_at = int(time.time())
        await self._set("failed")

    @staticmethod
    def _raise_if_the_engine_failed(error: BaseException) -> None:
        """Also if it is one of several."""
        if isinstance(error, BaseExceptionGroup):
            failures, _ = error.split(EngineFailedError)
            if failures is not None:
                raise EngineFailedError("The engine is gone.") from error
