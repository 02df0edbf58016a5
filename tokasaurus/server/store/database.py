"""Files and batches in SQLite, as the documents that the API shows; in order of creation."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from tokasaurus.errors import ConfigError
from tokasaurus.server.schemas.batches import Batch
from tokasaurus.server.schemas.files import FileObject

_VERSION = 1
_SCHEMA = f"""
CREATE TABLE files (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    purpose TEXT NOT NULL,
    document BLOB NOT NULL
);
CREATE TABLE batches (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    is_active INTEGER NOT NULL,
    input_file_id TEXT NOT NULL,
    document BLOB NOT NULL
);
CREATE INDEX active_batches ON batches (is_active) WHERE is_active;
PRAGMA user_version = {_VERSION};
"""

Table = Literal["files", "batches"]


class Page(NamedTuple):
    """What to list: at most `limit` documents that follow `after`."""

    limit: int
    after: str | None = None
    newest_first: bool = True
    purpose: str | None = None
    """Of files only."""


class Database:
    """To be used by one thread."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError for a database that this version can't read."""
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            [version] = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        except sqlite3.Error as error:
            raise ConfigError(
                f"{str(path)!r} can't be used ({error}); move it away, or choose another state_dir."
            ) from error
        if version not in (0, _VERSION):
            self._connection.close()
            raise ConfigError(
                f"{str(path)!r} was written by another version of the server; choose another "
                "state_dir."
            )

    def close(self) -> None:
        self._connection.close()

    def save_file(self, file: FileObject) -> None:
        """Adds it, or replaces the one of its id."""
        self._execute(
            "INSERT INTO files (id, purpose, document) VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET document = excluded.document",
            (file.id, file.purpose, msgspec.json.encode(file)),
        )

    def save_batch(self, batch: Batch) -> None:
        """Adds it, or replaces the one of its id."""
        self._execute(
            "INSERT INTO batches (id, is_active, input_file_id, document) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE "
            "SET document = excluded.document, is_active = excluded.is_active",
            (batch.id, batch.is_active, batch.input_file_id, msgspec.json.encode(batch)),
        )

    def file(self, file_id: str) -> FileObject | None:
        rows = self._execute("SELECT document FROM files WHERE id = ?", (file_id,))
        return msgspec.json.decode(rows[0][0], type=FileObject) if rows else None

    def batch(self, batch_id: str) -> Batch | None:
        rows = self._execute("SELECT document FROM batches WHERE id = ?", (batch_id,))
        return msgspec.json.decode(rows[0][0], type=Batch) if rows else None

    def delete_file(self, file_id: str) -> None:
        self._execute("DELETE FROM files WHERE id = ?", (file_id,))

    def active_batches(self) -> list[Batch]:
        rows = self._execute("SELECT document FROM batches WHERE is_active ORDER BY position")
        return [msgspec.json.decode(row[0], type=Batch) for row in rows]

    def active_batch_of(self, file_id: str) -> str | None:
        """The id of one that reads the file."""
        rows = self._execute(
            "SELECT id FROM batches WHERE is_active AND input_file_id = ? LIMIT 1", (file_id,)
        )
        return rows[0][0] if rows else None

    def files(self, page: Page) -> list[FileObject]:
        return [msgspec.json.decode(d, type=FileObject) for d in self._documents("files", page)]

    def batches(self, page: Page) -> list[Batch]:
        return [msgspec.json.decode(d, type=Batch) for d in self._documents("batches", page)]

    def _documents(self, table: Table, page: Page) -> list[bytes]:
        direction, beyond = ("DESC", "<") if page.newest_first else ("ASC", ">")
        conditions, values = ["TRUE"], []
        if page.after is not None:
            conditions.append(f"position {beyond} (SELECT position FROM {table} WHERE id = ?)")  # noqa: S608 - Table is a Literal
            values.append(page.after)
        if page.purpose is not None:
            conditions.append("purpose = ?")
            values.append(page.purpose)
        rows = self._execute(
            f"SELECT document FROM {table} WHERE {' AND '.join(conditions)} "  # noqa: S608
            f"ORDER BY position {direction} LIMIT ?",
            (*values, page.limit),
        )
        return [row[0] for row in rows]

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        return self._connection.execute(statement, values).fetchall()
