# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's Top-K calls, answered by gvr_topk.

Argument names, order and defaults are those of `flashinfer.topk` and `flashinfer.topk_varlen`.
Results are int32 [rows, k] (of `top_k` int64) with -1 behind the last valid index, in no particular
order.

Unlike there any k is served, on every device; the answer is always deterministic and safe in CUDA
graphs, so `deterministic`, `dsa_graph_safe`, `backend`, `load_balance`, `workspace`, `max_seq_len`
and `approx_ties` are accepted and change nothing. Of equal scores at the K-th place the lowest
indices are taken, with tie_break=2 the highest. Errors are those of `gvr_topk.ops`.
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
    select_places,
)

__all__ = ["top_k", "top_k_page_table_transform", "top_k_ragged_transform", "top_k_varlen"]

_PREFER_LARGER_INDICES = 2


def top_k(
    input: Tensor,
    k: int,
    sorted: bool = False,
    deterministic: bool = False,
    tie_break: int = 0,
    dsa_graph_safe: bool = False,
) -> tuple[Tensor, Tensor]:
    """(values, int64 indices) of the best k of each row of input [rows, columns]."""
    check_matrix("input", input)
    if _prefers_last(tie_break):
        values, indices = topk(input.flip(1), k, sorted=sorted)
        return values, torch.where(indices < 0, -1, input.shape[1] - 1 - indices).long()
    values, indices = topk(input, k, sorted=sorted)
    return values, indices.long()


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
    row_starts: Tensor | None = None,
    max_seq_len: int | None = None,
    absolute_indices: bool = False,
    *,
    approx_ties: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """(indices, values or None) of logits [rows, columns].

    seq_lens    int32 [rows / next_n]; row j of a request of length L ends at
                (L - next_n + j + 1) // compress_ratio
    pre_idx     int32 [rows / next_n, top_k], the request's previous answer as a hint, in any order,
                taken as it is (FlashInfer moves it by one position)
    row_starts  int32 [rows]: row i is [row_starts[i], row_starts[i] + seq_lens[i]), and indices
                count from row_starts[i], with absolute_indices from 0. Not with next_n or
                compress_ratio.
    out_indices, out_values  [rows, top_k], or dense 1-D tensors of as many elements
    """
    check_matrix("logits", logits)
    check_int("top_k", top_k)
    rows = logits.shape[0]
    window: dict[str, Any] = {"hint": pre_idx}
    if row_starts is None:
        if absolute_indices:
            raise ValueError("absolute_indices: got True without row_starts, need both")
        window.update(lengths=seq_lens, next_n=next_n, compress_ratio=compress_ratio)
    else:
        for name, given in (("next_n", next_n), ("compress_ratio", compress_ratio)):
            if given != 1:
                raise ValueError(f"{name}: got {given} with row_starts, need 1")
        _check_rows(logits, seq_lens, row_starts, "seq_lens")
        window.update(lengths=row_starts + seq_lens, starts=row_starts)
    out_indices, out_values = (_in_rows(out, rows, top_k) for out in (out_indices, out_values))
    values: Tensor | None = None
    if not return_values:
        indices = topk_indices(logits, top_k, out=out_indices, **window)
    else:
        both = None
        if out_indices is not None or out_values is not None:
            if out_indices is None:
                out_indices = logits.new_empty((rows, top_k), dtype=torch.int32)
            if out_values is None:
                out_values = logits.new_empty((rows, top_k))
            both = (out_values, out_indices)
        values, indices = topk(logits, top_k, out=both, **window)
    if row_starts is not None and not absolute_indices:
        indices.sub_(row_starts.clamp(min=0).unsqueeze(1)).clamp_(min=-1)
    return indices, values


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
    rows = _check_rows(input, lengths, row_starts)
    if row_to_batch is not None:
        check_counts("row_to_batch", row_to_batch, rows, "one per row", input)
    check_page_table(
        "src_page_table", src_page_table, rows if row_to_batch is None else None, input
    )
    first = row_starts if page_table_row_starts is None else page_table_row_starts
    if first is not None:
        check_counts("page_table_row_starts", first, rows, "one per row", input)
    for name, given in (("out", out), ("out_raw_indices", out_raw_indices)):
        if given is not None:
            check_out(name, given, rows, k)
    return select_places(
        input,
        k,
        *_window(lengths, row_starts),
        page_table=src_page_table,
        page_size=page_size,
        row_to_request=row_to_batch,
        offsets=None if first is None else first.long() * page_size,
        prefer_last=_prefers_last(tie_break),
        out=out,
        raw=out_raw_indices,
    )


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
    rows = _check_rows(input, lengths, row_starts)
    check_counts("offsets", offsets, rows, "one per row", input)
    window = _window(lengths, row_starts)
    last = _prefers_last(tie_break)
    return select_places(input, k, *window, offsets=offsets, prefer_last=last)


def _check_rows(
    scores: Tensor, lengths: Tensor, row_starts: Tensor | None, lengths_name: str = "lengths"
) -> int:
    check_matrix("input", scores)
    rows = scores.shape[0]
    check_counts(lengths_name, lengths, rows, "one per row", scores)
    if row_starts is not None:
        check_counts("row_starts", row_starts, rows, "one per row", scores)
    return rows


def _window(lengths: Tensor, row_starts: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(ends, starts) of every row."""
    return lengths if row_starts is None else row_starts + lengths, row_starts


def _in_rows(out: Tensor | None, rows: int, k: int) -> Tensor | None:
    """A flat buffer as [rows, k]; the operators check everything else."""
    flat = isinstance(out, Tensor) and out.dim() == 1 and out.numel() == rows * k
    return out.view(rows, k) if flat else out  # type: ignore[union-attr]


def _prefers_last(tie_break: int) -> bool:
    check_int("tie_break", tie_break)
    if tie_break not in (0, 1, _PREFER_LARGER_INDICES):
        raise ValueError(f"tie_break: got {tie_break}, need 0, 1 or 2")
    return tie_break == _PREFER_LARGER_INDICES
