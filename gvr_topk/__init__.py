# SPDX-License-Identifier: Apache-2.0
"""Exact, deterministic Guess-Verify-Refine Top-K for sparse-attention decoding.

    >>> import torch, gvr_topk
    >>> scores = torch.randn(4, 65536)
    >>> values, indices = gvr_topk.topk(scores, 2048)
    >>> values, indices = gvr_topk.topk(scores + 0.1, 2048, hint=indices)

Stateful decoding: `TopKCache`. Page tables and ragged layouts: `topk_kv`. Telemetry: `explain`.
Problems: `python -m gvr_topk env`.
"""

from typing import TYPE_CHECKING

from ._version import __version__

__all__ = [
    "Explanation",
    "KvTopK",
    "Stats",
    "TopKCache",
    "TopKDifference",
    "TopKResult",
    "__version__",
    "explain",
    "topk",
    "topk_indices",
    "topk_kv",
]

if TYPE_CHECKING:
    from .cache import TopKCache
    from .ops import TopKResult, explain, topk, topk_indices
    from .serving import KvTopK, TopKDifference, topk_kv
    from .stats import Explanation, Stats
else:
    try:
        from ._extension import load

        load()
        from .cache import TopKCache
        from .ops import TopKResult, explain, topk, topk_indices
        from .serving import KvTopK, TopKDifference, topk_kv
        from .stats import Explanation, Stats
    except ImportError as error:
        # Kept for the first use, so that `python -m gvr_topk env` can explain a broken build.
        _reason = str(error)

        def __getattr__(name: str) -> object:
            if name in __all__:
                raise ImportError(f"{_reason}\nDetails: python -m gvr_topk env")
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
