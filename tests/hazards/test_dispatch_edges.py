# SPDX-License-Identifier: Apache-2.0
"""One less, exactly, and one more, wherever the choice of kernel, slices or sample changes.

On the GPU the edges are found by asking the plan itself, so that a new choice is tested from the
day it is made. The CPU has no plan: its edges are the constants of csrc/cpu.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from cases import check_call
from generators import make_hint, make_rows
from oracle import exact_answer

from gvr_topk._C import make_plan
from gvr_topk.plan import H200, Device
from gvr_topk.testing import tuning

LONGEST, MOST_ROWS, LARGEST_K = 300_000, 1100, 20_000
MOST_SCORES = 4_000_000  # of one call: the oracle sorts them
# csrc/cpu: a vector, the least and the most sample, chunk, slice and task.
CPU_LENGTHS = (16, 32, 64, 256, 1024, 4096, 32_768, 65_536, 98_304, 131_072, 196_608)


@lru_cache
def _limits() -> dict[str, int]:
    """Of this machine's card; of that of the published figures where there is none."""
    return (Device.of() if torch.cuda.is_available() else H200).limits()


def _changes(plan_at: Callable[[int], dict[str, Any]], last: int) -> list[int]:
    """Every x in (1, last] whose plan is not that of x - 1, at a resolution of 1 in 64."""
    found = []
    samples = sorted({1, last, *(round(last ** (i / 400)) for i in range(401))})
    for low, high in itertools.pairwise(samples):
        if plan_at(low) == plan_at(high):
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if plan_at(middle) == plan_at(low) else (low, middle)
        found.append(high)
    return found


def _choice(rows: int, n: int, k: int, algorithm: str, hinted: bool) -> dict[str, Any]:
    """What of a plan is a choice; the staging area grows smoothly with k, the slice with n."""
    plan = make_plan(rows, n, k, algorithm=algorithm, has_hint=hinted, **_limits())
    return {name: value for name, value in plan.items() if name not in ("staging", "slice")}


def _choice_by_n(rows: int, k: int, algorithm: str, hinted: bool, n: int) -> dict[str, Any]:
    return _choice(rows, n, k, algorithm, hinted)


def _around(edges: list[int] | tuple[int, ...], last: int) -> list[int]:
    return sorted({e + d for e in edges for d in (-1, 0, 1) if 0 < e + d <= last})


def _check(rows: int, n: int, k: int, algorithm: str, device: str) -> None:
    scores = make_rows("quantised_4097", rows, n, k, device=device)
    answer = exact_answer(scores, k)
    label = f"{rows} x {n}, k {k}"
    check_call(answer, scores, k, algorithm=algorithm, label=label)
    hint = make_hint("overlap_6_tenths", scores, k)
    check_call(answer, scores, k, algorithm=algorithm, hint=hint, label=f"{label}, hint")


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_a_chunk_longer_than_any_row_changes_nothing(device: str, algorithm: str) -> None:
    scores = make_rows("normal", 2, 30_000, 300, device=device)
    with tuning(chunk=2**31 - 1, ctas_per_row=8):
        check_call(exact_answer(scores, 300), scores, 300, algorithm=algorithm)


def test_edges_are_found_to_the_unit() -> None:
    """The search itself, on a plan whose edges are known."""
    known = [2, 96, 97, 4097, 65_536]
    plan = {"at": 0}

    def plan_at(x: int) -> dict[str, Any]:
        return {**plan, "at": sum(x >= edge for edge in known)}

    assert set(_changes(plan_at, LONGEST)) >= set(known) - {96, 97}
    assert 4097 in _changes(plan_at, 5000)


def test_edges_of_every_family_are_among_those_that_are_tested() -> None:
    """Cluster sizes, every block, and the row that no longer stays in shared memory."""
    by_algorithm: dict[str, set[tuple[str, int, int]]] = {}
    for algorithm in ("auto", "resident", "stream"):
        edges = _changes(partial(_choice_by_n, 1, 64, algorithm, False), 1_200_000)
        assert len(edges) < 60, "a field that grows with the row is no choice"
        plans = [_choice(1, n, 64, algorithm, False) for edge in edges for n in (edge - 1, edge)]
        by_algorithm[algorithm] = {(p["family"], p["ctas_per_row"], p["threads"]) for p in plans}
    if _limits()["max_cluster"] == 16:
        resident = {choice for choice in by_algorithm["resident"] if choice[0] == "resident"}
        assert {ctas for _, ctas, _ in resident} >= {1, 4, 8, 16}
        assert {threads for _, _, threads in resident} == {256, 512, 1024}
        assert "stream" in {family for family, _, _ in by_algorithm["resident"]}
        assert {ctas for _, ctas, _ in by_algorithm["stream"]} == {1, 2, 4, 8, 16}


@pytest.mark.parametrize("rows, k", [(1, 64), (1, 2048), (3, 512), (40, 64), (140, 16)])
def test_every_row_length_where_the_choice_changes(
    rows: int, k: int, device: str, algorithm: str
) -> None:
    edges: list[int] = [*CPU_LENGTHS, 2 * k, k]
    longest = min(LONGEST, MOST_SCORES // rows)
    if device == "cuda":
        for hinted in (False, True):
            edges += _changes(partial(_choice_by_n, rows, k, algorithm, hinted), longest)
    elif rows > 1:
        pytest.skip("rows do not change the choice on the CPU")
    for n in _around(edges, longest):
        _check(rows, n, k, algorithm, device)


@pytest.mark.parametrize("n, k", [(3000, 64), (20_000, 512)])
def test_every_number_of_rows_where_the_choice_changes(
    n: int, k: int, device: str, algorithm: str
) -> None:
    edges = [1, 2, 32_768 // n]
    most = min(MOST_ROWS, MOST_SCORES // n)
    if device == "cuda":
        edges += _changes(lambda rows: _choice(rows, n, k, algorithm, False), most)
    for rows in _around(edges, most):
        _check(rows, n, k, algorithm, device)


@pytest.mark.parametrize("n", [3000, 30_000])
def test_every_k_where_the_choice_changes(n: int, device: str, algorithm: str) -> None:
    edges = [1, 256, 1024, n // 2, n, 4096, 8192]
    if device == "cuda":
        edges += _changes(lambda k: _choice(1, n, k, algorithm, False), LARGEST_K)
    for k in _around(edges, LARGEST_K):
        _check(1, n, k, algorithm, device)


@pytest.mark.parametrize("threads", [2, 3])
def test_every_row_length_where_threads_share_a_row(threads: int, algorithm: str) -> None:
    with _threads(threads):
        for n in _around((32_768, 65_536, 98_304, 131_072, 196_608), LONGEST):
            _check(1, n, 300, algorithm, "cpu")
        for rows in _around((threads,), threads + 1):
            _check(rows, 32_768, 100, algorithm, "cpu")
