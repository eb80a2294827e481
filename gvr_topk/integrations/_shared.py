# SPDX-License-Identifier: Apache-2.0
"""What the shims share: checks, and selections whose indices count from a row's start or point into
a KV cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gvr_topk.ops import check_int, check_tensor, topk_indices
from gvr_topk.serving import topk_kv

_INT32_MAX = 2**31 - 1


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


def select_places(
    scores: Tensor,
    k: int,
    ends: Tensor,
    starts: Tensor | None = None,
    *,
    page_table: Tensor | None = None,
    page_size: int = 1,
    row_to_request: Tensor | None = None,
    offsets: Tensor | None = None,
    prefer_last: bool = False,
    hint: Tensor | None = None,
    out: Tensor | None = None,
    raw: Tensor | None = None,
) -> Tensor:
    """Places in the KV cache of what `select` selects, int32 [rows, k], -1 in the tail.

    With `at` = a selected position, counted from the row's start, + offsets[row] (None: 0):

        page_table[request, at // page_size] * page_size + at % page_size

    or, without a page table, `at`. page_table is [requests, pages]; row_to_request [rows] names the
    request of each row (None: row i is request i). What has no place is -1: outside the table, or
    of a request that does not exist.

    One launch of the selection; `starts` add some over [rows], and with `raw`, which receives the
    positions, two over [rows, k]. Elementwise launches over [rows, k] follow where prefer_last asks
    for a reversed copy, or both a map and starts or offsets are given.
    """
    mapped, rows = row_to_request is not None, scores.shape[0]
    if prefer_last or (mapped and (starts is not None or offsets is not None)):
        found = select(scores, k, ends, starts, prefer_last=prefer_last, out=raw, hint=hint)
        places = _places(found, page_table, page_size, row_to_request, offsets)
        return places if out is None else out.copy_(places)
    begin = None if starts is None else starts.clamp(min=0).long()
    if begin is not None:
        offsets = -begin if offsets is None else offsets - begin
    both = None
    if out is not None or raw is not None:
        empty = scores.new_empty((rows, k), dtype=torch.int32)
        both = (empty if out is None else out, empty if raw is None else raw)
    places, positions = topk_kv(
        scores,
        k,
        lengths=ends,
        starts=starts,
        page_table=page_table if mapped or page_table is None else page_table[:rows],
        page_size=page_size,
        offsets=offsets,
        row_to_request=row_to_request,
        windows_per_row=mapped,
        hint=hint,
        out=both,
    )
    if begin is not None and raw is not None:
        positions.sub_(begin.unsqueeze(1)).clamp_(min=-1)
    return places


def _places(
    indices: Tensor,
    page_table: Tensor | None,
    page_size: int,
    row_to_request: Tensor | None,
    offsets: Tensor | None,
) -> Tensor:
    """The formula of `select_places` for given positions."""
    at = indices.long() if offsets is None else indices + offsets.long().unsqueeze(1)
    missing = (indices < 0) | (at < 0)
    if page_table is not None:
        requests, pages = page_table.shape
        request = torch.arange(len(indices), device=at.device)
        if row_to_request is not None:
            request = row_to_request.long()
            missing |= ((request < 0) | (request >= requests)).unsqueeze(1)
            request = request.clamp(0, requests - 1)
        page = at.div(page_size, rounding_mode="floor")
        missing |= page >= pages
        physical = page_table[request.unsqueeze(1), page.clamp(0, pages - 1)].long()
        missing |= physical < 0
        at = physical * page_size + at % page_size
    return at.masked_fill(missing | (at > _INT32_MAX), -1).to(torch.int32)


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
    "select",
    "select_places",
]
