"""CTranslate2 for the peer benchmark: a batch whose prompts may share a cached prefix.

Options: compute_type (how it computes: see its documentation).
"""

import json
import time
from pathlib import Path

import ctranslate2
from protocol import Answer, Settings, answer_requests, shared_prefix_length

_MAX_BATCH_SIZE = 64


class CTranslate2:
    def __init__(self, settings: Settings) -> None:
        options = dict(option.split("=", 1) for option in settings.options)
        default = {"bf16": "default", "int8": "int8"}[settings.dtype]
        compute_type = options.pop("compute_type", default)
        if options:
            raise SystemExit(f"Unknown options: {', '.join(options)}")
        path = settings.converted_path(f"ctranslate2-{settings.dtype}")
        self._words: list[str] = json.loads((Path(path) / "vocabulary.json").read_text())
        self._generator = ctranslate2.Generator(
            path,
            device="cpu",
            compute_type=compute_type,
            inter_threads=1,
            intra_threads=settings.num_threads,
        )

    def describe(self) -> str:
        return f"CTranslate2 {ctranslate2.__version__}, {self._generator.compute_type}"

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        prefix_length = shared_prefix_length(prompts)
        words = self._words
        prefix = [words[token] for token in prompts[0][:prefix_length]]
        own = [[words[token] for token in prompt[prefix_length:]] for prompt in prompts]
        first_times: dict[int, float] = {}

        def see_token(result: ctranslate2.GenerationStepResult) -> bool:
            first_times.setdefault(result.batch_id, time.perf_counter())
            return False

        started = time.perf_counter()
        results = self._generator.generate_batch(
            own,
            max_batch_size=_MAX_BATCH_SIZE,
            static_prompt=prefix or None,
            cache_static_prompt=False,
            include_prompt_in_result=False,
            beam_size=1,
            min_length=num_output_tokens,
            max_length=num_output_tokens,
            callback=see_token,
        )
        seconds = time.perf_counter() - started
        return Answer(
            seconds=seconds,
            ttft_seconds=[first_times[i] - started for i in range(len(prompts))],
            output_ids=[list(result.sequences_ids[0]) for result in results],
        )


if __name__ == "__main__":
    answer_requests(CTranslate2)
