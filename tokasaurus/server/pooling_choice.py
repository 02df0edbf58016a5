"""How a checkpoint that was trained for embeddings pools, as sentence-transformers writes it."""

import json
import logging
from pathlib import Path
from typing import Any

from tokasaurus.ipc.messages.to_manager import Pooling

log = logging.getLogger(__name__)

POOLING_FILE = "1_Pooling/config.json"
DEFAULT_POOLING: Pooling = "mean"
"""Of decoders that weren't trained for embeddings it says more than the last state does."""

_MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "mean": "mean",
    "pooling_mode_lasttoken": "last",
    "lasttoken": "last",
}


def read_pooling(folder: Path) -> Pooling:
    """What the checkpoint says, or else the default."""
    try:
        values = json.loads((folder / POOLING_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return DEFAULT_POOLING
    chosen = _chosen_modes(values) if isinstance(values, dict) else []
    if len(chosen) == 1 and chosen[0] in _MODES:
        return _MODES[chosen[0]]
    log.warning(
        "%s asks for %s, which isn't one of mean and last token; embeddings use %s unless a "
        "request says otherwise.",
        folder / POOLING_FILE,
        " and ".join(chosen) or "no pooling",
        DEFAULT_POOLING,
    )
    return DEFAULT_POOLING


def _chosen_modes(values: dict[str, Any]) -> list[str]:
    if isinstance(mode := values.get("pooling_mode"), str):
        return [mode]
    return [name for name, value in values.items() if name.startswith("pooling_mode_") and value]
