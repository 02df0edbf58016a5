"""LLM: a model to call from Python, on the same processes that `toka` runs, without a server."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from tokasaurus.api.event_loop import EventLoopThread
from tokasaurus.api.offline_run import OfflineRun
from tokasaurus.api.outputs import RequestOutput
from tokasaurus.api.progress import RunProgress
from tokasaurus.api.prompts import (
    Message,
    ParamsInput,
    PreparedPrompt,
    PromptInput,
    PromptPreparer,
    pair_params,
    split_chats,
    split_prompts,
)
from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.config.model_files import read_model_config, resolve_model
from tokasaurus.errors import ConfigError, EngineFailedError
from tokasaurus.ipc.messages.to_server import ManagerStats
from tokasaurus.launch.background import BackgroundEngine
from tokasaurus.server.embeddings import check_dimensions, checked_pooling, unit_vector
from tokasaurus.server.engine_client import EngineClient
from tokasaurus.server.pooling_choice import read_pooling
from tokasaurus.server.sampling_params import SamplingParams
from tokasaurus.tokenization.chat_template import ChatTemplate
from tokasaurus.tokenization.tokenizer import Tokenizer

_SAMPLES_PER_CHUNK = 256
"""Prompts are tokenized and submitted in chunks of about this many samples."""
_IDS_PER_SAMPLE = 8192
"""So many allowed tokens weigh as much as a sample, since each sample is sent a copy of them."""
_ONLY_PROMPT = SamplingParams(max_tokens=0)
_IN_FLIGHT_FACTOR = 4
"""Samples in flight per seat: enough for the scheduler to look ahead, without holding millions."""

_SERVER_OPTIONS = (
    "served_model_name",
    "tool_parser",
    "reasoning_parser",
    "host",
    "port",
    "server_workers",
    "max_queued_requests",
    "max_body_bytes",
    "request_timeout_seconds",
    "stream_stall_seconds",
    "api_key",
    "api_key_file",
    "ssl_certfile",
    "ssl_keyfile",
    "cors_origins",
    "request_log",
    "state_dir",
    "max_file_bytes",
    "batch_max_in_flight",
    "statsd_addr",
    "otlp_traces_endpoint",
)


class LLM:
    """A model in processes of its own, from construction until `close`.

    Threads may share it. It closes itself at the end of a `with` block, when it is garbage, and at
    the end of the program.
    """

    def __init__(self, model: str = "demo", *, show_progress: bool = True, **options: Any) -> None:
        """`options` are EngineConfig's, but those of servers; the log level is WARNING by default.

        Raises ConfigError, ModelError or ProcessFailedError when the engine can't start.
        """
        options.setdefault("log_level", "WARNING")
        config = _without_server(EngineConfig(model=model, **options))
        loop = EventLoopThread("engine-client")
        clients: list[EngineClient] = []

        def fail(reason: str) -> None:
            for client in clients:
                loop.call_soon(client.fail, EngineFailedError(reason))

        resources = contextlib.ExitStack()
        resources.callback(loop.close)
        self._finalizer = weakref.finalize(self, resources.close)
        self._loop = loop
        try:
            engine = BackgroundEngine(
                config,
                with_server=False,
                on_failure=fail,
                show_progress=show_progress,
            )
            resources.callback(engine.close)
            self.config = engine.config
            folder = resolve_model(self.config.model)
            tokenizer_folder = Path(self.config.tokenizer or folder).expanduser()
            self.tokenizer = Tokenizer.load(tokenizer_folder)
            self._client = EngineClient(
                engine.addresses,
                0,
                self.config.dp_size,
                tokenizer=self.tokenizer,
                eos_token_ids=read_model_config(folder).eos_token_ids,
            )
            clients.append(self._client)
            template = ChatTemplate.load(
                tokenizer_folder,
                self.tokenizer.settings,
                self.tokenizer.named_tokens,
                override=self.config.chat_template,
            )
            engine.start()
            resources.callback(_close_client, loop, self._client)
            loop.run(self._client.start(self.config.ready_timeout_seconds))
            self._pooling = read_pooling(folder)
            self._preparer = PromptPreparer(self.tokenizer, template, self._client.limits)
        except BaseException:
            self.close()
            raise

    def generate(
        self,
        prompts: PromptInput | Iterable[PromptInput],
        sampling_params: ParamsInput = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Continue one prompt or many: texts, or lists of token ids; one output each, in order.

        `sampling_params` holds for all, or is a list with one for each; None: the defaults. A list
        is checked as a whole before anything is sent; an iterator is read as there is room.

        Raises InvalidRequestError for input that can't be honoured, EngineFailedError if the engine
        fails meanwhile. A sample that fails alone has finish_reason "error".
        """
        items = split_prompts(prompts)
        return self._run(items, sampling_params, self._preparer.prepare, progress)

    def chat(
        self,
        messages: Sequence[Message] | Iterable[Sequence[Message]],
        sampling_params: ParamsInput = None,
        *,
        progress: bool = True,
    ) -> list[RequestOutput]:
        """Answer one chat or many, each a list of messages; otherwise like `generate`."""
        items = split_chats(messages)
        return self._run(items, sampling_params, self._preparer.prepare_chats, progress)

    def embed(
        self,
        inputs: PromptInput | Iterable[PromptInput],
        *,
        pooling: Literal["mean", "last"] | None = None,
        dimensions: int | None = None,
        progress: bool = True,
    ) -> np.ndarray:
        """Vectors of one text or many (or of lists of token ids): float32 [inputs, dimensions], in
        order, each of length 1.

        `pooling` says which final hidden states count: the mean of all, or the last one; None: as
        the checkpoint was trained, else mean. `dimensions` keeps so many of the first numbers.

        Raises InvalidRequestError like `generate`, and EngineFailedError if any vector fails.
        """
        check_dimensions(dimensions, self._client.limits)
        chosen = checked_pooling(pooling) or self._pooling
        prepare = partial(self._preparer.prepare_inputs, pooling=chosen)
        outputs = self._run(split_prompts(inputs), _ONLY_PROMPT, prepare, progress)
        if failed := [o.outputs[0].error for o in outputs if o.outputs[0].error is not None]:
            raise EngineFailedError(f"{len(failed)} inputs have no vector; the first: {failed[0]}")
        size = dimensions or self._client.limits.hidden_size
        vectors = np.empty((len(outputs), size), np.float32)
        for row, output in zip(vectors, outputs, strict=True):
            assert output.embedding is not None
            row[:] = unit_vector(output.embedding, dimensions)
        return vectors

    def stats(self) -> list[ManagerStats]:
        """The newest report of each manager that has sent one: about one a second while work runs,
        and one when all is idle."""
        return [stats for _, stats in sorted(self._client.stats.items())]

    def close(self) -> None:
        """Stop the processes; calls that still wait raise EngineFailedError. Safe to call twice."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self,
        items: Iterable[Any],
        params: ParamsInput,
        prepare: Callable[[Sequence[Any]], list[PreparedPrompt]],
        show_progress: bool,
    ) -> list[RequestOutput]:
        chunks: Iterable[list[PreparedPrompt]]
        chunks = map(prepare, _chunks(pair_params(items, params)))
        num_prompts = None
        if isinstance(items, Sized):
            chunks, num_prompts = list(chunks), len(items)
        max_in_flight = _IN_FLIGHT_FACTOR * self.config.dp_size * self.config.max_seqs_per_forward
        with RunProgress(num_prompts, show=show_progress) as bar:
            run = OfflineRun(self._client, max_in_flight, bar.update)
            try:
                for chunk in chunks:
                    self._loop.run(run.add(chunk))
                return self._loop.run(run.finish())
            except BaseException:
                with contextlib.suppress(EngineFailedError):
                    self._loop.run(run.cancel())
                raise


def _close_client(loop: EventLoopThread, client: EngineClient) -> None:
    loop.run(client.close())


def _chunks(
    pairs: Iterator[tuple[Any, SamplingParams]],
) -> Iterator[list[tuple[Any, SamplingParams]]]:
    chunk: list[tuple[Any, SamplingParams]] = []
    weight = 0.0
    for pair in pairs:
        chunk.append(pair)
        params = pair[1]
        weight += params.n * (1 + len(params.allowed_token_ids) / _IDS_PER_SAMPLE)
        if weight >= _SAMPLES_PER_CHUNK:
            yield chunk
            chunk, weight = [], 0.0
    if chunk:
        yield chunk


def _without_server(config: EngineConfig) -> EngineConfig:
    """The config as it is; raises ConfigError if it asks a server for something."""
    defaults = EngineConfig()
    asked = [name for name in _SERVER_OPTIONS if getattr(config, name) != getattr(defaults, name)]
    if asked:
        raise ConfigError(
            f"LLM runs without a server, which {', '.join(asked)} would be for: "
            "leave that out, or start a server with tokasaurus.serve."
        )
    return config
