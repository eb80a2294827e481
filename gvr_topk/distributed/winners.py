# SPDX-License-Identifier: Apache-2.0
"""What the methods exchange: a rank's own best, how many of them win, and the whole answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops  # the fakes of torch.ops.gvr
from .collectives import Communicator
from .keys import from_bits, sort_keys, to_bits
from .layout import INT32_MAX, Placement

__all__ = [
    "Local",
    "Winners",
    "gather_answer",
    "in_index_order",
    "own_prefix",
    "rearranged",
    "select",
]


class Local:
    """The Top-K of this rank's own shard, best first: every method starts from it.

    The winners of the whole row on this rank are a prefix of each row, since the order of a shard
    is that of the whole row and K others of the same shard are better than what comes later.
    """

    def __init__(self, values: Tensor, indices: Tensor, placement: Placement) -> None:
        self.values, self.indices, self.placement = values, indices, placement
        self.rows, self.k = values.shape

    def global_indices(self) -> Tensor:
        return self.placement.to_global(self.indices)

    def keys(self) -> Tensor:
        """int64 [rows, k], ascending.

        Where ranks follow each other, only their order decides between equal scores of two ranks
        and no method looks at the index part; elsewhere it holds the global index.
        """
        ordered = self.placement.rank_order is not None
        return sort_keys(self.values, self.indices if ordered else self.global_indices())


@dataclass(frozen=True)
class Winners:
    """How long the winning prefix is. own: int [rows]. by_rank: int [world, rows], where known."""

    own: Tensor
    by_rank: Tensor | None = None


def own_prefix(local: Local, winners: Winners) -> ops.TopKResult:
    """This rank's own winners: local indices and values, then -1 and -inf."""
    place = torch.arange(local.k, device=local.indices.device)
    won = place < winners.own[:, None]
    values = from_bits(to_bits(local.values), local.values.dtype)
    return ops.TopKResult(values.masked_fill(~won, -torch.inf), torch.where(won, local.indices, -1))


def gather_answer(
    local: Local, winners: Winners, comm: Communicator, sorted: bool
) -> ops.TopKResult:
    """The whole answer on every rank: each writes its winners to their places, then all add up.

    One all-reduce of 2 * k integers per row, whatever the number of ranks.
    """
    by_rank = winners.by_rank
    if by_rank is None:
        by_rank = comm.all_gather(winners.own)
    order = local.placement.rank_order or tuple(range(comm.world))
    first = rearranged(by_rank, order)[: order.index(comm.rank)].sum(0)[:, None]
    slot = torch.arange(local.k, device=first.device) - first
    mine = ((slot >= 0) & (slot < winners.own[:, None]))[:, None]
    # 0 is what the others add, so an index is stored one higher: below 2^31 for every index.
    packed = torch.stack((local.global_indices() + 1, to_bits(local.values)), 1)
    source = slot.clamp(0, local.k - 1)[:, None].expand(-1, 2, -1)
    packed = comm.all_reduce(torch.where(mine, packed.gather(2, source), 0))
    indices, values = packed[:, 0] - 1, from_bits(packed[:, 1], local.values.dtype)
    if not sorted:
        return ops.TopKResult(values.masked_fill(indices < 0, -torch.inf), indices)
    count = by_rank.sum(0)
    if local.placement.rank_order is None:
        indices, raw = in_index_order(indices, packed[:, 1])
        values = from_bits(raw, local.values.dtype)
    return select(values, indices, count, local.k, sorted=True)


def rearranged(by_rank: Tensor, order: Sequence[int]) -> Tensor:
    """[world, ...] in another order of ranks.

    Slices, since indexing with a list would copy it to the device, which no CUDA graph may do.
    """
    if tuple(order) == tuple(range(len(order))):
        return by_rank
    return torch.stack([by_rank[rank] for rank in order])


def in_index_order(indices: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Both, rearranged to ascending global indices with the padding at the end."""
    ascending, order = torch.where(indices < 0, INT32_MAX, indices).sort(dim=-1)
    return torch.where(ascending == INT32_MAX, -1, ascending), bits.gather(-1, order)


def select(
    values: Tensor, indices: Tensor, count: Tensor, k: int, *, sorted: bool
) -> ops.TopKResult:
    """The k best of candidates that stand in global index order wherever scores are equal.

    The lowest position wins a tie in the kernel, so here the lowest global index does. `count` of
    each row's candidates are real; the rest may hold anything.
    """
    best, position = torch.ops.gvr.topk(values, k, lengths=count, sorted=sorted)
    chosen = indices.gather(-1, position.clamp(min=0).to(torch.int64))
    return ops.TopKResult(best, torch.where(position < 0, -1, chosen))
