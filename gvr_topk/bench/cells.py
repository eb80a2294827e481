# SPDX-License-Identifier: Apache-2.0
"""What is measured: a cell is one shape with its data and its hint, a suite is a list of cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import torch

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
# Above this length rows are synthetic: the recorded documents have 131,072 keys.
LONGEST_TRACE = 128 * KIB

HOSTILE_HINTS = ("bottom", "zeros", "random", "other")
OVERLAP_HINTS = tuple(f"overlap:{share:g}" for share in (0.0, 0.25, 0.5, 0.75, 1.0))
ADVERSARIAL_DATA = (
    "plateau",
    "equal",
    "few-values",
    "same-prefix",
    "ascending",
    "descending",
    "one-tile",
    "infinities",
)


@dataclass(frozen=True)
class Cell:
    """One measured shape. `n` is nominal: recorded rows may be up to 1 % shorter."""

    rows: int
    n: int
    k: int
    dtype: str = "fp32"
    data: str = "trace"  # workload.py knows the names
    hint: str = "real"  # real, none, badrow, overlap:SHARE or one of HOSTILE_HINTS
    threads: int = 0  # of the CPU; 0 leaves them alone

    @property
    def bytes(self) -> int:
        return self.rows * self.n * DTYPES[self.dtype].itemsize

    @property
    def label(self) -> str:
        parts = [f"{self.rows} x {size_label(self.n)}", f"K {self.k}"]
        if self.dtype != "fp32":
            parts.append(self.dtype)
        if self.data not in ("trace", "normal"):
            parts.append(self.data)
        if self.hint != "real":
            parts.append(f"hint {self.hint}")
        if self.threads:
            parts.append(f"{self.threads} thread{'s' * (self.threads > 1)}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Suite:
    """Cells and the names of the contenders that meet in each of them."""

    about: str
    cells: tuple[Cell, ...]
    contenders: tuple[str, ...]
    device: str | None = None  # None: any
    replays: int = 30  # samples of each time
    warm: bool = True  # also measure one buffer over and over
    paired: bool = False  # every row in turns with its previous step, for contenders with state
    sweep: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # tuning constants
    swept: tuple[str, ...] = ("stream",)  # who is measured under every combination of them


def size_label(n: int) -> str:
    if n % MIB == 0:
        return f"{n // MIB}M"
    return f"{n // KIB}K" if n % KIB == 0 else str(n)


def recorded(n: int) -> str:
    return "trace" if n <= LONGEST_TRACE else "normal"


def _shapes(rows: tuple[int, ...], sizes: tuple[int, ...], ks: tuple[int, ...]) -> list[Cell]:
    cells = [Cell(r, n * KIB, k, data=recorded(n * KIB)) for n, r, k in product(sizes, rows, ks)]
    return [cell for cell in cells if cell.k < cell.n and cell.bytes <= 4 * GIB]


def _smoke() -> list[Cell]:
    return [
        Cell(1, 4 * KIB, 256),
        Cell(4, 8 * KIB, 512),
        Cell(4, 8 * KIB, 512, hint="none"),
        Cell(4, 8 * KIB, 512, hint="badrow"),
        Cell(2, 4 * KIB, 512, data="plateau"),
        Cell(2, 4 * KIB, 512, dtype="bf16", data="normal"),
    ]


def _hints() -> list[Cell]:
    shapes = [(1, 64), (64, 64), (64, 128), (1, 1024), (64, 256), (64, 1024)]
    cells = [Cell(r, n * KIB, 2048, data=recorded(n * KIB)) for r, n in shapes]
    kinds = ("real", "none", *HOSTILE_HINTS, "badrow", *OVERLAP_HINTS)
    return [
        replace(cell, hint=kind)
        for cell, kind in product(cells, kinds)
        if kind != "badrow" or cell.rows == 64
    ]


def _adversarial() -> list[Cell]:
    shapes = [(1, 64), (64, 64), (64, 128)]
    return [
        Cell(r, n * KIB, 2048, data=data)
        for data, (r, n) in product(("normal", *ADVERSARIAL_DATA), shapes)
    ]


def _short() -> list[Cell]:
    return [
        *_shapes((1, 16, 64, 128, 512), (1, 2, 4, 8, 16), (512,)),
        *_shapes((1, 16, 64, 128, 512), (4, 8, 16), (2048,)),
    ]


def _dtypes() -> list[Cell]:
    shapes = [(1, 64), (64, 64), (64, 128), (512, 64), (64, 1024)]
    return [
        Cell(r, n * KIB, 2048, dtype, recorded(n * KIB))
        for (r, n), dtype in product(shapes, DTYPES)
    ]


def _dense() -> list[Cell]:
    ks = [1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 1024, 1280, 1536, 1792]
    ks += [2048, 2304, 2560, 3072, 3584, 4096]
    sizes = [4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 72, 80, 96, 112, 128]
    return [
        *(Cell(rows, 64 * KIB, k) for rows, k in product((1, 64), ks)),
        *(Cell(rows, n * KIB, 2048) for rows, n in product((1, 64), sizes) if n != 64),
    ]


def _sweep() -> list[Cell]:
    shapes = [(1, 8), (64, 8), (512, 8), (1, 64), (16, 64), (64, 64), (128, 64), (512, 64)]
    shapes += [(1, 128), (16, 128), (64, 128), (128, 128), (1, 1024), (16, 1024), (64, 1024)]
    return [Cell(r, n * KIB, 2048, data=recorded(n * KIB)) for r, n in shapes]


def _dispatch() -> list[Cell]:
    sizes = (4, 8, 16, 32, 64, 128, 256, 1024)
    return _shapes((1, 4, 16, 64, 128, 512), sizes, (2048,))


def _cpu() -> list[Cell]:
    return [
        Cell(rows, n * KIB, 2048, threads=threads)
        for n, rows, threads in product((32, 128), (1, 4), (1, 2))
    ]


_OURS = ("auto", "auto-nohint", "gvr", "stream", "stream-nohint", "radix")

SUITES: dict[str, Callable[[], Suite]] = {
    "smoke": lambda: Suite(
        "a few small cells, every contender", tuple(_smoke()), ("floor", "torch.topk", *_OURS)
    ),
    "issue": lambda: Suite(
        "recorded rows, K 2048, every contender",
        tuple(_shapes((1, 16, 64, 128), (8, 64, 128), (2048,))),
        ("floor", "floor-pdl", "torch.topk", "torch.sort", "flashinfer", *_OURS),
    ),
    "grid": lambda: Suite(
        "rows x N x K, up to 4 GiB of scores",
        tuple(_shapes((1, 4, 16, 64, 128, 512), (8, 32, 64, 128, 256, 1024), (512, 1024, 2048))),
        ("floor", "torch.topk", "flashinfer", "auto", "auto-nohint", "gvr", "radix"),
        warm=False,
    ),
    "hints": lambda: Suite(
        "real, no, hostile and constructed hints",
        tuple(_hints()),
        ("floor", "auto", "gvr", "stream"),
        warm=False,
    ),
    "adversarial": lambda: Suite(
        "rows made to defeat a selection, beside random ones",
        tuple(_adversarial()),
        ("floor", "torch.topk", "auto", "gvr", "stream", "radix"),
        warm=False,
    ),
    "short": lambda: Suite("rows of 1K to 16K", tuple(_short()), ("floor", "auto", "auto-nohint")),
    "dtypes": lambda: Suite(
        "fp32, bf16, fp16", tuple(_dtypes()), ("floor", "torch.topk", "auto", "stream", "radix")
    ),
    "dense": lambda: Suite(
        "time over K and over N in small steps",
        tuple(_dense()),
        ("floor", "auto", "auto-nohint"),
        device="cuda",
        warm=False,
    ),
    "sweep": lambda: Suite(
        "tuning constants of the plan",
        tuple(_sweep()),
        ("floor", "auto"),
        device="cuda",
        warm=False,
        sweep={"ctas_per_row": (1, 2, 4, 8, 16), "chunk": (0, 2048, 4096, 8192)},
    ),
    "dispatch": lambda: Suite(
        "every plan that auto could have taken: algorithm, hint and CTAs per row",
        tuple(_dispatch()),
        ("floor", "auto", "auto-nohint", "radix"),
        device="cuda",
        warm=False,
        sweep={"ctas_per_row": (1, 2, 4, 8, 16)},
        swept=("resident", "stream-nohint", "stream", "gvr"),
    ),
    "state": lambda: Suite(
        "TopKCache.step beside the bare operator, values beside indices",
        tuple(_shapes((1, 16, 64), (8, 64, 128), (2048,))),
        ("op", "op-values", "step", "step-values"),
        warm=False,
        paired=True,
    ),
    "cpu": lambda: Suite(
        "one and two threads",
        tuple(_cpu()),
        ("torch.topk", "auto", "auto-nohint", "radix"),
        device="cpu",
        replays=200,
        warm=False,
    ),
}


def suite_named(name: str) -> Suite:
    if name not in SUITES:
        raise ValueError(f"suite: got {name!r}, need one of {', '.join(SUITES)}")
    return SUITES[name]()
