"""Remembers when things happened to requests and how full the replicas were."""

from array import array
from collections.abc import Callable, Sequence

import numpy as np

from tokasaurus.ipc.messages.to_server import RequestFinished
from tokasaurus.manager.engine import Engine
from tokasaurus.manager.ragged import ragged_places

_BITS_SHIFT = 17
"""Keeps 6 bits of a float32's mantissa: 64 bins per doubling, within 1.6%."""
_MIN_GAP = np.float32(2.0**-20)
_MAX_GAP = np.float32(2.0**16)
_FIRST_BIN = int(_MIN_GAP.view(np.int32)) >> _BITS_SHIFT
_NUM_BINS = (int(_MAX_GAP.view(np.int32)) >> _BITS_SHIFT) - _FIRST_BIN + 1
_MAX_PENDING = 65_536
_READS_EVERY = 64
"""Steps between looks at what decodes read."""


class GapHistogram:
    """Counts intervals by their logarithm."""

    def __init__(self) -> None:
        self._counts = np.zeros(_NUM_BINS, np.int64)
        self._pending: list[np.ndarray] = []
        self._num_pending = 0

    @property
    def counts(self) -> np.ndarray:
        """int64 per bin."""
        self._flush()
        return self._counts

    def add(self, seconds: np.ndarray) -> None:
        self._pending.append(seconds)
        self._num_pending += seconds.size
        if self._num_pending >= _MAX_PENDING or len(self._pending) >= _MAX_PENDING:
            self._flush()

    def add_counts(self, counts: np.ndarray) -> None:
        """Take in another histogram's."""
        self._counts += counts

    def percentile(self, percent: float) -> float:
        """NaN if there is nothing."""
        total = np.cumsum(self.counts)
        if not total[-1]:
            return float("nan")
        index = int(np.searchsorted(total, percent / 100 * total[-1]))
        bits = np.array([(index + _FIRST_BIN) << _BITS_SHIFT], np.int32)
        return float(bits.view(np.float32)[0])

    def _flush(self) -> None:
        if not self._pending:
            return
        gaps = np.concatenate(self._pending).astype(np.float32)
        self._pending.clear()
        self._num_pending = 0
        np.clip(gaps, _MIN_GAP, _MAX_GAP, out=gaps)
        bins = (gaps.view(np.int32) >> _BITS_SHIFT) - _FIRST_BIN
        self._counts += np.bincount(bins, minlength=_NUM_BINS)


