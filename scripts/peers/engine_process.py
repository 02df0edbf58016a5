"""An engine of the peer benchmark in a process of its own, under the Python that holds it."""

import json
import os
import select
import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path

from peers.protocol import Answer, Settings

_START_SECONDS = 600
"""vLLM compiles at its first start."""
_RUN_SECONDS = 600
_STOP_SECONDS = 20
_NUM_LOG_LINES = 15

ADAPTERS = {
    path.stem.removeprefix("run_"): path for path in sorted(Path(__file__).parent.glob("run_*.py"))
}
"""By engine."""


class EngineFailureError(Exception):
    """An engine died or did not answer in time; says what it wrote last."""


class EngineProcess:
    """Starts at once; `wait_until_ready` before the first run."""

    def __init__(self, name: str, python: str, settings: Settings) -> None:
        self.name = name
        self.description = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            [python, str(ADAPTERS[name])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "TOKENIZERS_PARALLELISM": "false"},
        )
        self._send(asdict(settings))

    def wait_until_ready(self) -> None:
        self.description = str(self._receive(_START_SECONDS)["description"])

    def run(self, prompts: list[list[int]], num_output_tokens: int) -> Answer:
        self._send({"prompts": prompts, "num_output_tokens": num_output_tokens})
        answer = Answer(**self._receive(_RUN_SECONDS))
        lengths = {len(ids) for ids in answer.output_ids}
        if len(answer.output_ids) != len(prompts) or lengths != {num_output_tokens}:
            raise EngineFailureError(
                f"{self.name} gave {len(answer.output_ids)} outputs of {sorted(lengths)} tokens, "
                f"not {len(prompts)} of {num_output_tokens}."
            )
        return answer

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _send(self, message: dict[str, object]) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure("died") from None

    def _receive(self, timeout_seconds: float) -> dict:
        assert self._process.stdout
        readable, _, _ = select.select([self._process.stdout], [], [], timeout_seconds)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            raise self._failure("died" if readable else f"said nothing in {timeout_seconds:.0f} s")
        return json.loads(line)

    def _failure(self, what: str) -> EngineFailureError:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()[-_NUM_LOG_LINES:]
        return EngineFailureError("\n".join([f"{self.name} {what}. Its last words:", *lines]))
