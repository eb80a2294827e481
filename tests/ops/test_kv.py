# SPDX-License-Identifier: Apache-2.0
"""topk_kv and step_kv: every selected key's place in the KV cache, against plain ints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import FEW_TUNINGS, TUNINGS
from generators import make_hint, make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor
from torch.library import opcheck

import gvr_topk
from gvr_topk import TopKCache
from gvr_topk.testing import tuning

ops = torch.ops.gvr
N, K = 1203, 90
INT32_MAX = 2**31 - 1


def place(
    index: int, request: int, table: list[list[int]] | None, page_size: int, offsets: list[int]
) -> int:
    """The formula of gvr_topk.serving."""
    at = index + offsets[request]
    if index < 0 or at < 0:
        return -1
    if table is not None:
        if at // page_size >= len(table[request]) or table[request][at // page_size] < 0:
            return -1
        at = table[request][at // page_size] * page_size + at % page_size
    return at if at <= INT32_MAX else -1


def check_places(
    kv_indices: Tensor,
    indices: Tensor,
    *,
    page_table: Tensor | None = None,
    page_size: int = 1,
    offsets: Tensor | None = None,
    requests: list[int] | None = None,
    next_n: int = 1,
) -> None:
    """Every element of kv_indices is the place of the index beside it."""
    flat = indices.reshape(-1, indices.shape[-1]).tolist()
    table = None if page_table is None else page_table.tolist()
    requests = list(range(len(flat) // next_n)) if requests is None else requests
    offset = [0] * (max(requests, default=0) + 1) if offsets is None else offsets.tolist()
    expected = [
        [place(index, requests[row // next_n], table, page_size, offset) for index in given]
        for row, given in enumerate(flat)
    ]
    assert kv_indices.dtype == torch.int32 and kv_indices.shape == indices.shape
    assert kv_indices.reshape(-1, indices.shape[-1]).tolist() == expected


def make_table(requests: int, pages: int, device: str, *, missing: bool = False) -> Tensor:
    """Every page of every request somewhere else; with `missing`, some are not resident."""
    generator = torch.Generator().manual_seed(requests + pages)
    table = torch.randperm(requests * pages, generator=generator).reshape(requests, pages)
    if missing:
        table[torch.rand(table.shape, generator=generator) < 0.3] = -1
    return table.to(torch.int32).to(device)


@pytest.mark.parametrize("sorted", [False, True], ids=["unsorted", "sorted"])
@pytest.mark.parametrize("page_size", [1, 2, 16, 64, 256, 2048])
def test_paged_output_of_any_page_size(
    page_size: int, sorted: bool, device: str, dtype: torch.dtype, algorithm: str
) -> None:
    scores = make_rows("quantised_4097", 5, N, K, device=device, dtype=dtype)
    lengths = torch.tensor([N, 700, K, 7, 0], device=device)
    table = make_table(5, -(-N // page_size), device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores,
        K,
        page_table=table,
        page_size=page_size,
        lengths=lengths,
        sorted=sorted,
        algorithm=algorithm,
    )
    assert_exact(exact_answer(scores, K, lengths=lengths), indices, sorted=sorted)
    check_places(kv_indices, indices, page_table=table, page_size=page_size)


@pytest.mark.parametrize("name", [*FEW_TUNINGS, "4 slices, tight", "16 slices"])
def test_every_path_places_its_winners(name: str, device: str, algorithm: str) -> None:
    scores = make_rows("quantised_33", 3, 1500, K, device=device)
    hint = make_hint("previous_step", scores, K)
    table = make_table(3, 24, device)
    with tuning(**TUNINGS[name]):
        kv_indices, indices = gvr_topk.topk_kv(
            scores, K, page_table=table, page_size=64, hint=hint, algorithm=algorithm
        )
    assert_exact(exact_answer(scores, K), indices)
    check_places(kv_indices, indices, page_table=table, page_size=64)


def test_large_k_is_placed_in_sorted_order(device: str) -> None:
    """Beyond the k that one kernel sorts."""
    k, n = 5000, 12_000
    scores = make_rows("quantised_33", 2, n, k, device=device)
    table = make_table(2, -(-n // 16), device)
    kv_indices, indices = gvr_topk.topk_kv(scores, k, page_table=table, page_size=16, sorted=True)
    assert_exact(exact_answer(scores, k), indices, sorted=True)
    check_places(kv_indices, indices, page_table=table, page_size=16)


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_ragged_offsets(integer: torch.dtype, device: str, algorithm: str) -> None:
    scores = make_rows("normal", 4, N, K, device=device)
    lengths = torch.tensor([N, 0, 60, 1000], device=device)
    offsets = torch.tensor([0, N, 2 * N, 10**9], dtype=integer, device=device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores, K, offsets=offsets, lengths=lengths, algorithm=algorithm
    )
    assert_exact(exact_answer(scores, K, lengths=lengths), indices)
    check_places(kv_indices, indices, offsets=offsets)


def test_offsets_come_before_the_page_lookup(device: str) -> None:
    """Rows that hold a shard of each request's keys."""
    scores = make_rows("normal", 3, N, K, device=device)
    offsets = torch.tensor([0, 5000, 100], device=device)
    table = make_table(3, 400, device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores, K, page_table=table, page_size=16, offsets=offsets
    )
    check_places(kv_indices, indices, page_table=table, page_size=16, offsets=offsets)
    assert bool((kv_indices >= 0).all())


