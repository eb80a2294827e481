# SPDX-License-Identifier: Apache-2.0
"""vLLM's signatures against a plain model of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from plain import best, check_guards, check_rows, guarded, scores_with_garbage
from torch import Tensor

from gvr_topk.integrations import vllm

N, K = 90, 16
LENGTHS = [90, 17, 16, 15, 1, 0, 4, 200]  # short, empty, equal to k, beyond the row


def _decode_ends(lengths: list[int], next_n: int) -> list[int]:
    return [max(0, length - next_n + j + 1) for length in lengths for j in range(next_n)]


def _expected(logits: Tensor, ends: list[int], starts: list[int] | None = None) -> list[list[int]]:
    starts = starts or [0] * len(ends)
    return [best(row, b, e, K) for row, b, e in zip(logits.tolist(), starts, ends, strict=True)]


def _tensor(values: list[int], device: str) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@pytest.mark.parametrize("next_n", [1, 2, 4])
@pytest.mark.parametrize("form", ["[B]", "[B, 1]", "[B, next_n]"])
def test_decode_writes_in_place(form: str, next_n: int, device: str) -> None:
    ends = _decode_ends(LENGTHS, next_n)
    rows = len(ends)
    logits = scores_with_garbage(rows, N, K, ends, device)
    seq_lens = _tensor(LENGTHS, device)
    if form == "[B, 1]":
        seq_lens = seq_lens.unsqueeze(1)
    if form == "[B, next_n]":
        seq_lens = _tensor(ends, device).view(-1, next_n)
    buffer, indices = guarded(rows, K, device, width=5)
    strides = (logits.stride(0), logits.stride(1))
    assert vllm.top_k_per_row_decode(logits, next_n, seq_lens, indices, rows, *strides, K) is None
    check_rows(indices, _expected(logits, ends), K)
    check_guards(buffer, rows, K)


def test_decode_takes_the_first_rows_of_larger_buffers(device: str) -> None:
    logits = scores_with_garbage(8, N, K, LENGTHS, device)
    buffer, indices = guarded(8, K, device)
    lengths = _tensor(LENGTHS[:5], device)
    vllm.top_k_per_row_decode(logits, 1, lengths, indices, 5, N, 1, K)
    check_rows(indices[:5], _expected(logits[:5], LENGTHS[:5]), K)
    check_guards(buffer, 5, K)


def test_prefill_counts_from_the_start_of_each_row(device: str) -> None:
    starts = [0, 3, 30, 30, 70, 90, 50, 89]
    ends = [1, 20, 90, 44, 70, 90, 40, 90]
    logits = scores_with_garbage(8, N, K, ends, device, starts=starts)
    buffer, indices = guarded(8, K, device)
    bounds = (_tensor(starts, device), _tensor(ends, device))
    vllm.top_k_per_row_prefill(logits, *bounds, indices, 8, N, 1, K)
    check_rows(indices, _expected(logits, ends, starts), K)
    check_guards(buffer, 8, K)


@pytest.mark.parametrize("name", ["persistent_topk", "cooperative_topk"])
@pytest.mark.parametrize("shape", [(8,), (8, 1), (2, 4)])
def test_workspace_operators_write_in_place(name: str, shape: tuple[int, ...], device: str) -> None:
    logits = scores_with_garbage(8, N, K, LENGTHS, device)
    buffer, output = guarded(8, K, device)
    workspace = torch.full((64,), 7, dtype=torch.uint8, device=device)
    lengths = _tensor(LENGTHS, device).view(shape)
    assert getattr(vllm, name)(logits, lengths, output, workspace, K, N) is None
    check_rows(output, _expected(logits, LENGTHS), K)
    check_guards(buffer, 8, K)
    assert bool((workspace == 7).all())


def test_max_seq_len_bounds_every_row(device: str) -> None:
    cut = [min(length, 40) for length in LENGTHS]
    logits = scores_with_garbage(8, N, K, cut, device)
    _, output = guarded(8, K, device)
    vllm.persistent_topk(logits, _tensor(LENGTHS, device), output, None, K, 40)
    check_rows(output, _expected(logits, cut), K)
    module = vllm.SparseIndexerTopk()
    output.fill_(-7)
    module(logits, _tensor(LENGTHS, device).unsqueeze(1), 1, output, K, 40)
    check_rows(output, _expected(logits, cut), K)
    vllm.persistent_topk(logits, _tensor(LENGTHS, device), output, None, K, 0)
    assert bool((output == -1).all())


@pytest.mark.parametrize("next_n", [1, 4])
@pytest.mark.parametrize("per_row", [False, True])
def test_the_indexer_stage_writes_in_place(next_n: int, per_row: bool, device: str) -> None:
    ends = _decode_ends(LENGTHS, next_n)
    logits = scores_with_garbage(len(ends), N, K, ends, device)
    seq_lens = (
        _tensor(ends, device).view(-1, next_n) if per_row else _tensor(LENGTHS, device)[:, None]
    )
    buffer, indices = guarded(len(ends), K, device, width=3)
    module = vllm.SparseIndexerTopk(backend="auto")
    assert module(logits, seq_lens, next_n, indices, K, N) is None
    check_rows(indices, _expected(logits, ends), K)
    check_guards(buffer, len(ends), K)
    assert module.resolve_backend(logits, K, len(ends)) == "gvr_topk"


def test_bad_input_is_one_clear_error_and_nothing_is_written(device: str) -> None:
    logits = torch.randn(4, N, device=device)
    lengths = _tensor([N] * 4, device)
    buffer, out = guarded(4, K, device)
    decode, prefill = vllm.top_k_per_row_decode, vllm.top_k_per_row_prefill
    calls: list[tuple[Any, tuple[Any, ...], type[Exception], str]] = [
        (decode, (logits, 1, lengths, out, 5, N, 1, K), ValueError, "num_rows: got 5"),
        (decode, (logits, 1, lengths, out, 4, N + 1, 1, K), ValueError, "stride0: got 91, need 90"),
        (decode, (logits, 1, lengths, out, 4, N, 2, K), ValueError, "stride1: got 2, need 1"),
        (decode, (logits, 3, lengths, out, 4, N, 1, K), ValueError, "next_n: got 3"),
        (decode, (logits, 2, lengths, out, 4, N, 1, K), ValueError, r"seq_lens: got shape \[4\]"),
        (decode, (logits, 1, lengths[:3], out, 4, N, 1, K), ValueError, "seq_lens: got shape"),
        (decode, (logits, 1, lengths, out, 4, N, 1, K + 1), ValueError, "raw_topk_indices: got"),
        (decode, (logits, 1, lengths, out.long(), 4, N, 1, K), TypeError, "raw_topk_indices: got"),
        (decode, (logits, 1, lengths.float(), out, 4, N, 1, K), TypeError, "seq_lens: got dtype"),
        (decode, (logits[0], 1, lengths, out, 4, N, 1, K), ValueError, "logits: got shape"),
        (decode, (logits, 1, None, out, 4, N, 1, K), TypeError, "seq_lens: got NoneType"),
        (prefill, (logits, lengths[:1], lengths, out, 4, N, 1, K), ValueError, "cu_seqlen_ks: got"),
        (prefill, (logits, lengths, [4], out, 4, N, 1, K), TypeError, "cu_seqlen_ke: got list"),
        (vllm.persistent_topk, (logits, lengths[:2], out, None, K, N), ValueError, "lengths: got"),
        (vllm.persistent_topk, (logits, lengths, out, None, 5, N), ValueError, "output: got shape"),
        (vllm.persistent_topk, (logits, lengths, out, None, K, -1), ValueError, "max_seq_len: got"),
    ]
    far, where = lengths.to("meta"), "got a tensor on meta, need the device of the scores"
    calls += [
        (decode, (logits, 1, far, out, 4, N, 1, K), ValueError, f"seq_lens: {where}"),
        (prefill, (logits, lengths, far, out, 4, N, 1, K), ValueError, f"cu_seqlen_ke: {where}"),
        (vllm.persistent_topk, (logits, far, out, None, K, N), ValueError, f"lengths: {where}"),
        (decode, (logits, 1, lengths, out.to("meta"), 4, N, 1, K), ValueError, "need .* device"),
    ]
    for call, arguments, error, message in calls:
        with pytest.raises(error, match=message):
            call(*arguments)
    check_guards(buffer, 0, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_call_follows_its_lengths() -> None:
    logits = torch.randn(8, 4096, device="cuda")
    lengths = _tensor([4096] * 8, "cuda").unsqueeze(1)
    out = torch.empty(8, 512, dtype=torch.int32, device="cuda")
    module = vllm.SparseIndexerTopk()
    module(logits, lengths, 1, out, 512, 4096)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(logits, lengths, 1, out, 512, 4096)
    for step in range(3):
        logits.normal_()
        lengths.copy_(_tensor([4000, 0, 513, 512, 3, 77, 4096, 5000], "cuda")[:, None] + step)
        graph.replay()
        expected = [
            best(row, 0, end, 512)
            for row, end in zip(logits.tolist(), lengths.flatten().tolist(), strict=True)
        ]
        check_rows(out, expected, 512)
