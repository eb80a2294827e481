# SPDX-License-Identifier: Apache-2.0
"""Lengths, starts, next_n and compress_ratio: which scores of a row count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import check_call
from generators import make_hint, make_rows
from oracle import exact_answer
from torch import Tensor

N, K = 1203, 90
LENGTHS = [N, N - 1, 600, K + 1, K, K - 1, 33, 2, 1, 0, -1, -4, N + 1, 2 * N, 5]
INT64 = [2**31, 2**40, 2**63 - 1, -(2**31) - 1, -(2**63)]
INT32 = [2**31 - 1, -(2**31)]


def _check(scores: Tensor, algorithm: str = "auto", **window: Any) -> None:
    answer = exact_answer(scores, K, **window)
    check_call(answer, scores, K, algorithm=algorithm, label="no hint", **window)
    hint = make_hint("previous_step", scores, K)
    check_call(answer, scores, K, algorithm=algorithm, hint=hint, label="hint", **window)


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_lengths_of_either_width(
    integer: torch.dtype, device: str, dtype: torch.dtype, algorithm: str
) -> None:
    given = LENGTHS + (INT64 if integer == torch.int64 else INT32)
    lengths = torch.tensor(given, dtype=integer, device=device)
    scores = make_rows("quantised_4097", len(given), N, K, device=device, dtype=dtype)
    _check(scores, algorithm, lengths=lengths)


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_starts_of_either_width(integer: torch.dtype, device: str, algorithm: str) -> None:
    given = LENGTHS + (INT64 if integer == torch.int64 else INT32)
    starts = torch.tensor(given, dtype=integer, device=device)
    scores = make_rows("quantised_4097", len(given), N, K, device=device)
    _check(scores, algorithm, starts=starts)
    _check(scores, algorithm, starts=starts, lengths=torch.full_like(starts, 700))


def test_every_start_and_end_alignment(device: str, dtype: torch.dtype, algorithm: str) -> None:
    pairs = [(start, N - 40 + end) for start in range(20) for end in range(20)]
    starts, lengths = torch.tensor(pairs, device=device).T
    scores = make_rows("normal", len(pairs), N, K, device=device, dtype=dtype)
    _check(scores, algorithm, starts=starts, lengths=lengths)


def test_narrow_windows_anywhere(device: str, algorithm: str) -> None:
    pairs = [(start, start + width) for start in (0, 1, 7, 500, 1100) for width in (0, 1, 89, 91)]
    starts, lengths = torch.tensor(pairs, device=device).T
    scores = make_rows("random_bits", len(pairs), N, K, device=device)
    _check(scores, algorithm, starts=starts, lengths=lengths)


@pytest.mark.parametrize("poison", [3e38, float("inf"), float("nan"), -float("nan"), -0.0])
def test_scores_outside_the_window_change_nothing(
    poison: float, device: str, algorithm: str
) -> None:
    starts = torch.tensor([0, 1, 5, 300, 0, 0, 900], device=device)
    lengths = torch.tensor([N, N - 1, 1000, 600, 0, -3, 850], device=device)
    scores = make_rows("normal", 7, N, K, device=device) - 10.0
    position = torch.arange(N, device=device)
    outside = (position < starts[:, None]) | (position >= lengths[:, None])
    poisoned = scores.masked_fill(outside, poison)
    answer = exact_answer(scores, K, starts=starts, lengths=lengths)
    hint = make_hint("exact", poisoned, K)
    for given in (None, hint):
        result = check_call(
            answer, poisoned, K, hint=given, starts=starts, lengths=lengths, algorithm=algorithm
        )
        assert not bool(result.values.isnan().any())


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 128])
@pytest.mark.parametrize("next_n", [1, 2, 3, 4, 7])
def test_draft_rows_and_compressed_keys(next_n: int, ratio: int, device: str) -> None:
    given = [length * ratio for length in LENGTHS]
    given += [length * ratio + 1 for length in LENGTHS] + [1, 2, 3, next_n, next_n + 1, *INT64]
    lengths = torch.tensor(given, device=device)
    scores = make_rows("quantised_4097", len(given) * next_n, N, K, device=device)
    window = {"lengths": lengths, "next_n": next_n, "compress_ratio": ratio}
    _check(scores, **window)
    _check(scores, starts=torch.full_like(lengths, 37), **window)


def test_a_request_without_length_has_no_draft_rows(device: str, algorithm: str) -> None:
    """(-1 - 4 + 3 + 1) // 1 would be negative, (0 - 4 + 3 + 1) zero; length 1 has one row."""
    scores = make_rows("normal", 12, N, K, device=device)
    lengths = torch.tensor([-1, 0, 1], device=device)
    answer = exact_answer(scores, K, lengths=lengths, next_n=4)
    assert answer.counts.tolist() == [0] * 11 + [1]
    check_call(answer, scores, K, lengths=lengths, next_n=4, algorithm=algorithm)


def test_hint_per_request_or_per_row(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 12, N, K, device=device)
    lengths = torch.tensor([N, 700, 50], device=device)
    answer = exact_answer(scores, K, lengths=lengths, next_n=4)
    for rows in (3, 12):
        hint = make_hint("exact", scores[:rows], K)
        check_call(answer, scores, K, lengths=lengths, next_n=4, hint=hint, algorithm=algorithm)


def test_draft_rows_without_lengths_are_whole_rows(device: str) -> None:
    scores = make_rows("normal", 6, N, K, device=device)
    check_call(exact_answer(scores, K), scores, K, next_n=3, compress_ratio=4)


def test_lengths_with_a_stride(device: str) -> None:
    lengths = torch.tensor(LENGTHS, device=device).repeat_interleave(2)[::2]
    assert lengths.stride() == (2,)
    scores = make_rows("normal", len(LENGTHS), N, K, device=device)
    _check(scores, lengths=lengths, starts=lengths[:1].expand(len(LENGTHS)) - N)
