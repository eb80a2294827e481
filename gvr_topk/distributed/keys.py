# SPDX-License-Identifier: Apache-2.0
"""The total order of winners as plain int64 keys.

csrc/common/order.h defines the order; this is the same order for tensors that cross ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["INDEX_BITS", "PADDING", "score_bits", "sort_keys"]

INDEX_BITS = 31
PADDING = 2**63 - 1  # the key of an index -1: behind every score

# dtype -> (integer of the same width, bits of +inf)
_FORMATS = {
    torch.float32: (torch.int32, 0x7F800000),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
}


def score_bits(dtype: torch.dtype) -> int:
    """How many high bits of a key, above its INDEX_BITS, tell two scores of this dtype apart."""
    return 32 if dtype == torch.float32 else 16


def sort_keys(values: Tensor, indices: Tensor) -> Tensor:
    """int64 keys, ascending from the best: NaN first, then +inf .. -inf, then the lower index.

    -0.0 and +0.0, and all NaN, differ by index alone. An index -1 gets PADDING. Indices lie below
    2^31 - 1, so that no score's key is PADDING.
    """
    integer, infinity = _FORMATS[values.dtype]
    raw = values.view(integer).to(torch.int64)
    magnitude = raw & torch.iinfo(integer).max
    level = torch.where(raw < 0, -magnitude, magnitude)
    level = torch.where(magnitude > infinity, infinity + 1, level)
    keys = ((infinity + 1 - level) << INDEX_BITS) + indices
    return torch.where(indices < 0, PADDING, keys)