def test_keys_without_a_place_are_minus_one(device: str, algorithm: str) -> None:
    """A narrow table, pages that are not resident, numbers that no int32 holds, wild offsets."""
    scores = make_rows("uniform", 6, N, K, device=device)
    table = make_table(6, 10, device, missing=True)  # 640 of 1203 positions
    table[3] = INT32_MAX
    offsets = torch.tensor([0, -600, -(2**63), 0, 2**63 - 1, 2**62], device=device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores, K, page_table=table, page_size=64, offsets=offsets, algorithm=algorithm
    )
    assert_exact(exact_answer(scores, K), indices)
    check_places(kv_indices, indices, page_table=table, page_size=64, offsets=offsets)
    assert bool((kv_indices[2:] == -1).all()) and bool((kv_indices[:2] == -1).any())
    kv_indices, indices = gvr_topk.topk_kv(scores, K, offsets=offsets, algorithm=algorithm)
    check_places(kv_indices, indices, offsets=offsets)


def test_a_page_table_may_be_a_view(device: str) -> None:
    scores = make_rows("normal", 4, N, K, device=device)
    whole = make_table(8, 40, device)
    for table in (whole[::2, :20], whole[:4, ::2], whole[:1, :20].expand(4, 20)):
        kv_indices, indices = gvr_topk.topk_kv(scores, K, page_table=table, page_size=64)
        check_places(kv_indices, indices, page_table=table, page_size=64)


def test_draft_rows_share_their_requests_pages(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 6, N, K, device=device)
    lengths = torch.tensor([N, 50], device=device)
    table = make_table(2, 20, device)
    window = {"lengths": lengths, "next_n": 3}
    kv_indices, indices = gvr_topk.topk_kv(
        scores, K, page_table=table, page_size=64, algorithm=algorithm, **window
    )
    assert_exact(exact_answer(scores, K, **window), indices)
    check_places(kv_indices, indices, page_table=table, page_size=64, next_n=3)


MAP = [2, 0, 0, 2, 2, 1, 0]


def _mapped(device: str, integer: torch.dtype = torch.int32) -> tuple[Tensor, Tensor]:
    scores = make_rows("quantised_4097", len(MAP), N, K, device=device)
    return scores, torch.tensor(MAP, dtype=integer, device=device)


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_rows_in_any_order_find_their_request(
    integer: torch.dtype, device: str, algorithm: str
) -> None:
    scores, rows = _mapped(device, integer)
    lengths = torch.tensor([N, 400, 30], device=device)
    starts = torch.tensor([10, 0, 0], dtype=torch.int32, device=device)
    offsets = torch.tensor([5, 0, 1], device=device)
    table = make_table(3, 25, device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores,
        K,
        row_to_request=rows,
        lengths=lengths,
        starts=starts,
        page_table=table,
        page_size=64,
        offsets=offsets,
        algorithm=algorithm,
    )
    by_row = {"lengths": lengths[rows.long()], "starts": starts[rows.long()]}
    assert_exact(exact_answer(scores, K, **by_row), indices)
    check_places(kv_indices, indices, page_table=table, page_size=64, offsets=offsets, requests=MAP)


