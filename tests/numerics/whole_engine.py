"""The real manager and the real runner in one process, joined by channels that encode messages."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tests.models import CPU, load
from tests.numerics.threaded_replica import ThreadedReplica
from tokasaurus.ipc.channels import MemoryChannel
from tokasaurus.ipc.messages.to_manager import (
    GenerateRequest,
    Pooling,
    ServerHello,
    TokenSampling,
    ToManager,
    WorkerReady,
)
from tokasaurus.ipc.messages.to_server import EngineOutputs, RequestFinished, ToServer
from tokasaurus.ipc.messages.to_worker import StepInput, ToWorker
from tokasaurus.manager.loop import Manager
from tokasaurus.manager.onboarding import AdmissionPolicy
from tokasaurus.manager.settings import ManagerSettings
from tokasaurus.model.registry import ModelPath
from tokasaurus.tokenization.tokenizer import Tokenizer
from tokasaurus.worker.forward_pass import ForwardOptions
from tokasaurus.worker.replica import Replica
from tokasaurus.worker.runner import StepHandle
from tokasaurus.worker.torch_runner import RunnerSettings, TorchRunner

GREEDY = TokenSampling(temperature=0.0, num_top_logprobs=0)
PAGE_SIZE = 8
PLAIN = ForwardOptions()


class WholeEngine:
    """Small blocks, small steps, steps ahead, and the newest sequence preempted now and then."""

    def __init__(
        self,
        folder: Path,
        *,
        model_path: ModelPath = "native",
        attention_backend: str = "torch",
        num_kv_tokens: int = 4096,
        preempt_every_steps: int = 5,
        policy: AdmissionPolicy | None = None,
        pp_size: int = 1,
        tp_size: int = 1,
        division_threshold: int | None = None,
        forward: ForwardOptions = PLAIN,
    ) -> None:
        """Steps of at least `division_threshold` tokens divide them between a stage's ranks."""

        def make_runner(replica: Replica) -> TorchRunner:
            return TorchRunner(
                RunnerSettings(
                    device=CPU,
                    attention_backend=attention_backend,
                    cpu_kernels=attention_backend == "cpu",
                    page_size=PAGE_SIZE,
                    kv_cache_num_tokens=num_kv_tokens,
                    max_tokens_per_forward=100,
                    max_seqs_per_forward=64,
                    load_tokenizer=lambda: Tokenizer.load(folder),
                    replica=replica,
                    forward=forward,
                ),
                lambda progress: load(folder, model_path, parallel=replica.parallel),
            )

        self.runner: TorchRunner | ThreadedReplica = make_runner(Replica())
        if pp_size * tp_size > 1:
            self.runner = ThreadedReplica(
                pp_size, tp_size, make_runner, division_threshold=division_threshold
            )
        self.runner.load(lambda fraction, text: None)
        self.runner.warm_up(lambda fraction, text: None)
        self._to_manager: MemoryChannel[ToManager] = MemoryChannel(ToManager)
        self._to_worker: MemoryChannel[StepInput] = MemoryChannel(ToWorker)
        self._to_server: MemoryChannel[ToServer] = MemoryChannel(ToServer)
        self.manager = Manager(
            ManagerSettings(
                page_size=PAGE_SIZE,
                max_tokens_per_forward=100,
                max_seqs_per_forward=64,
                scheduling_steps_ahead=2,
                debug_checks=True,
                debug_preempt_every_steps=preempt_every_steps,
            ),
            WorkerReady(
                rank=0,
                capabilities=self.runner.capabilities,
                num_blocks=self.runner.num_blocks,
                max_model_len=self.runner.max_model_len,
                vocab_size=self.runner.vocab_size,
                description=self.runner.description,
                hidden_size=self.runner.hidden_size,
            ),
            self._to_manager,
            [self._to_worker],
            lambda address: self._to_server,
            policy=policy,
        )
        self.manager.greet(ServerHello(0, "memory"))

    def generate(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[TokenSampling], max_tokens: int
    ) -> tuple[list[list[int]], list[list[float]], list[RequestFinished]]:
        """Tokens, log-probabilities and ends of prompts that all arrive at once."""
        for request_id, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
            self._to_manager.send(
                GenerateRequest(
                    request_id=request_id,
                    prompt_ids=np.array(prompt, np.int32),
                    sampling=sampling,
                    max_tokens=max_tokens,
                )
            )
        tokens: dict[int, list[int]] = defaultdict(list)
        logprobs: dict[int, list[float]] = defaultdict(list)
        ends: dict[int, RequestFinished] = {}
        for message in self._outputs(len(prompts)):
            _collect(message, tokens, logprobs, ends)
        order = range(len(prompts))
        return [tokens[i] for i in order], [logprobs[i] for i in order], [ends[i] for i in order]

    def embed(
        self,
        prompts: Sequence[Sequence[int]],
        pooling: Pooling,
        *,
        num_generations: int = 0,
        max_tokens: int = 12,
    ) -> tuple[list[list[float]], list[RequestFinished]]:
        """Vectors of all prompts, while as many sequences as asked for are generated, which came
        before them and after them in turn."""
        for request_id, prompt in enumerate(prompts):
            ids = np.array(prompt, np.int32)
            if request_id < num_generations:
                self._to_manager.send(
                    GenerateRequest(
                        request_id=len(prompts) + request_id,
                        prompt_ids=ids,
                        sampling=GREEDY,
                        max_tokens=max_tokens,
                    )
                )
            self._to_manager.send(
                GenerateRequest(
                    request_id=request_id,
                    prompt_ids=ids,
                    sampling=TokenSampling(),
                    max_tokens=1,
                    pooling=pooling,
                )
            )
        vectors: dict[int, list[float]] = {}
        ends: dict[int, RequestFinished] = {}
        for message in self._outputs(len(prompts) + num_generations):
            if message.embedding_ids is not None and message.embeddings is not None:
                found = message.embeddings.tolist()
                vectors.update(zip(message.embedding_ids.tolist(), found, strict=True))
            ends.update((end.request_id, end) for end in message.finished)
        order = range(len(prompts))
        return [vectors[i] for i in order], [ends[i] for i in order]

    def _outputs(self, num_requests: int) -> Iterator[EngineOutputs]:
        """Run until so many requests have ended."""
        num_ended = 0
        while num_ended < num_requests:
            self.manager.tick()
            steps = self._to_worker.drain()
            assert steps or self.manager.engine.num_steps_in_flight == 0
            handles: Iterable[StepHandle] = map(self.runner.execute, steps)
            if self.runner.capabilities.async_steps:  # else each may overwrite the last
                handles = list(handles)
            for handle in handles:
                self._to_manager.send(handle.result())
            for message in self._to_server.drain():
                if isinstance(message, EngineOutputs):
                    num_ended += len(message.finished)
                    yield message


def _collect(
    message: EngineOutputs,
    tokens: dict[int, list[int]],
    logprobs: dict[int, list[float]],
    ends: dict[int, RequestFinished],
) -> None:
    start = 0
    for request_id, count in zip(message.request_ids, message.num_tokens, strict=True):
        tokens[int(request_id)] += message.token_ids[start : start + count].tolist()
        start += count
    for entry in message.logprobs:
        logprobs[entry.request_id] += entry.logprobs.tolist()
    for end in message.finished:
        assert end.request_id not in ends, "a request ended twice"
        ends[end.request_id] = end
