# SPDX-License-Identifier: Apache-2.0
"""Exact Top-K of rows whose keys are sharded over the ranks of a torch.distributed group.

    >>> torch.distributed.init_process_group("nccl")
    >>> shard = full[:, rank * n : (rank + 1) * n]
    >>> values, indices = gvr_topk.distributed.topk(shard, 2048)  # those of `full`, on every rank

What it costs, and how that scales: docs/scaling.md.
"""

from .collectives import count_traffic
from .layout import Interleaved
from .sharded import topk

__all__ = ["Interleaved", "count_traffic", "topk"]
