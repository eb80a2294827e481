# SPDX-License-Identifier: Apache-2.0
"""The contract, one promise per test."""

from __future__ import annotations

import pytest
import torch
from cases import check_call, check_paths_and_hints, stack_rows
from generators import HINTS, cross_hints, make_hint, make_rows, row_names
from oracle import assert_exact, bits, exact_answer, gather_values

import gvr_topk
from gvr_topk.traces import packaged_trace

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("sorted", [False, True], ids=["unsorted", "sorted"])
def test_answer_is_the_exact_topk_of_every_kind_of_row(
    sorted: bool, device: str, dtype: torch.dtype, algorithm: str
) -> None:
    scores = stack_rows(row_names(), 3000, 256, device, dtype=dtype)
    answer = exact_answer(scores, 256)
    check_call(answer, scores, 256, algorithm=algorithm, sorted=sorted)


def test_answer_is_exact_at_model_sizes(device: str, dtype: torch.dtype, algorithm: str) -> None:
    names = ["negative_mean", "relu_90_percent_zero", "quantised_4097", "random_bits"]
    scores = stack_rows(names, 40_000, 2048, device, dtype=dtype, each=1)
    answer = exact_answer(scores, 2048)
    hint = make_hint("previous_step", scores, 2048)
    check_call(answer, scores, 2048, algorithm=algorithm)
    check_call(answer, scores, 2048, algorithm=algorithm, hint=hint)


def test_answer_is_exact_on_recorded_rows(device: str, dtype: torch.dtype, algorithm: str) -> None:
    """Consecutive decode steps of a real layer, each hinted by the answer of the one before."""
    trace = packaged_trace(device)
    steps = [trace.scores(step, 16_384).to(dtype) for step in (20, 21, 22, 23)]
    hint = None
    for scores in steps:
        answer = exact_answer(scores[None], 2048)
        result = check_call(answer, scores, 2048, hint=hint, hint_offset=-1, algorithm=algorithm)
        hint = result.indices[None]


@pytest.mark.parametrize("name", ["normal", "quantised_33", "relu_99_percent_zero", "random_bits"])
def test_answer_does_not_depend_on_the_hint(
    name: str, device: str, dtype: torch.dtype, algorithm: str
) -> None:
    scores = make_rows(name, 3, 5000, 300, device=device, dtype=dtype)
    check_paths_and_hints(scores, 300, algorithm, tunings=("default",))


@pytest.mark.parametrize("width", [0, 1, 7, 100, 2500, 6000])
def test_hint_may_be_shorter_or_longer_than_k(width: int, device: str, algorithm: str) -> None:
    scores = make_rows("normal", 4, 5000, 300, device=device)
    hint = exact_answer(scores, 5000).indices.to(torch.int32)
    hint = torch.cat([hint, hint.flip(-1)], dim=-1)[:, :width]
    check_call(exact_answer(scores, 300), scores, 300, hint=hint, algorithm=algorithm)


@pytest.mark.parametrize("offset", [0, 1, -1, 4999, -5000, 2**31 - 1, 1 - 2**31])
def test_hint_offset_moves_the_hint_and_never_the_answer(offset: int, device: str) -> None:
    scores = make_rows("normal", 2, 5000, 300, device=device)
    rows, hint = cross_hints(scores, 300)
    answer = exact_answer(scores, 300).rows(torch.arange(2).repeat(len(HINTS)))
    check_call(answer, rows, 300, hint=hint, hint_offset=offset)


def test_lowest_index_wins_among_equal_scores(device: str, algorithm: str) -> None:
    scores = torch.zeros(2, 4000, device=device)
    scores[1, 1000:1100] = 1.0
    indices = gvr_topk.topk(scores, 300, algorithm=algorithm, sorted=True).indices
    assert indices[0].tolist() == list(range(300))
    assert indices[1].tolist() == [*range(1000, 1100), *range(200)]


def test_set_is_a_function_of_the_row_alone(device: str, algorithm: str) -> None:
    """Alone, in any batch, at any position, in any repetition: the same indices."""
    row = make_rows("quantised_33", 1, 6000, 500, device=device)
    alone = gvr_topk.topk_indices(row, 500, algorithm=algorithm).sort(-1).values
    others = make_rows("normal", 40, 6000, 500, device=device, seed=1)
    for position in (0, 1, 17, 39):
        others[position] = row
        for size in (position + 1, 40):
            indices = gvr_topk.topk_indices(others[:size], 500, algorithm=algorithm)
            assert torch.equal(indices[position].sort().values, alone[0])


def test_nan_is_the_largest_and_infinities_are_ordinary(device: str, algorithm: str) -> None:
    scores = torch.tensor([[1.0, -INF, NAN, INF, -NAN, 2.0, -INF, INF]], device=device)
    for k in range(1, 9):
        indices = gvr_topk.topk(scores, k, sorted=True, algorithm=algorithm).indices
        assert indices.tolist() == [[2, 4, 3, 7, 5, 0, 1, 6][:k]]


def test_zeros_of_both_signs_are_equal_and_keep_their_sign(device: str, algorithm: str) -> None:
    scores = torch.tensor([[-0.0, 0.0, -1.0, 0.0, -0.0]], device=device).repeat(1, 100)
    values, indices = gvr_topk.topk(scores, 250, sorted=True, algorithm=algorithm)
    zeros = (scores[0] == 0).nonzero().flatten()[:250]
    assert torch.equal(indices[0].to(torch.int64), zeros)
    assert torch.equal(values[0].signbit(), scores[0, zeros].signbit())


