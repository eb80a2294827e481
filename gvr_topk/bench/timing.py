# SPDX-License-Identifier: Apache-2.0
"""Time per call, from CUDA graph replays over cold buffers or from the CPU's clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter

import torch
from torch import Tensor

from .cells import MIB

Call = Callable[[], Tensor]

# More than twice the largest L2 in use (60 MB on an H200): after so many other bytes a buffer is
# out of the cache.
COLD_BYTES = 130 * MIB
FLUSH_BYTES = 256 * MIB
MAX_BUFFERS = 64
MIN_CALLS = 24  # per replay, so that the graph's own launch is a small part of the time
LONG_REPLAY_US = 1500.0
CPU_BYTES = 48 * MIB
MAX_CPU_BUFFERS = 96
MIN_CPU_SAMPLES = 192

L2_POLICY = {
    "rotation": f"calls go round over buffers of more than {COLD_BYTES // MIB} MiB in all",
    "rotation+flush": (
        f"each buffer is used once per replay, and {FLUSH_BYTES // MIB} MiB of other memory are "
        "read before each replay"
    ),
    "warm": "every call uses the same buffer",
    "cpu": f"calls go round over {CPU_BYTES // MIB} MiB, at most {MAX_CPU_BUFFERS} buffers",
}


@dataclass(frozen=True)
class Timing:
    """Microseconds per call; the percentiles are those of the samples."""

    median_us: float
    p10_us: float
    p90_us: float
    samples: int
    calls_per_sample: int
    l2: str

    def to_json(self) -> dict[str, float | int | str]:
        rounded = {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return rounded


def buffer_count(bytes_per_call: int, device: torch.device) -> int:
    cuda = device.type == "cuda"
    wanted, most = (COLD_BYTES, MAX_BUFFERS) if cuda else (CPU_BYTES, MAX_CPU_BUFFERS)
    return max(1, min(most, math.ceil(wanted / bytes_per_call)))


def summarize(samples_us: Sequence[float], calls: int, l2: str) -> Timing:
    if len(samples_us) == 1:
        return Timing(samples_us[0], samples_us[0], samples_us[0], 1, calls, l2)
    tenths = statistics.quantiles(samples_us, n=10, method="inclusive")
    return Timing(statistics.median(samples_us), tenths[0], tenths[-1], len(samples_us), calls, l2)


class CudaTimer:
    """Replays of captured calls on a stream of its own."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._flush = torch.zeros(FLUSH_BYTES // 4, dtype=torch.int32, device="cuda")
        self._spin_up()

    def _spin_up(self) -> None:
        """Brings the clocks up before the first measurement."""
        matrix = torch.ones((4096, 4096), dtype=torch.bfloat16, device="cuda")
        begin = perf_counter()
        while perf_counter() - begin < 0.3:
            matrix @ matrix
            torch.cuda.synchronize()

    def cold(
        self, calls: Sequence[Call], bytes_per_call: int, replays: int
    ) -> tuple[Timing, list[Tensor]]:
        """Also gives what the last replay left in each call's output."""
        rotates = len(calls) * bytes_per_call >= COLD_BYTES
        rounds = self._rounds(calls) if rotates else 1
        l2 = "rotation" if rotates else "rotation+flush"
        return self._measure(list(calls) * rounds, len(calls), l2, replays)

    def warm(self, call: Call, replays: int) -> Timing:
        return self._measure([call] * MIN_CALLS, 1, "warm", replays)[0]

    def _rounds(self, calls: Sequence[Call]) -> int:
        if len(calls) >= MIN_CALLS:
            return 1
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            calls[0]()
            start, end = _event(), _event()
            start.record()
            calls[0]()
            end.record()
            end.synchronize()
        fitting = LONG_REPLAY_US / (1e3 * start.elapsed_time(end) * len(calls))
        return max(1, min(math.ceil(MIN_CALLS / len(calls)), math.ceil(fitting)))

    def _measure(
        self, calls: list[Call], distinct: int, l2: str, replays: int
    ) -> tuple[Timing, list[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        pairs = [(_event(), _event()) for _ in range(replays)]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for call in calls[:distinct]:
                call()
            self._stream.synchronize()
            graph.capture_begin()
            try:
                outputs = [call() for call in calls][-distinct:]
            finally:
                graph.capture_end()
            graph.replay()
            for output in outputs:
                output.fill_(-7)  # an index that no answer holds
            for start, end in pairs:
                if l2 == "rotation+flush":
                    self._flush.sum()
                start.record()
                graph.replay()
                end.record()
            answers = [output.clone() for output in outputs]
            self._stream.synchronize()
        samples = [1e3 * start.elapsed_time(end) / len(calls) for start, end in pairs]
        graph.reset()
        return summarize(samples, len(calls), l2), answers


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


class CpuTimer:
    """One sample per call."""

    def cold(
        self, calls: Sequence[Call], bytes_per_call: int, replays: int
    ) -> tuple[Timing, list[Tensor]]:
        return self._measure(calls, "cpu", replays)

    def warm(self, call: Call, replays: int) -> Timing:
        return self._measure([call], "warm", replays)[0]

    def _measure(self, calls: Sequence[Call], l2: str, replays: int) -> tuple[Timing, list[Tensor]]:
        outputs = [call() for call in calls]
        for output in outputs:
            output.fill_(-7)
        samples: list[float] = []
        while len(samples) < max(replays, 2 * len(calls), MIN_CPU_SAMPLES):
            place = len(samples) % len(calls)
            before = perf_counter()
            outputs[place] = calls[place]()
            samples.append(1e6 * (perf_counter() - before))
        return summarize(samples, 1, l2), outputs


Timer = CudaTimer | CpuTimer
