# SPDX-License-Identifier: Apache-2.0
"""A small factored trace whose scores are exact in fp32, whatever the order of the arithmetic."""

from __future__ import annotations

import torch
from torch import Tensor

from gvr_topk.traces import Trace

HEADS, WIDTH = 3, 8


def tiny_tensors(keys: int = 600, steps: int = 20, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def small_integers(*shape: int) -> Tensor:
        return torch.randint(-4, 5, shape, generator=generator).float()

    def float8_bytes(values: Tensor) -> Tensor:
        return values.to(torch.float8_e4m3fn).view(torch.uint8)

    return {
        "k_fp8": float8_bytes(small_integers(keys, WIDTH)),
        "k_scale": 2.0 ** torch.randint(-2, 3, (keys,), generator=generator),
        "q_fp8": float8_bytes(small_integers(steps, HEADS, WIDTH)),
        "w": small_integers(steps, HEADS),
    }


def tiny_trace(keys: int = 600, steps: int = 20, seed: int = 0) -> Trace:
    return Trace(tiny_tensors(keys, steps, seed), {"layer": "0"}, "tiny")
