# SPDX-License-Identifier: Apache-2.0
"""Serving shapes: where the selected keys lie in a KV cache, and what changed since the last step.

`topk_kv` here and `TopKCache.step_kv`, `TopKCache.step_difference` take these beside the arguments
that `gvr_topk.ops` explains:

page_table       int32 [requests, pages], any row stride: page j of a request's keys lies in page
                 page_table[request, j] of the KV cache.
page_size        keys per page, any power of two. With offsets and page table, the key at position i
                 has the place
                     at = i + offsets[request]
                     page_table[request, at // page_size] * page_size + at % page_size
                 and without a page table the place `at` (ragged layouts: the keys of all requests
                 in one array, offsets are where each begins). A key without a place is -1: `at`
                 below 0 or beyond the table, a negative page (not resident), a place beyond int32.
offsets          int32 or int64 [requests].
row_to_request   int32 or int64 [rows / next_n]: rows belong to these requests, many rows to one as
                 in prefill, in any order. Everything per request (lengths, starts, slots, offsets,
                 page_table) then has one entry per request, as many as these tensors agree on. A
                 value outside [0, requests) makes the row empty: padding of a captured graph.
                 Without it, request i owns rows i * next_n .. (i + 1) * next_n - 1.
windows_per_row  True: lengths and starts are [rows / next_n], one per row (per next_n rows),
                 although row_to_request is given.

All of them are device data: nothing is read outside the tensors, whatever they hold, and a CUDA
graph may change them between replays.

Cost: `topk_kv` and `step_kv` are one launch, as `topk` is; a sorted answer takes its usual second
one. `step_difference` is one launch, too: each row compares with the stored answer, and the last
row of a request to do so stores them all; a sorted answer takes two more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _observers
from .ops import (
    _new_indices,
    check_int,
    check_not_mixed,
    check_options,
    check_scores,
    check_tensor,
    type_name,
)

__all__ = ["KvTopK", "TopKDifference", "topk_kv"]


class KvTopK(NamedTuple):
    """Two int32 [..., k] of the same order: places in the KV cache, and positions in the row."""

    kv_indices: Tensor
    indices: Tensor


class TopKDifference(NamedTuple):
    """The answer and how it differs from the stored one. All int32, on the device of the scores.

    indices  [..., k]  the answer, -1 in the tail.
    entered  [..., k]  positions of the answer that the stored one lacks, then -1.
    left     [..., k]  stored positions that the answer lacks, then -1.
    counts   [rows, 2] how many entered and how many left.
    """

    indices: Tensor
    entered: Tensor
    left: Tensor
    counts: Tensor


_DEFAULTS: dict[str, Any] = {
    "hint": None,
    "page_table": None,
    "page_size": 1,
    "offsets": None,
    "row_to_request": None,
    "windows_per_row": False,
    "lengths": None,
    "starts": None,
    "next_n": 1,
    "compress_ratio": 1,
    "hint_offset": 0,
    "sorted": False,
    "algorithm": "auto",
}


def topk_kv(
    scores: Tensor,
    k: int,
    *,
    page_table: Tensor | None = None,
    page_size: int = 1,
    offsets: Tensor | None = None,
    row_to_request: Tensor | None = None,
    windows_per_row: bool = False,
    hint: Tensor | None = None,
    lengths: Tensor | None = None,
    starts: Tensor | None = None,
    next_n: int = 1,
    compress_ratio: int = 1,
    hint_offset: int = 0,
    sorted: bool = False,
    algorithm: str = "auto",
    out: tuple[Tensor, Tensor] | None = None,
) -> KvTopK:
    """The k best keys of every row: their places in the KV cache and their positions in the row.

    This module's docstring explains the first arguments, `gvr_topk.ops` the others, the errors and
    the contract. `out=(kv_indices, indices)` writes into given int32 tensors [..., k].

        >>> kv_indices, indices = topk_kv(scores, 2048, page_table=table, page_size=64, lengths=seq)
    """
    check_scores(scores)
    check_int("k", k)
    windows: dict[str, Any] = {
        "hint": hint,
        "lengths": lengths,
        "starts": starts,
        "next_n": next_n,
        "compress_ratio": compress_ratio,
        "hint_offset": hint_offset,
        "sorted": sorted,
        "algorithm": algorithm,
    }
    check_options(**windows)
    check_requests(row_to_request, windows_per_row)
    check_placement(page_table, page_size, offsets)
    options = {
        "page_table": page_table,
        "page_size": page_size,
        "offsets": offsets,
        "row_to_request": row_to_request,
        "windows_per_row": windows_per_row,
        **windows,
    }
    given = {name: value for name, value in options.items() if value is not _DEFAULTS[name]}
    if out is None:
        result = KvTopK(*torch.ops.gvr.topk_kv.default(scores, k, **given))
    else:
        if not isinstance(out, tuple | list) or len(out) != 2:
            raise TypeError(f"out: got {type_name(out)}, need a tuple (kv_indices, indices)")
        result = KvTopK(*out)
        check_tensor("kv_indices", result.kv_indices)
        check_tensor("indices", result.indices)
        torch.ops.gvr.topk_kv.out(scores, k, **given, **result._asdict())
    if _observers.active:
        observed = windows_of_groups(row_to_request, windows_per_row, lengths, starts)
        _observers.selected(scores, k, **{**windows, **observed})
    return result


def windows_of_groups(
    row_to_request: Tensor | None,
    windows_per_row: bool,
    lengths: Tensor | None,
    starts: Tensor | None,
) -> dict[str, Tensor | None]:
    """The lengths and starts of a call with one entry for every group of next_n rows."""
    windows = {"lengths": lengths, "starts": starts}
    if row_to_request is None or windows_per_row:
        return windows
    for name, given in windows.items():
        if given is None:
            continue
        known = (row_to_request >= 0) & (row_to_request < len(given))
        windows[name] = given[row_to_request.long().where(known, 0)].where(known, 0)
    return windows


def check_requests(row_to_request: object, windows_per_row: object) -> None:
    if row_to_request is not None:
        check_tensor("row_to_request", row_to_request)
    if not isinstance(windows_per_row, bool):
        raise TypeError(f"windows_per_row: got {type_name(windows_per_row)}, need a bool")


def check_placement(page_table: object, page_size: object, offsets: object) -> None:
    for name, tensor in (("page_table", page_table), ("offsets", offsets)):
        if tensor is not None:
            check_tensor(name, tensor)
    check_int("page_size", page_size)


@torch.library.register_fake("gvr::topk_kv")
def _topk_kv(scores: Tensor, k: int, **_: Any) -> tuple[Tensor, Tensor]:
    return _new_indices(scores, k), _new_indices(scores, k)


@torch.library.register_fake("gvr::topk_kv.out")
def _topk_kv_out(scores: Tensor, k: int, **_: Any) -> None:
    check_not_mixed(scores)


@torch.library.register_fake("gvr::step_kv")
def _step_kv(scores: Tensor, state: Tensor, layer: int, k: int, **_: Any) -> tuple[Tensor, Tensor]:
    return _new_indices(scores, k), _new_indices(scores, k)


@torch.library.register_fake("gvr::step_difference")
def _step_difference(
    scores: Tensor, state: Tensor, layer: int, k: int, **_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = 1
    for size in scores.shape[:-1]:
        rows = rows * size
    counts = scores.new_empty((rows, 2), dtype=torch.int32)
    return _new_indices(scores, k), _new_indices(scores, k), _new_indices(scores, k), counts
