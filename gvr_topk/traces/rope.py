# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: frequencies, with YaRN's interpolation, and the rotation itself.

A rotary half of width 2P holds P pairs; pair j of a vector is (x[j], x[j + P]) and turns by
position * frequency[j] radians. RoPE: arXiv 2104.09864. YaRN: arXiv 2309.00071.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def rope_frequencies(
    pairs: int,
    *,
    base: float = 10_000.0,
    yarn_factor: float = 1.0,
    original_context: int = 4096,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
) -> Tensor:
    """Radians per position of each pair, fastest first, float64 [pairs].

    yarn_factor       how many times longer the context is than in training; 1 is plain RoPE.
    original_context  positions of the training context.
    beta_fast         a pair that makes more turns than this over the training context is kept,
    beta_slow         one that makes fewer is slowed by yarn_factor, and between them (linear in the
                      pair's number) the two are mixed.
    """
    if pairs < 1:
        raise ValueError(f"pairs: got {pairs}, need at least 1")
    if base <= 1 or yarn_factor < 1:
        raise ValueError(
            f"base, yarn_factor: got {base:g}, {yarn_factor:g}, need base > 1 and yarn_factor >= 1"
        )
    plain = base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    if yarn_factor == 1:
        return plain

    def pair_of(turns: float) -> float:
        """The (fractional) pair that makes so many turns over the training context."""
        return pairs * math.log(original_context / (2 * math.pi * turns)) / math.log(base)

    first = max(math.floor(pair_of(beta_fast)), 0)
    last = min(math.ceil(pair_of(beta_slow)), 2 * pairs - 1)
    ramp = (torch.arange(pairs, dtype=torch.float64) - first) / max(last - first, 1e-3)
    slowed = ramp.clamp(0, 1)
    return plain * (1 - slowed) + plain / yarn_factor * slowed


def rotate(vectors: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """`vectors` [..., D] with their first 2 * pairs dimensions turned to `positions`.

    Positions and vectors.shape[:-1] are broadcast together. Negative positions turn back.
    """
    pairs = len(frequencies)
    angle = positions[..., None].to(torch.float64) * frequencies.to(positions.device)
    cosine, sine = angle.cos().to(vectors.dtype), angle.sin().to(vectors.dtype)
    first, second = vectors[..., :pairs], vectors[..., pairs : 2 * pairs]
    turned = torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
    rest = vectors[..., 2 * pairs :]
    return torch.cat([turned, rest.expand(*turned.shape[:-1], rest.shape[-1])], dim=-1)