@pytest.mark.parametrize("sorted", [False, True], ids=["unsorted", "sorted"])
def test_short_rows_give_every_index_and_then_padding(
    sorted: bool, device: str, algorithm: str
) -> None:
    scores = make_rows("normal", 6, 400, 100, device=device)
    lengths = torch.tensor([0, 1, 2, 99, 100, 101], device=device)
    answer = exact_answer(scores, 100, lengths=lengths)
    arguments = {"lengths": lengths, "algorithm": algorithm, "sorted": sorted}
    indices = check_call(answer, scores, 100, **arguments).indices
    if not sorted:
        for row, length in enumerate([0, 1, 2, 99, 100]):
            assert indices[row, :length].tolist() == list(range(length))


def test_minus_infinity_is_selected_before_padding(device: str, algorithm: str) -> None:
    scores = make_rows("fewer_than_k_finite", 3, 500, 300, device=device)
    result = check_call(exact_answer(scores, 300), scores, 300, algorithm=algorithm)
    assert bool((result.indices >= 0).all())


def test_sorted_is_score_descending_then_index_ascending(device: str, dtype: torch.dtype) -> None:
    for k in (1, 33, 512, 2048, 2999):
        scores = stack_rows(row_names(), 3000, k, device, each=1, dtype=dtype)
        check_call(exact_answer(scores, k), scores, k, sorted=True)


def test_sorted_beyond_the_fused_sort(device: str) -> None:
    scores = stack_rows(["quantised_4097", "random_bits", "some_nan"], 10_000, 9000, device)
    lengths = torch.tensor([10_000, 8999, 0, 9000, 9500, 100], device=device)
    answer = exact_answer(scores, 9000, lengths=lengths)
    check_call(answer, scores, 9000, lengths=lengths, sorted=True)
    indices = gvr_topk.topk_indices(scores, 9000, lengths=lengths, sorted=True)
    assert_exact(answer, indices, sorted=True)


def test_values_are_bit_for_bit_the_scores_at_the_indices(
    device: str, dtype: torch.dtype, algorithm: str
) -> None:
    scores = make_rows("random_bits", 8, 2000, 1500, device=device, dtype=dtype)
    values, indices = gvr_topk.topk(scores, 1500, algorithm=algorithm)
    assert torch.equal(bits(values), bits(gather_values(scores, indices)))


K_EDGES = [1, 2, 3, 31, 32, 33, 511, 512, 513, 2047, 2048, 2049, 4096, 4097, 8191, 8192, 8193]


@pytest.mark.parametrize("k", [*K_EDGES, 9999, 10_000, 10_001, 20_000])
def test_any_k(k: int, device: str, algorithm: str) -> None:
    scores = stack_rows(["normal", "quantised_33"], 10_000, min(k, 10_000), device, each=1)
    answer = exact_answer(scores, k)
    hint = make_hint("previous_step", scores, k)
    check_call(answer, scores, k, algorithm=algorithm, label="no hint")
    check_call(answer, scores, k, algorithm=algorithm, hint=hint, sorted=True, label="hint")


def test_indices_alone_are_the_same(device: str, dtype: torch.dtype, algorithm: str) -> None:
    scores = stack_rows(row_names(), 2000, 200, device, dtype=dtype, each=1)
    answer = exact_answer(scores, 200)
    assert_exact(answer, gvr_topk.topk_indices(scores, 200, algorithm=algorithm))
    indices = gvr_topk.topk_indices(scores, 200, algorithm=algorithm, sorted=True)
    assert_exact(answer, indices, sorted=True)


def test_inputs_are_left_alone(device: str, algorithm: str) -> None:
    scores = make_rows("random_bits", 4, 3000, 300, device=device)
    hint = make_hint("random_bits", scores, 300)
    lengths = torch.tensor([3000, 10, 0, -1], device=device)
    before = bits(scores).clone(), hint.clone(), lengths.clone()
    gvr_topk.topk(scores, 300, hint=hint, lengths=lengths, algorithm=algorithm)
    after = bits(scores), hint, lengths
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_answer_does_not_depend_on_the_number_of_threads() -> None:
    scores = stack_rows(["quantised_33", "normal"], 70_000, 2048, "cpu", each=1)
    answer = exact_answer(scores, 2048)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            check_call(answer, scores, 2048, label=f"{count} threads")
            check_call(answer.rows(slice(1)), scores[:1], 2048, label=f"{count} threads, one row")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_both_devices_give_the_same_indices(dtype: torch.dtype, algorithm: str) -> None:
    scores = stack_rows(row_names(), 4000, 300, "cpu", dtype=dtype, each=1)
    rows, hint = cross_hints(scores, 300)
    lengths = torch.arange(4000, 4000 - len(rows), -1)
    on_cpu, on_gpu = (
        gvr_topk.topk(
            rows.to(device),
            300,
            hint=hint.to(device),
            lengths=lengths.to(device),
            sorted=True,
            algorithm=algorithm,
        )
        for device in ("cpu", "cuda")
    )
    assert torch.equal(on_cpu.indices, on_gpu.indices.cpu())
    assert torch.equal(bits(on_cpu.values), bits(on_gpu.values.cpu()))
