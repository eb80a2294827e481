# SPDX-License-Identifier: Apache-2.0
"""The parts of the methods, with ranks that are threads: keys, brackets, digits, traffic."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from generators import make_rows, row_names
from hypothesis import given, settings
from hypothesis import strategies as st
from sharding import sort_keys
from threads import ThreadCommunicator, run_threads
from torch import Tensor

from gvr_topk.distributed import candidates, model, splitters, threshold
from gvr_topk.distributed.collectives import Communicator
from gvr_topk.distributed.keys import PADDING, score_bits
from gvr_topk.distributed.layout import Blocks, Pages
from gvr_topk.distributed.winners import Local, Winners, gather_answer
from gvr_topk.reference import topk_reference

WORLDS = range(2, 9)
CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", row_names())
def test_keys_sort_as_the_reference_does(kind: str, dtype: torch.dtype) -> None:
    scores = make_rows(kind, 3, 400, 60, dtype=dtype)
    indices = torch.arange(400, dtype=torch.int32).expand(3, -1)
    keys = torch.ops.gvr.winner_keys(scores, indices)
    assert torch.equal(keys, sort_keys(scores, indices))
    assert torch.equal(keys.argsort(-1).int(), topk_reference(scores, 400)[1])
    assert (keys >= 0).all() and ((keys >> 31) < 1 << score_bits(dtype)).all()


def test_padding_sorts_behind_every_score() -> None:
    values = torch.tensor([[-torch.inf, -torch.inf]])
    keys = torch.ops.gvr.winner_keys(values, torch.tensor([[2**31 - 2, -1]], dtype=torch.int32))
    assert keys[0, 0] < keys[0, 1] == PADDING


def owners(pattern: str, total: int, world: int, rng: random.Random) -> list[int]:
    """Which rank has the best, the second best, ... of all scores."""
    if pattern == "one rank has the winners":
        return [0 if place < total // 2 else place % world for place in range(total)]
    if pattern == "in turn":
        return [place % world for place in range(total)]
    if pattern == "in blocks":
        return [place * world // total for place in range(total)]
    if pattern == "runs":
        runs: list[int] = []
        while len(runs) < total:
            runs += [rng.randrange(world)] * rng.randint(1, max(1, total // 6))
        return runs[:total]
    return [rng.randrange(world) for _ in range(total)]


def local_bests(
    comm: ThreadCommunicator, owner: list[int], k: int, ties: int, paged: bool
) -> Local:
    """The rank's Top-K of a row in which each `ties` places share a score."""
    places = [place for place, rank in enumerate(owner) if rank == comm.rank]
    shard = torch.tensor([[-float(place // ties) for place in places]])
    values, indices = topk_reference(shard.reshape(1, len(places)), k)
    offsets = tuple(10_000 * rank for rank in range(comm.world))
    placement = Pages(comm, 1) if paged else Blocks(comm, len(places), CPU, offsets)  # type: ignore[arg-type]
    return Local(values, indices, placement)


def check_winners(method: str, pattern: str, world: int, k: int, total: int, ties: int) -> None:
    """The winning prefixes are those of one sort over all ranks' keys."""
    owner = owners(pattern, total, world, random.Random(total * k + world))
    for paged in (False, True):

        def job(comm: ThreadCommunicator, paged: bool = paged) -> tuple[Tensor, Winners]:
            local = local_bests(comm, owner, k, ties, paged)
            keys = sort_keys(local.values, local.global_indices())
            return keys, count(method, local, comm, paged)

        found = run_threads(world, job)
        every = torch.cat([keys for keys, _ in found], 1).sort(-1).values
        last = min(k, total) - 1
        for rank, (keys, winners) in enumerate(found):
            need = int((keys <= every[:, last : last + 1]).sum())
            label = f"{method}, {pattern}, W {world}, k {k}, {total} keys, paged {paged}"
            assert int(winners.own) == need, f"{label}, rank {rank}"
            if winners.by_rank is not None:
                assert int(winners.by_rank[rank]) == need, label


def count(
    method: str,
    local: Local,
    comm: ThreadCommunicator,
    paged: bool,
    digits: Sequence[int] | None = None,
) -> Winners:
    if method == "splitters":
        return splitters.count_winners(local, comm)  # type: ignore[arg-type]
    if method == "candidates":
        part = candidates.own_part(local, comm)  # type: ignore[arg-type]
        return Winners((part.indices >= 0).sum(-1))
    bits = threshold.key_bits(local.values.dtype, not paged)
    digits = digits or [7] * (bits // 7) + [bits % 7]
    return threshold.count_winners(local, comm, digits)  # type: ignore[arg-type]


PATTERNS = ("one rank has the winners", "in turn", "in blocks", "runs", "at random")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("method", model.METHODS)
def test_winners_are_counted_exactly_wherever_they_lie(method: str, pattern: str) -> None:
    for world in WORLDS:
        for k, total in ((1, 5), (30, 31), (100, 100), (100, 700), (333, 900), (50, 20)):
            for ties in (7, 10_000) if total == 700 else (1,):
                check_winners(method, pattern, world, k, total, ties)


@given(
    st.sampled_from(PATTERNS),
    st.integers(2, 8),
    st.integers(1, 400),
    st.integers(1, 900),
    st.data(),
)
@settings(max_examples=60)
def test_any_split_of_the_winners_is_counted_exactly(
    pattern: str, world: int, k: int, total: int, data: st.DataObject
) -> None:
    ties = data.draw(st.sampled_from([1, 2, 30]))
    check_winners(data.draw(st.sampled_from(model.METHODS)), pattern, world, k, total, ties)


def test_no_rank_has_more_keys_in_the_band_than_are_sent() -> None:
    """And some rank has as many, so no smaller message would do."""
    for world, k in ((2, 48), (3, 90), (4, 200), (8, 2048)):
        plan = splitters.Plan.make(k, world)
        assert plan.stride > 1
        widest = []
        for pattern in PATTERNS:
            for seed in range(20):
                owner = owners(pattern, 2 * k, world, random.Random(seed))
                widest.append(_widest_band(owner, world, k, plan))
        assert max(widest) == plan.band


def _widest_band(owner: list[int], world: int, k: int, plan: splitters.Plan) -> int:
    places = [[p for p, rank in enumerate(owner) if rank == r][:k] for r in range(world)]
    samples = sorted(p for own in places for p in own[plan.stride - 1 :: plan.stride])
    if len(samples) < plan.enough:
        return 0
    sure = samples[plan.sure - 1] if plan.sure else -1
    enough = samples[plan.enough - 1]
    assert sum(p <= sure for own in places for p in own) <= k
    assert sum(p <= enough for own in places for p in own) >= k
    return max(sum(sure < p <= enough for p in own) for own in places)


@pytest.mark.parametrize("ordered", [True, False], ids=["blocks", "pages"])
@pytest.mark.parametrize("whole", [True, False], ids=["global", "local"])
@pytest.mark.parametrize("method", model.METHODS)
def test_the_model_counts_what_is_really_sent(method: str, whole: bool, ordered: bool) -> None:
    world, k = 3, 70
    owner = owners("at random", 500, world, random.Random(0))
    shape = model.Shape(1, k, world, torch.float32, ordered, whole)

    def job(comm: ThreadCommunicator) -> list[tuple[str, int]]:
        local = local_bests(comm, owner, k, 3, not ordered)
        real: Communicator = comm  # type: ignore[assignment]
        if method == "candidates" and whole:
            candidates.merge(local, real)
            return comm.operands
        winners = count(method, local, comm, not ordered, model.digit_schedule(shape))
        if whole:
            gather_answer(local, winners, real)
        return comm.operands

    for operands in run_threads(world, job):
        assert operands == model.operands(method, shape)


def test_the_threshold_method_sends_the_same_for_every_k_and_world() -> None:
    link = model.Link(base=5e-6, hop=5e-6, bandwidth=1e11)
    sizes = {
        tuple(model.operands("threshold", model.Shape(4, k, world, whole=False), link))
        for k in (16, 2048, 10**6)
        for world in (2, 16, 64)
    }
    digits = {size for size in sizes if size}
    assert all(total[-1] == ("all_gather", 64) for total in digits)
    assert len({max(size for _, size in total) for total in digits}) <= 2


def test_the_choice_follows_the_cost_model() -> None:
    link = model.Link(base=1e-5, hop=1e-6, bandwidth=1e11)
    few = model.Shape(1, 512, 2)
    many = model.Shape(64, 2048, 64, whole=False)
    assert model.choose(few, link) == "candidates"
    assert model.choose(many, link) == "threshold"
    for shape in (few, many, model.Shape(16, 2048, 8, whole=False)):
        chosen = model.choose(shape, link)
        assert all(
            model.seconds(chosen, shape, link) <= model.seconds(method, shape, link)
            for method in model.METHODS
        )
