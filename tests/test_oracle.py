# SPDX-License-Identifier: Apache-2.0
"""The oracle itself: it agrees with a stable sort, and no wrong result passes it."""

from __future__ import annotations

import pytest
import torch
from generators import make_rows, row_names
from oracle import assert_exact, bits, exact_answer, gather_values
from torch import Tensor

from gvr_topk.reference import topk_reference

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("name", row_names())
def test_two_independent_oracles_agree(name: str, device: str, dtype: torch.dtype) -> None:
    scores = make_rows(name, 6, 700, 50, device=device, dtype=dtype)
    lengths = torch.tensor([700, 51, 50, 49, 1, -1], device=device)
    answer = exact_answer(scores, 50, lengths=lengths)
    values, indices = topk_reference(scores, 50, lengths=lengths)
    assert torch.equal(indices.to(torch.int64), answer.indices)
    assert torch.equal(bits(values), bits(gather_values(scores, answer.indices)))


def test_order_of_special_values_is_written_out(device: str) -> None:
    scores = torch.tensor([[-0.0, NAN, -INF, 0.0, INF, -NAN, 1e-45, -1e-45]], device=device)
    answer = exact_answer(scores, 8)
    assert answer.indices.tolist() == [[1, 5, 4, 6, 0, 3, 7, 2]]


def test_windows_are_written_out(device: str) -> None:
    scores = torch.arange(6.0, device=device).expand(6, 6)
    lengths = torch.tensor([6, 0, 9], device=device)
    starts = torch.tensor([1, 0, -5], device=device)
    answer = exact_answer(scores, 2, lengths=lengths, starts=starts, next_n=2, compress_ratio=2)
    assert list(zip(answer.begins.tolist(), answer.ends.tolist(), strict=True)) == [
        (1, 2), (1, 3), (0, 0), (0, 0), (0, 4), (0, 4),
    ]  # fmt: skip


def _result() -> tuple[Tensor, Tensor, Tensor]:
    scores = make_rows("quantised_33", 3, 40, 8)
    answer = exact_answer(scores, 8)
    return scores, answer.indices.to(torch.int32), gather_values(scores, answer.indices)


@pytest.mark.parametrize("mistake", ["twice", "outside", "padding", "worse", "later tie", "value"])
def test_no_wrong_result_passes(mistake: str) -> None:
    scores, indices, values = _result()
    answer = exact_answer(scores, 8)
    assert_exact(answer, indices, values, sorted=True)
    if mistake == "twice":
        indices[1, 3] = indices[1, 4]
    elif mistake == "outside":
        indices[1, 3] = 40
    elif mistake == "padding":
        indices[1, 7] = -1
    elif mistake == "worse":
        indices[1, 7] = int(scores[1].argmin())
    elif mistake == "later tie":
        scores[1] = 0.0
        answer = exact_answer(scores, 8)
        indices[1] = torch.arange(1, 9)
    if mistake == "value":
        values[1, 0] = torch.nextafter(values[1, 0], torch.tensor(INF))
    else:
        values = gather_values(scores, indices.clamp(max=39))
    with pytest.raises(AssertionError, match="row 1"):
        assert_exact(answer, indices, values)


def test_right_set_in_the_wrong_order_is_not_sorted() -> None:
    scores, indices, values = _result()
    answer = exact_answer(scores, 8)
    assert_exact(answer, indices.flip(-1), values.flip(-1))
    with pytest.raises(AssertionError, match="wrong order"):
        assert_exact(answer, indices.flip(-1), values.flip(-1), sorted=True)
