# SPDX-License-Identifier: Apache-2.0
"""sgl-kernel's signatures against a plain model of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import best, check_rows, scores_with_garbage
from torch import Tensor

from gvr_topk.integrations import sglang

N, K, ROWS = 90, 16, 8
LENGTHS = [90, 17, 16, 15, 1, 0, -1, 200]
STARTS = [0, 5, 20, 74, 89, 90, 4, 60]


def _tensor(values: list[int], device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _case(device: str, with_starts: bool) -> tuple[Tensor, Tensor | None, list[list[int]]]:
    """(score, row_starts, the positions that count from them)."""
    starts = STARTS if with_starts else [0] * ROWS
    ends = [start + length for start, length in zip(starts, LENGTHS, strict=True)]
    score = scores_with_garbage(ROWS, N, K, ends, device, starts=starts)
    rows = zip(score.tolist(), starts, ends, strict=True)
    expected = [best(row, begin, end, K) for row, begin, end in rows]
    return score, _tensor(starts, device) if with_starts else None, expected


@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize("hinted", [False, True])
def test_positions(with_starts: bool, hinted: bool, device: str) -> None:
    score, starts, expected = _case(device, with_starts)
    lengths = _tensor(LENGTHS, device)
    hint = sglang.fast_topk_v2(score, lengths, K, starts) if hinted else None
    check_rows(sglang.fast_topk_v2(score, lengths, K, row_starts=starts, hint=hint), expected, K)


@pytest.mark.parametrize("with_starts", [False, True])
def test_page_table_of_one_row_per_request(with_starts: bool, device: str) -> None:
    score, starts, expected = _case(device, with_starts)
    pages = torch.randperm(ROWS * N, device=device).view(ROWS, N).int()
    table = pages.tolist()
    given = sglang.fast_topk_transform_fused(
        score=score,
        lengths=_tensor(LENGTHS, device),
        page_table_size_1=pages,
        cu_seqlens_q=torch.arange(ROWS + 1, dtype=torch.int32, device=device),
        topk=K,
        row_starts=starts,
    )
    check_rows(given, [[table[r][i] for i in row] for r, row in enumerate(expected)], K)


@pytest.mark.parametrize("with_starts", [False, True])
def test_page_table_of_requests_with_several_rows(with_starts: bool, device: str) -> None:
    score, starts, expected = _case(device, with_starts)
    owner = [0, 0, 0, 2, 2, 2, 2, 3]  # request 1 has no row
    bounds = _tensor([0, 3, 3, 7, 8], device)
    pages = torch.randperm(4 * N, device=device).view(4, N).int()
    table = pages.tolist()
    lengths = _tensor(LENGTHS, device)
    given = sglang.fast_topk_transform_fused(score, lengths, pages, bounds, K, starts)
    check_rows(given, [[table[owner[r]][i] for i in row] for r, row in enumerate(expected)], K)


@pytest.mark.parametrize("with_starts", [False, True])
def test_ragged_offsets(with_starts: bool, device: str) -> None:
    score, starts, expected = _case(device, with_starts)
    offsets = [0, 7, 1 << 24, (1 << 24) + 1, 5, 9, 11, 1 << 30]
    given = sglang.fast_topk_transform_ragged_fused(
        score=score,
        lengths=_tensor(LENGTHS, device),
        topk_indices_offset=_tensor(offsets, device),
        topk=K,
        row_starts=starts,
    )
    check_rows(given, [[offsets[r] + i for i in row] for r, row in enumerate(expected)], K)


def test_no_number_of_a_caller_reaches_other_memory(device: str) -> None:
    """A page table too narrow for the selected positions gives entries of it."""
    score = torch.randn(2, N, device=device)
    lengths = _tensor([N, N], device)
    pages = torch.full((2, 3), 5, dtype=torch.int32, device=device)
    bounds = _tensor([0, 1, 2], device)
    given = sglang.fast_topk_transform_fused(score, lengths, pages, bounds, K)
    assert bool((given == 5).all())
    wild = _tensor([0, 1], device)  # the second row belongs to no request
    given = sglang.fast_topk_transform_fused(score, lengths, pages[:1], wild, K)
    assert bool((given == 5).all())


def test_bad_input_is_one_clear_error(device: str) -> None:
    score, lengths = torch.randn(3, N, device=device), _tensor([N] * 3, device)
    pages, bounds = (
        torch.zeros(3, N, dtype=torch.int32, device=device),
        _tensor([0, 1, 2, 3], device),
    )
    v2, fused = sglang.fast_topk_v2, sglang.fast_topk_transform_fused
    ragged = sglang.fast_topk_transform_ragged_fused
    calls: list[tuple[Any, tuple[Any, ...], type[Exception], str]] = [
        (v2, (score[0], lengths, K), ValueError, "score: got shape"),
        (v2, (score, lengths[:2], K), ValueError, r"lengths: got shape \[2\], need \[3\]"),
        (v2, (score, lengths.float(), K), TypeError, "lengths: got dtype"),
        (v2, (score, lengths, 0), ValueError, "k: got 0"),
        (v2, (score, lengths, K, lengths[:1]), ValueError, "row_starts: got shape"),
        (fused, (score, lengths, pages.long(), bounds, K), TypeError, "page_table_size_1: got"),
        (fused, (score, lengths, pages[:2], bounds, K), ValueError, "page_table_size_1: got shape"),
        (fused, (score, lengths, pages, bounds[:2], K), ValueError, "cu_seqlens_q: got shape"),
        (ragged, (score, lengths, lengths[:1], K), ValueError, "topk_indices_offset: got shape"),
    ]
    far, where = lengths.to("meta"), "got a tensor on meta, need the device of the scores"
    calls += [
        (v2, (score, far, K), ValueError, f"lengths: {where}"),
        (v2, (score, lengths, K, far), ValueError, f"row_starts: {where}"),
        (fused, (score, lengths, pages.to("meta"), bounds, K), ValueError, f"_1: {where}"),
        (ragged, (score, lengths, far, K), ValueError, f"topk_indices_offset: {where}"),
    ]
    for call, arguments, error, message in calls:
        with pytest.raises(error, match=message):
            call(*arguments)
