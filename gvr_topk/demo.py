# SPDX-License-Identifier: Apache-2.0
"""The demo: a recorded decode through TopKCache, every step checked against the reference."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import fmean, median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import TopKCache
from .reference import topk_reference
from .traces import Trace

if TYPE_CHECKING:
    from rich.table import Table

_REPEATS = 5  # timings of one step, of which the median counts
_GRAPH_LAUNCHES = 16  # in one CUDA graph: a single launch is shorter than the noise of an event
_GROUP = 8  # steps in one line of the table
_MAX_LINES = 16


@dataclass(frozen=True)
class StepRecord:
    """What one step did, how long it took, and whether it was right."""

    step: int
    keys: int
    overlap: float | None  # share of the answer that the previous answer held; None at the start
    path: str
    passes: int
    survivors: int
    hint_valid: int
    hint_hits: int
    overflows: int
    undershoots: int
    step_us: float
    torch_us: float
    difference: str | None  # None: exact

    @property
    def exact(self) -> bool:
        return self.difference is None


def find_difference(
    scores: Tensor, values: Tensor, indices: Tensor, expected: tuple[Tensor, Tensor]
) -> str | None:
    """None when a row's answer is the expected one bit for bit, in any order; else what differs."""
    expected_values, expected_indices = expected
    given, wanted = indices.sort().values, expected_indices.sort().values
    if not torch.equal(given, wanted):
        missing = sorted(set(wanted.tolist()) - set(given.tolist()))
        extra = sorted(set(given.tolist()) - set(wanted.tolist()))
        return (
            f"{len(missing)} of {len(wanted)} indices missing ({missing[:4]}), "
            f"{len(extra)} not part of the answer ({extra[:4]})"
        )
    if not torch.equal(_bits(values).sort().values, _bits(expected_values).sort().values):
        return "right indices, but other values than the reference (compared as a multiset of bits)"
    valid = indices >= 0
    if not torch.equal(_bits(values[valid]), _bits(scores[indices[valid].long()])):
        return "right indices, but values that are not the scores at those indices"
    return None


def _bits(values: Tensor) -> Tensor:
    return (values + 0.0).view(torch.int32)  # adding +0.0 makes the two zeros one


class CpuTimer:
    """Wall time of one step from a given state, and of torch.topk on the same scores."""

    def __init__(self, row: Tensor, lengths: Tensor, k: int) -> None:
        self._row, self._lengths, self._k = row, lengths, k
        self._cache = TopKCache(1, 1, k)

    def measure(self, state: Tensor, keys: int) -> tuple[float, float]:
        def restore() -> None:
            self._cache.state.copy_(state)

        step = _wall_us(lambda: self._cache.step(self._row, 0, lengths=self._lengths), restore)
        scores = self._row[:, :keys]
        return step, _wall_us(lambda: torch.topk(scores, self._k, sorted=False))


class CudaTimer:
    """Device time, without the host's: CUDA graphs of many launches that all find the same hint."""

    def __init__(self, row: Tensor, lengths: Tensor, k: int) -> None:
        # Each launch has a slot of its own, since a step replaces the hint that it used.
        self._cache = TopKCache(1, _GRAPH_LAUNCHES, k, device=row.device)
        self._slots = torch.arange(_GRAPH_LAUNCHES, device=row.device)
        self._row = row
        # torch.topk has no lengths: it reads the few columns of later steps as -inf.
        self._plain = torch.full_like(row, -torch.inf)
        self._step = _capture(
            [partial(self._cache.step, row, 0, slot, lengths) for slot in self._slots.split(1)]
        )
        self._topk = _capture([lambda: torch.topk(self._plain, k, sorted=False)] * _GRAPH_LAUNCHES)

    def measure(self, state: Tensor, keys: int) -> tuple[float, float]:
        def restore() -> None:
            self._cache.state.copy_(state.expand_as(self._cache.state))

        self._plain[:, :keys] = self._row[:, :keys]
        return _graph_us(self._step, restore), _graph_us(self._topk)


def _wall_us(call: Callable[[], Any], restore: Callable[[], None] | None = None) -> float:
    times = []
    for _ in range(_REPEATS):
        if restore is not None:
            restore()
        begin = perf_counter()
        call()
        times.append(1e6 * (perf_counter() - begin))
    return median(times)


def _capture(calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()  # whatever is set up at the first call must not happen under capture
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _graph_us(graph: torch.cuda.CUDAGraph, restore: Callable[[], None] | None = None) -> float:
    times = []
    for _ in range(_REPEATS):
        if restore is not None:
            restore()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end) / _GRAPH_LAUNCHES)
    return median(times)


