# SPDX-License-Identifier: Apache-2.0
"""Runs a suite: rows made once per length, every contender timed and checked in every cell."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from . import environment
from .cells import LONGEST_TRACE, Cell, Suite
from .contenders import Contender
from .timing import L2_POLICY, CpuTimer, CudaTimer, Timer, Timing, buffer_count
from .workload import Case, Pool, Recordings, WorkloadError, build_pool, make_case

SCHEMA = 1
_TRIAL_REPLAYS = 5


def without_folder(argument: str) -> str:
    """A record says which file was named, not where on this machine it lay."""
    option, equals, value = argument.rpartition("=")
    return option + equals + (Path(value).name if Path(value).is_absolute() else value)


@dataclass
class Progress:
    """What the caller shows; every hook may be left alone.

    `start`: as many results will follow, beside those of earlier runs.
    """

    start: Callable[[int], None] = lambda more: None
    cell: Callable[[str], None] = lambda label: None
    result: Callable[[], None] = lambda: None


@dataclass
class Runner:
    suite_name: str
    suite: Suite
    contenders: Sequence[Contender]
    device: torch.device
    traces: Sequence[Path]
    out: Path
    budget: float | None = None
    arguments: Sequence[str] = ()
    progress: Progress = field(default_factory=Progress)

    def run(self) -> dict[str, Any]:
        """The record, which is also written to `out` after every cell."""
        self._began = perf_counter()
        self._variants: dict[tuple[Any, ...], dict[str, int]] = {}
        self._record = self._empty_record()
        usable = self._usable_contenders()
        self._timer: Timer = CudaTimer() if self.device.type == "cuda" else CpuTimer()
        recorded = [c.n for c in self.suite.cells if c.data == "trace"]
        longest = min(max(recorded, default=1), LONGEST_TRACE)
        recordings = Recordings(self.traces, self.device, longest)
        self.progress.start(len(self.suite.cells) * len(usable))
        for cells in _grouped(self.suite.cells):
            self._run_group(cells, usable, recordings)
        self._record["seconds"] = round(perf_counter() - self._began, 1)
        self._write()
        return self._record

    def _empty_record(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "suite": self.suite_name,
            "about": self.suite.about,
            "device": self.device.type,
            "arguments": [without_folder(argument) for argument in self.arguments],
            "environment": environment.describe(),
            "l2_policy": L2_POLICY,
            "unavailable": {},
            "skipped": [],
            "cells": [],
        }

    def _usable_contenders(self) -> list[Contender]:
        usable = []
        for contender in self.contenders:
            reason = contender.unavailable(self.device)
            if reason is None:
                usable.append(contender)
            else:
                self._record["unavailable"][contender.name] = reason
        return usable

    def _run_group(
        self, cells: list[Cell], usable: list[Contender], recordings: Recordings
    ) -> None:
        pool: Pool | None = None
        for cell in cells:
            self.progress.cell(cell.label)
            try:
                if self._late():
                    raise WorkloadError(f"the budget of {self.budget:g} s was spent")
                if pool is None:
                    pool = self._pool(cells, recordings)
                self._run_cell(cell, pool, usable)
            except WorkloadError as error:
                self._record["skipped"].append({"cell": asdict(cell), "reason": str(error)})
                for _ in usable:
                    self.progress.result()
            self._write()

    def _late(self) -> bool:
        return self.budget is not None and perf_counter() - self._began > self.budget

    def _pool(self, cells: list[Cell], recordings: Recordings) -> Pool:
        rows = max(cell.rows * buffer_count(cell.bytes, self.device) for cell in cells)
        return build_pool(
            cells[0], rows, max(c.k for c in cells), self.device, recordings, self.suite.paired
        )

    def _run_cell(self, cell: Cell, pool: Pool, usable: list[Contender]) -> None:
        case = make_case(cell, pool, buffer_count(cell.bytes, self.device), self.suite.paired)
        shares = case.overlaps()
        entry: dict[str, Any] = {
            "cell": asdict(cell),
            "label": cell.label,
            "scores_per_row": case.buffers[0].scores.shape[1],
            "buffers": len(case.buffers),
            "source": case.source,
            "overlap": None
            if shares is None
            else {"mean": round(float(shares.mean()), 4), "least": round(float(shares.min()), 4)},
            "results": [],
        }
        self._record["cells"].append(entry)
        with _threads(cell.threads):
            for contender in usable:
                entry["results"].append(self._run_contender(contender, case))
                self.progress.result()

    def _run_contender(self, contender: Contender, case: Case) -> dict[str, Any]:
        result: dict[str, Any] = {"contender": contender.name}
        try:
            with contender.tuned():
                variant = self._best_variant(contender, case)
                calls = contender.prepare(case, **variant)
                timing, answers = self._timer.cold(calls, case.bytes_per_call, self.suite.replays)
                result["cold"] = timing.to_json()
                result["exact"] = _all_exact(contender, case, answers)
                result["rows_checked"] = case.cell.rows * len(answers)
                if variant:
                    result["variant"] = variant
                if (plan := contender.plan(case)) is not None:
                    result["plan"] = plan
                if self.suite.warm:
                    result["warm"] = self._timer.warm(calls[0], self.suite.replays).to_json()
        except (RuntimeError, ValueError, TypeError) as error:
            # One contender that cannot run a cell must not cost the others theirs.
            result["error"] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return result

    def _best_variant(self, contender: Contender, case: Case) -> dict[str, int]:
        variants = contender.variants(case)
        if len(variants) == 1:
            return variants[0]
        cell = case.cell
        key = (contender.name, cell.rows, cell.n, cell.dtype)
        if key not in self._variants:
            times: list[Timing] = []
            for variant in variants:
                calls = contender.prepare(case, **variant)
                times.append(self._timer.cold(calls, case.bytes_per_call, _TRIAL_REPLAYS)[0])
            fastest = min(range(len(variants)), key=lambda i: times[i].median_us)
            self._variants[key] = variants[fastest]
        return self._variants[key]

    def _write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        partial = self.out.with_name(self.out.name + ".partial")
        partial.write_text(json.dumps(self._record, indent=1) + "\n")
        os.replace(partial, self.out)


def _all_exact(contender: Contender, case: Case, answers: list[Tensor]) -> bool:
    pairs = zip(answers, case.buffers, strict=True)
    return all(contender.check(answer, buffer) for answer, buffer in pairs)


def _grouped(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Cells that share a pool, in the order of their first."""
    groups: dict[tuple[str, int, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.data, cell.n, cell.dtype), []).append(cell)
    yield from groups.values()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def failures(record: dict[str, Any]) -> list[str]:
    """Every timed result that was not exact or did not come about."""
    found = []
    for entry in record["cells"]:
        for result in entry["results"]:
            if "error" in result:
                found.append(f"{entry['label']}: {result['contender']}: {result['error']}")
            elif not result["exact"]:
                found.append(f"{entry['label']}: {result['contender']}: not exact")
    return found
