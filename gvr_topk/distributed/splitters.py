# SPDX-License-Identifier: Apache-2.0
"""Method "splitters": two small gathers find the K-th key of all ranks, ties included.

1. Every rank sends each m-th key of its own sorted Top-K. Among the W * K / m samples in order, the
   one at rank q has at least m * q keys up to it, and at most m * q + W * (m - 1). So
     sure    the sample at rank (K - W (m - 1)) / m, rounded down: all keys up to it are winners;
     enough  the sample at rank K / m, rounded up: no key behind it is a winner.
2. Every rank sends its keys behind `sure` up to `enough`. These hold e samples, the difference of
   their ranks. The rank that has `enough` sends at most e * m keys; any other has at most e - 1
   samples there, and with the m - 1 keys around them at most e * m - 1. The K-th key of all is
   among them, or `sure` itself, and each rank finds it by itself.

Keys hold the global index, so that all of them differ and ties need no step of their own. Padding
(short shards) counts as keys behind all others, which are no winners.

Messages of K / m and about (W + 1) m keys are least in all at m = sqrt(K / (W + 1)). Sampling for
selection in sorted sequences is an old idea; see e.g. Frederickson and Johnson, The Complexity of
Selection and Ranking in X + Y and Matrices with Sorted Columns (1982).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from .collectives import Communicator
from .keys import PADDING
from .winners import Local, Winners

__all__ = ["Plan", "count_winners"]


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from k and the number of ranks alone."""

    stride: int  # m
    samples: int  # per rank
    sure: int  # rank of the sample up to which all win, from 1; 0: there is none
    enough: int  # rank of the sample behind which none wins, from 1
    band: int  # most keys of one rank that lie between the two

    @classmethod
    def make(cls, k: int, world: int) -> Plan:
        stride = max(1, isqrt(k // (world + 1)))
        sure = max(0, (k - world * (stride - 1)) // stride)
        enough = -(-k // stride)
        band = max(1, min(k, (enough - sure) * stride))
        return cls(stride, k // stride, sure, enough, band)


def count_winners(local: Local, comm: Communicator) -> Winners:
    """Length of every rank's winning prefix."""
    plan = Plan.make(local.k, comm.world)
    keys = local.keys()
    sure, enough = _brackets(keys, comm, plan)
    # A key of padding wins nowhere, also where there are so few scores that a bracket is padding.
    real = keys < PADDING
    first = ((keys <= sure) & real).sum(-1, keepdim=True)
    place = first + torch.arange(plan.band, device=keys.device)
    band = keys.gather(1, place.clamp(max=local.k - 1))
    band = torch.where((place < local.k) & (band <= enough), band, PADDING)
    gathered = comm.all_gather(torch.cat((first, band), 1))
    firsts, bands = gathered[:, :, :1], gathered[:, :, 1:]
    missing = local.k - firsts.sum(0)
    ascending = bands.permute(1, 0, 2).flatten(1).sort(dim=-1).values
    # Beyond the band only where there are fewer than K scores: then all of the band win.
    last = ascending.gather(1, (missing - 1).clamp(0, ascending.shape[1] - 1))
    last = torch.where(missing > 0, last, -1)  # none of the band where the sure ones are K
    by_rank = firsts[..., 0] + ((bands <= last) & (bands < PADDING)).sum(-1)
    return Winners(by_rank[comm.rank], by_rank)


def _brackets(keys: Tensor, comm: Communicator, plan: Plan) -> tuple[Tensor, Tensor]:
    """The samples `sure` (-1 where there is none) and `enough`, int64 [rows, 1]."""
    samples = keys[:, plan.stride - 1 :: plan.stride].contiguous()
    gathered = comm.all_gather(samples).permute(1, 0, 2).flatten(1)
    ascending = gathered.sort(dim=-1).values
    enough = ascending[:, plan.enough - 1 : plan.enough]
    if plan.sure == 0:
        return torch.full_like(enough, -1), enough
    return ascending[:, plan.sure - 1 : plan.sure], enough
