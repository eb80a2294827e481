# SPDX-License-Identifier: Apache-2.0
"""The answer by definition: a stable sort of every row, in plain PyTorch on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def row_windows(
    row: Tensor, n: int, lengths: Tensor | None, starts: Tensor | None, next_n: int, ratio: int
) -> tuple[Tensor, Tensor]:
    """[begin, end) of the valid scores of rows 0, 1, ..., each as an int64 tensor [rows, 1]."""
    begin, end = torch.zeros_like(row), torch.full_like(row, n)
    if lengths is not None:
        # Clamped first: no length may overflow the sum.
        length = lengths.long().clamp(0, n * ratio + next_n)[row // next_n]
        end = ((length - next_n + row % next_n + 1).clamp(min=0) // ratio).clamp(max=n)
    if starts is not None:
        begin = torch.minimum(starts.long()[row // next_n].clamp(min=0), end)
    return begin[:, None], end[:, None]


def topk_reference(
    scores: Tensor,
    k: int,
    *,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
) -> tuple[Tensor, Tensor]:
    """(values, int32 indices) of the exact Top-K: best first, then -inf and -1 in the tail.

    Score descending with NaN first, -0.0 equal to +0.0, then index ascending.
    """
    n = scores.shape[-1]
    flat = scores.reshape(scores.shape[:-1].numel(), n)
    rows = flat.shape[0]
    row = torch.arange(rows, device=scores.device)
    begin, end = row_windows(row, n, lengths, starts, next_n, compress_ratio)
    position = torch.arange(n, device=scores.device)
    inside = (position >= begin) & (position < end)

    # Two stable sorts, the weaker key first. fp32 holds bf16 and fp16 exactly; 0.0 + -0.0 is +0.0.
    number = torch.where(flat.isnan(), torch.inf, flat.detach().float() + 0.0)
    order = number.argsort(dim=-1, descending=True, stable=True)
    rank = inside.int() + (inside & flat.isnan()).int()  # NaN 2, number 1, outside the window 0
    order = order.gather(-1, rank.gather(-1, order).argsort(dim=-1, descending=True, stable=True))

    indices = torch.full((rows, k), -1, dtype=torch.int32, device=scores.device)
    values = torch.full((rows, k), -torch.inf, dtype=scores.dtype, device=scores.device)
    top = order[:, :k]
    valid = torch.arange(top.shape[1], device=scores.device) < end - begin
    indices[:, : top.shape[1]] = torch.where(valid, top, -1).int()
    # As integers: torch's 16-bit gather on the CPU changes the bits of a signalling NaN.
    raw = flat.detach().view(torch.int32 if flat.element_size() == 4 else torch.int16)
    values[:, : top.shape[1]] = raw.gather(-1, top).view(flat.dtype).masked_fill(~valid, -torch.inf)
    return values.view(*scores.shape[:-1], k), indices.view(*scores.shape[:-1], k)
