# SPDX-License-Identifier: Apache-2.0
"""A server's day: graphs replayed for hours, memory that comes and goes, caches side by side."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from cases import stack_rows
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk
from gvr_topk import TopKCache
from gvr_topk.testing import tuning

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")

N, K = 3000, 128
KINDS = ["normal", "quantised_33", "relu_99_percent_zero", "constant", "some_nan", "recorded"]


def _ordered(answer_or_indices: Tensor) -> Tensor:
    """The set of every row, comparable: int32, ascending, -1 first."""
    return answer_or_indices.to(torch.int32).sort(-1).values


def _drive(cache: TopKCache, seed: int, device: str, steps: int) -> None:
    """A decode of its own: drifting rows, slots in another order at every step."""
    rows = cache.slots
    for step in range(steps):
        kind = KINDS[(seed + step) % len(KINDS)]
        scores = make_rows(kind, rows, N, K, device=device, seed=seed + step)
        slots = torch.arange(rows, device=device).roll(step)
        lengths = torch.arange(N, N - rows, -1, device=device) * (step % 3 > 0)
        indices = cache.step(scores, step % cache.layers, slots, lengths)
        assert_exact(exact_answer(scores, K, lengths=lengths), indices, label=f"{seed}, {step}")


def test_caches_of_two_threads_do_not_meet(device: str) -> None:
    """On the GPU each thread has a stream of its own."""
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            cache = TopKCache(2, 4, K, device=device)
            if device == "cuda":
                stream = torch.cuda.Stream()
                stream.wait_stream(torch.cuda.default_stream())
                with torch.cuda.stream(stream):
                    _drive(cache, seed, device, 20)
            else:
                _drive(cache, seed, device, 20)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(100 * seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, wrong


def test_caches_side_by_side_keep_to_themselves(device: str) -> None:
    first, second = (TopKCache(1, 3, K, device=device) for _ in range(2))
    scores = make_rows("normal", 3, N, K, device=device)
    first.step(scores, 0)
    assert not bool(second.state.any())
    before = first.state.clone()
    second.step(make_rows("quantised_33", 3, N, K, device=device), 0)
    assert torch.equal(first.state, before)


def _replayable(
    cache: TopKCache, scores: Tensor, lengths: Tensor, slots: Tensor
) -> tuple[gvr_topk.TopKResult, list[Tensor]]:
    """A step and a sorted stateless call, as a decoder's graph would have them, and one call of
    every family, each hinted by the answer of the one before."""
    unsorted = [cache.step(scores, 0, slots, lengths)]
    in_order = gvr_topk.topk(scores, K, hint=unsorted[0], lengths=lengths, sorted=True)
    for family in ("resident", "stream", "gvr", "radix"):
        unsorted.append(
            gvr_topk.topk_indices(scores, K, hint=unsorted[-1], lengths=lengths, algorithm=family)
        )
    return in_order, unsorted


@needs_gpu
def test_ten_thousand_replays_of_one_graph() -> None:
    """Data, lengths (grown, shrunk, 0, -1) and slots change before every replay; each is checked,
    on the device, so that the host never waits and replays follow each other closely."""
    rows, bank, replays = 8, 40, 10_000
    kinds = [KINDS[i % len(KINDS)] for i in range(bank)]
    data = torch.stack(
        [
            make_rows(kind, rows, N, K, device="cuda", seed=number)
            for number, kind in enumerate(kinds)
        ]
    )
    edges = torch.tensor([N, 0, -1, 1, K, K + 1, K - 1, 2 * N, N // 2, -4], device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    drawn = torch.randint(0, N, (bank, rows), generator=generator, device="cuda")
    which = torch.randint(0, len(edges), (bank, rows), generator=generator, device="cuda")
    all_lengths = torch.where(drawn % 2 == 0, drawn, edges[which])
    answers = [exact_answer(data[i], K, lengths=all_lengths[i]) for i in range(bank)]
    best = torch.stack([answer.indices.to(torch.int32) for answer in answers])
    expected = _ordered(best)

    cache = TopKCache(1, rows + 2, K, device="cuda")
    scores, lengths = data[0].clone(), all_lengths[0].clone()
    slots = torch.arange(rows, device="cuda")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _replayable(cache, scores, lengths, slots)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        in_order, unsorted = _replayable(cache, scores, lengths, slots)

    wrong = torch.zeros((), dtype=torch.int64, device="cuda")
    for replay in range(replays):
        at = replay * 7 % bank
        scores.copy_(data[at])
        lengths.copy_(all_lengths[at])
        slots.copy_((slots + 2) % (rows + 3) - 1)  # the next one each; -1 is among them
        graph.replay()
        differs = _ordered(torch.stack(unsorted)) != expected[at]
        wrong += differs.any() | (in_order.indices != best[at]).any()
        if replay % 1000 == 999:
            assert_exact(answers[at], *reversed(in_order), sorted=True, label=f"{replay}")
    assert int(wrong) == 0, f"{int(wrong)} of {replays} replays"


@needs_gpu
def test_thousands_of_calls_on_several_streams() -> None:
    """A soak: nothing waits, shapes and families alternate, every result is compared on its own
    stream."""
    shapes = [(4, 3000, 128), (1, 40_000, 512), (64, 900, 100), (2, 9000, 4096)]
    rows = [
        make_rows(KINDS[i % len(KINDS)], *shape, device="cuda") for i, shape in enumerate(shapes)
    ]
    expected = [
        _ordered(exact_answer(s, k).indices) for s, (_, _, k) in zip(rows, shapes, strict=True)
    ]
    hints = [make_hint("overlap_6_tenths", s, k) for s, (_, _, k) in zip(rows, shapes, strict=True)]
    streams = [torch.cuda.Stream() for _ in range(4)]
    wrong = torch.zeros(len(streams), dtype=torch.int64, device="cuda")
    torch.cuda.synchronize()
    for call in range(4000):
        lane = call % len(streams)
        which = (call // 3) % len(shapes)
        with torch.cuda.stream(streams[lane]):
            indices = gvr_topk.topk_indices(
                rows[which],
                shapes[which][2],
                hint=hints[which] if call % 2 else None,
                algorithm=("auto", "gvr", "resident", "stream", "radix")[call % 7 % 5],
            )
            wrong[lane] += (_ordered(indices) != expected[which]).any()
    torch.cuda.synchronize()
    assert wrong.tolist() == [0] * len(streams)


@needs_gpu
def test_inputs_may_be_freed_while_the_kernel_waits(algorithm: str) -> None:
    """Whatever a call copies or allocates lives in its stream's order: garbage that is written into
    freed memory afterwards comes too late to be read."""
    busy = torch.randn(2048, 2048, device="cuda")
    kept = make_rows("normal", 6, N, K, device="cuda")
    answer = exact_answer(kept, K)
    torch.cuda.synchronize()
    results = []
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(20):
            for _ in range(3):
                busy = busy @ busy * 1e-3
            # A last dimension that is not dense: the operator makes a dense copy of its own.
            scores = kept.T.contiguous().T
            hint = make_hint("overlap_5_tenths", kept, K).T.contiguous().T
            lengths = torch.full((6, 2), N, device="cuda")[:, 0]
            results.append(
                gvr_topk.topk(scores, K, hint=hint, lengths=lengths, algorithm=algorithm)
            )
            del scores, hint, lengths
            garbage = [torch.full((6, N), torch.nan, device="cuda") for _ in range(3)]
            garbage += [torch.full((6, K), 2**30, dtype=torch.int32, device="cuda")]
            garbage += [torch.full((6,), 5, device="cuda")]
            del garbage
    torch.cuda.synchronize()
    for values, indices in results:
        assert_exact(answer, indices, values)


# 2^20 rows of 2^27 winners: more than any address space holds.
TOO_MANY_ROWS, TOO_LARGE_K = 1 << 20, 1 << 27


def test_memory_that_is_not_there_is_torchs_error(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 1, 10, 5, device=device)
    error = torch.OutOfMemoryError if device == "cuda" else RuntimeError
    calls: list[Callable[..., object]] = [
        gvr_topk.topk,
        gvr_topk.topk_indices,
        gvr_topk.explain,
    ]
    for call in calls:
        with pytest.raises(error, match="memory"):
            call(scores.expand(TOO_MANY_ROWS, 10), TOO_LARGE_K, algorithm=algorithm)
        result = gvr_topk.topk(scores, 5, algorithm=algorithm)
        assert_exact(exact_answer(scores, 5), result.indices, result.values)


def test_a_step_without_memory_leaves_the_state_usable(device: str, algorithm: str) -> None:
    cache = TopKCache(1, 3, K, device=device)
    scores = make_rows("normal", 3, N, K, device=device)
    cache.step(scores, 0, algorithm=algorithm)
    before = cache.state.clone()
    many = scores[:1].expand(TOO_MANY_ROWS, N)
    slots = torch.full((1,), -1, dtype=torch.int32, device=device).expand(TOO_MANY_ROWS)
    error = torch.OutOfMemoryError if device == "cuda" else RuntimeError
    with pytest.raises(error, match="memory"):
        torch.ops.gvr.step(many, cache.state, 0, TOO_LARGE_K, slots=slots, algorithm=algorithm)
    assert torch.equal(cache.state, before)
    assert_exact(exact_answer(scores, K), cache.step(scores, 0, algorithm=algorithm))


@needs_gpu
def test_a_nearly_full_device_gives_the_same_answer(algorithm: str) -> None:
    """No hidden workspace: a call whose outputs exist needs no further memory."""
    scores = stack_rows(["normal", "constant"], 60_000, 2048, "cuda")
    answer = exact_answer(scores, 2048)
    values = torch.empty(4, 2048, device="cuda")
    indices = torch.empty(4, 2048, dtype=torch.int32, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(
        max(1.0, torch.cuda.memory_reserved()) / total, device=0
    )
    try:
        gvr_topk.topk(scores, 2048, algorithm=algorithm, out=(values, indices))
        torch.cuda.synchronize()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device=0)
    assert_exact(answer, indices, values)


@needs_two_gpus
@pytest.mark.parametrize("current", [0, 1])
def test_every_call_runs_on_the_device_of_its_tensors(current: int, algorithm: str) -> None:
    """Device 1 while device 0 is current and the other way round, both at work at once."""
    with torch.cuda.device(current):
        for repeat in range(3):
            work = []
            for device in ("cuda:0", "cuda:1"):
                scores = stack_rows(["quantised_33", "some_nan"], 20_000, 600, device, seed=repeat)
                cache = TopKCache(1, 4, 600, device=device)
                hint = make_hint("previous_step", scores, 600)
                results = [
                    cache.step(scores, 0, algorithm=algorithm),
                    gvr_topk.topk_indices(scores, 600, hint=hint, algorithm=algorithm),
                    gvr_topk.topk(scores, 5000, sorted=True, algorithm=algorithm).indices,
                    cache.step(scores, 0, algorithm=algorithm),
                ]
                work.append((scores, results))
            assert torch.cuda.current_device() == current
            for scores, results in work:
                answers = {k: exact_answer(scores, k) for k in (600, 5000)}
                for indices in results:
                    k = indices.shape[1]
                    assert_exact(answers[k], indices, sorted=k == 5000)


@needs_two_gpus
def test_a_graph_of_the_second_device_is_right_while_the_first_is_current() -> None:
    scores = make_rows("normal", 4, N, K, device="cuda:1")
    with torch.cuda.device(1):
        gvr_topk.topk_indices(scores, K)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            indices = gvr_topk.topk_indices(scores, K)
    for seed in range(3):
        scores.copy_(make_rows("quantised_33", 4, N, K, device="cuda:1", seed=seed))
        torch.cuda.synchronize(1)
        with torch.cuda.device(1):
            graph.replay()
        torch.cuda.synchronize(1)
        assert_exact(exact_answer(scores, K), indices)


def test_tuning_of_one_thread_is_not_another_ones(device: str) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.append(gvr_topk._C.get_tuning()["staging"])

    with tuning(staging=99):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == [0]
