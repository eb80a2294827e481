# SPDX-License-Identifier: Apache-2.0
"""A call as a function of (seed, number, device): shapes, rows, hints, windows, layouts, overrides.

On the GPU the drawn numbers depend on the card as torch's generator does; the parameters do not.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .case import APIS, Case
from .hints import HINTS, INT32_MAX, make_hint
from .rows import make_rows, row_names

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ALGORITHMS = ("auto", "gvr", "resident", "stream", "radix")
LAYOUTS = ("dense", "padded", "offset", "expanded")

# 0 leaves the choice to the plan. The least staging is k + 32 entries.
_OVERRIDES = {
    "ctas_per_row": (0, 0, 1, 2, 4, 8, 16),
    "threads": (0, 0, 256, 512, 1024),
    "staging": (0, 0, 1, 40, 300),
    "chunk": (0, 0, 1, 32, 100, 1000),
    "bins": (0, 0, 1, 7, 64),
    "rank_capacity": (0, 0, 1, 5, 64),
    "max_verify": (0, 0, 1, 2, 3),
    "force_undershoot": (0, 0, 1),
    "ignore_hint": (0, 0, 1),
}


@dataclass(frozen=True)
class Scale:
    """How large calls are: rows and scores of one, the length of the longest rows, and how many
    groups of rows have kinds and hints of their own."""

    rows: int
    scores: int
    longest: int
    groups: int


# On a GPU a call has a price of its own, whatever its rows: many of them share it.
SCALES = {"cpu": Scale(64, 40_000, 150_000, 8), "cuda": Scale(16_384, 2_000_000, 300_000, 12)}
# A chunk of one score in a row of 300,000 takes seconds and shows nothing that 2,000 do not.
_MOST_CHUNKS = 2048


@dataclass(frozen=True)
class Drawn:
    """A call, and what its parts are called."""

    case: Case
    dtype: str
    layout: str
    groups: tuple[tuple[str, str, int], ...]  # rows of one kind with hints of one kind


def draw(
    seed: int,
    number: int,
    device: str,
    kinds: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = (),
    most_rows: int | None = None,
) -> Drawn:
    """Call `number` of `seed`; `kinds` of rows and `dtypes` to choose from, none: all."""
    r = random.Random(f"{seed}/{number}")
    scale = SCALES[torch.device(device).type]
    n = _length(r, scale)
    k = _winners(r, n)
    next_n = r.choice((1, 1, 1, 2, 4))
    layout = r.choice(("dense", *LAYOUTS))
    rows = max(1, min(scale.rows, scale.scores // (n + k), most_rows or scale.rows))
    if layout == "expanded" or k > 4096:
        rows = min(rows, 8)
    rows = max(rows // next_n, 1) * next_n
    dtype = r.choice(dtypes or tuple(DTYPES))
    scores, hint, groups = _rows_and_hints(
        r, (rows, n, k), scale.groups, device, DTYPES[dtype], kinds or tuple(row_names())
    )
    if layout == "expanded":
        kind = groups[0][0]
        scores, groups = scores[:1], tuple((kind, hints, count) for _, hints, count in groups)
    window = _window(r, rows // next_n, n, k, next_n, device)
    scores = _poison(r, scores, rows, window, next_n)
    api = r.choice((*APIS, "out", "indices"))
    case = Case(
        scores=_lay_out(r, scores, rows, layout),
        k=k,
        api=api,
        hint=_thin(r, hint, next_n),
        next_n=next_n,
        hint_offset=r.choice((0,) * 6 + (1, -1, n, INT32_MAX, -INT32_MAX)),
        sorted=r.random() < 0.25,
        algorithm=r.choice(ALGORITHMS),
        tuning=_tuning(r, n),
        threads=r.choice((1,) * 8 + (2, 3)) if scores.is_cpu else 1,
        **window,
    )
    return Drawn(_with_state(r, case) if api == "step" else case, dtype, layout, groups)


def _length(r: random.Random, scale: Scale) -> int:
    """Mostly short rows, and powers of two +-1, where kernels and slices change."""
    place = r.random()
    if place < 0.1:
        return max(1, (1 << r.randrange(0, 15)) + r.randint(-1, 1))
    if place < 0.75:
        return round(2000 ** r.random())
    if place < 0.97:
        return r.randint(2000, 12_000)
    return r.randint(12_000, scale.longest)


def _winners(r: random.Random, n: int) -> int:
    choices = [
        r.randint(1, n),
        r.randint(1, min(n, 64)),
        max(1, n + r.randint(-2, 2)),
        r.randint(n, 2 * n),
        r.choice((32, 64, 256, 512, 1024, 2048, 4096)) + r.randint(-1, 1),
    ]
    weights = (5, 5, 1, 1, 2) if n <= 12_000 else (1, 6, 0, 0, 6)
    return r.choices(choices, weights)[0]


def _rows_and_hints(
    r: random.Random,
    shape: tuple[int, int, int],
    most_groups: int,
    device: str,
    dtype: torch.dtype,
    kinds: tuple[str, ...],
) -> tuple[Tensor, Tensor | None, tuple[tuple[str, str, int], ...]]:
    """(rows, n, k) -> up to so many groups, each of one kind of rows and one kind of hints."""
    rows, n, k = shape
    hinted = r.random() < 0.85
    cuts = sorted({0, rows, *(r.randint(0, rows) for _ in range(r.randint(0, most_groups - 1)))})
    scores, hints, groups = [], [], []
    for first, last in itertools.pairwise(cuts):
        kind, count = r.choice(kinds), last - first
        part = make_rows(kind, count, n, k, device=device, dtype=dtype, seed=r.getrandbits(31))
        name = r.choice(tuple(HINTS)) if hinted else "none"
        if hinted:
            hints.append(make_hint(name, part, k, seed=r.getrandbits(31)))
        scores.append(part)
        groups.append((kind, name, count))
    return torch.cat(scores), torch.cat(hints) if hinted else None, tuple(groups)


def _window(
    r: random.Random, requests: int, n: int, k: int, next_n: int, device: str
) -> dict[str, Any]:
    if r.random() < 0.4:
        return {}
    ratio = r.choice((1, 1, 1, 2, 4))
    dtype = r.choice((torch.int32, torch.int64))

    def column(edges: list[int], most: int) -> Tensor:
        generator = torch.Generator().manual_seed(r.getrandbits(31))
        drawn = torch.randint(0, max(most, 1) + 1, (requests,), generator=generator)
        edge = torch.tensor(edges)[torch.randint(0, len(edges), (requests,), generator=generator)]
        chosen = torch.rand(requests, generator=generator) < 0.3
        return torch.where(chosen, edge, drawn).to(device, dtype)

    window: dict[str, Any] = {"compress_ratio": ratio}
    ends = [0, 1, -1, -4, k - 1, k, k + 1, n * ratio, n * ratio + next_n, INT32_MAX, -INT32_MAX - 1]
    window["lengths"] = column(ends, n * ratio + next_n) if r.random() < 0.85 else None
    begins = [0, 1, 3, -1, n - k, n - 1, n, INT32_MAX]
    window["starts"] = column(begins, n // 2) if r.random() < 0.5 else None
    return window


def _poison(
    r: random.Random, scores: Tensor, rows: int, window: dict[str, Any], next_n: int
) -> Tensor:
    """Better than any score, outside the windows: it must not be found."""
    if not window or len(scores) != rows or r.random() < 0.5:
        return scores
    from gvr_topk.reference import row_windows

    row = torch.arange(rows, device=scores.device)
    begin, end = row_windows(
        row,
        scores.shape[1],
        window["lengths"],
        window["starts"],
        next_n,
        window["compress_ratio"],
    )
    position = torch.arange(scores.shape[1], device=scores.device)
    value = r.choice((3e38, float("inf"), float("nan")))
    poison = torch.full_like(scores[:1, :1], value, dtype=torch.float32).to(scores.dtype)
    return torch.where((position < begin) | (position >= end), poison, scores)


def _lay_out(r: random.Random, scores: Tensor, rows: int, layout: str) -> Tensor:
    """The rows at another stride or base address."""
    if layout == "expanded":
        return scores.expand(rows, -1)
    gap = r.randint(1, 9) if layout == "padded" else 0
    offset = r.randint(1, 9) if layout in ("padded", "offset") else 0
    if gap == offset == 0:
        return scores
    n = scores.shape[1]
    storage = scores.new_full((offset + rows * (n + gap),), float("inf"))
    return storage.as_strided((rows, n), (n + gap, 1), offset).copy_(scores)


def _thin(r: random.Random, hint: Tensor | None, next_n: int) -> Tensor | None:
    """Now and then fewer hints than k, or more, or one row of them for all drafts of a request."""
    if hint is None:
        return None
    if next_n > 1 and r.random() < 0.5:
        hint = hint[::next_n].contiguous()
    if r.random() < 0.7:
        return hint
    if r.random() < 0.5:
        return hint[:, : r.randint(0, hint.shape[1])].contiguous()
    return torch.cat([hint, hint[:, : r.randint(0, hint.shape[1])]], dim=1)


def _tuning(r: random.Random, n: int) -> dict[str, int]:
    if r.random() < 0.3:
        return {}
    chosen = {name: r.choice(values) for name, values in _OVERRIDES.items()}
    if chosen["chunk"]:
        chosen["chunk"] = max(chosen["chunk"], -(-n // _MOST_CHUNKS))
    return {name: value for name, value in chosen.items() if value}


def _with_state(r: random.Random, case: Case) -> Case:
    requests = case.requests
    size = requests + r.randint(0, 3)
    generator = torch.Generator().manual_seed(r.getrandbits(31))
    slots = torch.randperm(size, generator=generator)[:requests]
    lost = torch.rand(requests, generator=generator) < 0.15
    # Beyond the table is an error where the host sees the slots, and nobody's slot on a GPU.
    beyond = [size, INT32_MAX] if case.scores.is_cuda else [-2, -INT32_MAX]
    slots[lost] = torch.tensor([-1, -4, *beyond])[
        torch.randint(0, 4, (int(lost.sum()),), generator=generator)
    ]
    dtype = r.choice((torch.int32, torch.int64))
    values = {
        **case.__dict__,
        "slots": slots.to(case.scores.device, dtype),
        "table": (size, case.next_n + r.randint(0, 1), r.randint(1, case.k)),
        "noise": r.getrandbits(31) if r.random() < 0.3 else None,
    }
    return Case(**values)
