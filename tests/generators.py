# SPDX-License-Identifier: Apache-2.0
"""Rows and hints that have broken Top-K kernels, each under a name, seeded, on any device.

A row generator makes [rows, n] scores whose K-th place is interesting; a hint generator makes
[rows, k] int32 previous indices for given scores. Both draw from the torch.Generator they get.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from oracle import exact_answer
from torch import Tensor

RowGenerator = Callable[[int, int, int, torch.Generator], Tensor]
HintGenerator = Callable[[Tensor, int, torch.Generator], Tensor]

ROWS: dict[str, RowGenerator] = {}
HINTS: dict[str, HintGenerator] = {}

INT32_MAX = 2**31 - 1


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


def make_hint(name: str, scores: Tensor, k: int, *, seed: int = 0) -> Tensor:
    """[rows, k] int32 hints of the named kind for 2-D scores."""
    generator = torch.Generator(scores.device).manual_seed(seed)
    return HINTS[name](scores, k, generator).to(torch.int32)


def cross_hints(scores: Tensor, k: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Every row with every kind of hint: [hints * rows, n] scores and [hints * rows, k] hints."""
    hints = [make_hint(name, scores, k, seed=seed) for name in HINTS]
    return scores.repeat(len(hints), 1), torch.cat(hints)


def row_names() -> list[str]:
    return [*ROWS, "random_bits"]


def _rows(make: RowGenerator) -> RowGenerator:
    ROWS[make.__name__.lstrip("_")] = make
    return make


def _hint(make: HintGenerator) -> HintGenerator:
    HINTS[make.__name__.removeprefix("_hint_")] = make
    return make


def _randn(rows: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randn(rows, n, generator=g, device=g.device)


def _rand(rows: int, n: int, g: torch.Generator) -> Tensor:
    return torch.rand(rows, n, generator=g, device=g.device)


def _shuffle(scores: Tensor, g: torch.Generator) -> Tensor:
    return scores.gather(1, _rand(*scores.shape, g).argsort(-1))


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


# Special values.
@_rows
def _infinities_at_both_ends(rows: int, n: int, k: int, g: torch.Generator) -> Tensor:
    draw = _rand(rows, n, g)
    share = min(0.25, k / (2 * n))
    scores = torch.where(draw < share, torch.inf, _randn(rows, n, g))
    return torch.where(draw > 0.75, -torch.inf, scores)


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


# Hints.
def _exact_hint(scores: Tensor, k: int) -> Tensor:
    return exact_answer(scores, k).indices


@_hint
def _hint_exact(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return _exact_hint(scores, k)


@_hint
def _hint_previous_step(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    """The answer of a row that drifted into this one."""
    spread = torch.where(scores.isfinite(), scores.float(), 0.0).std(-1, keepdim=True)
    return _exact_hint(scores.float() + 0.3 * spread * _randn(*scores.shape, g), k)


def _hint_overlap(tenths: int) -> HintGenerator:
    def make(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
        rows, n = scores.shape
        exact = _exact_hint(scores, k)
        keep = _rand(rows, k, g) < tenths / 10
        others = torch.randint(0, max(n, 1), (rows, k), generator=g, device=g.device)
        return torch.where(keep, exact, others)

    return make


for _tenths in range(11):
    HINTS[f"overlap_{_tenths}_tenths"] = _hint_overlap(_tenths)


@_hint
def _hint_bottom_k(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return _exact_hint(-scores, k)


@_hint
def _hint_zeros(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return torch.zeros(scores.shape[0], k, device=scores.device)


@_hint
def _hint_one_index_repeated(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return torch.full((scores.shape[0], k), scores.shape[1] // 2, device=scores.device)


@_hint
def _hint_largest_index(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return torch.full((scores.shape[0], k), scores.shape[1] - 1, device=scores.device)


@_hint
def _hint_out_of_range(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    n = scores.shape[1]
    wild = torch.tensor([n, n + 1, INT32_MAX, -2, -n, -INT32_MAX - 1], device=scores.device)
    return wild[torch.randint(0, len(wild), (scores.shape[0], k), generator=g, device=g.device)]


@_hint
def _hint_nowhere(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return torch.full((scores.shape[0], k), -1, device=scores.device)


@_hint
def _hint_half_duplicated(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    exact = _exact_hint(scores, k)
    half = exact[:, : (k + 1) // 2]
    return torch.cat([half, half[:, : k // 2]], dim=1)


@_hint
def _hint_few_valid(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    """K' < K valid indices scattered among -1."""
    keep = _rand(scores.shape[0], k, g) < 0.3
    return torch.where(keep, _exact_hint(scores, k), -1)


@_hint
def _hint_argmax_only(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    exact = _exact_hint(scores, k)
    exact[:, 1:] = -1
    return exact


@_hint
def _hint_another_rows(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return _exact_hint(scores, k).roll(1, dims=0)


@_hint
def _hint_random_bits(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return torch.randint(-(2**31), 2**31, (scores.shape[0], k), generator=g, device=g.device)
