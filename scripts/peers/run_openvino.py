"""OpenVINO GenAI for the peer benchmark: continuous batching with a prefix cache.

Options: max_num_batched_tokens, kv_cache_precision. Prompts that share a prefix are sent after it,
as the cache does not share what is still being computed; the prefix counts.
"""

import time

import numpy as np
import openvino as ov
import openvino_genai as genai
from protocol import Answer, Settings, answer_requests, shared_prefix_length

_KV_CACHE_GB = 2


class OpenVinoGenai:
    def __init__(self, settings: Settings) -> None:
        options = dict(option.split("=", 1) for option in settings.options)
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = _KV_CACHE_GB
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = int(options.pop("max_num_batched_tokens", "2048"))
        capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._precision = "bf16" if "BF16" in capabilities else "f32"
        properties = {
            "INFERENCE_PRECISION_HINT": self._precision,
            "INFERENCE_NUM_THREADS": settings.num_threads,
        }
        self._kv_precision = options.pop("kv_cache_precision", None)
        if self._kv_precision:
            properties["KV_CACHE_PRECISION"] = self._kv_precision
        if options:
            raise SystemExit(f"Unknown options: {', '.join(options)}")
        self._weights = {"bf16": "16-bit", "int8": "int8"}[settings.dtype]
        path = settings.converted_path(f"openvino-{settings.dtype}")
        self._pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self._next_id = 0

    def describe(self) -> str:
        return (
            f"OpenVINO GenAI {genai.get_version()}, {self._weights} weights in the file, "
            f"computes in {self._precision}, KV cache in {self._kv_precision or 'its default'}"
        )

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        started = time.perf_counter()
        prefix_length = shared_prefix_length(prompts)
        if prefix_length:
            self._run([prompts[0][:prefix_length]], 1)
        output_ids, first_times = self._run(prompts, num_output_tokens)
        seconds = time.perf_counter() - started
        ttft_seconds = [first - started for first in first_times]
        return Answer(seconds=seconds, ttft_seconds=ttft_seconds, output_ids=output_ids)

    def _run(
        self, prompts: list[list[int]], num_output_tokens: int
    ) -> tuple[list[list[int]], list[float]]:
        """Output ids and times of the first tokens."""
        config = genai.GenerationConfig(
            max_new_tokens=num_output_tokens, ignore_eos=True, do_sample=False
        )
        handles = []
        for prompt in prompts:
            tensor = ov.Tensor(np.array([prompt], dtype=np.int64))
            handles.append(self._pipeline.add_request(self._next_id, tensor, config))
            self._next_id += 1
        first_times = [0.0] * len(prompts)
        waiting = set(range(len(prompts)))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            now = time.perf_counter()
            for index in [i for i in waiting if handles[i].can_read()]:
                first_times[index] = now
                waiting.remove(index)
        return [handle.read_all()[0].generated_ids for handle in handles], first_times


if __name__ == "__main__":
    answer_requests(OpenVinoGenai)
