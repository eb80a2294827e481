# SPDX-License-Identifier: Apache-2.0
"""The Top-K calls of SGLang's sparse attention, answered by gvr_topk.

Argument names and order are those of `sgl_kernel/top_k.py` and, for the `_v2` transforms, of
`sglang/kernels/ops/attention/dsv4/topk.py`. As there row i of the scores is valid in
[row_starts[i], row_starts[i] + lengths[i]), selected positions count from row_starts[i], results
are int32 [rows, topk] with -1 behind the last valid one, in no particular order.

Unlike there any topk, any page size that is a power of two and fp32, bf16 or fp16 are served, on
every device; ties go to the lowest index, a negative length empties its row, and the scores are
never written. `hint` is an argument more: int32 [rows, h], the positions that `fast_topk_v2` gave
for the same requests a step before (not what a transform made of them). Errors are those of
`gvr_topk.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._shared import (
    check_counts,
    check_matrix,
    check_out,
    check_page_size,
    check_page_table,
    select,
    select_places,
)

__all__ = [
    "fast_topk_transform_fused",
    "fast_topk_transform_ragged_fused",
    "fast_topk_v2",
    "topk_transform_512_v2",
    "topk_transform_paged_v2",
    "topk_transform_ragged_v2",
]


def fast_topk_v2(
    score: Tensor,
    lengths: Tensor,
    topk: int,
    row_starts: Tensor | None = None,
    *,
    hint: Tensor | None = None,
) -> Tensor:
    """The best `topk` positions of every row of score [rows, columns]."""
    return select(score, topk, *_window(score, lengths, row_starts), hint=hint)


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
    window = _window(score, lengths, row_starts)
    rows, request = score.shape[0], None
    decode = row_starts is None and cu_seqlens_q.shape[0] - 1 == rows
    check_page_table("page_table_size_1", page_table_size_1, rows if decode else None, score)
    if not decode:
        size = page_table_size_1.shape[0] + 1
        check_counts("cu_seqlens_q", cu_seqlens_q, size, "requests + 1", score)
        row = torch.arange(rows, device=score.device, dtype=cu_seqlens_q.dtype)
        request = torch.searchsorted(cu_seqlens_q[1:].contiguous(), row, right=True)
    return select_places(
        score, topk, *window, page_table=page_table_size_1, row_to_request=request, hint=hint
    )


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
    window = _window(score, lengths, row_starts)
    check_counts("topk_indices_offset", topk_indices_offset, score.shape[0], "one per row", score)
    return select_places(score, topk, *window, offsets=topk_indices_offset, hint=hint)


def topk_transform_paged_v2(
    scores: Tensor,
    seq_lens: Tensor,
    page_tables: Tensor | None,
    out_page_indices: Tensor,
    page_size: int,
    metadata: Tensor | None,
    out_raw_indices: Tensor | None = None,
    *,
    hint: Tensor | None = None,
) -> None:
    """Writes page_tables[row, position // page_size] * page_size + position % page_size of the
    selected positions into out_page_indices, int32 [rows, topk], and the positions into
    out_raw_indices. Without page tables the positions go into out_page_indices.

    metadata  the plan of `plan_topk_v2`, which is not needed
    """
    window = _window(scores, seq_lens, None, "scores", "seq_lens")
    check_page_size(page_size)
    check_matrix("out_page_indices", out_page_indices)
    rows, topk = scores.shape[0], out_page_indices.shape[1]
    check_out("out_page_indices", out_page_indices, rows, topk)
    if out_raw_indices is not None:
        check_out("out_raw_indices", out_raw_indices, rows, topk)
    if page_tables is None:
        select(scores, topk, *window, hint=hint, out=out_page_indices)
        if out_raw_indices is not None:
            out_raw_indices.copy_(out_page_indices)
        return
    check_page_table("page_tables", page_tables, rows, scores)
    select_places(
        scores,
        topk,
        *window,
        page_table=page_tables,
        page_size=page_size,
        hint=hint,
        out=out_page_indices,
        raw=out_raw_indices,
    )


topk_transform_512_v2 = topk_transform_paged_v2  # its earlier name


def topk_transform_ragged_v2(
    scores: Tensor,
    seq_lens: Tensor,
    *,
    out_offsets: Tensor,
    out_indices: Tensor,
    row_starts: Tensor | None = None,
    hint: Tensor | None = None,
) -> None:
    """Writes the selected positions plus out_offsets[row] into out_indices, int32 [rows, topk]."""
    window = _window(scores, seq_lens, row_starts, "scores", "seq_lens")
    check_counts("out_offsets", out_offsets, scores.shape[0], "one per row", scores)
    check_matrix("out_indices", out_indices)
    topk = out_indices.shape[1]
    check_out("out_indices", out_indices, scores.shape[0], topk)
    select_places(scores, topk, *window, offsets=out_offsets, hint=hint, out=out_indices)


def _window(
    scores: Tensor,
    lengths: Tensor,
    row_starts: Tensor | None,
    scores_name: str = "score",
    lengths_name: str = "lengths",
) -> tuple[Tensor, Tensor | None]:
    """(ends, starts) of every row."""
    check_matrix(scores_name, scores)
    rows = scores.shape[0]
    check_counts(lengths_name, lengths, rows, "one per row", scores)
    if row_starts is None:
        return lengths, None
    check_counts("row_starts", row_starts, rows, "one per row", scores)
    return row_starts + lengths, row_starts