def test_windows_may_stay_per_row(device: str, algorithm: str) -> None:
    """Causal prefill: the rows of a request end one after the other."""
    scores, rows = _mapped(device)
    lengths = torch.tensor([100, 200, 300, 400, 500, 600, 700], device=device)
    starts = torch.arange(7, dtype=torch.int32, device=device)
    table = make_table(3, 25, device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores,
        K,
        row_to_request=rows,
        windows_per_row=True,
        lengths=lengths,
        starts=starts,
        page_table=table,
        page_size=64,
        algorithm=algorithm,
    )
    assert_exact(exact_answer(scores, K, lengths=lengths, starts=starts), indices)
    check_places(kv_indices, indices, page_table=table, page_size=64, requests=MAP)


def test_groups_of_drafts_find_their_request(device: str) -> None:
    scores = make_rows("normal", 6, N, K, device=device)
    rows = torch.tensor([1, 1, 0], device=device)
    lengths = torch.tensor([500, 900], device=device)
    table = make_table(2, 25, device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores,
        K,
        row_to_request=rows,
        next_n=2,
        lengths=lengths,
        page_table=table,
        page_size=64,
    )
    assert_exact(exact_answer(scores, K, lengths=lengths[rows], next_n=2), indices)
    check_places(kv_indices, indices, page_table=table, page_size=64, requests=[1, 1, 0], next_n=2)


@pytest.mark.parametrize("wild", [-1, 3, INT32_MAX, -(2**31)])
def test_rows_of_no_request_are_empty(wild: int, device: str, algorithm: str) -> None:
    scores, rows = _mapped(device)
    rows[1] = rows[6] = wild
    table = make_table(3, 25, device)
    kv_indices, indices = gvr_topk.topk_kv(
        scores, K, row_to_request=rows, page_table=table, page_size=64, algorithm=algorithm
    )
    lengths = torch.tensor([N, 0, N, N, N, N, 0], device=device)
    assert_exact(exact_answer(scores, K, lengths=lengths), indices)
    assert bool((kv_indices[[1, 6]] == -1).all()) and bool((kv_indices[[0, 2]] >= 0).all())


