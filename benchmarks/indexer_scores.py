# SPDX-License-Identifier: Apache-2.0
"""The index scores of decode.py on a GPU, in one Triton kernel that reads every key once.

score[row, t] = sum over heads of weight[row, head] * relu(<query[row, head], key[t]>), -inf from
the row's end on; row j of a request of length L ends at L - next_n + j + 1.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128


@triton.jit
def _score_kernel(
    queries,  # bf16 [requests * next_n, heads, width]
    weights,  # fp32 [requests * next_n, heads]
    keys,  # bf16 [requests, capacity, width]
    lengths,  # int64 [requests]
    scores,  # fp32 [requests * next_n, capacity]
    capacity,
    next_n: tl.constexpr,
    heads: tl.constexpr,
    width: tl.constexpr,
    block: tl.constexpr,
):
    request = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * block + tl.arange(0, block)
    lane = tl.arange(0, width)
    head = tl.arange(0, heads)
    length = tl.load(lengths + request)
    place = (request * capacity + column[:, None]) * width + lane[None, :]
    key = tl.load(keys + place, mask=(column < length)[:, None], other=0.0)
    for j in tl.static_range(next_n):
        row = request * next_n + j
        query = tl.load(queries + (row * heads + head[:, None]) * width + lane[None, :])
        weight = tl.load(weights + row * heads + head)
        dots = tl.dot(key, tl.trans(query))
        score = tl.sum(tl.maximum(dots, 0.0) * weight[None, :], axis=1)
        score = tl.where(column < length - next_n + j + 1, score, float("-inf"))
        tl.store(scores + row * capacity + column, score, mask=column < capacity)


def score_into(
    scores: Tensor, queries: Tensor, weights: Tensor, keys: Tensor, lengths: Tensor
) -> None:
    requests, capacity, width = keys.shape
    rows, heads, _ = queries.shape
    grid = (triton.cdiv(capacity, _BLOCK), requests)
    with torch.cuda.device(scores.device):
        _score_kernel[grid](
            queries,
            weights,
            keys,
            lengths,
            scores,
            capacity,
            next_n=rows // requests,
            heads=heads,
            width=width,
            block=_BLOCK,
            num_warps=4,
        )
