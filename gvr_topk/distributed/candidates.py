# SPDX-License-Identifier: Apache-2.0
"""Method "candidates": every rank sends its own Top-K, and all select from W * K candidates.

One all-gather of 8 * K bytes per row and rank. Exact because a winner of the whole row is among
the K best of its own shard.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import TopKResult
from .collectives import Communicator
from .keys import from_bits, to_bits
from .winners import Local, Winners, in_index_order, rearranged, select

__all__ = ["count_winners", "merge"]


def gather_candidates(local: Local, comm: Communicator) -> Tensor:
    """int32 [2, rows, world * k]: global indices and bits of the scores, rank after rank."""
    message = torch.stack((local.global_indices(), to_bits(local.values)))
    gathered = comm.all_gather(message)
    gathered = rearranged(gathered, local.placement.rank_order or range(comm.world))
    return gathered.permute(1, 2, 0, 3).reshape(2, local.rows, comm.world * local.k)


def merge(local: Local, comm: Communicator, sorted: bool) -> TopKResult:
    """The whole answer on every rank, by the kernel that selected the candidates."""
    indices, bits = gather_candidates(local, comm)
    real = indices >= 0
    count = real.sum(-1)
    if local.placement.rank_order is None:
        indices, bits = in_index_order(indices, bits)
    else:
        indices, bits = _padding_last(indices, bits, real)
    return select(from_bits(bits, local.values.dtype), indices, count, local.k, sorted=sorted)


def _padding_last(indices: Tensor, bits: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """Closes the gaps that short shards leave: padding must not stand before a real -inf."""
    columns = indices.shape[-1]
    # Padding goes to a spare column, which is cut off again.
    place = torch.where(real, real.cumsum(-1) - 1, columns)
    packed = torch.stack((indices, bits))
    target = packed.new_empty((*packed.shape[:-1], columns + 1))
    target.scatter_(-1, place.expand_as(packed), packed)
    return target[0, :, :columns], target[1, :, :columns]


def count_winners(local: Local, comm: Communicator) -> Winners:
    """Length of this rank's winning prefix, from the candidates of all."""
    answer = merge(local, comm, sorted=False)
    return Winners(local.placement.owns(answer.indices).sum(-1))