def test_thousands_of_prefill_rows(device: str) -> None:
    """Four requests of a chunked prefill: causal windows of every size, one table row each."""
    requests, rows_each, n, k = 4, 1024, 1500, 64
    rows = torch.arange(requests, device=device).repeat_interleave(rows_each)
    ends = torch.arange(rows_each, device=device).repeat(requests) + 400
    scores = make_rows("quantised_4097", requests * rows_each, n, k, device=device)
    table = make_table(requests, 24, device)
    cache = TopKCache(1, 8, k, device=device)
    slots = torch.tensor([7, 0, 3, 5], device=device)
    kv_indices, indices = cache.step_kv(
        scores,
        0,
        slots,
        ends,
        row_to_request=rows.int(),
        windows_per_row=True,
        page_table=table,
        page_size=64,
    )
    assert_exact(exact_answer(scores, k, lengths=ends), indices)
    pages = table[rows[:, None], indices.long() // 64]
    assert torch.equal(kv_indices, pages * 64 + indices % 64)
    # Every slot is seeded by the last row of its request.
    last = indices[rows_each - 1 :: rows_each].sort(-1).values
    assert torch.equal(cache.state[0, slots, 0, 4:].sort(-1).values, last)


def test_compressed_rows(device: str) -> None:
    scores = make_rows("normal", 4, 300, K, device=device)
    window = {"lengths": torch.tensor([1200, 1199, 500, 3], device=device), "compress_ratio": 4}
    table = make_table(4, 10, device)
    kv_indices, indices = gvr_topk.topk_kv(scores, K, page_table=table, page_size=32, **window)
    assert_exact(exact_answer(scores, K, **window), indices)
    check_places(kv_indices, indices, page_table=table, page_size=32)


def test_a_step_places_and_advances_the_state_as_step_does(device: str, algorithm: str) -> None:
    caches = [TopKCache(2, 4, K, device=device) for _ in range(2)]
    slots = torch.tensor([3, -1, 0], device=device)
    table = make_table(3, 25, device)
    for seed in range(3):
        scores = make_rows("normal", 3, N, K, device=device, seed=seed)
        kv_indices, indices = caches[0].step_kv(
            scores, 1, slots, page_table=table, page_size=64, algorithm=algorithm, sorted=True
        )
        assert_exact(exact_answer(scores, K), indices, sorted=True)
        check_places(kv_indices, indices, page_table=table, page_size=64)
        caches[1].step(scores, 1, slots, algorithm=algorithm, sorted=True)
        ordered = [cache.state[:, :, :, 4:].sort(-1).values for cache in caches]
        assert torch.equal(*ordered)
        assert torch.equal(caches[0].state[..., :2], caches[1].state[..., :2])


def test_a_cuda_graph_follows_changed_tables_and_maps(device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    scores = make_rows("normal", 4, N, K, device=device)
    rows = torch.tensor([0, 1, 1, 0], device=device)
    table, offsets = make_table(2, 25, device), torch.zeros(2, dtype=torch.int64, device=device)
    arguments = {
        "page_table": table,
        "page_size": 64,
        "offsets": offsets,
        "row_to_request": rows,
    }
    gvr_topk.topk_kv(scores, K, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kv_indices, indices = gvr_topk.topk_kv(scores, K, **arguments)
    for seed in range(3):
        scores.copy_(make_rows("normal", 4, N, K, device=device, seed=seed))
        rows.copy_(rows.roll(1))
        table.copy_(table.flip(1))
        offsets.add_(3)
        graph.replay()
        assert_exact(exact_answer(scores, K), indices)
        check_places(
            kv_indices,
            indices,
            page_table=table,
            page_size=64,
            offsets=offsets,
            requests=rows.tolist(),
        )


def test_given_outputs_are_written(device: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    guarded = torch.full((2, 5, K + 6), -7, dtype=torch.int32, device=device)
    out = (guarded[0, 1:4, 3:-3], guarded[1, 1:4, 3:-3])
    result = gvr_topk.topk_kv(scores, K, offsets=torch.arange(3, device=device), out=out)
    assert result.kv_indices is out[0] and result.indices is out[1]
    assert_exact(exact_answer(scores, K), out[1])
    assert torch.equal(out[0], out[1] + torch.arange(3, device=device)[:, None])
    out[0].fill_(-7), out[1].fill_(-7)
    assert bool((guarded == -7).all())


def test_leading_dimensions_and_empty_batches(device: str) -> None:
    scores = make_rows("normal", 6, N, K, device=device).reshape(2, 3, N)
    kv_indices, indices = gvr_topk.topk_kv(scores, K, offsets=torch.arange(6, device=device))
    assert kv_indices.shape == (2, 3, K)
    check_places(kv_indices, indices, offsets=torch.arange(6))
    none = gvr_topk.topk_kv(scores[:0], K, page_table=make_table(0, 3, device), page_size=4)
    assert none.kv_indices.shape == none.indices.shape == (0, 3, K)
    no_rows = torch.zeros(0, dtype=torch.int64, device=device)
    none = gvr_topk.topk_kv(
        scores[:0], K, row_to_request=no_rows, page_table=make_table(3, 3, device), page_size=4
    )
    assert none.indices.shape == (0, 3, K)


def _arguments(device: str) -> dict[str, Any]:
    return {
        "page_table": make_table(3, 25, device),
        "page_size": 64,
        "offsets": torch.tensor([0, 1, 2], device=device),
        "row_to_request": torch.tensor([2, 0], dtype=torch.int32, device=device),
        "lengths": torch.tensor([N, 40], device=device),
        "windows_per_row": True,
        "next_n": 2,
        "sorted": True,
    }


@pytest.mark.parametrize("plain", [False, True], ids=["mapped", "plain"])
def test_opcheck(plain: bool, device: str) -> None:
    scores = make_rows("quantised_4097", 4, N, K, device=device)
    # opcheck compares two calls element by element, so the order must be defined.
    arguments = {"sorted": True} if plain else _arguments(device)
    state = torch.zeros(2, 4, 2, 4 + K, dtype=torch.int32, device=device)
    opcheck(ops.topk_kv.default, (scores, K), arguments)
    opcheck(ops.step_kv.default, (scores, state, 1, K), arguments)
    out = {
        name: torch.empty(4, K, dtype=torch.int32, device=device)
        for name in ("kv_indices", "indices")
    }
    opcheck(ops.topk_kv.out, (scores, K), {**arguments, **out})


def test_topk_kv_compiles_whole(device: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    table = make_table(3, 25, device)
    compiled = torch.compile(
        lambda scores, table: gvr_topk.topk_kv(scores, K, page_table=table, page_size=64),
        fullgraph=True,
        backend="inductor" if device == "cuda" else "aot_eager",
    )
    kv_indices, indices = compiled(scores, table)
    assert_exact(exact_answer(scores, K), indices)
    check_places(kv_indices, indices, page_table=table, page_size=64)


BAD: list[tuple[str, type[Exception], str, Callable[[str], dict[str, Any]]]] = [
    ("page_table", TypeError, "Long", lambda d: {"page_table": make_table(4, 9, d).long()}),
    ("page_table", TypeError, "list", lambda d: {"page_table": [[1]]}),
    ("page_table", ValueError, "[3, 9]", lambda d: {"page_table": make_table(3, 9, d)}),
    ("page_table", ValueError, "[4]", lambda d: {"page_table": make_table(4, 9, d)[:, 0]}),
    ("page_table", ValueError, "[4, 0]", lambda d: {"page_table": make_table(4, 9, d)[:, :0]}),
    ("page_size", ValueError, "48", lambda d: {"page_table": make_table(4, 9, d), "page_size": 48}),
    ("page_size", ValueError, "0", lambda d: {"page_table": make_table(4, 9, d), "page_size": 0}),
    ("page_size", ValueError, "-4", lambda d: {"page_table": make_table(4, 9, d), "page_size": -4}),
    ("page_size", ValueError, "4294967296",
     lambda d: {"page_table": make_table(4, 9, d), "page_size": 2**32}),
    ("page_size", ValueError, "64", lambda d: {"page_size": 64}),
    ("page_size", TypeError, "float", lambda d: {"page_size": 64.0}),
    ("offsets", TypeError, "Float", lambda d: {"offsets": torch.zeros(4, device=d)}),
    ("offsets", ValueError, "[5]", lambda d: {"offsets": torch.arange(5, device=d)}),
    ("row_to_request", ValueError, "[3]",
     lambda d: {"row_to_request": torch.arange(3, device=d), "offsets": torch.arange(4, device=d)}),
    ("row_to_request", TypeError, "Float",
     lambda d: {"row_to_request": torch.zeros(4, device=d)}),
    ("row_to_request", ValueError, "per request",
     lambda d: {"row_to_request": torch.arange(4, device=d)}),
    ("page_table", ValueError, "need 2 requests",
     lambda d: {"row_to_request": torch.arange(4, device=d),
                "lengths": torch.arange(2, device=d), "page_table": make_table(4, 9, d)}),
    ("lengths", ValueError, "[2]",
     lambda d: {"row_to_request": torch.arange(4, device=d), "windows_per_row": True,
                "lengths": torch.arange(2, device=d)}),
    ("windows_per_row", TypeError, "int", lambda d: {"windows_per_row": 1}),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=[f"{case[0]}-{case[2]}" for case in BAD])
def test_bad_arguments_are_named(case: Any, device: str) -> None:
    argument, error, given, make = case
    scores = make_rows("normal", 4, N, K, device=device)
    with pytest.raises(error, match=f"^{argument}: got") as raised:
        gvr_topk.topk_kv(scores, K, **make(device))
    assert given in str(raised.value) and "need" in str(raised.value)


def test_outputs_must_not_overlap_the_page_table(device: str) -> None:
    scores = make_rows("normal", 2, N, K, device=device)
    table = make_table(2, K, device)
    before = table.clone()
    with pytest.raises(ValueError, match=r"kv_indices: .*overlaps that of page_table"):
        gvr_topk.topk_kv(
            scores, K, page_table=table, page_size=64, out=(table, torch.empty_like(table))
        )
    assert torch.equal(table, before)
