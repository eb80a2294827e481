# SPDX-License-Identifier: Apache-2.0
"""Method "threshold": the ranks agree on the K-th score digit by digit, and send no scores.

Each round all-reduces how many of the local bests lie before each of 2^d equally spaced keys, and
keeps the digit in which the K-th falls: no traffic depends on K or on the number of ranks. The
rounds are fixed by the dtype alone, so that nothing is read back and a CUDA graph can hold them.

The tie class is shared out by the order of ranks where each shard is one block (one small gather);
otherwise the same rounds go on through the digits of the global index.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .collectives import Communicator
from .keys import INDEX_BITS, PADDING, score_bits
from .winners import Local, Winners

__all__ = ["count_winners", "key_bits"]


def key_bits(dtype: torch.dtype, ordered: bool) -> int:
    """Bits that the rounds have to settle; `ordered`: each shard is one block."""
    return score_bits(dtype) + (0 if ordered else INDEX_BITS)


def count_winners(local: Local, comm: Communicator, digits: Sequence[int]) -> Winners:
    """Length of each rank's winning prefix. `digits` sum up to `key_bits`."""
    order = local.placement.rank_order
    # Where ranks follow each other, only their order decides between equal scores of two ranks.
    keys = local.keys(ordered=order is not None)
    total = score_bits(local.values.dtype) + INDEX_BITS
    bound = _agree(keys, comm, digits, total)[:, None]
    if order is None:
        # All keys differ, so the bound is the K-th key itself, or all ones where there is no K-th.
        return Winners(((keys <= bound) & (keys < PADDING)).sum(-1))
    # Indices end below 2^31 - 1: this counts the whole class of `bound`, and never the padding.
    last = bound + (2**INDEX_BITS - 1)
    edges = torch.cat((bound, last), 1)
    before, upto = torch.searchsorted(keys, edges).unbind(1)
    counts = comm.all_gather(torch.stack((before, upto - before)))
    better, ties = rearranged(counts, order).unbind(1)
    # Ties go to the ranks in index order until the K places are taken.
    left = local.k - better.sum(0) - (ties.cumsum(0) - ties)
    taken = better + torch.minimum(left.clamp(min=0), ties)
    by_rank = rearranged(taken, [order.index(rank) for rank in range(comm.world)])
    return Winners(by_rank[comm.rank], by_rank)


def _agree(keys: Tensor, comm: Communicator, digits: Sequence[int], total: int) -> Tensor:
    """int64 [rows]: the K-th smallest key of all ranks, cut to its leading digits.

    With fewer than K keys in all, every digit comes out as its largest value.
    """
    bound: Tensor | None = None
    before: Tensor | None = None
    shift = total
    for bits in digits:
        last, shift = shift, shift - bits
        bound, counts = torch.ops.gvr.count_digits(keys, bound, before, last, shift, bits)
        before = comm.all_reduce(counts)
    return torch.ops.gvr.count_digits(keys, bound, before, shift, shift, 0)[0]


def rearranged(by_rank: Tensor, order: Sequence[int]) -> Tensor:
    """[world, ...] in another order of ranks.

    Slices, since indexing with a list would copy it to the device, which no CUDA graph may do.
    """
    if tuple(order) == tuple(range(len(order))):
        return by_rank
    return torch.stack([by_rank[rank] for rank in order])
