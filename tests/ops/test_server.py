# SPDX-License-Identifier: Apache-2.0
"""TopKCache for servers: shared slots, seeding, compaction, preemption, narrow hints, bad input."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from generators import make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

import gvr_topk
from gvr_topk import TopKCache
from gvr_topk.stats import COLUMNS

N, K = 1500, 64
COUNT, ACCEPTED, HEADER = 0, 3, 4


def _winners_at(firsts: list[int], device: str) -> Tensor:
    """Row i's K winners are the positions firsts[i] .. firsts[i] + K - 1."""
    scores = make_rows("normal", len(firsts), N, K, device=device)
    for row, first in zip(scores, firsts, strict=True):
        row[first : first + K] += 100.0
    return scores


def _hits(
    cache: TopKCache,
    scores: Tensor,
    slots: list[int],
    lengths: Tensor | None = None,
    layer: int = 0,
) -> list[int]:
    """How many of each slot's hints are winners of `scores`, of a copy: nothing is stored."""
    copy = TopKCache(
        cache.layers,
        cache.slots,
        cache.k,
        hint_size=cache.hint_size,
        depth=cache.depth,
        device=cache.device,
    )
    copy.load_state_dict(cache.state_dict())
    stats = copy.step(scores, layer, slots, lengths, return_stats=True, algorithm="gvr").stats
    return stats.tensor[:, COLUMNS.index("hint_hits")].tolist()


def _hinted(cache: TopKCache, slot: int, layer: int = 0, draft: int = 0) -> list[int]:
    entry = cache.state[layer, slot, draft].tolist()
    return sorted(p for p in entry[HEADER : HEADER + entry[COUNT]] if p >= 0)


# A slot used twice in one step.


def test_a_repeated_slot_is_an_error_where_the_host_sees_it() -> None:
    cache = TopKCache(1, 4, K)
    scores = _winners_at([0, 100, 200], "cpu")
    for slots in ([2, 0, 2], torch.tensor([2, 0, 2]), torch.tensor([2, 0, 2], dtype=torch.int32)):
        with pytest.raises(ValueError, match=r"^slots: got slot 2 .*need a slot of its own"):
            cache.step(scores, 0, slots)
        with pytest.raises(ValueError, match=r"^slots: got slot 2 .*need a slot of its own"):
            cache.step_difference(scores, 0, slots)
    assert not bool(cache.state.any())


def test_padding_rows_may_repeat_a_slot(device: str) -> None:
    """Rows of length 0 have no use for their slot, and negative slots are no slots."""
    cache = TopKCache(1, 4, K, device=device)
    scores = _winners_at([0, 100, 200, 300], device)
    lengths = torch.tensor([N, 0, N, -1], device=device)
    slots = torch.tensor([2, 2, -1, 2], device=device)
    assert_exact(exact_answer(scores, K, lengths=lengths), cache.step(scores, 0, slots, lengths))
    assert _hinted(cache, 2) == list(range(K))
    cache.step(scores, 0, [-1, -1, 3, -1])
    assert _hinted(cache, 3) == list(range(200, 200 + K))


@pytest.mark.parametrize("padding", [0, 40, 400])
def test_the_last_row_of_a_repeated_slot_wins_on_the_gpu(
    padding: int, device: str, algorithm: str
) -> None:
    """`padding` rows with slots of their own lie between; the last with valid scores counts."""
    if device != "cuda":
        pytest.skip("on the CPU a slot that is named twice is an error")
    rows = 4 + padding
    cache = TopKCache(1, rows, K, depth=2, device=device)
    firsts = [100, 200, *range(padding), 300, 400]
    slots = torch.tensor([1, 1, *range(4, rows), 1, 1], device=device)
    lengths = torch.full((rows,), N, device=device)
    lengths[-1] = 0
    scores = _winners_at(firsts, device)
    answer = exact_answer(scores, K, lengths=lengths)
    for _ in range(3):
        assert_exact(answer, cache.step(scores, 0, slots, lengths, algorithm=algorithm))
        assert _hinted(cache, 1) == list(range(300, 300 + K))
    drafts = scores.repeat_interleave(2, 0)
    cache.step(drafts, 0, slots, lengths, next_n=2, algorithm=algorithm)
    for draft in range(2):
        assert _hinted(cache, 1, draft=draft) == list(range(300, 300 + K))
    result = cache.step_difference(scores, 0, slots, lengths, algorithm=algorithm)
    expected = [[K, 0], [K, 0], [0, 0], [0, 0]]
    assert result.counts[[0, 1, rows - 2, rows - 1]].tolist() == expected