class RequestLog:
    """Times of every request, by its id; NaN until it happens."""

    def __init__(self) -> None:
        self.num_requests = 0
        self._times = np.full((5, 1024), np.nan)
        self.num_preemptions = np.zeros(1024, np.int32)
        self.gaps = GapHistogram()
        self.num_refused = 0
        self.reason_refused = ""
        self.num_output_tokens = 0

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {
            "times": self._times[:, : self.num_requests],
            "num_preemptions": self.num_preemptions[: self.num_requests],
            "gaps": self.gaps.counts,
            "sums": np.array([self.num_refused, self.num_output_tokens]),
            "reason_refused": np.array(self.reason_refused),
        }

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Take in the requests of another log, by its `to_arrays`; their ids follow on ours."""
        times = arrays["times"]
        first = self.add(times.shape[1], np.nan)
        self._times[:, first : self.num_requests] = times
        self.num_preemptions[first : self.num_requests] = arrays["num_preemptions"]
        self.gaps.add_counts(arrays["gaps"])
        num_refused, num_output_tokens = arrays["sums"].tolist()
        self.num_refused += num_refused
        self.num_output_tokens += num_output_tokens
        self.reason_refused = self.reason_refused or str(arrays["reason_refused"])

    @property
    def arrival(self) -> np.ndarray:
        return self._times[0, : self.num_requests]

    @property
    def started(self) -> np.ndarray:
        """When the first chunk of its prefill was scheduled."""
        return self._times[1, : self.num_requests]

    @property
    def first_token(self) -> np.ndarray:
        return self._times[2, : self.num_requests]

    @property
    def ended(self) -> np.ndarray:
        return self._times[4, : self.num_requests]

    def add(self, num_requests: int, now: float) -> int:
        """The id of the first of these; the others follow."""
        first = self.num_requests
        self.num_requests += num_requests
        if self.num_requests > self._times.shape[1]:
            room = max(self.num_requests, self._times.shape[1])
            self._times = np.pad(self._times, ((0, 0), (0, room)), constant_values=np.nan)
            self.num_preemptions = np.pad(self.num_preemptions, (0, room))
        self._times[0, first : self.num_requests] = now
        return first

    def start(self, ids: Sequence[int], now: float) -> np.ndarray:
        """Those of `ids` that run for the first time."""
        started = np.array(ids, np.int64)
        fresh = started[np.isnan(self._times[1, started])]
        self._times[1, fresh] = now
        return fresh

    def take_tokens(self, ids: np.ndarray, counts: np.ndarray, now: float) -> None:
        """Each of these got so many tokens, over which the time since its last ones is spread.

        The first one comes by itself.
        """
        last = self._times[3]
        gaps = (now - last[ids]) / counts
        is_first = np.isnan(gaps)
        if is_first.any():
            self._times[2, ids[is_first]] = now
            gaps, counts = gaps[~is_first], counts[~is_first]
        last[ids] = now
        self.num_output_tokens += int(is_first.sum()) + int(counts.sum())
        self.gaps.add(np.repeat(gaps, counts))

    def finish(self, finished: RequestFinished, now: float) -> None:
        self._times[4, finished.request_id] = now
        self.num_preemptions[finished.request_id] = finished.num_preemptions
        if finished.error is not None:
            self.num_refused += 1
            self.reason_refused = finished.error


Prediction = tuple[np.ndarray, np.ndarray]
"""(steps from now, rising; blocks in use after so many steps)"""
Predictor = Callable[[Engine], Prediction | None]
"""What a manager expects of the sequences that it runs now; None if it expects nothing."""


class ReplicaLog:
    """How full one replica was after every tick that scheduled something, and in what order it
    started requests."""

    def __init__(self, predict: Predictor | None, prediction_steps: int) -> None:
        """Every so many steps `predict` is asked."""
        self._columns = tuple(array("d") for _ in range(5))
        self._predict = predict
        self._prediction_steps = prediction_steps
        self._next_prediction = 0
        self._next_reads = 0
        self.block_reads = np.zeros(3, np.int64)
        """Sums over samples: blocks in the tables of decodes; reads of them that groups saved, and
        that groups within groups, down to every shared block, would have saved."""
        self.start_order = array("q")
        """Ids of requests."""
        self.predictions: list[tuple[int, Prediction]] = []
        """(the step at which it was made, the prediction)"""

    def sample(self, engine: Engine, now: float, step_id: int) -> None:
        gauges = engine.gauges()
        row = (now, step_id, gauges.num_blocks_in_use, gauges.num_running, gauges.num_queued)
        for column, value in zip(self._columns, row, strict=True):
            column.append(value)
        if self._predict is not None and step_id >= self._next_prediction:
            self._next_prediction = step_id + self._prediction_steps
            prediction = self._predict(engine)
            if prediction is not None:
                self.predictions.append((step_id, prediction))

    def sample_reads(self, engine: Engine, step_id: int, num_saved_blocks: int) -> None:
        """Now and then, count the blocks that decodes attend to, and how many different ones."""
        if step_id < self._next_reads:
            return
        self._next_reads = step_id + _READS_EVERY
        slots, decode_slots = engine.running.slots, engine.running.decode_slots
        lengths = slots.num_blocks[decode_slots]
        places = ragged_places(decode_slots * slots.block_table.shape[1], lengths)
        held = slots.block_table.reshape(-1)[places]
        is_held = np.zeros(engine.running.blocks.num_blocks, bool)
        is_held[held] = True
        num_different = int(np.count_nonzero(is_held))
        self.block_reads += (held.size, num_saved_blocks, held.size - num_different)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All but the predictions."""
        return {
            "columns": np.array([np.frombuffer(column) for column in self._columns]),
            "block_reads": self.block_reads,
            "start_order": np.frombuffer(self.start_order, np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> "ReplicaLog":
        log = cls(None, 1)
        for column, values in zip(log._columns, arrays["columns"], strict=True):
            column.frombytes(values.tobytes())
        log.block_reads = arrays["block_reads"]
        log.start_order.frombytes(arrays["start_order"].tobytes())
        return log

    @property
    def times(self) -> np.ndarray:
        return np.frombuffer(self._columns[0])

    @property
    def step_ids(self) -> np.ndarray:
        return np.frombuffer(self._columns[1])

    @property
    def blocks_in_use(self) -> np.ndarray:
        return np.frombuffer(self._columns[2])

    @property
    def running(self) -> np.ndarray:
        return np.frombuffer(self._columns[3])

    @property
    def queued(self) -> np.ndarray:
        return np.frombuffer(self._columns[4])
