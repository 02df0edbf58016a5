"""One call of `LLM.generate` on the engine's event loop: bounded submission, results in order."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from tokasaurus.api.outputs import RequestOutput, sample_output
from tokasaurus.api.prompts import PreparedPrompt
from tokasaurus.errors import EngineFailedError
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.generation import Generation
from tokasaurus.server.prompts import Prompt
from tokasaurus.server.request_group import RequestGroup


class OfflineRun:
    """Belongs to the client's event loop. Use: `add` chunk after chunk, then `finish`.

    Both raise EngineFailedError as soon as the engine has failed. If anything goes wrong, `cancel`.
    """

    def __init__(
        self,
        client: EngineClient,
        max_in_flight: int,
        on_finished: Callable[[int, int, int], None],
    ) -> None:
        """`max_in_flight` bounds the samples that were submitted and have not finished.

        `on_finished` gets the numbers of prompts, prompt tokens and output tokens just finished.
        """
        self._client = client
        self._max_in_flight = max_in_flight
        self._on_finished = on_finished
        self._outputs: list[RequestOutput] = []
        self._num_in_flight = 0
        self._failure: BaseException | None = None
        self._groups: dict[asyncio.Task[None], RequestGroup] = {}
        self._changed = asyncio.Event()

    async def add(self, prompts: Sequence[PreparedPrompt]) -> None:
        """Submit them, waiting for room first. Raises InvalidRequestError and sends nothing."""
        num_samples = sum(prompt.params.n for prompt in prompts)
        while self._num_in_flight and self._num_in_flight + num_samples > self._max_in_flight:
            await self._next_change()
        self._raise_if_failed()
        group = self._client.submit(
            [Prompt(prompt.token_ids, prompt.params, pooling=prompt.pooling) for prompt in prompts],
            stream=False,
        )
        first = len(self._outputs)
        self._outputs += [
            RequestOutput(prompt=prompt.text, prompt_token_ids=prompt.token_ids)
            for prompt in prompts
        ]
        self._num_in_flight += num_samples
        owners = [first + i for i, prompt in enumerate(prompts) for _ in range(prompt.params.n)]
        task = asyncio.create_task(self._collect(group, owners))
        self._groups[task] = group
        task.add_done_callback(self._collected)

    async def finish(self) -> list[RequestOutput]:
        """Wait for everything, and return one output per prompt, in the order of submission."""
        while self._groups:
            await self._next_change()
        self._raise_if_failed()
        return self._outputs

    async def cancel(self) -> None:
        """Free whatever is still running."""
        groups = dict(self._groups)
        for task, group in groups.items():
            task.cancel()
            group.cancel()
        await asyncio.gather(*groups, return_exceptions=True)

    async def _next_change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _collect(self, group: RequestGroup, owners: list[int]) -> None:
        """`owners`: for each sample of the group, the index of its prompt's output."""
        samples: dict[int, list[Generation]] = {}
        num_expected = Counter(owners)
        while generations := await group.wait():
            if self._client.failure is not None:
                raise EngineFailedError(str(self._client.failure))
            for generation in generations:
                owner = owners[generation.index]
                siblings = samples.setdefault(owner, [])
                siblings.append(generation)
                if len(siblings) == num_expected[owner]:
                    self._complete(self._outputs[owner], samples.pop(owner))
            self._num_in_flight -= len(generations)
            self._changed.set()

    def _complete(self, output: RequestOutput, generations: list[Generation]) -> None:
        generations.sort(key=lambda generation: generation.index)
        output.embedding = generations[0].embedding
        output.outputs = [sample_output(generation) for generation in generations]
        if generations[0].params.prompt_logprobs is not None:
            output.prompt_logprobs = generations[0].prompt_logprobs
        num_output_tokens = sum(len(generation.output_ids) for generation in generations)
        self._on_finished(1, len(output.prompt_token_ids), num_output_tokens)

    def _collected(self, task: asyncio.Task[None]) -> None:
        del self._groups[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
        self._changed.set()
