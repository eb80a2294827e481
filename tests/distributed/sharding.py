# SPDX-License-Identifier: Apache-2.0
"""Whole rows, their shards under every layout, and the single-process answer."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import torch
from generators import HINTS, make_hint, make_rows, row_names
from torch import Tensor

import gvr_topk.distributed as sharded
from gvr_topk.distributed.keys import INDEX_BITS, PADDING
from gvr_topk.reference import row_windows, topk_reference

METHODS = ("candidates", "threshold", "splitters", "auto")
INTEGER = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F80, torch.float16: 0x7C00}


@dataclass(frozen=True)
class Sharding:
    """Which global indices each rank has, and the layout that says so."""

    name: str
    layout: Any
    owned: list[list[int]]  # by rank, ascending

    @property
    def present(self) -> list[int]:
        return sorted(index for rank in self.owned for index in rank)


def contiguous(sizes: list[int]) -> Sharding:
    starts = [sum(sizes[:rank]) for rank in range(len(sizes))]
    owned = [list(range(s, s + n)) for s, n in zip(starts, sizes, strict=True)]
    return Sharding("contiguous", "contiguous", owned)


def with_offsets(sizes: list[int], gaps: list[int], order: list[int]) -> Sharding:
    """Blocks in any order of ranks, with gaps between them."""
    offsets, position = [0] * len(sizes), 0
    for rank, gap in zip(order, gaps, strict=True):
        offsets[rank] = position + gap
        position += gap + sizes[rank]
    owned = [list(range(offsets[r], offsets[r] + n)) for r, n in enumerate(sizes)]
    return Sharding("offsets", tuple(offsets), owned)


def interleaved(world: int, n: int, page: int) -> Sharding:
    owned: list[list[int]] = [[] for _ in range(world)]
    for index in range(n):
        owned[index // page % world].append(index)
    layout = "interleaved" if page == 1 else sharded.Interleaved(page)
    return Sharding(f"pages of {page}", layout, owned)


def draw_sharding(rng: random.Random, world: int) -> Sharding:
    kind = rng.choice(["contiguous", "offsets", "interleaved", "pages"])
    if kind in ("interleaved", "pages"):
        page = 1 if kind == "interleaved" else rng.choice([2, 3, 16, 64])
        return interleaved(world, rng.choice([0, 1, 40, 500, 1601]), page)
    choices = [rng.choice([0, 1, 7, 60]), rng.randint(0, 400), 300]
    sizes = [rng.choice(choices) for _ in range(world)]
    if kind == "contiguous":
        return contiguous(sizes)
    order = rng.sample(range(world), world)
    return with_offsets(sizes, [rng.choice([0, 0, 5]) for _ in range(world)], order)


@dataclass(frozen=True)
class Case:
    sharding: Sharding
    kind: str
    rows: int
    k: int
    dtype: torch.dtype
    seed: int
    window: dict[str, Any] = field(default_factory=dict)
    hint: str | None = None
    sorted: bool = True
    algorithm: str = "auto"

    def __str__(self) -> str:
        sizes = [len(owned) for owned in self.sharding.owned]
        return (
            f"{self.sharding.name} {sizes}, {self.kind}, rows {self.rows}, k {self.k}, "
            f"{self.dtype}, seed {self.seed}, window {self.window}, hint {self.hint}, "
            f"sorted {self.sorted}"
        )


def draw_case(rng: random.Random, world: int) -> Case:
    sharding = draw_sharding(rng, world)
    total = max(len(sharding.present), 1)
    next_n = rng.choice([1, 1, 1, 2, 3])
    requests = rng.choice([1, 2, 3])
    window: dict[str, Any] = {}
    if rng.random() < 0.6:
        ratio = rng.choice([1, 1, 3])
        beyond = (sharding.present[-1:] or [0])[0] * ratio + 9
        window["lengths"] = [rng.randint(-3, beyond) for _ in range(requests)]
        if rng.random() < 0.5:
            window["starts"] = [rng.randint(-3, beyond // (2 * ratio)) for _ in range(requests)]
        window |= {"next_n": next_n, "compress_ratio": ratio}
    k = rng.choice([1, 2, rng.randint(1, total), min(64, total), total, total + 9])
    return Case(
        sharding,
        rng.choice(row_names()),
        requests * (next_n if window else 1),
        k,
        rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]),
        rng.randint(0, 10**6),
        window,
        rng.choice([None, *HINTS]),
        rng.random() < 0.7,
        rng.choice(["auto", "gvr", "stream", "radix"]),
    )


def whole_rows(case: Case) -> Tensor:
    """[rows, keys] scores of all present keys, in global order; the same on every rank."""
    n = len(case.sharding.present)
    if n == 0:
        return torch.empty(case.rows, 0, dtype=case.dtype)
    return make_rows(case.kind, case.rows, n, min(case.k, n), dtype=case.dtype, seed=case.seed)


def expected(case: Case, whole: Tensor) -> tuple[Tensor, Tensor]:
    """(values, global indices) of the reference on the row that nobody has cut."""
    present = torch.tensor(case.sharding.present, dtype=torch.int64)
    bounds = {}
    if case.window:
        row = torch.arange(case.rows)
        given = {**case.window, "starts": case.window.get("starts")}
        lengths = torch.tensor(given["lengths"])
        starts = None if given["starts"] is None else torch.tensor(given["starts"])
        begin, end = row_windows(
            row, 2**31 - 1, lengths, starts, given["next_n"], given["compress_ratio"]
        )
        # From global positions to places among the keys that exist.
        bounds = {
            "starts": torch.searchsorted(present, begin[:, 0]),
            "lengths": torch.searchsorted(present, end[:, 0]),
        }
    values, places = topk_reference(whole, case.k, **bounds)
    if len(present) == 0:
        return values, places
    indices = torch.where(places < 0, -1, present[places.clamp(min=0).long()]).int()
    return values, indices


def arguments(case: Case, rank: int, whole: Tensor, device: torch.device) -> dict[str, Any]:
    """Keywords of one rank's call, `scores` among them."""
    present = {index: place for place, index in enumerate(case.sharding.present)}
    columns = [present[index] for index in case.sharding.owned[rank]]
    scores = whole[:, columns]
    window = {
        name: torch.tensor(value, device=device) if isinstance(value, list) else value
        for name, value in case.window.items()
    }
    hint = None
    if case.hint is not None and scores.shape[1] > 0:
        hint = make_hint(case.hint, scores, min(case.k, scores.shape[1])).to(device)
    return {
        "scores": scores.to(device),
        "k": case.k,
        "layout": case.sharding.layout,
        "hint": hint,
        "sorted": case.sorted,
        "algorithm": case.algorithm,
        **window,
    }