def test_the_last_row_of_a_request_wins(device: str, algorithm: str) -> None:
    """With a map it is no mistake that rows share a slot, and the order of requests is free."""
    cache = TopKCache(1, 5, K, device=device)
    rows = torch.tensor([1, 0, 1, 1, 0], device=device)
    lengths = torch.tensor([N, N, N, 0, N], device=device)
    scores = _winners_at([0, 100, 200, 300, 400], device)
    slots = torch.tensor([4, 2], device=device)
    for given in (slots, slots.tolist()):
        cache.reset()
        cache.step_kv(
            scores,
            0,
            given,
            lengths,
            row_to_request=rows,
            windows_per_row=True,
            algorithm=algorithm,
        )
        assert _hinted(cache, 4) == list(range(400, 400 + K))
        assert _hinted(cache, 2) == list(range(200, 200 + K))


def test_without_slots_the_map_leads_to_them(device: str) -> None:
    cache = TopKCache(1, 3, K, device=device)
    scores = _winners_at([0, 100, 200], device)
    cache.step_kv(scores, 0, row_to_request=torch.tensor([2, 7, 2], device=device))
    assert [_hinted(cache, slot)[:1] for slot in range(3)] == [[], [], [200]]


# Seeding.


@pytest.mark.parametrize("hint_size", [K, 10, 1])
def test_seed_leaves_what_a_step_would(hint_size: int, device: str) -> None:
    scores = make_rows("normal", 2, N, K, device=device)
    lengths = torch.tensor([N, 700], device=device)
    stepped, seeded = (
        TopKCache(3, 4, K, hint_size=hint_size, depth=2, device=device) for _ in range(2)
    )
    indices = stepped.step(scores, 1, torch.tensor([3, 0], device=device), lengths)
    seeded.seed(1, [3, 0], indices)
    for slot in (3, 0):
        assert len(_hinted(seeded, slot, 1)) == hint_size
        assert seeded.state[1, slot, 0, :HEADER].tolist() == [hint_size, 0, -1, 0]
        if hint_size == K:
            assert _hinted(seeded, slot, 1) == _hinted(stepped, slot, 1)
    assert not bool(seeded.state[[0, 2]].any())
    hits = _hits(seeded, scores, [3, 0], lengths, layer=1)
    assert hits == [hint_size, hint_size]


def test_a_seed_replaces_the_accepted_draft(device: str) -> None:
    cache = TopKCache(1, 1, K, depth=3, device=device)
    cache.step(_winners_at([0, 100, 200], device), 0, next_n=3)
    cache.seed(0, [0], torch.arange(500, 500 + K, dtype=torch.int32, device=device)[None])
    assert int(cache.state[0, 0, 0, ACCEPTED]) == 0
    assert _hits(cache, _winners_at([500], device), [0]) == [K]


# Compaction.


@pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_remap_follows_every_key(integer: torch.dtype, device: str) -> None:
    cache = TopKCache(3, 4, K, depth=2, device=device)
    for layer in range(3):
        rows = make_rows("normal", 8, N, K, device=device, seed=layer)
        cache.step(rows, layer, next_n=2)
    before = cache.state.clone()
    generator = torch.Generator().manual_seed(0)
    moved = torch.stack([torch.randperm(N, generator=generator) for _ in range(2)])
    moved[:, ::5] = -1
    cache.remap([2, 0], moved.to(integer).to(device))
    for layer in range(3):
        for row, slot in enumerate((2, 0)):
            for draft in range(2):
                old = before[layer, slot, draft].tolist()
                new = cache.state[layer, slot, draft].tolist()
                assert new[:HEADER] == old[:HEADER]
                assert new[HEADER:] == [int(moved[row, p]) for p in old[HEADER:]]
    assert torch.equal(cache.state[:, 1::2], before[:, 1::2])
    for layer in range(3):
        scores = make_rows("normal", 4, N, K, device=device, seed=7)
        assert_exact(exact_answer(scores, K), cache.step(scores, layer))


