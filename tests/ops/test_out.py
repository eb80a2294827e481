# SPDX-License-Identifier: Apache-2.0
"""The .out variants write every element of their outputs and nothing else."""

from __future__ import annotations

import pytest
import torch
from generators import make_hint, make_rows
from oracle import assert_exact, bits, exact_answer
from torch import Tensor

import gvr_topk

N, K = 1501, 65
SENTINEL = -7
GUARD = 64


def _guarded(rows: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """A [rows, width] view between guard bands, with a guard after each row, all sentinels."""
    stride = width + GUARD
    storage = torch.full((2 * GUARD + rows * stride,), SENTINEL, dtype=dtype, device=device)
    return storage, storage.as_strided((rows, width), (stride, 1), GUARD)


def _assert_guards_untouched(storage: Tensor, view: Tensor) -> None:
    touched = torch.zeros_like(storage, dtype=torch.bool)
    touched.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(True)
    assert bool((storage[~touched] == SENTINEL).all())


@pytest.mark.parametrize("sorted", [False, True], ids=["unsorted", "sorted"])
def test_every_element_is_written_and_no_other(
    sorted: bool, device: str, dtype: torch.dtype, algorithm: str
) -> None:
    scores = make_rows("quantised_4097", 7, N, K, device=device, dtype=dtype)
    lengths = torch.tensor([N, 66, 65, 64, 1, 0, -1], device=device)
    hint = make_hint("exact", scores, K)
    value_store, values = _guarded(7, K, dtype, device)
    index_store, indices = _guarded(7, K, torch.int32, device)
    result = gvr_topk.topk(
        scores,
        K,
        hint=hint,
        lengths=lengths,
        sorted=sorted,
        algorithm=algorithm,
        out=(values, indices),
    )
    assert result.values.data_ptr() == values.data_ptr()
    assert result.indices.data_ptr() == indices.data_ptr()
    assert_exact(exact_answer(scores, K, lengths=lengths), indices, values, sorted=sorted)
    _assert_guards_untouched(value_store, values)
    _assert_guards_untouched(index_store, indices)


def test_indices_alone(device: str, dtype: torch.dtype, algorithm: str) -> None:
    scores = make_rows("random_bits", 5, N, K, device=device, dtype=dtype)
    store, indices = _guarded(5, K, torch.int32, device)
    result = gvr_topk.topk_indices(scores, K, algorithm=algorithm, out=indices)
    assert result.data_ptr() == indices.data_ptr()
    assert_exact(exact_answer(scores, K), indices)
    _assert_guards_untouched(store, indices)


def test_operators_take_out_by_name(device: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    values, indices = scores.new_full((3, K), SENTINEL), torch.full((3, K), SENTINEL)
    indices = indices.to(torch.int32).to(device)
    torch.ops.gvr.topk.out(scores, K, values=values, indices=indices)
    assert_exact(exact_answer(scores, K), indices, values)
    indices.fill_(SENTINEL)
    torch.ops.gvr.topk_indices.out(scores, K, indices=indices)
    assert_exact(exact_answer(scores, K), indices)


def test_autograd_sees_that_outputs_and_state_were_written(device: str) -> None:
    scores = make_rows("normal", 2, N, K, device=device)
    values = torch.empty(2, K, device=device)
    indices = torch.empty(2, K, dtype=torch.int32, device=device)
    weight = torch.ones(2, K, device=device, requires_grad=True)
    gvr_topk.topk(scores, K, out=(values, indices))
    product = (values * weight).sum()
    gvr_topk.topk(-scores, K, out=(values, indices))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    written = [values, indices, torch.empty_like(indices)]
    state = torch.zeros(1, 2, 1, 4 + K, dtype=torch.int32, device=device)
    before = [tensor._version for tensor in (*written, state)]
    gvr_topk.topk_indices(scores, K, out=indices)
    gvr_topk.topk_kv(scores, K, out=(written[2], indices))
    gvr_topk.topk(scores, K, out=(values, indices))
    for name in ("step", "step_values", "step_stats", "step_kv", "step_difference"):
        getattr(torch.ops.gvr, name)(scores, state, 0, K)
    after = [tensor._version for tensor in (*written, state)]
    assert [now - then for then, now in zip(before, after, strict=True)] == [1, 3, 1, 5]
    with torch.inference_mode():  # such tensors have no version
        given = (torch.empty_like(values), torch.empty_like(indices))
    gvr_topk.topk(scores, K, out=given)
    assert_exact(exact_answer(scores, K), given[1], given[0])


def test_sorted_beyond_the_fused_sort_stays_inside(device: str) -> None:
    k = 8500
    scores = make_rows("quantised_33", 2, 9000, k, device=device)
    value_store, values = _guarded(2, k, torch.float32, device)
    index_store, indices = _guarded(2, k, torch.int32, device)
    gvr_topk.topk(scores, k, sorted=True, out=(values, indices))
    assert_exact(exact_answer(scores, k), indices, values, sorted=True)
    _assert_guards_untouched(value_store, values)
    _assert_guards_untouched(index_store, indices)


@pytest.mark.parametrize("shape", [(N,), (2, 3, N), (0, N), (1, N)])
def test_out_of_every_rank(shape: tuple[int, ...], device: str) -> None:
    rows = shape[:-1].count(0) == 0 and torch.Size(shape[:-1]).numel()
    scores = make_rows("normal", max(int(rows), 1), N, K, device=device)[: int(rows)].reshape(shape)
    values = torch.full((*shape[:-1], K), float(SENTINEL), device=device)
    indices = torch.full((*shape[:-1], K), SENTINEL, dtype=torch.int32, device=device)
    gvr_topk.topk(scores, K, out=(values, indices))
    assert_exact(exact_answer(scores, K), indices, values)


def test_misaligned_outputs(device: str, dtype: torch.dtype, algorithm: str) -> None:
    scores = make_rows("normal", 4, N, K, device=device, dtype=dtype)
    for shift in range(1, 8):
        value_store = torch.full((4 * K + 16,), SENTINEL, dtype=dtype, device=device)
        index_store = torch.full((4 * K + 16,), SENTINEL, dtype=torch.int32, device=device)
        values = value_store[shift : shift + 4 * K].view(4, K)
        indices = index_store[shift : shift + 4 * K].view(4, K)
        gvr_topk.topk(scores, K, algorithm=algorithm, out=(values, indices))
        assert_exact(exact_answer(scores, K), indices, values)
        _assert_guards_untouched(value_store, values)
        _assert_guards_untouched(index_store, indices)


def test_functional_and_out_results_are_the_same_bits(device: str, dtype: torch.dtype) -> None:
    scores = make_rows("random_bits", 4, N, K, device=device, dtype=dtype)
    functional = gvr_topk.topk(scores, K, sorted=True)
    out = torch.empty_like(functional.values), torch.empty_like(functional.indices)
    gvr_topk.topk(scores, K, sorted=True, out=out)
    assert torch.equal(bits(out[0]), bits(functional.values))
    assert torch.equal(out[1], functional.indices)
