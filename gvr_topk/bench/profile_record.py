# SPDX-License-Identifier: Apache-2.0
"""Reading a record of `bench profile`: the counters of every launch, and what they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cells import Cell
from .ncu import BARRIER_OPCODES
from .results import Entry, Results, ResultsError

# What a warp does in a cycle, by the names of ncu's stall reasons.
ACTIVITIES: dict[str, tuple[str, ...]] = {
    "issuing": ("selected",),
    "ready": ("not_selected",),
    "global memory": ("long_scoreboard", "lg_throttle", "tex_throttle", "drain"),
    "barrier": ("barrier",),
    "fence": ("membar",),
    "shared memory": ("short_scoreboard", "mio_throttle"),
    "arithmetic": ("wait", "math_pipe_throttle", "dispatch_stall"),
    "instruction fetch": ("no_instruction", "imc_miss", "branch_resolving"),
    "other": ("sleeping", "misc", "gmma"),
}
_AT_WORK = ("issuing", "ready")  # no waiting
_BUSY_DRAM = 60.0  # per cent of its peak from which on the memory is what a kernel waits for
_BUSY_ISSUE = 60.0  # per cent of the cycles in which a scheduler issues, likewise
_WARP = 32


@dataclass(frozen=True)
class Launch:
    """One contender in one cell: its counters, and its time over those beside it."""

    cell: str
    contender: str
    time_us: float | None
    over_floor: float | None
    over_op: float | None
    scores_bytes: int
    sm_count: int
    counters: Mapping[str, Any]
    telemetry: Mapping[str, Any]

    @property
    def activities(self) -> dict[str, float]:
        """Share of the warps' cycles, by ACTIVITIES; empty where ncu gave no stalls."""
        found = {
            name: sum(self.counters.get(f"stall_{reason}", 0.0) for reason in reasons)
            for name, reasons in ACTIVITIES.items()
        }
        total = sum(found.values())
        return {name: value / total for name, value in found.items()} if total else {}

    @property
    def waits(self) -> list[tuple[str, float]]:
        """Those that are no work, longest first."""
        found = [(n, share) for n, share in self.activities.items() if n not in _AT_WORK]
        return sorted(found, key=lambda wait: -wait[1])

    @property
    def barriers(self) -> dict[str, float]:
        """Executions of the barrier instructions by every warp; empty where ncu did not count."""
        counts = self.counters.get("opcodes")
        warps = self.counters.get("grid", 0) * self.counters.get("block", 0) / _WARP
        if not counts or not warps:
            return {}
        return {name: counts.get(name, 0) / warps for name in BARRIER_OPCODES}

    @property
    def limit(self) -> str:
        """What holds this launch back, by the first of four rules that its counters meet."""
        if self.counters.get("dram_percent", 0.0) >= _BUSY_DRAM:
            return "bandwidth"
        if self.counters.get("issue_percent", 0.0) >= _BUSY_ISSUE:
            return "instructions"
        if self.counters.get("grid", self.sm_count) <= self.sm_count // 2:
            return "few SMs, waiting"
        return "waiting"


def load(path: Path) -> dict[str, Any]:
    """A profile's record; ResultsError where the file is none."""
    header = Results.load(path).header
    if header["suite"] != "profile" or "ncu" not in header:
        raise ResultsError(f"{path}: no record of `bench profile`")
    return header


def launches(record: Mapping[str, Any]) -> list[Launch]:
    """Every result with counters, in the order of the record."""
    gpu = record["environment"]["gpu"] or {}
    return [
        found for entry in _entries(record) for found in _of_entry(entry, gpu.get("sm_count", 0))
    ]


def _entries(record: Mapping[str, Any]) -> list[Entry]:
    return [Entry(Cell(**entry["cell"]), dict(entry)) for entry in record["cells"]]


def _of_entry(entry: Entry, sm_count: int) -> Iterator[Launch]:
    itemsize = entry.cell.bytes // (entry.cell.rows * entry.cell.n)
    for name, result in entry.results.items():
        if result.get("counters") and result["exact"]:
            yield Launch(
                entry.cell.label,
                name,
                entry.time(name),
                entry.ratio(name, "floor"),
                entry.ratio(name, "op"),
                entry.cell.rows * entry.record["scores_per_row"] * itemsize,
                sm_count,
                result["counters"],
                result.get("telemetry", {}),
            )
