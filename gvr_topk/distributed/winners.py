# SPDX-License-Identifier: Apache-2.0
"""What the methods exchange: a rank's own best, how many of them win, and the whole answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..ops import TopKResult
from . import operators  # noqa: F401  fakes of what is called below
from .collectives import Communicator
from .layout import Placement

__all__ = ["Local", "Winners", "gather_answer", "own_prefix"]


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

    def message(self) -> Tensor:
        """int32 [rows, 2, k]: global indices and bits of the scores."""
        where = self.placement.formula()
        return torch.ops.gvr.pack_winners(self.values, self.indices, **where)

    def keys(self, ordered: bool = False) -> Tensor:
        """int64 [rows, k], ascending; `ordered`: with local indices, which costs no gather."""
        where = {} if ordered else self.placement.formula()
        return torch.ops.gvr.winner_keys(self.values, self.indices, **where)


@dataclass(frozen=True)
class Winners:
    """How long the winning prefix is. own: int64 [rows]. by_rank: int64 [world, rows] if known."""

    own: Tensor
    by_rank: Tensor | None = None


def own_prefix(local: Local, winners: Winners) -> TopKResult:
    """This rank's own winners: local indices and values, then -1 and -inf."""
    return TopKResult(*torch.ops.gvr.keep_winners(local.values, local.indices, winners.own))


def gather_answer(local: Local, winners: Winners, comm: Communicator) -> TopKResult:
    """The whole answer on every rank, best first.

    Each rank writes its winners to their places, and all add up: one all-reduce of 2 * k integers
    per row, whatever the number of ranks.
    """
    by_rank = winners.by_rank
    if by_rank is None:
        by_rank = comm.all_gather(winners.own)
    placed = torch.ops.gvr.place_winners(
        local.values, local.indices, by_rank, comm.rank, **local.placement.formula()
    )
    packed = comm.all_reduce(placed)
    return TopKResult(*torch.ops.gvr.order_winners(packed, by_rank, local.values.dtype))
