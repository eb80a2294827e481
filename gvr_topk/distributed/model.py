# SPDX-License-Identifier: Apache-2.0
"""What the methods send, and what that costs: the choice of `method="auto"`.

The operands of every call follow from its shape, exactly (`operands`). Their time is modelled as
a latency per collective and a bandwidth (`Link`); docs/scaling.md derives the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import log2

import torch

from .splitters import Plan
from .threshold import key_bits

__all__ = [
    "LINKS",
    "METHODS",
    "Link",
    "Shape",
    "cached_plan",
    "choose",
    "digit_schedule",
    "moved",
    "operands",
    "plan",
    "seconds",
]

METHODS = ("candidates", "threshold", "splitters")
_MOST_DIGIT_BITS = 16


@dataclass(frozen=True)
class Link:
    """Cost of a collective: base + hop * log2(ranks) seconds, and bytes per second of each rank."""

    base: float
    hop: float
    bandwidth: float

    def time(self, kind: str, size: int, world: int) -> float:
        """Seconds of one collective whose operand has `size` bytes on each rank."""
        return self.base + self.hop * log2(world) + moved(kind, size, world) / self.bandwidth


# Only the ratio of latency to bandwidth decides between methods. `make figures` takes the numbers
# from the records in benchmarks/results.
# report:links
LINKS = {
    # nccl, NVIDIA H200, driver 580.159.04, torch 2.11.0+cu130, 2026-11-22, sources f8fc5dbcb26b
    "cuda": Link(base=1.3e-06, hop=5e-06, bandwidth=2.3e11),
    # orders of magnitude, not measured
    "cpu": Link(base=5e-05, hop=5e-05, bandwidth=1e9),
}
# /report


@dataclass(frozen=True)
class Shape:
    """What decides the traffic of one call. All ranks agree on it."""

    rows: int
    k: int
    world: int
    dtype: torch.dtype = torch.float32
    ordered: bool = True  # every shard is one block
    whole: bool = True  # return_="global"


def moved(kind: str, size: int, world: int) -> float:
    """Bytes that one rank receives in a ring, for an operand of `size` bytes on every rank."""
    return size * (world - 1) * (1 if kind == "all_gather" else 2 / world)


def operands(method: str, shape: Shape, link: Link = LINKS["cuda"]) -> list[tuple[str, int]]:
    """(collective, bytes of each rank's operand) in the order in which a method runs them.

    `link` sets the digits of "threshold". Layout "contiguous" adds one all-gather of 8 bytes where
    offsets matter.
    """
    rows, k, world = shape.rows, shape.k, shape.world
    if world == 1:
        return []
    if method == "candidates":
        return [("all_gather", 8 * rows * k)]
    if method == "splitters":
        plan = Plan.make(k, world)
        calls = [
            ("all_gather", 8 * rows * plan.samples),
            ("all_gather", 8 * rows * (plan.band + 1)),
        ]
    else:
        digits = digit_schedule(shape, link)
        calls = [("all_reduce", 4 * rows * ((1 << bits) - 1)) for bits in digits]
        if shape.ordered:
            calls.append(("all_gather", 16 * rows))
        elif shape.whole:
            calls.append(("all_gather", 8 * rows))
    if shape.whole:
        calls.append(("all_reduce", 8 * rows * k))
    return calls


def seconds(method: str, shape: Shape, link: Link, tuned_for: Link | None = None) -> float:
    """Time of a method's collectives; `tuned_for`: what the digits were chosen for."""
    total = 0.0
    for kind, size in operands(method, shape, tuned_for or link):
        total += link.time(kind, size, shape.world)
    return total


def digit_schedule(shape: Shape, link: Link = LINKS["cuda"]) -> tuple[int, ...]:
    """Digits of method "threshold": many bins for few rows, few bins for many."""
    total = key_bits(shape.dtype, shape.ordered)
    best: tuple[int, ...] = ()
    least = float("inf")
    for rounds in range(-(-total // _MOST_DIGIT_BITS), total + 1):
        short, longer = divmod(total, rounds)
        digits = (short + 1,) * longer + (short,) * (rounds - longer)
        cost = 0.0
        for bits in digits:
            cost += link.time("all_reduce", 4 * shape.rows * ((1 << bits) - 1), shape.world)
        if cost < least:
            best, least = digits, cost
        elif short < 8:
            break  # ever more rounds of ever fewer bins
    return best


def choose(shape: Shape, link: Link) -> str:
    """The method whose collectives take the least time; the first of METHODS at a draw."""
    best, least = METHODS[0], float("inf")
    for method in METHODS:
        cost = seconds(method, shape, link)
        if cost < least:
            best, least = method, cost
    return best


def plan(method: str, shape: Shape, link: Link) -> tuple[str, tuple[int, ...]]:
    """The method to use ("auto" resolved) and the digits of "threshold".

    Plain loops, which torch.compile traces; eager calls take `cached_plan`.
    """
    chosen = choose(shape, link) if method == "auto" else method
    return chosen, digit_schedule(shape, link) if chosen == "threshold" else ()


cached_plan = lru_cache(maxsize=1024)(plan)
