# SPDX-License-Identifier: Apache-2.0
"""Every rank gets the single-process answer, bit for bit, however the rows are cut."""

from __future__ import annotations

import random

import pytest
import torch
from generators import row_names
from processes import run_ranks
from sharding import (
    METHODS,
    Case,
    arguments,
    contiguous,
    difference_of_part,
    difference_of_whole,
    draw_case,
    expected,
    interleaved,
    whole_rows,
    with_offsets,
)

import gvr_topk.distributed as sharded

# More ranks than cores take their time for every collective; test_methods.py has more cases, with
# ranks that are threads.
DRAWS = {2: 60, 3: 30, 4: 8, 5: 6, 6: 6, 7: 6, 8: 20}


def complaints_about(
    case: Case, rank: int, device: torch.device, methods: tuple[str, ...]
) -> list[str]:
    whole = whole_rows(case)
    answer = expected(case, whole)
    given = arguments(case, rank, whole, device)
    found = []
    for method in methods:
        result = sharded.topk(**given, method=method)
        if problem := difference_of_whole(case, result, answer):
            found.append(f"{method}, {case}: {problem}")
        result = sharded.topk(**given, method=method, return_="local")
        if problem := difference_of_part(case, rank, result, answer):
            found.append(f"{method}, local, {case}: {problem}")
    return found


def drawn_cases(rank: int, world: int, device: torch.device) -> list[str]:
    rng = random.Random(world)
    found = []
    for _ in range(DRAWS[world]):
        case = draw_case(rng, world)
        methods = (rng.choice(METHODS), "candidates") if world > 3 else METHODS
        found += complaints_about(case, rank, device, methods)
    return found


def hard_cases(rank: int, world: int, device: torch.device) -> list[str]:
    """Every kind of row, with the K-th place among ties that lie on all ranks."""
    found = []
    uneven = [150, 251] if world == 2 else [150, 0, 251]
    cuts = [
        contiguous(uneven),
        with_offsets(uneven[::-1], [0] * world, list(range(world))[::-1]),
        interleaved(world, 401, 1),
        interleaved(world, 401, 4),
    ]
    for seed, kind in enumerate(row_names()):
        for place, cut in enumerate(cuts):
            k = 17 if (seed + place) % 2 else 133
            case = Case(cut, kind, 2, k, torch.float32, seed)
            found += complaints_about(case, rank, device, METHODS[:3])
    return found


def all_cases(rank: int, world: int, device: torch.device) -> list[str]:
    found = drawn_cases(rank, world, device)
    return found if world > 3 else found + hard_cases(rank, world, device)


@pytest.mark.parametrize("world", DRAWS)
def test_every_rank_has_the_single_process_answer(world: int) -> None:
    run_ranks(all_cases, world)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_have_the_single_process_answer() -> None:
    run_ranks(all_cases, 2, "nccl")
