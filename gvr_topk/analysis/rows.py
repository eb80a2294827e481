# SPDX-License-Identifier: Apache-2.0
"""What single rows look like: moments, zeros, duplicates, and ties at the K-th place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._frames import SEQUENCE, Counts, Source, about, counts, each_row, frame, tails

if TYPE_CHECKING:
    import pandas

_MOMENTS = ("mean", "deviation", "skewness", "kurtosis", "zeros", "repeated")
_TIES = ("ties_fp32", "ties_bf16", "ties_fp16")


def row_statistics(source: Source, n: Counts | None = None) -> pandas.DataFrame:
    """One line per row and length: moments, share of zeros and of values that occur repeatedly.

    kurtosis is the excess over a normal distribution's; zeros and repeated are shares of n. Rows
    with NaN or infinities have moments that say so (NaN). Cost: a sort of each row.
    """
    records = []
    for row in each_row(source):
        for length, part in tails(row, n):
            records.append({**about(row), "n": length, **_moments(part.scores)})
    return frame(records, (*SEQUENCE, "n", *_MOMENTS))


def _moments(given: Tensor) -> dict[str, float]:
    scores = given.double()
    deviation = scores.std(correction=0)
    # A constant row has no shape; 0 / 0 says that as NaN.
    standard = (scores - scores.mean()) / deviation
    _, times = given.float().unique(return_counts=True)
    return {
        "mean": scores.mean().item(),
        "deviation": deviation.item(),
        "skewness": standard.pow(3).mean().item(),
        "kurtosis": standard.pow(4).mean().item() - 3,
        "zeros": (given == 0).float().mean().item(),
        "repeated": times[times > 1].sum().item() / len(given),
    }


def boundary_ties(
    source: Source, k: Counts = (512, 2048), n: Counts | None = None
) -> pandas.DataFrame:
    """How many scores equal the K-th, as the row is and rounded to bf16 and fp16.

    1 means no tie. With more, which of them are winners is for the tie rule to say (here: lowest
    index), and an answer without a rule depends on the kernel. Lines: one per row, n and k <= n.
    """
    records = []
    for row in each_row(source):
        for length, part in tails(row, n):
            for winners in counts("k", k):
                if winners <= length:
                    ties = {name: _ties(part.scores, winners, name) for name in _TIES}
                    records.append({**about(row), "n": length, "k": winners, **ties})
    return frame(records, (*SEQUENCE, "n", "k", *_TIES))


def _ties(scores: Tensor, k: int, name: str) -> int:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    rounded = scores.to(dtype[name.removeprefix("ties_")])
    return int((rounded == rounded.topk(k).values[-1]).sum())
