# SPDX-License-Identifier: Apache-2.0
"""What the shims share: the selection relative to a row's start, and where its indices point."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gvr_topk.ops import check_int, check_tensor, topk_indices


def check_matrix(name: str, tensor: Tensor, dtype: torch.dtype | None = None) -> None:
    check_tensor(name, tensor)
    if tensor.dim() != 2:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, need 2 dimensions")
    if dtype is not None and tensor.dtype != dtype:
        raise TypeError(f"{name}: got dtype {tensor.dtype}, need {dtype}")


def check_counts(name: str, tensor: Tensor, size: int, of: str, scores: Tensor) -> None:
    """One int32 or int64 entry for each of `size` things, where the scores are."""
    check_tensor(name, tensor)
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: got dtype {tensor.dtype}, need torch.int32 or torch.int64")
    if tensor.dim() != 1 or tensor.shape[0] != size:
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, need [{size}] ({of})")
    check_place(name, tensor, scores)


def check_place(name: str, tensor: Tensor, scores: Tensor) -> None:
    if tensor.device != scores.device:
        raise ValueError(
            f"{name}: got a tensor on {tensor.device}, need the device of the scores "
            f"({scores.device})"
        )


def check_out(name: str, tensor: Tensor, rows: int, k: int) -> None:
    """The operators check device and strides."""
    check_matrix(name, tensor, torch.int32)
    if tensor.shape != (rows, k):
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, need {[rows, k]}")


def select(
    scores: Tensor,
    k: int,
    ends: Tensor,
    starts: Tensor | None = None,
    *,
    prefer_last: bool = False,
    **options: Any,
) -> Tensor:
    """int32 [rows, k] of 2-D scores, counted from the row's start, -1 in the tail.

    ends, starts  as `lengths` and `starts` of `gvr_topk.ops`: row i is [starts[i], ends[i]), cut to
                  the columns that exist.
    prefer_last   of equal scores at the K-th place take the highest indices. Costs a copy of the
                  scores, reversed.
    options       further options of `topk_indices`, `out` among them.
    """
    if prefer_last:
        n = scores.shape[1]
        begin = torch.zeros_like(ends) if starts is None else starts.clamp(min=0)
        turned = select(scores.flip(1), k, n - begin, n - ends.clamp(max=n), **options)
        # Position j of the reversed window is position size - 1 - j of the row's own.
        size = (ends.clamp(max=n) - begin).unsqueeze(1)
        return turned.copy_(torch.where(turned < 0, -1, size - 1 - turned))
    indices = topk_indices(scores, k, lengths=ends, starts=starts, **options)
    if starts is not None:
        indices.sub_(starts.clamp(min=0).unsqueeze(1)).clamp_(min=-1)
    return indices


def through_page_table(
    indices: Tensor,
    page_table: Tensor,
    *,
    page_size: int = 1,
    row_to_request: Tensor | None = None,
    first_page: Tensor | None = None,
) -> Tensor:
    """Physical positions of selected ones, int32 [rows, k], -1 where the index is -1:

        page_table[request, first_page + index // page_size] * page_size + index % page_size

    page_table is [requests, pages]; row_to_request [rows] names each row's request (None: row i is
    request i), first_page [rows] is in pages (None: 0). What lies outside the table is clamped to
    it: no request or page number reaches other memory.
    """
    page, within = indices.clamp(min=0).long(), None
    if page_size > 1:
        page, within = page // page_size, page % page_size
    if first_page is not None:
        page = page + first_page.unsqueeze(1)
    page = page.clamp(0, page_table.shape[1] - 1)
    if row_to_request is None:
        physical = page_table.gather(1, page)
    else:
        request = row_to_request.long().clamp(0, page_table.shape[0] - 1)
        physical = page_table[request.unsqueeze(1), page]
    if within is not None:
        physical = physical * page_size + within
    return torch.where(indices < 0, -1, physical).to(torch.int32)


def plus_offsets(indices: Tensor, offsets: Tensor) -> Tensor:
    """indices + offsets[row], int32 [rows, k], -1 where the index is -1."""
    return torch.where(indices < 0, -1, indices + offsets.unsqueeze(1)).to(torch.int32)


def check_page_size(page_size: int) -> None:
    check_int("page_size", page_size)
    if not 1 <= page_size <= 1 << 30 or page_size & (page_size - 1):
        raise ValueError(f"page_size: got {page_size}, need a power of two up to 2^30")


def check_page_table(name: str, page_table: Tensor, rows: int | None, scores: Tensor) -> None:
    """rows: how many the table needs at least; None where a map names them."""
    check_matrix(name, page_table, torch.int32)
    check_place(name, page_table, scores)
    fits = page_table.shape[0] >= (1 if rows is None else rows) and page_table.shape[1] >= 1
    if not fits and scores.shape[0] > 0:
        need = "at least one row" if rows is None else f"at least {rows} rows (one per row)"
        raise ValueError(f"{name}: got shape {list(page_table.shape)}, need {need} and a page")


__all__ = [
    "check_counts",
    "check_matrix",
    "check_out",
    "check_page_size",
    "check_page_table",
    "check_place",
    "plus_offsets",
    "select",
    "through_page_table",
]
