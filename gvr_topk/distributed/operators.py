# SPDX-License-Identifier: Apache-2.0
"""`torch.ops.gvr`'s operators on lists of winners: what they mean, and their fakes.

A list of winners is one row of a rank's Top-K: score descending with NaN first, -0.0 equal to +0.0,
then index ascending; -1 is padding and comes last. As a message it is int32 [2, k]: global indices,
then the storage bits of the scores, so that NaN payloads and zero signs cross the wire. One launch
each, without host synchronisation.

pack_winners(values, indices, *, offset, device_offset, page, rank, world) -> int32 [rows, 2, k]
    The message of local winners [rows, k]. Local index i is global index
    (i // page * world + rank) * page + i % page + offset + device_offset (int64 [1], or None).
place_winners(values, indices, counts, list, *, ...) -> int32 [rows, 2, k]
    With counts (int64 [ranks, rows], how many entries of each rank win): the winners of rank `list`
    behind those of the ranks before it, with indices one higher, and 0 elsewhere. The sum of all
    ranks' messages holds all winners.
merge_winners(gathered, dtype) -> (values, indices)
    The k best of int32 [ranks, rows, 2, k], the messages of all ranks, best first.
order_winners(packed, counts, dtype) -> (values, indices)
    The same of int32 [rows, 2, k], the sum that place_winners speaks of.
own_winners(gathered, values, indices, rank) -> (values, indices)
    Of rank's own list, the local values and indices that merge_winners would take; then padding.
keep_winners(values, indices, counts) -> (values, indices)
    The first counts (int64 [rows]) entries of each row; then padding.
winner_keys(values, indices, *, offset, ...) -> int64 [rows, k]
    The order as one ascending number: how far the score is from NaN, then the global index in the
    low 31 bits. 2^63 - 1 for padding.
count_digits(keys, bound, before, last_shift, shift, bits) -> (bound, counts)
    A round of the search for the k-th key of all ranks. With before (int32 [rows, edges], how many
    keys of all ranks lie before bound + j * 2^last_shift, j from 1), the bound (int64 [rows])
    moves on to the digit of the k-th key; None: it is 0. counts (int32 [rows, 2^bits - 1]): how
    many of `keys` lie before bound + j * 2^shift.

An answer of lists that are not sorted, or counts that exceed k, is of no use, but stays in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import check_not_mixed

__all__: list[str] = []


def _new_message(values: Tensor) -> Tensor:
    check_not_mixed(values, "values")
    rows, k = values.shape
    return values.new_empty((rows, 2, k), dtype=torch.int32)


def _new_answer(lists: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    check_not_mixed(lists, "gathered" if lists.dim() == 4 else "packed")
    shape = (lists.shape[-3], lists.shape[-1])
    return lists.new_empty(shape, dtype=dtype), lists.new_empty(shape)


def _new_part(values: Tensor) -> tuple[Tensor, Tensor]:
    check_not_mixed(values, "values")
    shape = tuple(values.shape)
    return values.new_empty(shape), values.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("gvr::pack_winners")
def _pack_winners(values: Tensor, indices: Tensor, **_: Any) -> Tensor:
    return _new_message(values)


@torch.library.register_fake("gvr::place_winners")
def _place_winners(values: Tensor, indices: Tensor, counts: Tensor, list: int, **_: Any) -> Tensor:
    return _new_message(values)


@torch.library.register_fake("gvr::winner_keys")
def _winner_keys(values: Tensor, indices: Tensor, **_: Any) -> Tensor:
    check_not_mixed(values, "values")
    return values.new_empty(tuple(values.shape), dtype=torch.int64)


@torch.library.register_fake("gvr::count_digits")
def _count_digits(
    keys: Tensor,
    bound: Tensor | None,
    before: Tensor | None,
    last_shift: int,
    shift: int,
    bits: int,
) -> tuple[Tensor, Tensor]:
    check_not_mixed(keys, "keys")
    rows = keys.shape[0]
    return keys.new_empty((rows,)), keys.new_empty((rows, (1 << bits) - 1), dtype=torch.int32)


@torch.library.register_fake("gvr::merge_winners")
def _merge_winners(gathered: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _new_answer(gathered, dtype)


@torch.library.register_fake("gvr::order_winners")
def _order_winners(packed: Tensor, counts: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _new_answer(packed, dtype)


@torch.library.register_fake("gvr::own_winners")
def _own_winners(
    gathered: Tensor, values: Tensor, indices: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    return _new_part(values)


@torch.library.register_fake("gvr::keep_winners")
def _keep_winners(values: Tensor, indices: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    return _new_part(values)
