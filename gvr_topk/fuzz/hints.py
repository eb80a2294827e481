# SPDX-License-Identifier: Apache-2.0
"""Hints that have misled Top-K kernels, each kind under a name, seeded, on any device.

A hint generator makes [rows, k] previous indices for given [rows, n] scores, from the
torch.Generator that it gets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .oracle import best_indices

HintGenerator = Callable[[Tensor, int, torch.Generator], Tensor]

HINTS: dict[str, HintGenerator] = {}

INT32_MAX = 2**31 - 1


def make_hint(name: str, scores: Tensor, k: int, *, seed: int = 0) -> Tensor:
    """[rows, k] int32 hints of the named kind for 2-D scores."""
    generator = torch.Generator(scores.device).manual_seed(seed)
    return HINTS[name](scores, k, generator).to(torch.int32)


def cross_hints(scores: Tensor, k: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Every row with every kind of hint: [hints * rows, n] scores and [hints * rows, k] hints."""
    hints = [make_hint(name, scores, k, seed=seed) for name in HINTS]
    return scores.repeat(len(hints), 1), torch.cat(hints)


def _hint(make: HintGenerator) -> HintGenerator:
    HINTS[make.__name__.removeprefix("_hint_")] = make
    return make


@_hint
def _hint_exact(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return best_indices(scores, k)


@_hint
def _hint_previous_step(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    """The answer of a row that drifted into this one."""
    spread = torch.where(scores.isfinite(), scores.float(), 0.0).std(-1, correction=0, keepdim=True)
    drift = 0.3 * spread * torch.randn(scores.shape, generator=g, device=g.device)
    return best_indices(scores.float() + drift, k)


def _hint_overlap(tenths: int) -> HintGenerator:
    def make(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
        rows, n = scores.shape
        exact = best_indices(scores, k)
        keep = torch.rand(rows, k, generator=g, device=g.device) < tenths / 10
        others = torch.randint(0, max(n, 1), (rows, k), generator=g, device=g.device)
        return torch.where(keep, exact, others)

    return make


for _tenths in range(11):
    HINTS[f"overlap_{_tenths}_tenths"] = _hint_overlap(_tenths)


@_hint
def _hint_bottom_k(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return best_indices(-scores, k)


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
    exact = best_indices(scores, k)
    half = exact[:, : (k + 1) // 2]
    return torch.cat([half, half[:, : k // 2]], dim=1)


@_hint
def _hint_few_valid(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    """K' < K valid indices scattered among -1."""
    keep = torch.rand(scores.shape[0], k, generator=g, device=g.device) < 0.3
    return torch.where(keep, best_indices(scores, k), -1)


@_hint
def _hint_argmax_only(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    exact = best_indices(scores, k)
    exact[:, 1:] = -1
    return exact


@_hint
def _hint_another_rows(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return best_indices(scores, k).roll(1, dims=0)


@_hint
def _hint_random_bits(scores: Tensor, k: int, g: torch.Generator) -> Tensor:
    return torch.randint(-(2**31), 2**31, (scores.shape[0], k), generator=g, device=g.device)
