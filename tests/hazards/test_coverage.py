# SPDX-License-Identifier: Apache-2.0
"""The overrides do what the other tests need of them: telemetry shows each path entered."""

from __future__ import annotations

import pytest
import torch
from cases import TUNINGS, stack_rows
from generators import HINTS, cross_hints, row_names
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk
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


@pytest.mark.parametrize(
    "family, path",
    [
        ("gvr", Path.GVR),
        ("resident", Path.RESIDENT),
        ("stream", Path.STREAM),
        ("radix", Path.RADIX),
    ],
)
def test_every_continuation_of_every_family_is_entered(
    family: str, path: Path, device: str
) -> None:
    if device == "cpu" and family == "resident":
        path = Path.STREAM  # a CPU has no shared memory to stay in
    stats = _explain_everything(device, family)
    assert path in stats.path.tolist()
    assert int(stats.passes.max()) > 1 and int(stats.refine_rounds.max()) > 1
    if family == "radix":
        return
    assert int(stats.passes.min()) >= 1
    assert int(stats.overflows.max()) >= 1
    if family in ("resident", "stream"):
        assert int(stats.undershoots.max()) >= 1
        both = (stats.overflows > 0) & (stats.undershoots > 0)
        assert bool(both.any()), "no row met an overflow and an undershoot"


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


def test_a_k_beyond_every_buffer_is_radix(device: str) -> None:
    scores = stack_rows(["normal"], 20_000, 10_000, device, each=1)
    values, indices, stats = gvr_topk.explain(scores, 10_000, algorithm="radix")
    assert_exact(exact_answer(scores, 10_000), indices, values)
    assert stats.path.tolist() == [Path.RADIX]
