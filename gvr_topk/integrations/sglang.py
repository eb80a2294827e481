# SPDX-License-Identifier: Apache-2.0
"""sgl-kernel's Top-K calls of SGLang's sparse attention, answered by gvr_topk.

Argument names and order are those of `sgl_kernel/top_k.py`. As there row i of the scores is valid
in [row_starts[i], row_starts[i] + lengths[i]), selected positions count from row_starts[i], results
are int32 [rows, topk] with -1 behind the last valid one, in no particular order.

Unlike there any topk and fp32, bf16 or fp16 are served, on every device, and ties go to the lowest
index. `hint` is an argument more: int32 [rows, h], the positions that `fast_topk_v2` gave for the
same requests a step before (not what a transform made of them). Errors are those of `gvr_topk.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._shared import (
    check_counts,
    check_matrix,
    check_page_table,
    plus_offsets,
    select,
    through_page_table,
)

__all__ = ["fast_topk_transform_fused", "fast_topk_transform_ragged_fused", "fast_topk_v2"]


def fast_topk_v2(
    score: Tensor,
    lengths: Tensor,
    topk: int,
    row_starts: Tensor | None = None,
    *,
    hint: Tensor | None = None,
) -> Tensor:
    """The best `topk` positions of every row of score [rows, columns]."""
    check_matrix("score", score)
    check_counts("lengths", lengths, score.shape[0], "one per row", score)
    if row_starts is None:
        return select(score, topk, lengths, hint=hint)
    check_counts("row_starts", row_starts, score.shape[0], "one per row", score)
    return select(score, topk, row_starts + lengths, row_starts, hint=hint)


def fast_topk_transform_fused(
    score: Tensor,
    lengths: Tensor,
    page_table_size_1: Tensor,
    cu_seqlens_q: Tensor,
    topk: int,
    row_starts: Tensor | None = None,
    *,
    hint: Tensor | None = None,
) -> Tensor:
    """page_table_size_1[request, position] of the selected positions.

    page_table_size_1  int32 [requests, capacity], pages of one token
    cu_seqlens_q       int32 [requests + 1]: rows cu_seqlens_q[r] .. cu_seqlens_q[r + 1] - 1 belong
                       to request r. Not looked at in decode: no row_starts, one row per request.
    """
    indices = fast_topk_v2(score, lengths, topk, row_starts, hint=hint)
    rows = score.shape[0]
    decode = row_starts is None and cu_seqlens_q.shape[0] - 1 == rows
    check_page_table("page_table_size_1", page_table_size_1, rows if decode else None, score)
    if decode:
        return through_page_table(indices, page_table_size_1)
    check_counts(
        "cu_seqlens_q", cu_seqlens_q, page_table_size_1.shape[0] + 1, "requests + 1", score
    )
    row = torch.arange(rows, device=score.device, dtype=cu_seqlens_q.dtype)
    request = torch.searchsorted(cu_seqlens_q[1:].contiguous(), row, right=True)
    return through_page_table(indices, page_table_size_1, row_to_request=request)


def fast_topk_transform_ragged_fused(
    score: Tensor,
    lengths: Tensor,
    topk_indices_offset: Tensor,
    topk: int,
    row_starts: Tensor | None = None,
    *,
    hint: Tensor | None = None,
) -> Tensor:
    """Selected positions plus topk_indices_offset[row], int32 [rows]."""
    indices = fast_topk_v2(score, lengths, topk, row_starts, hint=hint)
    check_counts("topk_indices_offset", topk_indices_offset, score.shape[0], "one per row", score)
    return plus_offsets(indices, topk_indices_offset)
