# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's variable-length Top-K calls, answered by gvr_topk.

Argument names, order and defaults are those of `flashinfer.topk`. Results are int32 [rows, k] with
-1 behind the last valid index, in no particular order.

Unlike there any k is served, on every device; the answer is always deterministic and safe in CUDA
graphs, so `deterministic`, `dsa_graph_safe`, `backend`, `load_balance`, `workspace` and
`approx_ties` are accepted and change nothing. Of equal scores at the K-th place the lowest indices
are taken, with tie_break=2 the highest. Errors are those of `gvr_topk.ops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gvr_topk.ops import check_int, topk, topk_indices

from ._shared import (
    check_counts,
    check_matrix,
    check_out,
    check_page_size,
    check_page_table,
    plus_offsets,
    select,
    through_page_table,
)

__all__ = ["top_k_page_table_transform", "top_k_ragged_transform", "top_k_varlen"]

_PREFER_LARGER_INDICES = 2


def top_k_varlen(
    logits: Tensor,
    seq_lens: Tensor,
    top_k: int,
    pre_idx: Tensor | None = None,
    compress_ratio: int = 1,
    next_n: int = 1,
    return_values: bool = False,
    out_indices: Tensor | None = None,
    out_values: Tensor | None = None,
    backend: str = "auto",
    load_balance: bool = True,
    workspace: dict[str, Tensor] | None = None,
    approx_ties: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(indices, values or None) of logits [rows, columns].

    seq_lens  int32 [rows / next_n]; row j of a request of length L ends at
              (L - next_n + j + 1) // compress_ratio
    pre_idx   int32 [rows / next_n, top_k], the request's previous answer as a hint, in any order,
              taken as it is (FlashInfer moves it by one position)
    """
    check_matrix("logits", logits)
    window: dict[str, Any] = {
        "hint": pre_idx,
        "lengths": seq_lens,
        "next_n": next_n,
        "compress_ratio": compress_ratio,
    }
    if not return_values:
        return topk_indices(logits, top_k, out=out_indices, **window), None
    check_int("top_k", top_k)
    rows = logits.shape[0]
    if out_indices is None and out_values is None:
        values, indices = topk(logits, top_k, **window)
        return indices, values
    if out_indices is None:
        out_indices = logits.new_empty((rows, top_k), dtype=torch.int32)
    if out_values is None:
        out_values = logits.new_empty((rows, top_k))
    topk(logits, top_k, out=(out_values, out_indices), **window)
    return out_indices, out_values


def top_k_page_table_transform(
    input: Tensor,
    src_page_table: Tensor,
    lengths: Tensor,
    k: int,
    row_to_batch: Tensor | None = None,
    deterministic: bool = False,
    tie_break: int = 0,
    dsa_graph_safe: bool = False,
    row_starts: Tensor | None = None,
    page_table_row_starts: Tensor | None = None,
    *,
    page_size: int = 1,
    out: Tensor | None = None,
    out_raw_indices: Tensor | None = None,
) -> Tensor:
    """Physical positions of the best k of each row in [row_starts, row_starts + lengths).

    A selected position i, counted from row_starts, becomes src_page_table[request,
    page_table_row_starts + i // page_size] * page_size + i % page_size, where the request is
    row_to_batch[row] or the row itself, and page_table_row_starts is row_starts by default.
    `out` receives the result, `out_raw_indices` the positions.
    """
    check_page_size(page_size)
    if page_size > 1 and row_starts is not None and page_table_row_starts is None:
        raise ValueError(
            f"page_table_row_starts: got None with page_size {page_size} and row_starts, "
            "need the first page of every row"
        )
    rows = _check(input, lengths, row_starts)
    if row_to_batch is not None:
        check_counts("row_to_batch", row_to_batch, rows, "one per row", input)
    check_page_table(
        "src_page_table", src_page_table, rows if row_to_batch is None else None, input
    )
    first = row_starts if page_table_row_starts is None else page_table_row_starts
    if first is not None:
        check_counts("page_table_row_starts", first, rows, "one per row", input)
    if out is not None:
        check_out("out", out, rows, k)
    raw = _select(input, lengths, k, tie_break, row_starts, out_raw_indices)
    physical = through_page_table(
        raw, src_page_table, page_size=page_size, row_to_request=row_to_batch, first_page=first
    )
    return physical if out is None else out.copy_(physical)


def top_k_ragged_transform(
    input: Tensor,
    offsets: Tensor,
    lengths: Tensor,
    k: int,
    deterministic: bool = False,
    tie_break: int = 0,
    dsa_graph_safe: bool = False,
    row_starts: Tensor | None = None,
) -> Tensor:
    """Positions of the best k of each row in [row_starts, row_starts + lengths), counted from
    row_starts, plus offsets[row].
    """
    rows = _check(input, lengths, row_starts)
    check_counts("offsets", offsets, rows, "one per row", input)
    return plus_offsets(_select(input, lengths, k, tie_break, row_starts, None), offsets)


def _check(input: Tensor, lengths: Tensor, row_starts: Tensor | None) -> int:
    check_matrix("input", input)
    rows = input.shape[0]
    check_counts("lengths", lengths, rows, "one per row", input)
    if row_starts is not None:
        check_counts("row_starts", row_starts, rows, "one per row", input)
    return rows


def _select(
    input: Tensor,
    lengths: Tensor,
    k: int,
    tie_break: int,
    row_starts: Tensor | None,
    out: Tensor | None,
) -> Tensor:
    check_int("tie_break", tie_break)
    if tie_break not in (0, 1, _PREFER_LARGER_INDICES):
        raise ValueError(f"tie_break: got {tie_break}, need 0, 1 or 2")
    ends = lengths if row_starts is None else row_starts + lengths
    last = tie_break == _PREFER_LARGER_INDICES
    return select(input, k, ends, row_starts, prefer_last=last, out=out)
