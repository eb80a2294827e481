# SPDX-License-Identifier: Apache-2.0
"""The answer of an engine's signature in plain Python, and rows that are easy to get wrong."""

from __future__ import annotations

import math

import torch
from generators import make_rows
from torch import Tensor

SENTINEL = -7
KINDS = ["normal", "quantised_33", "relu_99_percent_zero", "some_nan", "constant"]


def best(row: list[float], begin: int, end: int, k: int, *, last: bool = False) -> list[int]:
    """Positions of the k best scores in [begin, end), counted from begin, in ascending order.

    `last`: of equal scores the highest positions.
    """
    begin = max(0, begin)
    window = row[begin : max(begin, end)]

    def rank(i: int) -> tuple[float, float, int]:
        score = window[i]
        position = -i if last else i
        return (0, 0, position) if math.isnan(score) else (1, -score, position)

    return sorted(sorted(range(len(window)), key=rank)[:k])


def scores_with_garbage(
    rows: int, n: int, k: int, ends: list[int], device: str, *, starts: list[int] | None = None
) -> Tensor:
    """[rows, n] of several kinds; outside each window NaN and scores above all others."""
    kinds = [make_rows(KINDS[i % len(KINDS)], 1, n, k, seed=i)[0] for i in range(rows)]
    scores = torch.stack(kinds)
    garbage = torch.tensor([torch.nan, 3e38, torch.inf])
    for row in range(rows):
        begin, end = (starts[row] if starts else 0), min(n, max(0, ends[row]))
        scores[row, end:] = garbage[torch.arange(n - end) % 3]
        scores[row, :begin] = garbage[torch.arange(min(n, begin)) % 3]
    return scores.to(device)


def guarded(rows: int, k: int, device: str, *, width: int = 0) -> tuple[Tensor, Tensor]:
    """(buffer, its part [rows, k] to write into): sentinels all around, rows wider than k."""
    buffer = torch.full((rows + 2, k + width), SENTINEL, dtype=torch.int32, device=device)
    return buffer, buffer[1:-1, :k]


def check_guards(buffer: Tensor, rows: int, k: int) -> None:
    outside = buffer.clone()
    outside[1 : 1 + rows, :k] = SENTINEL
    assert bool((outside == SENTINEL).all()), "written outside the output"


def check_rows(given: Tensor, expected: list[list[int]], k: int) -> None:
    """Every row holds its expected numbers in some order, then -1 only."""
    assert given.dtype == torch.int32 and given.shape == (len(expected), k)
    for row, (got, need) in enumerate(zip(given.tolist(), expected, strict=True)):
        count = len(need)
        assert sorted(got[:count]) == sorted(need), f"row {row}: {got} instead of {need}"
        assert got[count:] == [-1] * (k - count), f"row {row}: the tail is {got[count:]}"
