# SPDX-License-Identifier: Apache-2.0
"""From an empty launch to the whole selection: what is fixed cost, and what is reading.

The fixed cost of a shape is the time of the kernel, cluster and block that `auto` gives it, on rows
that hold hardly more than K scores: every barrier and every round stays, the reading is gone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gvr_topk.plan import Device

from .cells import KIB, Cell, Suite
from .contenders import REGISTRY, Contender
from .results import quotient
from .runner import Progress, Runner
from .timing import Call, CudaTimer

K = 2048
SHORT = K + 64  # scores of a row without reading, a multiple of every vector load
SHAPES = ((1, 8), (1, 64), (1, 256), (1, 1024), (64, 8), (64, 64), (64, 256), (512, 8), (512, 64))
_FLOORS = ("floor", "floor-pdl")
_REPLAYS = 30
_BY_FAMILY = {"resident": "resident", "stream": "stream-nohint"}


@dataclass(frozen=True)
class Rung:
    """Microseconds per call; None where something was not measured."""

    rows: int
    n: int
    launch: float | None  # an empty kernel of one CTA
    floor: float | None
    floor_pdl: float | None
    floor_fixed: float | None  # the floor on rows of SHORT scores
    fixed: float | None  # the kernel of auto on rows of SHORT scores
    auto: float | None
    plan: str

    @property
    def reading(self) -> float | None:
        return None if self.auto is None or self.fixed is None else self.auto - self.fixed

    @property
    def fixed_share(self) -> float | None:
        """Of what auto takes beyond the floor, the share that is there without reading."""
        if None in (self.auto, self.fixed, self.floor, self.floor_fixed):
            return None
        beyond = self.auto - self.floor  # type: ignore[operator]
        fixed = self.fixed - self.floor_fixed  # type: ignore[operator]
        return quotient(fixed, beyond) if beyond > 0 else None


def long_rows() -> Suite:
    cells = tuple(Cell(rows, n * KIB, K, data="normal") for rows, n in SHAPES)
    return Suite(
        "launch, fixed cost, reading", cells, (*_FLOORS, "auto"), replays=_REPLAYS, warm=False
    )


def fixed_contender(rows: int, n: int, device: Device) -> Contender | None:
    """The kernel that auto takes for rows x n, as it is launched there, for rows of any length."""
    from gvr_topk import _C

    asked: dict[str, Any] = {"rows": rows, "n": n, "k": K, **device.limits()}
    plan = _C.make_plan(**asked)
    if plan["family"] not in _BY_FAMILY:
        return None
    tuning = {"ctas_per_row": plan["ctas_per_row"], "threads": plan["threads"]}
    return replace(REGISTRY[_BY_FAMILY[plan["family"]]], name=fixed_name(n), tuning=tuning)


def fixed_name(n: int) -> str:
    return f"fixed[n={n}]"


def measure(device: torch.device, progress: Progress | None = None) -> dict[str, Any]:
    """The part `ladder` of a record."""
    limits = Device.of(device)
    progress = progress or Progress()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "ladder.json"
        contenders = [REGISTRY[name] for name in long_rows().contenders]
        cells = _run(long_rows(), contenders, device, out, progress)
        for rows in dict.fromkeys(rows for rows, _ in SHAPES):
            suite = replace(long_rows(), cells=(Cell(rows, SHORT, K, data="normal"),))
            found = [fixed_contender(rows, n * KIB, limits) for r, n in SHAPES if r == rows]
            fixed = [contender for contender in found if contender is not None]
            contenders = [*(REGISTRY[name] for name in _FLOORS), *fixed]
            cells += _run(suite, contenders, device, out, progress)
    launch = CudaTimer().warm(empty_launch(device), _REPLAYS)
    return {"launch": launch.to_json(), "cells": cells}


def _run(
    suite: Suite,
    contenders: Sequence[Contender],
    device: torch.device,
    out: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    return Runner("ladder", suite, contenders, device, (), out, progress=progress).run()["cells"]


def empty_launch(device: torch.device) -> Call:
    answer = torch.zeros(1, dtype=torch.int32, device=device)

    def call() -> torch.Tensor:
        torch.cuda._sleep(0)  # one thread, which waits for no cycle
        return answer

    return call


def rungs(ladder: dict[str, Any]) -> list[Rung]:
    times: dict[tuple[int, int, str], float] = {}
    plans: dict[tuple[int, int], str] = {}
    for entry in ladder["cells"]:
        rows, n = entry["cell"]["rows"], entry["cell"]["n"]
        for result in entry["results"]:
            name = result["contender"]
            if result.get("exact"):
                times[rows, n, name] = result["cold"]["median_us"]
            if name == "auto" and (plan := result.get("plan")):
                ctas = plan["ctas_per_row"]
                plans[rows, n] = f"{plan['family']}, {ctas} CTA{'s' * (ctas > 1)} per row"
    launch = ladder["launch"]["median_us"] if ladder["launch"] else None
    return [
        Rung(
            rows,
            n,
            launch,
            times.get((rows, n, "floor")),
            times.get((rows, n, "floor-pdl")),
            times.get((rows, SHORT, "floor")),
            times.get((rows, SHORT, fixed_name(n))),
            times.get((rows, n, "auto")),
            plans.get((rows, n), ""),
        )
        for rows, n in dict.fromkeys(
            (e["cell"]["rows"], e["cell"]["n"]) for e in ladder["cells"] if e["cell"]["n"] != SHORT
        )
    ]
