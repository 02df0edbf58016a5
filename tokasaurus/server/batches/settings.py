"""What of files and batches can be configured."""

from dataclasses import dataclass, field
from pathlib import Path

from tokasaurus.config.engine_config import EngineConfig
from tokasaurus.server.store.state_folder import default_state_dir

_SHARE_OF_QUEUE = 2
"""Batches leave half of the places in the queue to others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    state_dir: Path = field(default_factory=default_state_dir)
    max_file_bytes: int = 512 * 2**20
    max_in_flight: int = 4096
    """Samples, of all batches together."""

    @classmethod
    def of(cls, config: EngineConfig) -> "BatchSettings":
        folder = config.state_dir
        queue = config.max_queued_requests // config.server_workers
        return cls(
            state_dir=default_state_dir() if folder is None else Path(folder).expanduser(),
            max_file_bytes=config.max_file_bytes,
            max_in_flight=min(config.batch_max_in_flight, max(1, queue // _SHARE_OF_QUEUE)),
        )
