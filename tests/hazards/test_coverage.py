# SPDX-License-Identifier: Apache-2.0
"""The overrides do what the other tests need of them: telemetry shows each path entered."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import TUNINGS, stack_rows
from generators import HINTS, cross_hints, make_rows, row_names
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk
from gvr_topk import _C
from gvr_topk.plan import Device
from gvr_topk.stats import Path, Stats
from gvr_topk.testing import tuning

N, K = 1500, 64


def _explain_everything(device: str, algorithm: str) -> Stats:
    """Telemetry of every kind of row, with every kind of hint, under every tuning."""
    scores = stack_rows(row_names(), N, K, device, each=1)
    answer = exact_answer(scores, K)
    rows, hint = cross_hints(scores, K)
    repeated = answer.rows(torch.arange(len(scores), device=device).repeat(len(HINTS)))
    records: list[Tensor] = []
    for name, overrides in TUNINGS.items():
        with tuning(**overrides):
            values, indices, stats = gvr_topk.explain(rows, K, hint=hint, algorithm=algorithm)
        assert_exact(repeated, indices, values, label=f"{algorithm}, {name}")
        records.append(stats.tensor)
    return Stats(torch.cat(records))


def _some(stats: Stats, *columns: str) -> Tensor:
    """Rows in which each of the columns counts something."""
    return torch.stack([stats.column(name) > 0 for name in columns]).all(0)


# Every way through a family, by what its telemetry shows. Each must be taken by some row.
WAYS: dict[tuple[str, str], Callable[[Stats], Tensor]] = {
    ("stream", "one read"): lambda s: (s.passes == 1) & (s.overflows == 0),
    ("stream", "a full staging area"): lambda s: _some(s, "overflows"),
    ("stream", "several full staging areas"): lambda s: s.overflows > 3,
    ("stream", "another read under a lower threshold"): lambda s: s.undershoots == 1,
    ("stream", "undershoot, then overflow"): lambda s: _some(s, "overflows", "undershoots"),
    ("stream", "further rounds of refinement"): lambda s: s.refine_rounds > 1,
    ("stream", "every score staged"): lambda s: s.survivors == N,
    ("gvr", "the first count accepted"): lambda s: (s.passes == 2) & (s.overflows == 0),
    ("gvr", "a corrected count accepted"): lambda s: (s.passes == 3) & (s.overflows == 0),
    ("gvr", "counting given up"): lambda s: _some(s, "overflows"),
    ("gvr", "further rounds of refinement"): lambda s: s.refine_rounds > 1,
    ("gvr", "a hint that is the answer"): lambda s: s.hint_hits == K,
    ("gvr", "a hint without a winner"): lambda s: (s.hint_valid == K) & (s.hint_hits == 0),
    ("gvr", "a hint without a position"): lambda s: s.hint_valid == 0,
    ("resident", "one read"): lambda s: (s.passes == 1) & (s.refine_rounds == 1),
    # What follows when shared memory alone cannot answer is another phase's, with its own ways.
    ("resident", "ended elsewhere"): lambda s: s.passes > 1,
    ("resident", "ended elsewhere, in rounds"): lambda s: (s.passes > 1) & (s.refine_rounds > 1),
    ("radix", "some digits suffice"): lambda s: s.passes < 4,
    ("radix", "every digit of the score"): lambda s: s.passes >= 4,
}
WAYS_ON_CPU: dict[tuple[str, str], Callable[[Stats], Tensor]] = {
    ("radix", "more ties than are staged"): lambda s: _some(s, "overflows"),
}
# The index takes digits of its own only on the GPU; the CPU's staged ties are ranked by place. A
# selection among what was staged takes a round at least; divided rows take none where a sampled key
# is the K-th score's.
WAYS_ON_CUDA: dict[tuple[str, str], Callable[[Stats], Tensor]] = {
    ("stream", "divided at a sampled key"): lambda s: s.refine_rounds == 0,
    ("gvr", "divided at a sampled key"): lambda s: s.refine_rounds == 0,
    ("resident", "finer bins"): lambda s: (s.passes == 1) & (s.refine_rounds == 2),
    ("resident", "divided at a sampled key"): lambda s: s.refine_rounds == 0,
    ("radix", "digits of the index"): lambda s: s.refine_rounds > 3,
}
FAMILIES = {
    "gvr": Path.GVR,
    "resident": Path.RESIDENT,
    "stream": Path.STREAM,
    "radix": Path.RADIX,
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, device: str) -> str:
    if device == "cpu" and request.param == "resident":
        pytest.skip("the CPU has no shared memory to stay in: there resident is stream")
    return request.param


def test_every_way_through_a_family_is_taken(family: str, device: str) -> None:
    stats = _explain_everything(device, family)
    assert set(stats.path.tolist()) == {FAMILIES[family]}
    ways = WAYS | (WAYS_ON_CUDA if device == "cuda" else WAYS_ON_CPU)
    taken = {way: int(found(stats).sum()) for (of, way), found in ways.items() if of == family}
    assert all(taken.values()), f"rows by way: {taken}"


# What csrc/cuda/phases/divide.cuh sees of a row: the places of its high plateau, all others being a
# low one, and how it ends: reads that weigh a key, and rounds that divide the range of keys. Its
# sample is the even positions, whose 32nd best score stands for the row's 64th.
_DIVIDED_N = 8192
DIVIDED: dict[str, tuple[list[int], int, int]] = {
    "the sampled key is the K-th": ([*range(0, 2000, 100), *range(1, 2001, 100)], 1, 0),
    "the next sampled key above is": ([0, *range(1, _DIVIDED_N, 4)], 2, 0),
    "the next sampled key below is": ([*range(0, 8000, 200)], 2, 0),
    "no sampled key is": ([*range(1, _DIVIDED_N, 4)], 2, 3),
}


@pytest.mark.parametrize("ctas", [1, 2, 8, 16])
@pytest.mark.parametrize("end", DIVIDED)
def test_every_end_of_a_divided_row_is_entered(
    end: str, ctas: int, device: str, dtype: torch.dtype
) -> None:
    """No threshold admits between K scores and what the tight staging areas hold."""
    if device == "cpu":
        pytest.skip("the CPU divides no rows: a full staging area is compacted")
    places, weighed, rounds = DIVIDED[end]
    scores = torch.ones(3, _DIVIDED_N, dtype=dtype, device=device)
    scores[:, places] = 2.0
    with tuning(ctas_per_row=ctas, staging=1, force_undershoot=1):
        values, indices, stats = gvr_topk.explain(scores, K, algorithm="stream")
    assert_exact(exact_answer(scores, K), indices, values, label=end)
    # One read that finds nothing, others under lower thresholds, and at last the winners'.
    reads = stats.passes - stats.undershoots
    assert reads.tolist() == [1 + weighed + rounds + 1] * 3
    assert stats.refine_rounds.tolist() == [rounds] * 3
    assert stats.survivors.tolist() == [K] * 3


# How a resident row may be made to end, and what its telemetry then shows in some row.
RESIDENT_ENDS: dict[str, tuple[dict[str, int], Callable[[Stats], Tensor]]] = {
    "ranked at once": ({}, lambda s: s.passes == 1),
    "too many ties to rank": ({}, lambda s: s.passes > 1),
    "the bin of the K-th holds too many": (
        {"bins": 1, "rank_capacity": 32},
        lambda s: (s.passes == 1) & (s.refine_rounds == 2),
    ),
    "hardly anything may be ranked": ({"rank_capacity": 1}, lambda s: s.passes > 1),
    "the fall back is tight": (
        {"staging": 1, "chunk": 32, "rank_capacity": 1},
        lambda s: s.passes > 1,
    ),
    "nothing may be ranked": ({"force_undershoot": 1}, lambda s: s.passes > 1),
    "no guess, and the fall back is tight": (
        {"force_undershoot": 1, "staging": 1, "chunk": 32},
        lambda s: s.passes > 1,
    ),
}


@pytest.mark.parametrize("threads", [256, 512, 1024])
@pytest.mark.parametrize("ctas", [1, 2, 4, 8, 16])
def test_every_block_and_cluster_of_resident_rows_is_entered_and_falls_back(
    ctas: int, threads: int, device: str, dtype: torch.dtype
) -> None:
    if device == "cpu":
        pytest.skip("the CPU has no shared memory to stay in: there resident is stream")
    scores = stack_rows(row_names(), N, K, device, each=1, dtype=dtype)
    answer = exact_answer(scores, K)
    found = Device.of(device)
    for name, (overrides, shows) in RESIDENT_ENDS.items():
        with tuning(ctas_per_row=ctas, threads=threads, **overrides):
            plan = _C.make_plan(
                len(scores), N, K, dtype=dtype, algorithm="resident", **found.limits()
            )
            values, indices, stats = gvr_topk.explain(scores, K, algorithm="resident")
        asked = ("resident", min(ctas, found.max_cluster), threads)
        assert (plan["family"], plan["ctas_per_row"], plan["threads"]) == asked
        assert set(stats.path.tolist()) == {Path.RESIDENT}
        assert_exact(answer, indices, values, label=name)
        assert bool(shows(stats).any()), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_continuations_are_entered_with_every_dtype(
    family: str, dtype: torch.dtype, device: str
) -> None:
    scores = stack_rows(row_names(), N, K, device, each=1, dtype=dtype)
    answer = exact_answer(scores, K)
    entered: set[str] = set()
    for name in ("tight staging, short chunks", "undershoot, tight", "verify once, tight"):
        with tuning(**TUNINGS[name]):
            values, indices, stats = gvr_topk.explain(scores, K, algorithm=family)
        assert_exact(answer, indices, values, label=name)
        for column in ("overflows", "undershoots"):
            if bool(_some(stats, column).any()):
                entered.add(column)
        if bool((stats.refine_rounds > 1).any()):
            entered.add("refine rounds")
        if bool((stats.passes > 1).any()):
            entered.add("another read")
    assert "refine rounds" in entered
    if family in ("gvr", "stream"):
        assert "overflows" in entered
    if family == "stream":
        assert "undershoots" in entered
    if family == "resident":
        assert "another read" in entered


def test_counting_that_gives_up_continues_under_a_rising_threshold(device: str) -> None:
    """No threshold of a plateau admits between K scores and a tight staging area."""
    scores = stack_rows(["constant", "both_zeros", "more_than_k_nan"], N, K, device)
    for verify in (1, 2, 5):
        with tuning(max_verify=verify, staging=1, chunk=32, ctas_per_row=1):
            values, indices, stats = gvr_topk.explain(scores, K, algorithm="gvr")
        assert_exact(exact_answer(scores, K), indices, values)
        assert bool((stats.overflows >= 1).any())
        assert int((stats.passes - stats.undershoots).max()) <= verify + 1


def test_every_path_of_short_rows_is_entered(device: str, algorithm: str) -> None:
    scores = stack_rows(["normal"], N, K, device, each=4)
    lengths = torch.tensor([0, K, 1, -1], device=device)
    stats = gvr_topk.explain(scores, K, lengths=lengths, algorithm=algorithm).stats
    assert stats.path.tolist() == [Path.EMPTY, Path.SHORT, Path.SHORT, Path.EMPTY]
    assert stats.passes.tolist()[0] == 0


@pytest.mark.parametrize("kind", ["normal", "constant", "quantised_33", "two_level_plateau"])
def test_every_winner_of_a_perfect_hint_is_a_hit(kind: str, device: str, algorithm: str) -> None:
    """The K-th is a winner, and in a plateau no tie beyond it is."""
    scores = make_rows(kind, 2, N, 2 * K, device=device)
    order = exact_answer(scores, 2 * K).indices.to(torch.int32)
    for hint, hits in ((order[:, :K], K), (order[:, K - 1 : K + 1], 1), (order[:, K:], 0)):
        stats = gvr_topk.explain(scores, K, hint=hint.contiguous(), algorithm=algorithm).stats
        assert stats.hint_hits.tolist() == [hits] * 2


def test_a_k_beyond_every_buffer_is_radix(device: str) -> None:
    scores = stack_rows(["normal"], 20_000, 10_000, device, each=1)
    values, indices, stats = gvr_topk.explain(scores, 10_000, algorithm="radix")
    assert_exact(exact_answer(scores, 10_000), indices, values)
    assert stats.path.tolist() == [Path.RADIX]
