# SPDX-License-Identifier: Apache-2.0
"""Rows that have broken Top-K kernels, each kind under a name, seeded, on any device.

A row generator makes [rows, n] scores whose K-th place is interesting, from the torch.Generator
that it gets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

RowGenerator = Callable[[int, int, int, torch.Generator], Tensor]

ROWS: dict[str, RowGenerator] = {}


def make_rows(
    name: str,
    rows: int,
    n: int,
    k: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Tensor:
    """[rows, n] scores of the named kind; k says where the interesting place is."""
    generator = torch.Generator(device).manual_seed(seed)
    if name == "random_bits":
        return _random_bits(rows, n, dtype, generator)
    return ROWS[name](rows, n, k, generator).to(dtype)


def row_names() -> list[str]:
    return [*ROWS, "random_bits"]


def _rows(make: RowGenerator) -> RowGenerator:
    ROWS[make.__name__.lstrip("_")] = make
    return make


def _randn(rows: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randn(rows, n, generator=g, device=g.device)


def _rand(rows: int, n: int, g: torch.Generator) -> Tensor:
    return torch.rand(rows, n, generator=g, device=g.device)


def _ramp(rows: int, n: int, g: torch.Generator) -> Tensor:
    return torch.arange(n, device=g.device, dtype=torch.float32).expand(rows, n).contiguous()


def _from_bits(base: float, offset: Tensor) -> Tensor:
    """Scores that lie `offset` representable numbers above `base` (base > 0)."""
    first = torch.tensor(base, device=offset.device).view(torch.int32)
    return (first + offset.to(torch.int32)).view(torch.float32)


# Smooth rows.
@_rows
def _normal(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return _randn(rows, n, g)


@_rows
def _negative_mean(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """As indexer rows are: no score near zero, light tails."""
    return -7.2 + 1.5 * _rand(rows, n, g) + 0.2 * _randn(rows, n, g)


@_rows
def _uniform(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return _rand(rows, n, g)


@_rows
def _huge(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """Differences of two scores overflow."""
    return 3e38 * (2 * _rand(rows, n, g) - 1)


@_rows
def _ascending(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return _ramp(rows, n, g)


@_rows
def _descending(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return -_ramp(rows, n, g)


# Ties.
@_rows
def _constant(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return torch.full((rows, n), 1.25, device=g.device)


@_rows
def _quantised_33(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return (_rand(rows, n, g) * 33).floor() / 8 - 2


@_rows
def _quantised_4097(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return (_rand(rows, n, g) * 4097).floor() / 512 - 4


def _relu(fraction: float) -> RowGenerator:
    def make(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
        positive = _rand(rows, n, g) >= fraction
        return torch.where(positive, _randn(rows, n, g).abs(), 0.0)

    return make


for _percent in (1, 50, 90, 99):
    ROWS[f"relu_{_percent}_percent_zero"] = _relu(_percent / 100)


@_rows
def _both_zeros(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """k / 2 positive scores above a plateau that mixes +0.0 and -0.0."""
    zeros = torch.where(_rand(rows, n, g) < 0.5, 0.0, -0.0)
    positive = _rand(rows, n, g).argsort(-1) < k // 2
    return torch.where(positive, _rand(rows, n, g) + 0.5, zeros)


def _kth_copies(copies: int) -> RowGenerator:
    def make(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
        """The K-th value `copies` times, starting as late as leaves it the K-th place."""
        rank = _rand(rows, n, g).argsort(-1)
        first = max(0, min(k - 1, n) - copies // 2)
        plateau = (rank >= first) & (rank < first + copies)
        return torch.where(plateau, 0.0, (first - rank).to(torch.float32) / n)

    return make


for _copies in (1, 2, 17, 5000):
    ROWS[f"kth_value_{_copies}_times"] = _kth_copies(_copies)


@_rows
def _two_level_plateau(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """Two neighbouring values, and the K-th place where one ends and the other begins."""
    rank = _rand(rows, n, g).argsort(-1)
    return _from_bits(1.0, (rank < k).to(torch.int32))


@_rows
def _greater_scores_among_ties(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """k - 1 scores one step above an endless plateau, all of them late in the row."""
    position = torch.arange(n, device=g.device).expand(rows, n)
    return _from_bits(2.0, (position > n - k).to(torch.int32))


# Resolution: differences that coarse bins or 16-bit keys do not see.
@_rows
def _low_mantissa_bits(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return _from_bits(1.5, torch.randint(0, 1 << 10, (rows, n), generator=g, device=g.device))


@_rows
def _one_ulp_apart(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return _from_bits(1.0, _rand(rows, n, g).argsort(-1))


@_rows
def _gaps_of_5e_8(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return 0.5 + 5e-8 * _rand(rows, n, g).argsort(-1).to(torch.float32)


@_rows
def _gaps_of_3e_6(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return -3.0 + 3e-6 * _rand(rows, n, g).argsort(-1).to(torch.float32)


@_rows
def _one_outlier(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """One enormous score stretches every linear bin over all the others."""
    scores = 1.0 + 1e-4 * _rand(rows, n, g)
    scores[:, n // 2] = 3e38
    return scores


@_rows
def _subnormal(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    raw = torch.randint(0, 1 << 23, (rows, n), generator=g, device=g.device)
    sign = torch.where(_rand(rows, n, g) < 0.5, -1.0, 1.0)
    return raw.to(torch.int32).view(torch.float32) * sign


# Position: where samplers, tiles and slices look.
@_rows
def _peaks_at_samples(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """Peaks exactly at the multiples of a power of two, fewer than k of them."""
    step = 1 << max(0, (2 * n // max(k, 1)).bit_length() - 1)
    scores = _randn(rows, n, g)
    scores[:, ::step] += 100.0
    return scores


@_rows
def _winners_in_one_tile(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    scores = _randn(rows, n, g)
    first = max(0, n // 3 - k // 2)
    scores[:, first : first + k] += 50.0
    return scores


@_rows
def _winners_at_the_end(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    scores = _randn(rows, n, g)
    scores[:, max(0, n - k) :] += 50.0
    return scores


@_rows
def _winners_at_stride(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    scores = _randn(rows, n, g)
    scores[:, 3 :: max(1, n // max(k, 1))] += 50.0
    return scores


@lru_cache(maxsize=2)
def _recorded_scores(device: str) -> Tensor:
    """[steps, keys]: the packaged trace, every step cut to the keys that all of them see."""
    from gvr_topk.traces import packaged_trace

    trace = packaged_trace(device)
    keys = min(trace.visible(step) for step in range(trace.steps))
    return torch.stack([trace.scores(step, keys) for step in range(trace.steps)])


@_rows
def _recorded(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """Stretches of recorded decode rows; a row longer than the recording repeats it."""
    recording = _recorded_scores(str(g.device))
    steps, keys = recording.shape
    step = torch.randint(0, steps, (rows, 1), generator=g, device=g.device)
    first = torch.randint(0, keys, (rows, 1), generator=g, device=g.device)
    return recording[step, (first + torch.arange(n, device=g.device)) % keys]


# Special values.
@_rows
def _infinities_at_both_ends(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    draw = _rand(rows, n, g)
    share = min(0.25, k / (2 * n))
    scores = torch.where(draw < share, torch.inf, _randn(rows, n, g))
    return torch.where(draw > 0.75, -torch.inf, scores)


@_rows
def _huge_first_minus_infinities_last(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """No float holds the distance between the best score and the others."""
    scores = _randn(rows, n, g)
    scores[:, : 1 + k // 64] = 3e38
    scores[:, n - min(200, n // 2) :] = -torch.inf
    return scores


@_rows
def _more_than_k_plus_infinities(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    rank = _rand(rows, n, g).argsort(-1)
    return torch.where(rank < k + (n - k) // 2, torch.inf, _randn(rows, n, g))


@_rows
def _fewer_than_k_finite(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """-inf is a score: it fills the answer before any padding does."""
    rank = _rand(rows, n, g).argsort(-1)
    return torch.where(rank < k // 2, _randn(rows, n, g), -torch.inf)


@_rows
def _all_minus_infinity(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return torch.full((rows, n), -torch.inf, device=g.device)


@_rows
def _some_nan(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    """Fewer than k NaN of both signs among infinities and numbers."""
    draw = _rand(rows, n, g)
    share = min(0.2, k / (4 * n))
    scores = torch.where(draw < 2 * share, torch.inf, _randn(rows, n, g))
    nan = torch.full((rows, n), torch.nan, device=g.device)
    return torch.where(draw < share, torch.where(draw < share / 2, -nan, nan), scores)


@_rows
def _more_than_k_nan(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    rank = _rand(rows, n, g).argsort(-1)
    return torch.where(rank < k + (n - k) // 2, torch.nan, _randn(rows, n, g))


@_rows
def _all_nan(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    return torch.full((rows, n), torch.nan, device=g.device)


def _random_bits(rows: int, n: int, dtype: torch.dtype, g: torch.Generator) -> Tensor:
    """Every bit pattern, NaN payloads of both signs included."""
    raw = torch.randint(-(2**31), 2**31, (rows, n), generator=g, device=g.device)
    width = torch.int32 if dtype == torch.float32 else torch.int16
    return raw.to(width).view(dtype)
