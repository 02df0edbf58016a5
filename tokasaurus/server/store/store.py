"""Files and batches for an event loop: a thread of its own does what waits for the disk."""

import asyncio
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

from tokasaurus.server.ids import new_id
from tokasaurus.server.schemas.batches import Batch
from tokasaurus.server.schemas.files import FileObject, FilePurpose
from tokasaurus.server.store.database import Database, Page
from tokasaurus.server.store.errors import FileInUseError, NotStoredError, StorageError
from tokasaurus.server.store.state_folder import StateFolder

R = TypeVar("R")


class Store:
    """Call `open` before anything else."""

    def __init__(self, path: Path, *, is_guest: bool = False) -> None:
        """`is_guest`: another server of the engine has opened it."""
        self.folder = StateFolder(path, is_guest=is_guest)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database: Database | None = None

    @property
    def exists(self) -> bool:
        """Some server has used the state directory before."""
        return self.folder.database.exists()

    async def open(self) -> None:
        """Raises ConfigError if the state directory can't be had."""

        def open_all() -> Database:
            self.folder.open()
            try:
                return Database(self.folder.database)
            except BaseException:
                self.folder.close()
                raise

        self._database = await self._run(open_all)

    async def close(self) -> None:
        if self._database is not None:
            await self._run(self._database.close)
            self._database = None
        self.folder.close()
        self._thread.shutdown()

    async def add_file(self, filename: str, content: IO[bytes]) -> FileObject:
        """An upload. Raises StorageError if the disk takes no more."""
        file_id = new_file_id()

        def copy() -> None:
            path = self.folder.upload(file_id)
            try:
                with path.open("xb") as target:
                    shutil.copyfileobj(content, target, 2**20)
                path.rename(self.folder.file(file_id))
            except OSError as error:
                path.unlink(missing_ok=True)
                raise StorageError(
                    f"The server can't store the file ({error.strerror}); tell its operator."
                ) from error

        await asyncio.to_thread(copy)
        return await self.register_file(file_id, filename, "batch")

    async def register_file(self, file_id: str, filename: str, purpose: FilePurpose) -> FileObject:
        """Make known what lies in its place already; may be repeated."""

        def register() -> FileObject:
            database = self._opened
            if (known := database.file(file_id)) is not None:
                return known
            file = FileObject(
                id=file_id,
                bytes=self.folder.file(file_id).stat().st_size,
                created_at=int(time.time()),
                filename=filename,
                purpose=purpose,
            )
            database.save_file(file)
            return file

        return await self._run(register)

    async def file(self, file_id: str) -> FileObject:
        """Raises NotStoredError."""
        found = await self._run(lambda: self._opened.file(file_id))
        if found is None:
            raise NotStoredError(f"There is no file {file_id[:100]!r} here.", param="file_id")
        return found

    async def batch(self, batch_id: str) -> Batch:
        """Raises NotStoredError."""
        found = await self._run(lambda: self._opened.batch(batch_id))
        if found is None:
            raise NotStoredError(f"There is no batch {batch_id[:100]!r} here.", param="batch_id")
        return found

    async def delete_file(self, file_id: str) -> None:
        """Raises NotStoredError, or FileInUseError as long as a batch reads it."""
        await self.file(file_id)

        def delete() -> None:
            user = self._opened.active_batch_of(file_id)
            if user is not None:
                raise FileInUseError(
                    f"The batch {user} still reads {file_id}; cancel it or wait for its end.",
                    param="file_id",
                )
            self._opened.delete_file(file_id)
            self.folder.file(file_id).unlink(missing_ok=True)

        await self._run(delete)

    async def save_batch(self, batch: Batch) -> None:
        await self._run(lambda: self._opened.save_batch(batch))

    async def active_batches(self) -> list[Batch]:
        return await self._run(lambda: self._opened.active_batches())

    async def files(self, page: Page) -> list[FileObject]:
        return await self._run(lambda: self._opened.files(page))

    async def batches(self, page: Page) -> list[Batch]:
        return await self._run(lambda: self._opened.batches(page))

    @property
    def _opened(self) -> Database:
        assert self._database is not None, "the store is not open"
        return self._database

    async def _run(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


def new_file_id() -> str:
    return new_id("file-")
