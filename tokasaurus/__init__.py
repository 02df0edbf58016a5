"""Tokasaurus: an LLM inference engine for throughput.

Public names are imported on first use, so that `import tokasaurus` stays cheap in every process.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "LLM": "tokasaurus.api.llm",
    "RequestOutput": "tokasaurus.api.outputs",
    "client": "tokasaurus.api.openai_client",
    "serve": "tokasaurus.api.serving",
    "SamplingParams": "tokasaurus.server.sampling_params",
    "StructuredOutput": "tokasaurus.server.structured_output",
    "EngineConfig": "tokasaurus.config.engine_config",
}

__all__ = [
    "LLM",
    "EngineConfig",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutput",
    "__version__",
    "client",
    "serve",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'tokasaurus' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
