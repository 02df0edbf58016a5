"""vLLM's CPU build for the peer benchmark, stepped in this process.

Options: dtype (bfloat16, or float32 where the CPU has no 16-bit products).
"""

import os
import time

from protocol import Answer, Settings, answer_requests, has_bf16_products


class Vllm:
    def __init__(self, settings: Settings) -> None:
        if settings.dtype != "bf16":
            raise SystemExit("This adapter knows no way to int8 from a bf16 checkpoint in vLLM.")
        options = dict(option.split("=", 1) for option in settings.options)
        self._dtype = options.pop("dtype", "bfloat16" if has_bf16_products() else "float32")
        if options:
            raise SystemExit(f"Unknown options: {', '.join(options)}")
        cores = sorted(os.sched_getaffinity(0))[: settings.num_threads]
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = "2"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        import vllm  # reads the environment

        self._vllm = vllm
        llm = vllm.LLM(
            model=settings.model,
            dtype=self._dtype,
            max_model_len=4352,
            max_num_seqs=64,
            max_num_batched_tokens=4352,
            enable_prefix_caching=True,
        )
        self._engine = llm.llm_engine
        self._next_id = 0

    def describe(self) -> str:
        return f"vLLM {self._vllm.__version__}, {self._dtype}"

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        params = self._vllm.SamplingParams(
            temperature=0, max_tokens=num_output_tokens, ignore_eos=True, detokenize=False
        )
        indices: dict[str, int] = {}
        started = time.perf_counter()
        for index, prompt in enumerate(prompts):
            request_id = str(self._next_id)
            self._next_id += 1
            indices[request_id] = index
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, params)
        ttft_seconds = [0.0] * len(prompts)
        output_ids: list[list[int]] = [[] for _ in prompts]
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                index = indices[output.request_id]
                output_ids[index] = list(output.outputs[0].token_ids)
                ttft_seconds[index] = ttft_seconds[index] or time.perf_counter() - started
        seconds = time.perf_counter() - started
        return Answer(seconds=seconds, ttft_seconds=ttft_seconds, output_ids=output_ids)


if __name__ == "__main__":
    answer_requests(Vllm)
