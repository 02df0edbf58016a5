"""All files and batches of a server: opened when first needed, or when an earlier server left some.

A batch that runs lives here, and its document in the store follows; all others only in the store.
Of the servers of an engine, the leading one owns the state directory and runs all batches; the
others read and write files in it.
"""

import asyncio
import logging
import re
import time

from tokasaurus.errors import ConfigError, EngineFailedError, InvalidRequestError
from tokasaurus.server.batches.item_runner import ItemRunner
from tokasaurus.server.batches.run import BatchRun
from tokasaurus.server.batches.settings import BatchSettings
from tokasaurus.server.errors import ServerNotReadyError
from tokasaurus.server.ids import new_id
from tokasaurus.server.peers import Peers
from tokasaurus.server.schemas.batches import Batch, BatchRequest
from tokasaurus.server.store.database import Page
from tokasaurus.server.store.store import Store

log = logging.getLogger(__name__)

_OPEN_QUESTION = "open the store"
_MAX_RUNNING = 16
"""Batches that work at a time; later ones wait."""
_WINDOW = re.compile(r"(\d{1,6})([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_MAX_WINDOW_SECONDS = 366 * 86400
_MAX_METADATA = (16, 64, 512)
"""Entries, characters of a name, characters of a value; as OpenAI has them."""


class BatchService:
    """Belongs to one event loop."""

    def __init__(
        self,
        settings: BatchSettings,
        items: ItemRunner,
        max_line_bytes: int,
        peers: Peers | None = None,
    ) -> None:
        self.settings = settings
        self._items = items
        self._max_line_bytes = max_line_bytes
        self._peers = peers
        self._leads = peers is None or peers.leads
        self._store = Store(settings.state_dir, is_guest=not self._leads)
        self._opening = asyncio.Lock()
        self._is_open = False
        self._is_closed = False
        self._room = asyncio.Semaphore(_MAX_RUNNING)
        self._runs: dict[str, BatchRun] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        if peers is not None:
            peers.answer_with(_OPEN_QUESTION, self._answer_open)

    async def resume(self) -> None:
        """Go on with what an earlier server left, if there is something. Never raises."""
        if not self._leads or not self._store.exists:
            return
        try:
            await self.store()
        except ServerNotReadyError as error:
            log.warning("No files and batches: %s", error)

    async def store(self) -> Store:
        """The open store. Raises ServerNotReadyError if the state directory can't be had."""
        async with self._opening:
            if self._is_closed:
                raise ServerNotReadyError("The server is shutting down; try again.")
            if not self._is_open:
                await self._open()
                self._is_open = True
                for batch in await self._store.active_batches() if self._leads else ():
                    log.info("Going on with %s, which is %s", batch.id, batch.status)
                    self._start(batch)
        return self._store

    async def _open(self) -> None:
        if self._peers is not None and not self._leads:
            reason = await self._peers.ask(0, _OPEN_QUESTION)
            if reason:
                raise ServerNotReadyError(reason.decode())
        try:
            await self._store.open()
        except ConfigError as error:
            raise ServerNotReadyError(str(error)) from error

    async def _answer_open(self, payload: bytes) -> bytes:  # noqa: ARG002
        """Why the store can't be had; nothing if it is open."""
        try:
            await self.store()
        except ServerNotReadyError as error:
            return str(error).encode()
        return b""

    async def close(self) -> None:
        """Leave what runs to the next server."""
        async with self._opening:
            self._is_closed = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._store.close()

    async def create(self, request: BatchRequest) -> Batch:
        """Raises InvalidRequestError for what can't be run."""
        store = await self.store()
        if request.endpoint not in self._items.endpoints:
            raise InvalidRequestError(
                f"'endpoint' must be one of {', '.join(self._items.endpoints)}.", param="endpoint"
            )
        window_seconds = _parse_window(request.completion_window)
        _check_metadata(request.metadata)
        try:
            file = await store.file(request.input_file_id)
        except InvalidRequestError as error:
            raise InvalidRequestError(str(error), param="input_file_id") from error
        if file.purpose != "batch":
            raise InvalidRequestError(
                f"{file.id} was not uploaded with the purpose 'batch'.", param="input_file_id"
            )
        now = int(time.time())
        batch = Batch(
            id=new_id("batch_"),
            endpoint=request.endpoint,
            input_file_id=file.id,
            completion_window=request.completion_window,
            created_at=now,
            expires_at=now + window_seconds,
            metadata=request.metadata,
        )
        await store.save_batch(batch)
        self._start(batch)
        return batch

    async def batch(self, batch_id: str) -> Batch:
        """As it is now. Raises NotStoredError."""
        store = await self.store()
        run = self._runs.get(batch_id)
        return run.batch if run is not None else await store.batch(batch_id)

    async def batches(self, page: Page) -> list[Batch]:
        stored = await (await self.store()).batches(page)
        return [self._runs[b.id].batch if b.id in self._runs else b for b in stored]

    async def cancel(self, batch_id: str) -> Batch:
        """Raises NotStoredError, or InvalidRequestError if it has ended."""
        batch = await self.batch(batch_id)
        if not batch.is_active:
            raise InvalidRequestError(
                f"{batch.id} can't be cancelled: it is {batch.status}.", param="batch_id"
            )
        if (run := self._runs.get(batch_id)) is not None:
            await run.cancel()
        return batch

    def _start(self, batch: Batch) -> None:
        run = BatchRun(batch, self._store, self._items, self._max_line_bytes)
        self._runs[batch.id] = run
        task = asyncio.create_task(self._supervise(run))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _supervise(self, run: BatchRun) -> None:
        try:
            await run.run(self._room)
        except EngineFailedError as error:
            log.warning("%s waits for the next start: %s", run.batch.id, error)
            return  # and stays as it is
        except Exception:
            log.exception("%s can't go on; the next start tries again", run.batch.id)
            return
        del self._runs[run.batch.id]


def _parse_window(text: str) -> int:
    """Seconds."""
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if not 0 < seconds <= _MAX_WINDOW_SECONDS:
        raise InvalidRequestError(
            "'completion_window' must be a number with s, m, h or d, such as 24h, and at most a "
            "year.",
            param="completion_window",
        )
    return seconds


def _check_metadata(metadata: dict[str, str] | None) -> None:
    num_entries, name_length, value_length = _MAX_METADATA
    items = list((metadata or {}).items())
    is_fine = len(items) <= num_entries and all(
        len(name) <= name_length and len(value) <= value_length for name, value in items
    )
    if not is_fine:
        raise InvalidRequestError(
            f"'metadata' may have at most {num_entries} entries, with names of at most "
            f"{name_length} and values of at most {value_length} characters.",
            param="metadata",
        )
