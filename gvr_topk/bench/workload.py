# SPDX-License-Identifier: Apache-2.0
"""Rows to select from, with the Top-K of the step before: recorded, random or adversarial.

A pool holds all rows of one length, type and kind; the buffers of every cell are slices of it, so
that rows are made and ranked once and no row of a batch is a copy of another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gvr_topk.traces import Trace, packaged_trace

from .cells import DTYPES, Cell
from .exact import exact_topk, overlap

# Correlation of one step with the next in synthetic rows, for an overlap of about 0.6 (the mean of
# the recorded layers) in the Top-2048 of 256K and of 1M normal scores.
_CORRELATION = 0.94
_CORRELATION_LONG = 0.95
_LONG = 1 << 19
_GOLDEN = 0.6180339887
_SEED = 20220461
_CHUNK = 1 << 26


class WorkloadError(ValueError):
    """Rows that cannot be made from what is there."""


@dataclass(frozen=True)
class Pool:
    scores: Tensor  # [rows, n]
    expected: Tensor  # int32 [rows, k], best first
    hints: Tensor  # int32 [rows, k], the exact Top-K of the previous step, best first
    previous: Tensor | None  # [rows, n], the scores of that step
    source: str


@dataclass(frozen=True)
class Buffer:
    """One call's input."""

    scores: Tensor
    hint: Tensor | None
    expected: Tensor


@dataclass(frozen=True)
class Case:
    """A cell with its buffers. Paired: the second half are the first half's previous steps."""

    cell: Cell
    buffers: tuple[Buffer, ...]
    source: str
    paired: bool

    @property
    def device(self) -> torch.device:
        return self.buffers[0].scores.device

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def bytes_per_call(self) -> int:
        scores = self.buffers[0].scores
        return scores.numel() * scores.element_size()

    def overlaps(self) -> Tensor | None:
        """Share of the answer that the hint holds, for every row."""
        shares = [overlap(b.hint, b.expected) for b in self.buffers if b.hint is not None]
        return torch.cat(shares) if shares else None


