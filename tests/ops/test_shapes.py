# SPDX-License-Identifier: Apache-2.0
"""Shapes, strides and alignments: any view of any tensor."""

from __future__ import annotations

import pytest
import torch
from cases import check_call
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk

N, K = 1503, 100


def _check(scores: Tensor, k: int, algorithm: str, **arguments: Tensor) -> None:
    answer = exact_answer(scores, k)
    result = check_call(answer, scores, k, algorithm=algorithm, **arguments)
    assert result.indices.shape == result.values.shape == (*scores.shape[:-1], k)
    assert_exact(answer, gvr_topk.topk_indices(scores, k, algorithm=algorithm, **arguments))


@pytest.mark.parametrize("stride", [N, N + 1, N + 2, N + 3, N + 5, 2048, 2049])
def test_any_row_stride(stride: int, device: str, dtype: torch.dtype, algorithm: str) -> None:
    scores = make_rows("quantised_4097", 6, stride, K, device=device, dtype=dtype)[:, :N]
    assert scores.stride() == (stride, 1)
    _check(scores, K, algorithm, hint=make_hint("previous_step", scores, K))


@pytest.mark.parametrize("shift", range(1, 18))
def test_any_base_alignment(shift: int, device: str, dtype: torch.dtype) -> None:
    storage = make_rows("random_bits", 1, 4 * (N + 1) + 32, K, device=device, dtype=dtype)[0]
    for stride in (N, N + 1):
        scores = storage.as_strided((4, N), (stride, 1), shift)
        for algorithm in ("auto", "gvr", "resident", "radix"):
            _check(scores, K, algorithm)


def test_expanded_rows_of_stride_zero(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 1, N, K, device=device).expand(9, N)
    hint = make_hint("exact", scores[:1], K).expand(9, K)
    _check(scores, K, algorithm, hint=hint)
    _check(scores.reshape(3, 3, N), K, algorithm)


def test_overlapping_rows(device: str, algorithm: str) -> None:
    """Row r is the window [3 r, 3 r + n) of one sequence."""
    sequence = make_rows("normal", 1, N + 60, K, device=device)[0]
    _check(sequence.unfold(0, N, 3), K, algorithm)


def test_batches_of_every_rank(device: str, algorithm: str) -> None:
    scores = make_rows("quantised_33", 24, N, K, device=device)
    for shape in [(24,), (4, 6), (2, 3, 4), (1, 24), (24, 1), (2, 1, 3, 1, 4)]:
        _check(scores.reshape(*shape, N), K, algorithm)
    _check(scores[0], K, algorithm)


def test_batch_that_is_not_contiguous(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 24, N, K, device=device).reshape(4, 6, N)
    _check(scores.transpose(0, 1), K, algorithm)
    _check(scores[::2, 1::2], K, algorithm)
    _check(scores[:, 3], K, algorithm)


def test_last_dimension_that_is_not_dense(device: str, algorithm: str) -> None:
    scores = make_rows("normal", N, 7, K, device=device)
    _check(scores.T, K, algorithm)
    wide = make_rows("normal", 5, 3 * N, K, device=device)
    _check(wide[:, ::3], K, algorithm)
    _check(wide[:, :1].expand(5, N), K, algorithm)


def test_hint_of_any_layout(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 6, N, K, device=device)
    exact = make_hint("exact", scores, K)
    transposed = exact.T.contiguous().T
    padded = torch.cat([exact, exact], dim=1)[:, 1 : K + 1]
    for hint in (transposed, padded, exact[:1].expand(6, K), exact[:, :1].expand(6, K)):
        _check(scores, K, algorithm, hint=hint)
    _check(scores.reshape(2, 3, N), K, algorithm, hint=exact.reshape(2, 3, K))
    _check(scores.reshape(2, 3, N), K, algorithm, hint=exact)


@pytest.mark.parametrize("shape", [(0, N), (0, 0), (3, 0), (0, 5, N), (5, 0, N), (2, 3, 0), (0,)])
def test_empty_batches_and_empty_rows(
    shape: tuple[int, ...], device: str, dtype: torch.dtype, algorithm: str
) -> None:
    scores = torch.empty(shape, device=device, dtype=dtype)
    _check(scores, K, algorithm)
    hint = torch.zeros(*shape[:-1], K, dtype=torch.int32, device=device)
    _check(scores, K, algorithm, hint=hint)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 31, 99, 100, 101])
def test_k_at_and_beyond_the_row(n: int, device: str, algorithm: str) -> None:
    scores = make_rows("quantised_33", 5, n, n, device=device)
    for k in (n, n + 1, 4 * n + 7):
        _check(scores, k, algorithm)


def test_many_rows(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 5000, 130, 20, device=device)
    _check(scores, 20, algorithm)


def test_one_long_row(device: str, algorithm: str) -> None:
    scores = make_rows("negative_mean", 1, 1_000_003, 2048, device=device)
    _check(scores, 2048, algorithm, hint=make_hint("overlap_6_tenths", scores, 2048))
