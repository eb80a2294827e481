# SPDX-License-Identifier: Apache-2.0
"""Streams and CUDA graphs: nothing synchronises, and a captured call stays right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk
from gvr_topk import TopKCache

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

ROWS, N, K = 6, 20_000, 512
KINDS = ["normal", "quantised_33", "relu_99_percent_zero", "constant", "random_bits", "some_nan"]


def _capture(call: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """A graph of one call, after a warm-up on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def _lengths(step: int) -> Tensor:
    choices = [[N] * ROWS, [N, 0, -1, 1, K, K + 1], [100, N, 5000, K - 1, 2 * N, 7]]
    return torch.tensor(choices[step % 3], device="cuda")


@pytest.mark.parametrize("sorted", [False, True], ids=["unsorted", "sorted"])
def test_a_graph_is_right_after_data_lengths_and_hints_change(
    sorted: bool, algorithm: str, dtype: torch.dtype
) -> None:
    scores = make_rows("normal", ROWS, N, K, device="cuda", dtype=dtype)
    lengths, starts = _lengths(0), torch.zeros(ROWS, dtype=torch.int32, device="cuda")
    hint = make_hint("exact", scores, K)
    values = torch.empty(ROWS, K, dtype=dtype, device="cuda")
    indices = torch.empty(ROWS, K, dtype=torch.int32, device="cuda")
    window = {"lengths": lengths, "starts": starts}

    def call() -> None:
        gvr_topk.topk(
            scores,
            K,
            hint=hint,
            sorted=sorted,
            algorithm=algorithm,
            out=(values, indices),
            **window,
        )

    graph = _capture(call)
    for step, kind in enumerate(KINDS):
        scores.copy_(make_rows(kind, ROWS, N, K, device="cuda", dtype=dtype, seed=step))
        lengths.copy_(_lengths(step))
        starts.fill_(17 * (step % 2))
        hint.copy_(make_hint("previous_step" if step % 2 else "random_bits", scores, K))
        values.fill_(-7)
        indices.fill_(-7)
        graph.replay()
        answer = exact_answer(scores, K, **window)
        assert_exact(answer, indices, values, sorted=sorted, label=kind)


def test_functional_calls_can_be_captured() -> None:
    scores = make_rows("normal", ROWS, N, K, device="cuda")
    results: list[Tensor] = []

    def call() -> None:
        results[:] = [gvr_topk.topk_indices(scores, K)]

    graph = _capture(call)
    for seed in range(3):
        scores.copy_(make_rows("normal", ROWS, N, K, device="cuda", seed=seed))
        graph.replay()
        assert_exact(exact_answer(scores, K), results[0])


def test_a_captured_step_advances_its_state(algorithm: str) -> None:
    cache, plain = (TopKCache(1, ROWS, K, device="cuda") for _ in range(2))
    scores = make_rows("normal", ROWS, N, K, device="cuda")
    lengths = _lengths(0)
    slots = torch.arange(ROWS - 1, -1, -1, device="cuda")
    results: list[Tensor] = []

    def call() -> None:
        results[:] = [cache.step(scores, 0, slots, lengths, algorithm=algorithm)]

    graph = _capture(call)
    cache.reset()
    for step, kind in enumerate(KINDS):
        scores.copy_(make_rows(kind, ROWS, N, K, device="cuda", seed=step))
        lengths.copy_(_lengths(step))
        slots.copy_(slots.roll(1))
        slots[step % ROWS] = -1
        graph.replay()
        assert_exact(exact_answer(scores, K, lengths=lengths), results[0], label=kind)
        plain.step(scores, 0, slots, lengths, algorithm=algorithm)
        words = [0, 3]  # count and accepted draft; the order of the hints is free
        assert torch.equal(cache.state[..., words], plain.state[..., words])
        slots.copy_(torch.arange(ROWS, device="cuda"))


def test_reset_copy_and_commit_can_be_captured() -> None:
    cache = TopKCache(2, 4, K, depth=2, device="cuda")
    scores = make_rows("normal", 8, N, K, device="cuda")
    source, target = (torch.tensor([i], device="cuda") for i in (0, 1))
    draft = torch.zeros(1, dtype=torch.int32, device="cuda")

    def call() -> None:
        cache.copy(source, target)
        cache.commit(source, draft)
        cache.reset(source)

    graph = _capture(call)
    for first in (0, 2):
        for layer in range(2):
            cache.step(scores, layer, next_n=2)
        source.fill_(first)
        target.fill_(3)
        before = cache.state[:, first].clone()
        graph.replay()
        assert torch.equal(cache.state[:, 3], before)
        assert not bool(cache.state[:, first, :, :4].any())


def test_no_call_waits_for_the_host(algorithm: str) -> None:
    scores = make_rows("normal", ROWS, N, K, device="cuda")
    hint, lengths = make_hint("exact", scores, K), _lengths(1)
    cache = TopKCache(1, ROWS, K, device="cuda")
    slots = torch.arange(ROWS, device="cuda")
    gvr_topk.topk(scores, K, algorithm=algorithm)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gvr_topk.topk(scores, K, hint=hint, lengths=lengths, algorithm=algorithm, sorted=True)
        gvr_topk.topk_indices(scores, K, algorithm=algorithm)
        cache.step(scores, 0, slots, lengths, algorithm=algorithm)
        cache.commit(slots, torch.zeros_like(slots))
        cache.copy(slots[:2], slots[2:4])
        cache.reset(slots[:1])
        cache.reset()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_depends_on_the_shape_alone(algorithm: str) -> None:
    peaks = set()
    for kind in KINDS:
        scores = make_rows(kind, ROWS, N, K, device="cuda")
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = gvr_topk.topk(scores, K, algorithm=algorithm)
        peaks.add(torch.cuda.max_memory_allocated() - before)
        del result
    assert len(peaks) == 1


def test_no_workspace_is_proportional_to_the_scores(algorithm: str) -> None:
    rows, n = 64, 262_144
    scores = make_rows("constant", rows, n, K, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    gvr_topk.topk_indices(scores, K, algorithm=algorithm)
    assert torch.cuda.max_memory_allocated() - before < scores.nbytes // 8


def test_calls_follow_the_current_stream(algorithm: str) -> None:
    """The scores appear late on a side stream; a call on another stream would read the old ones."""
    scores = torch.zeros(ROWS, N, device="cuda")
    fresh = make_rows("normal", ROWS, N, K, device="cuda")
    busy = torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(30):
            busy = busy @ busy * 1e-3
        scores.copy_(fresh)
        indices = gvr_topk.topk_indices(scores, K, algorithm=algorithm)
    side.synchronize()
    assert_exact(exact_answer(fresh, K), indices)


def test_two_streams_do_not_share_scratch(algorithm: str) -> None:
    kinds = ["normal", "quantised_33"]
    rows = [make_rows(kind, 32, N, K, device="cuda") for kind in kinds]
    streams = [torch.cuda.Stream() for _ in kinds]
    torch.cuda.synchronize()
    results: list[list[Tensor]] = [[], []]
    for _ in range(40):
        for which, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                results[which].append(gvr_topk.topk_indices(rows[which], K, algorithm=algorithm))
    torch.cuda.synchronize()
    for scores, found in zip(rows, results, strict=True):
        answer = exact_answer(scores, K)
        for indices in found:
            assert_exact(answer, indices)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
def test_calls_run_on_the_device_of_their_tensors() -> None:
    with torch.cuda.device(0):
        scores = make_rows("normal", ROWS, N, K, device="cuda:1")
        assert_exact(exact_answer(scores, K), gvr_topk.topk_indices(scores, K))
