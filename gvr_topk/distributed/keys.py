# SPDX-License-Identifier: Apache-2.0
"""The total order of winners as plain int64 keys, ascending from the best.

`torch.ops.gvr.winner_keys` makes them: NaN first, then +inf .. -inf, then the lower index. -0.0 and
+0.0, and all NaN, differ by index alone. Indices lie below 2^31 - 1, so that no score's key is
PADDING.
"""

from __future__ import annotations

import torch

__all__ = ["INDEX_BITS", "PADDING", "score_bits"]

INDEX_BITS = 31
PADDING = 2**63 - 1  # the key of an index -1: behind every score


def score_bits(dtype: torch.dtype) -> int:
    """How many high bits of a key, above its INDEX_BITS, tell two scores of this dtype apart."""
    return 32 if dtype == torch.float32 else 16
