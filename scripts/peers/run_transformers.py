"""transformers' `generate` for the peer benchmark: a static batch.

Options: dtype (bfloat16, or float32 where the CPU has no 16-bit products). A prefix that prompts
share is computed once and its cache repeated for each of them; that counts.
"""

import time
from typing import Any

import torch
import transformers
from protocol import Answer, Settings, answer_requests, has_bf16_products, shared_prefix_length
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList


class FirstTokenTime(StoppingCriteria):
    """Stops nothing; it is called after each token."""

    def __init__(self) -> None:
        self.time: float | None = None

    def __call__(self, input_ids: torch.LongTensor, *_: Any, **__: Any) -> torch.BoolTensor:
        self.time = self.time or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Transformers:
    def __init__(self, settings: Settings) -> None:
        if settings.dtype != "bf16":
            raise SystemExit("This adapter runs transformers on the checkpoint's own weights only.")
        options = dict(option.split("=", 1) for option in settings.options)
        self._dtype = options.pop("dtype", "bfloat16" if has_bf16_products() else "float32")
        if options:
            raise SystemExit(f"Unknown options: {', '.join(options)}")
        torch.set_num_threads(settings.num_threads)
        dtype = getattr(torch, self._dtype)
        self._model = AutoModelForCausalLM.from_pretrained(settings.model, dtype=dtype).eval()
        self._model.generation_config.eos_token_id = None

    def describe(self) -> str:
        return f"transformers {transformers.__version__}, torch {torch.__version__}, {self._dtype}"

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        timer = FirstTokenTime()
        input_ids = torch.tensor(prompts)
        cache = DynamicCache()
        started = time.perf_counter()
        prefix_length = shared_prefix_length(prompts)
        if prefix_length:
            prefix = input_ids[:1, :prefix_length]
            self._model(prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(prompts))
        outputs = self._model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=cache,
            max_new_tokens=num_output_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([timer]),
        )
        seconds = time.perf_counter() - started
        ttft = (timer.time or started) - started
        return Answer(
            seconds=seconds,
            ttft_seconds=[ttft] * len(prompts),
            output_ids=outputs[:, input_ids.shape[1] :].tolist(),
        )


if __name__ == "__main__":
    answer_requests(Transformers)
