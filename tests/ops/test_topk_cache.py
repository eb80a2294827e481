# SPDX-License-Identifier: Apache-2.0
"""TopKCache: the answer of topk at every step, and the state that makes the next one cheap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from generators import make_rows
from oracle import assert_exact, exact_answer
from torch import Tensor

from gvr_topk import TopKCache
from gvr_topk.stats import COLUMNS

N, K = 1500, 64
COUNT, THRESHOLD, HITS, ACCEPTED, HEADER = 0, 1, 2, 3, 4
INTEGERS = pytest.mark.parametrize("integer", [torch.int32, torch.int64], ids=["int32", "int64"])


def _slots(*slots: int, device: str, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(slots, dtype=dtype, device=device)


def _drifting(steps: int, rows: int, device: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """[steps, rows, N]: each step's row is a little off the last one's."""
    noise = make_rows("normal", steps * rows, N, K, device=device).reshape(steps, rows, N)
    return (0.2 * noise).cumsum(0).add(noise[0]).to(dtype)


def _winners_at(first: int, rows: int, device: str) -> Tensor:
    """Rows whose K winners are the positions first .. first + K - 1."""
    scores = make_rows("normal", rows, N, K, device=device)
    scores[:, first : first + K] += 100.0
    return scores


def _stats(cache: TopKCache, scores: Tensor, layer: int, *args: Any, **kwargs: Any) -> Tensor:
    """The int32 [rows, 8] telemetry of a step."""
    stats = cache.step(scores, layer, *args, return_stats=True, **kwargs)[2]
    return getattr(stats, "tensor", stats)


def _hits(*args: Any, **kwargs: Any) -> list[int]:
    return _stats(*args, **kwargs)[:, COLUMNS.index("hint_hits")].tolist()


def _valid(*args: Any, **kwargs: Any) -> list[int]:
    return _stats(*args, **kwargs)[:, COLUMNS.index("hint_valid")].tolist()


def _header(cache: TopKCache, layer: int, slot: int, draft: int = 0) -> list[int]:
    return cache.state[layer, slot, draft, :HEADER].tolist()


@pytest.mark.parametrize("sorted", [False, True], ids=["unsorted", "sorted"])
def test_every_step_is_the_exact_topk(
    sorted: bool, device: str, dtype: torch.dtype, algorithm: str
) -> None:
    cache = TopKCache(2, 5, K, device=device)
    slots = _slots(4, 0, 2, device=device)
    for step, scores in enumerate(_drifting(6, 3, device, dtype)):
        lengths = torch.tensor([N, N - 7 + step, 40 + 10 * step], device=device)
        answer = exact_answer(scores, K, lengths=lengths)
        for layer in range(2):
            arguments = {"sorted": sorted, "algorithm": algorithm}
            values, indices = cache.step(
                scores, layer, slots, lengths, return_values=True, **arguments
            )
            assert_exact(answer, indices, values, sorted=sorted, label=f"step {step}")


def test_outputs_on_request(device: str) -> None:
    scores = make_rows("normal", 3, N, K, device=device)
    cache = TopKCache(1, 3, K, device=device)
    indices = cache.step(scores, 0)
    assert isinstance(indices, Tensor)
    values, again = cache.step(scores, 0, return_values=True)
    explained = cache.step(scores, 0, return_stats=True)
    assert torch.equal(values.sort().values, explained[0].sort().values)
    for given in (indices, again, explained[1]):
        assert torch.equal(given.sort().values, indices.sort().values)
    assert len(explained) == 3


def test_a_fresh_cache_has_no_hint_and_the_next_step_has_one(device: str) -> None:
    cache = TopKCache(1, 2, K, device=device)
    assert not bool(cache.state.any())
    scores = make_rows("normal", 2, N, K, device=device)
    for algorithm in ("gvr", "stream", "auto"):
        cache.reset()
        assert _valid(cache, scores, 0, algorithm=algorithm) == [0, 0]
        assert _valid(cache, scores, 0, algorithm=algorithm) == [K, K]
        assert _hits(cache, scores, 0, algorithm=algorithm) == [K, K]


def test_the_stored_hint_is_the_answer(device: str, algorithm: str) -> None:
    cache = TopKCache(2, 4, K, device=device)
    scores = make_rows("negative_mean", 3, N, K, device=device)
    lengths = torch.tensor([N, K + 1, 20], device=device)
    slots = _slots(3, 0, 1, device=device)
    values, indices = cache.step(scores, 1, slots, lengths, return_values=True, algorithm=algorithm)
    for row, slot in enumerate((3, 0, 1)):
        count = min(K, int(lengths[row]))
        header = _header(cache, 1, slot)
        assert header[COUNT] == count and header[ACCEPTED] == 0
        stored = cache.state[1, slot, 0, HEADER : HEADER + count]
        assert torch.equal(stored.sort().values, indices[row, :count].sort().values)
        if count == K:
            least = values[row].min().reshape(1).view(torch.int32).item()
            assert header[THRESHOLD] == least
    assert not bool(cache.state[1, 2].any())


def test_the_stored_threshold_is_binary32_for_every_dtype(device: str, dtype: torch.dtype) -> None:
    cache = TopKCache(1, 2, K, device=device)
    scores = make_rows("negative_mean", 2, N, K, device=device, dtype=dtype)
    values, _ = cache.step(scores, 0, return_values=True)
    least = values.float().min(-1).values.view(torch.int32)
    assert torch.equal(cache.state[0, :, 0, THRESHOLD], least)


@pytest.mark.parametrize("explained", [False, True])
def test_the_state_tells_how_many_hints_were_winners(
    explained: bool, device: str, algorithm: str
) -> None:
    """-1: there was no hint, or (on the GPU) nobody asked for telemetry, which counts them."""
    cache = TopKCache(1, 3, K, device=device)
    lengths = torch.tensor([N, 170, 30], device=device)
    answers: list[list[set[int]]] = []
    for first in (100, 100 + K // 4):
        step = cache.step(
            _winners_at(first, 3, device),
            0,
            None,
            lengths,
            return_stats=explained,
            algorithm=algorithm,
        )
        indices = step.indices if explained else step
        answers.append([set(row) - {-1} for row in indices.tolist()])
        told = cache.state[0, :, 0, HITS].tolist()
        kept = [len(old & new) for old, new in zip(answers[0], answers[-1], strict=True)]
        counted = len(answers) == 2 and (explained or device == "cpu")
        assert told == (kept if counted else [-1] * 3)
    assert kept[0] == 3 * K // 4 and kept[2] == 30


def test_a_narrow_cache_keeps_fewer_hints(device: str, algorithm: str) -> None:
    cache = TopKCache(1, 2, K, hint_size=10, device=device)
    assert cache.hint_size == 10 and cache.state.shape == (1, 2, 1, HEADER + 10)
    for scores in _drifting(4, 2, device):
        indices = cache.step(scores, 0, algorithm=algorithm)
        assert_exact(exact_answer(scores, K), indices)
        stored = cache.state[0, :, 0]
        assert stored[:, COUNT].tolist() == [10, 10]
        for row in range(2):
            assert set(stored[row, HEADER:].tolist()) <= set(indices[row].tolist())
    assert _valid(cache, scores, 0, algorithm="gvr") == [10, 10]


@INTEGERS
@pytest.mark.parametrize("bad", [-1, -4, 5, 2**31 - 1, -(2**31)])
def test_rows_without_a_slot_leave_the_state_alone(
    bad: int, integer: torch.dtype, device: str, algorithm: str
) -> None:
    cache = TopKCache(1, 5, K, device=device)
    cache.step(_winners_at(100, 5, device), 0)
    before = cache.state.clone()
    scores = make_rows("normal", 3, N, K, device=device)
    slots = _slots(bad, 2, bad, device=device, dtype=integer)
    if bad > 0 and device == "cpu":
        with pytest.raises(IndexError, match=f"^slots: got {bad} .*need slots < 5"):
            cache.step(scores, 0, slots, algorithm=algorithm)
        assert torch.equal(cache.state, before)
        return
    values, indices = cache.step(scores, 0, slots, algorithm=algorithm, return_values=True)
    assert_exact(exact_answer(scores, K), indices, values)
    changed = (cache.state != before).any(-1).any(-1)[0]
    assert changed.tolist() == [False, False, True, False, False]
    before = cache.state.clone()
    hits = _hits(cache, _winners_at(100, 3, device), 0, slots, algorithm="gvr")
    assert hits[0] == hits[2] == 0


def test_slots_wider_than_32_bits_are_no_slots(device: str) -> None:
    cache = TopKCache(1, 2, K, device=device)
    scores = make_rows("normal", 4, N, K, device=device)
    wide = (2**32, 2**32 + 1, -(2**32), 2**63 - 1)
    if device == "cpu":
        with pytest.raises(IndexError, match=r"^slots: got 4294967296 "):
            cache.step(scores, 0, _slots(*wide, device=device))
        wide = (-(2**32), -(2**32) + 1, -(2**63), -1)
    indices = cache.step(scores, 0, _slots(*wide, device=device))
    assert_exact(exact_answer(scores, K), indices)
    assert not bool(cache.state.any())


@INTEGERS
def test_rows_without_length_leave_the_state_alone(
    integer: torch.dtype, device: str, algorithm: str
) -> None:
    cache = TopKCache(1, 4, K, depth=2, device=device)
    cache.step(make_rows("normal", 8, N, K, device=device), 0, next_n=2)
    before = cache.state.clone()
    scores = make_rows("normal", 4, N, K, device=device)
    lengths = _slots(0, -1, -4, -(2**31), device=device, dtype=integer)
    indices = cache.step(scores, 0, None, lengths, algorithm=algorithm)
    assert bool((indices == -1).all())
    drafts = make_rows("normal", 8, N, K, device=device)
    cache.step(drafts, 0, None, lengths, next_n=2, algorithm=algorithm)
    starts = torch.full_like(lengths, N)
    cache.step(scores, 0, None, None, starts=starts, algorithm=algorithm)
    assert torch.equal(cache.state, before)


def test_an_empty_draft_row_leaves_its_entry_alone(device: str, algorithm: str) -> None:
    """Length 1 with three drafts: only the last row has a score."""
    cache = TopKCache(1, 1, K, depth=3, device=device)
    scores = make_rows("normal", 3, N, K, device=device)
    lengths = torch.tensor([1], device=device)
    indices = cache.step(scores, 0, None, lengths, next_n=3, algorithm=algorithm)
    assert (indices[:, 0].tolist(), cache.state[0, 0, :, COUNT].tolist()) == (
        [-1, -1, 0],
        [0, 0, 1],
    )


def test_the_state_is_keyed_by_slot_not_by_batch_position(device: str) -> None:
    cache = TopKCache(1, 6, K, device=device)
    rows = torch.cat([_winners_at(first, 1, device) for first in (0, 200, 400)])
    cache.step(rows, 0, _slots(5, 1, 3, device=device))
    order = [2, 0, 1]
    slots = _slots(3, 5, 1, device=device)
    assert _hits(cache, rows[order], 0, slots, algorithm="gvr") == [K, K, K]
    assert _hits(cache, rows, 0, slots, algorithm="gvr") == [0, 0, 0]


def test_layers_do_not_leak(device: str, algorithm: str) -> None:
    cache = TopKCache(3, 2, K, device=device)
    cache.step(_winners_at(0, 2, device), 0, algorithm=algorithm)
    cache.step(_winners_at(500, 2, device), 2, algorithm=algorithm)
    assert not bool(cache.state[1].any())
    first, last = cache.state[0].clone(), cache.state[2].clone()
    cache.step(_winners_at(900, 2, device), 1, algorithm=algorithm)
    assert torch.equal(cache.state[0], first) and torch.equal(cache.state[2], last)
    for layer, winners in enumerate((0, 900, 500)):
        scores = _winners_at(winners, 2, device)
        assert _hits(cache, scores, layer, algorithm="gvr") == [K, K]


@INTEGERS
def test_reset_forgets_the_given_slots_in_every_layer(integer: torch.dtype, device: str) -> None:
    cache = TopKCache(2, 4, K, device=device)
    scores = make_rows("normal", 4, N, K, device=device)
    for layer in range(2):
        cache.step(scores, layer)
    before = cache.state.clone()
    cache.reset(_slots(2, 0, device=device, dtype=integer))
    for layer in range(2):
        assert torch.equal(cache.state[layer, 1::2], before[layer, 1::2])
        assert not bool(cache.state[layer, ::2, :, :HEADER].any())
        assert _valid(cache, scores, layer, algorithm="gvr") == [0, K, 0, K]
    cache.reset()
    assert _valid(cache, scores, 0, algorithm="gvr") == [0, 0, 0, 0]


def test_reset_forgets_the_accepted_draft(device: str) -> None:
    cache = TopKCache(2, 2, K, depth=3, device=device)
    for layer in range(2):
        cache.step(make_rows("normal", 6, N, K, device=device), layer, next_n=3)
    cache.reset([1])
    assert cache.state[:, :, 0, ACCEPTED].tolist() == [[2, 0]] * 2


@INTEGERS
def test_copy_gives_dst_the_entries_of_src(integer: torch.dtype, device: str) -> None:
    cache = TopKCache(2, 5, K, depth=2, device=device)
    for layer in range(2):
        cache.step(make_rows("normal", 10, N, K, device=device, seed=layer), layer, next_n=2)
    before = cache.state.clone()
    cache.copy(
        _slots(0, 4, device=device, dtype=integer), _slots(3, 0, device=device, dtype=integer)
    )
    expected = before.clone()
    expected[:, 3], expected[:, 0] = before[:, 0], before[:, 4]
    assert torch.equal(cache.state, expected)


def test_copy_may_swap(device: str) -> None:
    cache = TopKCache(1, 3, K, device=device)
    cache.step(make_rows("normal", 3, N, K, device=device), 0)
    before = cache.state.clone()
    cache.copy(_slots(0, 2, device=device), _slots(2, 0, device=device))
    assert torch.equal(cache.state, before[:, [2, 1, 0]])


def test_draft_rows_share_a_request_and_all_are_accepted_by_default(
    device: str, algorithm: str
) -> None:
    cache = TopKCache(1, 3, K, depth=4, device=device)
    drafts = torch.cat([_winners_at(100 * row, 1, device) for row in range(8)])
    slots = _slots(2, 0, device=device)
    lengths = torch.tensor([N, N], device=device)
    values, indices = cache.step(
        drafts, 0, slots, lengths, next_n=4, return_values=True, algorithm=algorithm
    )
    assert_exact(exact_answer(drafts, K, lengths=lengths, next_n=4), indices, values)
    for request, slot in enumerate((2, 0)):
        assert _header(cache, 0, slot)[ACCEPTED] == 3
        for draft in range(4):
            stored = cache.state[0, slot, draft, HEADER:].sort().values
            assert torch.equal(stored, indices[4 * request + draft].sort().values)
    hits = _hits(cache, drafts[[3, 7]], 0, slots, algorithm="gvr")
    assert hits == [K, K]
    assert _header(cache, 0, 2)[ACCEPTED] == 0


@INTEGERS
@pytest.mark.parametrize("accepted", [0, 1, 2, 3])
def test_commit_chooses_the_draft_that_hints_the_next_step(
    accepted: int, integer: torch.dtype, device: str
) -> None:
    drafts = torch.cat([_winners_at(100 * row, 1, device) for row in range(8)])
    for probe in range(4):
        cache = TopKCache(1, 3, K, depth=4, device=device)
        cache.step(drafts, 0, _slots(2, 0, device=device), next_n=4)
        cache.commit(
            _slots(2, device=device, dtype=integer), _slots(accepted, device=device, dtype=integer)
        )
        rows = drafts[[probe, 4 + probe]]
        hits = _hits(cache, rows, 0, _slots(2, 0, device=device), algorithm="gvr")
        assert hits == [K if probe == accepted else 0, K if probe == 3 else 0]


def test_commit_acts_on_every_layer(device: str) -> None:
    cache = TopKCache(3, 2, K, depth=2, device=device)
    for layer in range(3):
        cache.step(make_rows("normal", 4, N, K, device=device), layer, next_n=2)
    cache.commit(_slots(1, device=device), _slots(0, device=device))
    accepted = cache.state[:, :, 0, ACCEPTED].tolist()
    assert accepted == [[1, 0]] * 3


def test_a_rolled_back_slot_skips_hints_beyond_its_length(device: str, algorithm: str) -> None:
    cache = TopKCache(1, 1, K, device=device)
    cache.step(_winners_at(N - K, 1, device), 0)
    scores = make_rows("normal", 1, N, K, device=device)
    lengths = torch.tensor([N - K // 2], device=device)
    answer = exact_answer(scores, K, lengths=lengths)
    assert_exact(answer, cache.step(scores, 0, None, lengths, algorithm=algorithm))
    cache.step(_winners_at(N - K, 1, device), 0)
    assert _valid(cache, scores, 0, None, lengths, algorithm="gvr") == [K // 2]


@pytest.mark.parametrize("word", [0, -1, 1, 10**9, -(2**31), 2**31 - 1])
def test_a_state_of_any_bits_is_harmless(word: int, device: str, algorithm: str) -> None:
    """A corrupt or foreign state costs time, never the answer and never memory safety."""
    scores = make_rows("quantised_33", 4, N, K, device=device)
    answer = exact_answer(scores, K)
    for layer in range(2):
        cache = TopKCache(2, 4, K, depth=3, device=device)
        cache.state.fill_(word)
        assert_exact(answer, cache.step(scores, layer, algorithm=algorithm))
        other = cache.state[1 - layer]
        assert bool((other == word).all())


def test_memory_is_reported(device: str) -> None:
    cache = TopKCache(3, 7, 200, hint_size=50, depth=2, device=device)
    needed = 3 * 7 * 2 * (HEADER + 50) * 4
    assert (cache.layers, cache.slots, cache.k, cache.hint_size, cache.depth) == (3, 7, 200, 50, 2)
    assert needed == cache.state.nbytes <= cache.nbytes <= needed + 2 * (HEADER + 50) * 4
    assert cache.state.device.type == device and cache.state.is_contiguous()


def test_the_state_stays_at_its_address(device: str) -> None:
    cache = TopKCache(1, 3, K, depth=2, device=device)
    address = cache.state.data_ptr()
    cache.step(make_rows("normal", 3, N, K, device=device), 0)
    cache.copy(_slots(0, device=device), _slots(1, device=device))
    cache.commit(_slots(0, device=device), _slots(1, device=device))
    cache.reset(_slots(2, device=device))
    cache.reset()
    assert cache.state.data_ptr() == address


BAD_CACHES: list[tuple[str, dict[str, int]]] = [
    ("layers", {"layers": 0}),
    ("slots", {"slots": -1}),
    ("k", {"k": 0}),
    ("k", {"k": 2**31}),
    ("hint_size", {"hint_size": 0}),
    ("hint_size", {"hint_size": 65}),
    ("depth", {"depth": 0}),
    ("layers", {"layers": 2**31 - 1, "slots": 2**31 - 1, "depth": 2**31 - 1}),
]


@pytest.mark.parametrize("argument, given", BAD_CACHES, ids=[str(case) for case in BAD_CACHES])
def test_bad_caches_are_named(argument: str, given: dict[str, int], device: str) -> None:
    arguments = {"layers": 1, "slots": 1, "k": 64} | given
    with pytest.raises(ValueError, match=f"{argument}.*: got .*need"):
        TopKCache(**arguments, device=device)


def test_bad_slot_lists_are_named(device: str) -> None:
    cache = TopKCache(1, 4, K, depth=2, device=device)
    cache.step(make_rows("normal", 8, N, K, device=device), 0, next_n=2)
    before = cache.state.clone()
    one, two = _slots(0, device=device), _slots(0, 1, device=device)
    calls = [
        (TypeError, "slots", lambda: cache.reset(one.float())),
        (ValueError, "slots", lambda: cache.reset(one[None])),
        (ValueError, "dst", lambda: cache.copy(one, two)),
        (TypeError, "src", lambda: cache.copy(one.bool(), one)),
        (TypeError, "accepted", lambda: cache.commit(one, one.float())),
        (ValueError, "accepted", lambda: cache.commit(one, two)),
        (IndexError, "layer", lambda: cache.step(torch.zeros(4, N, device=device), 1)),
        (ValueError, "next_n", lambda: cache.step(torch.zeros(6, N, device=device), 0, next_n=3)),
        (ValueError, "slots", lambda: cache.step(torch.zeros(5, N, device=device), 0)),
    ]
    for error, argument, call in calls:
        with pytest.raises(error, match=f"^{argument}: got .*need"):
            call()
    assert torch.equal(cache.state, before)


def test_slots_out_of_range_are_an_error_on_the_cpu() -> None:
    cache = TopKCache(1, 4, K, depth=2)
    for call in (
        lambda: cache.reset(torch.tensor([4])),
        lambda: cache.copy(torch.tensor([0]), torch.tensor([-1])),
        lambda: cache.commit(torch.tensor([0]), torch.tensor([2])),
    ):
        with pytest.raises(IndexError, match="need 0 <= "):
            call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_slots_out_of_range_are_ignored_on_the_gpu() -> None:
    cache = TopKCache(1, 3, K, device="cuda")
    cache.step(make_rows("normal", 3, N, K, device="cuda"), 0)
    before = cache.state.clone()
    wild = _slots(-1, 3, 10**12, device="cuda")
    cache.reset(wild)
    cache.copy(wild, _slots(0, 1, 2, device="cuda"))
    cache.copy(_slots(0, 1, 2, device="cuda"), wild)
    cache.commit(wild, _slots(0, 0, 0, device="cuda"))
    assert torch.equal(cache.state, before)