def test_one_map_serves_all_slots_and_drops_what_it_does_not_cover(device: str) -> None:
    cache = TopKCache(1, 3, K, device=device)
    cache.step(_winners_at([0, 40, 500], device), 0)
    cache.remap([0, 1, 2], torch.arange(100, 160, device=device))  # 60 positions, moved by 100
    assert _hinted(cache, 0) == list(range(100, 160))
    assert _hinted(cache, 1) == list(range(140, 160))
    assert _hinted(cache, 2) == []
    cache.remap([0], torch.zeros(0, dtype=torch.int32, device=device))
    assert _hinted(cache, 0) == []


@pytest.mark.parametrize("wild", [-1, -(2**63), 2**31 - 1, 2**63 - 1])
def test_wild_maps_drop_keys(wild: int, device: str) -> None:
    cache = TopKCache(1, 1, K, device=device)
    cache.step(_winners_at([0], device), 0)
    cache.state[0, 0, 0, HEADER + 5] = -(2**31)
    cache.state[0, 0, 0, HEADER + 6] = 2**31 - 1
    cache.remap([0], torch.full((N,), wild, device=device))
    assert _hinted(cache, 0) == []


@pytest.mark.parametrize("shared", [True, False])
def test_remap_of_many_entries_in_parts(shared: bool, device: str) -> None:
    """More words than are moved at a time, by one map or by one per slot."""
    cache = TopKCache(9, 40, 2000, depth=7, device=device)
    cache.state.random_(0, 3000)
    before = cache.state.clone()
    moved = torch.rand(40, 3000, device=device).argsort(-1)
    cache.remap(list(range(39, -1, -1)), moved[0] if shared else moved)
    for slot in range(40):
        expected = moved[0 if shared else 39 - slot][before[:, slot, :, HEADER:].long()]
        assert torch.equal(cache.state[:, slot, :, HEADER:].long(), expected)
    assert torch.equal(cache.state[..., :HEADER], before[..., :HEADER])


# Preemption, disaggregation, checkpoints.


def test_export_and_import_move_a_request(device: str) -> None:
    source = TopKCache(2, 4, K, depth=2, device=device)
    for layer in range(2):
        source.step(make_rows("normal", 8, N, K, device=device, seed=layer), layer, next_n=2)
    source.commit([3], [0])
    exported = source.export([3, 1])
    kept = source.state.clone()
    source.reset()  # a copy does not follow the table
    target = TopKCache(2, 9, K, depth=2, device=device)
    target.import_([0, 8], exported)
    assert torch.equal(target.state[:, 0], kept[:, 3]) and torch.equal(
        target.state[:, 8], kept[:, 1]
    )
    assert not bool(target.state[:, 1:8].any())


