"""The progress bar of an offline run: prompts done, and tokens per second."""

import time

from tqdm.auto import tqdm


class RunProgress:
    """Use as a context manager; `update` may come from another thread than the others."""

    def __init__(self, num_prompts: int | None, *, show: bool) -> None:
        """`num_prompts` is None when nobody knows how many will come."""
        self._bar = tqdm(total=num_prompts, unit="prompt", disable=not show, smoothing=0)
        self._started = time.monotonic()
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def update(self, num_prompts: int, num_prompt_tokens: int, num_output_tokens: int) -> None:
        self._num_prompt_tokens += num_prompt_tokens
        self._num_output_tokens += num_output_tokens
        seconds = max(time.monotonic() - self._started, 1e-9)
        self._bar.set_postfix_str(
            f"in {self._num_prompt_tokens / seconds:,.0f} tok/s, "
            f"out {self._num_output_tokens / seconds:,.0f} tok/s",
            refresh=False,
        )
        self._bar.update(num_prompts)
