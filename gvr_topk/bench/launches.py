# SPDX-License-Identifier: Apache-2.0
"""One launch of every contender in every cell, for a profiler that watches this process.

    python -m gvr_topk.bench.launches JOB DONE

JOB is JSON written by profiling.py. What was launched goes to DONE, in order, after every launch.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from .cells import LONGEST_TRACE, Cell
from .contenders import REGISTRY, Contender
from .workload import Case, Recordings, build_pool, make_case

KERNELS = "(floor|resident|stream|gvr|radix)_kernel"  # one of them per call
_WARM_UPS = 3
_OURS = ("auto", "op")  # the plain call, whose telemetry that of any other is


@dataclass(frozen=True)
class Job:
    """`wanted[i]`: the contenders of cell i with the variant of each."""

    cells: tuple[Cell, ...]
    wanted: tuple[dict[str, dict[str, int]], ...]
    paired: tuple[bool, ...]
    traces: tuple[Path, ...]
    seconds: float  # after which no further cell starts

    def to_json(self) -> str:
        return json.dumps(
            {
                "cells": [asdict(cell) for cell in self.cells],
                "wanted": self.wanted,
                "paired": self.paired,
                "traces": [str(path.resolve()) for path in self.traces],
                "seconds": self.seconds,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Job:
        given = json.loads(text)
        return cls(
            tuple(Cell(**cell) for cell in given["cells"]),
            tuple(given["wanted"]),
            tuple(given["paired"]),
            tuple(map(Path, given["traces"])),
            given["seconds"],
        )


def launch_all(job: Job, device: torch.device, done: Path) -> None:
    began = perf_counter()
    lengths = [cell.n for cell in job.cells if cell.data == "trace"]
    recordings = Recordings(job.traces, device, min(max(lengths, default=1), LONGEST_TRACE))
    launched: list[dict[str, Any]] = []
    done.write_text("[]")
    for place, cell in enumerate(job.cells):
        if perf_counter() - began > job.seconds:
            break
        pool = build_pool(cell, cell.rows, cell.k, device, recordings, job.paired[place])
        case = make_case(cell, pool, 1, job.paired[place])
        if case.on_gpu:
            torch.cuda.empty_cache()  # before its first replay a profiler saves what is allocated
        for name, variant in job.wanted[place].items():
            exact = launch(REGISTRY[name], case, variant)
            rounds = telemetry(case) if name in _OURS else None
            launched.append({"cell": place, "contender": name, "exact": exact, "telemetry": rounds})
            done.write_text(json.dumps(launched))


def launch(contender: Contender, case: Case, variant: dict[str, int]) -> bool:
    """Warm calls, then one that the profiler sees. Was it exact?"""
    with contender.tuned():
        calls = contender.prepare(case, **variant)
        for call in calls * _WARM_UPS:
            call()
        _synchronize(case)
        if case.on_gpu:
            torch.cuda.profiler.start()
        answer = calls[0]()
        _synchronize(case)
        if case.on_gpu:
            torch.cuda.profiler.stop()
    return contender.check(answer, case.buffers[0])


def telemetry(case: Case) -> dict[str, Any]:
    """How the rows of a call were answered; the slowest row decides, so the most of each counts."""
    from gvr_topk import explain

    buffer = case.buffers[0]
    stats = explain(buffer.scores, case.cell.k, hint=buffer.hint).stats
    return {
        "passes": int(stats.passes.max()),
        "refine_rounds": int(stats.refine_rounds.max()),
        "survivors": int(stats.survivors.max()),
        "paths": {name: stats.path_names.count(name) for name in sorted(set(stats.path_names))},
    }


def _synchronize(case: Case) -> None:
    if case.on_gpu:
        torch.cuda.synchronize(case.device)


def main(arguments: list[str]) -> None:
    job, done = map(Path, arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    launch_all(Job.from_json(job.read_text()), device, done)


if __name__ == "__main__":
    main(sys.argv[1:])
