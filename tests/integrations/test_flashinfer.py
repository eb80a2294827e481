# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's signatures against a plain model of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from dispatched import operators
from plain import best, check_guards, check_rows, guarded, scores_with_garbage
from torch import Tensor

from gvr_topk.integrations import flashinfer

N, K, ROWS = 90, 16, 8
LENGTHS = [90, 17, 16, 15, 1, 0, -1, 200]
STARTS = [0, 5, 20, 74, 89, 90, 4, 60]


def _tensor(values: list[int], device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def _case(
    device: str, with_starts: bool, last: bool = False
) -> tuple[Tensor, Tensor | None, list[list[int]]]:
    starts = STARTS if with_starts else [0] * ROWS
    ends = [start + length for start, length in zip(starts, LENGTHS, strict=True)]
    scores = scores_with_garbage(ROWS, N, K, ends, device, starts=starts)
    rows = zip(scores.tolist(), starts, [min(N, end) for end in ends], strict=True)
    expected = [best(row, begin, end, K, last=last) for row, begin, end in rows]
    return scores, _tensor(starts, device) if with_starts else None, expected


@pytest.mark.parametrize("compress_ratio", [1, 4])
@pytest.mark.parametrize("next_n", [1, 2])
@pytest.mark.parametrize("hinted", [False, True])
def test_varlen(hinted: bool, next_n: int, compress_ratio: int, device: str) -> None:
    lengths = [360, 70, 64, 61, 4, 0, -1, 800]
    ends = [
        max(0, length - next_n + j + 1) // compress_ratio
        for length in lengths
        for j in range(next_n)
    ]
    rows = len(ends)
    logits = scores_with_garbage(rows, N, K, ends, device)
    expected = [best(row, 0, end, K) for row, end in zip(logits.tolist(), ends, strict=True)]
    options: dict[str, Any] = {"compress_ratio": compress_ratio, "next_n": next_n}
    if hinted:
        options["pre_idx"] = torch.randint(0, N, (8, K), dtype=torch.int32, device=device)
    seq_lens = _tensor(lengths, device)
    indices, values = flashinfer.top_k_varlen(logits, seq_lens, K, **options)
    check_rows(indices, expected, K)
    assert values is None

    buffer, out = guarded(rows, K, device)
    out_values = torch.empty(rows, K, device=device)
    for arguments in (
        {},
        {"out_indices": out},
        {"out_values": out_values},
        {"out_indices": out, "out_values": out_values, "backend": "gvr", "load_balance": False},
    ):
        indices, values = flashinfer.top_k_varlen(
            logits, seq_lens, K, return_values=True, **options, **arguments
        )
        check_rows(indices, expected, K)
        assert values is not None
        gathered = logits.gather(1, indices.clamp(min=0).long())
        gathered = gathered.masked_fill(indices < 0, -torch.inf)
        assert torch.equal(values.view(torch.int32), gathered.view(torch.int32))
        assert arguments.get("out_indices", indices) is indices
        assert arguments.get("out_values", values) is values
    flashinfer.top_k_varlen(logits, seq_lens, K, out_indices=out.fill_(-7), **options)
    check_rows(out, expected, K)
    check_guards(buffer, rows, K)


@pytest.mark.parametrize("tie_break", [0, 1, 2])
@pytest.mark.parametrize("order", [False, True])
def test_top_k(order: bool, tie_break: int, device: str) -> None:
    scores, _, _ = _case(device, False)
    last = tie_break == 2
    values, indices = flashinfer.top_k(
        scores, K, sorted=order, deterministic=True, tie_break=tie_break, dsa_graph_safe=True
    )
    assert indices.dtype == torch.int64 and values.dtype == scores.dtype
    expected = [best(row, 0, N, K, last=last) for row in scores.tolist()]
    check_rows(indices.int(), expected, K)
    gathered = scores.gather(1, indices)
    assert torch.equal(values.view(torch.int32), gathered.view(torch.int32))
    if order:
        descending = values.nan_to_num(nan=torch.inf)
        assert bool((descending[:, 1:] <= descending[:, :-1]).all())


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("with_values", [False, True])
def test_varlen_windows(with_values: bool, absolute: bool, device: str) -> None:
    logits, starts, expected = _case(device, True)
    buffer, out = guarded(ROWS, K, device)
    indices, values = flashinfer.top_k_varlen(
        logits,
        _tensor(LENGTHS, device),
        K,
        return_values=with_values,
        out_indices=out,
        row_starts=starts,
        max_seq_len=N,
        absolute_indices=absolute,
    )
    assert indices is out
    first = STARTS if absolute else [0] * ROWS
    check_rows(out, [[first[r] + i for i in row] for r, row in enumerate(expected)], K)
    check_guards(buffer, ROWS, K)
    if with_values:
        columns = torch.tensor([[STARTS[r]] for r in range(ROWS)], device=device) * (not absolute)
        gathered = logits.gather(1, (out + columns).clamp(0, N - 1))
        gathered = gathered.masked_fill(out < 0, -torch.inf)
        assert torch.equal(values.view(torch.int32), gathered.view(torch.int32))


def test_varlen_fills_flat_buffers(device: str) -> None:
    logits, _, expected = _case(device, False)
    flat = torch.empty(ROWS * K, dtype=torch.int32, device=device)
    indices, _ = flashinfer.top_k_varlen(logits, _tensor(LENGTHS, device), K, out_indices=flat)
    assert indices.data_ptr() == flat.data_ptr()
    check_rows(flat.view(ROWS, K), expected, K)


def test_decode_is_one_operator(device: str) -> None:
    scores, _, _ = _case(device, False)
    lengths = _tensor(LENGTHS, device)
    pages = torch.zeros(ROWS, N, dtype=torch.int32, device=device)
    out = torch.empty(ROWS, K, dtype=torch.int32, device=device)
    paged = flashinfer.top_k_page_table_transform
    calls = [
        lambda: flashinfer.top_k_varlen(scores, lengths, K, out_indices=out),
        lambda: flashinfer.top_k_ragged_transform(scores, lengths, lengths, K),
        lambda: paged(scores, pages, lengths, K, page_size=64, out=out),
        lambda: paged(scores, pages, lengths, K, row_to_batch=lengths, out_raw_indices=out),
    ]
    for call in calls:
        names = operators(call)
        assert len(names) == 1 and names[0].startswith("gvr.topk"), names


@pytest.mark.parametrize("with_starts", [False, True])
@pytest.mark.parametrize("tie_break", [0, 1, 2])
def test_ragged(with_starts: bool, tie_break: int, device: str) -> None:
    scores, starts, expected = _case(device, with_starts, last=tie_break == 2)
    offsets = [0, 7, 1 << 24, (1 << 24) + 1, 5, 9, 11, 1 << 30]
    lengths = _tensor(LENGTHS, device)
    given = flashinfer.top_k_ragged_transform(
        scores, _tensor(offsets, device), lengths, K, tie_break=tie_break, row_starts=starts
    )
    check_rows(given, [[offsets[r] + i for i in row] for r, row in enumerate(expected)], K)


@pytest.mark.parametrize("page_size", [1, 2, 64])
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("with_starts", [False, True])
def test_page_table(with_starts: bool, mapped: bool, page_size: int, device: str) -> None:
    scores, starts, expected = _case(device, with_starts)
    first = None
    if with_starts and page_size > 1:
        first = _tensor([0, 1, 0, 2, 1, 0, 1, 2], device)
    owner = [2, 2, 0, 1, 1, 0, 2, 1] if mapped else list(range(ROWS))
    width = 200 // page_size + 5
    pages = torch.randperm((max(owner) + 1) * width, device=device).view(-1, width).int()
    table = pages.tolist()
    default = STARTS if with_starts else [0] * ROWS
    begins = default if first is None else first.tolist()
    physical = [
        [table[owner[r]][begins[r] + i // page_size] * page_size + i % page_size for i in row]
        for r, row in enumerate(expected)
    ]
    buffer, out = guarded(ROWS, K, device)
    raw_buffer, raw = guarded(ROWS, K, device)
    given = flashinfer.top_k_page_table_transform(
        scores,
        pages,
        _tensor(LENGTHS, device),
        K,
        row_to_batch=_tensor(owner, device) if mapped else None,
        row_starts=starts,
        page_table_row_starts=first,
        page_size=page_size,
        out=out,
        out_raw_indices=raw,
    )
    assert given is out
    check_rows(out, physical, K)
    check_rows(raw, expected, K)
    check_guards(buffer, ROWS, K)
    check_guards(raw_buffer, ROWS, K)
    for row, positions in enumerate(
        raw.tolist()
    ):  # raw and physical belong together, place by place
        pairs = zip(positions, out.tolist()[row], strict=True)
        for i, at in pairs:
            if i >= 0:
                page = table[owner[row]][begins[row] + i // page_size]
                assert at == page * page_size + i % page_size


def test_short_rows_come_in_ascending_order(device: str) -> None:
    scores = torch.randn(2, N, device=device)
    offsets, lengths = _tensor([3, 10], device), _tensor([5, K], device)
    given = flashinfer.top_k_ragged_transform(scores, offsets, lengths, K)
    assert given[0].tolist() == [3, 4, 5, 6, 7] + [-1] * (K - 5)
    assert given[1].tolist() == list(range(10, 10 + K))


def test_bad_input_is_one_clear_error(device: str) -> None:
    scores, lengths = torch.randn(3, N, device=device), _tensor([N] * 3, device)
    pages = torch.zeros(3, N, dtype=torch.int32, device=device)
    buffer, out = guarded(3, K, device)

    def paged(**changes: Any) -> None:
        arguments = {"input": scores, "src_page_table": pages, "lengths": lengths, "k": K}
        flashinfer.top_k_page_table_transform(**{**arguments, **changes})

    def ragged(**changes: Any) -> None:
        arguments = {"input": scores, "offsets": lengths, "lengths": lengths, "k": K}
        flashinfer.top_k_ragged_transform(**{**arguments, **changes})

    def varlen(**changes: Any) -> None:
        arguments = {"logits": scores, "seq_lens": lengths, "top_k": K}
        flashinfer.top_k_varlen(**{**arguments, **changes})

    calls: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (paged, {"page_size": 3}, ValueError, "page_size: got 3, need a power of two"),
        (paged, {"page_size": 0}, ValueError, "page_size: got 0"),
        (paged, {"page_size": 2, "row_starts": lengths}, ValueError, "page_table_row_starts: got"),
        (paged, {"row_to_batch": lengths[:1]}, ValueError, "row_to_batch: got shape"),
        (paged, {"src_page_table": pages[:2]}, ValueError, "src_page_table: got shape"),
        (paged, {"src_page_table": pages.long()}, TypeError, "src_page_table: got dtype"),
        (paged, {"tie_break": 3}, ValueError, "tie_break: got 3"),
        (paged, {"out": out[:2]}, ValueError, "out: got shape"),
        (paged, {"out": out.float()}, TypeError, "out: got dtype"),
        (paged, {"k": 0}, ValueError, "k: got 0"),
        (ragged, {"offsets": lengths[:2]}, ValueError, "offsets: got shape"),
        (ragged, {"lengths": lengths.float()}, TypeError, "lengths: got dtype"),
        (ragged, {"input": scores[0]}, ValueError, "input: got shape"),
        (varlen, {"next_n": 2}, ValueError, "next_n: got 2"),
        (varlen, {"absolute_indices": True}, ValueError, "absolute_indices: got True without"),
        (varlen, {"row_starts": lengths, "compress_ratio": 4}, ValueError, "compress_ratio: got 4"),
        (varlen, {"row_starts": lengths[:2]}, ValueError, "row_starts: got shape"),
        (varlen, {"seq_lens": lengths[:2]}, ValueError, "lengths: got shape"),
        (varlen, {"pre_idx": lengths.float()}, TypeError, "hint: got dtype"),
        (varlen, {"out_indices": out[:2]}, ValueError, "indices: got shape"),
    ]
    far, where = lengths.to("meta"), "got a tensor on meta, need the device of the scores"
    calls += [
        (paged, {"lengths": far}, ValueError, f"lengths: {where}"),
        (paged, {"row_to_batch": far}, ValueError, f"row_to_batch: {where}"),
        (paged, {"src_page_table": pages.to("meta")}, ValueError, f"src_page_table: {where}"),
        (paged, {"out_raw_indices": out.to("meta")}, ValueError, "need .* device"),
        (ragged, {"offsets": far}, ValueError, f"offsets: {where}"),
        (varlen, {"seq_lens": far}, ValueError, "need .* device"),
    ]
    for call, changes, error, message in calls:
        with pytest.raises(error, match=message):
            call(**changes)
    check_guards(buffer, 0, 0)
