# SPDX-License-Identifier: Apache-2.0
"""The reference against definitions: hand-written rows, and Python's own sort."""

from __future__ import annotations

import ast
import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import bits, windows

from gvr_topk import reference
from gvr_topk.reference import topk_reference

INF, NAN = math.inf, math.nan
SCORES = st.one_of(
    st.floats(width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, math.copysign(NAN, -1.0)]),
)


def best_by_python(row: list[float], begin: int, end: int, k: int) -> list[int]:
    def place(index: int) -> tuple[bool, float, int]:
        score = row[index]
        return (not math.isnan(score), 0.0 if math.isnan(score) else -score, index)

    chosen = sorted(range(begin, end), key=place)[:k]
    return chosen + [-1] * (k - len(chosen))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        pytest.param([1.0, 3.0, 2.0], [1, 2, 0], id="descending"),
        pytest.param([1.0, 1.0, 1.0], [0, 1, 2], id="equal scores in the order of their index"),
        pytest.param([-0.0, 0.0, -0.0], [0, 1, 2], id="both zeros are equal"),
        pytest.param([0.0, INF, NAN, -INF], [2, 1, 0], id="NaN above infinity"),
        pytest.param([INF, math.copysign(NAN, -1.0), NAN], [1, 2, 0], id="no sign of NaN"),
        pytest.param([-INF, -INF], [0, 1, -1], id="-inf is a score, the tail is not"),
        pytest.param([], [-1, -1, -1], id="empty"),
    ],
)
def test_order_of_a_row(
    row: list[float], expected: list[int], device: str, dtype: torch.dtype
) -> None:
    values, indices = topk_reference(torch.tensor(row, dtype=dtype, device=device), 3)
    assert indices.dtype == torch.int32
    assert indices.tolist() == expected
    assert values.dtype == dtype
    assert all(value == -INF for value, i in zip(values.tolist(), expected, strict=True) if i < 0)


def test_values_keep_their_bits(device: str) -> None:
    raw = torch.tensor([0x7FC00001, -0x80000000, 0, -0x3FFFFE, 1], dtype=torch.int32)
    scores = raw.to(device).view(torch.float32)  # NaN with payload, -0.0, +0.0, -NaN, subnormal
    values, indices = topk_reference(scores, 5)
    assert indices.tolist() == [0, 3, 4, 1, 2]
    assert torch.equal(bits(values), bits(scores[indices.long()]))


@given(
    rows=st.lists(st.lists(SCORES, min_size=7, max_size=7), min_size=1, max_size=4),
    k=st.integers(1, 9),
    data=st.data(),
)
def test_agrees_with_pythons_sort(rows: list[list[float]], k: int, data: st.DataObject) -> None:
    requests = len(rows)
    next_n = data.draw(st.integers(1, 3))
    ratio = data.draw(st.integers(1, 3))
    counts = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 25), min_size=requests)
    lengths = torch.tensor(data.draw(counts)[:requests])
    starts = torch.tensor(data.draw(counts)[:requests])
    scores = torch.tensor(rows).repeat_interleave(next_n, dim=0)
    window = windows(len(scores), 7, lengths, starts, next_n, ratio)
    _, indices = topk_reference(
        scores, k, lengths=lengths, starts=starts, next_n=next_n, compress_ratio=ratio
    )
    expected = [
        best_by_python(row, begin, end, k)
        for row, (begin, end) in zip(scores.tolist(), window, strict=True)
    ]
    assert indices.tolist() == expected


@pytest.mark.parametrize("poison", [NAN, 3e38])
def test_scores_outside_the_window_are_never_chosen(poison: float, device: str) -> None:
    scores = torch.full((2, 6), poison, device=device)
    scores[0, 2:4] = torch.tensor([-INF, -1.0], device=device)
    lengths = torch.tensor([4, 2], device=device)
    starts = torch.tensor([2, 2], device=device)
    _, indices = topk_reference(scores, 3, lengths=lengths, starts=starts)
    assert indices.tolist() == [[3, 2, -1], [-1, -1, -1]]


def test_batch_shape_is_kept(device: str) -> None:
    values, indices = topk_reference(torch.randn(2, 3, 5, device=device), 4)
    assert values.shape == indices.shape == (2, 3, 4)
    values, indices = topk_reference(torch.randn(0, 5, device=device), 4)
    assert values.shape == indices.shape == (0, 4)


def test_reference_is_short_and_stands_on_torch_alone() -> None:
    source = inspect.getsource(reference)
    assert len(source.splitlines()) < 60
    imported = [
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [node.names[0].name])
    ]
    assert set(imported) == {"__future__", "torch"}
