# SPDX-License-Identifier: Apache-2.0
"""Offsets beyond 2^31 and 2^32 elements."""

from __future__ import annotations

import pytest
import torch
from cases import check_call
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer

import gvr_topk

N, K = 3001, 70
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("shift", [0, 1])
def test_rows_beyond_2_31_elements(shift: int, device: str, algorithm: str) -> None:
    """Only the pages of the rows themselves are touched, so that this fits on a small machine."""
    stride = (2**31 if device == "cuda" else 2**30) + shift
    storage = torch.empty(2 * stride + N, dtype=torch.bfloat16, device=device)
    scores = storage.as_strided((3, N), (stride, 1))
    scores.copy_(make_rows("quantised_4097", 3, N, K, device=device, dtype=torch.bfloat16))
    hint = make_hint("previous_step", scores, K)
    check_call(exact_answer(scores, K), scores, K, algorithm=algorithm, hint=hint)


@needs_gpu
@pytest.mark.parametrize(
    "dtype, exponent",
    [(torch.float32, 31), (torch.bfloat16, 31), (torch.bfloat16, 32)],
    ids=["fp32, 2^31", "bf16, 2^31", "bf16, 2^32"],
)
def test_batches_of_more_scores_than_32_bits_count(
    dtype: torch.dtype, exponent: int, algorithm: str
) -> None:
    n = 65_537
    rows = 2**exponent // n + 40
    scores = torch.zeros(rows, n, dtype=dtype, device="cuda")
    last = make_rows("quantised_4097", 30, n, K, device="cuda", dtype=dtype)
    scores[-30:] = last
    indices = gvr_topk.topk_indices(scores, K, algorithm=algorithm)
    assert_exact(exact_answer(last, K), indices[-30:])
    zeros = torch.arange(K, dtype=torch.int32, device="cuda")
    assert bool((indices[:-30].sort(-1).values == zeros).all())


@needs_gpu
def test_outputs_of_more_than_2_31_indices(algorithm: str) -> None:
    k = 2048
    rows = 2**31 // k + 3
    row = make_rows("quantised_33", 1, k + 1, k, device="cuda")
    indices = gvr_topk.topk_indices(row.expand(rows, k + 1), k, algorithm=algorithm)
    expected = exact_answer(row, k).indices.sort(-1).values
    for part in (slice(0, 4), slice(rows - 4, rows), slice(rows // 2, rows // 2 + 4)):
        assert bool((indices[part].sort(-1).values == expected).all())


@needs_gpu
def test_a_state_of_more_than_2_31_words() -> None:
    slots = 2**31 // (4 + K) + 10
    cache = gvr_topk.TopKCache(1, slots, K, device="cuda")
    scores = make_rows("normal", 3, N, K, device="cuda")
    chosen = torch.tensor([slots - 1, 0, slots - 2], device="cuda")
    for _ in range(2):
        indices = cache.step(scores, 0, chosen)
        assert_exact(exact_answer(scores, K), indices)
    stored = cache.state[0, chosen, 0, 4:].sort(-1).values
    assert torch.equal(stored, indices.sort(-1).values)
    assert int((cache.state[0, :, 0, 0] != 0).sum()) == 3


@needs_gpu
def test_rows_of_more_than_2_30_scores(algorithm: str) -> None:
    n = 2**30 + 7
    scores = torch.zeros(1, n, dtype=torch.bfloat16, device="cuda")
    winners = torch.tensor([0, 5, 2**30 - 1, 2**30, n - 1], device="cuda")
    scores[0, winners] = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.bfloat16, device="cuda")
    indices = gvr_topk.topk_indices(scores, 7, algorithm=algorithm, sorted=True)
    assert indices.tolist() == [[n - 1, 2**30, 2**30 - 1, 5, 0, 1, 2]]
