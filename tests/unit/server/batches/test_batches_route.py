"""Batches from upload to answers, over a manager double."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.server.batches.batch_client import (
    COMPLETIONS,
    changed,
    create,
    line,
    read_lines,
    retrieve,
    settings,
    until_completed,
    upload,
    wait_for,
)
from tests.unit.server.tiny_server import TinyServer, run
from tokasaurus.server.access.api_keys import ApiKeys
from tokasaurus.server.access.policy import AccessPolicy
from tokasaurus.server.batches.run import BATCH_PRIORITY
from tokasaurus.server.store.store import Store


def test_every_line_has_an_answer(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        lines = [line(f"item-{i}", max_tokens=1 + i % 5) for i in range(50)]
        batch_id = await create(server, lines, metadata={"for": "a test"})
        batch = await wait_for(server, batch_id, "completed")
        assert batch["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
        assert batch["error_file_id"] is None
        assert batch["errors"] is None
        assert batch["metadata"] == {"for": "a test"}
        assert batch["created_at"] <= batch["in_progress_at"] <= batch["completed_at"]
        answers = {a["custom_id"]: a for a in await read_lines(server, batch["output_file_id"])}
        assert len(answers) == 50
        for index in range(50):
            answer = answers[f"item-{index}"]
            assert answer["id"].startswith("batch_req_")
            assert answer["error"] is None
            assert answer["response"]["status_code"] == 200
            assert answer["response"]["request_id"].startswith("req_")
            body = answer["response"]["body"]
            assert body["usage"]["completion_tokens"] == 1 + index % 5
        file = (await server.http.get(f"/v1/files/{batch['output_file_id']}")).json()
        assert (file["purpose"], file["filename"]) == ("batch_output", f"{batch_id}_output.jsonl")

    run(check, batch_settings=settings(tmp_path))


def test_failures_go_to_their_own_file(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        batch_id = await create(
            server,
            [
                line("good"),
                line("no number", temperature="hot"),
                line("no such model", model="gpt-5"),
                line("streams", stream=True),
                line("unknown", temprature=1),
            ],
        )
        batch = await wait_for(server, batch_id, "completed")
        assert batch["request_counts"] == {"total": 5, "completed": 1, "failed": 4}
        [good] = await read_lines(server, batch["output_file_id"])
        assert good["custom_id"] == "good"
        bad = {
            a["custom_id"]: a["response"] for a in await read_lines(server, batch["error_file_id"])
        }
        assert {name: answer["status_code"] for name, answer in bad.items()} == {
            "no number": 400,
            "no such model": 404,
            "streams": 400,
            "unknown": 400,
        }
        assert bad["no number"]["body"]["error"]["param"] == "temperature"
        assert bad["streams"]["body"]["error"]["param"] == "stream"

    run(check, batch_settings=settings(tmp_path))


def test_items_yield_to_interactive_requests(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        await wait_for(
            server,
            await create(server, [line("a"), line("b", priority=-3), line("c", priority=0)]),
            "completed",
        )
        assert sorted(r.priority for r in server.manager.requests) == [-3, 0, BATCH_PRIORITY]
        server.manager.requests.clear()
        await server.complete()
        assert [r.priority for r in server.manager.requests] == [0]

    run(check, batch_settings=settings(tmp_path))


def test_routes_without_a_priority_yield_too(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        item = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"input": "Hi"}}
        batch_id = await create(server, [json.dumps(item)], endpoint="/v1/responses")
        batch = await wait_for(server, batch_id, "completed")
        assert batch["request_counts"]["completed"] == 1
        assert [r.priority for r in server.manager.requests] == [BATCH_PRIORITY]

    run(check, batch_settings=settings(tmp_path))


def test_wrong_lines_are_all_reported(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        lines = [
            line("a"),
            "{",
            "",
            line("a"),
            line("b", url="/v1/chat/completions"),
            json.dumps({"custom_id": "c", "method": "GET", "url": COMPLETIONS, "body": {}}),
            json.dumps({"method": "POST", "url": COMPLETIONS, "body": {}}),
            json.dumps({"custom_id": 5, "method": "POST", "url": COMPLETIONS, "body": {}}),
            json.dumps({"custom_id": "d", "method": "POST", "url": COMPLETIONS, "body": []}),
            line(""),
            json.dumps(json.loads(line("e")) | {"boddy": 1}),
        ]
        batch = await wait_for(server, await create(server, lines), "failed")
        errors = batch["errors"]["data"]
        assert [(e["line"], e["code"], e["param"]) for e in errors] == [
            (2, "invalid_json", None),
            (4, "duplicate_custom_id", "custom_id"),
            (5, "mismatched_url", "url"),
            (6, "invalid_method", "method"),
            (7, "missing_field", "custom_id"),
            (8, "invalid_line", "custom_id"),
            (9, "invalid_line", "body"),
            (10, "missing_custom_id", "custom_id"),
            (11, "invalid_line", "boddy"),
        ]
        assert await read_lines(server, batch["error_file_id"]) == errors
        assert not server.manager.requests
        assert batch["failed_at"] is not None
        assert batch["output_file_id"] is None

    run(check, batch_settings=settings(tmp_path))


def test_an_empty_file_fails(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        batch = await wait_for(server, await create(server, ["", "  "]), "failed")
        [error] = batch["errors"]["data"]
        assert (error["code"], error["line"]) == ("empty_file", None)

    run(check, batch_settings=settings(tmp_path))


def test_counts_are_live_and_cancelling_keeps_what_is_done(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        batch_id = await create(server, [line(f"{i}", max_tokens=1 + i) for i in range(4)])
        await until_running(server, 4)
        server.manager.tick()
        batch = await until_completed(server, batch_id, 1)
        assert batch["status"] == "in_progress"
        assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 0}
        response = await server.post(f"/v1/batches/{batch_id}/cancel", {})
        assert response.json()["status"] == "cancelling"
        batch = await wait_for(server, batch_id, "cancelled")
        assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 0}
        assert [a["custom_id"] for a in await read_lines(server, batch["output_file_id"])] == ["0"]
        assert not server.manager.running
        error = await server.error(f"/v1/batches/{batch_id}/cancel", {})
        assert "it is cancelled" in error["message"]

    run(check, batch_settings=settings(tmp_path))


def test_cancelling_at_any_time_leaves_all_places_free(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        capacity = server.state.item_runner.capacity
        for num_turns in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89):
            batch_id = await create(server, [line(f"{i}") for i in range(20)])
            for _ in range(num_turns):
                await asyncio.sleep(0)
            await server.post(f"/v1/batches/{batch_id}/cancel", {})
            batch = await wait_for(server, batch_id, "cancelled", "completed")
            counts = batch["request_counts"]
            assert len(await read_lines(server, batch["output_file_id"])) == counts["completed"]
            assert await asyncio.wait_for(capacity.acquire(8), 60) == 8
            capacity.release(8)

    run(check, batch_settings=settings(tmp_path, max_in_flight=8))


def test_a_batch_that_was_being_cancelled_ends_cancelled(tmp_path: Path) -> None:
    batch_ids: list[str] = []

    async def first(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        batch_ids.append(await create(server, [line("a", max_tokens=1), line("b")]))
        await until_running(server, 2)
        server.manager.tick()
        await until_completed(server, batch_ids[0], 1)
        await server.state.batch_service.close()
        store = Store(tmp_path / "state")
        await store.open()  # as if it had been killed while cancelling, before it saved counts
        batch = await store.batch(batch_ids[0])
        batch.status, batch.cancelling_at = "cancelling", 5
        await store.save_batch(batch)
        await store.close()

    async def second(server: TinyServer) -> None:
        await server.state.batch_service.resume()
        batch = await wait_for(server, batch_ids[0], "cancelled")
        assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 0}
        assert len(await read_lines(server, batch["output_file_id"])) == 1
        assert not server.manager.requests

    run(first, batch_settings=settings(tmp_path))
    run(second, batch_settings=settings(tmp_path))


def test_what_is_not_done_in_the_window_expires(tmp_path: Path) -> None:
    """Whether it runs by then or has not got so far."""

    async def check(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        batch_id = await create(server, [line("a"), line("b")], completion_window="1s")
        batch = await wait_for(server, batch_id, "expired")
        assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
        late = await read_lines(server, batch["error_file_id"])
        assert [a["error"]["code"] for a in late] == ["batch_expired"] * 2
        assert not server.manager.running

    run(check, batch_settings=settings(tmp_path))


def test_what_is_done_stays_when_the_rest_expires(tmp_path: Path) -> None:
    batch_ids: list[str] = []

    async def first(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        lines = [line("done", max_tokens=1), line("late"), line("later")]
        batch_ids.append(await create(server, lines))
        await until_running(server, 3)
        server.manager.tick()
        await until_completed(server, batch_ids[0], 1)
        await server.state.batch_service.close()
        async with changed(tmp_path, batch_ids[0]) as (batch, _):
            batch.expires_at = 5

    async def second(server: TinyServer) -> None:
        await server.state.batch_service.resume()
        batch = await wait_for(server, batch_ids[0], "expired")
        assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 2}
        assert len(await read_lines(server, batch["output_file_id"])) == 1
        late = await read_lines(server, batch["error_file_id"])
        assert [a["custom_id"] for a in late] == ["late", "later"]
        assert all(a["error"]["code"] == "batch_expired" for a in late)
        assert all(a["response"] is None for a in late)
        assert not server.manager.requests

    run(first, batch_settings=settings(tmp_path))
    run(second, batch_settings=settings(tmp_path))


def test_a_restart_repeats_only_what_was_in_flight(tmp_path: Path) -> None:
    batch_ids: list[str] = []

    async def first(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        batch_ids.append(
            await create(server, [line(f"{i}", max_tokens=1 + i // 3) for i in range(6)])
        )
        await until_running(server, 6)
        server.manager.tick()
        batch = await until_completed(server, batch_ids[0], 3)
        assert batch["request_counts"]["completed"] == 3
        await server.state.batch_service.close()

    async def second(server: TinyServer) -> None:
        await server.state.batch_service.resume()
        batch = await wait_for(server, batch_ids[0], "completed")
        assert batch["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
        answers = await read_lines(server, batch["output_file_id"])
        assert sorted(a["custom_id"] for a in answers) == [f"{i}" for i in range(6)]
        assert len(server.manager.requests) == 3

    run(first, batch_settings=settings(tmp_path))
    results = tmp_path / "state" / "batches" / f"{batch_ids[0]}.output.jsonl"
    with results.open("ab") as file:
        file.write(b'{"id": "batch_req_cut", "custom_id": "3", "resp')  # killed while writing
    run(second, batch_settings=settings(tmp_path))


def test_an_engine_that_ends_leaves_its_batches(tmp_path: Path) -> None:
    batch_ids: list[str] = []

    async def first(server: TinyServer) -> None:
        server.manager.runs_by_itself = False
        batch_ids.append(await create(server, [line("a"), line("b")]))
        await until_running(server, 2)
        await server.state.engine.close()
        server.manager.running.clear()
        for _ in range(100):
            await asyncio.sleep(0)
        batch = await retrieve(server, batch_ids[0])
        assert batch["status"] == "in_progress"
        assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 0}

    async def second(server: TinyServer) -> None:
        await server.state.batch_service.resume()
        batch = await wait_for(server, batch_ids[0], "completed")
        assert batch["request_counts"]["completed"] == 2

    run(first, batch_settings=settings(tmp_path))
    run(second, batch_settings=settings(tmp_path))


def test_a_full_queue_delays_items_and_bounds_hold(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        lines = [line(f"{i}", n=2, max_tokens=2) for i in range(30)]
        most = 0
        batch_id = await create(server, lines)
        for _ in range(3000):
            most = max(most, server.state.engine.num_in_flight)
            if (await retrieve(server, batch_id))["status"] == "completed":
                break
            await asyncio.sleep(0)
        batch = await wait_for(server, batch_id, "completed")
        assert batch["request_counts"]["completed"] == 30
        assert most <= 4

    run(check, batch_settings=settings(tmp_path, max_in_flight=8), max_in_flight=4)


@pytest.mark.parametrize(
    ("change", "param", "status"),
    [
        ({"endpoint": "/v1/nothing"}, "endpoint", 400),
        ({"endpoint": "/v1/models"}, "endpoint", 400),
        ({"completion_window": "soon"}, "completion_window", 400),
        ({"completion_window": "0h"}, "completion_window", 400),
        ({"completion_window": "999999d"}, "completion_window", 400),
        ({"input_file_id": "file-none"}, "input_file_id", 400),
        ({"input_file_id": "../../lock"}, "input_file_id", 400),
        ({"input_file_id": 5}, "input_file_id", 400),
        ({"metadata": {"a": 1}}, "metadata.a", 400),
        ({"metadata": {"a": "x" * 600}}, "metadata", 400),
        ({"output_expires_after": {}}, "output_expires_after", 400),
    ],
)
def test_batches_that_are_refused(
    tmp_path: Path, change: dict[str, Any], param: str, status: int
) -> None:
    async def check(server: TinyServer) -> None:
        file_id = await upload(server, line("a"))
        request = {"input_file_id": file_id, "endpoint": COMPLETIONS, "completion_window": "24h"}
        error = await server.error("/v1/batches", request | change, status)
        assert error["param"] == param

    run(check, batch_settings=settings(tmp_path))


def test_listing(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        ids = [await create(server, [line("a")]) for _ in range(3)]
        for batch_id in ids:
            await wait_for(server, batch_id, "completed")
        page = (await server.http.get("/v1/batches?limit=2")).json()
        assert [b["id"] for b in page["data"]] == [ids[2], ids[1]]
        assert (page["has_more"], page["first_id"], page["last_id"]) == (True, ids[2], ids[1])
        page = (await server.http.get(f"/v1/batches?limit=2&after={ids[1]}")).json()
        assert [b["id"] for b in page["data"]] == [ids[0]]
        assert page["has_more"] is False
        response = await server.http.get("/v1/batches/batch_none")
        assert response.status_code == 404

    run(check, batch_settings=settings(tmp_path))


def test_items_need_no_key_of_their_own(tmp_path: Path) -> None:
    async def check(server: TinyServer) -> None:
        server.http.headers["Authorization"] = "Bearer secret"
        batch = await wait_for(server, await create(server, [line("a")]), "completed")
        assert batch["request_counts"]["completed"] == 1

    access = AccessPolicy(api_keys=ApiKeys(["secret"]))
    run(check, batch_settings=settings(tmp_path), access=access)


async def until_running(server: TinyServer, num_sequences: int) -> None:
    for _ in range(12_000):
        if len(server.manager.running) == num_sequences:
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"only {len(server.manager.running)} run")