def test_an_export_travels(device: str, tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    cache = TopKCache(1, 3, K, device=device)
    cache.step(_winners_at([0, 100, 200], device), 0)
    exported = cache.export([2], device="cpu")
    assert exported["entries"].device.type == "cpu"
    save_file(exported, tmp_path / "slot.safetensors")
    buffer = io.BytesIO()
    torch.save(exported, buffer)
    buffer.seek(0)
    for arrived in (
        load_file(tmp_path / "slot.safetensors"),
        torch.load(buffer, weights_only=True),
    ):
        cache.reset([1])
        cache.import_([1], arrived)
        assert _hinted(cache, 1) == list(range(200, 200 + K))


def test_state_dict_restores_the_cache_in_place(device: str) -> None:
    cache = TopKCache(2, 3, K, device=device)
    cache.step(_winners_at([0, 100, 200], device), 1)
    saved = {name: tensor.clone() for name, tensor in cache.state_dict().items()}
    address = cache.state.data_ptr()
    cache.step(_winners_at([300, 400, 500], device), 1)
    cache.load_state_dict(saved)
    assert cache.state.data_ptr() == address
    assert torch.equal(cache.state, saved["entries"])
    assert [_hinted(cache, slot, 1)[0] for slot in range(3)] == [0, 100, 200]
    cache.load_state_dict(cache.state_dict())
    assert torch.equal(cache.state, saved["entries"])


def test_slots_may_change_places_within_their_own_table(device: str) -> None:
    cache = TopKCache(2, 3, K, device=device)
    for layer, first in enumerate((0, 600)):
        cache.step(_winners_at([first, first + 100, first + 200], device), layer)
    before = cache.state.clone()
    cache.import_([1, 2, 0], cache.state_dict())
    assert torch.equal(cache.state, before[:, [2, 0, 1]])


@pytest.mark.parametrize("change", ["layers", "depth", "hint_size", "k"])
def test_an_export_of_another_size_is_named(change: str, device: str) -> None:
    sizes = {"layers": 2, "slots": 3, "k": K, "depth": 2, "hint_size": 32}
    other = TopKCache(**{**sizes, change: sizes[change] + 1}, device=device)
    other.state.fill_(1)
    cache = TopKCache(**sizes, device=device)
    argument = "k" if change == "k" else "entries"
    with pytest.raises(ValueError, match=f"^{argument}: got .*need"):
        cache.import_([0], other.export([0]))
    with pytest.raises(ValueError, match=f"^{argument}: got .*need"):
        cache.load_state_dict(other.state_dict())
    assert not bool(cache.state.any())


# Fewer hints than winners.


@pytest.mark.parametrize("k, hint_size", [(64, 1), (64, 10), (64, 63), (60, 40), (7, 3), (1000, 9)])
def test_few_hints_are_taken_at_even_distances(k: int, hint_size: int, device: str) -> None:
    """Sorted on the CPU, the answer's order is known: the hints are every so-manieth of it."""
    cache = TopKCache(1, 1, k, hint_size=hint_size, device=device)
    scores = make_rows("normal", 1, N, k, device=device)
    indices = cache.step(scores, 0, sorted=True)[0].tolist()
    stored = cache.state[0, 0, 0, HEADER:].tolist()
    assert int(cache.state[0, 0, 0, COUNT]) == hint_size
    assert len(set(stored)) == hint_size and set(stored) <= set(indices)
    if device == "cpu":
        assert stored == [indices[-(-j * k // hint_size)] for j in range(hint_size)]


@pytest.mark.parametrize("hint_size", [1, 7, 63])
def test_short_rows_leave_their_share_of_hints(hint_size: int, device: str, algorithm: str) -> None:
    for n in (1, 2, 30, K - 1, K, K + 1):
        cache = TopKCache(1, 1, K, hint_size=hint_size, device=device)
        scores = make_rows("normal", 1, n, K, device=device)
        for _ in range(2):
            indices = cache.step(scores, 0, algorithm=algorithm)
            assert_exact(exact_answer(scores, K), indices)
        stored = _hinted(cache, 0)
        expected = (min(n, K) - 1) * hint_size // K + 1
        assert len(stored) == expected == int(cache.state[0, 0, 0, COUNT])
        assert set(stored) <= set(indices[0].tolist())


def test_bytes_are_counted(device: str) -> None:
    sizes = {"layers": 3, "slots": 7, "k": 200, "hint_size": 50, "depth": 2}
    cache = TopKCache(**sizes, device=device)
    assert TopKCache.bytes_needed(**sizes) == cache.nbytes
    assert TopKCache.bytes_needed(1, 2, 30) == TopKCache(1, 2, 30).nbytes
    on_host = device == "cpu"
    assert cache.host_bytes == (cache.nbytes if on_host else 0)
    assert cache.device_bytes == (0 if on_host else cache.nbytes)


# Bad input.


def test_a_slot_beyond_the_table_is_an_index_error_where_the_host_sees_it() -> None:
    cache = TopKCache(1, 3, K)
    scores = _winners_at([0, 100], "cpu")
    for slots in ([0, 3], torch.tensor([0, 3]), torch.tensor([2**40, 0]), [0, 2**62]):
        for step in (cache.step, cache.step_kv, cache.step_difference):
            with pytest.raises(IndexError, match=r"^slots: got \d+.*need slots < 3"):
                step(scores, 0, slots)
    assert not bool(cache.state.any())


def _calls(cache: TopKCache, device: str) -> list[tuple[str, type[Exception], Callable[[], Any]]]:
    scores = make_rows("normal", 4, N, K, device=device)
    one = torch.tensor([0], device=device)
    indices = torch.zeros(1, K, dtype=torch.int32, device=device)
    moved = torch.arange(N, device=device)
    exported = cache.export([0])
    return [
        ("layer", IndexError, lambda: cache.step(scores, 2)),
        ("layer", IndexError, lambda: cache.step_kv(scores, -1)),
        ("layer", IndexError, lambda: cache.step_difference(scores, 2)),
        ("layer", IndexError, lambda: cache.seed(2, one, indices)),
        ("layer", TypeError, lambda: cache.step(scores, "0")),
        ("slots", IndexError, lambda: cache.reset([4])),
        ("slots", IndexError, lambda: cache.remap([4], moved)),
        ("slots", IndexError, lambda: cache.export([-1])),
        ("slots", IndexError, lambda: cache.import_([4], exported)),
        ("slots", IndexError, lambda: cache.seed(0, [4], indices)),
        ("slots", ValueError, lambda: cache.remap([1, 1], moved)),
        ("slots", ValueError, lambda: cache.commit([1, 1], [0, 1])),
        ("dst", ValueError, lambda: cache.copy([0, 1], [2, 2])),
        ("slots", ValueError, lambda: cache.import_([1, 1], cache.export([0, 0]))),
        ("slots", ValueError, lambda: cache.seed(0, [1, 1], indices.repeat(2, 1))),
        ("slots", TypeError, lambda: cache.step(scores, 0, "0123")),
        ("slots", TypeError, lambda: cache.step(scores, 0, [0, 1, 2, 3.0])),
        ("slots", TypeError, lambda: cache.step(scores, 0, 3)),
        ("slots", ValueError, lambda: cache.step(scores, 0, [0, 1])),
        ("slots", ValueError, lambda: cache.reset([2**70])),
        ("indices", ValueError, lambda: cache.seed(0, one, indices[:, :9])),
        ("indices", ValueError, lambda: cache.seed(0, one, indices.repeat(2, 1))),
        ("indices", TypeError, lambda: cache.seed(0, one, indices.long())),
        ("indices", TypeError, lambda: cache.seed(0, one, [[1]])),
        ("positions", TypeError, lambda: cache.remap(one, moved.float())),
        ("positions", TypeError, lambda: cache.remap(one, moved.tolist())),
        ("positions", ValueError, lambda: cache.remap(one, moved.repeat(2, 1))),
        ("positions", ValueError, lambda: cache.remap(one, moved[None, None])),
        ("exported", ValueError, lambda: cache.import_(one, {"entries": exported["entries"]})),
        ("exported", ValueError, lambda: cache.import_(one, exported["entries"])),
        ("entries", TypeError,
         lambda: cache.import_(one, {**exported, "entries": exported["entries"].long()})),
        ("entries", ValueError, lambda: cache.import_([0, 1], exported)),
        ("k", ValueError, lambda: cache.import_(one, {**exported, "k": torch.tensor(9)})),
        ("k", ValueError, lambda: torch.ops.gvr.step(scores, cache.state, 0, K - 1)),
        ("page_size", ValueError, lambda: cache.step_kv(scores, 0, page_size=3)),
        ("row_to_request", ValueError, lambda: cache.step_kv(scores, 0, row_to_request=one)),
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(36))
def test_bad_calls_are_named_and_change_nothing(number: int, device: str) -> None:
    cache = TopKCache(2, 4, K, depth=2, device=device)
    cache.step(make_rows("normal", 8, N, K, device=device), 0, next_n=2)
    before = cache.state.clone()
    calls = _calls(cache, device)
    assert len(calls) == 36
    argument, error, call = calls[number]
    with pytest.raises(error, match=f"^{argument}: got") as raised:
        call()
    assert type(raised.value) is error and "need" in str(raised.value)
    assert torch.equal(cache.state, before)


def test_a_tensor_on_the_meta_device_is_an_error_and_no_answer(device: str) -> None:
    """A call with one meta tensor goes to the operators' fakes, whose results hold anything."""
    cache = TopKCache(1, 2, K, device=device)
    scores = make_rows("normal", 2, N, K, device=device)
    elsewhere = torch.zeros(2, dtype=torch.int32, device="meta")
    hint, out = torch.zeros(2, K, dtype=torch.int32, device="meta"), torch.zeros(2, K).int()
    calls: list[Callable[[], Any]] = [
        lambda: cache.step(torch.empty(2, N, device="meta"), 0),
        lambda: cache.step(scores, 0, elsewhere),
        lambda: cache.step_kv(scores, 0, None, elsewhere),
        lambda: cache.step_difference(scores, 0, elsewhere),
        lambda: gvr_topk.topk(scores, K, hint=hint),
        lambda: gvr_topk.topk_indices(scores, K, lengths=elsewhere),
        lambda: gvr_topk.topk_indices(scores, K, lengths=elsewhere, out=out.to(device)),
        lambda: gvr_topk.topk_kv(scores, K, offsets=elsewhere),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"^\w+: got .*need"):
            call()
    assert not bool(cache.state.any())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_cache_on_another_device_is_named() -> None:
    for home, away in (("cuda", "cpu"), ("cpu", "cuda")):
        cache = TopKCache(1, 2, K, device=home)
        scores = make_rows("normal", 2, N, K, device=away)
        for step in (cache.step, cache.step_kv, cache.step_difference):
            with pytest.raises(ValueError, match=r"^scores: got .*need the device of the cache"):
                step(scores, 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second GPU")
@pytest.mark.parametrize("home, away", [("cuda:0", "cuda:1"), ("cuda:1", "cuda:0")])
def test_a_cache_on_the_other_of_two_gpus_is_named(home: str, away: str) -> None:
    cache = TopKCache(1, 2, K, device=home)
    scores = make_rows("normal", 2, N, K, device=away)
    for step in (cache.step, cache.step_kv, cache.step_difference):
        with pytest.raises(ValueError, match=r"^scores: got .*need the device of the cache"):
            step(scores, 0)
    with pytest.raises(ValueError, match=r"^slots: got .*need"):
        cache.step(scores.to(home), 0, torch.tensor([0, 1], device=away))
    assert not bool(cache.state.any())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_unknown_slots_in_a_cuda_tensor_are_nobodys() -> None:
    cache = TopKCache(2, 3, K, device="cuda")
    scores = _winners_at([0, 100, 200], "cuda")
    cache.step(scores, 0)
    before = cache.state.clone()
    wild = torch.tensor([-1, 3, 10**12], device="cuda")
    for step in (cache.step, cache.step_kv, cache.step_difference):
        result = step(scores, 0, wild)
        indices = result if isinstance(result, torch.Tensor) else result.indices
        assert_exact(exact_answer(scores, K), indices)
    cache.remap(wild, torch.zeros(N, dtype=torch.int32, device="cuda"))
    cache.seed(0, wild, torch.zeros(3, K, dtype=torch.int32, device="cuda"))
    cache.import_(wild, cache.export(torch.tensor([0, 1, 2], device="cuda")))
    assert torch.equal(cache.state, before)
    exported = cache.export(wild)["entries"]
    assert not bool(exported[..., :HEADER].any()) and bool((exported[..., HEADER:] == -1).all())
