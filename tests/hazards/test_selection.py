# SPDX-License-Identifier: Apache-2.0
"""Defects that shipped in other selections: rows and hints that a Top-K gets wrong.

Each test sends small rows down every path by overrides, and long ones down the usual path.
"""

from __future__ import annotations

import pytest
import torch
from cases import FEW_TUNINGS, check_call, check_paths, check_paths_and_hints, stack_rows
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk
from gvr_topk.testing import tuning

N, K = 1500, 64


def test_a_poor_hint_never_leaves_fewer_than_k(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 4, N, K, device=device)
    order = exact_answer(scores, N).indices.to(torch.int32)
    for hits in (0, 1, 2):
        hint = torch.cat([order[:, :hits], order[:, N - K + hits :]], dim=-1)
        check_paths(scores, K, algorithm, hint=hint)
    # The K best of the row but for the very best: a threshold there admits one score too few.
    check_paths(scores, K, algorithm, hint=order[:, :K].flip(-1)[:, : K // 2])
    check_paths(scores, K, algorithm, hint=order[:, :1].expand(4, K))


def test_a_poor_hint_at_model_size(device: str, algorithm: str) -> None:
    scores = make_rows("negative_mean", 2, 65_536, 2048, device=device)
    for name in ("bottom_k", "overlap_0_tenths", "argmax_only", "exact"):
        hint = make_hint(name, scores, 2048)
        check_paths(scores, 2048, algorithm, hint=hint, tunings=FEW_TUNINGS)


@pytest.mark.parametrize("position", [0, N // 2, N - 1])
def test_equal_hinted_scores_are_not_emitted_verbatim(
    position: int, device: str, algorithm: str
) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    repeated = torch.full((3, K), position, dtype=torch.int32, device=device)
    check_paths(scores, K, algorithm, hint=repeated)
    scores[:, :K] = scores[:, :1]
    first = torch.arange(K, dtype=torch.int32, device=device).expand(3, K)
    check_paths(scores, K, algorithm, hint=first)


@pytest.mark.parametrize("positives", [0, 1, 5, K - 1, K, K + 1])
def test_a_plateau_wider_than_any_buffer_keeps_every_greater_score(
    positives: int, device: str, algorithm: str
) -> None:
    scores = torch.zeros(3, N, device=device)
    scores[1] = -0.0
    scores[:, N - positives :] = 1.0 + torch.arange(positives, device=device)
    check_paths_and_hints(scores, K, algorithm)


@pytest.mark.parametrize("positives", [4, 2040, 2047, 2048, 2049])
def test_a_plateau_of_ten_thousand_zeros(positives: int, device: str, algorithm: str) -> None:
    scores = torch.zeros(2, 20_000, device=device)
    where = make_rows("normal", 2, 20_000, 1, device=device).argsort(-1)[:, :positives]
    scores.scatter_(1, where, make_rows("uniform", 2, positives, 1, device=device) + 0.1)
    for name in ("zeros", "exact", "bottom_k"):
        hint = make_hint(name, scores, 2048)
        check_paths(scores, 2048, algorithm, hint=hint, tunings=FEW_TUNINGS)


@pytest.mark.parametrize("zero", [1, 50, 90, 99])
def test_relu_rows(zero: int, device: str, algorithm: str) -> None:
    name = f"relu_{zero}_percent_zero"
    check_paths_and_hints(make_rows(name, 2, N, K, device=device), K, algorithm)


@pytest.mark.parametrize("gap", ["one_ulp_apart", "gaps_of_5e_8", "gaps_of_3e_6"])
def test_boundary_gaps_below_bin_resolution(gap: str, device: str, algorithm: str) -> None:
    check_paths_and_hints(make_rows(gap, 2, N, K, device=device), K, algorithm)
    longer = make_rows(gap, 2, 30_000, 2048, device=device)
    longer[1, 7] = 3e38  # stretches every linear bin
    check_paths(longer, 2048, algorithm, tunings=FEW_TUNINGS)


def test_a_tie_never_displaces_a_greater_score(device: str, algorithm: str) -> None:
    kinds = ["greater_scores_among_ties", "two_level_plateau", "quantised_33"]
    kinds += [f"kth_value_{copies}_times" for copies in (1, 2, 17, 5000)]
    check_paths_and_hints(stack_rows(kinds, N, K, device), K, algorithm)
    longer = stack_rows(kinds, 20_000, 2048, device, each=1)
    check_paths(longer, 2048, algorithm, tunings=FEW_TUNINGS)


def _bin_of(rows: int, n: int, above: int, inside: int, device: str) -> Tensor:
    """`above` winners, then `inside` scores one ulp apart, then nothing near."""
    rank = make_rows("normal", rows, n, 1, device=device).argsort(-1).argsort(-1)
    close = (torch.tensor(1.0, device=device).view(torch.int32) + rank.to(torch.int32)).view(
        torch.float32
    )
    scores = torch.where(rank < above, 10.0 + rank, -10.0 - rank)
    return torch.where((rank >= above) & (rank < above + inside), close, scores)


@pytest.mark.parametrize("edge", [32, 64, 96, 97, 128, 256, 512, 1024])
def test_exactly_a_buffer_and_one_more(edge: int, device: str, algorithm: str) -> None:
    """A crossing bin of capacity - 1, capacity and capacity + 1 distinct or equal scores."""
    for inside in (edge - 1, edge, edge + 1):
        distinct = _bin_of(2, N, K // 2, inside, device)
        equal = torch.where((distinct > 0.5) & (distinct < 9.0), 1.0, distinct)
        scores = torch.cat([distinct, equal])
        hint = make_hint("exact", scores, K)
        check_paths(scores, K, algorithm)
        for staging in (1, max(edge - K, 1), edge, edge + 1):
            with tuning(staging=staging, chunk=32):
                answer = exact_answer(scores, K)
                check_call(answer, scores, K, algorithm=algorithm, label=f"staging {staging}")
                check_call(answer, scores, K, algorithm=algorithm, hint=hint, label="with hint")


@pytest.mark.parametrize("inside", [4095, 4096, 4097, 8191, 8192, 8193, 12_289])
def test_default_buffers_and_one_more(inside: int, device: str, algorithm: str) -> None:
    distinct = _bin_of(1, 40_000, 100, inside, device)
    equal = torch.where((distinct > 0.5) & (distinct < 9.0), 1.0, distinct)
    scores = torch.cat([distinct, equal])
    hint = torch.arange(2048, dtype=torch.int32, device=device).expand(2, 2048)
    check_paths(scores, 2048, algorithm, tunings=FEW_TUNINGS)
    check_paths(scores, 2048, algorithm, hint=hint, tunings=FEW_TUNINGS)


def test_rows_inside_one_half_precision_bin(device: str, algorithm: str) -> None:
    kinds = ["low_mantissa_bits", "one_outlier", "subnormal"]
    check_paths_and_hints(stack_rows(kinds, N, K, device), K, algorithm)
    longer = stack_rows(kinds, 30_000, 2048, device, each=1)
    check_paths(longer, 2048, algorithm, tunings=FEW_TUNINGS)


SPECIAL = [
    "infinities_at_both_ends",
    "huge_first_minus_infinities_last",
    "more_than_k_plus_infinities",
    "fewer_than_k_finite",
    "all_minus_infinity",
    "some_nan",
    "more_than_k_nan",
    "all_nan",
    "both_zeros",
    "subnormal",
    "huge",
    "random_bits",
]


def test_infinities_nans_and_subnormals_are_ordinary(
    device: str, algorithm: str, dtype: torch.dtype
) -> None:
    check_paths_and_hints(stack_rows(SPECIAL, N, K, device, dtype=dtype, each=1), K, algorithm)
    longer = stack_rows(SPECIAL, 20_000, 2048, device, dtype=dtype, each=1)
    hint = make_hint("previous_step", longer, 2048)
    check_paths(longer, 2048, algorithm, tunings=FEW_TUNINGS)
    check_paths(longer, 2048, algorithm, hint=hint, tunings=FEW_TUNINGS)


@pytest.mark.parametrize("huge", [6e37, 3e38])
@pytest.mark.parametrize(
    ("n", "k"), [(1500, 64), (8192, 64), (8192, 128), (2200, 2048), (40_000, 64)]
)
def test_a_range_that_overflows_makes_no_infinity_a_winner(
    huge: float, n: int, k: int, device: str, algorithm: str
) -> None:
    scores = make_rows("normal", 2, n, k, device=device)
    scores[:, 0] = huge
    scores[:, n - 200 :] = -torch.inf
    scores[1, n - 100 :] = huge
    check_paths(scores, k, algorithm)
    check_paths(scores.to(torch.bfloat16), k, algorithm)


@pytest.mark.parametrize("special", [float("inf"), -float("inf"), float("nan"), -float("nan")])
@pytest.mark.parametrize("count", [1, K - 1, K, K + 1, N - 1, N])
def test_special_values_around_k(special: float, count: int, device: str, algorithm: str) -> None:
    scores = make_rows("normal", 2, N, K, device=device)
    scores.scatter_(1, scores.argsort(-1)[:, :count], special)
    check_paths(scores, K, algorithm, hint=make_hint("exact", scores, K))


@pytest.mark.parametrize("next_n", [1, 2, 4])
def test_lengths_around_k_and_not_positive(next_n: int, device: str, algorithm: str) -> None:
    given = [K - 1, K, K + 1, 0, 1, 2, -1, -4, N, N - 1, N + 1, 2**31 - 1, -(2**31)]
    for integer in (torch.int32, torch.int64):
        lengths = torch.tensor(given, dtype=integer, device=device)
        scores = make_rows("quantised_4097", len(given) * next_n, N, K, device=device)
        window = {"lengths": lengths, "next_n": next_n}
        check_paths(scores, K, algorithm, **window)
        hint = make_hint("exact", scores, K)
        check_paths(scores, K, algorithm, hint=hint, **window)


@pytest.mark.parametrize("poison", [3e38, float("inf"), float("nan")])
def test_poison_outside_the_window_never_appears(
    poison: float, device: str, algorithm: str
) -> None:
    ends = [N, N - 1, N - 3, N - 4, N - 17, 1024, 1023, 130, 66, 30, 0]
    starts = torch.tensor([0, 1, 3, 4, 15, 16, 17, 1, 1, 0, 9], device=device)
    lengths = torch.tensor(ends, device=device)
    scores = make_rows("normal", len(ends), N, K, device=device)
    position = torch.arange(N, device=device)
    outside = (position < starts[:, None]) | (position >= lengths[:, None])
    scores.masked_fill_(outside, poison)
    hint = make_hint("exact", scores, K)  # points at the poison
    window = {"lengths": lengths, "starts": starts}
    check_paths(scores, K, algorithm, **window)
    check_paths(scores, K, algorithm, hint=hint, **window)


def _edges(*values: int) -> list[int]:
    return sorted({value + delta for value in values for delta in (-1, 0, 1) if value + delta > 0})


def test_every_row_length_around_an_edge(device: str, algorithm: str) -> None:
    powers = [2**exponent for exponent in range(17)]
    for n in _edges(*powers, 1536, 3072, 6144, 12_288, 24_576):
        for k in {1, max(1, n // 2), min(n, 512)}:
            scores = make_rows("quantised_4097", 2, n, k, device=device)
            check_call(
                exact_answer(scores, k), scores, k, algorithm=algorithm, label=f"n {n}, k {k}"
            )


def test_every_k_around_an_edge(device: str, algorithm: str) -> None:
    scores = make_rows("quantised_4097", 2, 20_000, 2048, device=device)
    hint = make_hint("overlap_6_tenths", scores, 2048)
    for k in _edges(1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384):
        check_call(
            exact_answer(scores, k), scores, k, algorithm=algorithm, hint=hint, label=f"k {k}"
        )


def test_every_row_count_around_an_edge(device: str, algorithm: str) -> None:
    scores = make_rows("quantised_4097", 530, 5000, K, device=device)
    answer = exact_answer(scores, K)
    for rows in _edges(1, 4, 8, 16, 33, 66, 132, 264, 528):
        check_call(
            answer.rows(slice(rows)), scores[:rows], K, algorithm=algorithm, label=f"{rows} rows"
        )


def test_misaligned_odd_expanded_and_overlapping_rows(
    device: str, algorithm: str, dtype: torch.dtype
) -> None:
    storage = make_rows("random_bits", 1, 8 * N, K, device=device, dtype=dtype)[0]
    for offset in (0, 1, 2, 3, 5, 7):
        for stride in (0, 1, 3, N, N + 1, N + 5):
            scores = storage.as_strided((4, N), (stride, 1), offset)
            for name in ("default", "4 slices, tight", "16 slices"):
                check_paths(scores, K, algorithm, tunings=(name,))


def test_winners_where_samplers_tiles_and_slices_look(device: str, algorithm: str) -> None:
    kinds = ["peaks_at_samples", "winners_in_one_tile", "winners_at_the_end", "winners_at_stride"]
    kinds += ["ascending", "descending"]
    check_paths_and_hints(stack_rows(kinds, N, K, device, each=1), K, algorithm)
    longer = stack_rows(kinds, 100_000, 2048, device, each=1)
    check_paths(longer, 2048, algorithm, tunings=FEW_TUNINGS)


def _sampled_positions(n: int, device: str) -> Tensor:
    """Where csrc/cpu/guess.cpp looks at a row of 32,768 scores or more (128 blocks of 16), or
    csrc/cuda/phases/guess.cuh at one of binary32 that starts a line (512 pairs of vectors)."""
    if device == "cpu":
        block = torch.arange(128)
        hashed = (block * 0x9E3779B1) & 0xFFFFFFFF
        first = block * (n // 128) + (hashed * (n // 128 - 15) >> 32)
        return (first[:, None] + torch.arange(16)).flatten()
    pair = (torch.arange(512, dtype=torch.float32) * (n // 8 / 512)).to(torch.int64)
    return (8 * pair[:, None] + torch.arange(8)).flatten().to(device)


@pytest.mark.parametrize("sampled", [100.0, -100.0], ids=["the best", "the worst"])
def test_a_sample_of_nothing_but(sampled: float, device: str, algorithm: str) -> None:
    """Every sampled score is a winner and few others are, or none is: any guess is wrong."""
    n, k = 40_000, 6000
    scores = make_rows("normal", 2, n, k, device=device)
    scores[:, _sampled_positions(n, device)] += sampled
    check_paths(scores, k, algorithm, tunings=(*FEW_TUNINGS, "tight staging, short chunks"))
    if device == "cpu" and algorithm in ("auto", "stream") and sampled > 0:
        # Its correction is wrong as well: the third read admits every score.
        assert gvr_topk.explain(scores, k, algorithm=algorithm).stats.undershoots.tolist() == [2, 2]


def test_repeated_calls_of_tie_heavy_rows_agree(device: str, algorithm: str) -> None:
    """Shared-memory races and ties ordered by atomics show only in some of many calls."""
    kinds = ["constant", "quantised_33", "relu_99_percent_zero", "kth_value_5000_times"]
    scores = stack_rows(kinds, 10_000, 512, device, each=8)
    answer = exact_answer(scores, 512)
    calls = 40 if device == "cuda" else 3
    for overrides in ({}, {"staging": 1, "chunk": 512, "rank_capacity": 8}):
        with tuning(**overrides):
            results = [gvr_topk.topk(scores, 512, algorithm=algorithm) for _ in range(calls)]
        for number, (values, indices) in enumerate(results):
            assert_exact(answer, indices, values, label=f"call {number}, {overrides}")


def test_a_call_is_right_after_any_other_call(device: str, algorithm: str) -> None:
    """Counters and scratch left by another mode, shape or dtype are nobody's input."""
    shapes = [(3, 9000, 512), (1, 100_000, 2048), (40, 700, 64), (2, 10_000, 8193), (5, 100, 100)]
    rows = {shape: make_rows("quantised_33", *shape, device=device) for shape in shapes}
    answers = {shape: exact_answer(rows[shape], shape[2]) for shape in shapes}
    for first in shapes:
        for other in ("gvr", "resident", "stream", "radix"):
            gvr_topk.topk(rows[first], first[2], algorithm=other, sorted=True)
            for shape in shapes:
                indices = gvr_topk.topk_indices(rows[shape], shape[2], algorithm=algorithm)
                assert_exact(answers[shape], indices, label=f"{shape} after {other} {first}")


def test_the_set_depends_on_nothing_but_the_row(device: str, algorithm: str) -> None:
    kinds = ["quantised_33", "constant", "both_zeros", "more_than_k_nan"]
    scores = stack_rows(kinds, N, K, device, each=1)
    expected = gvr_topk.topk_indices(scores, K).sort(-1).values
    for slices in (1, 2, 4, 8, 16):
        with tuning(ctas_per_row=slices):
            for copies in (1, 3, 50):
                rows = scores.repeat(copies, 1)
                hint = make_hint("overlap_5_tenths", rows, K, seed=copies)
                indices = gvr_topk.topk_indices(rows, K, hint=hint, algorithm=algorithm)
                assert torch.equal(indices.sort(-1).values, expected.repeat(copies, 1))
