"""Tokasaurus for the peer benchmark; options are those of the engine."""

import time

from protocol import Answer, Settings, answer_requests

from tokasaurus import LLM, SamplingParams, __version__
from tokasaurus.config.engine_config import EngineConfig


class Tokasaurus:
    def __init__(self, settings: Settings) -> None:
        quantization = {"bf16": "none", "int8": "int8"}[settings.dtype]
        words = [f"model={settings.model}", f"cpu_threads={settings.num_threads}"]
        words += [f"quantization={quantization}", *settings.options]
        self._config = EngineConfig.from_args(words)
        self._llm = LLM(**self._config.to_dict())

    def describe(self) -> str:
        return f"Tokasaurus {__version__}, quantization={self._config.quantization}"

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        params = SamplingParams(temperature=0, max_tokens=num_output_tokens, ignore_eos=True)
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params, progress=False)
        seconds = time.perf_counter() - started
        samples = [output.outputs[0] for output in outputs]
        return Answer(
            seconds=seconds,
            ttft_seconds=[sample.ttft_seconds or 0.0 for sample in samples],
            output_ids=[list(sample.token_ids) for sample in samples],
        )


if __name__ == "__main__":
    answer_requests(Tokasaurus)