def sort_keys(values: Tensor, indices: Tensor) -> Tensor:
    """What torch.ops.gvr.winner_keys has to give, by plain operators."""
    integer, infinity = INTEGER[values.dtype], INFINITY[values.dtype]
    raw = values.view(integer).to(torch.int64)
    magnitude = raw & torch.iinfo(integer).max
    level = torch.where(raw < 0, -magnitude, magnitude)
    level = torch.where(magnitude > infinity, infinity + 1, level)
    keys = ((infinity + 1 - level) << INDEX_BITS) + indices
    return torch.where(indices < 0, PADDING, keys)


def bits(values: Tensor) -> Tensor:
    return values.view(INTEGER[values.dtype])


def difference_of_whole(case: Case, result: Any, answer: tuple[Tensor, Tensor]) -> str | None:
    """What is wrong with a return_="global" answer; None if nothing is."""
    values, indices = result.values.cpu(), result.indices.cpu()
    if not case.sorted:
        # Padding last, as in every answer; then any order will do.
        filled = (indices >= 0).int()
        if (filled[:, 1:] > filled[:, :-1]).any():
            return "padding before winners"
        indices, order = indices.sort(-1)
        values = bits(values).gather(-1, order).view(values.dtype)
        wanted_indices, order = answer[1].sort(-1)
        answer = (bits(answer[0]).gather(-1, order).view(values.dtype), wanted_indices)
    return _difference(values, indices, *answer)


def difference_of_part(
    case: Case, rank: int, result: Any, answer: tuple[Tensor, Tensor]
) -> str | None:
    """What is wrong with a return_="local" answer: the winners that this rank owns, in order."""
    owned = torch.tensor(case.sharding.owned[rank], dtype=torch.int64)
    values = torch.full_like(answer[0], -torch.inf)
    indices = torch.full_like(answer[1], -1)
    for row in range(case.rows):
        mine = torch.isin(answer[1][row].long(), owned)
        count = int(mine.sum())
        local = torch.searchsorted(owned, answer[1][row][mine].long())
        indices[row, :count] = local.int()
        bits(values)[row, :count] = bits(answer[0])[row][mine]
    return _difference(result.values.cpu(), result.indices.cpu(), values, indices)


def _difference(values: Tensor, indices: Tensor, *answer: Tensor) -> str | None:
    if indices.dtype != torch.int32 or values.dtype != answer[0].dtype:
        return f"dtypes {values.dtype}, {indices.dtype}"
    if indices.shape != answer[1].shape or values.shape != answer[0].shape:
        return f"shapes {list(values.shape)}, {list(indices.shape)}"
    if not torch.equal(indices, answer[1]):
        row = int((indices != answer[1]).any(-1).nonzero()[0])
        place = int((indices[row] != answer[1][row]).nonzero()[0])
        return (
            f"row {row}, place {place}: index {int(indices[row, place])}, "
            f"need {int(answer[1][row, place])}"
        )
    if not torch.equal(bits(values), bits(answer[0])):
        return "right indices, but values of other bits"
    return None