class Recordings:
    """Score rows of recorded decode steps, rebuilt once per trace and cut to every length."""

    def __init__(self, paths: Sequence[Path], device: torch.device, longest: int) -> None:
        traces = [Trace.load(path, device) for path in paths] or [packaged_trace(device)]
        self.names = [trace.name for trace in traces]
        self.longest = min(trace.visible(0) for trace in traces)
        self._traces = traces
        self._span = min(longest, self.longest)
        self._scores: dict[tuple[int, int], Tensor] = {}

    def row_length(self, n: int) -> int:
        """The nominal length, or up to 1 % less where the recordings end a little earlier."""
        length = min(n, self._span) // 16 * 16
        if length < 0.99 * n:
            raise WorkloadError(
                f"rows of {n} scores: the recordings hold {self.longest}; give longer ones "
                "with --trace"
            )
        return length

    def pairs(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(row, row of the step before in the same columns), documents in turns, without end.

        After the last recorded step the rows come again, turned by a part of their length.
        """
        turn = 0
        while True:
            shift = int(turn * _GOLDEN * n) % n
            for step in range(1, min(trace.steps for trace in self._traces)):
                for place in range(len(self._traces)):
                    row = self._row(place, step, n, step)
                    before = self._row(place, step - 1, n, step)
                    yield (row.roll(shift), before.roll(shift)) if shift else (row, before)
            turn += 1

    def _row(self, place: int, step: int, n: int, window_of: int) -> Tensor:
        """The scores of `step` in the last n columns that `window_of` sees."""
        trace = self._traces[place]
        if (place, step) not in self._scores:
            self._scores[place, step] = trace.scores(step, self._span)
        row = self._scores[place, step]
        missing = trace.visible(window_of) - trace.visible(step)
        if missing == 0:
            return row[len(row) - n :]
        row = row[len(row) - n + missing :]
        return torch.cat([row, row.new_full((missing,), -torch.inf)])


def _recorded(recordings: Recordings, n: int, rows: int) -> tuple[Tensor, Tensor]:
    scores: list[Tensor] = []
    previous: list[Tensor] = []
    for row, before in recordings.pairs(n):
        if len(scores) == rows:
            break
        scores.append(row)
        previous.append(before)
    return torch.stack(scores), torch.stack(previous)


def _normal(n: int, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two steps of an AR(1) process per score; rows differ in location and scale."""
    device = generator.device
    rho = _CORRELATION_LONG if n >= _LONG else _CORRELATION
    spread = torch.rand((rows, 1), generator=generator, device=device)
    previous = torch.randn((rows, n), generator=generator, device=device)
    scores = torch.randn((rows, n), generator=generator, device=device)
    scores.mul_((1 - rho * rho) ** 0.5).add_(previous, alpha=rho)
    for step in (previous, scores):
        step.mul_(1 + spread).add_(-8 * spread)
    return scores, previous


def _plateau(base: Tensor, k: int) -> Tensor:
    """ReLU rows: the K-th place lies in a run of exact zeros that no buffer holds."""
    place = base.topk(max(1, k // 2), sorted=True).values[:, -1:]
    return (base - place).relu_()


def _equal(base: Tensor, k: int) -> Tensor:
    return torch.full_like(base, 0.25)


def _few_values(base: Tensor, k: int) -> Tensor:
    return (base * 2).round()


def _same_prefix(base: Tensor, k: int) -> Tensor:
    """All scores share their 16 leading bits."""
    return 1 + base.sub(base.amin()).div_(base.amax() - base.amin()).mul_(2.0**-8)


def _ascending(base: Tensor, k: int) -> Tensor:
    return base.sort().values


def _descending(base: Tensor, k: int) -> Tensor:
    return base.sort(descending=True).values


def _one_tile(base: Tensor, k: int) -> Tensor:
    """All winners side by side in the middle of the row."""
    scores = base.sort().values
    return scores.roll(scores.shape[1] // 2, dims=1)


def _infinities(base: Tensor, k: int) -> Tensor:
    """Fewer +inf than K, as many -inf, and some NaN."""
    scores = base.clone()
    count = min(k, scores.shape[1] // 4) // 2
    scores[:, 5 : 5 + 3 * count : 3] = torch.inf
    scores[:, 6 : 6 + 3 * count : 3] = -torch.inf
    scores[:, 11::4099] = torch.nan
    return scores


_ADVERSARIAL: dict[str, Callable[[Tensor, int], Tensor]] = {
    "plateau": _plateau,
    "equal": _equal,
    "few-values": _few_values,
    "same-prefix": _same_prefix,
    "ascending": _ascending,
    "descending": _descending,
    "one-tile": _one_tile,
    "infinities": _infinities,
}


def _mixed_hint(expected: Tensor, n: int, share: float, generator: torch.Generator) -> Tensor:
    """`share` of the answer, the rest at random, in random order."""
    device = expected.device
    rows, k = expected.shape
    hint = torch.randint(n, (rows, k), generator=generator, device=device, dtype=torch.int32)
    order = torch.rand((rows, k), generator=generator, device=device).argsort(1)
    kept = round(share * k)
    hint[:, :kept] = expected.gather(1, order[:, :kept])
    return hint.gather(1, torch.rand((rows, k), generator=generator, device=device).argsort(1))


def _blocks(n: int, rows: int) -> Iterator[int]:
    """Rows made at a time, so that temporaries stay small beside the pool."""
    step = max(1, _CHUNK // n)
    for begin in range(0, rows, step):
        yield min(step, rows - begin)


def build_pool(
    cell: Cell,
    rows: int,
    k: int,
    device: torch.device,
    recordings: Recordings,
    keep_previous: bool = False,
) -> Pool:
    """Rows for every cell of this one's data, length and type; k is the largest of them."""
    dtype = DTYPES[cell.dtype]
    if cell.data == "trace":
        scores, previous = _recorded(recordings, recordings.row_length(cell.n), rows)
        scores, previous = scores.to(dtype), previous.to(dtype)
        expected = exact_topk(scores, k)
        hints = exact_topk(previous, k)
        source = f"recorded: {', '.join(recordings.names)}"
        return Pool(scores, expected, hints, previous if keep_previous else None, source)
    if cell.data != "normal" and cell.data not in _ADVERSARIAL:
        raise WorkloadError(f"data: got {cell.data!r}, need trace, normal or one of "
                            f"{', '.join(_ADVERSARIAL)}")  # fmt: skip
    generator = torch.Generator(device).manual_seed(_SEED)
    scores = torch.empty((rows, cell.n), dtype=dtype, device=device)
    kept = torch.empty_like(scores) if keep_previous else None
    hints = torch.empty((rows, k), dtype=torch.int32, device=device)
    done = 0
    for count in _blocks(cell.n, rows):
        part = slice(done, done + count)
        now, before = _normal(cell.n, count, generator)
        if cell.data in _ADVERSARIAL:
            now = _ADVERSARIAL[cell.data](now, k)
            before = now
        scores[part] = now
        before = before.to(dtype)
        hints[part] = exact_topk(before, k)
        if kept is not None:
            kept[part] = before
        done += count
    expected = exact_topk(scores, k)
    if cell.data in _ADVERSARIAL:
        hints = _mixed_hint(expected, cell.n, 0.6, generator)
    return Pool(scores, expected, hints, kept, f"synthetic: {cell.data}")


def _least(scores: Tensor, k: int) -> Tensor:
    return scores.float().topk(k, dim=1, largest=False).indices.int()


def make_hint(cell: Cell, pool: Pool, rows: int) -> Tensor | None:
    """int32 [rows, k] for the first rows of the pool."""
    scores, k = pool.scores[:rows], cell.k
    n = scores.shape[1]
    real = pool.hints[:rows, :k]
    generator = torch.Generator(scores.device).manual_seed(_SEED + 1)
    if cell.hint == "real":
        return real
    if cell.hint == "none":
        return None
    if cell.hint == "zeros":
        return torch.zeros_like(real)
    if cell.hint == "bottom":
        return _least(scores, k)
    if cell.hint == "other":
        return real.roll(1, 0)
    if cell.hint == "random":
        return _mixed_hint(pool.expected[:rows, :k], n, 0.0, generator)
    if cell.hint == "badrow":
        bad = torch.arange(rows, device=scores.device) % cell.rows == cell.rows // 2
        return torch.where(bad[:, None], _least(scores, k), real)
    kind, _, share = cell.hint.partition(":")
    if kind == "overlap" and share:
        return _mixed_hint(pool.expected[:rows, :k], n, float(share), generator)
    raise WorkloadError(f"hint: got {cell.hint!r}, need real, none, bottom, zeros, random, other, "
                        "badrow or overlap:SHARE")  # fmt: skip


def make_case(cell: Cell, pool: Pool, buffers: int, paired: bool) -> Case:
    rows = buffers * cell.rows
    hint = make_hint(cell, pool, rows)
    expected = pool.expected[:rows, : cell.k]
    made = [
        Buffer(pool.scores[part], None if hint is None else hint[part], expected[part])
        for part in _slices(buffers, cell.rows)
    ]
    if paired:
        if pool.previous is None:
            raise WorkloadError("a paired case needs a pool that keeps the previous step")
        steps = pool.hints[:rows, : cell.k]
        made += [
            replace(made[i], scores=pool.previous[part], hint=expected[part], expected=steps[part])
            for i, part in enumerate(_slices(buffers, cell.rows))
        ]
    return Case(cell, tuple(made), pool.source, paired)


def _slices(count: int, rows: int) -> Iterator[slice]:
    return (slice(i * rows, (i + 1) * rows) for i in range(count))
