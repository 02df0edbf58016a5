"""llama.cpp for the peer benchmark, through the C interface that llama-cpp-python binds.

Options: file (name of the GGUF file in the folder of converted models, instead of
llamacpp-DTYPE.gguf). A prefix that prompts share is computed once and copied to the others' places,
which counts; otherwise each sequence has a KV cache of its own, as that is faster there.
"""

import time

import llama_cpp
import numpy as np
from protocol import Answer, Settings, answer_requests, shared_prefix_length

_MAX_BATCH_TOKENS = 2048

Row = tuple[int, int, int, bool]
"""Token, position, sequence, whether its logits are needed."""


class Context:
    """A llama.cpp context of one shape, and greedy steps in it."""

    def __init__(
        self, model: object, num_seqs: int, num_tokens: int, is_unified: bool, num_threads: int
    ) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_tokens
        params.n_batch = _MAX_BATCH_TOKENS
        params.n_seq_max = num_seqs
        params.n_threads = params.n_threads_batch = num_threads
        params.kv_unified = is_unified
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp made no context of {num_seqs} x {num_tokens} tokens.")
        self.memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_MAX_BATCH_TOKENS, 0, 1)
        vocab = llama_cpp.llama_model_get_vocab(model)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(self.memory, False)

    def decode(self, rows: list[Row]) -> list[int]:
        """The most likely next tokens of the rows whose logits are needed."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, seq, needs_logits) in enumerate(rows):
            batch.token[i] = token
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = seq
            batch.logits[i] = needs_logits
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"llama_decode failed with {status}.")
        num_outputs = sum(row[3] for row in rows)
        if not num_outputs:
            return []
        logits = llama_cpp.llama_get_logits(self._context)
        logits_SV = np.ctypeslib.as_array(logits, shape=(num_outputs, self._vocab_size))
        return logits_SV.argmax(axis=1).tolist()


class LlamaCpp:
    def __init__(self, settings: Settings) -> None:
        options = dict(option.split("=", 1) for option in settings.options)
        self._file = options.pop("file", f"llamacpp-{settings.dtype}.gguf")
        if options:
            raise SystemExit(f"Unknown options: {', '.join(options)}")
        self._num_threads = settings.num_threads
        path = settings.converted_path(self._file)
        params = llama_cpp.llama_model_default_params()
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}.")
        self._contexts: dict[tuple[int, int, bool], Context] = {}

    def describe(self) -> str:
        buffer = llama_cpp.ctypes.create_string_buffer(128)
        llama_cpp.llama_model_desc(self._model, buffer, len(buffer))
        return (
            f"llama.cpp by llama-cpp-python {llama_cpp.__version__}, {buffer.value.decode()}, "
            f"KV cache in f16"
        )

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        prefix_length = shared_prefix_length(prompts)
        length = max(map(len, prompts)) + num_output_tokens
        context = self._context_for(len(prompts), length, prefix_length)
        context.clear()
        started = time.perf_counter()
        if prefix_length:
            self._share_prefix(context, prompts[0][:prefix_length], len(prompts))
        first_tokens, ttft_seconds = self._prefill(context, prompts, prefix_length, started)
        output_ids = [[token] for token in first_tokens]
        for step in range(num_output_tokens - 1):
            rows = [
                (ids[-1], len(prompt) + step, seq, True)
                for seq, (prompt, ids) in enumerate(zip(prompts, output_ids, strict=True))
            ]
            for ids, token in zip(output_ids, context.decode(rows), strict=True):
                ids.append(token)
        seconds = time.perf_counter() - started
        return Answer(seconds=seconds, ttft_seconds=ttft_seconds, output_ids=output_ids)

    def _context_for(self, num_seqs: int, length: int, prefix_length: int) -> Context:
        rounded = -(-length // 256) * 256
        num_tokens = num_seqs * rounded
        if prefix_length:
            own = num_seqs * (length - prefix_length)
            num_tokens = -(-(prefix_length + own) // 256) * 256
        key = (num_seqs, num_tokens, prefix_length > 0)
        if key not in self._contexts:
            self._contexts[key] = Context(self._model, *key, self._num_threads)
        return self._contexts[key]

    def _share_prefix(self, context: Context, prefix: list[int], num_seqs: int) -> None:
        rows = [(token, position, 0, False) for position, token in enumerate(prefix)]
        for start in range(0, len(rows), _MAX_BATCH_TOKENS):
            context.decode(rows[start : start + _MAX_BATCH_TOKENS])
        for seq in range(1, num_seqs):
            llama_cpp.llama_memory_seq_cp(context.memory, 0, seq, -1, -1)

    def _prefill(
        self, context: Context, prompts: list[list[int]], start: int, started: float
    ) -> tuple[list[int], list[float]]:
        """First tokens and their times, by prompt; in batches across prompts."""
        rows = [
            (token, start + offset, seq, start + offset == len(prompt) - 1)
            for seq, prompt in enumerate(prompts)
            for offset, token in enumerate(prompt[start:])
        ]
        first_tokens: list[int] = []
        ttft_seconds: list[float] = []
        for begin in range(0, len(rows), _MAX_BATCH_TOKENS):
            tokens = context.decode(rows[begin : begin + _MAX_BATCH_TOKENS])
            first_tokens += tokens
            ttft_seconds += [time.perf_counter() - started] * len(tokens)
        return first_tokens, ttft_seconds


if __name__ == "__main__":
    answer_requests(LlamaCpp)
