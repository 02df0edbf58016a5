"""Documents come back as they went, in order; versions and bad files are refused."""

import sqlite3
from pathlib import Path

import pytest

from tokasaurus.errors import ConfigError
from tokasaurus.server.schemas.batches import Batch, BatchErrors, LineError
from tokasaurus.server.schemas.files import FileObject
from tokasaurus.server.store.database import Database, Page
from tokasaurus.server.store.state_folder import StateFolder, default_state_dir


def file(file_id: str) -> FileObject:
    return FileObject(id=file_id, bytes=1, created_at=2, filename="f", purpose="batch")


def batch(batch_id: str) -> Batch:
    return Batch(
        id=batch_id,
        endpoint="/v1/completions",
        input_file_id="file-1",
        completion_window="24h",
        created_at=1,
        expires_at=2,
    )


def test_documents_survive_a_new_connection(tmp_path: Path) -> None:
    path = tmp_path / "db"
    database = Database(path)
    stored = batch("batch_1")
    stored.errors = BatchErrors([LineError(code="c", message="m", line=3)])
    database.save_batch(stored)
    database.save_file(file("file-1"))
    database.close()
    database = Database(path)
    assert database.batch("batch_1") == stored
    assert database.file("file-1") == file("file-1")
    assert database.batch("batch_2") is None
    database.close()


def test_active_ones_and_their_files(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    stored = batch("batch_1")
    database.save_batch(stored)
    assert [b.id for b in database.active_batches()] == ["batch_1"]
    assert database.active_batch_of("file-1") == "batch_1"
    stored.status = "completed"
    database.save_batch(stored)
    assert database.active_batches() == []
    assert database.active_batch_of("file-1") is None
    database.close()


def test_pages_keep_the_order_of_creation_when_documents_change(tmp_path: Path) -> None:
    database = Database(tmp_path / "db")
    for name in "cab":
        database.save_batch(batch(name))
    changed = batch("c")
    changed.status = "completed"
    database.save_batch(changed)
    assert [b.id for b in database.batches(Page(10))] == ["b", "a", "c"]
    assert [b.id for b in database.batches(Page(1, after="b"))] == ["a"]
    assert [b.id for b in database.batches(Page(10, after="c", newest_first=False))] == ["a", "b"]
    assert database.batches(Page(10, after="unknown")) == []
    database.close()


def test_files_that_are_no_database(tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_text("hello " * 1000)
    with pytest.raises(ConfigError, match="can't be used"):
        Database(path)
    newer = tmp_path / "newer"
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="another version"):
        Database(newer)


def test_the_folder_is_private_and_locked(tmp_path: Path) -> None:
    first, second = StateFolder(tmp_path / "s"), StateFolder(tmp_path / "s")
    first.open()
    for part in ("", "files", "batches"):
        assert (tmp_path / "s" / part).stat().st_mode & 0o777 == 0o700
    with pytest.raises(ConfigError, match="in use by another server"):
        second.open()
    first.upload("left").write_text("x")
    first.close()
    second.open()
    assert not second.upload("left").exists()
    second.close()


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="choose another"):
        StateFolder(tmp_path / "file" / "s").open()


def test_the_default_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/somewhere")
    assert default_state_dir() == Path("/somewhere/tokasaurus")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_state_dir() == Path("/home/me/.local/state/tokasaurus")
