"""Draws one replica's time line: KV use with what was predicted of it, running and queued."""

from pathlib import Path

import matplotlib as mpl
import numpy as np

from simulation.recording import Prediction, ReplicaLog
from simulation.result import ReplayResult

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

_MAX_POINTS = 4000
_MAX_PREDICTIONS = 12


def write_plot(path: Path, results: dict[str, ReplayResult], title: str) -> None:
    """A column per result, of its first replica."""
    figure, axes = plt.subplots(
        3, len(results), figsize=(7 * len(results), 8), sharex="col", sharey="row", squeeze=False
    )
    for column, (name, result) in enumerate(results.items()):
        log = result.logs[0]
        num_blocks = result.num_blocks
        _draw_usage(axes[0, column], log, num_blocks)
        axes[0, column].set_title(f"{title}: {name}")
        keep = _thinned(log.times.size)
        axes[1, column].plot(log.times[keep], log.running[keep], color="tab:green")
        axes[2, column].plot(log.times[keep], log.queued[keep], color="tab:red")
        axes[2, column].set_xlabel("seconds (virtual)")
    for row, label in enumerate(["KV blocks in use, %", "running", "queued"]):
        axes[row, 0].set_ylabel(label)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_usage(axes: Axes, log: ReplicaLog, num_blocks: int) -> None:
    keep = _thinned(log.times.size)
    percent = 100 / num_blocks
    axes.plot(log.times[keep], log.blocks_in_use[keep] * percent, label="actual", linewidth=1.2)
    for index, (step_id, (steps, blocks)) in enumerate(_spread(log)):
        is_within = step_id + steps <= log.step_ids[-1]
        times = np.interp(step_id + steps[is_within], log.step_ids, log.times)
        label = "predicted for those that run then" if index == 0 else None
        axes.plot(
            times, blocks[is_within] * percent, "--", color="tab:orange", linewidth=0.9, label=label
        )
    axes.axhline(100, color="grey", linewidth=0.6)
    axes.set_ylim(0, 108)
    axes.legend(loc="lower center")


def _spread(log: ReplicaLog) -> list[tuple[int, Prediction]]:
    """Some of the predictions, made at about equal intervals of time."""
    if not log.predictions:
        return []
    made_at = np.interp([step_id for step_id, _ in log.predictions], log.step_ids, log.times)
    wanted = np.linspace(made_at[0], made_at[-1], _MAX_PREDICTIONS)
    return [log.predictions[index] for index in np.unique(np.searchsorted(made_at, wanted))]


def _thinned(size: int) -> slice:
    return slice(None, None, max(1, size // _MAX_POINTS))
