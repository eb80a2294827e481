# SPDX-License-Identifier: Apache-2.0
"""sgl-kernel's signatures against a plain model of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dispatched import operators
from plain import best, check_guards, check_rows, guarded, scores_with_garbage
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


@pytest.mark.parametrize("name", ["topk_transform_paged_v2", "topk_transform_512_v2"])
@pytest.mark.parametrize("page_size", [1, 64])
@pytest.mark.parametrize("raw", [False, True])
def test_paged_v2_writes_in_place(name: str, page_size: int, raw: bool, device: str) -> None:
    score, _, expected = _case(device, False)
    pages = torch.randperm(ROWS * N, device=device).view(ROWS, N)[:, : -(-N // page_size)].int()
    table = pages.tolist()
    buffer, out = guarded(ROWS, K, device)
    raw_buffer, positions = guarded(ROWS, K, device)
    plan = torch.full((ROWS + 1, 2), 7, dtype=torch.int32, device=device)
    before = score.clone()
    transform = getattr(sglang, name)
    arguments = (score, _tensor(LENGTHS, device), pages, out, page_size, plan)
    assert transform(*arguments, *([positions] if raw else [])) is None
    places = [
        [table[r][i // page_size] * page_size + i % page_size for i in row]
        for r, row in enumerate(expected)
    ]
    check_rows(out, places, K)
    check_guards(buffer, ROWS, K)
    if raw:
        check_rows(positions, expected, K)
    check_guards(raw_buffer, ROWS if raw else 0, K)
    assert torch.equal(score.view(torch.int32), before.view(torch.int32))


def test_paged_v2_without_pages_gives_positions(device: str) -> None:
    score, _, expected = _case(device, False)
    both = torch.empty(2, ROWS, K, dtype=torch.int32, device=device)
    sglang.topk_transform_paged_v2(
        score, _tensor(LENGTHS, device), None, both[0], 64, None, out_raw_indices=both[1]
    )
    for out in both:
        check_rows(out, expected, K)


@pytest.mark.parametrize("with_starts", [False, True])
def test_ragged_v2_writes_in_place(with_starts: bool, device: str) -> None:
    score, starts, expected = _case(device, with_starts)
    offsets = [0, 7, 1 << 24, (1 << 24) + 1, 5, 9, 11, 1 << 30]
    buffer, out = guarded(ROWS, K, device)
    sglang.topk_transform_ragged_v2(
        score,
        _tensor(LENGTHS, device),
        out_offsets=_tensor(offsets, device),
        out_indices=out,
        row_starts=starts,
    )
    check_rows(out, [[offsets[r] + i for i in row] for r, row in enumerate(expected)], K)
    check_guards(buffer, ROWS, K)


def test_decode_is_one_operator(device: str) -> None:
    score, _, _ = _case(device, False)
    lengths = _tensor(LENGTHS, device)
    pages = torch.zeros(ROWS, N, dtype=torch.int32, device=device)
    bounds = torch.arange(ROWS + 1, dtype=torch.int32, device=device)
    out = torch.empty(ROWS, K, dtype=torch.int32, device=device)
    raw = torch.empty_like(out)
    calls = [
        lambda: sglang.fast_topk_v2(score, lengths, K),
        lambda: sglang.fast_topk_transform_fused(score, lengths, pages, bounds, K),
        lambda: sglang.fast_topk_transform_ragged_fused(score, lengths, lengths, K),
        lambda: sglang.topk_transform_paged_v2(score, lengths, pages, out, 1, None, raw),
    ]
    for call in calls:
        names = operators(call)
        assert len(names) == 1 and names[0].startswith("gvr.topk"), names


@pytest.mark.parametrize("with_starts", [False, True])
def test_what_lies_outside_a_page_table_has_no_place(with_starts: bool, device: str) -> None:
    score = torch.arange(2 * N, device=device).view(2, N).remainder(N).float()
    starts = _tensor([0, 0], device) if with_starts else None
    lengths = _tensor([3, N], device)
    pages = torch.full((2, 3), 5, dtype=torch.int32, device=device)
    bounds = _tensor([0, 1, 2], device)
    given = sglang.fast_topk_transform_fused(score, lengths, pages, bounds, K, starts)
    assert sorted(given[0].tolist()) == [-1] * (K - 3) + [5, 5, 5]
    assert bool((given[1] == -1).all())  # the best positions are the last ones
    wild = _tensor([0, 1], device)  # the second row belongs to no request
    given = sglang.fast_topk_transform_fused(score, lengths, pages[:1], wild, K, starts)
    assert sorted(given[0].tolist()) == [-1] * (K - 3) + [5, 5, 5]
    assert bool((given[1] == -1).all())


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
    paged, out = sglang.topk_transform_paged_v2, torch.empty(3, K, dtype=torch.int32, device=device)
    calls += [
        (paged, (score, lengths, pages, out, 3, None), ValueError, "page_size: got 3"),
        (paged, (score, lengths, pages[:2], out, 1, None), ValueError, "page_tables: got shape"),
        (paged, (score, lengths, pages, out[:2], 1, None), ValueError, "out_page_indices: got sha"),
        (paged, (score, lengths, pages, out.long(), 1, None), TypeError, "out_page_indices: got d"),
        (paged, (score, lengths[:2], pages, out, 1, None), ValueError, "seq_lens: got shape"),
        (paged, (score, lengths, pages, out, 1, None, out[:2]), ValueError, "out_raw_indices: got"),
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
