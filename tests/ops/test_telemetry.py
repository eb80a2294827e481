# SPDX-License-Identifier: Apache-2.0
"""Telemetry says what happened: every column has the meaning that csrc/common/params.h gives it."""

from __future__ import annotations

import pytest
import torch
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer

import gvr_topk
from gvr_topk.stats import COLUMNS, Path, Stats
from gvr_topk.testing import tuning

N, K = 3000, 100
FAMILY = {
    "gvr": Path.GVR,
    "resident": Path.RESIDENT,
    "stream": Path.STREAM,
    "radix": Path.RADIX,
}


def test_an_explanation_is_an_answer_and_one_record_per_row(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 6, N, K, device=device).reshape(2, 3, N)
    values, indices, stats = gvr_topk.explain(scores, K, algorithm=algorithm, sorted=True)
    assert_exact(exact_answer(scores, K), indices, values, sorted=True)
    assert isinstance(stats, Stats) and len(stats) == 6
    assert stats.tensor.dtype == torch.int32 and stats.tensor.shape == (6, len(COLUMNS))


def test_path_names_the_algorithm(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    paths = gvr_topk.explain(scores, K, algorithm=algorithm).stats.path.tolist()
    if device == "cpu" and algorithm == "resident":
        algorithm = "stream"  # as documented
    allowed = {FAMILY[algorithm]} if algorithm in FAMILY else set(FAMILY.values())
    assert set(paths) <= allowed


def test_rows_with_nothing_to_select_say_so(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 5, N, K, device=device)
    lengths = torch.tensor([0, -1, 1, K, K + 1], device=device)
    stats = gvr_topk.explain(scores, K, lengths=lengths, algorithm=algorithm).stats
    assert stats.path.tolist()[:4] == [Path.EMPTY, Path.EMPTY, Path.SHORT, Path.SHORT]
    assert stats.path.tolist()[4] in FAMILY.values()


@pytest.mark.parametrize("tenths", [0, 3, 7, 10])
@pytest.mark.parametrize("family", ["gvr", "stream"])
def test_hint_columns_count_positions(family: str, tenths: int, device: str) -> None:
    scores = make_rows("normal", 4, N, K, device=device)
    order = exact_answer(scores, N).indices
    losers = K - K * tenths // 10
    hint = order[:, losers : losers + K].to(torch.int32)
    hint[:, -3:] = torch.tensor([-1, N, -(2**31)], device=device)
    stats = gvr_topk.explain(scores, K, hint=hint, algorithm=family).stats
    winners = set(range(losers, losers + K - 3)) & set(range(K))
    assert stats.hint_valid.tolist() == [K - 3] * 4
    assert stats.hint_hits.tolist() == [len(winners)] * 4


@pytest.mark.parametrize("family", ["gvr", "stream"])
def test_hints_outside_the_window_are_not_valid(family: str, device: str) -> None:
    scores = make_rows("normal", 2, N, K, device=device)
    hint = torch.arange(K, dtype=torch.int32, device=device).repeat(2, 1)
    lengths, starts = torch.full((2,), N, device=device), torch.full((2,), 30, device=device)
    stats = gvr_topk.explain(
        scores, K, hint=hint, lengths=lengths, starts=starts, algorithm=family
    ).stats
    assert stats.hint_valid.tolist() == [K - 30] * 2


def test_without_a_hint_nothing_is_hinted(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    stats = gvr_topk.explain(scores, K, algorithm=algorithm).stats
    assert stats.hint_valid.tolist() == [0] * 3
    assert bool((stats.hint_hits <= 0).all())


def test_passes_and_survivors_are_plausible(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 4, N, K, device=device)
    for hint in (None, make_hint("exact", scores, K), make_hint("bottom_k", scores, K)):
        stats = gvr_topk.explain(scores, K, hint=hint, algorithm=algorithm).stats
        assert bool((stats.passes >= 1).all()) and bool((stats.passes <= 64).all())
        if algorithm in ("gvr", "stream"):
            assert bool((stats.survivors >= K).all())


def test_a_good_hint_saves_work(device: str) -> None:
    scores = make_rows("normal", 4, 60_000, 512, device=device)
    exact, poor = make_hint("exact", scores, 512), make_hint("bottom_k", scores, 512)
    good = gvr_topk.explain(scores, 512, hint=exact, algorithm="gvr").stats
    bad = gvr_topk.explain(scores, 512, hint=poor, algorithm="gvr").stats
    assert int(good.passes.sum()) <= int(bad.passes.sum())
    assert int(good.survivors.max()) < 60_000 // 4


def test_a_guess_that_admits_nothing_costs_another_read(device: str) -> None:
    scores = make_rows("normal", 4, N, K, device=device)
    for family in ("gvr", "stream"):
        with tuning(force_undershoot=1):
            stats = gvr_topk.explain(scores, K, algorithm=family).stats
        assert bool((stats.passes >= 2).all())
        if family == "stream":
            assert bool((stats.undershoots >= 1).all())


@pytest.mark.parametrize("kind", ["constant", "both_zeros"])
def test_a_full_staging_area_is_counted(kind: str, device: str) -> None:
    """No threshold tells ties apart, so they fill any staging area."""
    scores = make_rows(kind, 4, N, K, device=device)
    with tuning(staging=1, chunk=64, ctas_per_row=1):
        stats = gvr_topk.explain(scores, K, algorithm="stream").stats
    assert bool((stats.overflows >= 1).all())


def test_the_table_and_the_rows_show_the_same(device: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    stats = gvr_topk.explain(scores, K, algorithm="gvr").stats
    rows = list(stats)
    assert [row.path_name for row in rows] == stats.path_names == ["gvr"] * 3
    assert [row.survivors for row in rows] == stats.survivors.tolist()
    assert stats.table().row_count == 3
    with pytest.raises(ValueError, match="name: got 'speed', need one of"):
        stats.column("speed")
