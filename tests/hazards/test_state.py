# SPDX-License-Identifier: Apache-2.0
"""What a server does to its slots: the answer is never wrong, and hints stay with their request."""

from __future__ import annotations

import pytest
import torch
from cases import FEW_TUNINGS, TUNINGS
from generators import make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

from gvr_topk import TopKCache
from gvr_topk.testing import tuning

N, K = 1500, 64


def _rows_with_winners_at(firsts: list[int], device: str, seed: int = 0) -> Tensor:
    """Row i has its K winners at the positions firsts[i] .. firsts[i] + K - 1."""
    scores = make_rows("normal", len(firsts), N, K, device=device, seed=seed)
    for row, first in enumerate(firsts):
        scores[row, first : first + K] += 100.0
    return scores


def _step(
    cache: TopKCache, scores: Tensor, slots: list[int], algorithm: str, **window: Tensor
) -> list[int]:
    """Hits of the hint by row; the answer is checked."""
    where = torch.tensor(slots, device=scores.device)
    values, indices, stats = cache.step(
        scores, 0, where, return_stats=True, algorithm=algorithm, **window
    )
    assert_exact(exact_answer(scores, K, **window), indices, values)
    return stats.hint_hits.tolist()


@pytest.mark.parametrize("name", FEW_TUNINGS)
def test_a_stale_hint_of_another_request_is_harmless(
    name: str, device: str, algorithm: str
) -> None:
    """A slot changes hands without a reset: the new request is answered exactly at once."""
    cache = TopKCache(1, 2, K, device=device)
    with tuning(**TUNINGS[name]):
        _step(cache, _rows_with_winners_at([0, 700], device), [0, 1], algorithm)
        # All hinted scores are the least, or equal, or outside the new request's short row.
        for firsts, length in (([900, 100], N), ([300, 1400], 500), ([1, 1], K + 1)):
            scores = _rows_with_winners_at(firsts, device, seed=length)
            scores[0, :K] = -50.0
            scores[1, 700 : 700 + K] = -50.0
            lengths = torch.tensor([length, length], device=device)
            _step(cache, scores, [0, 1], algorithm, lengths=lengths)


def test_requests_that_join_and_leave_keep_their_own_hints(device: str) -> None:
    """Continuous batching: the batch is another one at every step, slots are not."""
    cache = TopKCache(1, 5, K, device=device)
    home = {slot: 100 + 250 * slot for slot in range(5)}
    seen: set[int] = set()
    for step, slots in enumerate([[0, 3], [3, 1, 0], [1], [4, 0, 3, 1], [2, 4], [3, 2, 1, 0, 4]]):
        scores = _rows_with_winners_at([home[slot] for slot in slots], device, seed=step)
        hits = _step(cache, scores, slots, "gvr")
        assert hits == [K if slot in seen else 0 for slot in slots], f"step {step}"
        seen |= set(slots)


def test_hints_to_renumbered_keys_are_harmless(device: str, algorithm: str) -> None:
    """Half of the keys are evicted and the rest renumbered; the state is not told."""
    cache = TopKCache(1, 3, K, device=device)
    scores = make_rows("quantised_4097", 3, N, K, device=device)
    _step(cache, scores, [0, 1, 2], algorithm)
    kept = scores[:, ::2].contiguous()
    _step(cache, kept, [0, 1, 2], algorithm)
    _step(cache, kept.flip(-1), [0, 1, 2], algorithm)


def test_the_last_prefill_row_seeds_its_slot(device: str, algorithm: str) -> None:
    """A prefix is answered row by row with growing lengths; decode then finds a warm slot."""
    cache = TopKCache(1, 2, K, device=device)
    prompt = _rows_with_winners_at([200] * 4, device)
    lengths = torch.arange(N - 3, N + 1, device=device)
    answer = exact_answer(prompt, K, lengths=lengths)
    # Only the last row of the chunk has the slot: the others are padding to the state.
    indices = cache.step(prompt, 0, torch.tensor([-1, -1, -1, 1], device=device), lengths)
    assert_exact(answer, indices)
    assert _step(cache, prompt[3:], [1], "gvr") == [K]
    assert _step(cache, prompt[3:], [0], "gvr") == [0]


def test_a_slot_moves_to_another_cache_with_its_state(device: str, algorithm: str) -> None:
    """The state is a plain tensor: a copy of a slot, through any device, is the slot."""
    source, target = TopKCache(1, 3, K, device=device), TopKCache(1, 7, K, device=device)
    scores = _rows_with_winners_at([100, 500, 900], device)
    _step(source, scores, [0, 1, 2], algorithm)
    carried = source.state[:, 1].cpu()
    target.state[:, 5] = carried.to(device)
    assert _step(target, scores[1:2], [5], "gvr") == [K]
    assert _step(target, scores[1:2], [4], "gvr") == [0]
    assert torch.equal(source.state[:, 1].cpu(), carried)


@pytest.mark.parametrize("accepted", [0, 1, 2])
def test_every_draft_is_hinted_by_the_accepted_one(accepted: int) -> None:
    """Drafts share the hint that one of them overwrites: on the CPU that one comes last. (On the
    GPU they run at once, and which of the two hints a draft sees is not promised.)"""
    cache = TopKCache(1, 2, K, depth=3)
    drafts = _rows_with_winners_at([100, 300, 500] * 2, "cpu")
    cache.step(drafts, 0, next_n=3)
    cache.commit(torch.tensor([0, 1]), torch.tensor([accepted, accepted]))
    again = _rows_with_winners_at([100 + 200 * accepted] * 6, "cpu", seed=1)
    moved = _rows_with_winners_at([900] * 6, "cpu", seed=2)
    for scores, hits in ((moved, 0), (again, 0), (again, K)):
        stats = cache.step(scores, 0, next_n=3, return_stats=True)[2]
        assert stats.hint_hits.tolist() == [hits] * 6
        cache.commit(torch.tensor([0, 1]), torch.tensor([accepted, accepted]))


@pytest.mark.parametrize("word", [-1, -(2**31), 2, 3, 2**31 - 1])
def test_an_accepted_draft_that_does_not_exist_is_the_first(word: int, device: str) -> None:
    """Not the entry that lies there, which is another slot's."""
    cache = TopKCache(1, 3, K, depth=2, device=device)
    cache.step(_rows_with_winners_at([100, 300, 500], device), 0)
    cache.state[0, :, 0, 3] = word
    scores = _rows_with_winners_at([100, 300, 500], device, seed=1)
    assert _step(cache, scores, [0, 1, 2], "gvr") == [K] * 3


@pytest.mark.parametrize("length", [1, K - 1, K])
def test_a_short_row_remembers_no_threshold(length: int, device: str, algorithm: str) -> None:
    """Nothing of it was refused: what is stored as its K-th score is -inf."""
    cache = TopKCache(1, 1, K, device=device)
    scores = make_rows("normal", 1, N, K, device=device)
    lengths = torch.tensor([length], device=device)
    for explained in (False, True):
        cache.reset()
        cache.step(scores, 0, None, lengths, algorithm=algorithm, return_stats=explained)
        count, threshold = cache.state[0, 0, 0, :2].tolist()
        least = torch.tensor([threshold], dtype=torch.int32).view(torch.float32)
        assert (count, least.item()) == (length, -torch.inf)