def replay(trace: Trace, k: int, steps: int) -> Iterator[StepRecord]:
    """Decodes the first `steps` steps on the trace's device; the context grows by one key a step.

    Column c of the row is key c, so that one step's answer is the next one's hint as it stands.
    The columns beyond a step's keys hold NaN, which would be the best of all if it were read.
    """
    device = trace.device
    row = torch.full((1, trace.keys), torch.nan, device=device)
    lengths = torch.zeros(1, dtype=torch.int32, device=device)
    cache = TopKCache(1, 1, k, device=device)
    timer: CpuTimer | CudaTimer | None = None
    previous: Tensor | None = None
    for step in range(steps):
        keys = trace.visible(step)
        row[0, :keys] = trace.scores(step)
        lengths.fill_(keys)
        if timer is None:
            timer = (CudaTimer if device.type == "cuda" else CpuTimer)(row, lengths, k)
        state = cache.state.clone()
        values, indices, stats = cache.step(
            row, 0, lengths=lengths, return_values=True, return_stats=True
        )
        expected = topk_reference(row, k, lengths=lengths)
        best = expected[1][0]
        overlap = None if previous is None else torch.isin(best, previous).sum().item() / k
        previous = best
        step_us, torch_us = timer.measure(state, keys)
        telemetry = stats[0]
        yield StepRecord(
            step=step,
            keys=keys,
            overlap=overlap,
            path=telemetry.path_name,
            passes=telemetry.passes,
            survivors=telemetry.survivors,
            hint_valid=telemetry.hint_valid,
            hint_hits=telemetry.hint_hits,
            overflows=telemetry.overflows,
            undershoots=telemetry.undershoots,
            step_us=step_us,
            torch_us=torch_us,
            difference=find_difference(
                row[0], values[0], indices[0], (expected[0][0], expected[1][0])
            ),
        )


def summarise(records: Sequence[StepRecord]) -> dict[str, Any]:
    """Means of the counts, medians of the times. The first step had nothing to overlap with."""
    overlaps = [r.overlap for r in records if r.overlap is not None]
    hits = [r.hint_hits for r in records if r.overlap is not None]
    step_us, torch_us = median(r.step_us for r in records), median(r.torch_us for r in records)
    return {
        "steps": len(records),
        "exact_steps": sum(r.exact for r in records),
        "exact": all(r.exact for r in records),
        "overlap": fmean(overlaps) if overlaps else None,
        "hint_hits": fmean(hits) if hits else None,
        "survivors": fmean(r.survivors for r in records),
        "passes": fmean(r.passes for r in records),
        "paths": dict(Counter(r.path for r in records)),
        "step_us": step_us,
        "torch_us": torch_us,
        "speedup": torch_us / step_us,
    }


def table(records: Sequence[StepRecord], title: str) -> Table:
    """A line for every few steps and one for all of them."""
    from rich import box
    from rich.table import Table

    result = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
        collapse_padding=True,
        pad_edge=False,
    )
    result.add_column("steps", no_wrap=True)
    for name in ("overlap\n%", "hint\nhits", "sur-\nvivors", "passes"):
        result.add_column(name, justify="right", no_wrap=True)
    result.add_column("path", min_width=6)
    for name in ("step\nus", "torch.\ntopk us", "speed-\nup", "exact"):
        result.add_column(name, justify="right", no_wrap=True)
    group = max(_GROUP, -(-len(records) // _MAX_LINES))
    for first in range(0, len(records), group):
        part = records[first : first + group]
        result.add_row(f"{part[0].step}-{part[-1].step}", *_cells(part))
    result.add_section()
    result.add_row("all", *_cells(records), style="bold")
    return result


def _cells(records: Sequence[StepRecord]) -> list[str]:
    s = summarise(records)
    paths = s["paths"]
    names = [name if len(paths) == 1 else f"{name} {count}" for name, count in paths.items()]
    return [
        "-" if s["overlap"] is None else f"{100 * s['overlap']:.1f}",
        "-" if s["hint_hits"] is None else f"{s['hint_hits']:.0f}",
        f"{s['survivors']:.0f}",
        f"{s['passes']:.2f}",
        ", ".join(names),
        _microseconds(s["step_us"]),
        _microseconds(s["torch_us"]),
        f"{s['speedup']:.1f}x",
        f"{s['exact_steps']}/{s['steps']}",
    ]


def _microseconds(time: float) -> str:
    return f"{time:.1f}" if time < 1000 else f"{time:.0f}"


def device_label(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def as_json(records: Sequence[StepRecord], trace: Trace, k: int) -> dict[str, Any]:
    return {
        "trace": trace.name,
        "device": str(trace.device),
        "device_name": device_label(trace.device),
        "k": k,
        "summary": summarise(records),
        "steps": [{**asdict(r), "exact": r.exact} for r in records],
    }


def check_arguments(trace: Trace, k: int, steps: int | None) -> int:
    """The number of steps to replay; ValueError where `k` or `steps` does not fit the trace."""
    keys = trace.visible(0)
    if not 1 <= k < keys:
        raise ValueError(f"k: got {k}, need 1 <= k < {keys}, the keys of the first step")
    if steps is None:
        return trace.steps
    if not 1 <= steps <= trace.steps:
        raise ValueError(f"steps: got {steps}, need 1 <= steps <= {trace.steps}")
    return steps


def run(trace: Trace, k: int, steps: int | None = None, *, json_output: bool = False) -> int:
    """Replays, prints, and returns the exit code: 0 only if every step was exact, else 1."""
    from rich.console import Console
    from rich.progress import track

    count = check_arguments(trace, k, steps)
    errors = Console(stderr=True)
    records = list(
        track(replay(trace, k, count), description="decoding", total=count, console=errors)
    )
    if json_output:
        print(json.dumps(as_json(records, trace, k), indent=2))
    else:
        title = (
            f"{trace.name}: Top-{k} of {records[0].keys}..{records[-1].keys} keys on "
            f"{device_label(trace.device)}"
        )
        Console().print(table(records, title))
    wrong = [r for r in records if not r.exact]
    if wrong:
        errors.print(
            f"error: {len(wrong)} of {count} steps were not exact; "
            f"step {wrong[0].step}: {wrong[0].difference}",
            style="red",
            markup=False,
            soft_wrap=True,
        )
        return 1
    if not json_output:
        print(f"all {count} steps exact, bit for bit")
    return 0
