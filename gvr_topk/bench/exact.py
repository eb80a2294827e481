# SPDX-License-Identifier: Apache-2.0
"""Is a timed result exact? Written with torch alone, apart from the code that is measured."""

from __future__ import annotations

import torch
from torch import Tensor

_NAN_KEY = 0x7FFFFFFF
_SIGN = 1 << 31
_NEGATIVE_ZERO = -1  # key of -0.0 where it is told from 0.0
_CHUNK = 1 << 25  # scores ranked at a time: 256 MB of keys


def score_keys(scores: Tensor) -> Tensor:
    """int64 keys in the order of the scores: NaN is largest, the two zeros are one."""
    plain = scores.float() + 0.0
    bits = plain.view(torch.int32)
    keys = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return torch.where(plain.isnan(), _NAN_KEY, keys).long()


def exact_topk(scores: Tensor, k: int) -> Tensor:
    """int32 [rows, k]: the k best by score, then by lowest index, best first."""
    rows, n = scores.shape
    last = torch.arange(n - 1, -1, -1, device=scores.device)  # a lower index ranks higher
    best = torch.empty((rows, k), dtype=torch.int32, device=scores.device)
    step = max(1, _CHUNK // n)
    for begin in range(0, rows, step):
        ranks = (score_keys(scores[begin : begin + step]) << 32) | last
        best[begin : begin + step] = ranks.topk(k, sorted=True).indices
    return best


def overlap(hint: Tensor, expected: Tensor) -> Tensor:
    """Per row: the share of the expected indices that the hint holds."""
    hinted = hint.sort().values
    wanted = expected.contiguous()
    place = torch.searchsorted(hinted, wanted).clamp_(max=hinted.shape[1] - 1)
    return (hinted.gather(1, place) == wanted).float().mean(1)


def same_indices(indices: Tensor, expected: Tensor) -> bool:
    """For results that follow the tie rule: the same set of indices in every row."""
    given = indices.to(expected.dtype)
    return given.shape == expected.shape and bool(
        torch.equal(given.sort().values, expected.sort().values)
    )


def same_values(indices: Tensor, scores: Tensor, expected: Tensor) -> bool:
    """For results that may break ties freely: distinct valid indices of the same scores."""
    given = indices.long().sort().values
    if given.shape != expected.shape or int(given[:, 0].min()) < 0:
        return False
    if int(given[:, -1].max()) >= scores.shape[1] or bool((given.diff() == 0).any()):
        return False
    got = score_keys(scores.gather(1, given)).sort().values
    return bool(torch.equal(got, score_keys(scores.gather(1, expected.long())).sort().values))


def floor_read_everything(written: Tensor, scores: Tensor) -> bool:
    """The floor kernel writes (key of the maximum of a part) xor (position): undo it.

    Its maximum is that of fmaxf, which passes NaN over. It knows two zeros, whose keys are
    neighbours; `score_keys` knows one.
    """
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    positions = torch.arange(written.shape[1], device=written.device, dtype=torch.int32)
    keys = ((written ^ positions).long() & 0xFFFFFFFF) - _SIGN
    keys[keys == _NEGATIVE_ZERO] = 0
    return bool(torch.equal(keys.amax(1), score_keys(scores.amax(1))))
