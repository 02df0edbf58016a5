"""/v1/files: what is uploaded comes back; everything else is refused by name."""

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.server.batches.batch_client import create, line, settings, upload, wait_for
from tests.unit.server.batches.test_batches_route import until_running
from tests.unit.server.tiny_server import TinyServer, run, serving


def test_a_file_comes_back_as_it_went(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000

    async def check(server: TinyServer) -> None:
        file_id = await upload(server, content, name="../../etc/in.jsonl")
        file = (await server.http.get(f"/v1/files/{file_id}")).json()
        assert (file["bytes"], file["filename"]) == (len(content), "in.jsonl")
        assert (file["object"], file["purpose"], file["status"]) == ("file", "batch", "processed")
        assert (await server.http.get(f"/v1/files/{file_id}/content")).content == content
        assert [p.name for p in (tmp_path / "state" / "files").iterdir()] == [file_id]

    run(check, batch_settings=settings(tmp_path))


def test_deleted_files_are_gone(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        file_id = await upload(server, "x")
        response = await server.http.delete(f"/v1/files/{file_id}")
        assert response.json() == {"id": file_id, "object": "file", "deleted": True}
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            response = await server.http.request(method, f"/v1/files/{file_id}{path}")
            assert response.status_code == 404
            assert response.json()["error"]["code"] == "not_found"
        assert not list((tmp_path / "state" / "files").iterdir())

    run(check, batch_settings=settings(tmp_path))


def test_a_file_in_use_stays(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        batch_id = await create(server, [line("a", max_tokens=1)])
        await until_running(server, 1)
        [file] = (await server.http.get("/v1/files")).json()["data"]
        response = await server.http.delete(f"/v1/files/{file['id']}")
        assert response.status_code == 409
        assert batch_id in response.json()["error"]["message"]
        server.manager.tick()
        await wait_for(server, batch_id, "completed")
        assert (await server.http.delete(f"/v1/files/{file['id']}")).status_code == 200

    run(check, batch_settings=settings(tmp_path))


def test_listing(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        ids = [await upload(server, "x") for _ in range(3)]
        page = (await server.http.get("/v1/files?order=asc&limit=2")).json()
        assert [f["id"] for f in page["data"]] == ids[:2]
        assert page["has_more"] is True
        page = (await server.http.get(f"/v1/files?order=asc&after={ids[1]}")).json()
        assert [f["id"] for f in page["data"]] == ids[2:]
        assert page["has_more"] is False
        assert (await server.http.get("/v1/files?purpose=batch_output")).json()["data"] == []
        assert len((await server.http.get("/v1/files?purpose=batch")).json()["data"]) == 3
        for query, param in (
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("limit=99999", "limit"),
            ("order=up", "order"),
            ("page=2", "page"),
        ):
            response = await server.http.get(f"/v1/files?{query}")
            assert response.status_code == 400
            assert response.json()["error"]["param"] == param

    run(check, batch_settings=settings(tmp_path))


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"files": {"file": ("a", b"x")}}, "purpose"),
        ({"files": {"file": ("a", b"x")}, "data": {"purpose": "fine-tune"}}, "purpose"),
        ({"files": {"other": ("a", b"x")}, "data": {"purpose": "batch"}}, "other"),
        ({"files": {"file": (None, b"x")}, "data": {"purpose": "batch"}}, "file"),
        (
            {
                "files": {"file": ("a", b"x")},
                "data": {"purpose": "batch", "expires_after[seconds]": "5"},
            },
            "expires_after[seconds]",
        ),
        ({"json": {}}, None),
        ({"content": b"", "headers": {"content-type": "multipart/form-data"}}, None),
        (
            {"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            None,
        ),
    ],
)
def test_uploads_that_are_refused(tmp_path: Path, form: dict[str, Any], param: str | None) -> None:
    async def check(server: TinyServer) -> None:
        response = await server.http.post("/v1/files", **form)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == param
        assert (await server.http.get("/v1/files")).json()["data"] == []

    run(check, batch_settings=settings(tmp_path))


@pytest.mark.parametrize("size", [2000, 200_000])
def test_uploads_that_are_too_large(tmp_path: Path, size: int) -> None:
    async def check(server: TinyServer) -> None:
        response = await server.http.post(
            "/v1/files", files={"file": ("a", b"x" * size)}, data={"purpose": "batch"}
        )
        assert response.status_code == 413
        assert "1000 bytes" in response.json()["error"]["message"]
        assert not list((tmp_path / "state" / "uploads").iterdir())

    run(check, batch_settings=settings(tmp_path, max_file_bytes=1000))


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(server: TinyServer) -> None:
        def full(*args: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(shutil, "copyfileobj", full)
        response = await server.http.post(
            "/v1/files", files={"file": ("a", b"x")}, data={"purpose": "batch"}
        )
        assert response.status_code == 500
        assert "No space left" in response.json()["error"]["message"]
        assert (await server.http.get("/v1/files")).json()["data"] == []

    run(check, batch_settings=settings(tmp_path))


def test_one_server_at_a_time(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        await upload(server, "x")

        async def other(second: TinyServer) -> None:
            response = await second.http.get("/v1/files")
            assert response.status_code == 503
            assert "state_dir" in response.json()["error"]["message"]
            await second.state.batch_service.resume()
            await second.complete()

        async with serving(batch_settings=settings(tmp_path)) as second:
            await other(second)

    run(check, batch_settings=settings(tmp_path))


def test_nothing_is_made_before_it_is_needed(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        await server.state.batch_service.resume()
        await server.complete()

    run(check, batch_settings=settings(tmp_path))
    assert not list(tmp_path.iterdir())
