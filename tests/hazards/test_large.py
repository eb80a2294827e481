# SPDX-License-Identifier: Apache-2.0
"""Offsets beyond 2^31 and 2^32 elements."""

from __future__ import annotations

import mmap

import pytest
import torch
from cases import check_call
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk

N, K = 3001, 70
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # a name since Python 3.13; this is Linux


def _zeros(count: int, dtype: torch.dtype, device: str) -> Tensor:
    """On the CPU only the pages that are touched take memory: it fits on a small machine."""
    if device == "cuda":
        return torch.zeros(count, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype)


def _far_rows(rows: int, n: int, stride: int, dtype: torch.dtype, device: str) -> Tensor:
    storage = _zeros((rows - 1) * stride + n, dtype, device)
    return storage.as_strided((rows, n), (stride, 1))


@pytest.mark.parametrize("shift", [0, 1])
def test_rows_beyond_2_31_elements(shift: int, device: str, algorithm: str) -> None:
    stride = (2**31 if device == "cuda" else 2**32) + shift
    scores = _far_rows(3, N, stride, torch.bfloat16, device)
    scores.copy_(make_rows("quantised_4097", 3, N, K, device=device, dtype=torch.bfloat16))
    hint = make_hint("previous_step", scores, K)
    check_call(exact_answer(scores, K), scores, K, algorithm=algorithm, hint=hint)


def test_hints_beyond_2_31_elements(device: str, algorithm: str) -> None:
    """The last row's hint is the answer, and telemetry shows that it was read."""
    scores = make_rows("normal", 3, N, K, device=device)
    hint = _far_rows(3, K, 2**30 + 1, torch.int32, device)
    hint.copy_(make_hint("exact", scores, K))
    values, indices, stats = gvr_topk.explain(scores, K, hint=hint, algorithm=algorithm)
    assert_exact(exact_answer(scores, K), indices, values)
    assert stats.hint_hits.tolist() == [K] * 3


def test_outputs_beyond_2_31_elements(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device, dtype=torch.bfloat16)
    values = _far_rows(3, K, 2**30 + 1, torch.bfloat16, device)
    indices = _far_rows(3, K, 2**30 + 1, torch.int32, device)
    gvr_topk.topk(scores, K, algorithm=algorithm, out=(values, indices))
    assert_exact(exact_answer(scores, K), indices, values)


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


def test_a_state_of_more_than_2_31_words(device: str) -> None:
    """As TopKCache makes it, which would touch all of it on the CPU."""
    slots = 2**31 // (4 + K) + 10
    state = _zeros(slots * (4 + K), torch.int32, device).view(1, slots, 1, 4 + K)
    scores = make_rows("normal", 3, N, K, device=device)
    chosen = torch.tensor([slots - 1, 0, slots - 2], device=device)
    for hits in (0, K):
        _, indices, stats = torch.ops.gvr.step_stats(
            scores, state, 0, K, slots=chosen, algorithm="gvr"
        )
        assert_exact(exact_answer(scores, K), indices)
        assert gvr_topk.Stats(stats).hint_hits.tolist() == [hits] * 3
    stored = state[0, chosen, 0, 4:].sort(-1).values
    assert torch.equal(stored, indices.sort(-1).values)
    if device == "cuda":
        assert int((state[0, :, 0, 0] != 0).sum()) == 3


@needs_gpu
def test_rows_of_more_than_2_30_scores(algorithm: str) -> None:
    n = 2**30 + 7
    scores = torch.zeros(1, n, dtype=torch.bfloat16, device="cuda")
    winners = torch.tensor([0, 5, 2**30 - 1, 2**30, n - 1], device="cuda")
    scores[0, winners] = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.bfloat16, device="cuda")
    indices = gvr_topk.topk_indices(scores, 7, algorithm=algorithm, sorted=True)
    assert indices.tolist() == [[n - 1, 2**30, 2**30 - 1, 5, 0, 1, 2]]
