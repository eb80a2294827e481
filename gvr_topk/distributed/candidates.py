# SPDX-License-Identifier: Apache-2.0
"""Method "candidates": every rank sends its own Top-K, and all merge the sorted lists.

One all-gather of 8 * K bytes per row and rank between two launches. Exact because a winner of the
whole row is among the K best of its own shard.
"""

from __future__ import annotations

import torch

from ..ops import TopKResult
from .collectives import Communicator
from .winners import Local

__all__ = ["merge", "own_part"]


def merge(local: Local, comm: Communicator) -> TopKResult:
    """The whole answer on every rank, best first."""
    gathered = comm.all_gather(local.message())
    return TopKResult(*torch.ops.gvr.merge_winners(gathered, local.values.dtype))


def own_part(local: Local, comm: Communicator) -> TopKResult:
    """This rank's own winners: local indices and values, then -1 and -inf."""
    gathered = comm.all_gather(local.message())
    own = torch.ops.gvr.own_winners(gathered, local.values, local.indices, comm.rank)
    return TopKResult(*own)
