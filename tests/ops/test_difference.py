# SPDX-License-Identifier: Apache-2.0
"""step_difference: what entered and left each answer, against sets in plain Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import FEW_TUNINGS, TUNINGS
from generators import make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor
from torch.library import opcheck

from gvr_topk import TopKCache, TopKDifference
from gvr_topk.testing import tuning

N, K = 1500, 64
HEADER = 4


def check_difference(result: TopKDifference, previous: list[set[int]]) -> None:
    """Sets, counts and padding of every row."""
    k = result.indices.shape[-1]
    rows = len(previous)
    assert result.counts.shape == (rows, 2) and result.counts.dtype == torch.int32
    for row, before in enumerate(previous):
        now = _members(result.indices.reshape(rows, k)[row])
        changes = {"entered": now - before, "left": before - now if now else set()}
        for column, (name, expected) in enumerate(changes.items()):
            given = getattr(result, name)
            assert given.dtype == torch.int32 and given.shape == result.indices.shape
            listed = given.reshape(rows, k)[row].tolist()
            count = int(result.counts[row, column])
            assert count == len(expected), f"{name} of row {row}"
            assert sorted(listed[:count]) == sorted(expected), f"{name} of row {row}"
            assert listed[count:] == [-1] * (k - count), f"{name} of row {row}"


def _members(indices: Tensor) -> set[int]:
    return set(indices[indices >= 0].tolist())


def _drifting(steps: int, rows: int, device: str, k: int = K, n: int = N) -> Tensor:
    noise = make_rows("normal", steps * rows, n, k, device=device).reshape(steps, rows, n)
    return (0.2 * noise).cumsum(0).add(noise[0])


@pytest.mark.parametrize("sorted", [False, True], ids=["unsorted", "sorted"])
def test_entered_and_left_since_the_previous_step(
    sorted: bool, device: str, algorithm: str
) -> None:
    cache = TopKCache(2, 5, K, device=device)
    slots = torch.tensor([4, 0, 2], device=device)
    previous: list[set[int]] = [set(), set(), set()]
    for step, scores in enumerate(_drifting(5, 3, device)):
        lengths = torch.tensor([N, 40 + 10 * step, 600 + step], device=device)
        result = cache.step_difference(
            scores, 1, slots, lengths, sorted=sorted, algorithm=algorithm
        )
        assert_exact(exact_answer(scores, K, lengths=lengths), result.indices, sorted=sorted)
        check_difference(result, previous)
        previous = [_members(row) for row in result.indices]
        assert not bool(cache.state[0].any())
    assert int(result.counts[0, 0]) not in (0, K)  # the drift changed some and kept some


@pytest.mark.parametrize("name", [*FEW_TUNINGS, "16 slices, verify once, tight"])
def test_every_path_gives_the_difference(name: str, device: str, algorithm: str) -> None:
    cache = TopKCache(1, 2, K, device=device)
    previous: list[set[int]] = [set(), set()]
    with tuning(**TUNINGS[name]):
        for scores in _drifting(3, 2, device):
            result = cache.step_difference(scores, 0, algorithm=algorithm)
            check_difference(result, previous)
            previous = [_members(row) for row in result.indices]


@pytest.mark.parametrize("k", [1, 511, 2048, 2049, 9000])
def test_any_k(k: int, device: str) -> None:
    n = 2 * k + 100
    cache = TopKCache(1, 2, k, device=device)
    previous: list[set[int]] = [set(), set()]
    for scores in _drifting(3, 2, device, k, n):
        result = cache.step_difference(scores, 0)
        assert_exact(exact_answer(scores, k), result.indices)
        check_difference(result, previous)
        previous = [_members(row) for row in result.indices]


def test_the_state_is_that_of_a_plain_step(device: str, algorithm: str) -> None:
    caches = [TopKCache(1, 4, K, depth=2, device=device) for _ in range(2)]
    slots = torch.tensor([3, 1], device=device)
    lengths = torch.tensor([N, 30], device=device)
    for scores in _drifting(3, 4, device):
        caches[0].step_difference(scores, 0, slots, lengths, next_n=2, algorithm=algorithm)
        caches[1].step(scores, 0, slots, lengths, next_n=2, algorithm=algorithm)
        stored = [cache.state[..., HEADER:].sort(-1).values for cache in caches]
        assert torch.equal(*stored)
        words = [cache.state[..., [0, 1, 3]] for cache in caches]  # all but the hits
        assert torch.equal(*words)


def test_drafts_differ_from_the_accepted_answer(device: str, algorithm: str) -> None:
    cache = TopKCache(1, 3, K, depth=3, device=device)
    slots = torch.tensor([2, 0], device=device)
    before: list[set[int]] = [set()] * 6
    for step, scores in enumerate(_drifting(5, 6, device)):
        lengths = torch.tensor([N, 1000], device=device)
        result = cache.step_difference(scores, 0, slots, lengths, next_n=3, algorithm=algorithm)
        assert_exact(exact_answer(scores, K, lengths=lengths, next_n=3), result.indices)
        check_difference(result, before)
        accepted = [step % 3, (step + 1) % 3]
        cache.commit(slots, torch.tensor(accepted, device=device))
        chosen = [_members(result.indices[3 * i + accepted[i]]) for i in range(2)]
        before = [chosen[0]] * 3 + [chosen[1]] * 3


def test_rows_without_a_slot_or_a_length(device: str) -> None:
    cache = TopKCache(1, 4, K, device=device)
    first, second = _drifting(2, 4, device)
    stored = cache.step_difference(first, 0).indices
    before = cache.state.clone()
    slots = torch.tensor([0, -1, 2, 3], device=device)
    lengths = torch.tensor([N, N, 0, -3], device=device)
    result = cache.step_difference(second, 0, slots, lengths)
    check_difference(result, [_members(stored[0]), set(), set(), set()])
    assert result.counts[2:].tolist() == [[0, 0], [0, 0]]
    assert torch.equal(cache.state[0, 1:], before[0, 1:])


def test_a_row_without_scores_lets_nothing_leave(device: str) -> None:
    """Beside drafts that have some, and without slots, where an empty request keeps its own."""
    cache = TopKCache(1, 2, K, depth=3, device=device)
    first, second = _drifting(2, 6, device)
    stored = cache.step_difference(first, 0, next_n=3).indices
    lengths = torch.tensor([1, 0], device=device)
    result = cache.step_difference(second, 0, None, lengths, next_n=3)
    check_difference(result, [_members(stored[2])] * 3 + [_members(stored[5])] * 3)
    assert result.counts[:, 1].tolist() == [0, 0, len(_members(stored[2]) - {0}), 0, 0, 0]


def test_reset_copy_remap_and_seed_are_what_the_next_step_compares_with(device: str) -> None:
    cache = TopKCache(1, 4, K, device=device)
    first, second = _drifting(2, 4, device)
    stored = [_members(row) for row in cache.step(first, 0)]
    cache.reset([0])
    cache.copy([1], [2])
    moved = torch.arange(N - 1, -1, -1, device=device)
    moved[::3] = -1
    cache.remap([3], moved)
    seeded = torch.full((1, K), -1, dtype=torch.int32, device=device)
    seeded[0, :5] = torch.tensor([9, 1, 700, 3, 4])
    cache.seed(0, [1], seeded)
    renumbered = {int(moved[p]) for p in stored[3]} - {-1}
    assert 0 < len(renumbered) < K
    result = cache.step_difference(second, 0)
    check_difference(result, [set(), {9, 1, 700, 3, 4}, stored[1], renumbered])


def test_positions_move_by_the_hint_offset(device: str) -> None:
    cache = TopKCache(1, 1, K, device=device)
    scores = _drifting(1, 1, device)[0]
    stored = _members(cache.step(scores, 0))
    for offset in (-100, 100, 2**31 - 1, -(2**31) + 1):
        copy = TopKCache(1, 1, K, device=device)
        copy.load_state_dict(cache.state_dict())
        result = copy.step_difference(scores.roll(1, -1), 0, hint_offset=offset)
        moved = {p + offset for p in stored if 0 <= p + offset < 2**31 - 1}
        check_difference(result, [moved])


@pytest.mark.parametrize("word", [0, -1, 1, 10**9, -(2**31), 2**31 - 1])
def test_a_state_of_any_bits_is_harmless(word: int, device: str) -> None:
    cache = TopKCache(2, 4, K, depth=2, device=device)
    cache.state.fill_(word)
    scores = make_rows("quantised_33", 8, N, K, device=device)
    result = cache.step_difference(scores, 0, next_n=2)
    assert_exact(exact_answer(scores, K), result.indices)
    assert bool((result.counts >= 0).all()) and bool((result.counts <= K).all())
    valid = (result.entered >= 0).sum(-1)
    assert torch.equal(valid, result.counts[:, 0].long())


def test_a_position_that_is_stored_twice_leaves_once() -> None:
    """As after keys became one. On the CPU: the GPU's kernel compares hint by hint."""
    cache = TopKCache(1, 1, K)
    scores = _drifting(1, 1, "cpu")[0]
    merged = {position // 16 for position in _members(cache.step(scores, 0))}
    cache.remap([0], torch.arange(N) // 16)
    assert len(merged) < K
    check_difference(cache.step_difference(scores, 0), [merged])


def test_rows_of_one_request_differ_from_what_it_stored(device: str) -> None:
    """With a map, the last row has the slot; the others have nothing stored."""
    cache = TopKCache(1, 4, K, device=device)
    first = _drifting(1, 2, device)[0]
    stored = cache.step(first, 0, torch.tensor([3, 1], device=device))
    rows = torch.tensor([1, 0, 1, 0], device=device)
    second = make_rows("normal", 4, N, K, device=device, seed=9)
    result = cache.step_difference(
        second, 0, torch.tensor([3, 1], device=device), row_to_request=rows
    )
    check_difference(result, [set(), set(), _members(stored[1]), _members(stored[0])])
    kept = [_members(cache.state[0, slot, 0, HEADER:]) for slot in (3, 1)]
    assert kept == [_members(result.indices[3]), _members(result.indices[2])]


def test_a_cuda_graph_follows_the_state(device: str) -> None:
    if device != "cuda":
        pytest.skip("CUDA graphs need a GPU")
    cache = TopKCache(1, 4, K, device=device)
    slots = torch.tensor([2, 0], device=device)
    scores = _drifting(1, 2, device)[0].clone()
    previous = [_members(row) for row in cache.step_difference(scores, 0, slots).indices]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = cache.step_difference(scores, 0, slots)
    for drift in _drifting(4, 2, device):
        scores.copy_(drift)
        graph.replay()
        check_difference(result, previous)
        previous = [_members(row) for row in result.indices]


def test_opcheck(device: str) -> None:
    scores = _drifting(1, 4, device)[0]
    op = torch.ops.gvr.step_difference.default
    for arguments in (
        {"sorted": True},
        {"slots": torch.tensor([4, 1], device=device), "next_n": 2, "sorted": True},
    ):
        state = torch.zeros(2, 5, 2, HEADER + K, dtype=torch.int32, device=device)
        opcheck(op, (scores, state, 1, K), arguments)


def test_a_difference_needs_the_whole_answer(device: str) -> None:
    scores = _drifting(1, 2, device)[0]
    cache = TopKCache(1, 2, K, hint_size=10, device=device)
    calls: list[tuple[str, Any]] = [
        ("hint_size", lambda: cache.step_difference(scores, 0)),
        ("state", lambda: torch.ops.gvr.step_difference(scores, cache.state, 0, K)),
    ]
    for argument, call in calls:
        with pytest.raises(ValueError, match=f"^{argument}: got .*10, need one of k"):
            call()
    assert not bool(cache.state.any())
