"""The engine client loses nothing, leaves nothing behind, and lets nobody wait in vain."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.unit.server.manager_double import AsyncMemoryInbox, ManagerDouble, connected
from tests.unit.server.tiny_server import ANSWER, ANSWER_IDS, TOKENIZER
from tokasaurus.errors import (
    EngineFailedError,
    InvalidRequestError,
    OverloadedError,
    ProcessFailedError,
)
from tokasaurus.ipc.messages.to_manager import Shutdown
from tokasaurus.ipc.messages.to_server import ManagerStats
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.request_group import RequestGroup
from tokasaurus.server.sampling_params import SamplingParams

Check = Callable[[EngineClient, list[ManagerDouble]], Awaitable[None]]


def run(check: Check, *, num_managers: int = 1, max_in_flight: int | None = None) -> None:
    async def main() -> None:
        client, managers = connected(
            TOKENIZER,
            lambda request: ANSWER_IDS,
            num_managers=num_managers,
            max_in_flight=max_in_flight,
        )
        await client.start(deadline_seconds=60)
        for manager in managers:
            manager.runs_by_itself = False
        await check(client, managers)
        assert client.num_in_flight == 0
        await client.close()
        assert all(manager.is_closed for manager in managers)

    asyncio.run(asyncio.wait_for(main(), timeout=120))  # more than any wait in it


def submit(client: EngineClient, *, stream: bool = True, **params: object) -> RequestGroup:
    return client.submit([Prompt([5, 6], SamplingParams(**params))], stream=stream)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_limits_are_those_of_the_tightest_manager() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        assert client.is_ready
        assert client.limits.max_model_len == 64
        assert client.limits.vocab_size == 420
        assert client.limits.eos_token_ids == (1,)

    run(check, num_managers=2)


def test_request_ids_carry_the_server() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        with submit(client, n=2):
            assert [r.request_id for r in managers[0].requests] == [3 << 48, (3 << 48) + 1]
        await settle()

    run(check)


def test_tokens_that_come_together_wake_once() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        with submit(client, n=3) as group:
            managers[0].tokens_per_tick = 4
            managers[0].tick()
            assert [g.index for g in await group.wait()] == [0, 1, 2]
            for generation in group.generations:
                delta = generation.take()
                assert delta.token_ids == ANSWER_IDS[:4]
                assert delta.text == TOKENIZER.decode(ANSWER_IDS[:4])
                assert generation.take().text == ""
            managers[0].tick()
            managers[0].tick()
            await settle()
            assert len(await group.wait()) == 3
            assert group.generations[0].take().token_ids == ANSWER_IDS[4:12]
        await settle()

    run(check)


def test_streams_and_stop_strings_want_every_token() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        with submit(client), submit(client, stream=False), submit(client, stream=False, stop="ab"):
            assert [r.wants_every_token for r in managers[0].requests] == [True, False, True]
        await settle()

    run(check)


def test_without_streaming_only_finished_ones_wake() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        group = submit(client, stream=False, max_tokens=3)
        waiter = asyncio.create_task(group.wait())
        for _ in range(2):
            managers[0].tick()
            await settle()
            assert not waiter.done()
        managers[0].tick()
        [generation] = await waiter
        assert generation.finish_reason == "length"
        assert generation.take().token_ids == ANSWER_IDS[:3]
        assert await group.wait() == []
        assert group.has_finished

    run(check)


def test_a_stop_string_cancels_the_sequence_and_keeps_its_counts() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        managers[0].tokens_per_tick = 100
        managers[0].script = lambda request: ANSWER_IDS[:-1]
        group = submit(client, stop=["fox"], max_tokens=60)
        managers[0].tokens_per_tick = 20
        managers[0].tick()
        while await group.wait():
            pass
        [generation] = group.generations
        assert managers[0].cancelled == [generation.request.request_id]
        assert (generation.finish_reason, generation.stop_reason) == ("stop", "fox")
        assert generation.take().text == ANSWER[: ANSWER.index("fox")]
        assert generation.num_cached_tokens == 3
        assert TOKENIZER.decode(generation.output_ids).rstrip(".").endswith("fox")

    run(check)


def test_a_stop_string_in_the_last_message_cancels_nothing() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        managers[0].tokens_per_tick = 100
        group = submit(client, stop=["fox"])
        managers[0].tick()
        await group.wait()
        assert group.generations[0].finish_reason == "stop"
        assert managers[0].cancelled == []

    run(check)


def test_held_back_text_is_released_at_the_end() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        group = submit(client, stream=False, stop=[ANSWER + "!"])
        managers[0].tokens_per_tick = 100
        managers[0].tick()
        [generation] = await group.wait()
        assert generation.take().text == ANSWER
        assert generation.stop_reason is None

    run(check)


def test_cancel_ends_waiting_at_once() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        group = submit(client, n=2)
        waiter = asyncio.create_task(group.wait())
        await settle()
        group.cancel()
        group.cancel()
        assert [g.finish_reason for g in await waiter] == ["cancelled"] * 2
        assert await group.wait() == []
        assert len(managers[0].cancelled) == 2
        await settle()
        assert client.num_in_flight == 0

    run(check)


def test_tokens_after_a_cancellation_are_dropped() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        group = submit(client)
        managers[0].tick()
        managers[0].tick()
        group.cancel()
        [generation] = await group.wait()
        await settle()
        assert generation.take().text == ""
        assert generation.finish_reason == "cancelled"

    run(check)


def test_leaving_the_block_cancels_what_runs() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        with pytest.raises(RuntimeError), submit(client):
            raise RuntimeError
        await settle()
        assert len(managers[0].cancelled) == 1
        managers[0].tokens_per_tick = 100
        with submit(client) as group:
            managers[0].tick()
            await group.wait()
        assert len(managers[0].cancelled) == 1

    run(check)


def test_work_goes_where_there_is_least() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        first = submit(client, n=3)
        groups = [submit(client) for _ in range(3)]
        assert [len(m.requests) for m in managers] == [3, 3]
        first.cancel()
        await settle()
        groups.append(submit(client))
        assert [len(m.requests) for m in managers] == [4, 3]
        for group in groups:
            group.cancel()
        await settle()

    run(check, num_managers=2)


def test_a_failed_request_fails_alone() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        group = submit(client)
        managers[0].fail_with = "The worker ran out of memory."
        managers[0].tick()
        [generation] = await group.wait()
        assert generation.finish_reason == "error"
        assert isinstance(generation.error, EngineFailedError)
        assert "out of memory" in str(generation.error)
        assert client.is_ready

    run(check)


def test_shutdown_fails_everyone_who_waits() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        group = submit(client, n=2)
        waiter = asyncio.create_task(group.wait())
        await settle()
        managers[0].inbox.send(Shutdown())
        assert [g.finish_reason for g in await waiter] == ["error", "error"]
        assert client.ended.is_set()
        assert client.was_told_to_stop
        assert not client.is_ready
        with pytest.raises(EngineFailedError):
            submit(client)
        group.cancel()
        assert managers[0].cancelled == []

    run(check)


def test_a_message_that_can_not_be_handled_fails_everyone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        async def broken(self: AsyncMemoryInbox) -> None:
            raise ValueError("nonsense")

        group = submit(client)
        monkeypatch.setattr(AsyncMemoryInbox, "receive", broken)
        managers[0].tick()
        while await group.wait():
            pass
        assert "nonsense" in str(group.generations[0].error)
        assert client.ended.is_set()
        assert not client.was_told_to_stop

    run(check)


def test_invalid_prompts_send_nothing() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        params = SamplingParams()
        with pytest.raises(InvalidRequestError):
            client.submit([Prompt([5], params), Prompt([], params)], stream=False)
        assert not managers[0].requests

    run(check)


def test_bound_on_samples_in_flight() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        with submit(client, n=3):
            with pytest.raises(OverloadedError) as caught:
                submit(client, n=2)
            assert caught.value.retry_after_seconds > 0
            with pytest.raises(InvalidRequestError, match="at most 4 at a time"):
                submit(client, n=5)
            with submit(client):
                pass
        await settle()
        assert len(managers[0].requests) == 4

    run(check, max_in_flight=4)


def test_stats_are_kept() -> None:
    async def check(client: EngineClient, managers: list[ManagerDouble]) -> None:
        values = dict.fromkeys(ManagerStats.__struct_fields__, 1)
        managers[0].inbox.send(ManagerStats(**values))  # type: ignore[arg-type]
        await settle()
        assert client.stats[1].num_running == 1

    run(check)


@pytest.mark.parametrize("shuts_down", [False, True])
def test_start_gives_up(shuts_down: bool) -> None:
    async def main() -> None:
        client, [manager] = connected(TOKENIZER, lambda request: ANSWER_IDS)
        manager.send = lambda message: None  # type: ignore[method-assign]
        if shuts_down:
            manager.inbox.send(Shutdown())
        message = "shutting down" if shuts_down else "manager0 was not ready within 0 s"
        with pytest.raises(ProcessFailedError, match=message):
            await client.start(deadline_seconds=10 if shuts_down else 0)
        await client.close()

    asyncio.run(asyncio.wait_for(main(), timeout=60))
