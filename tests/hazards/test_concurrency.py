# SPDX-License-Identifier: Apache-2.0
"""Work beside other work: undrained queues, busy devices, several threads and streams."""

from __future__ import annotations

import threading

import pytest
import torch
from cases import stack_rows
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk
from gvr_topk.testing import tuning

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("slices", [1, 4, 16])
def test_many_calls_without_draining_the_queue(slices: int, device: str, algorithm: str) -> None:
    """A missing barrier before a cross-block release shows in one launch of hundreds."""
    scores = stack_rows(["normal", "quantised_33", "relu_90_percent_zero"], 9000, 300, device)
    answer = exact_answer(scores, 300)
    hint = make_hint("overlap_6_tenths", scores, 300)
    calls = 300 if device == "cuda" else 10
    with tuning(ctas_per_row=slices):
        results = [
            gvr_topk.topk_indices(
                scores, 300, hint=hint if call % 2 else None, algorithm=algorithm
            ).sort(-1)
            for call in range(calls)
        ]
    expected = answer.indices.sort(-1).values
    for call, (indices, _) in enumerate(results):
        assert torch.equal(indices, expected.to(torch.int32)), f"call {call}"


def test_callers_on_several_threads(device: str, algorithm: str) -> None:
    """Tuning and scratch belong to the calling thread; every caller gets its own answer."""
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            scores = make_rows("quantised_33", 3, 4000 + 500 * seed, 200, device=device, seed=seed)
            answer = exact_answer(scores, 200)
            with tuning(staging=1 + seed, chunk=64 << seed, ctas_per_row=1 << seed):
                for call in range(10):
                    result = gvr_topk.topk(scores, 200, algorithm=algorithm)
                    assert_exact(answer, result.indices, result.values, label=f"{seed}, {call}")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def _row_whose_floor_depends_on_its_hint(n: int, device: str) -> Tensor:
    """Three peaks where csrc/cpu/guess.cpp samples a row of this length (128 blocks of 16): with a
    good hint the floor admits them alone, without one it admits about fifty scores."""
    scores = make_rows("normal", 1, n, 30, device=device)
    stride = n // 128
    for block in (5, 50, 100):
        hashed = (block * 0x9E3779B1) & 0xFFFFFFFF
        scores[0, block * stride + (hashed * (stride - 15) >> 32)] = 1000.0
    return scores


def test_a_hint_that_changes_during_the_call_never_changes_the_answer(
    device: str, algorithm: str
) -> None:
    """Slices of a row may read a hint at different times; their thresholds must agree all the
    same, or one refuses what the others count on."""
    n, k = 100_000, 30
    scores = _row_whose_floor_depends_on_its_hint(n, device)
    answer = exact_answer(scores, k)
    good = answer.indices.to(torch.int32)
    none = torch.full_like(good, -1)
    hint, ended = good.clone(), threading.Event()

    def rewrite() -> None:
        side = torch.cuda.Stream() if device == "cuda" else None
        with torch.cuda.stream(side):
            while not ended.is_set():
                hint.copy_(good)
                hint.copy_(none)
                if side is not None:
                    side.synchronize()

    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        with tuning(ctas_per_row=4):
            for call in range(400):
                indices = gvr_topk.topk_indices(scores, k, hint=hint, algorithm=algorithm)
                assert_exact(answer, indices, label=f"call {call}")
    finally:
        ended.set()
        writer.join()
        torch.set_num_threads(threads)


@needs_gpu
@pytest.mark.parametrize("slices", [1, 8, 16])
def test_finishes_on_a_device_that_is_busy(slices: int, algorithm: str) -> None:
    """A kernel that spins on blocks that are not resident would never end."""
    busy = torch.randn(4096, 4096, device="cuda")
    scores = make_rows("normal", 300, 30_000, 512, device="cuda")
    answer = exact_answer(scores, 512)
    torch.cuda.synchronize()
    sides = [torch.cuda.Stream() for _ in range(4)]
    results: list[Tensor] = []
    with tuning(ctas_per_row=slices):
        for _ in range(10):
            for number, side in enumerate(sides):
                with torch.cuda.stream(side):
                    if number % 2:
                        busy @ busy
                    else:
                        results.append(gvr_topk.topk_indices(scores, 512, algorithm=algorithm))
    torch.cuda.synchronize()
    for indices in results:
        assert_exact(answer, indices)
